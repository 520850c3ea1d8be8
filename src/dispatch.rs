//! One sink's loop: read → route → publish → settle, independent of every other sink.
//!
//! Order is kept by the gate: a conversation has at most one message under way, so a retry cannot overtake and any number
//! of conversations run in parallel. Memory is bounded by the look-ahead: the loop reads no further while that many bytes
//! are under way or wait behind a busy conversation.

mod backoff;
mod health;
pub mod in_flight;
mod lane;
mod turn;
mod under_way;
mod watch;

pub use health::Health;
pub use watch::{Watcher, Watches, watches};

use crate::dead_letter::DeadLetters;
use crate::metrics::SinkMetrics;
use crate::route::Route;
use crate::sink::Sink;
use crate::spool::{Cursor, Reader, Record, Spool};
use bytesize::ByteSize;
use in_flight::{Gate, Window};
use lane::{Lane, Outcome};
use serde::Deserialize;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::sync::{Semaphore, watch as signal};
use tokio::time::Instant;
use turn::Turn;
use under_way::UnderWay;
use watch::{Asked, Progress};

/// The part of `[sinks.NAME]` that says how messages are sent.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Whether readiness depends on this sink. The spool keeps its records either way.
    pub required: bool,
    /// How many messages may be handed to the destination at once.
    pub max_in_flight: usize,
    /// How many bytes of records may be under way or wait behind a busy conversation.
    pub look_ahead: ByteSize,
}

impl Default for Config {
    fn default() -> Self {
        Self { required: true, max_in_flight: 2048, look_ahead: ByteSize::mib(4) }
    }
}

/// Everything one sink's loop works with.
pub struct Dispatcher {
    spool: Arc<Spool>,
    reader: Reader,
    cursor: Arc<Cursor>,
    look_ahead: usize,
    lane: Arc<Lane>,
    watches: Option<Watches>,
    stop: signal::Receiver<bool>,
}

/// The parts that a [`Dispatcher`] is put together from.
pub struct Parts {
    /// The sink's name.
    pub name: String,
    /// How messages are sent.
    pub config: Config,
    /// What is sent where.
    pub route: Route,
    /// The destination.
    pub sink: Arc<dyn Sink>,
    /// Where refused messages go.
    pub dead_letters: DeadLetters,
    /// What it counts.
    pub metrics: SinkMetrics,
    /// What readiness is told.
    pub health: Arc<Health>,
    /// Who asks when records are settled, if anybody does.
    pub watches: Option<Watches>,
}

/// How long to wait when the spool could not be read.
const READ_PAUSE: Duration = Duration::from_secs(1);
/// How much is read at once. A small record takes several times its size on its way, which is known when it has been read;
/// and while the disk is waited for, nothing else moves.
const READ: usize = 16 << 10;
/// What a record under way takes besides its own memory: the message that was made of it, headers included, wherever that is until it is
/// answered for. One that waits behind a busy conversation has none, and the more of those are at hand, the more conversations are under way.
const UNDER_WAY: usize = 2048;

impl Dispatcher {
    /// A loop for the sink called `parts.name`; `None` if the spool was opened without it. It stops when `stop` turns true.
    pub fn new(spool: Arc<Spool>, parts: Parts, stop: signal::Receiver<bool>) -> Option<Self> {
        let cursor = spool.cursor(&parts.name)?;
        if !parts.config.required {
            cursor.make_optional();
        }
        let reader = spool.reader(&parts.name)?;
        let lane = Lane {
            name: parts.name,
            route: parts.route,
            sink: parts.sink,
            dead_letters: parts.dead_letters,
            places: Semaphore::new(parts.config.max_in_flight.clamp(1, Semaphore::MAX_PERMITS)),
            sent: AtomicU64::new(0),
            metrics: parts.metrics,
            health: parts.health,
            stop: stop.clone(),
        };
        let look_ahead = parts.config.look_ahead.as_u64() as usize;
        Some(Self { spool, reader, cursor, look_ahead, lane: Arc::new(lane), watches: parts.watches, stop })
    }

