//! The durable log on local disk: the only queue in the process.
//!
//! # Invariants
//! - [`Spool::append`] returns only after `fdatasync`: what it has counted as stored survives `kill -9` and a power cut.
//! - Offsets are given in order of arrival, without gaps, and never twice.
//! - Acknowledged bytes are never written to again. A file whose write or sync failed is left alone and a new one is begun.
//! - A segment is removed only once the durable cursor of every sink has passed its last record.
//! - Damage costs the damaged records and nothing else: the rest is delivered, the file is kept aside. A disk that refuses to
//!   read is waited for, see `spool/reader.rs`; a start needs the end of the log alone.
//!
//! # On disk, format version 1
//! All numbers are little-endian. Everything lies in one directory, readable by its owner only:
//! - `lock`: held with `flock` by the process that uses the spool; holds its process id.
//! - `segment-<base>`: records from offset `base` on, twenty decimal digits. The 32-byte header is `CDRSPOOL`, version
//!   (u32), zero (u32), base (u64), CRC-32C of these 24 bytes (u32), zero (u32); every version begins with these 24 bytes and
//!   their sum. Records follow without padding; a segment that is being written to is preallocated with zeros.
//! - A record: CRC-32C of all that follows (u32), length of conversation, target and payload together (u32), offset (u64),
//!   first offset of its group commit (u64), arrival in milliseconds since 1970 (u64), event id (16 bytes), length of the
//!   conversation (u32), number of further records of the same request (u32), length of the target (u32), conversation,
//!   target, payload. The target is the name of the only sink that the record is for, or empty; if the event did not come by the
//!   route `default`, the byte FF and the name of its route belong to it. A NUL in the conversation is written as the bytes
//!   C0 80, and JSON holds none: so nothing that a client sends can pass for a record, whose offset always has a zero byte,
//!   when the way back into a damaged file is sought.
//! - A segment that is nearly full becomes another when every sink has passed it, and has that one's records behind its own until they
//!   are written over: their offsets are lower than its base, and they count as zeros do.
//! - A segment that was ended in order has `CDRSEALD` at its end, the offset after its last record (u64), CRC-32C of these 16 bytes
//!   (u32). One that was not nearly full is cut off for that behind its last record.
//! - `spare`, `spare-<base>`: the file of the next segment, made while the last one fills or a former segment's; of no meaning after a
//!   crash.
//! - `cursor-<sink>`: see [`cursor`].
//! - `known-<base>`: the identities of the events in a removed segment; see `spool/known.rs`.
//! - `damaged-<base>`: a segment that could not be read whole, kept for inspection when all else in it is settled. It does
//!   not count as the spool's size any more and may be removed by hand.

mod active;
mod config;
pub mod cursor;
pub mod disk;
mod gone;
pub mod inspect;
mod janitor;
mod known;
mod opening;
mod queue;
mod reader;
mod recent;
mod recovery;
mod room;
pub mod segment;
mod spare;
mod sums;
mod tail;
mod writer;

pub use config::{Config, Retain};
pub use cursor::Cursor;
pub use queue::{AppendError, Appended, Placed};
pub use reader::Reader;

use crate::event::{Arrival, Event, Events};
use crate::metrics::SpoolMetrics;
use active::Active;
use disk::{Directory, Disk, LockError};
use gone::Gone;
use janitor::Janitor;
use opening::assemble;
use queue::{Queue, Release};
use recent::Recent;
use recovery::Segment;
use room::Next;
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use tail::Tail;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};

/// An event at its place in the log.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Its place.
    pub offset: u64,
    /// The only sink it is for; all of them if there is none.
    pub target: Option<Box<str>>,
    /// The event.
    pub event: Event,
}

/// Why the spool cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It belongs to another process, or is no usable directory.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// Its files cannot be read or put in order.
    #[error("spool: {0}")]
    Io(#[from] io::Error),
}

/// What the spool holds at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Bytes on disk.
    pub bytes: u64,
    /// Segment files.
    pub segments: usize,
    /// Offset of the first record that is still there.
    pub start: u64,
    /// Offset that the next record will get.
    pub end: u64,
}

