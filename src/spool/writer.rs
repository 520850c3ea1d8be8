//! The one thread that writes: takes the requests that wait, one write, one sync, then answers them. Meanwhile the next ones collect.

use super::disk::DiskFile;
use super::index::{Index, Indexed, Pending, Resolved};
use super::queue::{Answer, Append, AppendError, Appended, COMMIT_BYTES, Placed, Purpose, Work};
use super::shared::{AbandonOnPanic, DIRECTORY_LOST, Shared};
use super::{Record, segment};
use crate::event::{Arrival, Event, EventId, LegKey};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::OwnedSemaphorePermit;

/// After a failure, how long until another segment is tried.
const PAUSE: Duration = Duration::from_millis(200);

/// The owner of the active segment.
pub struct Writer {
    pub(super) shared: Arc<Shared>,
    active: Option<Active>,
    /// The offset of the next record.
    next: u64,
    buffer: Vec<u8>,
    /// Set after a failure: nothing is tried before this moment.
    paused: Option<(Instant, AppendError)>,
    /// How many bytes could not be stored when the trouble began.
    refused: u64,
    pub(super) pause: Duration,
    /// The present time, which records are stored with.
    pub(super) clock: Box<dyn Fn() -> Arrival + Send>,
}

/// The segment that is being written to.
struct Active {
    base: u64,
    file: Arc<dyn DiskFile>,
    size: u64,
    /// The position in the file behind the last durable record.
    position: u64,
}

/// The records of one write and one sync.
#[derive(Default)]
struct Commit {
    /// When they are stored.
    stored: Arrival,
    records: Vec<Arc<Record>>,
    /// The part of each in the index.
    indexed: Vec<Indexed>,
    /// The offsets of its events.
    ids: HashMap<EventId, u64>,
    /// The offsets of its CDRs.
    legs: HashMap<LegKey, u64>,
    names: Pending,
    /// How the conversations of its events were found.
    found_by: Vec<&'static str>,
    conflicts: u64,
    requests: Vec<Request>,
}

/// A request whose events a commit holds, or that are stored already.
struct Request {
    /// Whether it is a webhook, not a command that stores an event again.
    is_webhook: bool,
    placed: Placed,
    /// Released once the readers alone hold the events.
    held: Option<OwnedSemaphorePermit>,
    done: Answer,
}

impl Commit {
    fn new(stored: Arrival) -> Self {
        Self { stored, ..Self::default() }
    }

    /// The offset of the record that makes the event a duplicate.
    fn duplicate_of(&self, index: &Index, event: &Event, purpose: &Purpose) -> Option<u64> {
        if let Purpose::Replay(_) = purpose {
            return None;
        }
        let id = event.id();
        let leg = |leg: LegKey| index.leg(&leg, self.stored).or_else(|| self.legs.get(&leg).copied());
        let of_leg = || event.leg().filter(|_| *purpose == Purpose::Missing).and_then(leg);
        index.offset(&id, self.stored).or_else(|| self.ids.get(&id).copied()).or_else(of_leg)
    }
}

