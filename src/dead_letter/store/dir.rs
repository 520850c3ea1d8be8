//! The files of a store: names, sizes, lock, marks, pruning.

use super::reader::Lines;
use crate::event::Arrival;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a change waits for another process that holds the lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// The directory of a store below the directory of a spool.
#[derive(Clone, Debug)]
pub struct Dir {
    spool: PathBuf,
    relative: PathBuf,
}

/// Bytes of a file and of its marks.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sizes {
    pub lines: u64,
    pub marks: u64,
}

pub(super) const LINES: &str = "ndjson";
pub(super) const MARKS: &str = "replayed";

impl Dir {
    /// `relative` below `spool`.
    pub fn new(spool: &Path, relative: impl Into<PathBuf>) -> Self {
        Self { spool: spool.to_owned(), relative: relative.into() }
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.spool.join(&self.relative)
    }

    /// Bytes on disk.
    pub fn size(&self) -> io::Result<u64> {
        Ok(size(&self.list()?))
    }

    /// Notes durably that these lines were replayed. Lines that have been removed meanwhile are left out.
    pub fn mark_replayed(&self, numbers: &[u64]) -> io::Result<()> {
        if !self.exists()? {
            return Ok(());
        }
        let _lock = self.lock()?;
        let files = self.list()?;
        let mut texts = BTreeMap::<u64, String>::new();
        for number in numbers {
            let Some((first, _)) = files.range(..=number).next_back() else { continue };
            let mark = serde_json::to_string(&Mark { number: *number, time: Arrival::now().to_string() })?;
            // The first line break ends a mark that a crash cut off.
            let text = texts.entry(*first).or_insert_with(|| "\n".into());
            text.push_str(&mark);
            text.push('\n');
        }
        for (first, text) in texts {
            let mut file = private().append(true).create(true).open(self.file(first, MARKS))?;
            file.write_all(text.as_bytes())?;
            file.sync_data()?;
        }
        self.sync()
    }

    /// Removes these lines, and returns how many of them were there.
    pub fn prune(&self, numbers: &BTreeSet<u64>) -> io::Result<u64> {
        let mut removed = 0;
        let firsts: Vec<u64> = self.list()?.into_keys().collect();
        for (index, first) in firsts.iter().enumerate() {
            let next = firsts.get(index + 1).copied().unwrap_or(u64::MAX);
            if numbers.range(*first..next).next().is_some() {
                let _lock = self.lock()?;
                removed += self.prune_file(*first, numbers)?;
            }
        }
        Ok(removed)
    }

    fn prune_file(&self, first: u64, numbers: &BTreeSet<u64>) -> io::Result<u64> {
        let path = self.file(first, LINES);
        let Some(mut lines) = Lines::open(&path, u64::MAX)? else { return Ok(0) };
        let rewritten = self.path().join("pruned");
        remove(&rewritten)?;
        let (mut removed, mut next, mut rest, mut removed_last) = (0, first, None, false);
        while let Some(line) = lines.read_next()? {
            let number = number(line);
            next = next.max(number.unwrap_or(next)) + 1;
            removed_last = number.is_some_and(|number| numbers.contains(&number));
            if removed_last {
                removed += 1;
                continue;
            }
            let rest = match &mut rest {
                Some(rest) => rest,
                none => none.insert(buffered(private().write(true).create_new(true).open(&rewritten)?)),
            };
            rest.write_all(line)?;
            rest.write_all(b"\n")?;
        }
        if removed_last && self.list()?.last_key_value().is_some_and(|(last, _)| *last == first) {
            // The name of the last file tells the next number.
            private().write(true).create_new(true).open(self.file(next, LINES))?;
        }
        match rest {
            Some(rest) => {
                rest.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
                std::fs::rename(&rewritten, &path)?;
            }
            None => self.remove(first)?,
        }
        self.sync()?;
        Ok(removed)
    }

    pub(super) fn file(&self, first: u64, extension: &str) -> PathBuf {
        self.path().join(format!("{first:020}.{extension}"))
    }

    /// The directories from below the spool down to this one.
    fn levels(&self) -> Vec<PathBuf> {
        let ancestors = self.relative.ancestors().filter(|path| !path.as_os_str().is_empty());
        let mut levels: Vec<_> = ancestors.map(|path| self.spool.join(path)).collect();
        levels.reverse();
        levels
    }

    fn exists(&self) -> io::Result<bool> {
        for level in self.levels() {
            match check_directory(&level) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                other => other?,
            }
        }
        Ok(true)
    }

    /// Creates it for its owner alone. The spool's directory has to be there.
    pub(super) fn create(&self) -> io::Result<()> {
        for level in self.levels() {
            match DirBuilder::new().mode(0o700).create(&level) {
                Ok(()) => level.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())?,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => check_directory(&level)?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Locks it until the file is dropped.
    pub(super) fn lock(&self) -> io::Result<File> {
        let file = private().write(true).create(true).open(self.path().join("lock"))?;
        let deadline = Instant::now() + LOCK_TIMEOUT;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        File::open(self.path())?.sync_all()
    }

    /// The files by their first number.
    pub(super) fn list(&self) -> io::Result<BTreeMap<u64, Sizes>> {
        let (mut files, mut marks) = (BTreeMap::<u64, Sizes>::new(), Vec::new());
        if !self.exists()? {
            return Ok(files);
        }
        for entry in std::fs::read_dir(self.path())? {
            let entry = entry?;
            let name = PathBuf::from(entry.file_name());
            let number = name.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
            let (Some(first), Some(extension)) = (number, name.extension()) else { continue };
            match entry.metadata() {
                Ok(found) if found.is_file() && extension == LINES => {
                    files.entry(first).or_default().lines = found.len();
                }
                Ok(found) if found.is_file() && extension == MARKS => marks.push((first, found.len())),
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        for (first, size) in marks {
            if let Some(sizes) = files.get_mut(&first) {
                sizes.marks = size;
            }
        }
        Ok(files)
    }

    pub(super) fn remove(&self, first: u64) -> io::Result<()> {
        remove(&self.file(first, LINES))?;
        remove(&self.file(first, MARKS))
    }

    /// The numbers of the replayed lines in a file.
    pub(super) fn marks(&self, first: u64) -> io::Result<HashSet<u64>> {
        let mut marks = HashSet::new();
        if let Some(mut lines) = Lines::open(&self.file(first, MARKS), u64::MAX)? {
            while let Some(line) = lines.read_next()? {
                marks.extend(number(line));
            }
        }
        Ok(marks)
    }
}

/// A line in a file of marks.
#[derive(Serialize)]
struct Mark {
    number: u64,
    time: String,
}

/// The number of a line, unless it is damaged.
pub(super) fn number(line: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    struct Number {
        number: u64,
    }
    serde_json::from_slice(line).ok().map(|Number { number }| number)
}

pub(super) fn size(files: &BTreeMap<u64, Sizes>) -> u64 {
    files.values().map(|sizes| sizes.lines + sizes.marks).sum()
}

fn check_directory(path: &Path) -> io::Result<()> {
    if std::fs::symlink_metadata(path)?.is_dir() {
        return Ok(());
    }
    let problem = format!("{} is not a directory; symbolic links are not followed", path.display());
    Err(io::Error::other(problem))
}

/// How to open a file that only its owner may read.
pub(super) fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).mode(0o600).custom_flags(OFlags::NOFOLLOW.bits() as i32);
    options
}

pub(super) fn buffered(file: File) -> BufWriter<File> {
    BufWriter::with_capacity(64 << 10, file)
}

pub(super) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
