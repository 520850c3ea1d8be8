//! Writes each message as one JSON line, for `jq`, log shippers and a first look.
//!
//! A pipe has no transactions: `Ok` means that the operating system took the line, not that the reader acted on it, and a line
//! whose write failed half-way is written again, so a reader may see a torn line (alone, never glued to the next one) and the
//! same event twice. Logs go to stderr and never mix with these lines.

use crate::event::json;
use crate::sink::pending::Waiting;
use crate::sink::{Failure, Message, Pending, SetupError, Sink};
use serde::Deserialize;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::pin::pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use tokio::task::yield_now;

/// No more lines are gathered once there are this many bytes: enough to amortise the write, small enough for a 64 MiB container.
const BATCH_BYTES: usize = 256 * 1024;
/// How long to wait when a non-blocking stdout, inherited from the parent, is full.
const FULL_PIPE_PAUSE: Duration = Duration::from_millis(5);

/// Said to those whose lines nobody will write any more.
const STOPPED: &str = "the stdout writer has stopped";

/// stdout has no settings of its own.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Config {}

/// A [`Sink`] that writes lines from one thread of its own, so that a pipe nobody reads blocks that thread and nothing else.
pub struct StdoutSink {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    arrived: Condvar,
    /// The batch has been taken.
    taken: Notify,
}

#[derive(Default)]
struct State {
    batch: Batch,
    /// The writer sleeps and nobody has undertaken to wake it yet.
    asleep: bool,
    closed: bool,
    /// The writer has ended; nobody will take what is added.
    gone: bool,
    /// Why the last write failed; `None` after one that did not.
    broken: Option<String>,
}

impl State {
    fn has_room(&self) -> bool {
        self.batch.text.len() < BATCH_BYTES
    }
}

/// Whole lines with their line breaks, and for each one where it ends and who waits for it. One without text is told when
/// everything before it is written.
#[derive(Default)]
struct Batch {
    text: Vec<u8>,
    waiting: Vec<(usize, Waiting<String>)>,
}

impl Batch {
    fn add(&mut self, render: impl FnOnce(&mut Vec<u8>), waiting: Waiting<String>) {
        render(&mut self.text);
        self.waiting.push((self.text.len(), waiting));
    }
}

/// Wakes the writer when dropped: also when whoever undertook that is gone.
struct Wake<'a>(&'a Condvar);

impl Drop for Wake<'_> {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl StdoutSink {
    /// Writes to this process's stdout. Needs a tokio runtime.
    pub fn new() -> Result<Self, SetupError> {
        // Not `io::Stdout`: its line buffer would keep the rest of a failed write and send it after we had reported the failure.
        let stdout = io::stdout().as_fd().try_clone_to_owned();
        let stdout = stdout.map_err(|error| SetupError(format!("cannot use stdout: {error}")))?;
        Self::to(File::from(stdout))
    }

    /// Writes to `output`, which must not buffer. Needs a tokio runtime.
    pub fn to(output: impl Write + Send + 'static) -> Result<Self, SetupError> {
        let shared = Arc::new(Shared::default());
        let writer = Writer { output, torn: false, shared: shared.clone() };
        let thread = std::thread::Builder::new().name("stdout".to_owned()).spawn(move || writer.run());
        thread.map_err(|error| SetupError(format!("cannot start the stdout writer: {error}")))?;
        Ok(Self { shared })
    }

    /// Adds a line and waits until it is written. The writer is woken by the first one, once the tasks that are ready to run
    /// have run: their lines go into the same write, and switching threads costs more than writing a line.
    async fn write(&self, render: impl Fn(&mut Vec<u8>)) -> Result<(), Failure> {
        let (written, outcome) = oneshot::channel();
        let mut written = Some(Waiting::Published(written));
        let wake = loop {
            if let Some(wake) = self.shared.add(&render, &mut written)? {
                break wake;
            }
            let mut taken = pin!(self.shared.taken.notified());
            taken.as_mut().enable();
            if !self.shared.has_room() {
                // It may be full of lines that wait for company.
                self.flush();
                taken.await;
            }
        };
        if let Some(_wake) = wake {
            yield_now().await;
        }
        let outcome = outcome.await.unwrap_or_else(|_| Err(STOPPED.to_owned()));
        outcome.map_err(Failure::unavailable)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_room(&self) -> bool {
        self.state().has_room()
    }

    /// Adds a line; `None` if the batch has to be taken first, else what may have to be done to wake the writer.
    #[expect(clippy::option_option, reason = "no room, and nobody to wake, are two things")]
    fn add(
        &self,
        render: impl Fn(&mut Vec<u8>),
        written: &mut Option<Waiting<String>>,
    ) -> Result<Option<Option<Wake<'_>>>, Failure> {
        let mut state = self.state();
        if state.gone {
            return Err(Failure::unavailable(STOPPED));
        }
        if !state.has_room() {
            return Ok(None);
        }
        if let Some(written) = written.take() {
            state.batch.add(render, written);
        }
        Ok(Some(std::mem::take(&mut state.asleep).then(|| Wake(&self.arrived))))
    }
}

