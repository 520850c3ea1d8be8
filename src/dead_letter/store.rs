//! A bounded directory of JSON lines.
//!
//! `NUMBER.ndjson` (twenty digits) holds the lines from that number on; every line has its number as the member `number`.
//! `NUMBER.replayed` names the lines of that file that were replayed. A process begins a file of its own before it writes, so a
//! line that a crash cut off is the last one of its file, without a line break. A process holds `lock` while it changes
//! anything; readers hold nothing. Symbolic links are not followed.

use crate::event::Arrival;
use rustix::fs::OFlags;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Take, Write};
use std::marker::PhantomData;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A file takes this part of the bound, so that the oldest lines can be removed a file at a time.
const FILES: u64 = 8;
/// How long a change waits for another process that holds the lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// An entry of a store.
pub trait Line: Serialize + DeserializeOwned {
    /// Its number, unique within its store.
    fn number(&self) -> u64;
    /// Gives it the number that it is written with.
    fn set_number(&mut self, number: u64);
}

/// The reaction of a store to a line that does not fit into its bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtBound {
    /// Refuses the line.
    Refuse,
    /// Removes the oldest lines.
    RemoveOldest,
}

/// The directory of a store below the directory of a spool.
#[derive(Clone, Debug)]
pub struct Dir {
    spool: PathBuf,
    relative: PathBuf,
}

/// Bytes of a file and of its marks.
#[derive(Clone, Copy, Debug, Default)]
struct Sizes {
    lines: u64,
    marks: u64,
}

