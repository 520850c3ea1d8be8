//! One sink's way through the log: the tail from memory, the rest from disk.
//!
//! Two things are told apart. Bytes that can be read and are no record, and a file that is not there, are damage: that is final,
//! what they held is told and passed over. A disk that refuses to read proves nothing about what is on it. It may be back in a
//! moment, as a volume that is attached again; and what was acknowledged is not given up on a guess, nor may the next event of
//! a conversation overtake. So a refused read is tried again for as long as it takes, while readiness, metrics and the log name
//! the file. Giving up what is in a bad sector is for a person to decide, by replacing the file with a copy that leaves it out.

use super::segment::{self, Found, Scan};
use super::tail::{Place, fitting};
use super::{Record, Shared};
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How many bytes of records are read from disk at once, and held before they are asked for: as many again are read and decoded by
/// another thread while these are delivered.
const AHEAD: usize = 128 << 10;
/// After how many of them that thread lets others have its processor: requests are not to wait for what came long ago.
const TURN: usize = 16;

/// Reads records in the order of their offsets.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    end: watch::Receiver<u64>,
    place: Place,
    /// What was read from disk and not yet asked for.
    ready: VecDeque<Arc<Record>>,
    /// Where reading from disk goes on behind that, unless it does so already.
    disk: Option<OnDisk>,
    ahead: Option<JoinHandle<Read>>,
}

/// A reader's way through the files.
#[derive(Debug)]
pub(super) struct OnDisk {
    shared: Arc<Shared>,
    next: u64,
    /// The segment being read and its base.
    scan: Option<(u64, Scan)>,
}

/// What was read, and by whom.
type Read = (OnDisk, io::Result<Vec<Arc<Record>>>);

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, next: u64) -> Self {
        let end = shared.end.subscribe();
        let place = shared.log().tail.join(next);
        Self { shared, end, place, ready: VecDeque::new(), disk: None, ahead: None }
    }

    /// The offset of the record to be read next.
    pub fn position(&self) -> u64 {
        self.place.next()
    }

    /// Whether there is nothing more to read now.
    pub fn is_at_end(&self) -> bool {
        self.position() >= *self.end.borrow()
    }

    /// Goes on at `position` if that is further on: the records before it are skipped.
    pub fn advance(&mut self, position: u64) {
        if position > self.position() {
            self.place.go_to(position);
            self.ready.clear();
            (self.disk, self.ahead) = (None, None);
        }
    }

    /// Waits until there is something to read.
    pub async fn ready(&mut self) {
        let next = self.position();
        // The sender lives as long as the spool that this reader holds on to.
        let _ = self.end.wait_for(|end| *end > next).await;
    }

    /// The next records, about `bytes` of them and at least one if there is any; waits for the disk only for records that
    /// have left the memory.
    pub async fn read(&mut self, bytes: usize) -> io::Result<Vec<Arc<Record>>> {
        if let Some(records) = self.at_hand(bytes) {
            return Ok(records);
        }
        let ahead = match self.ahead.take() {
            Some(ahead) => ahead,
            None => self.on_disk().read_aside(bytes.max(AHEAD)),
        };
        self.take(ahead.await.map_err(io::Error::other)?)?;
        let records = self.hand_out(bytes);
        let end = *self.end.borrow();
        if self.disk.as_ref().is_some_and(|disk| disk.next < end && !self.is_in_memory(disk.next)) {
            self.ahead = self.disk.take().map(|disk| disk.read_aside(AHEAD));
        }
        Ok(records)
    }

    /// The next records, if that takes no look at the disk: because they are in memory, or because there are none.
    pub(super) fn at_hand(&mut self, bytes: usize) -> Option<Vec<Arc<Record>>> {
        if !self.ready.is_empty() {
            return Some(self.hand_out(bytes));
        }
        let records = self.take_from_memory(bytes);
        (!records.is_empty() || self.is_at_end()).then_some(records)
    }

    /// Where to read on from disk.
    pub(super) fn on_disk(&mut self) -> OnDisk {
        let disk = self.disk.take();
        disk.unwrap_or_else(|| OnDisk { shared: self.shared.clone(), next: self.position(), scan: None })
    }

    /// Takes what was read. After a failure reading begins again where it began.
    pub(super) fn take(&mut self, (disk, records): Read) -> io::Result<()> {
        self.ready = records?.into();
        self.place.go_to(self.ready.front().map_or(disk.next, |first| first.offset));
        self.disk = Some(disk);
        Ok(())
    }

    /// What is ready, about `bytes` of it.
    pub(super) fn hand_out(&mut self, bytes: usize) -> Vec<Arc<Record>> {
        let count = self.ready.iter().take_while(fitting(bytes)).count();
        let records: Vec<_> = self.ready.drain(..count).collect();
        let behind = records.last().map(|last| last.offset + 1);
        if let Some(next) = self.ready.front().map(|first| first.offset).or(behind) {
            self.place.go_to(next);
        }
        records
    }

    /// Whether more is read already than was asked for.
    #[cfg(test)]
    pub(super) fn reads_ahead(&self) -> bool {
        self.ahead.is_some()
    }

    fn is_in_memory(&self, offset: u64) -> bool {
        self.shared.log().tail.first().is_some_and(|first| first <= offset)
    }

    fn take_from_memory(&mut self, bytes: usize) -> Vec<Arc<Record>> {
        let records = self.shared.log().tail.read(&self.place, bytes);
        if !records.is_empty() {
            (self.disk, self.ahead) = (None, None);
        }
        records
    }
}