/// The log. Appends go through one writer thread; every sink reads with a [`Reader`] of its own.
#[derive(Debug)]
pub struct Spool {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What writer, readers and janitor have in common.
#[derive(Debug)]
struct Shared {
    disk: Box<dyn Disk>,
    log: Mutex<Log>,
    /// What the writer recognises, and the janitor keeps of segments that go. Whoever holds it takes no other lock but that of the log.
    recent: Mutex<Recent>,
    /// Held while full segments are cut off.
    sealing: Mutex<()>,
    /// The offset after the last durable record.
    end: watch::Sender<u64>,
    queue: Queue,
    /// Where the writer leaves commits for a task to answer their requests; it does so itself as long as there is none.
    releases: OnceLock<mpsc::UnboundedSender<Release>>,
    janitor: Janitor,
    cursors: Vec<Arc<Cursor>>,
    metrics: SpoolMetrics,
    max_size: u64,
    segment_size: u64,
    memory: usize,
    retain: Option<Retain>,
    /// Whether one of the threads has panicked.
    abandoned: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Log {
    segments: BTreeMap<u64, Segment>,
    /// The base of the segment that is being written to.
    active: Option<u64>,
    /// Segments that are full and not cut off behind their last record yet, and the offset behind it. All of them have records: of those
    /// without, the file's name is soon another's, so they are not left to another thread.
    full: Vec<(Active, u64)>,
    next: Next,
    tail: Tail,
    /// Also in segments that have been removed since, for as long as their events may be sent again.
    gone: Gone,
}

impl Log {
    fn segment_bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.bytes).sum()
    }

    /// All that counts as the spool's size.
    fn bytes(&self) -> u64 {
        self.segment_bytes() + self.next.size()
    }
}

impl Spool {
    /// Opens the spool in its directory with a cursor for each of `sinks`, recovering whatever a crash left.
    pub fn open(config: &Config, sinks: &[&str], metrics: SpoolMetrics) -> Result<Self, OpenError> {
        let directory = Directory::lock(&config.path)?;
        Ok(Self::on(Box::new(directory), config, sinks, metrics)?)
    }

