//! The files of bodies that could not be decoded: a row of them, of which the oldest is removed when there are too many bodies
//! or bytes.
//!
//! `dead-letters/undecodable/bodies-<number>.ndjson` holds bodies from that number on, twenty decimal digits, one JSON object a
//! line; `bodies-<number>.replayed` names those that were replayed. Numbers are not used twice.

mod kept;

pub use kept::{Kept, Refused};

use super::Found;
use super::lines::{self, Lines};
use crate::event::Arrival;
use bytesize::ByteSize;
use kept::Line;
use serde::Deserialize;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Room comes free in parts of the bounds.
const FILES: u64 = 8;

/// `[ingress.undecodable]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How many bytes the bodies may take on disk; 0 keeps none.
    pub max_size: ByteSize,
    /// How many bodies are kept; 0 keeps none.
    pub max_count: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { max_size: ByteSize::mib(16), max_count: 10_000 }
    }
}

/// What became of bodies that were to be kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Written, not synced yet,
    pub added: u64,
    /// and what they take on disk.
    pub bytes: u64,
    /// Larger than all the files together may be.
    pub too_large: u64,
    /// Not written because of an error.
    pub failed: u64,
    /// Older ones that were removed without having been replayed.
    pub oldest: u64,
}

/// Adds bodies; there is one of these for each spool.
#[derive(Debug)]
pub struct Bodies {
    dir: PathBuf,
    max_size: u64,
    max_count: u64,
    files: VecDeque<Part>,
    next: u64,
    /// Whether the last one of the files is being added to. One that an earlier process left may end in a torn line.
    active: bool,
    /// The files that were written to since they were last taken to be synced, by their first number.
    unsynced: BTreeMap<u64, File>,
    /// Whether there are new ones among them.
    new_names: bool,
}

/// One file.
#[derive(Debug)]
struct Part {
    first: u64,
    bytes: u64,
    count: u64,
}

fn directory(spool: &Path) -> PathBuf {
    spool.join(super::DIRECTORY).join("undecodable")
}

fn path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("bodies-{first:020}.ndjson"))
}

fn marks_path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("bodies-{first:020}.replayed"))
}

