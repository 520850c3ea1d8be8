//! Writes each message as one JSON line, for `jq`, log shippers and a first look.
//!
//! A pipe has no transactions: `Ok` means that the operating system took the line, not that the reader acted on it. A line
//! whose write failed half-way is written again, so a reader may see a torn line (alone, never glued to the next one) and
//! the same event twice. A killed process leaves a torn line too, so the first line of a process follows a line break,
//! unless the output is known to be at the start of a line: readers skip empty lines. Logs go to stderr and never mix with
//! these lines.

mod line;

use crate::route::Route;
use crate::sink::{Failure, Message, SetupError, Sink, SinkConfig};
use futures_util::future::BoxFuture;
use line::render;
use parking_lot::Mutex;
use rustix::fs::OFlags;
use serde::Deserialize;
use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal as _, Write};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// How many lines may wait for the writer.
const WAITING_LINES: usize = 1024;
/// Lines are gathered into one write up to this many bytes.
const BATCH_BYTES: usize = 256 * 1024;
/// How long to wait when a non-blocking stdout, inherited from the parent, is full.
const FULL_PIPE_PAUSE: Duration = Duration::from_millis(5);
const STOPPED: &str = "the stdout writer has stopped";

/// stdout has no settings of its own.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Config {}

impl SinkConfig for Config {
    const TYPE: &'static str = "stdout";

    fn build(&self, _name: &str, _route: &Route) -> Result<Arc<dyn Sink>, SetupError> {
        Ok(Arc::new(StdoutSink::new()?))
    }
}

/// A [`Sink`] that writes lines from one thread of its own, so that a pipe nobody reads blocks that thread and nothing else.
pub struct StdoutSink {
    lines: mpsc::Sender<Line>,
    /// Why the last write failed; `None` after one that did not.
    last_error: Arc<Mutex<Option<String>>>,
}

/// A line with its line break, and the publish that waits until it is written.
struct Line {
    text: Vec<u8>,
    written: oneshot::Sender<Result<(), String>>,
}

impl StdoutSink {
    /// Writes to this process's stdout.
    pub fn new() -> Result<Self, SetupError> {
        // Not `io::Stdout`: its line buffer would keep the rest of a failed write and send it after we had reported the failure.
        let stdout = io::stdout().as_fd().try_clone_to_owned();
        let stdout = File::from(stdout.map_err(|error| SetupError(format!("cannot use stdout: {error}")))?);
        if was_closed(&stdout) {
            return Err(SetupError(
                "stdout is closed, or is /dev/null opened for reading and writing, which looks the same: nobody would get the events; redirect it with `>`, or use another sink".into(),
            ));
        }
        let at_line_start = is_at_line_start(&stdout);
        Self::start(stdout, !at_line_start)
    }

    /// Writes to `output`, which must not buffer and is at the start of a line.
    pub fn to(output: impl Write + Send + 'static) -> Result<Self, SetupError> {
        Self::start(output, false)
    }

    fn start(output: impl Write + Send + 'static, torn: bool) -> Result<Self, SetupError> {
        let (lines, waiting) = mpsc::channel(WAITING_LINES);
        let last_error = Arc::default();
        let writer = Writer { output, torn, last_error: Arc::clone(&last_error) };
        let thread = std::thread::Builder::new().name("stdout".to_owned()).spawn(move || writer.run(waiting));
        thread.map_err(|error| SetupError(format!("cannot start the stdout writer: {error}")))?;
        Ok(Self { lines, last_error })
    }

    async fn write(&self, text: Vec<u8>) -> Result<(), Failure> {
        let (written, outcome) = oneshot::channel();
        let sent = self.lines.send(Line { text, written }).await;
        sent.map_err(|_| Failure::unavailable(STOPPED))?;
        outcome.await.unwrap_or_else(|_| Err(STOPPED.to_owned())).map_err(Failure::unavailable)
    }
}

impl Sink for StdoutSink {
    fn publish<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async { self.write(render(message).map_err(Failure::rejected)?).await })
    }

    /// stdout can only be tried by writing, so this repeats how the last write ended.
    fn probe(&self) -> BoxFuture<'_, Result<(), Failure>> {
        let last_error = self.last_error.lock().clone();
        Box::pin(std::future::ready(last_error.map_or(Ok(()), |cause| Err(Failure::unavailable(cause)))))
    }

    /// Waits for the lines ahead of it.
    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            // A failure has been told to the publishes that it concerns.
            let _ = self.write(Vec::new()).await;
        })
    }
}

struct Writer<W> {
    output: W,
    /// The last write, or an earlier process, stopped inside a line: a line break comes first, so that the torn line stands alone.
    torn: bool,
    last_error: Arc<Mutex<Option<String>>>,
}

