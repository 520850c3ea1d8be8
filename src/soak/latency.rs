//! Latencies, counted to three digits.

use serde::Serialize;
use std::collections::BTreeMap;

/// Binary digits of a latency that count: a deviation of less than a thousandth.
const DIGITS: u32 = 11;

/// Collects latencies.
#[derive(Default)]
pub struct Latency {
    /// How many there are of each, in microseconds.
    counts: BTreeMap<u64, u64>,
    total: u64,
}

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

impl Latency {
    /// Adds one.
    pub fn record(&mut self, micros: u64) {
        let ignored = (u64::BITS - micros.leading_zeros()).saturating_sub(DIGITS);
        // Rather a bit too long than too short.
        *self.counts.entry(micros | ((1 << ignored) - 1)).or_default() += 1;
        self.total += 1;
    }

    /// All zero if there are none.
    pub fn percentiles(&self) -> Percentiles {
        let at = |share: f64| {
            let mut left = (self.total as f64 * share).ceil() as u64;
            let mut counts = self.counts.iter();
            let found = counts.find(|(_, count)| {
                left = left.saturating_sub(**count);
                left == 0
            });
            found.map_or(0.0, |(micros, _)| *micros as f64 / 1000.0)
        };
        Percentiles { p50: at(0.5), p90: at(0.9), p99: at(0.99), p99_9: at(0.999), max: at(1.0) }
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
    }
}
