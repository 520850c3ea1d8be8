//! Files of JSON lines: read one line at a time, appended to privately.

use serde::de::DeserializeOwned;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Take};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// A longer line is none of ours: the largest body is 64 MiB, and writing it as JSON can double that.
const MAX_LINE: u64 = 192 << 20;

/// The lines that a file has at this moment. What is appended while they are read is not among them: a letter that is
/// replayed may be refused once more, and would be met again and again.
#[derive(Debug)]
pub struct Lines {
    /// `None` if there is no file.
    file: Option<BufReader<Take<File>>>,
    line: Vec<u8>,
    max_line: u64,
    damaged: u64,
}

impl Lines {
    /// Opens `path`; a file that is not there has no lines.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            other => Some(other?),
        };
        let file = match file {
            None => None,
            Some(file) => Some(BufReader::new({
                let length = file.metadata()?.len();
                file.take(length)
            })),
        };
        Ok(Self { file, line: Vec::new(), max_line: MAX_LINE, damaged: 0 })
    }

    /// The next line that holds a `T`, and its text without the line break. Lines that a crash cut off are passed over.
    pub fn read_next<T: DeserializeOwned>(&mut self) -> io::Result<Option<(T, &[u8])>> {
        while self.read()? {
            match serde_json::from_slice(&self.line) {
                Ok(found) => return Ok(Some((found, &self.line))),
                // A line that has the end of a whole one was whole once. Within its strings the quote would be escaped.
                Err(_) if self.line.ends_with(b"\"}") && !self.line.ends_with(b"\\\"}") => self.damaged += 1,
                Err(_) => {}
            }
        }
        Ok(None)
    }

    /// How many lines were come upon that were written whole and are unreadable, or are longer than any that was written.
    pub fn damaged(&self) -> u64 {
        self.damaged
    }

    fn read(&mut self) -> io::Result<bool> {
        let Some(file) = &mut self.file else { return Ok(false) };
        loop {
            self.line.clear();
            let read = file.by_ref().take(self.max_line).read_until(b'\n', &mut self.line)?;
            if self.line.last() == Some(&b'\n') {
                self.line.pop();
                return Ok(true);
            }
            if (read as u64) < self.max_line {
                return Ok(read > 0);
            }
            self.damaged += 1;
            self.line = Vec::new();
            skip_line(file)?;
        }
    }
}

fn skip_line(file: &mut impl BufRead) -> io::Result<()> {
    loop {
        let buffer = file.fill_buf()?;
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let (used, done) = end.map_or((buffer.len(), buffer.is_empty()), |end| (end + 1, true));
        file.consume(used);
        if done {
            return Ok(());
        }
    }
}

/// How many lines the file has that are ended.
pub fn count(path: &Path) -> io::Result<u64> {
    let mut file = BufReader::with_capacity(64 << 10, File::open(path)?);
    let mut count = 0;
    loop {
        let buffer = file.fill_buf()?;
        if buffer.is_empty() {
            return Ok(count);
        }
        count += buffer.iter().filter(|byte| **byte == b'\n').count() as u64;
        let length = buffer.len();
        file.consume(length);
    }
}

/// How to open a file that only its owner may read.
pub fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).append(true).mode(0o600);
    options
}

/// Makes the directory, and those above it, for their owner alone.
pub fn make_private(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Makes the name of a new file in `dir` durable, and those of `dir` and as many directories above as are asked for.
pub fn sync_names(dir: &Path, count: usize) -> io::Result<()> {
    dir.ancestors().take(count).try_for_each(|dir| File::open(dir)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn torn_damaged_and_overlong_lines_cost_no_other_and_what_comes_later_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lines");
        let long = format!("{{\"long\":\"{}\"}}", "x".repeat(20_000));
        let text =
            format!("{{\"n\":\"1\"}}\n{{\"torn\":\"a\\\"}}\n{{\"n\"\u{0}\"2\"}}\n{long}\n{{\"n\":\"3\"}}\n{{\"to");
        std::fs::write(&path, &text).unwrap();
        let mut lines = Lines { max_line: 10_000, ..Lines::open(&path).unwrap() };
        std::fs::write(&path, text.clone() + "rn\"}\n{\"n\":\"4\"}\n").unwrap();
        let mut found = Vec::new();
        while let Some((value, line)) = lines.read_next::<Value>().unwrap() {
            assert_eq!(serde_json::from_slice::<Value>(line).unwrap(), value);
            found.push(value["n"].as_str().unwrap().to_owned());
        }
        assert_eq!(found, ["1", "3"]);
        assert_eq!(lines.damaged(), 2);
        assert_eq!(count(&path).unwrap(), 7);
        assert!(Lines::open(&dir.path().join("gone")).unwrap().read_next::<Value>().unwrap().is_none());
    }
}