    /// Delivers until told to stop, then waits for the messages that are with the destination and sends those between them
    /// that waited their turn: the cursor cannot pass an open record, and what is settled behind one would be sent again by
    /// the next process. The caller bounds that by dropping the future; what is not settled stays in the spool.
    pub async fn run(self) {
        let Self { spool, mut reader, cursor, look_ahead, lane, mut watches, mut stop } = self;
        let mut under_way = UnderWay::on(lane.clone());
        let mut gate = Gate::default();
        let mut window = Window::default();
        let mut not_before = None;
        let mut turn = Turn::begin();
        loop {
            turn.see(1);
            turn.share().await;
            let room = look_ahead.saturating_sub(window.bytes() + UNDER_WAY * under_way.len());
            reader.advance(cursor.position());
            tokio::select! {
                biased;
                () = told_to_stop(&mut stop) => break,
                Some((record, outcome)) = under_way.next(), if under_way.len() > 0 => {
                    finish(record, outcome, &mut window, &mut watches);
                    gate.released(&mut window).into_iter().for_each(|record| under_way.begin(record));
                }
                Some((asked, watches)) = asked(&mut watches), if watches.is_some() => watches.take(asked, |offset| {
                    let passed = offset < reader.position() && !window.is_open(offset) && !spool.is_gone(offset);
                    if passed { Progress::Settled } else { Progress::Open }
                }),
                () = readable(&mut reader, not_before), if room > 0 => match reader.read(room.min(READ)).await {
                    Ok(records) => {
                        if not_before.take().is_some() {
                            lane.health.readable();
                        }
                        turn.see(records.len());
                        for record in records {
                            window.push(&record);
                            if let Some(record) = gate.enter(record) {
                                under_way.begin(record);
                            }
                        }
                    }
                    Err(error) => {
                        lane.health.unreadable(&error.to_string());
                        not_before = Some(Instant::now() + READ_PAUSE);
                    }
                },
            }
            settle(&spool, &cursor, &reader, &lane, &window);
            if not_before.is_some() && window.watermark().is_none() {
                // What cannot be read is waited for all the same.
                lane.health.set_oldest(spool.begun(reader.position()));
            }
        }
        while let Some((record, outcome)) = under_way.next().await {
            finish(record, outcome, &mut window, &mut watches);
            gate.released(&mut window).into_iter().for_each(|record| under_way.begin(record));
            settle(&spool, &cursor, &reader, &lane, &window);
        }
    }
}

/// Resolves when the bridge stops, and when whoever could say so is gone.
async fn told_to_stop(stop: &mut signal::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// The next question about records, and who keeps it.
async fn asked(watches: &mut Option<Watches>) -> Option<(Asked, &mut Watches)> {
    let watches = watches.as_mut()?;
    let asked = watches.asked().await?;
    Some((asked, watches))
}

/// Resolves when there is something to read, and not before that moment.
async fn readable(reader: &mut Reader, not_before: Option<Instant>) {
    if let Some(moment) = not_before {
        tokio::time::sleep_until(moment).await;
    }
    reader.ready().await;
}

fn finish(record: Arc<Record>, outcome: Outcome, window: &mut Window, watches: &mut Option<Watches>) {
    let dead_letter = match outcome {
        Outcome::Settled => false,
        Outcome::DeadLettered => true,
        Outcome::Kept => return,
    };
    if let Some(watches) = watches {
        watches.settled(record.offset, dead_letter);
    }
    window.settle(record);
}

fn settle(spool: &Spool, cursor: &Cursor, reader: &Reader, lane: &Lane, window: &Window) {
    let oldest = window.watermark();
    lane.health.set_oldest(oldest.map(|(_, arrival)| arrival));
    let position = oldest.map_or(reader.position(), |(offset, _)| offset);
    if position > cursor.position() {
        spool.settle(cursor, position);
    }
}

#[cfg(test)]
mod tests;
