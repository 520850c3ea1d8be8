//! The file of the next segment, made while the present one fills.
//!
//! Space that is only reserved costs with every sync: the file system first has to write down, in its journal, that there is
//! something in it now, and waits there for whatever else is in the journal. In space that was written before, a sync is a write
//! and no more. So the file is filled with zeros, by the thread that has time for it.

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

impl Spare {
    /// Makes the file. Nothing is left of it if that fails.
    pub fn make(disk: &dyn Disk, size: u64) -> io::Result<Self> {
        remove(disk)?;
        let file = disk.create(NAME, size)?;
        match fill(&*file, size) {
            Ok(()) => Ok(Self { file, size }),
            Err(error) => {
                let _ = remove(disk);
                Err(error)
            }
        }
    }

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

fn fill(file: &dyn DiskFile, size: u64) -> io::Result<()> {
    let zeros = vec![0; STEP];
    let mut at = 0;
    while at < size {
        let step = zeros.get(..(size - at).min(STEP as u64) as usize).unwrap_or_default();
        file.write_at(step, at)?;
        file.sync()?;
        at += step.len() as u64;
    }
    Ok(())
}
