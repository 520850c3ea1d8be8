//! What the spool asks of storage, small enough for a test to stand in for the disk.

#[cfg(any(test, fuzzing))]
pub mod simulated;

use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// One flat directory of files.
pub trait Disk: Debug + Send + Sync {
    /// The names of all files.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Makes a new file of `size` bytes, all zero, with its space reserved. Durable after [`Disk::sync`].
    fn create(&self, name: &str, size: u64) -> io::Result<Box<dyn DiskFile>>;
    /// Opens a file for reading and writing.
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;
    /// Removes a file. Durable after [`Disk::sync`].
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Gives a file another name. Durable after [`Disk::sync`].
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Makes creations, removals and renames durable.
    fn sync(&self) -> io::Result<()>;
}

/// One file of a [`Disk`].
pub trait DiskFile: Debug + Send + Sync {
    /// Its size in bytes.
    fn size(&self) -> io::Result<u64>;
    /// Reads until `buffer` is full or the file ends; returns the number of bytes read.
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize>;
    /// Writes all of `bytes`.
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()>;
    /// Cuts the file off, or extends it with zeros.
    fn resize(&self, size: u64) -> io::Result<()>;
    /// Makes content and size durable.
    fn sync(&self) -> io::Result<()>;
}

/// How much is written, or given back, at once: as little as keeps webhooks from waiting behind it.
pub const STEP: usize = 256 << 10;

/// Gives back the space of a file whose name is durably gone. What the system frees along with the name, it frees without letting anybody
/// else have the processor: some milliseconds for a segment.
pub fn free(file: &dyn DiskFile) -> io::Result<()> {
    let mut size = file.size()?;
    while size > 0 {
        size = size.saturating_sub(STEP as u64);
        file.resize(size)?;
        std::thread::yield_now();
    }
    Ok(())
}

/// A directory of the operating system, locked against a second process for as long as this value lives.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    handle: File,
    /// Held by the process that uses the spool; who only looks at it has none.
    _lock: Option<File>,
}

/// Why a directory cannot serve as a spool.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds it.
    #[error(
        "spool {} is in use by another process (pid {owner}); give every bridge a spool of its own, or stop the other one",
        path.display()
    )]
    InUse {
        /// The spool's directory.
        path: PathBuf,
        /// What the owner wrote into the lock file.
        owner: String,
    },
    /// It cannot be made, opened or written.
    #[error("spool {}: {source}; the directory must be on a local file system and writable by this user", path.display())]
    Unusable {
        /// The spool's directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Directory {
    /// Opens `path` to look at it, whoever uses it.
    pub fn read_only(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), handle: File::open(path)?, _lock: None })
    }

    /// Opens `path`, which is made if it is not there, for this process alone. Its files can be read by the owner only.
    pub fn lock(path: &Path) -> Result<Self, LockError> {
        let unusable = |source| LockError::Unusable { path: path.to_owned(), source };
        make_private(path).map_err(unusable)?;
        let lock_path = path.join("lock");
        let lock = private().create(true).truncate(false).open(&lock_path).map_err(unusable)?;
        if let Err(error) = rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            if error != rustix::io::Errno::WOULDBLOCK {
                return Err(unusable(error.into()));
            }
            let owner = std::fs::read_to_string(&lock_path).unwrap_or_default();
            return Err(LockError::InUse { path: path.to_owned(), owner: owner.trim().to_owned() });
        }
        // Only for people to read: on a full disk the spool opens without.
        let pid = format!("{}\n", std::process::id());
        let _ = lock.write_all_at(pid.as_bytes(), 0).and_then(|()| lock.set_len(pid.len() as u64));
        let handle = File::open(path).map_err(unusable)?;
        Ok(Self { path: path.to_owned(), handle, _lock: Some(lock) })
    }
}

/// Makes a directory that only this user may enter, and makes every new name on the way to it durable.
fn make_private(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let above = path.parent().filter(|above| !above.as_os_str().is_empty());
    above.map_or(Ok(()), make_private)?;
    let mut builder = std::fs::DirBuilder::new();
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)?;
    File::open(above.unwrap_or(Path::new(".")))?.sync_all()
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

impl Disk for Directory {
    fn list(&self) -> io::Result<Vec<String>> {
        let names =
            std::fs::read_dir(&self.path)?.map(|entry| Ok(entry?.file_name().into_string().unwrap_or_default()));
        names.filter(|name| name.as_ref().map_or(true, |name| !name.is_empty())).collect()
    }

    fn create(&self, name: &str, size: u64) -> io::Result<Box<dyn DiskFile>> {
        let file = private().create_new(true).open(self.path.join(name))?;
        if size > 0 {
            let reserved = match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, size) {
                // Some file systems cannot reserve space; the spool then only loses speed.
                Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => file.set_len(size),
                other => other.map_err(io::Error::from),
            };
            if let Err(error) = reserved {
                let _ = std::fs::remove_file(self.path.join(name));
                return Err(error);
            }
        }
        Ok(Box::new(file))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let path = self.path.join(name);
        Ok(Box::new(if self._lock.is_some() { private().open(path)? } else { File::open(path)? }))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path.join(from), self.path.join(to))
    }

    fn sync(&self) -> io::Result<()> {
        self.handle.sync_all()
    }
}

impl DiskFile for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match FileExt::read_at(self, rest, at + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.write_all_at(bytes, at)
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        self.set_len(size)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}
