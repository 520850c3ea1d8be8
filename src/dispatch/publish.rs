//! Renders a record and publishes it, with retries for as long as it takes.

use super::backoff::Backoff;
use super::{Health, Parts, stopped};
use crate::dead_letter::DeadLetters;
use crate::metrics::SinkMetrics;
use crate::route::{Route, Routed};
use crate::sink::{Failure, Message, Sink};
use crate::spool::Record;
use prometheus_client::metrics::counter::Counter;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, Semaphore, watch};
use tokio::task::{JoinError, spawn_blocking};

/// How long a message that cannot be kept as a dead letter waits at the most before the next attempt. A command that frees
/// space does not notify the bridge.
const DEAD_LETTER_RETRY: Duration = Duration::from_secs(2);

/// Records up to this size are rendered at once. `when` can take a millisecond for ten KiB, if it asks for a field of thousands of values.
const RENDER_INLINE_BYTES: usize = 32 << 10;

/// Publishes the records of one sink, many at a time.
pub struct Publisher {
    name: String,
    route: Route,
    sink: Arc<dyn Sink>,
    dead_letters: DeadLetters,
    permits: Semaphore,
    /// Held while a large record is rendered: `when` makes many times its size of it.
    rendering: Mutex<()>,
    /// The offset behind the last record that was sent.
    sent_end: AtomicU64,
    pub metrics: SinkMetrics,
    pub health: Arc<Health>,
    stop: watch::Receiver<bool>,
}

/// The end of a record's publish.
#[derive(Debug)]
pub enum Outcome {
    /// The destination has acknowledged it.
    Acked,
    /// The sink does not want it.
    Filtered,
    /// It was refused, and is a durable dead letter.
    DeadLettered,
    /// Its place is away while the destination is up.
    Away(Away),
    /// The bridge stops; the record stays in the spool.
    Deferred,
}

/// The fields of [`Failure::Place`].
#[derive(Debug)]
pub struct Away {
    pub place: String,
    pub cause: String,
    pub expires: bool,
}

impl Publisher {
    pub fn new(parts: Parts, stop: watch::Receiver<bool>) -> Self {
        let Parts { name, config, route, sink, dead_letters, metrics, health, .. } = parts;
        let permits = Semaphore::new(config.max_in_flight.clamp(1, Semaphore::MAX_PERMITS));
        let (rendering, sent_end) = (Mutex::default(), AtomicU64::new(0));
        Self { name, route, sink, dead_letters, permits, rendering, sent_end, metrics, health, stop }
    }

    /// Publishes the record until it is settled or its place is away. With `expired` it has waited for that place as long as it may, and
    /// becomes a dead letter.
    pub async fn publish(self: Arc<Self>, record: Arc<Record>, expired: Option<Away>) -> (Arc<Record>, Outcome) {
        let outcome = match (self.clone().render(&record).await, expired) {
            (None, _) => Outcome::Deferred,
            (Some(Routed::Filtered), _) => Outcome::Filtered,
            (Some(Routed::Message(message) | Routed::Refused { message, .. }), Some(Away { place, cause, .. })) => {
                self.dead_letter(&record, &message, &format!("{place}: {cause}")).await
            }
            (Some(Routed::Refused { cause, message }), None) => self.dead_letter(&record, &message, &cause).await,
            (Some(Routed::Message(message)), None) => self.send(&record, &message).await,
        };
        (record, outcome)
    }

    /// Renders the record, without holding up other tasks; `None` if the bridge stops.
    async fn render(self: Arc<Self>, record: &Arc<Record>) -> Option<Routed> {
        if record.event.payload().len() <= RENDER_INLINE_BYTES {
            return Some(self.render_now(record));
        }
        let (publisher, record) = (self.clone(), record.clone());
        let _alone = self.rendering.lock().await;
        match spawn_blocking(move || publisher.render_now(&record)).await.map_err(JoinError::try_into_panic) {
            Ok(routed) => Some(routed),
            Err(Ok(panic)) => resume_unwind(panic),
            Err(Err(_)) => None,
        }
    }

