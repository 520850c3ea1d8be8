//! One sink's way through the log: the tail from memory, the rest from disk.
//!
//! Two things are told apart. Bytes that can be read and are no record, and a file that is not there, are damage: that is final,
//! what they held is told and passed over. A disk that refuses to read proves nothing about what is on it. It may be back in a
//! moment, as a volume that is attached again; and what was acknowledged is not given up on a guess, nor may the next event of
//! a conversation overtake. So a refused read is tried again for as long as it takes, while readiness, metrics and the log name
//! the file. Giving up what is in a bad sector is for a person to decide, by replacing the file with a copy that leaves it out.

use super::segment::{self, Found, Scan};
use super::{Record, Shared};
use std::io;
use std::ops::Range;
use std::sync::Arc;
use tokio::sync::watch;

/// Reads records in the order of their offsets.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    end: watch::Receiver<u64>,
    next: u64,
    /// The segment being read from disk and its base.
    scan: Option<(u64, Scan)>,
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, next: u64) -> Self {
        let end = shared.end.subscribe();
        Self { shared, end, next, scan: None }
    }

    /// The offset of the record to be read next.
    pub fn position(&self) -> u64 {
        self.next
    }

    /// Goes on at `position` if that is further on: the records before it are skipped.
    pub fn advance(&mut self, position: u64) {
        if position > self.next {
            self.next = position;
            self.scan = None;
        }
    }

    /// Waits until there is something to read.
    pub async fn ready(&mut self) {
        let next = self.next;
        // The sender lives as long as the spool that this reader holds on to.
        let _ = self.end.wait_for(|end| *end > next).await;
    }

    /// The next records, about `bytes` of them and at least one if there is any; blocks the thread only for a record that
    /// has left the memory.
    pub async fn read(&mut self, bytes: usize) -> io::Result<Vec<Arc<Record>>> {
        let records = self.take_from_memory(bytes);
        if !records.is_empty() || self.next >= *self.end.borrow() {
            return Ok(records);
        }
        let mut moved =
            Self { shared: self.shared.clone(), end: self.end.clone(), next: self.next, scan: self.scan.take() };
        let (moved, records) = tokio::task::spawn_blocking(move || {
            let records = moved.read_from_disk(bytes);
            (moved, records)
        })
        .await
        .map_err(io::Error::other)?;
        *self = moved;
        records
    }

    pub(super) fn take_from_memory(&mut self, bytes: usize) -> Vec<Arc<Record>> {
        let mut records = Vec::new();
        let log = self.shared.log();
        let Some(first) = log.tail.front().map(|record| record.offset) else { return records };
        let Some(skip) = self.next.checked_sub(first) else { return records };
        let mut held = 0;
        for record in log.tail.iter().skip(skip as usize) {
            held += record.event.memory();
            if held > bytes && !records.is_empty() {
                break;
            }
            records.push(record.clone());
        }
        drop(log);
        if let Some(last) = records.last() {
            self.next = last.offset + 1;
            self.scan = None;
        }
        records
    }

    pub(super) fn read_from_disk(&mut self, bytes: usize) -> io::Result<Vec<Arc<Record>>> {
        let mut records = Vec::new();
        let mut held = 0;
        while held < bytes {
            let end = *self.end.borrow();
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
