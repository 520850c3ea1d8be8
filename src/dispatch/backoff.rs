//! How long to leave a destination alone: exponential with full jitter, as in "Exponential Backoff And Jitter"
//! (AWS Architecture Blog, 2015).

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const MOST: Duration = Duration::from_secs(30);

/// The state of one message's retries.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The delay before the next attempt: a random part of a bound that doubles from 100 ms to 30 s.
    pub fn next(&mut self) -> Duration {
        let bound = self.bound();
        self.failures = self.failures.saturating_add(1);
        bound.mul_f64(fastrand::f64())
    }

    fn bound(&self) -> Duration {
        FIRST.saturating_mul(1 << self.failures.min(16)).min(MOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_double_up_to_the_most_and_delays_stay_within() {
        let mut backoff = Backoff::default();
        let mut bounds = Vec::new();
        for _ in 0..12 {
            let bound = backoff.bound();
            bounds.push(bound.as_millis());
            assert!(backoff.next() <= bound);
        }
        assert_eq!(bounds, [100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 30_000, 30_000, 30_000]);
    }
}
