//! The plug-in `metrics`: what each kernel counts and measures, scraped as Prometheus would.

use dvm_tests::book::page;
use dvm_tests::cluster::{Cluster, wait_for};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// What a scrape said: values by name with labels, and each metric's kind and help.
struct Scrape {
    values: BTreeMap<String, f64>,
    metrics: BTreeMap<String, (String, String)>,
}

impl Scrape {
    fn value(&self, name: &str) -> f64 {
        *self.values.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", self.values.keys()))
    }
}

/// Reads the text format strictly: every sample belongs to a metric announced right before, with its kind, and no
/// sample and no metric is told twice.
fn parse(text: &str) -> Scrape {
    let (mut values, mut metrics) = (BTreeMap::new(), BTreeMap::new());
    let (mut helped, mut current) = (None, None::<(String, String)>);
    assert!(text.ends_with('\n'), "the last line is whole");
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a name and a text");
            helped = Some((name.to_owned(), help.to_owned()));
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a name and a kind");
            let (helped, help) = helped.take().expect("a help before the type");
            assert_eq!(helped, name);
            assert!(matches!(kind, "counter" | "gauge" | "histogram"), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            let before = metrics.insert(name.to_owned(), (kind.to_owned(), help));
            assert!(before.is_none(), "{name} twice");
            current = Some((name.to_owned(), kind.to_owned()));
        } else {
            let (key, value) = line.rsplit_once(' ').expect("a sample and its value");
            let (metric, kind) = current.as_ref().expect("a type before the samples");
            let (name, labels) = key.split_once('{').unwrap_or((key, "}"));
            assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'), "{line}");
            let suffix = name.strip_prefix(metric.as_str()).unwrap_or_else(|| panic!("{line} in {metric}"));
            let suffixes: &[_] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            assert!(suffixes.contains(&suffix) && labels.ends_with('}'), "{line}");
            let value: f64 = value.parse().expect("a number");
            assert!(value.is_finite() && value >= 0.0, "{line}");
            assert!(values.insert(key.to_owned(), value).is_none(), "{key} twice");
        }
    }
    let laps: Vec<_> = ["0.00005", "0.001", "1", "+Inf"]
        .iter()
        .map(|le| values[&format!("dvm_lap_seconds_bucket{{le=\"{le}\"}}")])
        .collect();
    assert!(laps.is_sorted(), "{laps:?}");
    assert_eq!(laps[3], values["dvm_lap_seconds_count"]);
    Scrape { values, metrics }
}

/// Sends a request and reads to the end: the status line, and the body.
fn ask(address: &str, request: &str) -> io::Result<(String, String)> {
    let limit = Some(Duration::from_secs(20));
    let mut answer = String::new();
    if let Some(path) = address.strip_prefix("unix:") {
        let mut stream = UnixStream::connect(path)?;
        stream.set_read_timeout(limit)?;
        stream.write_all(request.as_bytes())?;
        stream.read_to_string(&mut answer)?;
    } else {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(limit)?;
        stream.write_all(request.as_bytes())?;
        stream.read_to_string(&mut answer)?;
    }
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    Ok((head.lines().next().unwrap_or_default().to_owned(), body.to_owned()))
}

fn scrape(address: &str) -> Scrape {
    let (status, body) = ask(address, "GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n").expect("it answers");
    assert_eq!(status, "HTTP/1.1 200 OK", "{body}");
    parse(&body)
}

