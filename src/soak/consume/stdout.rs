//! Reads the lines that a bridge writes to its stdout: from a file that grows, from a pipe, or from this process's stdin.

use super::{Consumer, Ended, Lines, unreadable};
use crate::event::{Event, MAX_DEPTH};
use crate::soak::SoakError;
use crate::soak::observer::Observer;
use crate::soak::oracle::Position;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::spawn_blocking;

/// How often to look whether a file has grown.
const LOOK: Duration = Duration::from_millis(5);

pub async fn consume(observer: Arc<Observer>, lines: &Lines) -> Result<Consumer, SoakError> {
    let ended = Ended::default();
    let until = ended.clone();
    let tasks = match lines {
        // The end of these two is not awaited: a read of a pipe blocks until the next write.
        Lines::Stdin => {
            spawn_blocking(move || pipe(io::stdin().lock(), &observer, &until));
            Vec::new()
        }
        Lines::File(path) if is_pipe(path) => {
            let path = path.clone();
            spawn_blocking(move || match File::open(&path) {
                Ok(file) => pipe(file, &observer, &until),
                Err(error) => observer.failed(format!("{}: {error}", path.display())),
            });
            Vec::new()
        }
        Lines::File(path) => {
            let tail = Tail::at_end(path)
                .map_err(|error| unreadable(&observer, format!("`--stdout-from {}`: {error}", path.display())))?;
            vec![spawn_blocking(move || tail.consume(&observer, &until))]
        }
    };
    Ok(Consumer { ended, tasks })
}

fn is_pipe(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo())
}

fn pipe(mut input: impl Read, observer: &Observer, ended: &Ended) {
    let mut reader = Splitter::new(observer);
    let mut buffer = vec![0; 64 << 10];
    while !ended.is_set() {
        match input.read(&mut buffer) {
            Ok(0) => return observer.failed("the bridge's output has ended"),
            Ok(count) => reader.take(buffer.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return observer.failed(format!("the bridge's output cannot be read: {error}")),
        }
    }
}

/// A file that grows, and may be rotated or truncated.
struct Tail {
    path: PathBuf,
    /// `None` until it is there.
    file: Option<File>,
    position: u64,
}

impl Tail {
    fn at_end(path: &Path) -> io::Result<Self> {
        let mut tail = Self { path: path.to_owned(), file: None, position: 0 };
        match File::open(path) {
            Ok(mut file) => {
                tail.position = file.seek(SeekFrom::End(0))?;
                tail.file = Some(file);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(tail)
    }

    fn consume(mut self, observer: &Observer, ended: &Ended) {
        let mut reader = Splitter::new(observer);
        let mut buffer = vec![0; 64 << 10];
        while !ended.is_set() {
            match self.read(&mut buffer) {
                Ok(0) => std::thread::sleep(LOOK),
                Ok(count) => reader.take(buffer.get(..count).unwrap_or_default()),
                Err(error) => {
                    observer.failed(format!("{}: {error}", self.path.display()));
                    std::thread::sleep(LOOK * 20);
                }
            }
        }
    }

    /// Reads new bytes. Once the file was read to its end and its name belongs to another file, continues at the start of that one.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(file) = &mut self.file {
            let count = file.read(buffer)?;
            self.position += count as u64;
            if count > 0 {
                return Ok(count);
            }
            let ours = file.metadata()?;
            if ours.len() < self.position {
                self.position = file.seek(SeekFrom::Start(0))?;
                return Ok(0);
            }
            match std::fs::metadata(&self.path) {
                Ok(named) if (named.dev(), named.ino()) != (ours.dev(), ours.ino()) => {}
                _ => return Ok(0),
            }
        }
        match File::open(&self.path) {
            Ok(file) => (self.file, self.position) = (Some(file), 0),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(0)
    }
}

/// Splits bytes into lines.
struct Splitter<'a> {
    observer: &'a Observer,
    place: u32,
    count: u64,
    unfinished: Vec<u8>,
}

impl<'a> Splitter<'a> {
    fn new(observer: &'a Observer) -> Self {
        Self { observer, place: observer.place("line"), count: 0, unfinished: Vec::new() }
    }

    fn take(&mut self, mut bytes: &[u8]) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = bytes.split_at(end);
            bytes = rest.get(1..).unwrap_or_default();
            self.unfinished.extend_from_slice(line);
            let line = std::mem::take(&mut self.unfinished);
            self.count += 1;
            if let Some(event) = std::str::from_utf8(&line).ok().and_then(event) {
                self.observer.arrived(event.as_bytes(), Position { place: self.place, offset: self.count });
            }
        }
        self.unfinished.extend_from_slice(bytes);
    }
}

/// The event in a line; `None` in an empty one, and in a torn one that a killed bridge has left.
fn event(line: &str) -> Option<String> {
    Event::parse(line, MAX_DEPTH, Default::default()).ok()?.text("event")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const LINE: &str = r#"{"topic":"t","key":"k","headers":{},"event":{"n":1}}"#;

    #[test]
    fn only_a_line_of_its_own_holds_an_event() {
        assert_eq!(event(LINE).as_deref(), Some(r#"{"n":1}"#));
        for cut in 1..LINE.len() {
            assert_eq!(event(&format!("{}{LINE}", &LINE[..cut])), None, "{cut}");
            assert_eq!(event(&LINE[..cut]), None);
        }
        assert_eq!(event(""), None);
        assert_eq!(event("cdrelay: something"), None);
    }

    #[test]
    fn a_file_is_followed_through_growth_truncation_and_replacement() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out");
        let mut tail = Tail::at_end(&path).unwrap();
        let mut buffer = [0; 64];
        let mut read = || {
            let mut all = Vec::new();
            // Finding out that the file is another one takes a read, and so does opening it.
            for _ in 0..4 {
                let count = tail.read(&mut buffer).unwrap();
                all.extend_from_slice(&buffer[..count]);
            }
            String::from_utf8(all).unwrap()
        };
        assert_eq!(read(), "");
        std::fs::write(&path, "first").unwrap();
        assert_eq!(read(), "first");
        File::options().append(true).open(&path).unwrap().write_all(b" second").unwrap();
        assert_eq!(read(), " second");
        std::fs::write(&path, "cut").unwrap();
        assert_eq!(read(), "cut");
        std::fs::rename(&path, directory.path().join("moved")).unwrap();
        assert_eq!(read(), "");
        std::fs::write(&path, "new").unwrap();
        assert_eq!(read(), "new");
        assert_eq!(Tail::at_end(&path).unwrap().read(&mut buffer).unwrap(), 0);
    }
}
