//! The file of the next segment, made while the present one fills, or a former segment's.
//!
//! Space that is only reserved costs with every sync: the file system first has to write down, in its journal, that there is
//! something in it now, and waits there for whatever else is in the journal. In space that was written before, a sync is a write
//! and no more. So the file is filled with zeros, step by step, by the thread that has time for it. Where sinks keep up that is done
//! for the first two alone, and then they take turns: a segment that all sinks have passed becomes the next one. What is in it stays
//! there until something else is written over it, and its records have offsets that are never given again.

use super::disk::{Disk, DiskFile, STEP};
use super::segment;
use std::io;

/// Its name until it is a segment's; that of a former segment has its base behind it.
const NAME: &str = "spare";

/// A file that was written to its end, durable but for its name.
#[derive(Debug)]
pub struct Spare {
    name: String,
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
        remove(disk, NAME)?;
        let spare = Spare { name: NAME.to_owned(), file: disk.create(NAME, size)?, size };
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
    /// Takes the file of the segment at `base`, which nobody needs any more. It must not be begun before [`Disk::sync`]: after a crash
    /// the segment could be there again, with what has been written since.
    pub fn recycle(disk: &dyn Disk, base: u64, size: u64) -> io::Result<Self> {
        let (segment, name) = (segment::name(base), format!("{NAME}-{base:020}"));
        let file = disk.open(&segment)?;
        disk.rename(&segment, &name)?;
        Ok(Self { name, file, size })
    }

    /// Makes it the segment at `base`, in place of what an earlier attempt may have left there. Durable after [`Disk::sync`]; the
    /// name never is before the header.
    pub fn begin(self, disk: &dyn Disk, base: u64) -> io::Result<Box<dyn DiskFile>> {
        let begun = self.file.write_at(&segment::header(base), 0);
        let begun = begun.and_then(|()| self.file.sync()).and_then(|()| disk.rename(&self.name, &segment::name(base)));
        match begun {
            Ok(()) => Ok(self.file),
            Err(error) => {
                let _ = self.discard(disk);
                Err(error)
            }
        }
    }

    /// Removes it.
    pub fn discard(self, disk: &dyn Disk) -> io::Result<()> {
        remove(disk, &self.name)
    }
}

/// Removes what was left of one that was not finished.
pub fn remove_unfinished(disk: &dyn Disk) -> io::Result<()> {
    remove(disk, NAME)
}

/// Removes all that were left by another process.
pub fn remove_all(disk: &dyn Disk) -> io::Result<()> {
    let mut names = disk.list()?;
    names.retain(|name| name.strip_prefix(NAME).is_some_and(|rest| rest.is_empty() || rest.starts_with('-')));
    names.iter().try_for_each(|name| remove(disk, name))
}

fn remove(disk: &dyn Disk, name: &str) -> io::Result<()> {
    match disk.remove(name) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
