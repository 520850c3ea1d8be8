//! The durable log on local disk: the only queue in the process.
//!
//! # Invariants
//! - [`Spool::append`] returns only after `fdatasync`: a record that it has counted as stored survives `kill -9` and a power cut.
//! - Offsets are given in order of arrival, without gaps, and never twice.
//! - Acknowledged bytes are never written to again. A file whose write or sync failed is left alone and a new one is begun. No file is
//!   used twice.
//! - A segment is removed only once the durable cursor of every sink has passed its last record.
//! - Damage costs the damaged records and nothing else: the rest is delivered, the file is kept aside. A disk that refuses to
//!   read is waited for, see `spool/reader.rs`; a start needs the end of the log alone.
//! - An append has a deadline, and a caller that goes away holds up no other.
//! - The conversation of an event is resolved when its record is stored, in the order of the offsets, and never changes. It depends on
//!   the records before it alone; see `spool/index.rs`.
//!
//! # Path of a record
//! [`Spool::append`] → `queue` → `writer`: encode, write, fdatasync → answer and `log` → [`Reader`] → [`Spool::settle`] → `maintenance`:
//! write the cursor, remove the segment.
//!
//! # On disk, format version 3
//! All numbers are little-endian. Everything lies in one directory, readable by its owner only:
//! - `lock`: locked by the process that uses the spool; holds its process id.
//! - `segment-<base>`: records from offset `base` on, twenty decimal digits. The 32-byte header is `CDRSPOOL`, version
//!   (u32), zero (u32), base (u64), CRC-32C of these 24 bytes (u32), zero (u32); every version begins with these 24 bytes and
//!   their checksum. Records follow without padding; a segment that is being written to is preallocated with zeros, and cut off behind
//!   its last record when it is full.
//! - A record is a frame of 88 bytes and a body. Frame: CRC-32C of the rest of the frame (u32), CRC-32C of the body (u32), length of the
//!   body (u32), number of further records of the same request (u32), offset (u64), first offset of its group commit (u64), arrival and
//!   time of storing, in milliseconds since 1970 (u64 each), event id (16 bytes), lengths of conversation, target, ingress, query, names
//!   and legs (u32 each). Body: conversation, as it was resolved when the record was stored; name of the only sink that the record is for
//!   (empty: all sinks); name of the route that it came by (empty: `default`); query string beside the body (empty: none); names of the
//!   call that stand for the conversation from here on, and legs whose CDR the event is (16 bytes each, see [`crate::event::CallName`]);
//!   payload. In a damaged file the next record is found by the frame's own checksum, which takes a constant time for each position. A NUL
//!   in a text is written as the bytes C0 80, and names and legs have no zero byte: since offsets have one, nothing that a client sends
//!   can pass for a frame.
//! - `preallocated`: the next segment, made while the last one fills; meaningless after a crash.
//! - `acknowledged`: the offset after the last acknowledged record. Unreadable records below it are damage; behind it they are a torn
//!   write that was never acknowledged. Its form and that of the next two: see [`cursor::PositionFile`].
//! - `removed`: segments were removed below this offset because every sink had passed them; records that are missing above it are lost.
//! - `cursor-<sink>`: everything below is settled.
//! - `dedup-<base>`, `names-<base>`, `legs-<base>`: the part of the index that comes from the removed segment with this base; see
//!   `spool/window.rs`.
//! - `damaged-<base>`: a segment that could not be read whole, kept for inspection when all else in it is settled. It does
//!   not count as the spool's size any more and may be removed by hand.

mod config;
pub mod cursor;
pub mod disk;
mod free_space;
mod index;
pub mod inspect;
mod log;
mod maintenance;
mod queue;
mod read_cache;
mod reader;
mod recovery;
pub mod segment;
mod segments;
mod shared;
mod window;
mod writer;

pub use config::{Config, Retain};
pub use cursor::Cursor;
pub use free_space::measure_free_space;
pub use index::Indexed;
pub use queue::{AppendError, Appended, Placed};
pub use reader::Reader;

use crate::event::{Arrival, Event, Events, LegKey};
use crate::metrics::SpoolMetrics;
use disk::{Directory, Disk, LockError};
use maintenance::Maintenance;
use parking_lot::Mutex;
use queue::{Append, Purpose};
use shared::Shared;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use writer::Writer;

/// An event at its offset in the log.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Its offset.
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

/// The extent of the spool at one moment.
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
    append_timeout: Duration,
    writer: Mutex<Option<JoinHandle<()>>>,
    maintenance: Mutex<Option<JoinHandle<()>>>,
}

impl Spool {
    /// Opens the spool in its directory with a cursor for each of `sinks`, recovering from a crash if there was one.
    pub fn open(config: &Config, sinks: &[&str], metrics: SpoolMetrics) -> Result<Self, OpenError> {
        let directory = Directory::lock(&config.path)?;
        Ok(Self::on(Box::new(directory), config, sinks, metrics)?)
    }

    /// Opens a spool on any disk.
    pub fn on(disk: Box<dyn Disk>, config: &Config, sinks: &[&str], metrics: SpoolMetrics) -> io::Result<Self> {
        let shared = Arc::new(Shared::open(disk, config, sinks, metrics, Arrival::now())?);
        let spool = Self {
            shared: shared.clone(),
            append_timeout: config.append_timeout,
            writer: Mutex::default(),
            maintenance: Mutex::default(),
        };
        let (writer, maintenance) = (Writer::new(shared.clone()), Maintenance::new(shared));
        // Should the second thread not start, dropping the spool ends the first.
        let writer = std::thread::Builder::new().name("spool-writer".into()).spawn(move || writer.run())?;
        *spool.writer.lock() = Some(writer);
        let maintenance =
            std::thread::Builder::new().name("spool-maintenance".into()).spawn(move || maintenance.run())?;
        *spool.maintenance.lock() = Some(maintenance);
        Ok(spool)
    }

