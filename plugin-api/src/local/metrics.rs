//! What a kernel counts and measures of itself, as it tells it: names, kinds, meanings, labels, values.

use serde::{Deserialize, Serialize};

/// One thing that is counted or measured, with its value for each set of labels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetricDoc {
    /// Its name, as Prometheus has them: `dvm_…`, with its unit, `_total` at the end of a counter.
    pub name: String,
    /// What kind of number it is.
    pub kind: MetricKind,
    /// What it means, in one line.
    pub help: String,
    /// Its values; there may be none.
    pub samples: Vec<SampleDoc>,
}

/// Kinds of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MetricKind {
    /// It only grows while the kernel lives.
    Counter,
    /// It may rise and fall.
    Gauge,
    /// How often a measured value was at most so much: samples named with `_bucket`, `_sum` and `_count`.
    Histogram,
}

impl MetricKind {
    /// As Prometheus calls it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SampleDoc {
    /// What follows the metric's name: nothing but in a histogram.
    pub suffix: String,
    /// Names and values of its labels.
    pub labels: Vec<(String, String)>,
    /// It.
    pub value: f64,
}
