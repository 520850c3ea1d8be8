//! Telling of what any client can cause as often as it likes, without filling the log.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often the log tells of one such thing.
const PAUSE: Duration = Duration::from_secs(60);

/// Counts what happens between two lines of the log.
#[derive(Debug, Default)]
pub struct Seldom(Mutex<Told>);

#[derive(Debug, Default)]
struct Told {
    last: Option<Instant>,
    since: u64,
}

impl Seldom {
    /// It has happened. If it is time to tell of it, says how often it has since it was last told.
    pub fn happened(&self) -> Option<u64> {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.since += 1;
        if told.last.is_some_and(|last| last.elapsed() < PAUSE) {
            return None;
        }
        told.last = Some(Instant::now());
        Some(std::mem::take(&mut told.since))
    }
}
