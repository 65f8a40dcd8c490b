//! Prometheus' text format, version 0.0.4.

use dvm_plugin_api::local::{MetricDoc, SampleDoc};
use std::fmt::Write;

/// What a scraper is told of it.
pub(crate) const TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The metrics as text.
pub(crate) fn encode(metrics: &[MetricDoc]) -> String {
    let mut text = String::new();
    for MetricDoc { name, kind, help, samples } in metrics {
        // Writing to memory does not fail.
        let _ = writeln!(text, "# HELP {name} {}", escape(help, false));
        let _ = writeln!(text, "# TYPE {name} {}", kind.word());
        for SampleDoc { suffix, labels, value } in samples {
            let _ = write!(text, "{name}{suffix}");
            for (place, (label, value)) in labels.iter().enumerate() {
                let before = if place == 0 { '{' } else { ',' };
                let _ = write!(text, "{before}{label}=\"{}\"", escape(value, true));
            }
            let after = if labels.is_empty() { "" } else { "}" };
            let _ = writeln!(text, "{after} {value}");
        }
    }
    text
}

fn escape(text: &str, quotes: bool) -> String {
    let text = text.replace('\\', "\\\\").replace('\n', "\\n");
    if quotes { text.replace('"', "\\\"") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dvm_plugin_api::local::MetricKind;

    #[test]
    fn names_values_and_what_is_escaped() {
        let sample = |suffix: &str, labels: &[(&str, &str)], value| SampleDoc {
            suffix: suffix.into(),
            labels: labels.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
            value,
        };
        let metrics = [
            MetricDoc {
                name: "a_total".into(),
                kind: MetricKind::Counter,
                help: "Two\nlines, one \\.".into(),
                samples: vec![
                    sample("", &[("x", "say \"\\\"\n"), ("y", "")], 12_345_678_901.0),
                    sample("", &[], 0.0),
                ],
            },
            MetricDoc {
                name: "b".into(),
                kind: MetricKind::Histogram,
                help: String::new(),
                samples: vec![sample("_bucket", &[("le", "+Inf")], 2.0), sample("_sum", &[], 0.000_05)],
            },
        ];
        let text = [
            r"# HELP a_total Two\nlines, one \\.",
            "# TYPE a_total counter",
            r#"a_total{x="say \"\\\"\n",y=""} 12345678901"#,
            "a_total 0",
            "# HELP b ",
            "# TYPE b histogram",
            r#"b_bucket{le="+Inf"} 2"#,
            "b_sum 0.00005",
            "",
        ];
        assert_eq!(encode(&metrics), text.join("\n"));
    }
}