    /// Opens a spool on any disk.
    pub fn on(disk: Box<dyn Disk>, config: &Config, sinks: &[&str], metrics: SpoolMetrics) -> io::Result<Self> {
        let (writer, keeper) = assemble(disk, config, sinks, metrics)?;
        let shared = writer.shared.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (sender, releases) = mpsc::unbounded_channel();
            shared.releases.get_or_init(|| sender);
            runtime.spawn(queue::carry_out(releases, shared.end.clone()));
        }
        // Should the second thread not start, dropping this ends the first.
        let spool = Self { shared, threads: Mutex::default() };
        let started = [
            std::thread::Builder::new().name("spool-writer".into()).spawn(move || writer.run())?,
            std::thread::Builder::new().name("spool-janitor".into()).spawn(move || keeper.run())?,
        ];
        spool.threads.lock().unwrap_or_else(PoisonError::into_inner).extend(started);
        Ok(spool)
    }

    /// Stores the events of one request, all of them or none, and returns once they are durable. Events that were stored
    /// before within the window count as duplicates.
    pub async fn append(&self, events: impl Into<Events>) -> Result<Appended, AppendError> {
        self.place(events).await.map(|placed| placed.count())
    }

    /// The same as [`Self::append`], for who wants to know where the events are.
    pub async fn place(&self, events: impl Into<Events>) -> Result<Placed, AppendError> {
        self.enqueue(events.into(), None, None).await
    }

    /// The same as [`Self::place`], and `held` is dropped once the events are stored or refused, even if the returned future is
    /// dropped before.
    pub fn place_holding(
        &self,
        events: Events,
        held: OwnedSemaphorePermit,
    ) -> impl Future<Output = Result<Placed, AppendError>> {
        self.enqueue(events, None, Some(held))
    }

    /// Stores events that are to be published once more by the sink called `target` and by no other, whether or not they
    /// were stored before.
    pub async fn append_again(&self, events: impl Into<Events>, target: &str) -> Result<Appended, AppendError> {
        self.enqueue(events.into(), Some(target.into()), None).await.map(|placed| placed.count())
    }

    /// Done before there is a future, which would have room for the events until they are stored.
    fn enqueue(
        &self,
        events: Events,
        target: Option<Box<str>>,
        held: Option<OwnedSemaphorePermit>,
    ) -> impl Future<Output = Result<Placed, AppendError>> {
        let (done, stored) = oneshot::channel();
        let gathering = self.shared.queue.push(queue::Append { events, target, held, done });
        async move {
            if let Some(gathering) = gathering {
                gathering.end().await;
            }
            stored.await.unwrap_or(Err(AppendError::Closed))
        }
    }

    /// When the segment with the record at `offset` was begun: the record arrived then or later. `None` if nothing tells.
    pub fn begun(&self, offset: u64) -> Option<Arrival> {
        let log = self.shared.log();
        let base = *log.segments.range(..=offset).next_back()?.0;
        // One that cannot be read at all is older than the next.
        log.segments.range(base..).map(|(_, segment)| segment.begun).find(|begun| *begun != Arrival::default())
    }

    /// Whether the record at `offset` was found to be unreadable.
    pub fn is_gone(&self, offset: u64) -> bool {
        self.shared.is_gone(offset)
    }

    /// A reader for `sink` that begins at its cursor; `None` if the spool was opened without that sink.
    pub fn reader(&self, sink: &str) -> Option<Reader> {
        let cursor = self.cursor(sink)?;
        Some(Reader::new(self.shared.clone(), cursor.position()))
    }

    /// Reads the record at `offset` again, from memory or from disk. `None` if it has been removed, or is damaged; an error if the disk
    /// refuses to read, which may pass.
    pub async fn read_at(&self, offset: u64) -> io::Result<Option<Arc<Record>>> {
        let records = Reader::new(self.shared.clone(), offset).read(1).await?;
        Ok(records.into_iter().next().filter(|record| record.offset == offset))
    }

    /// The cursor of `sink`; `None` if the spool was opened without it.
    pub fn cursor(&self, sink: &str) -> Option<Arc<Cursor>> {
        self.shared.cursors.iter().find(|cursor| cursor.sink() == sink).cloned()
    }

    /// Declares everything below `position` settled for the cursor's sink.
    pub fn settle(&self, cursor: &Cursor, position: u64) {
        cursor.set(position);
        self.shared.janitor.wake();
    }

    /// What the spool holds.
    pub fn status(&self) -> Status {
        let end = *self.shared.end.borrow();
        let log = self.shared.log();
        let start = log.segments.first_key_value().map_or(end, |(base, _)| *base);
        Status { bytes: log.bytes(), segments: log.segments.len(), start, end }
    }

    /// How many bytes the segments may take.
    pub fn max_size(&self) -> u64 {
        self.shared.max_size
    }

    /// Whether the next append has a chance: `Err` tells why not.
    pub fn health(&self) -> Result<(), String> {
        self.shared.queue.trouble().map_or(Ok(()), Err)
    }

    /// Resolves when the spool can do no more because one of its threads has panicked.
    pub async fn abandoned(&self) {
        let mut abandoned = self.shared.abandoned.subscribe();
        // The sender lives as long as this spool.
        let _ = abandoned.wait_for(|abandoned| *abandoned).await;
    }

    /// Finishes the appends that wait, writes the cursors, and takes nothing more.
    pub fn close(&self) {
        self.shared.queue.close();
        self.shared.janitor.close();
        for thread in self.threads.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the spool panicked");
            }
        }
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The base and the end of the segment that holds `offset`, or of the next one behind it.
    fn segment_of(&self, offset: u64) -> Option<Range<u64>> {
        let end = *self.end.borrow();
        let log = self.log();
        let base = *log.segments.range(..=offset).next_back().or_else(|| log.segments.range(offset..).next())?.0;
        let limit = log.segments.range(base + 1..).next().map_or(end, |(next, _)| *next);
        Some(base..limit)
    }

    fn release(&self, release: Release) {
        let unanswered = match self.releases.get() {
            Some(task) => task.send(release).err().map(|refused| refused.0),
            None => Some(release),
        };
        if let Some(release) = unanswered {
            release.carry_out(&self.end);
        }
    }

    fn is_gone(&self, offset: u64) -> bool {
        self.log().gone.contains(offset)
    }

    /// Takes note of acknowledged records that cannot be read, and tells of them once. A reader whose sink has passed them meanwhile proves
    /// nothing: their file may be another segment's already.
    fn lose(&self, base: u64, gone: Range<u64>) {
        if gone.end <= self.slowest() {
            return;
        }
        let mut log = self.log();
        log.gone.insert(gone.clone());
        let news = match log.segments.get_mut(&base) {
            Some(segment) => segment.lose(gone.clone()),
            None => gone.end - gone.start,
        };
        drop(log);
        if news > 0 {
            report_damage(&self.metrics, &gone, news);
        }
    }
}

fn report_damage(metrics: &SpoolMetrics, gone: &Range<u64>, news: u64) {
    metrics.damaged_records.inc_by(news);
    tracing::error!(
        from = gone.start,
        until = gone.end,
        "records of the spool are unreadable and will not be delivered; their file is kept aside as damaged-*"
    );
}

#[cfg(test)]
mod tests;
