//! Looking at a spool without taking part: nothing is locked and nothing written, so it works beside a running bridge.

use super::disk::{Directory, Disk};
use super::recovery::{self, Segment};
use super::segment::{self, Found, Scan};
use super::{Record, cursor};
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::Path;

/// What a spool holds at one moment.
#[derive(Debug)]
pub struct Inspection {
    disk: Directory,
    segments: BTreeMap<u64, Segment>,
    end: u64,
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
        let mut cursors = Vec::new();
        for file in disk.list()? {
            let Some(sink) = cursor::sink(&file) else { continue };
            match cursor::peek(&disk, sink) {
                // Removed since it was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                position => cursors.push((sink.to_owned(), position?)),
            }
        }
        cursors.sort();
        let settled = cursors.iter().map(|(_, position)| *position).max().unwrap_or_default();
        let mut segments = recovery::list(&disk)?;
        let end = recovery::look(&disk, &mut segments, settled)?;
        Ok(Self { disk, segments, end, cursors })
    }

    /// The sinks that have a position in the spool in `path`.
    pub fn sinks(path: &Path) -> io::Result<Vec<String>> {
        let files = Directory::read_only(path)?.list()?;
        Ok(files.iter().filter_map(|file| cursor::sink(file)).map(str::to_owned).collect())
    }

    /// The segments in order.
    pub fn segments(&self) -> Vec<SegmentInfo> {
        let limits = self.segments.keys().skip(1).copied().chain([self.end]);
        let info = |((base, segment), limit): ((&u64, &Segment), u64)| SegmentInfo {
            file: segment::name(*base),
            offsets: *base..limit,
            bytes: segment.bytes,
        };
        self.segments.iter().zip(limits).map(info).collect()
    }

    /// The offset after the last record.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Calls `each` with every intact record from offset `from` on, and returns the offsets of those that are damaged. A
    /// segment that the bridge removes meanwhile is left out, or what is left of it.
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
                    // What is missing from a file that has lost its name was given back, or is another segment's.
                    _ if self.is_removed(&file)? => break,
                    Found::Damage(frame) => frame.offset,
                    Found::End => offsets.end,
                };
                damaged.push(expected..gone_until);
                expected = gone_until;
            }
        }
        Ok(damaged)
    }

    fn is_removed(&self, file: &str) -> io::Result<bool> {
        match self.disk.open(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            other => other.map(|_| false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Arrival, Event, EventId};
    use crate::metrics::SpoolMetrics;
    use crate::spool::{Config, Spool};

    #[test]
    fn what_is_removed_while_it_is_looked_at_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        // A name that is listed and cannot be opened, as one is that was removed in between.
        for name in ["cursor-gone".to_owned(), segment::name(7)] {
            std::os::unix::fs::symlink("nowhere", dir.path().join(name)).unwrap();
        }
        let inspection = Inspection::of(dir.path()).unwrap();
        assert_eq!((inspection.cursors.len(), inspection.segments().len(), inspection.end()), (0, 0, 0));
        let disk = Directory::read_only(dir.path()).unwrap();
        let mut segments = BTreeMap::from([(7, Segment::default())]);
        assert_eq!(recovery::look(&disk, &mut segments, 3).unwrap(), 7);
        assert!(segments.is_empty());
    }

    #[tokio::test]
    async fn what_is_removed_while_it_is_read_is_no_damage() {
        for removed in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let config = Config { path: dir.path().into(), ..Config::default() };
            let events: Vec<_> = (0..1000u128)
                .map(|number| {
                    Event::restore("{}", EventId(number.to_be_bytes()), &format!("call-{number}"), Arrival::now())
                })
                .collect();
            let spool = Spool::open(&config, &["analytics"], SpoolMetrics::default()).unwrap();
            spool.append(events).await.unwrap();
            drop(spool);
            let inspection = Inspection::of(dir.path()).unwrap();
            let mut intact = 0;
            let damaged = inspection.read(0, |_| {
                intact += 1;
                let path = dir.path().join(segment::name(0));
                if let Ok(file) = std::fs::File::options().write(true).open(&path) {
                    file.set_len(0)?;
                    if removed {
                        std::fs::remove_file(&path)?;
                    }
                }
                Ok(())
            });
            let damaged: u64 = damaged.unwrap().iter().map(|gone| gone.end - gone.start).sum();
            assert!(intact > 0 && intact < 1000, "{intact} had been read ahead");
            assert_eq!(damaged, if removed { 0 } else { 1000 - intact });
        }
    }
}