    pub(super) fn render_now(&self, record: &Record) -> Routed {
        if !record.is_for(&self.name) {
            return Routed::Filtered;
        }
        let routed = self.route.render(record, |error| {
            if self.metrics.filter_failures.inc() == 0 {
                tracing::warn!(%error, sink = self.name, "`when` has no result for an event");
            }
        });
        match (routed, record.forced_id()) {
            (Routed::Message(message), Some(id)) => Routed::Message(message.with_dedup_id(id)),
            (Routed::Filtered, _) => {
                self.metrics.filtered.inc();
                self.health.replays().ended(record, |counts| counts.filtered += 1);
                Routed::Filtered
            }
            (routed, _) => routed,
        }
    }

    async fn send(&self, record: &Record, message: &Message) -> Outcome {
        let mut backoff = Backoff::default();
        let mut retrying = None;
        loop {
            let Ok(permit) = self.permits.acquire().await else { return Outcome::Deferred };
            if !self.may_send(record) {
                return Outcome::Deferred;
            }
            self.sent_end.fetch_max(record.offset + 1, Ordering::Relaxed);
            let recoveries = self.health.recoveries();
            self.metrics.in_flight.inc();
            let begun = Instant::now();
            let result = self.sink.publish(message).await;
            self.metrics.in_flight.dec();
            drop(permit);
            let cause = match result {
                Ok(()) => {
                    self.metrics.publish_durations.observe(begun.elapsed());
                    self.metrics.published.inc();
                    if message.is_duplicate() {
                        self.metrics.duplicates.inc();
                    }
                    // A retry is a duplicate of an attempt whose answer was lost.
                    let is_duplicate = message.is_duplicate() && retrying.is_none();
                    self.health.replays().ended(record, |counts| {
                        *(if is_duplicate { &mut counts.duplicates } else { &mut counts.delivered }) += 1;
                    });
                    return Outcome::Acked;
                }
                Err(Failure::Rejected { cause }) => {
                    drop(retrying);
                    return self.dead_letter(record, message, &cause).await;
                }
                Err(Failure::Place { place, cause, expires }) => {
                    self.metrics.retried.place.inc();
                    self.health.suspect();
                    return Outcome::Away(Away { place, cause, expires });
                }
                Err(Failure::Unavailable { cause }) => cause,
            };
            retrying.get_or_insert_with(|| self.health.retrying());
            if !self.pause(&cause, &self.metrics.retried.unavailable, backoff.next(), recoveries).await {
                return Outcome::Deferred;
            }
            if self.health.recoveries() > recoveries {
                // The destination has recovered, so earlier failures say nothing about it.
                backoff = Backoff::default();
            }
        }
    }

    /// Keeps the message as a dead letter, however long the disk or a full store refuses that.
    async fn dead_letter(&self, record: &Record, message: &Message, cause: &str) -> Outcome {
        let mut backoff = Backoff::default();
        let mut retrying = None;
        while let Err(error) = self.dead_letters.keep(record, message, cause).await {
            retrying.get_or_insert_with(|| self.health.retrying());
            let (delay, recoveries) = (backoff.next().min(DEAD_LETTER_RETRY), self.health.recoveries());
            if !self.pause(&error.to_string(), &self.metrics.retried.dead_letters, delay, recoveries).await {
                return Outcome::Deferred;
            }
        }
        self.metrics.dead_lettered.inc();
        self.health.replays().ended(record, |counts| counts.dead_lettered += 1);
        Outcome::DeadLettered
    }

    /// Once the bridge stops, only records are sent that others behind them have overtaken.
    fn may_send(&self, record: &Record) -> bool {
        !*self.stop.borrow() || record.offset < self.sent_end.load(Ordering::Relaxed)
    }

    /// Waits before the next attempt, or until the destination has recovered since the one that failed; `false` if the bridge
    /// stops.
    async fn pause(&self, cause: &str, retries: &Counter, delay: Duration, recoveries: u64) -> bool {
        retries.inc();
        self.health.failed(cause);
        let mut stop = self.stop.clone();
        tokio::select! {
            () = stopped(&mut stop) => false,
            () = tokio::time::sleep(delay) => true,
            () = self.health.recovered_since(recoveries) => true,
        }
    }
}
