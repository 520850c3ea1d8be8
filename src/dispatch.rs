//! Delivers the spool to one sink, independent of every other sink: read → key gate → publish with retry → acknowledge →
//! advance the cursor.
//!
//! A conversation has at most one message in flight, so a retry cannot overtake, and any number of conversations run in
//! parallel. Memory is bounded by `max_in_flight_bytes`: no more is read while that many bytes are in flight or wait behind
//! a busy conversation.
//!
//! Records whose place is away ([`Failure::Place`](crate::sink::Failure::Place)) are parked: only their offsets stay in
//! memory, their conversations stay blocked, and all others go on. Each such place is tried again with one record; once that
//! is acknowledged, all are read again from the spool and delivered in order.

mod acks;
mod backoff;
mod config;
mod delivery;
mod gate;
mod health;
mod open_records;
mod places;
mod publish;
pub mod replay;
mod reread;

pub use config::{Config, Retry};
pub use delivery::{DeliveryRequests, DeliveryWatch, delivery_watch};
pub use health::{Health, Healths};

use crate::dead_letter::DeadLetters;
use crate::metrics::SinkMetrics;
use crate::route::Route;
use crate::sink::Sink;
use crate::spool::{Cursor, Reader, Record, Spool};
use acks::AckTracker;
use delivery::Request;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use gate::{KeyGate, Parked, Waiting};
use open_records::{OpenRecords, Settled};
use places::Places;
use publish::{Away, Outcome, Publisher};
use reread::Rereader;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};

/// How long to wait after the disk refused to read.
const READ_PAUSE: Duration = Duration::from_secs(1);
/// How many bytes are read from the spool at once. Other tasks run between two reads.
const READ_BYTES: usize = 16 << 10;
/// Memory of a message in flight beside its record: the rendered message and the future that publishes it.
const IN_FLIGHT_BYTES: usize = 2048;
/// How many records may be parked. Each takes about 100 bytes. Beyond that nothing more is read.
const MAX_PARKED: usize = 65_536;
/// How often the offsets of the open records are saved while records are parked.
const SAVE_INTERVAL: Duration = Duration::from_secs(10);

/// The parts that a [`Dispatcher`] is put together from.
pub struct Parts {
    /// The sink's name.
    pub name: String,
    /// How messages are sent.
    pub config: Config,
    /// Which records are sent, and how they are rendered.
    pub route: Route,
    /// The destination.
    pub sink: Arc<dyn Sink>,
    /// The store of refused messages.
    pub dead_letters: DeadLetters,
    /// The metrics of the sink.
    pub metrics: SinkMetrics,
    /// The health of the sink, which readiness reports.
    pub health: Arc<Health>,
    /// The spool's directory.
    pub directory: PathBuf,
}

/// The loop that delivers to one sink.
pub struct Dispatcher {
    spool: Arc<Spool>,
    cursor: Arc<Cursor>,
    config: Config,
    publisher: Arc<Publisher>,
    reader: Reader,
    acks: AckTracker,
    /// Records behind the cursor that a former process settled.
    settled_before: Settled,
    open_records: OpenRecords,
    saved_at: Instant,
    save_interval: Duration,
    gate: KeyGate,
    places: Places,
    /// Parked records that may be published now and are not read again yet: the hash of the conversation by offset.
    wanted: BTreeMap<u64, u64>,
    rereader: Rereader,
    in_flight: FuturesUnordered<BoxFuture<'static, (Arc<Record>, Outcome)>>,
    deliveries: DeliveryRequests,
    max_parked: usize,
    /// No read of the spool before this moment: the last one failed.
    not_before: Option<Instant>,
    stop: watch::Receiver<bool>,
}

