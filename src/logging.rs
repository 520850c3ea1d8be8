//! Logging to stderr, so that stdout is free for events.
//!
//! A thread writes the lines, and nothing waits for it: a line that finds its queue full is dropped and counted. A stderr that nobody reads
//! must not stop webhooks, probes or a stop. (`tracing-appender` does the same, but prints to stdout if its queue is full at exit.)

use prometheus_client::metrics::counter::Counter;
use schemars::JsonSchema;
use serde::de::{Error as _, Unexpected};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{LazyLock, OnceLock};
use std::thread;
use std::time::{Duration, Instant};
use tracing::{Dispatch, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt as _;

/// How many lines wait for stderr: a megabyte, or so.
const QUEUE_LINES: usize = 4096;
/// How long [`flush`] waits for a stderr that is not read.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// Silences libraries that log errors that cdrelay reports itself.
const SILENCED: (&str, LevelFilter) = ("async_nats", LevelFilter::OFF);
/// Restricts libraries that warn of anything that a client does. A directive for one of them in `log.level` overrides this.
const RESTRICTED: (&str, LevelFilter) = ("h2", LevelFilter::ERROR);

type SetLevel = Box<dyn Fn(&Targets) + Send + Sync>;

static QUEUE: OnceLock<SyncSender<Message>> = OnceLock::new();
/// Changes the level of the subscriber that was started.
static SET_LEVEL: OnceLock<SetLevel> = OnceLock::new();
static DROPPED_LINES: LazyLock<Counter> = LazyLock::new(Counter::default);

/// `[log]`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// A level, and directives such as `info,cdrelay::spool=debug`.
    #[serde(deserialize_with = "targets")]
    #[schemars(with = "String", extend("default" = "info"))]
    pub level: Targets,
    /// How lines look.
    pub format: Format,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self { level: Targets::new().with_default(LevelFilter::INFO), format: Format::Text }
    }
}

/// Starts logging for the bridge.
pub fn start(config: &Config) -> io::Result<()> {
    start_at(&config.level, config.format)?;
    // The standard library's hook would wait for stderr.
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
    Ok(())
}

/// Starts logging for a command that ends by itself: with what the spool finds when it is opened, and little else.
pub fn start_for_command(config: &Config) -> io::Result<()> {
    start_at(&Targets::new().with_default(LevelFilter::WARN), config.format)
}

/// Logs at this level from now on, if logging has started.
pub fn set_level(level: &Targets) {
    if let Some(set) = SET_LEVEL.get() {
        set(level);
    }
}

/// Writes one line, behind the log lines if logging has started.
pub fn print(line: impl Display) {
    let line = format!("{line}\n").into_bytes();
    let _ = match QUEUE.get() {
        Some(queue) => Writer(queue.clone()).write_all(&line),
        None => io::stderr().write_all(&line),
    };
}

