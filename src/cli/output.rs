//! Standard output, whose reader may go away at any time, as `head` does: then the rest is not written, and that is no error.

use std::fmt::Display;
use std::io::{self, BufWriter, Stdout, Write};

/// Lines of output.
pub struct Output {
    out: BufWriter<Stdout>,
    unread: bool,
}

impl Output {
    pub fn new() -> Self {
        Self { out: BufWriter::new(io::stdout()), unread: false }
    }

    /// Writes one line.
    pub fn line(&mut self, line: impl Display) -> io::Result<()> {
        let result = writeln!(self.out, "{line}");
        self.heed(result)
    }

    /// Writes these bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        let result = self.out.write_all(bytes);
        self.heed(result)
    }

    /// Flushes the lines written so far.
    pub fn flush(&mut self) -> io::Result<()> {
        let result = self.out.flush();
        self.heed(result)
    }

    /// Whether the reader is gone: whatever has no other use than to be read can stop.
    pub fn is_unread(&self) -> bool {
        self.unread
    }

    fn heed(&mut self, result: io::Result<()>) -> io::Result<()> {
        match result {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.unread = true;
                Ok(())
            }
            other => other,
        }
    }
}

/// Writes a line to stderr, and ignores a closed one.
pub fn note(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}