impl Dispatcher {
    /// A loop for the sink called `parts.name`; `None` if the spool was opened without it. It tells `deliveries` when records are settled,
    /// and stops when `stop` turns true.
    pub fn new(
        spool: Arc<Spool>,
        parts: Parts,
        deliveries: DeliveryRequests,
        stop: watch::Receiver<bool>,
    ) -> Option<Self> {
        let cursor = spool.cursor(&parts.name)?;
        cursor.set_optional(!parts.config.required);
        let reader = spool.reader(&parts.name)?;
        parts.health.set_progress(reader.position(), 0, None);
        let open_records = OpenRecords::of(&parts.directory, &parts.name);
        Some(Self {
            settled_before: open_records.load(cursor.position(), spool.status().end),
            open_records,
            saved_at: Instant::now(),
            save_interval: SAVE_INTERVAL,
            reader,
            places: Places::new(parts.route.constant_topic().is_some(), parts.health.clone()),
            rereader: Rereader::new(spool.clone(), &parts.name),
            config: parts.config.clone(),
            publisher: Arc::new(Publisher::new(parts, stop.clone())),
            deliveries,
            spool,
            cursor,
            acks: AckTracker::default(),
            gate: KeyGate::default(),
            wanted: BTreeMap::new(),
            in_flight: FuturesUnordered::new(),
            max_parked: MAX_PARKED,
            not_before: None,
            stop,
        })
    }

    /// Delivers until told to stop. Then waits for the messages that are with the destination, and sends the ones between
    /// them that waited behind their conversation: the cursor cannot pass an open record, so the next process would send
    /// everything behind it again. The caller bounds that by dropping the future; undelivered records stay in the spool.
    pub async fn run(mut self) {
        let mut stop = self.stop.clone();
        loop {
            self.reader.advance(self.cursor.position());
            let free_bytes = self.free_bytes();
            tokio::select! {
                () = stopped(&mut stop) => break,
                Some((record, outcome)) = self.in_flight.next() => self.complete(record, outcome),
                Some(request) = self.deliveries.next() => self.answer(request),
                () = self.places.retry_due() => {
                    let due = self.places.take_due();
                    self.want(due);
                }
                () = pause_until(self.not_before), if free_bytes > 0 && !self.wanted.is_empty() => self.read_again(free_bytes).await,
                () = readable(&mut self.reader, self.not_before), if free_bytes > 0 && self.gate.on_disk() < self.max_parked => {
                    self.read(free_bytes).await;
                }
            }
            self.settle();
            if self.gate.on_disk() > 0 && self.saved_at.elapsed() >= self.save_interval {
                self.save_open_records().await;
            }
            // Other tasks run after some records, even if neither spool nor destination keeps this one waiting.
            tokio::task::coop::consume_budget().await;
        }
        while let Some((record, outcome)) = self.in_flight.next().await {
            self.complete(record, outcome);
            self.settle();
        }
        if self.acks.open() > 0 {
            self.save_open_records().await;
        }
    }

    /// Saves the offsets of the open records.
    async fn save_open_records(&mut self) {
        let position = self.reader.position();
        // Until all of them are read again, the file of the former process tells more.
        if !self.settled_before.is_over(position) {
            return;
        }
        let (file, open) = (self.open_records.clone(), self.acks.open_offsets().collect::<Vec<_>>());
        let saving = spawn_blocking(move || file.save(position, open.into_iter()));
        if let Err(error) = saving.await.map_err(std::io::Error::other).flatten() {
            let sink = self.cursor.sink();
            tracing::warn!(sink, %error, "the open records cannot be saved; a restart would deliver settled ones again");
        }
        self.saved_at = Instant::now();
    }

    /// How many bytes of records may be read now.
    fn free_bytes(&self) -> usize {
        let held = self.gate.resident_bytes() + IN_FLIGHT_BYTES * self.in_flight.len();
        usize::try_from(self.config.max_in_flight_bytes.as_u64()).unwrap_or(usize::MAX).saturating_sub(held)
    }

    async fn read(&mut self, free_bytes: usize) {
        match self.reader.read(free_bytes.min(READ_BYTES)).await {
            Ok(records) => {
                self.disk_reads();
                for record in records {
                    if self.settled_before.contains(record.offset) {
                        continue;
                    }
                    self.acks.push(&record);
                    if let Some(record) = self.gate.enter(record) {
                        self.start(record);
                    }
                }
                tokio::task::yield_now().await;
            }
            Err(error) => self.disk_refuses(&error),
        }
    }

    /// Reads parked records that may be published now.
    async fn read_again(&mut self, free_bytes: usize) {
        match self.rereader.next(&mut self.wanted, free_bytes.min(READ_BYTES)).await {
            Ok(found) => {
                self.disk_reads();
                for record in found.records {
                    self.gate.resume(&record);
                    self.start(record);
                }
                // Damaged since, or skipped by a full spool: there is nothing left to deliver.
                for lost in found.lost {
                    self.settled(lost.offset, false, false);
                    let next = self.gate.finish_parked(lost);
                    self.proceed(next);
                }
                tokio::task::yield_now().await;
            }
            Err(error) => self.disk_refuses(&error),
        }
    }

