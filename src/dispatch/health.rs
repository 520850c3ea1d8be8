//! Readiness of one sink.

use super::replay::Replays;
use crate::event::Arrival;
use crate::log_throttle::LogThrottle;
use crate::spool::Status;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};

/// The log names so many places in this time. A sender may be able to choose their names.
const NAMED_IN_LOG: usize = 10;
const NAMING_INTERVAL: Duration = Duration::from_secs(30);

/// The health of each sink that runs now. A reload replaces the list.
pub type Healths = watch::Receiver<Vec<Arc<Health>>>;

/// Whether one sink's destination takes messages.
#[derive(Debug)]
pub struct Health {
    sink: String,
    required: bool,
    state: Mutex<State>,
    retrying: AtomicUsize,
    recoveries: watch::Sender<u64>,
    suspected: Notify,
    replays: Replays,
    failure_log: LogThrottle,
    unreadable_log: LogThrottle,
}

#[derive(Debug, Default)]
struct State {
    probed: Option<Result<(), String>>,
    /// Why the last publish failed.
    failure: Option<String>,
    /// Why the sink's records cannot be read.
    unreadable: Option<String>,
    places: PlacesAway,
    places_logged: (usize, Option<Instant>),
    /// The offset of the record to be read next, and how many records before it are open.
    position: u64,
    open: usize,
    /// Since when the oldest open record waits.
    oldest: Option<Arrival>,
}

/// Places of the destination that are away: topics, subjects, streams, partitions.
#[derive(Clone, Debug, Default)]
pub struct PlacesAway {
    /// How many there are.
    pub count: usize,
    /// Some of them, with their causes.
    pub named: Vec<(String, String)>,
    /// Why the sink is not ready because of them.
    pub blocked: Option<String>,
}

/// Counts a record as waiting for a retry for as long as this lives.
#[derive(Debug)]
pub struct Retrying(Arc<Health>);