impl Drop for StdoutSink {
    fn drop(&mut self) {
        self.shared.state().closed = true;
        self.shared.arrived.notify_one();
    }
}

impl Sink for StdoutSink {
    async fn publish(&self, message: &Message) -> Result<(), Failure> {
        self.write(|text| render(message, text)).await
    }

    /// The writer is not woken for it before [`Self::flush`]: switching threads costs more than writing a line.
    fn hand_over(&self, message: &Message, pending: Pending) -> Option<Pending> {
        let mut state = self.shared.state();
        if state.gone || !state.has_room() {
            drop(state);
            self.flush();
            return Some(pending);
        }
        state.batch.add(|text| render(message, text), Waiting::Handed(pending));
        None
    }

    fn flush(&self) {
        let mut state = self.shared.state();
        let wake = !state.batch.waiting.is_empty() && std::mem::take(&mut state.asleep);
        // Who is woken may run at once, and would meet the lock.
        drop(state);
        if wake {
            self.shared.arrived.notify_one();
        }
    }

    /// stdout can only be tried by writing, so this repeats how the last write ended.
    async fn probe(&self) -> Result<(), Failure> {
        let broken = self.shared.state().broken.clone();
        broken.map_or(Ok(()), |cause| Err(Failure::unavailable(cause)))
    }

    /// Waits for the lines ahead of it.
    async fn close(&self) {
        let _ = self.write(|_| {}).await;
    }
}

struct Writer<W> {
    output: W,
    /// The last write stopped inside a line: a line break must come first, so that the torn line stands alone.
    torn: bool,
    shared: Arc<Shared>,
}

impl<W> Drop for Writer<W> {
    /// Also after a panic: who waits is to learn of it.
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.gone = true;
        let abandoned = std::mem::take(&mut state.batch);
        drop(state);
        drop(abandoned);
        self.shared.taken.notify_waiters();
    }
}

impl<W: Write> Writer<W> {
    fn run(mut self) {
        let mut batch = Batch::default();
        while self.take(&mut batch) {
            self.write(&mut batch);
        }
    }