impl OnDisk {
    /// Reads on in a thread that may wait.
    fn read_aside(mut self, bytes: usize) -> JoinHandle<Read> {
        tokio::task::spawn_blocking(move || {
            let records = self.read(bytes);
            (self, records)
        })
    }

    /// The next records, until there are `bytes` of them or no more.
    pub(super) fn read(&mut self, bytes: usize) -> io::Result<Vec<Arc<Record>>> {
        let mut records = Vec::new();
        let mut held = 0;
        while held < bytes {
            let end = *self.shared.end.borrow();
            if self.next >= end {
                break;
            }
            // What every sink had passed has been removed.
            let segment = self.shared.segment_of(self.next).unwrap_or(end..end);
            self.next = self.next.max(segment.start);
            if segment.is_empty() {
                break;
            }
            let name = segment::name(segment.start);
            let result = self.read_segment(segment, bytes, &mut held, &mut records);
            if let Err(error) = result {
                self.scan = None;
                if !records.is_empty() {
                    return Ok(records);
                }
                self.shared.metrics.read_failures.inc();
                return Err(io::Error::new(error.kind(), format!("{name}: {error}")));
            }
        }
        Ok(records)
    }

    /// Reads on in one segment, up to its end or until there are `bytes` of records.
    fn read_segment(
        &mut self,
        segment: Range<u64>,
        bytes: usize,
        held: &mut usize,
        records: &mut Vec<Arc<Record>>,
    ) -> io::Result<()> {
        let (base, mut scan) = match self.scan.take() {
            Some((base, scan)) if base == segment.start => (base, scan),
            _ => match self.open(segment.start) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.lose(segment.start, segment.end);
                    return Ok(());
                }
                scan => (segment.start, scan?),
            },
        };
        while *held < bytes && self.next < segment.end {
            let gone_until = match scan.next(self.next, segment.end)? {
                Found::Record(frame, stored) => match frame.record(stored) {
                    Some(record) => {
                        *held += record.event.memory();
                        records.push(Arc::new(record));
                        self.next += 1;
                        if records.len().is_multiple_of(TURN) {
                            std::thread::yield_now();
                        }
                        continue;
                    }
                    None => frame.offset + 1,
                },
                Found::Damage(frame) => frame.offset,
                Found::End => segment.end,
            };
            self.lose(base, gone_until);
        }
        self.scan = (self.next < segment.end).then_some((base, scan));
        Ok(())
    }

    /// Opens a segment and passes over the records before the position.
    fn open(&self, base: u64) -> io::Result<Scan> {
        let mut scan = Scan::new(self.shared.disk.open(&segment::name(base))?)?;
        let mut expected = base;
        while expected < self.next {
            expected = match scan.next(expected, self.next)? {
                Found::Record(frame, _) => frame.offset + 1,
                Found::Damage(frame) => frame.offset,
                Found::End => break,
            };
        }
        Ok(scan)
    }

    /// Passes over records that cannot be read.
    fn lose(&mut self, base: u64, until: u64) {
        self.shared.lose(base, self.next..until);
        self.next = until;
    }
}
