//! The file of the next segment, made while the present one fills.
//!
//! Space that is only reserved costs with every sync: the file system first has to write down, in its journal, that there is
//! something in it now, and waits there for whatever else is in the journal. In space that was written before, a sync is a write
//! and no more. So the file is filled with zeros, step by step, by the thread that has time for it.

use super::disk::{Disk, DiskFile};
use super::segment;
use std::io;

/// Its name until it is a segment's.
const NAME: &str = "spare";
/// How much is written and synced at once: as little as keeps webhooks from waiting behind it.
const STEP: usize = 256 << 10;

/// A file full of zeros, durable but for its name.
#[derive(Debug)]
pub struct Spare {
    file: Box<dyn DiskFile>,
    /// Its size in bytes.
    pub size: u64,
}

/// The file while it is filled.
#[derive(Debug)]
pub struct Filling {
    spare: Spare,
    /// Up to where it is written.
    at: u64,
    zeros: Vec<u8>,
}

impl Filling {
    /// Makes the file, with its space reserved.
    pub fn begin(disk: &dyn Disk, size: u64) -> io::Result<Self> {
        remove(disk)?;
        let spare = Spare { file: disk.create(NAME, size)?, size };
        Ok(Self { spare, at: 0, zeros: vec![0; STEP.min(size as usize)] })
    }

    /// Goes on a step; gives the file back once that was the last one.
    pub fn step(mut self) -> io::Result<Result<Spare, Self>> {
        let left = self.spare.size - self.at;
        let step = self.zeros.get(..left.min(STEP as u64) as usize).unwrap_or_default();
        self.spare.file.write_at(step, self.at)?;
        self.spare.file.sync()?;
        self.at += step.len() as u64;
        Ok(if self.at < self.spare.size { Err(self) } else { Ok(self.spare) })
    }
}

impl Spare {
    /// Makes it the segment at `base`, in place of what an earlier attempt may have left there. Durable after [`Disk::sync`]; the
    /// name never is before the header.
    pub fn begin(self, disk: &dyn Disk, base: u64) -> io::Result<Box<dyn DiskFile>> {
        self.file.write_at(&segment::header(base), 0)?;
        self.file.sync()?;
        disk.rename(NAME, &segment::name(base))?;
        Ok(self.file)
    }
}

/// Removes the file if there is one.
pub fn remove(disk: &dyn Disk) -> io::Result<()> {
    match disk.remove(NAME) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