impl<W: Write> Writer<W> {
    fn run(mut self, mut waiting: mpsc::Receiver<Line>) {
        let (mut lines, mut batch) = (Vec::new(), Vec::new());
        while let Some(first) = waiting.blocking_recv() {
            batch.clear();
            // Lets further publishes join the batch.
            std::thread::yield_now();
            let mut next = Some(first);
            while let Some(line) = next {
                batch.extend_from_slice(&line.text);
                lines.push((batch.len(), line.written));
                next = if batch.len() < BATCH_BYTES { waiting.try_recv().ok() } else { None };
            }
            let (written, error) = self.write(&batch);
            let error = error.map(|error| format!("cannot write to stdout: {error}"));
            self.last_error.lock().clone_from(&error);
            for (end, line) in lines.drain(..) {
                // The publish may have been dropped at shutdown.
                let _ = line.send(error.clone().filter(|_| end > written).map_or(Ok(()), Err));
            }
            batch.shrink_to(2 * BATCH_BYTES);
        }
    }

    /// How many bytes of `lines` the output took, and the error that stopped it.
    fn write(&mut self, lines: &[u8]) -> (usize, Option<io::Error>) {
        if self.torn && !lines.is_empty() {
            let (_, error) = write_all(&mut self.output, b"\n");
            self.torn = error.is_some();
            if error.is_some() {
                return (0, error);
            }
        }
        let (written, error) = write_all(&mut self.output, lines);
        self.torn = error.is_some() && written > 0 && lines.get(written - 1) != Some(&b'\n');
        (written, error)
    }
}

/// Whether this process was started with stdout closed (`>&-`). Rust's runtime then opens `/dev/null` in its place, for reading
/// and writing; a shell or service manager opens it for writing only. Where stderr is the same, no error could be read.
/// <https://github.com/rust-lang/rust/blob/1.89.0/library/std/src/sys/pal/unix/mod.rs>, `sanitize_standard_fds`
fn was_closed(stdout: &File) -> bool {
    let is_placeholder = |file: BorrowedFd<'_>| {
        let null = std::fs::metadata("/dev/null").map(|null| null.rdev());
        let same = rustix::fs::fstat(file).is_ok_and(|stat| null.is_ok_and(|null| null == stat.st_rdev));
        let flags = rustix::fs::fcntl_getfl(file);
        same && flags.is_ok_and(|flags| flags.contains(OFlags::RDWR))
    };
    is_placeholder(stdout.as_fd()) && !is_placeholder(io::stderr().as_fd())
}

/// Whether the next byte written to `output` starts a line, as far as that is known: a regular file shows its last byte, and on a
/// terminal the shell's prompt ends a torn line.
fn is_at_line_start(output: &File) -> bool {
    let looked_up = || {
        if output.is_terminal() {
            return Ok(true);
        }
        if !output.metadata()?.is_file() {
            return Ok(false);
        }
        // It is opened again, since stdout is usually open for writing only.
        let file = File::open(format!("/proc/self/fd/{}", output.as_raw_fd()))?;
        let Some(last) = file.metadata()?.len().checked_sub(1) else { return Ok(true) };
        let mut byte = [0];
        file.read_exact_at(&mut byte, last)?;
        io::Result::Ok(byte == *b"\n")
    };
    looked_up().unwrap_or(false)
}