/// The numbers in the names of the files with this ending, in order.
fn numbers(dir: &Path, ending: &str) -> io::Result<Vec<u64>> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut numbers = Vec::new();
    for entry in entries {
        let name = entry?.file_name().into_string().unwrap_or_default();
        numbers.extend(name.strip_prefix("bodies-").and_then(|name| name.strip_suffix(ending)?.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

impl Bodies {
    /// Takes stock of what is kept beside the spool in `spool`.
    pub fn open(spool: &Path, bounds: &Config) -> io::Result<Self> {
        let mut bodies = Self {
            dir: directory(spool),
            max_size: bounds.max_size.as_u64(),
            max_count: bounds.max_count as u64,
            files: VecDeque::new(),
            next: 0,
            active: false,
            unsynced: BTreeMap::new(),
            new_names: false,
        };
        bodies.take_stock()?;
        Ok(bodies)
    }

    fn take_stock(&mut self) -> io::Result<()> {
        self.files.clear();
        self.active = false;
        for first in numbers(&self.dir, ".ndjson")? {
            let path = path(&self.dir, first);
            let part = Part { first, bytes: std::fs::metadata(&path)?.len(), count: lines::count(&path)? };
            self.next = self.next.max(part.first + part.count);
            // Nothing but a line that a crash cut off.
            if part.count == 0 { remove(&path)? } else { self.files.push_back(part) }
        }
        for orphan in numbers(&self.dir, ".replayed")? {
            if !self.files.iter().any(|part| part.first == orphan) {
                remove(&marks_path(&self.dir, orphan))?;
            }
        }
        Ok(())
    }

    /// Adds bodies, which survive the end of the process from then on, and removes the oldest ones for them as far as the
    /// bounds demand.
    pub fn append(&mut self, batch: &[Refused<'_>]) -> (Written, io::Result<()>) {
        let mut written = Written::default();
        let result = self.write(batch, &mut written);
        if result.is_err() {
            written.failed = batch.len() as u64 - written.added - written.too_large;
            self.abandon();
        }
        (written, result)
    }

    fn write(&mut self, batch: &[Refused<'_>], written: &mut Written) -> io::Result<()> {
        let mut out = self.open_active()?;
        let mut pending = 0;
        for refused in batch {
            let line = Line::new(self.next, refused);
            let length = line.length()?;
            if length > self.max_size {
                written.too_large += 1;
                continue;
            }
            written.oldest += self.make_room(length)?;
            if out.is_none() || self.is_full(length) {
                self.end(out.take())?;
                written.added += std::mem::take(&mut pending);
                out = Some(self.begin()?);
            }
            if let (Some(out), Some(part)) = (&mut out, self.files.back_mut()) {
                serde_json::to_writer(&mut *out, &line)?;
                out.write_all(b"\n")?;
                part.bytes += length;
                part.count += 1;
                self.next += 1;
                written.bytes += length;
                pending += 1;
            }
        }
        self.end(out)?;
        written.added += pending;
        Ok(())
    }

    /// What was added and is not durable yet. From now on that is the caller's concern.
    pub fn take_unsynced(&mut self) -> Unsynced {
        let names = std::mem::take(&mut self.new_names).then(|| self.dir.clone());
        Unsynced { files: std::mem::take(&mut self.unsynced), names }
    }

    /// Hands everything that was written to the system. The file is the last one, unless that was removed meanwhile.
    fn end(&mut self, out: Option<BufWriter<File>>) -> io::Result<()> {
        let Some(out) = out else { return Ok(()) };
        let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        if let Some(part) = self.files.back() {
            self.unsynced.insert(part.first, file);
        }
        Ok(())
    }

    /// The file that was written to last. It is opened anew for every batch: somebody may have removed what lay here, and
    /// bodies in a file without a name would be lost.
    fn open_active(&mut self) -> io::Result<Option<BufWriter<File>>> {
        let Some(part) = self.files.back().filter(|_| self.active) else { return Ok(None) };
        match lines::private().open(path(&self.dir, part.first)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.take_stock().map(|()| None),
            file => Ok(Some(buffered(file?))),
        }
    }

    /// Whether a body of `length` bytes belongs into a new file.
    fn is_full(&self, length: u64) -> bool {
        let fits =
            |part: &Part| part.bytes + length <= self.max_size / FILES && part.count < self.max_count.div_ceil(FILES);
        !self.files.back().is_some_and(fits)
    }

    /// A new file, for bodies from the next number on.
    fn begin(&mut self) -> io::Result<BufWriter<File>> {
        lines::make_private(&self.dir)?;
        let path = path(&self.dir, self.next);
        // What an earlier attempt left there was not kept.
        remove(&path)?;
        let file = lines::private().create_new(true).open(path)?;
        self.new_names = true;
        self.files.push_back(Part { first: self.next, bytes: 0, count: 0 });
        self.active = true;
        Ok(buffered(file))
    }

    /// Removes the oldest files until there is room for another body of `length` bytes; says how many bodies that cost.
    fn make_room(&mut self, length: u64) -> io::Result<u64> {
        let mut lost = 0;
        loop {
            let bytes: u64 = self.files.iter().map(|part| part.bytes).sum();
            let count: u64 = self.files.iter().map(|part| part.count).sum();
            if bytes + length <= self.max_size && count < self.max_count {
                return Ok(lost);
            }
            let Some(oldest) = self.files.pop_front() else { return Ok(lost) };
            self.unsynced.remove(&oldest.first);
            let replayed = marks(&self.dir, oldest.first)?.len() as u64;
            remove(&path(&self.dir, oldest.first))?;
            remove(&marks_path(&self.dir, oldest.first))?;
            lost += oldest.count.saturating_sub(replayed);
        }
    }

    /// After an error nobody knows what the last file holds: its lines are counted anew, and another one is begun.
    pub fn abandon(&mut self) {
        if let Some(part) = self.files.back_mut().filter(|_| std::mem::take(&mut self.active)) {
            let path = path(&self.dir, part.first);
            part.bytes = std::fs::metadata(&path).map_or(0, |file| file.len());
            part.count = lines::count(&path).unwrap_or_default();
            self.next = part.first + part.count;
            if part.count == 0 {
                self.files.pop_back();
            }
        }
    }
}

/// What the system has and the disk may not.
#[derive(Debug)]
pub struct Unsynced {
    files: BTreeMap<u64, File>,
    /// The directory, if there are new names in it.
    names: Option<PathBuf>,
}

impl Unsynced {
    /// Makes it durable.
    pub fn sync(&self) -> io::Result<()> {
        self.files.values().try_for_each(File::sync_data)?;
        match self.names.as_ref().map(|dir| lines::sync_names(dir, 3)) {
            // Somebody has removed it by hand.
            Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
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

/// The numbers of the replayed ones in the file that begins with `first`.
fn marks(dir: &Path, first: u64) -> io::Result<HashSet<u64>> {
    #[derive(Deserialize)]
    struct Mark {
        id: u64,
    }
    let mut lines = Lines::open(&marks_path(dir, first))?;
    let mut marks = HashSet::new();
    while let Some((Mark { id }, _)) = lines.read_next()? {
        marks.insert(id);
    }
    Ok(marks)
}

/// Notes durably that these bodies were replayed.
pub fn mark_replayed(spool: &Path, ids: &[u64]) -> io::Result<()> {
    let dir = directory(spool);
    let files = numbers(&dir, ".ndjson")?;
    let mut rest = ids;
    while let Some((id, _)) = rest.split_first() {
        let behind = files.partition_point(|first| first <= id);
        let (Some(first), next) = (behind.checked_sub(1).and_then(|at| files.get(at)), files.get(behind)) else {
            // The bridge has removed it meanwhile.
            rest = rest.get(1..).unwrap_or_default();
            continue;
        };
        let here = rest.iter().take_while(|id| *id >= first && next.is_none_or(|next| *id < next)).count();
        let (these, others) = rest.split_at_checked(here.max(1)).unwrap_or((rest, &[]));
        rest = others;
        let mut text = String::new();
        for id in these {
            let mark = serde_json::json!({ "id": id, "time": Arrival::now().to_string() });
            text.push_str(&format!("{mark}\n"));
        }
        super::write(&super::open(&marks_path(&dir, *first))?, &text)?;
    }
    Ok(())
}

/// The bodies that are kept, oldest first.
#[derive(Debug)]
pub struct Reader {
    dir: PathBuf,
    files: VecDeque<u64>,
    current: Option<(Lines, HashSet<u64>)>,
    damaged: u64,
}

impl Reader {
    /// Those beside the spool in `spool`.
    pub fn of(spool: &Path) -> io::Result<Self> {
        let dir = directory(spool);
        Ok(Self { files: numbers(&dir, ".ndjson")?.into(), dir, current: None, damaged: 0 })
    }

    /// The next one. A file that the bridge removes meanwhile is left out.
    pub fn read_next(&mut self) -> io::Result<Option<Found<Kept>>> {
        loop {
            if let Some((lines, replayed)) = &mut self.current {
                if let Some((item, line)) = lines.read_next::<Kept>()? {
                    return Ok(Some(Found { replayed: replayed.contains(&item.id), line: line.to_vec(), item }));
                }
                self.damaged += lines.damaged();
            }
            let Some(first) = self.files.pop_front() else { return Ok(None) };
            self.current = Some((Lines::open(&path(&self.dir, first))?, marks(&self.dir, first)?));
        }
    }

    /// How many bodies were come upon that are unreadable.
    pub fn damaged(&self) -> u64 {
        self.damaged
    }
}

#[cfg(test)]
mod tests;