impl Writer {
    /// A writer that goes on behind the last record.
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let next = shared.log.end();
        let clock = Box::new(Arrival::now);
        Self { shared, active: None, next, buffer: Vec::new(), paused: None, refused: 0, pause: PAUSE, clock }
    }

    /// Writes until the queue is closed and empty.
    pub(super) fn run(mut self) {
        let _abandon = AbandonOnPanic(self.shared.clone());
        loop {
            match self.shared.queue.take() {
                Work::Stop => return self.seal(),
                Work::Probe => self.probe(),
                Work::Commit(mut requests) => {
                    while !requests.is_empty() {
                        self.commit(&mut requests);
                    }
                }
            }
        }
    }

    /// Finds out whether the refused bytes would be stored now. Readiness depends on it, and an unready bridge gets no requests that
    /// could find out.
    fn probe(&mut self) {
        let trouble = self.make_room(self.refused).err();
        if trouble.is_none()
            && let Some(Err(cause)) = self.active.as_ref().map(|active| active.file.sync())
        {
            return self.fail(&cause, Commit::default());
        }
        self.shared.queue.set_trouble(trouble.map(|error| error.to_string()));
    }

    /// Stores as many requests from the front as fit the active segment, with one write and one sync.
    pub(super) fn commit(&mut self, requests: &mut VecDeque<Append>) {
        let Some(first) = requests.front() else { return };
        let fits = self.paused.is_none() && first.size as u64 <= self.room();
        let needed = if fits { 0 } else { self.size_without_duplicates(first, &Commit::new((self.clock)())) as u64 };
        if let Err(error) = self.make_room(needed) {
            if !matches!(error, AppendError::TooLarge { .. }) {
                self.shared.queue.set_trouble(Some(error.to_string()));
                self.refused = needed;
            }
            // A smaller request behind it might fit, and is tried in its turn.
            if let Some(append) = requests.pop_front() {
                let _ = append.done.send(Err(error));
            }
            return;
        }
        let batch = self.next;
        let commit = self.encode(requests);
        match self.write() {
            Ok(()) => self.publish(batch, commit),
            Err(cause) => {
                self.next = batch;
                self.fail(&cause, commit);
            }
        }
    }

    /// How many bytes fit the active segment.
    fn room(&self) -> u64 {
        self.active.as_ref().map_or(0, |active| active.size - active.position)
    }

    /// How many bytes a request takes at the most, without the events that are stored already or with this commit.
    fn size_without_duplicates(&self, request: &Append, commit: &Commit) -> usize {
        let index = self.shared.index.lock();
        let is_fresh = |event: &&Event| commit.duplicate_of(&index, event, &request.purpose).is_none();
        let fresh = request.events.iter().filter(is_fresh);
        fresh.map(|event| segment::size_of_record(event, request.purpose.target())).sum()
    }

    /// Encodes requests into the buffer for as long as they fit.
    fn encode(&mut self, requests: &mut VecDeque<Append>) -> Commit {
        let mut commit = Commit::new((self.clock)());
        self.buffer.clear();
        let batch = self.next;
        let room = self.room() as usize;
        while let Some(request) = requests.front() {
            let fits = |size| self.buffer.len() + size <= room;
            let fits = fits(request.size) || fits(self.size_without_duplicates(request, &commit));
            if !fits || self.buffer.len() > COMMIT_BYTES {
                break;
            }
            let Some(Append { events: mut fresh, purpose, held, done, .. }) = requests.pop_front() else { break };
            let mut earlier = Vec::new();
            let index = self.shared.index.lock();
            let mut next = self.next;
            fresh.retain(|event| {
                let first = commit.duplicate_of(&index, event, &purpose);
                earlier.extend(first);
                if first.is_none() {
                    if purpose.target().is_none() && index.ids.is_on() {
                        commit.ids.insert(event.id(), next);
                    }
                    commit.legs.extend(event.legs().map(|leg| (leg, next)));
                    next += 1;
                }
                first.is_none()
            });
            let placed = Placed { fresh: self.next..next, earlier };
            let mut follows = fresh.len() as u32;
            for event in fresh {
                follows -= 1;
                let replayed = purpose.target().is_some();
                let Resolved { event, indexed, found_by, conflicts } =
                    index.resolve(event, replayed, self.next, &mut commit.names, commit.stored);
                let record = Record { offset: self.next, target: purpose.target().map(Into::into), event };
                segment::write_record(&record, &indexed, batch, follows, &mut self.buffer);
                self.next += 1;
                commit.records.push(Arc::new(record));
                commit.indexed.push(indexed);
                commit.found_by.extend(found_by);
                commit.conflicts += conflicts;
            }
            drop(index);
            commit.requests.push(Request { is_webhook: purpose.target().is_none(), placed, held, done });
        }
        commit
    }

    /// Makes the buffer durable behind the last record.
    fn write(&mut self) -> io::Result<()> {
        let Some(active) = self.active.as_mut().filter(|_| !self.buffer.is_empty()) else { return Ok(()) };
        active.file.write_at(&self.buffer, active.position)?;
        let begun = Instant::now();
        let synced = active.file.sync();
        self.shared.metrics.sync_durations.observe(begun.elapsed());
        synced?;
        if !active.file.has_name()? {
            self.shared.lose_directory();
            return Err(io::Error::new(io::ErrorKind::NotFound, DIRECTORY_LOST));
        }
        active.position += self.buffer.len() as u64;
        self.shared.metrics.syncs.inc();
        self.shared.metrics.written_bytes.inc_by(self.buffer.len() as u64);
        Ok(())
    }

    /// Shows the durable records to the readers and answers their requests.
    fn publish(&mut self, batch: u64, commit: Commit) {
        let mut index = self.shared.index.lock();
        commit.indexed.iter().for_each(|indexed| index.insert(indexed));
        drop(index);
        if let Some(active) = self.active.as_ref().filter(|_| self.next > batch) {
            self.shared.queue.set_trouble(None);
            self.shared.metrics.appended_records.inc_by(self.next - batch);
            // From here on a record that cannot be read after a crash is known to be damaged, not unacknowledged.
            if let Err(error) = self.shared.log.acknowledged.note(self.next) {
                tracing::debug!(%error, "the end of the acknowledged records could not be noted");
            }
            let position = active.position - self.buffer.len() as u64..active.position;
            self.shared.log.append(commit.records, position);
            self.shared.maintenance.wake();
        }
        self.shared.metrics.conversation_conflicts.inc_by(commit.conflicts);
        for by in commit.found_by {
            self.shared.metrics.conversations(by).inc();
        }
        for Request { is_webhook, placed, held, done } in commit.requests {
            if is_webhook {
                let Appended { stored, duplicates } = placed.count();
                self.shared.metrics.accepted.inc_by(stored as u64);
                self.shared.metrics.duplicates.inc_by(duplicates as u64);
            }
            drop(held);
            let _ = done.send(Ok(placed));
        }
        if self.buffer.capacity() > 2 * COMMIT_BYTES {
            self.buffer = Vec::new();
        }
    }

    /// Nothing of this commit counts, and its segment is not written to again: after a failed sync the content of the disk beyond
    /// the last durable record is unknown.
    fn fail(&mut self, cause: &io::Error, commit: Commit) {
        tracing::error!(error = %cause, "the spool cannot write; webhooks are refused until it can");
        self.shared.metrics.failures.inc();
        let error = AppendError::Failed { cause: cause.to_string() };
        self.pause(error.clone());
        self.refused = self.buffer.len() as u64;
        self.seal();
        for request in commit.requests {
            let _ = request.done.send(Err(error.clone()));
        }
    }

    fn pause(&mut self, error: AppendError) {
        self.shared.queue.set_trouble(Some(error.to_string()));
        self.paused = Some((Instant::now() + self.pause, error));
    }

    /// Sees to it that the active segment has room for `needed` bytes.
    fn make_room(&mut self, needed: u64) -> Result<(), AppendError> {
        if needed == 0 {
            return Ok(());
        }
        if self.shared.is_directory_lost() {
            return Err(AppendError::Failed { cause: DIRECTORY_LOST.to_owned() });
        }
        if let Some((until, error)) = &self.paused {
            if Instant::now() < *until {
                return Err(error.clone());
            }
            self.paused = None;
        }
        if needed <= self.room() {
            return Ok(());
        }
        let size = self.shared.log.size_for(needed);
        if size > self.shared.log.max_size {
            return Err(AppendError::TooLarge { needed: size, max_size: self.shared.log.max_size });
        }
        self.seal();
        self.shared.free(size)?;
        match self.shared.log.begin(self.next, size) {
            Ok(file) => {
                let position = segment::HEADER as u64;
                self.active = Some(Active { base: self.next, file, size, position });
                Ok(())
            }
            Err(cause) => {
                let error = AppendError::Failed { cause: cause.to_string() };
                if self.shared.queue.trouble().is_none() {
                    tracing::error!(error = %cause, "the spool cannot begin a new segment; webhooks are refused until it can");
                }
                self.shared.metrics.failures.inc();
                self.pause(error.clone());
                Err(error)
            }
        }
    }

    /// Ends the active segment behind its last durable record.
    pub(super) fn seal(&mut self) {
        if let Some(active) = self.active.take()
            && !self.shared.is_directory_lost()
        {
            self.shared.log.seal(active.base, &*active.file, active.position);
            self.shared.maintenance.wake();
        }
    }
}