/// [`Write::write_all`] that tells how many bytes the output took before it failed.
fn write_all(output: &mut impl Write, bytes: &[u8]) -> (usize, Option<io::Error>) {
    let mut written = 0;
    while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
        match output.write(rest) {
            Ok(0) => return (written, Some(ErrorKind::WriteZero.into())),
            Ok(count) => written += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(FULL_PIPE_PAUSE),
            Err(error) => return (written, Some(error)),
        }
    }
    (written, output.flush().err())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventId;
    use futures_util::FutureExt as _;
    use futures_util::future::join_all;
    use std::pin::pin;

    fn message(payload: &str) -> Message {
        let bare = Message::of(EventId([7; 16]), payload.as_bytes(), "telecmi.cdr", "Sales \"A\"\n/42", "42");
        bare.with_header("ce_id", "x").with_header("ce_subject", "தமிழ்")
    }

    /// Takes `room` bytes, then fails once with `ENOSPC`, then takes everything.
    #[derive(Clone)]
    struct Disk {
        written: Arc<Mutex<Vec<u8>>>,
        room: Arc<Mutex<Option<usize>>>,
        calls: Arc<Mutex<usize>>,
    }

    impl Disk {
        fn with_room(room: Option<usize>) -> Self {
            Self { written: Arc::default(), room: Arc::new(Mutex::new(room)), calls: Arc::default() }
        }
        fn text(&self) -> String {
            String::from_utf8(self.written.lock().clone()).unwrap()
        }
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            *self.calls.lock() += 1;
            let mut room = self.room.lock();
            let count = match *room {
                Some(0) => {
                    *room = None;
                    return Err(io::Error::from_raw_os_error(28));
                }
                Some(left) => left.min(bytes.len()),
                None => bytes.len(),
            };
            *room = room.map(|left| left - count);
            self.written.lock().extend_from_slice(&bytes[..count]);
            Ok(count)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn line(message: &Message) -> String {
        String::from_utf8(render(message).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn concurrent_publishes_are_whole_lines_in_few_writes() {
        let disk = Disk::with_room(None);
        let sink = StdoutSink::to(disk.clone()).unwrap();
        let message = message("{\"a\":1}");
        // The writer is in the middle of a write while the lines gather.
        let busy = disk.room.lock();
        // Without a budget, so that one poll begins all of them.
        let publishes = tokio::task::unconstrained(join_all((0..500).map(|_| sink.publish(&message))));
        let mut publishes = pin!(publishes);
        assert!((&mut publishes).now_or_never().is_none());
        drop(busy);
        assert!(publishes.await.iter().all(Result::is_ok));
        assert_eq!(disk.text(), line(&message).repeat(500));
        let writes = *disk.calls.lock();
        assert!(writes <= 2, "{writes} writes");
    }

    #[tokio::test]
    async fn a_torn_line_stands_alone_and_its_retry_is_whole() {
        let message = message("{\"a\":1}");
        let whole = line(&message);
        for room in [0, 1, whole.len() - 1, whole.len(), whole.len() + 5] {
            let disk = Disk::with_room(Some(room));
            let sink = StdoutSink::to(disk.clone()).unwrap();
            let outcomes = join_all((0..3).map(|_| sink.publish(&message))).await;
            let failed = outcomes.iter().filter(|outcome| outcome.is_err()).count();
            assert!(failed > 0, "room {room}");
            for _ in 0..failed {
                sink.publish(&message).await.unwrap();
            }
            assert_eq!(sink.probe().await, Ok(()));
            let text = disk.text();
            let (complete, torn): (Vec<_>, Vec<_>) = text.split_inclusive('\n').partition(|line| *line == whole);
            // A line that lost only its line break gets one, and is there twice.
            assert_eq!(complete.len(), if room + 1 == whole.len() { 4 } else { 3 }, "room {room}: {text}");
            assert!(
                torn.len() <= 1 && torn.iter().all(|line| whole.starts_with(line.trim_end())),
                "room {room}: {text}"
            );
        }
    }

    #[test]
    fn a_file_shows_whether_the_next_byte_starts_a_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out");
        let open = || File::options().create(true).append(true).open(&path).unwrap();
        for (text, starts) in [("", true), ("{}\n", true), ("{}\n{\"to", false)] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(is_at_line_start(&open()), starts, "{text:?}");
        }
        let (_reader, writer) = io::pipe().unwrap();
        let pipe = File::from(std::os::fd::OwnedFd::from(writer));
        assert!(!is_at_line_start(&pipe), "a pipe does not tell");
    }

    #[tokio::test]
    async fn a_closed_pipe_is_unavailable_and_named_by_the_probe() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let sink = StdoutSink::to(writer).unwrap();
        assert_eq!(sink.probe().await, Ok(()));
        let failure = sink.publish(&message("{}")).await.unwrap_err();
        assert!(matches!(&failure, Failure::Unavailable { cause, .. } if cause.contains("Broken pipe")), "{failure:?}");
        assert_eq!(sink.probe().await, Err(failure));
    }

    #[tokio::test]
    async fn a_writer_that_panics_leaves_nobody_waiting() {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                panic!("on purpose")
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let sink = StdoutSink::to(Broken).unwrap();
        let message = message("{}");
        for _ in 0..2 {
            let publish = tokio::time::timeout(Duration::from_secs(30), sink.publish(&message));
            assert_eq!(publish.await.expect("an answer"), Err(Failure::unavailable(STOPPED)));
        }
    }

    #[tokio::test]
    async fn a_pipe_nobody_reads_blocks_no_one_but_its_own_lines() {
        let (mut reader, writer) = io::pipe().unwrap();
        let sink = StdoutSink::to(writer).unwrap();
        let big = message(&format!("{{\"a\":\"{}\"}}", "x".repeat(200_000)));
        let mut publish = pin!(sink.publish(&big));
        assert!(tokio::time::timeout(Duration::from_millis(50), publish.as_mut()).await.is_err());
        let read = std::thread::spawn(move || {
            let mut text = vec![0; line(&message(&format!("{{\"a\":\"{}\"}}", "x".repeat(200_000)))).len()];
            std::io::Read::read_exact(&mut reader, &mut text).unwrap();
            text
        });
        publish.await.unwrap();
        assert_eq!(read.join().unwrap(), line(&big).as_bytes());
    }
}