/// Where a member's instance listens.
fn listens(cluster: &Cluster, member: &str) -> Vec<String> {
    let told = cluster.ok(&["--member", member, "call", "metrics", r#"{"status":true}"#, "--query"]);
    let listen = told["reply"]["listen"].as_array().expect("a list").iter();
    listen.map(|address| address.as_str().expect("an address").to_owned()).collect()
}

#[test]
fn every_member_serves_its_kernel_over_tcp_and_a_socket() {
    let cluster = Cluster::up(3, &["--set", "chaos=true"]);
    let socket = format!("unix:{}/{{member}}.metrics", cluster.home().display());
    let listen = format!("listen=[\"127.0.0.1:21464-21999\",\"{socket}\"]");
    let _ = cluster.ok(&["plugin", "load", "metrics", "--stateless", "-c", &listen]);
    let _ = cluster.ok(&["plugin", "load", "counter"]);
    let mut names = cluster.members();
    names.sort_unstable();
    let addresses: Vec<_> = names.iter().map(|member| listens(&cluster, member)).collect();
    for (member, addresses) in names.iter().zip(&addresses) {
        assert_eq!(addresses.len(), 2, "{addresses:?}");
        for address in addresses {
            let told = scrape(address);
            let who = told.values.keys().find(|key| key.starts_with("dvm_kernel_info")).expect("it says who");
            assert!(who.contains(&format!("member=\"{member}\"")), "{address}: {who}");
            assert_eq!(told.value("dvm_view_members"), 3.0);
            assert_eq!(told.value("dvm_plugin_running{plugin=\"counter\"}"), 1.0);
            assert_eq!(told.value("dvm_plugin_instances{plugin=\"counter\",state=\"running\"}"), 3.0);
        }
    }
    let before = scrape(&addresses[0][0]);
    for _ in 0..20 {
        let _ = cluster.ok(&["--member", "k0", "call", "counter", r#"{"add":1}"#]);
    }
    let after = scrape(&addresses[0][1]);
    let grown = |name: &str| after.value(name) - before.value(name);
    assert!(grown("dvm_requests_total{outcome=\"done\"}") >= 20.0);
    assert!(grown("dvm_lap_seconds_count") >= 20.0 && grown("dvm_lap_seconds_sum") > 0.0);
    assert!(grown("dvm_entries_total") >= 20.0 && grown("dvm_index") >= 20.0);
    assert!(grown("dvm_clients_total") >= 20.0 && grown("dvm_client_requests_total") >= 20.0);
    assert!(grown("dvm_plugin_callbacks_total{plugin=\"counter\"}") >= 20.0);
    for name in ["sent", "received"] {
        assert!(grown(&format!("dvm_ring_frames_{name}_total")) >= 20.0, "{name}");
        assert!(grown(&format!("dvm_ring_{name}_bytes_total")) >= 20.0 * 5.0, "{name}");
    }
    // What the others fetched of k0, or k0 of the one that took the load.
    let moved: f64 = ["sent", "received"]
        .iter()
        .map(|way| after.value(&format!("dvm_transfer_bytes_total{{direction=\"{way}\"}}")))
        .sum();
    assert!(moved > 10_000.0, "{moved}");

    let _ = cluster.ok(&["chaos", "kill", "--plugin", "counter", "--on", "k1"]);
    cluster.kill("k2");
    cluster.settle(&names[..2]);
    wait_for("the numbers tell", || {
        let told: Vec<_> = addresses[..2].iter().map(|addresses| scrape(&addresses[0])).collect();
        let all = |name: &str, value: f64| told.iter().all(|one| one.value(name) == value);
        (all("dvm_view_members", 2.0)
            && all("dvm_events_total{kind=\"member-failed\"}", 1.0)
            && all("dvm_events_total{kind=\"instance-restarted\"}", 1.0)
            && all("dvm_plugin_restarts_total{plugin=\"counter\"}", 1.0)
            && told[1].value("dvm_plugin_failures_total{plugin=\"counter\"}") == 1.0
            && told[0].value("dvm_views_total") > before.value("dvm_views_total"))
        .then_some(())
    });
    assert_eq!(scrape(&addresses[1][0]).value("dvm_plugin_failures_total{plugin=\"metrics\"}"), 0.0);
    let _ = cluster.ok(&["plugin", "unload", "metrics"]);
    // One that is taken while it ends is reset.
    let refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    wait_for("it stops to listen", || ask(&addresses[0][0], "").err().filter(refused));
}

#[test]
fn others_who_are_slow_or_talk_nonsense_hold_nobody_up() {
    let cluster = Cluster::up(1, &[]);
    let _ = cluster.ok(&["plugin", "load", "metrics", "--stateless", "-c", "listen=127.0.0.1:22464-22999"]);
    let address = listens(&cluster, "k0").remove(0);
    // More than it has places for, each of which has begun to ask.
    let mut slow: Vec<_> = (0..100).map(|_| TcpStream::connect(&address).expect("it listens")).collect();
    for stream in &mut slow {
        // The oldest ones may have given way already.
        let _ = stream.write_all(b"GET /metr");
    }
    let _ = scrape(&address);
    let long = format!("GET /metrics HTTP/1.1\r\nX: {}", "x".repeat(20_000));
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 404 Not Found"),
        ("POST /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 405 Method Not Allowed"),
        ("GET /metrics SPDY/3\r\n\r\n", "HTTP/1.1 505 HTTP Version Not Supported"),
        ("\x16\x03\x01\r\n\r\n", "HTTP/1.1 400 Bad Request"),
    ] {
        assert_eq!(ask(&address, request).expect("an answer").0, status, "{request:?}");
    }
    // The connection may be reset before its answer is read; what counts is that it ends, and soon.
    let _ = ask(&address, &long);
    let _ = scrape(&address);
    let told = cluster.ok(&["call", "metrics", r#"{"status":true}"#, "--query"])["reply"].clone();
    assert_eq!((&told["scrapes"], &told["errors"]), (&2.into(), &5.into()), "{told}");
}

#[test]
fn an_address_that_is_in_use_is_told_with_what_to_do() {
    let cluster = Cluster::up(2, &[]);
    let load = |listen: &str| {
        cluster.json(&["plugin", "load", "metrics", "--stateless", "-c", &format!("listen={listen}")])
    };
    // Both kernels of this host cannot have it: one of them says so.
    let refused = load("127.0.0.1:23464").exits(4).json();
    assert!(refused.to_string().contains("23464 is in use on this host; give a range"), "{refused}");
    let path = cluster.home().join("metrics");
    let refused = load(&format!("unix:{}", path.display())).exits(4).json();
    assert!(refused.to_string().contains("its name needs `{member}`"), "{refused}");
    let refused = load("localhost").exits(4).json();
    assert!(refused.to_string().contains("is no address"), "{refused}");
    let _ = load("127.0.0.1:23464-23999").exits(0);
    // What an instance holds is free to it.
    let socket = format!("unix:{}/{{member}}.metrics", cluster.home().display());
    let both = format!("listen=[\"127.0.0.1:23464-23999\",\"{socket}\"]");
    let _ = cluster.ok(&["plugin", "configure", "metrics", "-c", &both]);
    for member in ["k0", "k1"] {
        let listen = listens(&cluster, member);
        assert_eq!(listen.len(), 2, "{listen:?}");
        listen.iter().for_each(|address| drop(scrape(address)));
    }
}

#[test]
fn every_metric_is_in_the_book_and_nothing_else() {
    let cluster = Cluster::up(1, &[]);
    let _ = cluster.ok(&["plugin", "load", "metrics", "--stateless", "-c", "listen=127.0.0.1:24464-24999"]);
    let _ = cluster.ok(&["plugin", "load", "counter", "--mode", "single"]);
    let told = scrape(&listens(&cluster, "k0")[0]);
    let text = page("docs/metrics.md");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `dvm_"));
    let rows: BTreeMap<_, _> = rows
        .map(|row| {
            let mut cells = row.split(" | ");
            let name = format!("dvm_{}", cells.next().expect("a name").trim_end_matches('`'));
            let (kind, labels) = (cells.next().expect("a kind"), cells.next().expect("labels"));
            let help = cells.next().expect("a meaning").trim_end_matches(" |");
            (name, (kind.to_owned(), labels.to_owned(), help.to_owned()))
        })
        .collect();
    for (name, (kind, help)) in &told.metrics {
        let (booked, labels, meaning) =
            rows.get(name).unwrap_or_else(|| panic!("docs/metrics.md does not tell of {name}: {help}"));
        assert_eq!((booked, meaning), (kind, help), "docs/metrics.md on {name}");
        for key in told.values.keys().filter(|key| key.split('{').next() == Some(name)) {
            let inside = key.split_once('{').map_or("", |(_, rest)| rest.trim_end_matches('}'));
            let found: Vec<_> = inside.split("\",").filter_map(|one| one.split('=').next()).collect();
            let found = if inside.is_empty() { "-".to_owned() } else { found.join(", ") };
            assert_eq!(found, *labels, "docs/metrics.md on {key}");
        }
    }
    for name in rows.keys() {
        assert!(told.metrics.contains_key(name), "docs/metrics.md tells of {name}, which is not served");
    }
}
