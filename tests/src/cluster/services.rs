//! What `tests/programs/services.c` and `services.py` are answered, wherever its instance runs.

use super::{Cluster, wait_for};
use serde_json::{Value, json};

/// Waits until it has put the answer to each service into a key. Its primary is on `primary`, and another instance on `k1` if that
/// is another member.
///
/// # Panics
/// When an answer is another, or does not come.
pub fn services_are_answered(cluster: &Cluster, primary: &str) {
    let key = |name: &str| {
        wait_for(&format!("{name} is answered"), || {
            let key = cluster.json(&["state", "get", &format!("c/{name}")]);
            (key.exit == 0).then(|| key.json()["value"].clone())
        })
    };
    for (name, wanted) in [
        ("call", json!({"value": 3})),
        ("send", Value::Null),
        ("absent", Value::Null),
        ("watch", Value::Null),
        ("timer", Value::Null),
        ("spawn", Value::Null),
        ("kill", Value::Null),
        ("done", Value::Null),
        ("undone", json!({"commands": [], "more": false, "missed": false})),
        ("delete", Value::Null),
        ("message", json!({"from": primary, "body": {"hello": true}})),
        ("output", json!("it runs\n")),
        ("exit", json!(5)),
        ("changed", json!("w/x")),
        ("applied", json!(42)),
    ] {
        assert_eq!(key(name), wanted, "{name}");
    }
    assert!(key("put")["version"].is_u64());
    assert!(key("broadcast")["index"].is_u64());
    assert!(key("refused").as_str().is_some_and(|text| text.contains("no member `nobody`")));
    assert!(key("early").as_str().is_some_and(|text| text.contains("not its member's yet")));
}
