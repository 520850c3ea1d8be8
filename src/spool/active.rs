//! The segment that is being written to, from its beginning to its end.

use super::disk::{Disk, DiskFile};
use super::segment;
use super::spare::Spare;
use std::io;

/// One is nearly full if no more than this part of it is left.
const NEARLY: u64 = 8;

/// See the module.
#[derive(Debug)]
pub struct Active {
    /// The offset of its first record.
    pub base: u64,
    /// Its file.
    pub file: Box<dyn DiskFile>,
    /// Its size in bytes.
    pub size: u64,
    /// Where the durable records end.
    pub position: u64,
    /// Whether somebody has been asked for the next one.
    pub asked: bool,
    /// Whether a write or a sync has failed, so that it may hold records which do not count.
    pub failed: bool,
}

impl Active {
    /// Begins a segment of `size` bytes, durably: in `spare`, which has that size, or else in a file that is made for it.
    pub fn begin(disk: &dyn Disk, base: u64, size: u64, spare: Option<Spare>) -> io::Result<Self> {
        let name = segment::name(base);
        let file = match spare {
            Some(spare) => spare.begin(disk, base),
            None => make(disk, &name, size).and_then(|file| {
                file.write_at(&segment::header(base), 0)?;
                file.sync()?;
                Ok(file)
            }),
        };
        match file.and_then(|file| disk.sync().map(|()| file)) {
            Ok(file) => Ok(Self { base, file, size, position: segment::HEADER as u64, asked: false, failed: false }),
            Err(error) => {
                let _ = disk.remove(&name);
                Err(error)
            }
        }
    }

    /// Where the records have to end, so that there is room for the footer.
    pub fn end(&self) -> u64 {
        self.size - segment::FOOTER as u64
    }

    /// Whether it has no record.
    pub fn is_empty(&self) -> bool {
        self.position == segment::HEADER as u64
    }

    /// Ends the file in front of which all below `next` are durable: as it is if it is nearly full, so that it can be another's; else cut
    /// off behind the last durable record; and one without records is removed. Returns the size that is left.
    pub fn seal(&self, disk: &dyn Disk, next: u64) -> io::Result<u64> {
        if self.is_empty() {
            disk.remove(&segment::name(self.base))?;
            disk.sync()?;
            return Ok(0);
        }
        let full = !self.failed && self.end() - self.position <= self.size / NEARLY;
        let end = if full { self.end() } else { self.position };
        if !full {
            self.file.resize(end)?;
        }
        self.file.write_at(&segment::footer(next), end)?;
        self.file.sync()?;
        Ok(end + segment::FOOTER as u64)
    }
}

/// An earlier attempt may have left a file that could not be removed: nothing in it was acknowledged.
fn make(disk: &dyn Disk, name: &str, size: u64) -> io::Result<Box<dyn DiskFile>> {
    match disk.create(name, size) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            disk.remove(name)?;
            disk.create(name, size)
        }
        other => other,
    }
}
