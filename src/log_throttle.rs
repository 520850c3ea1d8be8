//! Throttles log lines that a client can trigger at will.

use parking_lot::Mutex;
use std::time::{Duration, Instant};

/// Minimum time between two lines.
const INTERVAL: Duration = Duration::from_secs(60);

/// Lets one log line a minute through, with the number of occurrences since the last one.
#[derive(Debug, Default)]
pub struct LogThrottle(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    logged: Option<Instant>,
    occurrences: u64,
}

impl LogThrottle {
    /// Counts one occurrence. If a line is due, returns the occurrences since the last line, this one included.
    pub fn should_log(&self) -> Option<u64> {
        let mut state = self.0.lock();
        state.occurrences += 1;
        if state.logged.is_some_and(|logged| logged.elapsed() < INTERVAL) {
            return None;
        }
        state.logged = Some(Instant::now());
        Some(std::mem::take(&mut state.occurrences))
    }
}
