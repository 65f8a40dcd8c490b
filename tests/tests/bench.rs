//! What `dvm bench` prints, and that its figures fit together. How good they are is nobody's business here.

use dvm_tests::cluster::Ground;
use serde_json::Value;

fn bench(arguments: &[&str]) -> Value {
    let ground = Ground::new();
    let document = ground.json(&[&["bench"], arguments, &["--members", "3"]].concat()).exits(0).json();
    ground.assert_empty();
    document
}

/// The median of a figure, which must be there and above zero.
fn p50(document: &Value, path: &str) -> f64 {
    let found = document.pointer(&format!("{path}/p50")).and_then(Value::as_f64);
    found.filter(|figure| *figure > 0.0).unwrap_or_else(|| panic!("no {path} in {document}"))
}

#[test]
fn a_broadcast_is_delivered_at_its_originator_before_it_is_everywhere() {
    for senders in ["one", "all"] {
        let document = bench(&["ring", "--seconds", "0.5", "--senders", senders]);
        assert!(p50(&document, "/broadcast/origin_us") < p50(&document, "/broadcast/last_us"), "{document}");
        assert!(p50(&document, "/raw/lap_us") > 0.0);
        // Each message goes over two links of three, and many share a frame that says they are stable.
        let frames = document["broadcast"]["frames_per_op"].as_f64().expect("a figure");
        assert!((2.0..=6.0).contains(&frames), "{document}");
    }
}

#[test]
fn an_outcome_is_known_to_all_sooner_than_twice_it_is_final_at_the_originator() {
    let document = bench(&["agree", "--seconds", "0.5"]);
    let (known, last) = (p50(&document, "/agreement/known_us"), p50(&document, "/agreement/final_us"));
    assert!(known < 2.0 * last, "{document}");
}

#[test]
fn launches_follow_each_other_at_once() {
    let document = bench(&["launch", "--runs", "4"]);
    assert_eq!(document["runs"], 4);
    assert!(p50(&document, "/rss_mib") > 0.0 && document["ready_ms"].as_f64().is_some_and(|ms| ms > 0.0));
}

#[test]
fn every_loss_is_told_and_made_up_for() {
    let document = bench(&["failover", "--runs", "2"]);
    for path in ["/event_ms", "/plugin_ms", "/takeover_ms", "/warm_takeover_ms", "/single_takeover_ms"] {
        assert!(p50(&document, path) > 0.0);
    }
}

#[test]
fn a_library_is_loaded_while_the_ring_goes_on() {
    let document = bench(&["library", "--size", "16000000", "--runs", "2", "--seconds", "0.2"]);
    assert_eq!((&document["size"], &document["runs"]), (&16_000_000.into(), &2.into()));
    assert!(p50(&document, "/load_ms") > 0.0);
    assert!(
        p50(&document, "/ring/idle_us") > 0.0 && p50(&document, "/ring/meanwhile_us") > 0.0,
        "{document}"
    );
}
