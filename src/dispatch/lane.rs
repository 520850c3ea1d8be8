//! The way of one sink's messages: rendered, handed over or published, tried again, kept as dead letters.

use super::backoff::Backoff;
use super::told_to_stop;
use crate::dead_letter::DeadLetters;
use crate::dispatch::Health;
use crate::metrics::SinkMetrics;
use crate::route::{Route, Routed};
use crate::sink::{Failure, Message, Sink};
use crate::spool::Record;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Semaphore, watch as signal};

/// What every message under way needs.
pub struct Lane {
    pub name: String,
    pub route: Route,
    pub sink: Arc<dyn Sink>,
    pub dead_letters: DeadLetters,
    pub places: Semaphore,
    /// One more than the highest offset that was handed to the destination.
    pub sent: AtomicU64,
    pub metrics: SinkMetrics,
    pub health: Arc<Health>,
    pub stop: signal::Receiver<bool>,
}

/// What became of a record.
#[derive(Debug)]
pub enum Outcome {
    /// Acknowledged or filtered out.
    Settled,
    /// Settled too, as a dead letter.
    DeadLettered,
    /// Given up because the bridge stops; it stays in the spool.
    Kept,
}

/// What to do with a record.
enum Attempt {
    /// It has to be published.
    Publish(Message),
    /// It cannot be, for this reason.
    Refuse(Message, String),
    /// Nothing of it is left but the outcome.
    End(Outcome),
}

impl Lane {
    /// Sees a record through.
    pub async fn go_on(&self, record: &Record) -> Outcome {
        match self.render(record) {
            Attempt::Publish(message) => self.publish(record, &message).await,
            Attempt::Refuse(message, cause) => self.refuse(record, &message, &cause).await,
            Attempt::End(outcome) => outcome,
        }
    }

    fn render(&self, record: &Record) -> Attempt {
        if record.target.as_deref().is_some_and(|target| target != self.name) {
            return Attempt::End(Outcome::Settled);
        }
        let routed = self.route.render(record, |error| {
            if self.metrics.filter_failures.inc() == 0 {
                tracing::warn!(%error, sink = self.name, "`when` has no result for an event");
            }
        });
        match routed {
            Routed::Filtered => {
                self.metrics.filtered.inc();
                Attempt::End(Outcome::Settled)
            }
            Routed::Message(message) => Attempt::Publish(message),
            Routed::Refused { cause, message } => Attempt::Refuse(message, cause),
        }
    }

    /// Once the bridge stops, those alone are sent that others behind them have overtaken.
    fn may_be_sent(&self, record: &Record) -> bool {
        !*self.stop.borrow() || record.offset < self.sent.load(Ordering::Relaxed)
    }

    fn sent(&self, record: &Record) {
        self.sent.fetch_max(record.offset + 1, Ordering::Relaxed);
    }

    async fn publish(&self, record: &Record, message: &Message) -> Outcome {
        let mut backoff = Backoff::default();
        let mut retry = None;
        loop {
            let Ok(place) = self.places.acquire().await else { return Outcome::Kept };
            if !self.may_be_sent(record) {
                return Outcome::Kept;
            }
            self.sent(record);
            let comebacks = self.health.comebacks();
            let in_flight = Held::new(&self.metrics.in_flight);
            let result = self.sink.publish(message).await;
            drop(in_flight);
            drop(place);
            match result {
                Ok(()) => {
                    self.metrics.published.inc();
                    return Outcome::Settled;
                }
                Err(Failure::Rejected { cause }) => {
                    drop(retry);
                    return self.refuse(record, message, &cause).await;
                }
                Err(failure) => {
                    let (cause, retry_after) = match failure {
                        Failure::Unavailable { cause, retry_after } => (cause, retry_after),
                        place => (place.to_string(), None),
                    };
                    retry.get_or_insert_with(|| self.health.retrying());
                    if !self.pause(&cause, backoff.next(retry_after), comebacks).await {
                        return Outcome::Kept;
                    }
                    if self.health.comebacks() > comebacks {
                        // What failed before says nothing about the destination as it is now.
                        backoff = Backoff::default();
                    }
                }
            }
        }
    }

    /// Keeps the message as a dead letter, however long there is no space for it, or the disk refuses it.
    async fn refuse(&self, record: &Record, message: &Message, cause: &str) -> Outcome {
        let mut backoff = Backoff::default();
        let mut retry = None;
        while let Err(error) = self.dead_letters.keep(record, message, cause).await {
            retry.get_or_insert_with(|| self.health.retrying());
            if !self.pause(&error.to_string(), backoff.next(None), self.health.comebacks()).await {
                return Outcome::Kept;
            }
        }
        self.metrics.dead_lettered.inc();
        Outcome::DeadLettered
    }

    /// Waits before the next attempt, or until the destination has come back since the one that failed; `false` if the
    /// bridge stops.
    async fn pause(&self, cause: &str, delay: Duration, comebacks: u64) -> bool {
        self.metrics.retried.inc();
        self.health.failed(cause);
        let mut stop = self.stop.clone();
        tokio::select! {
            () = told_to_stop(&mut stop) => false,
            () = tokio::time::sleep(delay) => true,
            () = self.health.back_since(comebacks) => true,
        }
    }
}

/// Counts a message as in flight for as long as it lives.
struct Held<'a>(&'a prometheus_client::metrics::gauge::Gauge);

impl<'a> Held<'a> {
    fn new(gauge: &'a prometheus_client::metrics::gauge::Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}