    /// Exchanges an empty batch for the lines that wait; `false` if there will be none.
    fn take(&self, batch: &mut Batch) -> bool {
        if batch.text.capacity() > 2 * BATCH_BYTES {
            batch.text = Vec::new();
        }
        let mut state = self.shared.state();
        while state.batch.waiting.is_empty() {
            if state.closed {
                return false;
            }
            state.asleep = true;
            state = self.shared.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        std::mem::swap(&mut state.batch, batch);
        drop(state);
        self.shared.taken.notify_waiters();
        true
    }

    /// Writes the batch, tells each waiter what became of its own line, and leaves the batch empty.
    fn write(&mut self, batch: &mut Batch) {
        let mut error = None;
        if self.torn {
            error = write_what_fits(&mut self.output, b"\n").1;
            self.torn = error.is_some();
        }
        let mut taken = &[][..];
        if error.is_none() {
            (taken, error) = write_what_fits(&mut self.output, &batch.text);
        }
        if let Some(last) = taken.last() {
            self.torn = *last != b'\n';
        }
        let error = error.map(|error| format!("cannot write to stdout: {error}"));
        self.shared.state().broken.clone_from(&error);
        let written = taken.len();
        let outcomes = batch.waiting.drain(..).map(|(end, waiting)| {
            let failed = error.as_ref().filter(|_| end > written);
            (waiting, failed.map_or(Ok(()), |cause| Err(cause.clone())))
        });
        Waiting::tell_all(outcomes);
        batch.text.clear();
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

/// About as many bytes as the names in a line and what stands between them.
const NAMES: usize = 256;

/// Appends `{"topic":…,"key":…,"headers":{…},"event":…}` and a line break.
fn render(message: &Message, line: &mut Vec<u8>) {
    // Looked at together, and in nearly every message there is nothing to escape.
    let plain = json::is_plain(message.texts());
    let write = |text: &str, line: &mut Vec<u8>| {
        if !plain {
            return json::write_string(text, line);
        }
        line.push(b'"');
        line.extend_from_slice(text.as_bytes());
        line.push(b'"');
    };
    line.reserve(message.payload().len() + message.texts().len() + NAMES);
    line.extend_from_slice(br#"{"topic":"#);
    write(message.topic(), line);
    line.extend_from_slice(br#","key":"#);
    write(message.key(), line);
    line.extend_from_slice(br#","headers":{"#);
    for (index, (name, value)) in message.headers().enumerate() {
        if index > 0 {
            line.push(b',');
        }
        // Our own names, which need no escapes.
        line.push(b'"');
        line.extend_from_slice(name.as_bytes());
        line.extend_from_slice(b"\":");
        write(value, line);
    }
    line.extend_from_slice(br#"},"event":"#);
    push_on_one_line(message.payload(), line);
    line.extend_from_slice(b"}\n");
}

/// Appends a valid JSON text: as it is when it came on one line, without its insignificant white space when it did not.
/// Strings and numbers keep every byte.
fn push_on_one_line(json: &[u8], line: &mut Vec<u8>) {
    if memchr::memchr2(b'\n', b'\r', json).is_none() {
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
    use crate::sink::Outcomes;
    use futures_util::future::join_all;
    use std::task::Poll;

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

    fn line(message: &Message) -> String {
        let mut line = Vec::new();
        render(message, &mut line);
        String::from_utf8(line).unwrap()
    }

    fn one_line(json: &str) -> String {
        let mut line = Vec::new();
        push_on_one_line(json.as_bytes(), &mut line);
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn a_line_holds_topic_key_headers_and_the_event_as_received() {
        let line = line(&message(r#"{ "amount": 1.10,  "n":12345678901234567890 }"#));
        assert_eq!(
            line,
            concat!(
                r#"{"topic":"telecmi.cdr","key":"Sales \"A\"\n/42","headers":{"ce_id":"x","ce_subject":"தமிழ்"},"#,
                r#""event":{ "amount": 1.10,  "n":12345678901234567890 }}"#,
                "\n"
            )
        );
        let headless = Message::of(EventId([7; 16]), *b"{}", "t", "k", "");
        assert!(serde_json::from_str::<serde_json::Value>(&super::tests::line(&headless)).is_ok());
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
        sink.publish(&message).await.unwrap();
        while !sink.shared.state().asleep {
            tokio::task::yield_now().await;
        }
        let outcomes = join_all((0..500).map(|_| sink.publish(&message))).await;
        assert!(outcomes.iter().all(Result::is_ok));
        assert_eq!(disk.text(), line(&message).repeat(501));
        assert_eq!(*disk.calls.lock().unwrap(), 2, "lines that are ready together are written together");
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

    /// Waits until so many have been answered for; says which of them were delivered.
    async fn told(outcomes: &Outcomes, count: usize) -> Vec<bool> {
        let mut told = Vec::new();
        let all = std::future::poll_fn(|context| {
            let _ = outcomes.poll_told(context, &mut told);
            if told.len() < count { Poll::Pending } else { Poll::Ready(()) }
        });
        tokio::time::timeout(Duration::from_secs(30), all).await.expect("an answer for each");
        told.sort_by_key(|outcome| outcome.number);
        told.iter().map(|outcome| outcome.delivered).collect()
    }

    #[tokio::test]
    async fn each_line_that_was_handed_over_is_answered_for_once_it_is_written() {
        let message = message("{\"a\":1}");
        let whole = line(&message).len();
        for (room, written) in [(None, 5), (Some(3 * whole + 1), 3), (Some(0), 0)] {
            let disk = Disk::with_room(room);
            let sink = StdoutSink::to(disk.clone()).unwrap();
            while !sink.shared.state().asleep {
                tokio::task::yield_now().await;
            }
            let outcomes = Arc::<Outcomes>::default();
            for number in 0..5 {
                assert!(sink.hand_over(&message, Pending::new(number, outcomes.clone())).is_none());
            }
            assert_eq!(*disk.calls.lock().unwrap(), 0, "they wait for company");
            sink.flush();
            assert_eq!(told(&outcomes, 5).await, (0..5).map(|number| number < written).collect::<Vec<_>>(), "{room:?}");
        }
    }

    #[tokio::test]
    async fn lines_that_wait_for_company_hold_nobody_up() {
        let sink = StdoutSink::to(Disk::with_room(None)).unwrap();
        let large = message(&format!("{{\"a\":\"{}\"}}", "x".repeat(10_000)));
        let fill = async || {
            while !sink.shared.state().asleep {
                tokio::task::yield_now().await;
            }
            let (outcomes, mut handed) = (Arc::<Outcomes>::default(), 0);
            while sink.shared.has_room() {
                assert!(sink.hand_over(&large, Pending::new(handed, outcomes.clone())).is_none());
                handed += 1;
            }
            (outcomes, handed)
        };
        let (outcomes, handed) = fill().await;
        let published = tokio::time::timeout(Duration::from_secs(30), sink.publish(&large)).await;
        assert_eq!(published.expect("it is written"), Ok(()));
        assert_eq!(told(&outcomes, handed).await, vec![true; handed]);

        let (outcomes, handed) = fill().await;
        if let Some(mut pending) = sink.hand_over(&large, Pending::new(handed, outcomes.clone())) {
            pending.withdraw();
        }
        assert_eq!(told(&outcomes, handed).await, vec![true; handed]);
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
