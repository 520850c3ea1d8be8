//! The one thread that writes: takes everything that waits, one write, one sync, then releases all who wait.

mod commit;

use super::active::Active;
use super::queue::{AbandonOnPanic, Append, AppendError, Appended, Placed, Release};
use super::recent::Recent;
use super::recovery::Segment;
use super::{Record, Shared, segment};
use crate::event::{Arrival, Event, EventId};
use commit::Commit;
use std::collections::VecDeque;
use std::collections::hash_map::Entry;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A group commit takes no more requests once it has this many bytes.
const COMMIT_BYTES: usize = 1 << 20;
/// After a failure, how long until another segment is tried.
const PAUSE: Duration = Duration::from_millis(200);

/// The one that writes.
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
}

impl Writer {
    /// A writer that goes on behind the last record.
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let next = *shared.end.borrow();
        Self { shared, active: None, next, buffer: Vec::new(), paused: None, refused: 0, pause: PAUSE }
    }

    /// Writes until the queue is closed and empty.
    pub(super) fn run(mut self) {
        let _abandon = AbandonOnPanic(self.shared.clone());
        while let Some(mut requests) = self.shared.queue.take() {
            if requests.is_empty() {
                self.look();
            }
            while !requests.is_empty() {
                self.commit(&mut requests);
            }
        }
        self.seal();
    }

    /// Whether what was refused would be stored now. Readiness depends on it, and without readiness no request comes that
    /// could find out.
    fn look(&mut self) {
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
        self.shared.recent().expire(Arrival::now());
        let Some(first) = requests.front() else { return };
        let needed = if self.has_room(most(first)) { 0 } else { self.needed(first) };
        if let Err(error) = self.make_room(needed as u64) {
            if !matches!(error, AppendError::TooLarge { .. }) {
                self.shared.queue.set_trouble(Some(error.to_string()));
                self.refused = needed as u64;
            }
            // The first one does not fit; a later, smaller one might, and is tried in its turn.
            if let Some(append) = requests.pop_front() {
                let _ = append.done.send(Err(error));
            }
            return;
        }
        let batch = self.next;
        let commit = self.encode(requests);
        match self.write() {
            Ok(()) => {
                if self.next > batch {
                    self.shared.queue.set_trouble(None);
                }
                self.publish(batch, commit);
            }
            Err(cause) => {
                self.next = batch;
                self.fail(&cause, commit);
            }
        }
    }

    /// How many bytes fit the active segment.
    fn room(&self) -> usize {
        self.active.as_ref().map_or(0, |active| active.end() - active.position) as usize
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.paused.is_none() && bytes <= self.room()
    }

    /// How many bytes a request takes, events left out that are stored already.
    fn needed(&self, request: &Append) -> usize {
        let target = request.target.as_deref();
        let recent = self.shared.recent();
        let fresh = request.events.iter().filter(|event| target.is_some() || self.held(&recent, &event.id()).is_none());
        fresh.map(|event| segment::size_of_record(event, target)).sum()
    }

    /// Frames requests into the buffer for as long as they fit.
    fn encode(&mut self, requests: &mut VecDeque<Append>) -> Commit {
        let mut commit = Commit::of(requests.len());
        self.buffer.clear();
        let batch = self.next;
        let room = self.room();
        while let Some(request) = requests.front() {
            let fits = |size| self.buffer.len() + size <= room;
            if self.buffer.len() > COMMIT_BYTES || !(fits(most(request)) || fits(self.needed(request))) {
                break;
            }
            let Some(Append { events: mut fresh, target, held, done }) = requests.pop_front() else { break };
            let mut earlier = Vec::new();
            if target.is_none() {
                let mut next = self.next;
                let recent = self.shared.recent();
                fresh.retain(|event| {
                    let first = self.first_copy(&recent, event, next, &mut commit);
                    next += u64::from(first.is_none());
                    earlier.extend(first);
                    first.is_none()
                });
            }
            let placed = Placed { fresh: self.next..self.next + fresh.len() as u64, earlier };
            let mut follows = fresh.len() as u32;
            for event in fresh {
                follows -= 1;
                let record = Record { offset: self.next, target: target.clone(), event };
                segment::write_record(&record, batch, follows, &mut self.buffer);
                self.next += 1;
                commit.records.push(Arc::new(record));
            }
            commit.held.extend(held);
            if target.is_none() {
                let Appended { stored, duplicates } = placed.count();
                commit.accepted += stored;
                commit.duplicates += duplicates;
            }
            commit.waiting.push((done, placed));
        }
        commit
    }

    /// Whether the event would count as a duplicate.
    #[cfg(test)]
    pub(super) fn recognises(&self, id: &EventId) -> bool {
        self.shared.recent().offset(id).is_some()
    }

    /// How many events would count as duplicates.
    #[cfg(test)]
    pub(super) fn recognised(&self) -> usize {
        self.shared.recent().len()
    }

    /// Where the event is that was stored with this identity. One that has turned out to be unreadable since does not count:
    /// a sender that has it still can mend that.
    fn held(&self, recent: &Recent, id: &EventId) -> Option<u64> {
        recent.offset(id).filter(|offset| !self.shared.is_gone(*offset))
    }

    /// Where the event is already. If it is nowhere it gets the offset `next`.
    fn first_copy(&self, recent: &Recent, event: &Event, next: u64, commit: &mut Commit) -> Option<u64> {
        if recent.capacity() == 0 {
            return None;
        }
        let id = event.id();
        self.held(recent, &id).or_else(|| match commit.ids.entry(id) {
            Entry::Occupied(first) => Some(*first.get()),
            Entry::Vacant(place) => {
                place.insert(next);
                None
            }
        })
    }

    fn write(&mut self) -> io::Result<()> {
        let Some(active) = self.active.as_mut().filter(|_| !self.buffer.is_empty()) else { return Ok(()) };
        active.file.write_at(&self.buffer, active.position)?;
        active.file.sync()?;
        active.position += self.buffer.len() as u64;
        if !active.asked && 2 * active.position > active.size {
            active.asked = true;
            self.shared.ask_for_spare();
        }
        self.shared.metrics.syncs.inc();
        self.shared.metrics.written_bytes.inc_by(self.buffer.len() as u64);
        if self.buffer.capacity() > 2 * COMMIT_BYTES {
            self.buffer = Vec::new();
        }
        Ok(())
    }

    /// Shows the durable records to the readers and releases those who wait for them.
    fn publish(&mut self, batch: u64, commit: Commit) {
        let now = Arrival::now();
        // What is published again came long ago, and what is like it may come again.
        let mut recent = self.shared.recent();
        let fresh = commit.records.iter().filter(|record| record.target.is_none());
        recent.make_room(fresh.clone().count());
        for record in fresh {
            recent.insert(record.event.id(), record.event.arrival(), record.offset, now);
        }
        drop(recent);
        if self.next > batch {
            self.shared.metrics.appended_records.inc_by(self.next - batch);
            self.shared.log().tail.extend(commit.records, self.shared.memory);
            // Who waits for it is woken along with the requests.
            self.shared.end.send_if_modified(|end| {
                *end = self.next;
                false
            });
        }
        drop(commit.held);
        self.shared.metrics.accepted.inc_by(commit.accepted as u64);
        self.shared.metrics.duplicates.inc_by(commit.duplicates as u64);
        self.shared.release(Release { appended: self.next > batch, waiting: commit.waiting });
    }

    /// Nothing of this commit counts, and its segment is not written to again: after a failed sync nobody knows what the
    /// disk holds beyond the last durable record.
    fn fail(&mut self, cause: &io::Error, commit: Commit) {
        tracing::error!(error = %cause, "the spool cannot write; webhooks are refused until it can");
        self.shared.metrics.failures.inc();
        let error = AppendError::Failed { cause: cause.to_string() };
        self.pause(error.clone());
        self.refused = self.buffer.len() as u64;
        if let Some(active) = &mut self.active {
            active.failed = true;
        }
        self.seal();
        for (done, _) in commit.waiting {
            let _ = done.send(Err(error.clone()));
        }
    }

    fn pause(&mut self, error: AppendError) {
        self.shared.queue.set_trouble(Some(error.to_string()));
        self.paused = Some((Instant::now() + self.pause, error));
    }

    /// Sees to it that the active segment has room for `needed` bytes.
    fn make_room(&mut self, needed: u64) -> Result<(), AppendError> {
        if let Some((until, error)) = self.paused.as_ref().filter(|_| needed > 0) {
            if Instant::now() < *until {
                return Err(error.clone());
            }
            self.paused = None;
        }
        if needed == 0 || self.active.as_ref().is_some_and(|active| active.position + needed <= active.end()) {
            return Ok(());
        }
        let size = self.shared.segment_size.max(needed + (segment::HEADER + segment::FOOTER) as u64);
        if size > self.shared.max_size {
            return Err(AppendError::TooLarge { needed: size, max_size: self.shared.max_size });
        }
        self.retire();
        self.shared.room_for(size)?;
        match self.begin(size) {
            Ok(active) => {
                let mut log = self.shared.log();
                log.segments.insert(active.base, Segment { bytes: size, begun: Arrival::now(), ..Segment::default() });
                log.active = Some(active.base);
                drop(log);
                self.active = Some(active);
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

    fn begin(&self, size: u64) -> io::Result<Active> {
        let spare = self.shared.take_spare(size);
        Active::begin(&*self.shared.disk, self.next, size, spare)
    }

    /// Writes no more to the active segment. What is left to do there has time.
    fn retire(&mut self) {
        let Some(active) = self.active.take() else { return };
        let mut log = self.shared.log();
        log.active = None;
        if active.is_empty() {
            drop(log);
            self.shared.seal(&active, self.next);
        } else {
            log.full.push((active, self.next));
            drop(log);
        }
        self.shared.janitor.wake();
    }

    /// Ends the active segment behind its last durable record.
    pub(super) fn seal(&mut self) {
        self.retire();
        self.shared.seal_full();
    }
}

/// How many bytes a request takes if nothing of it is stored already.
fn most(request: &Append) -> usize {
    let target = request.target.as_deref();
    request.events.iter().map(|event| segment::size_of_record(event, target)).sum()
}
