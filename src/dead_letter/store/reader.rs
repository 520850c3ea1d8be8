//! Reads a store, its lines and the marks on them.

use super::Line;
use super::dir::{Dir, LINES, Sizes, private};
use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Take};
use std::marker::PhantomData;
use std::path::Path;

/// The whole lines of one file.
#[derive(Debug)]
pub(super) struct Lines {
    file: BufReader<Take<File>>,
    line: Vec<u8>,
}

impl Lines {
    /// Those within the first `length` bytes; `None` if there is no such file.
    pub(super) fn open(path: &Path, length: u64) -> io::Result<Option<Self>> {
        match private().open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            file => Ok(Some(Self { file: BufReader::with_capacity(64 << 10, file?.take(length)), line: Vec::new() })),
        }
    }

    pub(super) fn read_next(&mut self) -> io::Result<Option<&[u8]>> {
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
