//! The raw ring's processes: messages come around, plain and through TLS, and each round ends.

use rcgen::{CertifiedKey, generate_simple_self_signed};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

struct Node {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Node {
    fn start() -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dvm"));
        let mut child = command
            .arg("raw-ring-node")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, stdout }
    }

    fn tell(&mut self, order: &Value) {
        writeln!(self.child.stdin.as_mut().expect("piped"), "{order}").expect("written");
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("read");
        line.trim().to_owned()
    }
}

#[test]
fn every_round_comes_around_and_ends() {
    let mut nodes: Vec<_> = (0..3).map(|_| Node::start()).collect();
    let addresses: Vec<_> = nodes.iter_mut().map(Node::line).collect();
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let tls = json!({"Tls": {"certificate": cert.der().to_vec(), "key": signing_key.serialize_der()}});
    for round in [json!("Lap"), json!("Messages"), json!("Stream"), tls] {
        for (number, node) in nodes.iter_mut().enumerate() {
            let next = &addresses[(number + 1) % addresses.len()];
            node.tell(&json!({"round": round, "first": number == 0, "next": next, "size": 64, "millis": 50}));
        }
        let mut answers = nodes.iter_mut().map(|node| node.line().parse::<Value>().expect("an answer"));
        let first = answers.next().expect("three");
        assert_eq!(answers.count(), 2);
        if round == "Lap" {
            assert!(!first["laps_us"].as_array().expect("laps").is_empty());
        } else {
            assert!(first["bytes"].as_u64().expect("bytes") > 0, "{round}");
        }
    }
    for mut node in nodes {
        drop(node.child.stdin.take());
        assert!(node.child.wait().expect("ended").success());
    }
}
