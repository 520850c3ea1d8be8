//! Looking at a spool without taking part: nothing is locked and nothing written, so it works beside a running bridge.

use super::disk::{Directory, Disk};
use super::recovery::{self, Recovered};
use super::segment::{self, Found, Scan};
use super::{Cursor, Record, cursor};
use std::io;
use std::ops::Range;
use std::path::Path;

/// What a spool holds at one moment.
#[derive(Debug)]
pub struct Inspection {
    disk: Directory,
    found: Recovered,
    /// The position of every sink that has a cursor, by name.
    pub cursors: Vec<(String, u64)>,
}

/// One segment file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Its file name.
    pub file: String,
    /// The offsets it holds.
    pub offsets: Range<u64>,
    /// Its size on disk.
    pub bytes: u64,
}

impl Inspection {
    /// Reads the extent of the spool in `path`.
    pub fn of(path: &Path) -> io::Result<Self> {
        let disk = Directory::read_only(path)?;
        let found = recovery::look(&disk)?;
        let mut cursors = Vec::new();
        for file in disk.list()? {
            if let Some(sink) = cursor::sink(&file) {
                cursors.push((sink.to_owned(), Cursor::read(&disk, sink)?));
            }
        }
        cursors.sort();
        Ok(Self { disk, found, cursors })
    }

    /// The segments in order.
    pub fn segments(&self) -> Vec<SegmentInfo> {
        let bases: Vec<u64> = self.found.segments.keys().copied().collect();
        let limits = bases.iter().skip(1).copied().chain([self.found.end]);
        let info = |((base, limit), segment): ((&u64, u64), &recovery::Segment)| SegmentInfo {
            file: segment::name(*base),
            offsets: *base..limit,
            bytes: segment.bytes,
        };
        bases.iter().zip(limits).zip(self.found.segments.values()).map(info).collect()
    }

    /// The offset after the last record.
    pub fn end(&self) -> u64 {
        self.found.end
    }

    /// Calls `each` with every intact record from offset `from` on, and returns the offsets of those that are damaged. A
    /// segment that the bridge removes meanwhile is left out.
    pub fn read(&self, from: u64, mut each: impl FnMut(Record) -> io::Result<()>) -> io::Result<Vec<Range<u64>>> {
        let mut damaged = Vec::new();
        for SegmentInfo { file, offsets, .. } in self.segments() {
            if offsets.end <= from {
                continue;
            }
            let mut scan = match self.disk.open(&file) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => Scan::new(other?)?,
            };
            let mut expected = offsets.start;
            while expected < offsets.end {
                let gone_until = match scan.next(expected, offsets.end)? {
                    Found::Record(frame, bytes) => {
                        expected = frame.offset + 1;
                        if let Some(record) = frame.record(bytes).filter(|record| record.offset >= from) {
                            each(record)?;
                        }
                        continue;
                    }
                    Found::Damage(frame) => frame.offset,
                    Found::End => offsets.end,
                };
                damaged.push(expected..gone_until);
                expected = gone_until;
            }
        }
        Ok(damaged)
    }
}