    /// Stores the events of one request, all of them or none, and returns once they are durable. Events that were stored
    /// before within the window count as duplicates.
    pub async fn append(&self, events: impl Into<Events>) -> Result<Appended, AppendError> {
        self.place(events, None).await.map(|placed| placed.count())
    }

    /// The same as [`Self::append`], for a caller that needs the offsets. `held` is released once the events are stored or refused.
    pub async fn place(
        &self,
        events: impl Into<Events>,
        held: Option<OwnedSemaphorePermit>,
    ) -> Result<Placed, AppendError> {
        self.enqueue(events.into(), Purpose::Webhook, held).await
    }

    /// Stores events that are to be published once more by the sink called `target` and by no other, whether or not they
    /// were stored before.
    pub async fn append_again(&self, events: impl Into<Events>, target: &str) -> Result<Appended, AppendError> {
        let purpose = Purpose::Replay(target.into());
        self.enqueue(events.into(), purpose, None).await.map(|placed| placed.count())
    }

    /// The same as [`Self::append`], for CDRs that may have come as webhooks: those whose leg has a CDR count as duplicates.
    pub async fn append_missing(&self, events: impl Into<Events>) -> Result<Appended, AppendError> {
        self.enqueue(events.into(), Purpose::Missing, None).await.map(|placed| placed.count())
    }

    /// Whether a CDR of this leg was stored within `legs_window`, as far as `legs_capacity` reaches.
    pub fn has_leg(&self, leg: &LegKey) -> bool {
        self.shared.index.lock().leg(leg, Arrival::now()).is_some()
    }

    /// From when on [`Self::has_leg`] knows every CDR that was stored; `None` if it knows none, by its settings.
    pub fn legs_since(&self) -> Option<Arrival> {
        self.shared.index.lock().legs_since(Arrival::now())
    }

    /// Queues the events and waits for the result up to `append_timeout`. The future may be dropped at any time.
    async fn enqueue(
        &self,
        events: Events,
        purpose: Purpose,
        held: Option<OwnedSemaphorePermit>,
    ) -> Result<Placed, AppendError> {
        let (done, stored) = oneshot::channel();
        let _ticket = self.shared.queue.push(Append::new(events, purpose, held, done));
        let stored = async { stored.await.unwrap_or(Err(AppendError::Closed)) };
        let after = self.append_timeout;
        if after.is_zero() {
            return stored.await;
        }
        tokio::time::timeout(after, stored).await.unwrap_or(Err(AppendError::TimedOut { after }))
    }

    /// When the segment with the record at `offset` was begun: the record arrived then or later. `None` if nothing tells.
    pub fn begun(&self, offset: u64) -> Option<Arrival> {
        self.shared.log.begun(offset)
    }

    /// Whether the record at `offset` was found to be unreadable.
    pub fn is_gone(&self, offset: u64) -> bool {
        self.shared.log.is_lost(offset)
    }

    /// A reader for `sink` that begins at its cursor; `None` if the spool was opened without that sink.
    pub fn reader(&self, sink: &str) -> Option<Reader> {
        let cursor = self.cursor(sink)?;
        Some(Reader::new(self.shared.clone(), cursor.position()))
    }

    /// The cursor of `sink`; `None` if the spool was opened without it.
    pub fn cursor(&self, sink: &str) -> Option<Arc<Cursor>> {
        self.shared.cursors.read().iter().find(|cursor| cursor.sink() == sink).cloned()
    }

    /// Adds a sink to the open spool. It begins where an earlier sink of that name ended, or at the oldest record. Waits for the disk.
    pub fn add_sink(&self, sink: &str) -> io::Result<()> {
        if self.cursor(sink).is_some() {
            return Ok(());
        }
        let cursor = Cursor::open(&*self.shared.log.disk, sink)?;
        let mut cursors = self.shared.cursors.write();
        cursor.set(self.shared.log.status().start);
        cursors.push(Arc::new(cursor));
        Ok(())
    }

    /// Keeps no more records for a sink. Its position stays on disk, in case it is added again. Waits for the disk.
    pub fn remove_sink(&self, sink: &str) -> io::Result<()> {
        let removed = self.cursor(sink);
        self.shared.cursors.write().retain(|cursor| cursor.sink() != sink);
        self.shared.maintenance.wake();
        removed.map_or(Ok(()), |cursor| cursor.sync())
    }

    /// Declares everything below `position` settled for the cursor's sink.
    pub fn settle(&self, cursor: &Cursor, position: u64) {
        cursor.set(position);
        self.shared.maintenance.wake();
    }

    /// The extent of the spool now.
    pub fn status(&self) -> Status {
        self.shared.log.status()
    }

    /// About how many bytes the records from `offset` on take.
    pub fn bytes_from(&self, offset: u64) -> u64 {
        self.shared.log.bytes_from(offset)
    }

    /// How many bytes the segments may take.
    pub fn max_size(&self) -> u64 {
        self.shared.log.max_size
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
        let join = |thread: &Mutex<Option<JoinHandle<()>>>| {
            if thread.lock().take().is_some_and(|thread| thread.join().is_err()) {
                tracing::error!("a thread of the spool panicked");
            }
        };
        join(&self.writer);
        // The last segment is ended by now, and can be removed.
        self.shared.maintenance.close();
        join(&self.maintenance);
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests;
