//! Reading a spool from another process: nothing is locked and nothing written, so it works beside a running bridge.

use super::disk::{Directory, Disk};
use super::recovery::{self, Proven, Recovered};
use super::segment::{self, Scan};
use super::segments::{Segment, with_offsets};
use super::{Record, cursor, log};
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::Path;

/// The content of a spool at one moment.
#[derive(Debug)]
pub struct Inspection {
    disk: Box<dyn Disk>,
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
        Self::on(Box::new(Directory::read_only(path)?))
    }

    /// Reads the extent of the spool on any disk.
    fn on(disk: Box<dyn Disk>) -> io::Result<Self> {
        let mut cursors = Vec::new();
        for file in disk.list()? {
            if let Some(sink) = cursor::sink(&file) {
                // One that does not exist was removed since it was listed.
                cursors.extend(cursor::peek(&*disk, &file)?.map(|position| (sink.to_owned(), position)));
            }
        }
        cursors.sort();
        let settled = cursors.iter().map(|(_, position)| *position).max().unwrap_or_default();
        let acknowledged = cursor::peek(&*disk, log::ACKNOWLEDGED)?.unwrap_or_default().max(settled);
        // A missing segment looks like one that the bridge removes meanwhile.
        let proven = Proven { removed: None, acknowledged };
        let Recovered { segments, end, .. } = recovery::recover(&*disk, recovery::list(&*disk)?, proven, false)?;
        Ok(Self { disk, segments, end, cursors })
    }

    /// The sinks that have a position in the spool in `path`.
    pub fn sinks(path: &Path) -> io::Result<Vec<String>> {
        let files = Directory::read_only(path)?.list()?;
        Ok(files.iter().filter_map(|file| cursor::sink(file)).map(str::to_owned).collect())
    }

    /// The segments in order.
    pub fn segments(&self) -> Vec<SegmentInfo> {
        let info = |(offsets, segment): (Range<u64>, &Segment)| SegmentInfo {
            file: segment::name(offsets.start),
            offsets,
            bytes: segment.bytes,
        };
        with_offsets(&self.segments, self.end).map(info).collect()
    }

    /// The offset after the last record.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Calls `each` with every intact record from offset `from` on, and returns the offsets of the damaged ones. A segment that the
    /// bridge removes meanwhile is left out, or the rest of it.
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
            damaged.extend(scan.read_all(offsets, |frame, bytes| {
                let record = frame.record(bytes).filter(|record| record.offset >= from);
                record.map_or(Ok(()), &mut each)
            })?);
        }
        Ok(damaged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Arrival, Event, EventId};
    use crate::metrics::SpoolMetrics;
    use crate::spool::disk::DiskFile;
    use crate::spool::{Config, Spool};
    use std::sync::Arc;

    /// A directory that also lists names which cannot be opened, like those of files that were removed in between.
    #[derive(Debug)]
    struct Changing(Directory);

    impl Disk for Changing {
        fn list(&self) -> io::Result<Vec<String>> {
            let removed = ["cursor-removed".to_owned(), segment::name(7), segment::name(5000)];
            Ok(self.0.list()?.into_iter().chain(removed).collect())
        }
        fn create(&self, _: &str, _: u64) -> io::Result<Arc<dyn DiskFile>> {
            unreachable!("nothing is written")
        }
        fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
            self.0.open(name)
        }
        fn remove(&self, _: &str) -> io::Result<()> {
            unreachable!("nothing is written")
        }
        fn rename(&self, _: &str, _: &str) -> io::Result<()> {
            unreachable!("nothing is written")
        }
        fn sync(&self) -> io::Result<()> {
            unreachable!("nothing is written")
        }
        fn exists(&self) -> bool {
            true
        }
    }

    #[tokio::test]
    async fn files_that_are_removed_meanwhile_are_left_out() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let config = Config { path: path.into(), ..Config::default() };
        let event = |number: u128| Event::restore("{}", EventId(number.to_be_bytes()), "call", Arrival::now());
        let spool = Spool::open(&config, &["analytics"], SpoolMetrics::default()).unwrap();
        spool.append((0..1000).map(event).collect::<Vec<_>>()).await.unwrap();
        let inspect = || Inspection::on(Box::new(Changing(Directory::read_only(path).unwrap()))).unwrap();
        for closed in [false, true] {
            let inspection = inspect();
            let found = (inspection.cursors.len(), inspection.segments().len(), inspection.end());
            assert_eq!(found, (1, 1, 1000));
            let mut intact = 0;
            let damaged = inspection.read(0, |_| {
                intact += 1;
                Ok(())
            });
            assert_eq!((intact, damaged.unwrap()), (1000, vec![]));
            if !closed {
                spool.close();
            }
        }
        let inspection = inspect();
        std::fs::remove_file(path.join(segment::name(0))).unwrap();
        assert_eq!(inspection.read(0, |_| panic!("it is removed")).unwrap(), vec![]);
        assert_eq!((inspect().segments().len(), inspect().end()), (0, 1000));
    }
}
