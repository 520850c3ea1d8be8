//! A bounded directory of JSON lines.
//!
//! `NUMBER.ndjson` (twenty digits) holds the lines from that number on; every line has its number as the member `number`.
//! `NUMBER.replayed` names the lines of that file that were replayed. A process begins a file of its own before it writes, so a
//! line that a crash cut off is the last one of its file, without a line break. A process holds `lock` while it changes
//! anything; readers hold nothing. Symbolic links are not followed.

mod dir;
mod reader;

pub use dir::Dir;
pub use reader::{Found, Reader};

use dir::{LINES, Sizes, buffered, number, private, remove, size};
use reader::Lines;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};

/// A file takes this part of the bound, so that the oldest lines can be removed a file at a time.
const FILES: u64 = 8;

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

/// Adds lines to a store. The bridge has one of these for each store.
#[derive(Debug)]
pub struct Store {
    dir: Dir,
    /// How many bytes it may take.
    pub max_size: u64,
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

#[cfg(test)]
mod tests;
