//! Latencies in a histogram of fixed size, to three digits.

use hdrhistogram::Histogram;
use serde::Serialize;

/// Microseconds; longer ones count as this.
const LONGEST: u64 = 24 * 3600 * 1_000_000;

/// Collects latencies.
pub struct Latency(Histogram<u64>);

/// In milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the names say it all")]
pub struct Percentiles {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p99_9: f64,
    pub max: f64,
}

impl Default for Latency {
    fn default() -> Self {
        #[expect(clippy::expect_used, reason = "constants that the library allows")]
        Self(Histogram::new_with_max(LONGEST, 3).expect("a range it can have"))
    }
}

impl Latency {
    /// Adds one.
    pub fn record(&mut self, micros: u64) {
        self.0.saturating_record(micros);
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// All zero if there are none.
    pub fn percentiles(&self) -> Percentiles {
        let millis = |micros: u64| micros as f64 / 1000.0;
        let at = |quantile| millis(self.0.value_at_quantile(quantile));
        // The largest one to three digits can be more than the exact one.
        Percentiles { p50: at(0.5), p90: at(0.9), p99: at(0.99), p99_9: at(0.999), max: millis(self.0.max()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_exact_to_a_thousandth() {
        let mut latency = Latency::default();
        assert_eq!(latency.percentiles(), Percentiles::default());
        (1..=10_000).for_each(|millis| latency.record(millis * 1000));
        let Percentiles { p50, p90, p99, p99_9, max } = latency.percentiles();
        for (found, exact) in [(p50, 5_000.0), (p90, 9_000.0), (p99, 9_900.0), (p99_9, 9_990.0), (max, 10_000.0)] {
            assert!((found / exact - 1.0_f64).abs() < 0.001, "{found} {exact}");
        }
        latency.record(u64::MAX);
        assert!(latency.percentiles().max >= 24.0 * 3600.0 * 1000.0);
        assert_eq!(latency.count(), 10_001);
    }
}
