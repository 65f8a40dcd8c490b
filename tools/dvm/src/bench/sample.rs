//! Percentiles, and figures that are rounded to what they can tell.

use serde_json::{Value, json};

/// `{"p50":…,"p99":…}` of measured values, in their unit.
pub(super) fn percentiles(values: &mut [f64]) -> Value {
    json!({"p50": figure(percentile(values, 0.50)), "p99": figure(percentile(values, 0.99))})
}

/// The smallest value that `part` of all values do not exceed; 0 without values.
pub(super) fn percentile(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = (values.len() as f64 * part).ceil() as usize;
    values.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

/// Rounded to four digits.
pub(super) fn figure(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return 0.0;
    }
    let scale = 10_f64.powi(3 - value.abs().log10().floor() as i32);
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_rank() {
        let mut values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(&mut values, 0.50), 50.0);
        assert_eq!(percentile(&mut values, 0.99), 99.0);
        assert_eq!(percentile(&mut [7.0], 0.99), 7.0);
        assert_eq!(percentile(&mut [], 0.99), 0.0);
    }

    #[test]
    fn four_digits() {
        assert_eq!(figure(123_456.0), 123_500.0);
        assert_eq!(figure(0.001_234_56), 0.001_235);
        assert_eq!(figure(0.0), 0.0);
    }
}