const LINES: &str = "ndjson";
const MARKS: &str = "replayed";

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

    fn file(&self, first: u64, extension: &str) -> PathBuf {
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
    fn create(&self) -> io::Result<()> {
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
    fn lock(&self) -> io::Result<File> {
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

    fn sync(&self) -> io::Result<()> {
        File::open(self.path())?.sync_all()
    }

    /// The files by their first number.
    fn list(&self) -> io::Result<BTreeMap<u64, Sizes>> {
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

    fn remove(&self, first: u64) -> io::Result<()> {
        remove(&self.file(first, LINES))?;
        remove(&self.file(first, MARKS))
    }

    /// The numbers of the replayed lines in a file.
    fn marks(&self, first: u64) -> io::Result<HashSet<u64>> {
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
fn number(line: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    struct Number {
        number: u64,
    }
    serde_json::from_slice(line).ok().map(|Number { number }| number)
}

fn size(files: &BTreeMap<u64, Sizes>) -> u64 {
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
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).mode(0o600).custom_flags(OFlags::NOFOLLOW.bits() as i32);
    options
}

fn buffered(file: File) -> BufWriter<File> {
    BufWriter::with_capacity(64 << 10, file)
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Adds lines to a store. The bridge has one of these for each store.
#[derive(Debug)]
pub struct Store {
    dir: Dir,
    max_size: u64,
    at_bound: AtBound,
    /// The number of the next line; `None` before the first line and after an error.
    next: Option<u64>,
    /// The first number of the file that lines are added to.
    active: Option<u64>,
    unsynced: BTreeMap<u64, File>,
    new_names: bool,
}

/// The result of [`Store::append`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Appended {
    /// Lines written, from the first on. The rest does not fit into the bound.
    pub written: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Lines left out because each alone exceeds the bound.
    pub too_large: u64,
    /// Older lines removed for them that had not been replayed.
    pub removed: u64,
}

impl Store {
    /// A store in `dir`, which is created with the first line, of up to `max_size` bytes.
    pub fn new(dir: Dir, max_size: u64, at_bound: AtBound) -> Self {
        Self { dir, max_size, at_bound, next: None, active: None, unsynced: BTreeMap::new(), new_names: false }
    }

    /// Changes how many bytes it may take.
    pub fn set_max_size(&mut self, max_size: u64) {
        self.max_size = max_size;
    }

    /// Adds lines, which survive the end of the process from then on, and a power cut after [`Self::sync`].
    pub fn append<T: Line>(&mut self, batch: &mut [T]) -> io::Result<Appended> {
        let result = self.write(batch);
        if result.is_err() {
            self.abandon();
        }
        result
    }

    fn write<T: Line>(&mut self, batch: &mut [T]) -> io::Result<Appended> {
        self.dir.create()?;
        let _lock = self.dir.lock()?;
        // Read anew each time: a command, or a person, may have removed files.
        let mut files = self.dir.list()?;
        // A file that begins there and has lines is another process's.
        let is_unused = |next: &u64| files.range(next..).all(|(_, sizes)| sizes.lines == 0);
        let mut next = match self.next.filter(is_unused) {
            Some(next) => next,
            None => self.first_unused(&files)?,
        };
        let mut appended = Appended::default();
        let mut out = None;
        for item in batch {
            item.set_number(next);
            let mut line = serde_json::to_vec(item)?;
            line.push(b'\n');
            let length = line.len() as u64;
            if length > self.max_size && self.at_bound == AtBound::RemoveOldest {
                appended.too_large += 1;
                continue;
            }
            if size(&files) + length > self.max_size {
                self.flush(out.take())?;
                if self.at_bound == AtBound::Refuse {
                    break;
                }
                appended.removed += self.remove_oldest(&mut files, self.max_size - length)?;
            }
            let has_space =
                |first: &u64| files.get(first).is_some_and(|sizes| sizes.lines + length <= self.max_size / FILES);
            // A file that is not the last one any more was pruned.
            let is_last = |first: &u64| files.keys().next_back() == Some(first);
            let active = match self.active.filter(has_space).filter(is_last) {
                Some(active) => active,
                None => {
                    self.flush(out.take())?;
                    out = Some(self.begin(next)?);
                    next
                }
            };
            let file = match &mut out {
                Some(file) => file,
                none => none.insert(buffered(private().append(true).open(self.dir.file(active, LINES))?)),
            };
            file.write_all(&line)?;
            files.entry(active).or_default().lines += length;
            next += 1;
            appended.written += 1;
            appended.bytes += length;
        }
        self.flush(out)?;
        self.next = Some(next);
        Ok(appended)
    }

    /// Makes all added lines durable.
    pub fn sync(&mut self) -> io::Result<()> {
        let files = std::mem::take(&mut self.unsynced);
        let mut result = files.values().try_for_each(File::sync_data);
        if result.is_ok() && self.new_names {
            result = self.dir.sync();
            self.new_names = result.is_err();
        }
        if result.is_err() {
            self.abandon();
        }
        result
    }

    /// After an error the file's content is unknown: the next line goes into a new file.
    fn abandon(&mut self) {
        self.next = None;
        self.active = None;
    }

    fn flush(&mut self, out: Option<BufWriter<File>>) -> io::Result<()> {
        if let (Some(out), Some(active)) = (out, self.active) {
            let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
            self.unsynced.insert(active, file);
        }
        Ok(())
    }

    fn begin(&mut self, first: u64) -> io::Result<BufWriter<File>> {
        let path = self.dir.file(first, LINES);
        // A file of this name has no whole line.
        remove(&path)?;
        let file = private().append(true).create_new(true).open(path)?;
        self.new_names = true;
        self.active = Some(first);
        Ok(buffered(file))
    }

    /// Removes the oldest files until the rest takes `target` bytes at most; returns how many lines that cost which had not
    /// been replayed.
    fn remove_oldest(&mut self, files: &mut BTreeMap<u64, Sizes>, target: u64) -> io::Result<u64> {
        let mut lost = 0;
        while size(files) > target {
            let Some((first, _)) = files.pop_first() else { break };
            let mut count = 0u64;
            if let Some(mut lines) = Lines::open(&self.dir.file(first, LINES), u64::MAX)? {
                while lines.read_next()?.is_some() {
                    count += 1;
                }
            }
            lost += count.saturating_sub(self.dir.marks(first)?.len() as u64);
            self.dir.remove(first)?;
            self.unsynced.remove(&first);
        }
        Ok(lost)
    }

    /// The number behind that of the last line that is there.
    fn first_unused(&self, files: &BTreeMap<u64, Sizes>) -> io::Result<u64> {
        let Some((first, _)) = files.last_key_value() else { return Ok(0) };
        let mut next = *first;
        if let Some(mut lines) = Lines::open(&self.dir.file(*first, LINES), u64::MAX)? {
            while let Some(line) = lines.read_next()? {
                next = next.max(number(line).unwrap_or(next)) + 1;
            }
        }
        Ok(next)
    }
}

/// The whole lines of one file.
#[derive(Debug)]
struct Lines {
    file: BufReader<Take<File>>,
    line: Vec<u8>,
}

impl Lines {
    /// Those within the first `length` bytes; `None` if there is no such file.
    fn open(path: &Path, length: u64) -> io::Result<Option<Self>> {
        match private().open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            file => Ok(Some(Self { file: BufReader::with_capacity(64 << 10, file?.take(length)), line: Vec::new() })),
        }
    }

    fn read_next(&mut self) -> io::Result<Option<&[u8]>> {
        self.line.clear();
        self.file.read_until(b'\n', &mut self.line)?;
        Ok(self.line.strip_suffix(b"\n"))
    }
}

/// An entry read back.
#[derive(Clone, Debug, PartialEq)]
pub struct Found<T> {
    /// The entry.
    pub item: T,
    /// Whether it was replayed.
    pub replayed: bool,
    /// Its line in the file, without the line break.
    pub line: Vec<u8>,
}

/// The lines that a store has at one moment, oldest first. Lines added while they are read are left out: a message that is
/// replayed may be refused once more, and would be met again and again.
#[derive(Debug)]
pub struct Reader<T> {
    dir: Dir,
    files: VecDeque<(u64, Sizes)>,
    current: Option<(Lines, HashSet<u64>)>,
    damaged: u64,
    item: PhantomData<T>,
}

impl<T: Line> Reader<T> {
    /// The lines in `dir`.
    pub fn new(dir: Dir) -> io::Result<Self> {
        Ok(Self { files: dir.list()?.into_iter().collect(), dir, current: None, damaged: 0, item: PhantomData })
    }

    /// The next entry. Files that are removed meanwhile are left out.
    pub fn read_next(&mut self) -> io::Result<Option<Found<T>>> {
        loop {
            if let Some((lines, marks)) = &mut self.current {
                while let Some(line) = lines.read_next()? {
                    match serde_json::from_slice::<T>(line) {
                        Ok(item) => {
                            let replayed = marks.contains(&item.number());
                            return Ok(Some(Found { item, replayed, line: line.to_vec() }));
                        }
                        Err(_) => self.damaged += 1,
                    }
                }
            }
            let Some((first, sizes)) = self.files.pop_front() else { return Ok(None) };
            let marks = self.dir.marks(first)?;
            self.current = Lines::open(&self.dir.file(first, LINES), sizes.lines)?.map(|lines| (lines, marks));
        }
    }

    /// How many unreadable lines it has met.
    pub fn damaged(&self) -> u64 {
        self.damaged
    }
}

#[cfg(test)]
mod tests;
