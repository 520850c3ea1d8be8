//! Writes each message as one JSON line, for `jq`, log shippers and a first look.
//!
//! A pipe has no transactions: `Ok` means that the operating system took the line, not that the reader acted on it, and a line
//! whose write failed half-way is written again, so a reader may see a torn line (alone, never glued to the next one) and the
//! same event twice. Logs go to stderr and never mix with these lines.

use crate::sink::{Failure, Message, SetupError, Sink};
use futures_util::future::BoxFuture;
use serde::Deserialize;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Lines that wait for the writer before `publish` itself waits.
const WAITING_LINES: usize = 1024;
/// One write takes at most about this many bytes: enough to amortise the call, small enough for a 64 MiB container.
const BATCH_BYTES: usize = 256 * 1024;
/// How long to wait when a non-blocking stdout, inherited from the parent, is full.
const FULL_PIPE_PAUSE: Duration = Duration::from_millis(5);

/// stdout has no settings of its own.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Config {}

/// A [`Sink`] that writes lines from one thread of its own, so that a pipe nobody reads blocks that thread and nothing else.
pub struct StdoutSink {
    lines: mpsc::Sender<Line>,
    /// Why the last write failed; `None` after one that did not.
    broken: Arc<Mutex<Option<String>>>,
}

impl StdoutSink {
    /// Writes to this process's stdout.
    pub fn new() -> Result<Self, SetupError> {
        // Not `io::Stdout`: its line buffer would keep the rest of a failed write and send it after we had reported the failure.
        let stdout = io::stdout().as_fd().try_clone_to_owned();
        let stdout = stdout.map_err(|error| SetupError(format!("cannot use stdout: {error}")))?;
        Self::to(File::from(stdout))
    }

    /// Writes to `output`, which must not buffer.
    pub fn to(output: impl Write + Send + 'static) -> Result<Self, SetupError> {
        let (lines, waiting) = mpsc::channel(WAITING_LINES);
        let broken = Arc::new(Mutex::new(None));
        let writer = Writer { output, torn: false, broken: broken.clone() };
        let thread = std::thread::Builder::new().name("stdout".to_owned()).spawn(move || writer.run(waiting));
        thread.map_err(|error| SetupError(format!("cannot start the stdout writer: {error}")))?;
        Ok(Self { lines, broken })
    }

    async fn write(&self, text: Vec<u8>) -> Result<(), Failure> {
        let (written, outcome) = oneshot::channel();
        let gone = || Failure::unavailable("the stdout writer has stopped");
        self.lines.send(Line { text, written }).await.map_err(|_| gone())?;
        outcome.await.map_err(|_| gone())?.map_err(Failure::unavailable)
    }
}

impl Sink for StdoutSink {
    fn publish<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move { self.write(line(message)?).await })
    }

    /// stdout can only be tried by writing, so this repeats how the last write ended.
    fn probe(&self) -> BoxFuture<'_, Result<(), Failure>> {
        let broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Box::pin(async move { broken.map_or(Ok(()), |cause| Err(Failure::unavailable(cause))) })
    }

    /// Waits for the lines ahead of it.
    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move { drop(self.write(Vec::new()).await) })
    }
}

/// A whole line with its line break (or nothing, to learn when everything before it is written), and who waits for it.
struct Line {
    text: Vec<u8>,
    written: oneshot::Sender<Result<(), String>>,
}

struct Writer<W> {
    output: W,
    /// The last write stopped inside a line: a line break must come first, so that the torn line stands alone.
    torn: bool,
    broken: Arc<Mutex<Option<String>>>,
}

impl<W: Write> Writer<W> {
    fn run(mut self, mut waiting: mpsc::Receiver<Line>) {
        while let Some(first) = waiting.blocking_recv() {
            let mut size = first.text.len();
            let mut batch = vec![first];
            while size < BATCH_BYTES {
                let Ok(line) = waiting.try_recv() else { break };
                size += line.text.len();
                batch.push(line);
            }
            self.write(batch);
        }
    }

    /// Writes the batch and tells each waiter what became of its own line.
    fn write(&mut self, batch: Vec<Line>) {
        let mut bytes = Vec::with_capacity(1 + batch.iter().map(|line| line.text.len()).sum::<usize>());
        if self.torn {
            bytes.push(b'\n');
        }
        let mut end = bytes.len();
        batch.iter().for_each(|line| bytes.extend_from_slice(&line.text));

        let (taken, error) = write_what_fits(&mut self.output, &bytes);
        if let Some(last) = taken.last() {
            self.torn = *last != b'\n';
        }
        let error = error.map(|error| format!("cannot write to stdout: {error}"));
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&error);
        for line in batch {
            end += line.text.len();
            let outcome = match &error {
                Some(cause) if end > taken.len() => Err(cause.clone()),
                _ => Ok(()),
            };
            let _ = line.written.send(outcome);
        }
    }
}

/// The part of `bytes` that the output took, and the error that stopped it. `write_all` would not say how far it came.
fn write_what_fits<'a>(output: &mut impl Write, bytes: &'a [u8]) -> (&'a [u8], Option<io::Error>) {
    let mut rest = bytes;
    let error = loop {
        if rest.is_empty() {
            break output.flush().err();
        }
        match output.write(rest) {
            Ok(0) => break Some(ErrorKind::WriteZero.into()),
            Ok(count) => rest = rest.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(FULL_PIPE_PAUSE),
            Err(error) => break Some(error),
        }
    };
    let taken = bytes.len() - rest.len();
    (bytes.get(..taken).unwrap_or_default(), error)
}

