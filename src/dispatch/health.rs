//! What readiness and the metrics learn of one sink.

use crate::event::Arrival;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// A sink that stays down is logged this often.
const REMINDER: Duration = Duration::from_secs(30);

/// Whether one sink's destination takes messages.
#[derive(Debug)]
pub struct Health {
    sink: String,
    required: bool,
    state: Mutex<State>,
    retrying: AtomicUsize,
    /// Arrival of the oldest record that is not settled, plus one; 0 for none.
    oldest: AtomicU64,
    /// How often the destination has come back.
    comebacks: AtomicU64,
    back: Notify,
    doubt: Notify,
}

#[derive(Debug, Default)]
struct State {
    probed: Option<Result<(), String>>,
    failure: Option<String>,
    logged: Option<Instant>,
    /// Why the sink's records cannot be read, and when that was logged.
    unreadable: Option<(String, Instant)>,
}

/// A record that waits to be tried again, for as long as this lives.
#[derive(Debug)]
pub struct Retrying(Arc<Health>);

impl Drop for Retrying {
    fn drop(&mut self) {
        self.0.retrying.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Health {
    /// The health of a sink that nothing is known of yet.
    pub fn new(sink: &str, required: bool) -> Arc<Self> {
        Arc::new(Self {
            sink: sink.to_owned(),
            required,
            state: Mutex::default(),
            retrying: AtomicUsize::new(0),
            oldest: AtomicU64::new(0),
            comebacks: AtomicU64::new(0),
            back: Notify::new(),
            doubt: Notify::new(),
        })
    }

    /// The sink's name.
    pub fn sink(&self) -> &str {
        &self.sink
    }

    /// Whether readiness depends on it.
    pub fn required(&self) -> bool {
        self.required
    }

    /// `Err` says why the sink does not take messages now.
    pub fn check(&self) -> Result<(), String> {
        let state = self.state();
        if let Some((cause, _)) = &state.unreadable {
            return Err(format!("the spool cannot be read: {cause}"));
        }
        match &state.probed {
            None => Err("not reached yet".into()),
            Some(Err(cause)) => Err(cause.clone()),
            Some(Ok(())) if self.count_retrying() > 0 => {
                Err(state.failure.clone().unwrap_or_else(|| "messages wait to be tried again".into()))
            }
            Some(Ok(())) => Ok(()),
        }
    }

    /// Takes the result of a probe. When the destination is back, whoever waits to try again does so now.
    pub fn probed(&self, result: Result<(), String>) {
        let mut state = self.state();
        match (&state.probed, &result) {
            (Some(Ok(())) | None, Err(cause)) => tracing::warn!(sink = self.sink, cause, "sink cannot be reached"),
            (Some(Err(_)), Ok(())) => {
                tracing::info!(sink = self.sink, "sink is back");
                self.comebacks.fetch_add(1, Ordering::SeqCst);
                self.back.notify_waiters();
            }
            _ => {}
        }
        state.probed = Some(result);
    }

    /// How often the destination has come back so far: taken before an attempt, for [`Self::back_since`].
    pub fn comebacks(&self) -> u64 {
        self.comebacks.load(Ordering::SeqCst)
    }

    /// Resolves once the destination has come back more often than `comebacks`.
    pub async fn back_since(&self, comebacks: u64) {
        loop {
            // Made before the look at the count: it learns of a comeback in between.
            let back = self.back.notified();
            if self.comebacks() > comebacks {
                return;
            }
            back.await;
        }
    }

    /// Resolves when an attempt has failed: a reason to probe.
    pub async fn doubted(&self) {
        self.doubt.notified().await;
    }

    /// A record begins to be tried again.
    pub fn retrying(self: &Arc<Self>) -> Retrying {
        self.retrying.fetch_add(1, Ordering::Relaxed);
        Retrying(self.clone())
    }

    /// How many records wait to be tried again.
    pub fn count_retrying(&self) -> usize {
        self.retrying.load(Ordering::Relaxed)
    }

    /// An attempt failed.
    pub fn failed(&self, cause: &str) {
        self.doubt.notify_one();
        let mut state = self.state();
        if state.failure.as_deref() != Some(cause) {
            state.failure = Some(cause.to_owned());
        }
        if state.logged.is_none_or(|at| at.elapsed() >= REMINDER) {
            state.logged = Some(Instant::now());
            tracing::warn!(sink = self.sink, cause, waiting = self.count_retrying(), "publishing failed; trying again");
        }
    }

    /// The disk refuses to read the records that come next.
    pub fn unreadable(&self, cause: &str) {
        let mut state = self.state();
        let logged = match &state.unreadable {
            Some((_, logged)) if logged.elapsed() < REMINDER => *logged,
            _ => {
                tracing::error!(
                    sink = self.sink,
                    cause,
                    "the spool cannot be read; trying again, nothing is delivered to this sink meanwhile"
                );
                Instant::now()
            }
        };
        state.unreadable = Some((cause.to_owned(), logged));
    }

    /// It does so again.
    pub fn readable(&self) {
        self.state().unreadable = None;
        tracing::info!(sink = self.sink, "the spool can be read again");
    }

    /// Notes the oldest record that is not settled.
    pub fn set_oldest(&self, arrival: Option<Arrival>) {
        self.oldest.store(arrival.map_or(0, |arrival| arrival.0 + 1), Ordering::Relaxed);
    }

    /// How old the oldest record is that is not settled.
    pub fn lag(&self) -> Duration {
        match self.oldest.load(Ordering::Relaxed).checked_sub(1) {
            Some(arrival) => Duration::from_millis(Arrival::now().0.saturating_sub(arrival)),
            None => Duration::ZERO,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn a_comeback_during_an_attempt_is_not_missed() {
        let health = Health::new("kafka", true);
        health.probed(Err("gone".into()));
        let before = health.comebacks();
        let waiting = health.back_since(before).shared();
        assert!(waiting.clone().now_or_never().is_none());
        health.probed(Ok(()));
        assert!(waiting.now_or_never().is_some());
        assert!(health.back_since(before).now_or_never().is_some());
        assert!(health.back_since(health.comebacks()).now_or_never().is_none());
        health.probed(Ok(()));
        assert_eq!(health.comebacks(), before + 1);
    }
}