    fn disk_reads(&mut self) {
        if self.not_before.take().is_some() {
            self.publisher.health.readable();
        }
    }

    fn disk_refuses(&mut self, error: &std::io::Error) {
        self.publisher.health.unreadable(&error.to_string());
        self.not_before = Some(Instant::now() + READ_PAUSE);
    }

    fn start(&mut self, record: Arc<Record>) {
        self.in_flight.push(Box::pin(self.publisher.clone().publish(record, None)));
    }

    fn complete(&mut self, record: Arc<Record>, outcome: Outcome) {
        let (acked, dead_letter) = match outcome {
            Outcome::Deferred => return,
            Outcome::Away(away) => return self.place_is_away(record, away),
            Outcome::Acked => (true, false),
            Outcome::Filtered => (false, false),
            Outcome::DeadLettered => (false, true),
        };
        self.settled(record.offset, acked, dead_letter);
        let next = self.gate.finish(&record);
        self.proceed(next);
    }

    fn settled(&mut self, offset: u64, acked: bool, dead_letter: bool) {
        self.publisher.metrics.settle_durations.observe(self.acks.age(offset));
        self.acks.ack(offset);
        self.deliveries.settled(offset, dead_letter);
        let released = self.places.settled(offset, acked);
        self.want(released);
    }

    /// Goes on with the next record of a conversation.
    fn proceed(&mut self, next: Option<Waiting>) {
        match next {
            Some(Waiting::Resident(record)) => self.start(record),
            Some(Waiting::OnDisk(parked)) => self.want([parked]),
            None => {}
        }
    }

    fn want(&mut self, records: impl IntoIterator<Item = Parked>) {
        self.wanted.extend(records.into_iter().map(|record| (record.offset, record.key)));
    }

    /// Parks the record, or makes it a dead letter if it has waited as long as it may.
    fn place_is_away(&mut self, record: Arc<Record>, away: Away) {
        let max_age = self.config.retry.max_age;
        let acks = &self.acks;
        let old = |offset: u64| acks.age(offset) >= max_age;
        let unavailable_for = self.places.failed(record.offset, &away);
        if away.expires && unavailable_for >= max_age && old(record.offset) {
            // The others that have waited as long get a last attempt as well, and go the same way.
            let expired = self.places.take_expired(&away.place, old);
            self.want(expired);
            self.in_flight.push(Box::pin(self.publisher.clone().publish(record, Some(away))));
        } else {
            let parked = self.gate.park(&record);
            self.places.park(parked, &away.place);
        }
    }

    fn answer(&mut self, request: Request) {
        let settled =
            |offset| offset < self.reader.position() && !self.acks.is_open(offset) && !self.spool.is_gone(offset);
        self.deliveries.answer(request, settled);
    }

    /// Advances the cursor, and tells metrics and readiness how far the sink is.
    fn settle(&mut self) {
        let oldest = self.acks.low_watermark();
        let position = oldest.map_or(self.reader.position(), |(offset, _)| offset);
        if position > self.cursor.position() {
            self.spool.settle(&self.cursor, position);
        }
        let since = match oldest {
            Some((_, since)) => Some(since),
            None if self.not_before.is_some() => self.spool.begun(self.reader.position()),
            None => None,
        };
        let publisher = &self.publisher;
        publisher.health.set_progress(self.reader.position(), self.acks.open(), since);
        publisher.metrics.parked_records.set(self.gate.on_disk() as i64);
        publisher.metrics.places_unavailable.set(self.places.len() as i64);
        if let Some(places) = self.places.changes(self.gate.on_disk(), self.max_parked) {
            publisher.health.set_places(places);
        }
    }
}

/// Resolves when the bridge stops.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, and the bridge with it.
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn pause_until(moment: Option<Instant>) {
    if let Some(moment) = moment {
        sleep_until(moment).await;
    }
}

/// Resolves when there is something to read, and not before that moment.
async fn readable(reader: &mut Reader, not_before: Option<Instant>) {
    pause_until(not_before).await;
    reader.ready().await;
}

#[cfg(test)]
mod tests;