impl Drop for Retrying {
    fn drop(&mut self) {
        self.0.retrying.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Health {
    /// The health of a sink that has not been probed yet.
    pub fn new(sink: &str, required: bool) -> Arc<Self> {
        Arc::new(Self {
            sink: sink.to_owned(),
            required,
            state: Mutex::default(),
            retrying: AtomicUsize::new(0),
            recoveries: watch::Sender::new(0),
            suspected: Notify::new(),
            replays: Replays::default(),
            failure_log: LogThrottle::default(),
            unreadable_log: LogThrottle::default(),
        })
    }

    /// Counts replayed records.
    pub fn replays(&self) -> &Replays {
        &self.replays
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
        let state = self.state.lock();
        if let Some(cause) = &state.unreadable {
            return Err(format!("the spool cannot be read: {cause}"));
        }
        match &state.probed {
            None => Err("not reached yet".into()),
            Some(Err(cause)) => Err(cause.clone()),
            Some(Ok(())) if self.count_retrying() > 0 => {
                Err(state.failure.clone().unwrap_or_else(|| "messages wait to be tried again".into()))
            }
            Some(Ok(())) => state.places.blocked.clone().map_or(Ok(()), Err),
        }
    }

    /// The places that are away, also while the sink is ready.
    pub fn places(&self) -> PlacesAway {
        self.state.lock().places.clone()
    }

    /// The result of the last probe; `None` before the first one.
    pub fn last_probe(&self) -> Option<Result<(), String>> {
        self.state.lock().probed.clone()
    }

    /// Takes the result of a probe. When the destination has recovered, failed messages are retried at once.
    pub fn probed(&self, result: Result<(), String>) {
        let mut state = self.state.lock();
        match (&state.probed, &result) {
            (Some(Ok(())) | None, Err(cause)) => tracing::warn!(sink = self.sink, cause, "sink cannot be reached"),
            (Some(Err(_)), Ok(())) => {
                tracing::info!(sink = self.sink, "sink is back");
                self.recoveries.send_modify(|recoveries| *recoveries += 1);
            }
            _ => {}
        }
        state.probed = Some(result);
    }

    /// How often the destination has recovered so far: taken before an attempt, for [`Self::recovered_since`].
    pub(super) fn recoveries(&self) -> u64 {
        *self.recoveries.borrow()
    }

    /// Resolves once the destination has recovered more often than `recoveries`.
    pub(super) async fn recovered_since(&self, recoveries: u64) {
        // The sender lives as long as this.
        let _ = self.recoveries.subscribe().wait_for(|count| *count > recoveries).await;
    }

    /// An attempt failed: a reason to probe.
    pub(super) fn suspect(&self) {
        self.suspected.notify_one();
    }

    /// Resolves when an attempt has failed.
    pub async fn suspected(&self) {
        self.suspected.notified().await;
    }

    /// Counts a record that waits for a retry.
    pub(super) fn retrying(self: &Arc<Self>) -> Retrying {
        self.retrying.fetch_add(1, Ordering::Relaxed);
        Retrying(self.clone())
    }

    /// How many records wait for a retry.
    pub fn count_retrying(&self) -> usize {
        self.retrying.load(Ordering::Relaxed)
    }

    /// A publish failed and will be retried.
    pub(super) fn failed(&self, cause: &str) {
        self.suspect();
        self.state.lock().failure = Some(cause.to_owned());
        if self.failure_log.should_log().is_some() {
            tracing::warn!(sink = self.sink, cause, waiting = self.count_retrying(), "publishing failed; trying again");
        }
    }

    /// A place went away while the destination is up.
    pub(super) fn place_is_away(&self, place: &str, cause: &str) {
        if self.may_name_place() {
            tracing::warn!(sink = self.sink, place, cause, "place unavailable; its messages wait, others go on");
        }
    }

    /// A place takes messages again.
    pub(super) fn place_is_back(&self, place: &str) {
        if self.may_name_place() {
            tracing::info!(sink = self.sink, place, "place is back; its messages are sent");
        }
    }

    fn may_name_place(&self) -> bool {
        let (named, since) = &mut self.state.lock().places_logged;
        if since.is_none_or(|since| since.elapsed() >= NAMING_INTERVAL) {
            (*named, *since) = (0, Some(Instant::now()));
        }
        *named += 1;
        if *named == NAMED_IN_LOG + 1 {
            tracing::warn!(sink = self.sink, "more places change than the log names");
        }
        *named <= NAMED_IN_LOG
    }

    /// Takes the places that are away.
    pub(super) fn set_places(&self, places: PlacesAway) {
        self.state.lock().places = places;
    }

    /// The disk refuses to read the next records.
    pub(super) fn unreadable(&self, cause: &str) {
        let is_new = self.state.lock().unreadable.replace(cause.to_owned()).is_none();
        if self.unreadable_log.should_log().is_some() || is_new {
            tracing::error!(
                sink = self.sink,
                cause,
                "the spool cannot be read; trying again, nothing is delivered to this sink meanwhile"
            );
        }
    }

    /// The disk reads again.
    pub(super) fn readable(&self) {
        self.state.lock().unreadable = None;
        tracing::info!(sink = self.sink, "the spool can be read again");
    }

    /// The sink reads on at `position`, `open` records before that are not settled, and the oldest waits since `oldest`.
    pub(super) fn set_progress(&self, position: u64, open: usize, oldest: Option<Arrival>) {
        let mut state = self.state.lock();
        (state.position, state.open, state.oldest) = (position, open, oldest);
    }

    /// How many records of the spool are not settled.
    pub fn undelivered(&self, spool: &Status) -> u64 {
        let state = self.state.lock();
        if state.position < spool.start {
            // The records before the start were skipped because the spool was full.
            return spool.end - spool.start;
        }
        spool.end.saturating_sub(state.position) + state.open as u64
    }

    /// How old the oldest record is that is not settled.
    pub fn lag(&self) -> Duration {
        let oldest = self.state.lock().oldest;
        oldest.map_or(Duration::ZERO, |oldest| Duration::from_millis(Arrival::now().0.saturating_sub(oldest.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn a_recovery_during_an_attempt_is_not_missed() {
        let health = Health::new("kafka", true);
        health.probed(Err("gone".into()));
        let before = health.recoveries();
        let waiting = health.recovered_since(before).shared();
        assert!(waiting.clone().now_or_never().is_none());
        health.probed(Ok(()));
        assert!(waiting.now_or_never().is_some());
        assert!(health.recovered_since(before).now_or_never().is_some());
        assert!(health.recovered_since(health.recoveries()).now_or_never().is_none());
        health.probed(Ok(()));
        assert_eq!(health.recoveries(), before + 1);
    }
}
