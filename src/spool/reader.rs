//! Reading the log: its end from the cache, the rest from disk.
//!
//! Corrupt bytes or a missing file are permanent: logged, counted, skipped. A disk that refuses to read proves nothing about its content:
//! it may be back in a moment, as a volume that is attached again, and the next event of a conversation must not overtake a lost one on a
//! guess. So a refused read is an error that the caller retries, while readiness, metrics and the log name the file. To give up the
//! content of a bad sector is for a person to decide, by replacing the file with a copy that leaves it out.

use super::Record;
use super::read_cache::fitting;
use super::segment::{self, Found, Scan};
use super::shared::Shared;
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use tokio::sync::watch;

/// How many bytes of records are read from disk at once.
const READ: usize = 256 << 10;

/// Reads records in the order of their offsets.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    end: watch::Receiver<u64>,
    /// The offset of the next record that was not read yet.
    next: u64,
    /// Records that were read from disk and not yet asked for.
    ready: VecDeque<Arc<Record>>,
    disk: Option<DiskReader>,
}

/// A way through the files.
#[derive(Debug)]
pub(super) struct DiskReader {
    shared: Arc<Shared>,
    /// The offset of the next record.
    next: u64,
    /// The segment being read and its base.
    scan: Option<(u64, Scan)>,
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, next: u64) -> Self {
        let end = shared.log.subscribe();
        Self { shared, end, next, ready: VecDeque::new(), disk: None }
    }

    /// The offset of the record to be read next.
    pub fn position(&self) -> u64 {
        self.ready.front().map_or(self.next, |first| first.offset)
    }

    /// Whether there is nothing more to read now.
    pub fn is_at_end(&self) -> bool {
        self.position() >= *self.end.borrow()
    }

    /// Goes on at `position` if that is further on: the records before it are skipped.
    pub fn advance(&mut self, position: u64) {
        if position > self.position() {
            self.next = position;
            self.ready.clear();
            self.disk = None;
        }
    }

    /// Waits until there is something to read.
    pub async fn ready(&mut self) {
        let next = self.position();
        // The sender lives as long as the spool that this reader holds on to.
        let _ = self.end.wait_for(|end| *end > next).await;
    }

    /// The next records, about `bytes` of them and at least one if there is an intact one; waits for the disk only for records that are
    /// not in memory. Lost records are left out. An error is about the disk and passes with it; the position stays.
    pub async fn read(&mut self, bytes: usize) -> io::Result<Vec<Arc<Record>>> {
        if let Some(records) = self.take_cached(bytes) {
            return Ok(records);
        }
        let mut disk = self.disk_reader();
        let reading = tokio::task::spawn_blocking(move || {
            let records = disk.read(READ);
            (disk, records)
        });
        let (disk, records) = reading.await.map_err(io::Error::other)?;
        self.take(disk, records)?;
        Ok(self.hand_out(bytes))
    }

    /// The next records, if they are in memory or there are none.
    pub(super) fn take_cached(&mut self, bytes: usize) -> Option<Vec<Arc<Record>>> {
        if !self.ready.is_empty() {
            return Some(self.hand_out(bytes));
        }
        let records = self.shared.log.cached(self.next, bytes);
        if let Some(last) = records.last() {
            (self.next, self.disk) = (last.offset + 1, None);
        }
        (!records.is_empty() || self.is_at_end()).then_some(records)
    }

    /// A reader of the disk from the position on.
    pub(super) fn disk_reader(&mut self) -> DiskReader {
        let disk = self.disk.take();
        disk.unwrap_or_else(|| DiskReader { shared: self.shared.clone(), next: self.next, scan: None })
    }

    /// Takes the records that were read. After a failure reading begins again where it began.
    pub(super) fn take(&mut self, disk: DiskReader, records: io::Result<Vec<Arc<Record>>>) -> io::Result<()> {
        self.ready = records?.into();
        self.next = disk.next;
        self.disk = Some(disk);
        Ok(())
    }

    /// The next records that are ready, about `bytes` of them.
    pub(super) fn hand_out(&mut self, bytes: usize) -> Vec<Arc<Record>> {
        let count = self.ready.iter().take_while(fitting(bytes)).count();
        self.ready.drain(..count).collect()
    }
}

impl DiskReader {
    /// The next records, until there are `bytes` of them or no more.
    pub(super) fn read(&mut self, bytes: usize) -> io::Result<Vec<Arc<Record>>> {
        let mut records = Vec::new();
        let mut left = bytes;
        while left > 0 {
            let end = self.shared.log.end();
            if self.next >= end {
                break;
            }
            // Segments that every sink had passed have been removed.
            let segment = self.shared.log.segment_of(self.next).unwrap_or(end..end);
            self.next = self.next.max(segment.start);
            if segment.is_empty() {
                break;
            }
            let name = segment::name(segment.start);
            if let Err(error) = self.read_segment(segment, &mut left, &mut records) {
                self.scan = None;
                if !records.is_empty() {
                    break;
                }
                self.shared.metrics.read_failures.inc();
                return Err(io::Error::new(error.kind(), format!("{name}: {error}")));
            }
        }
        Ok(records)
    }

    /// Reads on in one segment, up to its end or until no bytes are left to read.
    fn read_segment(
        &mut self,
        segment: Range<u64>,
        left: &mut usize,
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
        let mut indexed = false;
        while *left > 0 && self.next < segment.end {
            let position = scan.position();
            let lost_until = match scan.next(self.next, segment.end)? {
                Found::Record(frame, stored) => match frame.record(stored) {
                    Some(record) => {
                        if !std::mem::replace(&mut indexed, true) {
                            self.shared.log.add_position(base, record.offset, position);
                        }
                        *left = left.saturating_sub(record.event.memory());
                        records.push(Arc::new(record));
                        self.next += 1;
                        continue;
                    }
                    None => frame.offset + 1,
                },
                Found::Damage(next) => next,
                Found::End => segment.end,
            };
            self.lose(base, lost_until);
        }
        self.scan = (self.next < segment.end).then_some((base, scan));
        Ok(())
    }

    /// Opens a segment and passes over the records before the position.
    fn open(&self, base: u64) -> io::Result<Scan> {
        let (mut scan, mut expected) = self.shared.log.scan(base, self.next)?;
        while expected < self.next {
            expected = match scan.next(expected, self.next)? {
                Found::Record(frame, _) => frame.offset + 1,
                Found::Damage(next) => next,
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