/// `{"topic":…,"key":…,"headers":{…},"event":…}` and a line break.
fn line(message: &Message) -> Result<Vec<u8>, Failure> {
    let mut line = Vec::with_capacity(message.payload.len() + 512);
    match render(message, &mut line) {
        Ok(()) => Ok(line),
        Err(error) => Err(Failure::unavailable(format!("cannot render event {}: {error}", message.id))),
    }
}

fn render(message: &Message, line: &mut Vec<u8>) -> serde_json::Result<()> {
    line.extend_from_slice(br#"{"topic":"#);
    serde_json::to_writer(&mut *line, &message.topic)?;
    line.extend_from_slice(br#","key":"#);
    serde_json::to_writer(&mut *line, &message.key)?;
    line.extend_from_slice(br#","headers":{"#);
    for (index, (name, value)) in message.headers.iter().enumerate() {
        if index > 0 {
            line.push(b',');
        }
        serde_json::to_writer(&mut *line, name)?;
        line.push(b':');
        serde_json::to_writer(&mut *line, value)?;
    }
    line.extend_from_slice(br#"},"event":"#);
    push_on_one_line(&message.payload, line);
    line.extend_from_slice(b"}\n");
    Ok(())
}

/// Appends a valid JSON text: as it is when it came on one line, without its insignificant white space when it did not.
/// Strings and numbers keep every byte.
fn push_on_one_line(json: &[u8], line: &mut Vec<u8>) {
    if !json.iter().any(|byte| matches!(byte, b'\n' | b'\r')) {
        return line.extend_from_slice(json);
    }
    let (mut in_string, mut escaped) = (false, false);
    for &byte in json {
        if in_string {
            in_string = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
        } else if matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
            continue;
        } else {
            in_string = byte == b'"';
        }
        line.push(byte);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventId;
    use bytes::Bytes;
    use futures_util::future::join_all;

    fn message(payload: &str) -> Message {
        Message {
            id: EventId([7; 16]),
            topic: "telecmi.cdr".to_owned(),
            key: "Sales \"A\"\n/42".to_owned(),
            partition_by: "42".to_owned(),
            headers: vec![("ce_id", "x".to_owned()), ("ce_subject", "தமிழ்".to_owned())],
            payload: Bytes::copy_from_slice(payload.as_bytes()),
        }
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
            String::from_utf8(self.written.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            *self.calls.lock().unwrap() += 1;
            let mut room = self.room.lock().unwrap();
            let count = match *room {
                Some(0) => {
                    *room = None;
                    return Err(io::Error::from_raw_os_error(28));
                }
                Some(left) => left.min(bytes.len()),
                None => bytes.len(),
            };
            *room = room.map(|left| left - count);
            self.written.lock().unwrap().extend_from_slice(&bytes[..count]);
            Ok(count)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn one_line(json: &str) -> String {
        let mut line = Vec::new();
        push_on_one_line(json.as_bytes(), &mut line);
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn a_line_holds_topic_key_headers_and_the_event_as_received() {
        let line =
            String::from_utf8(line(&message(r#"{ "amount": 1.10,  "n":12345678901234567890 }"#)).unwrap()).unwrap();
        assert_eq!(
            line,
            concat!(
                r#"{"topic":"telecmi.cdr","key":"Sales \"A\"\n/42","headers":{"ce_id":"x","ce_subject":"தமிழ்"},"#,
                r#""event":{ "amount": 1.10,  "n":12345678901234567890 }}"#,
                "\n"
            )
        );
        let headless = Message { headers: Vec::new(), ..message("{}") };
        assert!(serde_json::from_slice::<serde_json::Value>(&super::line(&headless).unwrap()).is_ok());
    }

    #[test]
    fn an_event_on_several_lines_loses_only_insignificant_white_space() {
        assert_eq!(one_line("{\r\n  \"a b\": [1.0 ,\t2e5],\n \"c\" : null }"), r#"{"a b":[1.0,2e5],"c":null}"#);
        assert_eq!(
            one_line("{\n\"a\": \"x \\\" y \\\\\", \"b\": \"\\\\\\\" z\"}"),
            r#"{"a":"x \" y \\","b":"\\\" z"}"#
        );
        assert_eq!(one_line(r#"{ "a" : 1 }"#), r#"{ "a" : 1 }"#);
    }

    #[tokio::test]
    async fn concurrent_publishes_are_whole_lines_in_few_writes() {
        let disk = Disk::with_room(None);
        let sink = StdoutSink::to(disk.clone()).unwrap();
        let message = message("{\"a\":1}");
        let outcomes = join_all((0..500).map(|_| sink.publish(&message))).await;
        assert!(outcomes.iter().all(Result::is_ok));
        sink.close().await;
        assert_eq!(disk.text(), String::from_utf8(line(&message).unwrap()).unwrap().repeat(500));
        assert!(*disk.calls.lock().unwrap() < 500);
    }

    #[tokio::test]
    async fn a_torn_line_stands_alone_and_its_retry_is_whole() {
        let message = message("{\"a\":1}");
        let whole = String::from_utf8(line(&message).unwrap()).unwrap();
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
    async fn a_pipe_nobody_reads_blocks_no_one_but_its_own_lines() {
        let (mut reader, writer) = io::pipe().unwrap();
        let sink = StdoutSink::to(writer).unwrap();
        let big = message(&format!("{{\"a\":\"{}\"}}", "x".repeat(200_000)));
        let mut publish = sink.publish(&big);
        assert!(tokio::time::timeout(Duration::from_millis(50), &mut publish).await.is_err());
        let read = std::thread::spawn(move || {
            let mut text = vec![0; line(&message(&format!("{{\"a\":\"{}\"}}", "x".repeat(200_000)))).unwrap().len()];
            std::io::Read::read_exact(&mut reader, &mut text).unwrap();
            text
        });
        publish.await.unwrap();
        assert_eq!(read.join().unwrap(), line(&big).unwrap());
    }
}
