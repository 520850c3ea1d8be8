//! The operations that the spool needs from storage: few enough for a simulated disk.

#[cfg(test)]
pub mod simulated;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use std::fmt::Debug;
use std::fs::{File, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One flat directory of files.
pub trait Disk: Debug + Send + Sync {
    /// The names of all files.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Makes a new file of `size` bytes, all zero, with its space reserved. Durable after [`Disk::sync`].
    fn create(&self, name: &str, size: u64) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens a file for reading and writing.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Removes a file. Durable after [`Disk::sync`].
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Gives a file another name, in place of a file of that name. Durable after [`Disk::sync`].
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Makes creations, removals and renames durable.
    fn sync(&self) -> io::Result<()>;
    /// Whether the directory and its lock still exist, or were deleted under the running process.
    fn exists(&self) -> bool;
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
    /// Whether the file still has a name. An open file without one is lost when the process ends.
    fn has_name(&self) -> io::Result<bool>;
}

/// `Ok` if the file is not there in the first place.
pub fn missing_is_ok(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A directory of the operating system, locked against a second process for as long as this value lives.
///
/// Files are opened relative to the open directory, and no symbolic link is followed: in a directory that others can write, a link could
/// point the spool at any file of this user.
#[derive(Debug)]
pub struct Directory {
    handle: File,
    /// Held by the process that uses the spool; a process that only inspects the spool has none.
    lock: Option<File>,
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
        /// The content of the lock file: the owner's process id.
        owner: String,
    },
    /// It cannot be made, opened or written.
    #[error("spool {}: {source}; the directory must be on a local file system and writable by this user", path.display())]
    Unusable {
        /// The spool's directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl Directory {
    /// Opens `path` to inspect it, whether or not a bridge uses it.
    pub fn read_only(path: &Path) -> io::Result<Self> {
        Ok(Self { handle: File::open(path)?, lock: None })
    }

    /// Opens `path`, which is made if it does not exist, for this process alone. Only the owner can read its files.
    pub fn lock(path: &Path) -> Result<Self, LockError> {
        let unusable = |source| LockError::Unusable { path: path.to_owned(), source };
        make_private(path).map_err(unusable)?;
        let handle = File::open(path).map_err(unusable)?;
        let mode = handle.metadata().map_err(unusable)?.mode() & 0o7777;
        if mode & 0o022 != 0 {
            tracing::warn!(
                path = %path.display(),
                mode = format!("{mode:o}"),
                "other users can write to the spool directory and could remove or replace its files; use chmod 700"
            );
        }
        let lock = open_at(&handle, "lock", OFlags::RDWR | OFlags::CREATE).map_err(unusable)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::Error(error)) => return Err(unusable(error)),
            Err(TryLockError::WouldBlock) => {
                let mut owner = String::new();
                let _ = (&lock).read_to_string(&mut owner);
                return Err(LockError::InUse { path: path.to_owned(), owner: owner.trim().to_owned() });
            }
        }
        // For people to read. A full disk must not keep the spool from opening, so a failure is ignored.
        let pid = format!("{}\n", std::process::id());
        let _ = lock.write_all_at(pid.as_bytes(), 0).and_then(|()| lock.set_len(pid.len() as u64));
        Ok(Self { handle, lock: Some(lock) })
    }
}

/// Makes a directory that only this user may enter, and makes every new name on the way to it durable.
fn make_private(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.map_or(Ok(()), make_private)?;
    let mut builder = std::fs::DirBuilder::new();
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)?;
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

fn open_at(directory: &File, name: &str, flags: OFlags) -> io::Result<File> {
    let mode = Mode::RUSR | Mode::WUSR;
    match rustix::fs::openat(directory, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, mode) {
        Ok(file) => Ok(file.into()),
        Err(Errno::LOOP) => {
            Err(io::Error::other(format!("{name} is a symbolic link, which the spool does not follow; remove it")))
        }
        Err(error) => Err(error.into()),
    }
}

impl Disk for Directory {
    fn list(&self) -> io::Result<Vec<String>> {
        let entries = rustix::fs::Dir::read_from(&self.handle)?;
        let names = entries.map(|entry| Ok(entry?.file_name().to_str().unwrap_or_default().to_owned()));
        names.filter(|name| !matches!(name.as_deref(), Ok("" | "." | ".."))).collect()
    }

    fn create(&self, name: &str, size: u64) -> io::Result<Arc<dyn DiskFile>> {
        let file = open_at(&self.handle, name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)?;
        if size > 0 {
            let reserved = match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, size) {
                // Some file systems cannot reserve space; the spool then only loses speed.
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => file.set_len(size),
                other => other.map_err(io::Error::from),
            };
            if let Err(error) = reserved {
                let _ = self.remove(name);
                return Err(error);
            }
        }
        Ok(Arc::new(file))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let access = if self.lock.is_some() { OFlags::RDWR } else { OFlags::RDONLY };
        Ok(Arc::new(open_at(&self.handle, name, access)?))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.handle, name, AtFlags::empty())?)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.handle, from, &self.handle, to)?)
    }

    fn sync(&self) -> io::Result<()> {
        self.handle.sync_all()
    }

    fn exists(&self) -> bool {
        // Some file systems count one link of a directory or none at all, whatever happens to it; its lock is a file.
        self.lock.as_ref().is_none_or(|lock| lock.has_name().unwrap_or(true))
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

    fn has_name(&self) -> io::Result<bool> {
        Ok(self.metadata()?.nlink() > 0)
    }
}