/// Waits for the lines in the queue to be written, a second at the most.
pub fn flush() {
    let Some(queue) = QUEUE.get() else { return };
    let deadline = Instant::now() + FLUSH_TIMEOUT;
    let (done, flushed) = sync_channel(1);
    while queue.try_send(Message::Flush(done.clone())).is_err() {
        if Instant::now() >= deadline {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    let _ = flushed.recv_timeout(deadline.saturating_duration_since(Instant::now()));
}

/// The number of lines dropped because stderr was not read.
pub fn dropped_lines() -> Counter {
    DROPPED_LINES.clone()
}

fn start_at(level: &Targets, format: Format) -> io::Result<()> {
    let (sender, receiver) = sync_channel(QUEUE_LINES);
    let queue = QUEUE.get_or_init(|| sender);
    thread::Builder::new().name("log".into()).spawn(move || write_lines(&receiver, io::stderr()))?;
    let writer = Writer(queue.clone());
    // An error of the writer would be reported to where it cannot be written.
    let builder = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_writer(move || writer.clone())
        .log_internal_errors(false);
    let targets = with_libraries(level);
    match format {
        Format::Text => install(builder.with_ansi(io::stderr().is_terminal()).finish(), targets),
        Format::Json => install(builder.json().finish(), targets),
    }
    Ok(())
}

fn install<S>(subscriber: S, targets: Targets)
where
    S: Subscriber + for<'a> LookupSpan<'a> + Into<Dispatch> + Send + Sync,
{
    let (layer, handle) = reload::Layer::new(targets);
    subscriber.with(layer).init();
    // It fails only when the subscriber is gone.
    let _ = SET_LEVEL.set(Box::new(move |level| drop(handle.reload(with_libraries(level)))));
}

enum Message {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

/// Queues lines; each call of `write` is one.
#[derive(Clone)]
struct Writer(SyncSender<Message>);

impl Write for Writer {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.0.try_send(Message::Line(line.to_vec())).is_err() {
            DROPPED_LINES.inc();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_lines(queue: &Receiver<Message>, mut out: impl Write) {
    for message in queue {
        let _ = match message {
            Message::Line(line) => out.write_all(&line),
            Message::Flush(done) => done.try_send(()).map_err(io::Error::other),
        };
    }
}

/// The configured levels, with those of noisy libraries.
fn with_libraries(level: &Targets) -> Targets {
    let default = level.default_level().unwrap_or(LevelFilter::OFF);
    Targets::new().with_default(default).with_targets([RESTRICTED]).with_targets(level.clone()).with_targets([SILENCED])
}

fn targets<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Targets, D::Error> {
    let text = String::deserialize(deserializer)?;
    let allowed = "off, error, warn, info, debug or trace, and directives such as `info,cdrelay::spool=debug`";
    parse(&text).ok_or_else(|| D::Error::invalid_value(Unexpected::Str(&text), &allowed))
}

/// Needs a level for everything else: a misspelt level is the name of a module to [`Targets`], and nothing would be logged.
fn parse(text: &str) -> Option<Targets> {
    let text = text.replace(' ', "");
    let targets: Targets = text.parse().ok()?;
    targets.default_level().filter(|_| text.split(',').all(|directive| !directive.is_empty())).map(|_| targets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    #[test]
    fn libraries_log_less_unless_configured() {
        let everything = Targets::new().with_default(LevelFilter::TRACE);
        let asked =
            everything.clone().with_target("h2", LevelFilter::DEBUG).with_target("async_nats", LevelFilter::DEBUG);
        for (level, target, at, expected) in [
            (&everything, "cdrelay::spool", Level::TRACE, true),
            (&everything, "h2::proto", Level::WARN, false),
            (&everything, "h2::proto", Level::ERROR, true),
            (&everything, "async_nats", Level::ERROR, false),
            (&asked, "h2::proto", Level::DEBUG, true),
            (&asked, "h2::proto", Level::TRACE, false),
            (&asked, "async_nats", Level::ERROR, false),
            (&Targets::new().with_target("cdrelay", LevelFilter::INFO), "hyper", Level::ERROR, false),
        ] {
            assert_eq!(with_libraries(level).would_enable(target, &at), expected, "{target} at {at} of {level}");
        }
    }

    #[test]
    fn a_misspelt_level_is_refused() {
        assert_eq!(parse("info"), Some(Targets::new().with_default(LevelFilter::INFO)));
        assert_eq!(parse("OFF"), Some(Targets::new().with_default(LevelFilter::OFF)));
        let expected = Targets::new().with_default(LevelFilter::WARN).with_target("cdrelay::spool", LevelFilter::DEBUG);
        for same in ["warn,cdrelay::spool=debug", "cdrelay::spool=debug, warn"] {
            assert_eq!(parse(same), Some(expected.clone()), "{same}");
        }
        for wrong in ["", "warning", "verbose", "info,", "info;debug", "cdrelay", "cdrelay=loud", "a=b=info"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn lines_that_find_the_queue_full_are_dropped_and_counted() {
        let (sender, receiver) = sync_channel(2);
        let mut writer = Writer(sender);
        let before = DROPPED_LINES.get();
        for line in ["a\n", "b\n", "c\n"] {
            writer.write_all(line.as_bytes()).unwrap();
        }
        assert_eq!(DROPPED_LINES.get() - before, 1);
        drop(writer);
        let mut written = Vec::new();
        write_lines(&receiver, &mut written);
        assert_eq!(written, b"a\nb\n");
    }
}
