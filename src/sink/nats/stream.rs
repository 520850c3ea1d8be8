//! The streams that take the sink's subjects: whether they are there, and the creation of one where the settings ask for it.

use super::connection::Connection;
use super::replies::Answer;
use crate::setting::optional_period;
use crate::sink::{Failure, SetupError};
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::{self, DiscardPolicy, StorageType};
use async_nats::{HeaderMap, StatusCode};
use bytesize::ByteSize;
use futures_util::future::join_all;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::{info, warn};

const API_TIMEOUT: Duration = Duration::from_secs(3);
/// The answer of the server about its streams serves for so long, however many publishes ask.
const FRESH: Duration = Duration::from_secs(1);
/// The server is asked about no more streams than these.
const MAX_STREAMS: usize = 32;

/// The JetStream stream that stores the messages.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamConfig {
    /// Its name. Every message is sent with `Nats-Expected-Stream`, so that it cannot land in another one.
    pub name: String,
    /// Create it when it is missing, with the settings below. An existing stream is never changed: what differs is logged.
    #[serde(default)]
    pub create: bool,
    /// The subjects it takes. Default: the sink's subject with a wildcard for each templated token.
    #[serde(default)]
    pub subjects: Vec<String>,
    /// Its largest size. Default: no limit.
    #[serde(default)]
    pub max_bytes: Option<ByteSize>,
    /// How long it keeps a message. Default: for ever.
    #[serde(default, with = "optional_period")]
    pub max_age: Option<Duration>,
    /// How many messages it keeps. Default: no limit.
    #[serde(default)]
    pub max_messages: Option<u32>,
    /// Copies in a cluster, 1 to 5. Default: 1.
    #[serde(default = "one")]
    pub replicas: usize,
    /// Where it keeps messages: `file` (default) or `memory`, which does not survive a restart of the server.
    #[serde(default)]
    pub storage: Storage,
    /// How long the server remembers `Nats-Msg-Id`. Default: 1 hour (or `max_age` where that is shorter). A message stored by
    /// the server whose acknowledgement got lost is sent again when the connection is back; within this window the server
    /// drops the second copy. One hour covers restarts of either side, and the 45 minutes in which the ingress recognises a
    /// resend; after a longer outage the last messages in flight may be stored twice.
    #[serde(default, with = "optional_period")]
    pub duplicate_window: Option<Duration>,
    /// When a limit is reached: `old` (default) drops the oldest messages, as a log does; `new` refuses new ones, which then
    /// wait in the spool.
    #[serde(default)]
    pub discard: Discard,
}

/// Where a stream keeps its messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Storage {
    /// On disk.
    #[default]
    File,
    /// In the server's memory.
    Memory,
}

/// What a full stream gives up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Discard {
    /// Its oldest messages.
    #[default]
    Old,
    /// The message that no longer fits.
    New,
}

fn one() -> usize {
    1
}

/// The streams that take the sink's subjects, as settings and server describe them.
pub(super) struct Streams {
    sink: String,
    /// `$JS.API`, or that of the domain.
    api: String,
    /// The name of the stream that must store the messages, where the settings give one.
    name: Option<String>,
    /// What to create it with, where the settings ask for that.
    creation: Option<stream::Config>,
    /// The sink's subject, with a wildcard for each templated token.
    subject: String,
    /// Held while the server is asked.
    asking: tokio::sync::Mutex<()>,
    seen: Mutex<Option<(Instant, Answered)>>,
    /// The differences between settings and stream that were logged.
    differences: Mutex<String>,
}

type Answered = Result<Arc<Seen>, Failure>;

/// The server's answer about its streams.
#[derive(Debug)]
enum Seen {
    /// Those that take subjects of the sink, and of the configured name where there is one.
    Streams(Vec<Found>),
    /// This user may not ask.
    Forbidden,
}

#[derive(Debug)]
struct Found {
    name: String,
    /// `None` if the stream itself did not answer.
    config: Option<stream::Config>,
}

impl Found {
    /// A stream that does not answer may take any subject of the sink.
    fn takes(&self, subject: &str) -> bool {
        self.config.as_ref().is_none_or(|config| config.subjects.iter().any(|pattern| matches(pattern, subject)))
    }

    fn never_confirms(&self) -> bool {
        self.config.as_ref().is_some_and(|config| config.no_ack)
    }
}

/// Why the server did not answer a request of the JetStream API.
enum AskError {
    Forbidden,
    Failed(Failure),
}

/// The answer to `STREAM.NAMES`.
#[derive(Deserialize)]
struct Names {
    #[serde(default)]
    streams: Option<Vec<String>>,
}

impl Streams {
    /// Refuses settings that the server would refuse every time. `subject` is the sink's with a wildcard for each templated token.
    pub(super) fn new(
        sink: &str,
        domain: Option<&str>,
        config: Option<&StreamConfig>,
        subject: &str,
    ) -> Result<Self, SetupError> {
        if let Some(StreamConfig { name, .. }) = config {
            let legal = |c: char| c.is_ascii_graphic() && !matches!(c, '.' | '*' | '>' | '/' | '\\');
            if name.is_empty() || !name.chars().all(legal) {
                return Err(SetupError(format!(
                    "`stream.name`: `{name}` is empty or holds a blank, `.`, `*`, `>` or a slash"
                )));
            }
        }
        Ok(Self {
            sink: sink.to_owned(),
            api: domain.map_or_else(|| "$JS.API".to_owned(), |domain| format!("$JS.{domain}.API")),
            name: config.map(|config| config.name.clone()),
            creation: config.filter(|config| config.create).map(|config| creation(config, subject)).transpose()?,
            subject: subject.to_owned(),
            asking: tokio::sync::Mutex::default(),
            seen: Mutex::default(),
            differences: Mutex::default(),
        })
    }

    pub(super) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Whether a stream takes messages, as far as the server lets this user ask.
    pub(super) async fn probe(&self, connection: &Connection) -> Result<(), Failure> {
        match &*self.ask(connection, Duration::ZERO).await? {
            Seen::Streams(found) => self.none_confirms(found, &self.subject).map_or(Ok(()), Err),
            // An account may publish and still be forbidden to ask; then being connected has to do.
            Seen::Forbidden => Ok(()),
        }
    }

    /// Refuses a message for a stream that never confirms, before it is published again and again.
    pub(super) async fn admit(&self, connection: &Connection, subject: &str) -> Result<(), Failure> {
        let known = self.seen.lock().as_ref().map(|(_, seen)| seen.clone());
        let seen = match known {
            Some(seen) => seen,
            None => self.ask(connection, FRESH).await,
        };
        // Where the server did not tell, the publish will show.
        let Ok(Seen::Streams(found)) = seen.as_deref() else { return Ok(()) };
        match found.iter().any(|stream| stream.never_confirms() && stream.takes(subject)) {
            true => Err(self.failure(found, subject, None)),
            false => Ok(()),
        }
    }

    /// Why no stream confirmed a message to `subject`: none took it, or the one that did answered with `error`.
    pub(super) async fn explain(&self, connection: &Connection, subject: &str, error: Option<&str>) -> Failure {
        match self.ask(connection, FRESH).await.as_deref() {
            Ok(Seen::Streams(found)) => self.failure(found, subject, error),
            Ok(Seen::Forbidden) => match error {
                Some(error) => Failure::unavailable(error),
                None => missing(subject, self.describe_missing(subject)),
            },
            Err(failure) => failure.clone(),
        }
    }

    /// The fault is the stream's, or the subject's where no stream takes it. It is the destination's where there is no other stream.
    fn failure(&self, found: &[Found], subject: &str, error: Option<&str>) -> Failure {
        if let Some(failure) = self.none_confirms(found, subject) {
            return failure;
        }
        let Some(stream) = found.iter().find(|stream| stream.takes(subject)) else {
            return missing(subject, self.describe_missing(subject));
        };
        let (cause, expires) = match (error, stream.never_confirms()) {
            (_, true) => (never_confirms(&stream.name), true),
            (Some(error), _) => (error.to_owned(), false),
            (None, _) => (format!("stream `{}` takes the subject and does not answer", stream.name), false),
        };
        match found {
            [_] => Failure::unavailable(cause),
            _ => Failure::Place { place: format!("stream {}", stream.name), cause, expires },
        }
    }

    /// Why no message of this sink can be confirmed, if so.
    fn none_confirms(&self, found: &[Found], subject: &str) -> Option<Failure> {
        match found {
            [] => Some(Failure::unavailable(self.describe_missing(subject))),
            [first, ..] if found.iter().all(Found::never_confirms) => {
                Some(Failure::unavailable(never_confirms(&first.name)))
            }
            _ => None,
        }
    }

    fn describe_missing(&self, subject: &str) -> String {
        match &self.name {
            Some(name) => {
                format!("no JetStream stream takes subject `{subject}`: `{name}` is missing or has other subjects")
            }
            None => format!(
                "no JetStream stream takes subject `{subject}`; create one, or set [sinks.{}.stream] name and create = true",
                self.sink
            ),
        }
    }

    /// Asks the server for its streams, unless it answered so short a time ago.
    async fn ask(&self, connection: &Connection, max_age: Duration) -> Answered {
        let _asking = self.asking.lock().await;
        let fresh = self.seen.lock().clone().filter(|(at, _)| at.elapsed() < max_age);
        if let Some((_, seen)) = fresh {
            return seen;
        }
        let seen = match self.find(connection).await {
            Ok(found) => Ok(Arc::new(Seen::Streams(found))),
            Err(AskError::Forbidden) => Ok(Arc::new(Seen::Forbidden)),
            Err(AskError::Failed(failure)) => Err(failure),
        };
        *self.seen.lock() = Some((Instant::now(), seen.clone()));
        seen
    }

    async fn find(&self, connection: &Connection) -> Result<Vec<Found>, AskError> {
        let query = serde_json::json!({ "subject": self.subject });
        let names = self.request::<Names>(connection, "STREAM.NAMES".to_owned(), &query).await?;
        let names = names.map_err(|error| AskError::Failed(Failure::unavailable(error)))?.streams.unwrap_or_default();
        let mut wanted: Vec<_> = names.into_iter().filter(|name| self.name().is_none_or(|own| own == name)).collect();
        if let (Some(config), true) = (&self.creation, wanted.is_empty()) {
            self.create(connection, config).await?;
            wanted.push(config.name.clone());
        }
        let found = join_all(wanted.into_iter().take(MAX_STREAMS).map(|name| self.describe(connection, name))).await;
        Ok(found.into_iter().flatten().collect())
    }

    async fn describe(&self, connection: &Connection, name: String) -> Option<Found> {
        let config = match self.request::<stream::Info>(connection, format!("STREAM.INFO.{name}"), &()).await {
            Ok(Ok(info)) => Some(info.config),
            Ok(Err(error)) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => return None,
            // Forbidden, or without a leader.
            _ => None,
        };
        if let (Some(wanted), Some(found)) = (&self.creation, &config) {
            let differences = differences(found, wanted).join(", ");
            let mut logged = self.differences.lock();
            if *logged != differences && !differences.is_empty() {
                warn!(
                    sink = self.sink,
                    stream = name,
                    differences,
                    "the stream exists with other settings, left as it is"
                );
            }
            *logged = differences;
        }
        Some(Found { name, config })
    }

    async fn create(&self, connection: &Connection, config: &stream::Config) -> Result<(), AskError> {
        match self.request::<stream::Info>(connection, format!("STREAM.CREATE.{}", config.name), config).await? {
            Ok(_) => {
                info!(sink = self.sink, stream = config.name, "stream created");
                Ok(())
            }
            Err(error) => Err(AskError::Failed(Failure::unavailable(format!(
                "no JetStream stream takes subject `{}`, and stream `{}` cannot be created: {error}",
                self.subject, config.name
            )))),
        }
    }

    /// A request of the JetStream API. The inner error is the server's answer.
    async fn request<T: DeserializeOwned>(
        &self,
        connection: &Connection,
        request: String,
        body: &impl Serialize,
    ) -> Result<Result<T, async_nats::jetstream::Error>, AskError> {
        let failed = |error: &dyn std::fmt::Display| {
            AskError::Failed(Failure::unavailable(format!("cannot ask nats about the stream ({request}): {error}")))
        };
        let subject = format!("{}.{request}", self.api);
        let body = serde_json::to_vec(body).map_err(|error| failed(&error))?;
        let answer = connection.request(&subject, HeaderMap::new(), body.into(), API_TIMEOUT).await;
        match answer.map_err(AskError::Failed)? {
            Some(Answer::Reply(reply)) if reply.status == Some(StatusCode::NO_RESPONDERS) => {
                Err(AskError::Failed(Failure::unavailable(
                    "JetStream is not enabled on the nats server for this account; enable it, or set mode = \"core\"",
                )))
            }
            Some(Answer::Reply(reply)) => match serde_json::from_slice(&reply.payload) {
                Ok(Response::Ok(found)) => Ok(Ok(found)),
                Ok(Response::Err { error }) => Ok(Err(error)),
                Err(error) => Err(failed(&error)),
            },
            Some(Answer::Denied(_)) => Err(AskError::Forbidden),
            _ => Err(failed(&"no answer")),
        }
    }
}

fn missing(subject: &str, cause: String) -> Failure {
    Failure::Place { place: super::place(subject), cause, expires: true }
}

fn never_confirms(stream: &str) -> String {
    format!("stream `{stream}` has no_ack set, so it never confirms a message; unset it")
}

/// Whether the stream subject `pattern` takes `subject`, which may hold wildcards itself.
fn matches(pattern: &str, subject: &str) -> bool {
    let (mut pattern, mut subject) = (pattern.split('.'), subject.split('.'));
    loop {
        match (pattern.next(), subject.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some(pattern), Some(subject)) if pattern == "*" || pattern == subject => {}
            _ => return false,
        }
    }
}

fn creation(config: &StreamConfig, subject: &str) -> Result<stream::Config, SetupError> {
    let subjects = match config.subjects.as_slice() {
        [] => vec![subject.to_owned()],
        subjects => subjects.to_vec(),
    };
    if let Some(bad) = subjects.iter().find(|subject| !async_nats::Subject::from(subject.as_str()).is_valid()) {
        return Err(SetupError(format!("`stream.subjects`: `{bad}` is not a subject")));
    }
    if !(1..=5).contains(&config.replicas) {
        return Err(SetupError(format!("`stream.replicas`: {} is not between 1 and 5", config.replicas)));
    }
    let duplicate_window = match (config.duplicate_window, config.max_age) {
        (Some(window), Some(age)) if window > age => {
            return Err(SetupError(
                "`stream.duplicate_window` is longer than `stream.max_age`, which the server refuses".to_owned(),
            ));
        }
        (Some(window), _) => window,
        (None, age) => age.unwrap_or(Duration::MAX).min(Duration::from_secs(3600)),
    };
    let unlimited = -1;
    Ok(stream::Config {
        name: config.name.clone(),
        description: Some("call detail records from cdrelay".to_owned()),
        subjects,
        max_bytes: config.max_bytes.map_or(unlimited, |size| i64::try_from(size.as_u64()).unwrap_or(i64::MAX)),
        max_age: config.max_age.unwrap_or(Duration::ZERO),
        max_messages: config.max_messages.map_or(unlimited, i64::from),
        max_messages_per_subject: unlimited,
        max_consumers: -1,
        num_replicas: config.replicas,
        storage: match config.storage {
            Storage::File => StorageType::File,
            Storage::Memory => StorageType::Memory,
        },
        discard: match config.discard {
            Discard::Old => DiscardPolicy::Old,
            Discard::New => DiscardPolicy::New,
        },
        duplicate_window,
        ..Default::default()
    })
}

/// What an operator should know about an existing stream: `setting: found, not wanted`.
fn differences(found: &stream::Config, wanted: &stream::Config) -> Vec<String> {
    let mut all = Vec::new();
    let mut compare = |setting: &str, found: String, wanted: String| {
        if found != wanted {
            all.push(format!("{setting}: {found}, not {wanted}"));
        }
    };
    // A server may report "no limit" as 0 or as -1.
    let limit = |value: i64| if value <= 0 { "no limit".to_owned() } else { value.to_string() };
    compare("subjects", found.subjects.join(" "), wanted.subjects.join(" "));
    compare("max_bytes", limit(found.max_bytes), limit(wanted.max_bytes));
    compare("max_age", format!("{:?}", found.max_age), format!("{:?}", wanted.max_age));
    compare("max_messages", limit(found.max_messages), limit(wanted.max_messages));
    compare("replicas", found.num_replicas.to_string(), wanted.num_replicas.to_string());
    compare("storage", format!("{:?}", found.storage), format!("{:?}", wanted.storage));
    compare("duplicate_window", format!("{:?}", found.duplicate_window), format!("{:?}", wanted.duplicate_window));
    compare("discard", format!("{:?}", found.discard), format!("{:?}", wanted.discard));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(toml: &str) -> StreamConfig {
        use figment::providers::{Format, Toml};
        figment::Figment::from(Toml::string(toml)).extract().unwrap()
    }

    #[test]
    fn the_defaults_take_the_sinks_subject_and_remember_ids_for_an_hour() {
        let wanted = creation(&config("name = 'CDR'\ncreate = true"), "telecmi.cdr.*.*").unwrap();
        assert_eq!(wanted.subjects, ["telecmi.cdr.*.*"]);
        assert_eq!(wanted.duplicate_window, Duration::from_secs(3600));
        assert_eq!((wanted.max_bytes, wanted.max_messages, wanted.max_age), (-1, -1, Duration::ZERO));
        let short = creation(&config("name = 'CDR'\nmax_age = '10m'\nmax_bytes = '1MiB'"), "a").unwrap();
        assert_eq!(short.duplicate_window, Duration::from_secs(600));
        assert_eq!(short.max_bytes, 1 << 20);
    }

    #[test]
    fn settings_that_the_server_would_refuse_are_refused_at_load() {
        let error = |toml: &str| Streams::new("n", None, Some(&config(toml)), "a").err().unwrap().to_string();
        assert!(error("name = 'a.b'").contains("`stream.name`"));
        assert!(error("name = 'C'\ncreate = true\nreplicas = 6").contains("`stream.replicas`"));
        assert!(error("name = 'C'\ncreate = true\nsubjects = ['a..b']").contains("`a..b`"));
        let window = "name = 'C'\ncreate = true\nmax_age = '1m'\nduplicate_window = '2m'";
        assert!(error(window).contains("longer than `stream.max_age`"));
    }

    #[test]
    fn a_stream_takes_the_subjects_that_its_patterns_match() {
        for (pattern, subject) in [("a.b", "a.b"), ("a.*", "a.b"), ("a.>", "a.b.c"), (">", "a"), ("a.*.c", "a.b.c")] {
            assert!(matches(pattern, subject), "{pattern} {subject}");
        }
        for (pattern, subject) in [("a.b", "a"), ("a", "a.b"), ("a.>", "a"), ("a.*", "a.b.c"), ("a.b", "a.c")] {
            assert!(!matches(pattern, subject), "{pattern} {subject}");
        }
    }

    #[test]
    fn a_failing_stream_stops_the_sink_only_where_it_is_the_only_one() {
        let streams = Streams::new("n", None, None, "a.*").unwrap();
        let found = |name: &str, subject: &str, no_ack| {
            let subjects = vec![subject.to_owned()];
            Found { name: name.into(), config: Some(stream::Config { subjects, no_ack, ..Default::default() }) }
        };
        let refused = |found: &[Found], error| streams.failure(found, "a.b", error);
        let full = Some("maximum messages exceeded");
        assert_eq!(refused(&[found("A", "a.b", false)], full), Failure::unavailable("maximum messages exceeded"));
        let both = [found("A", "a.b", false), found("B", "a.c", false)];
        let Failure::Place { place, cause, expires } = refused(&both, full) else { panic!() };
        assert_eq!((place.as_str(), cause.as_str(), expires), ("stream A", "maximum messages exceeded", false));
        let Failure::Place { place, expires, .. } = refused(&both[1..], None) else { panic!() };
        assert_eq!((place.as_str(), expires), ("subject a.b", true));
        let Failure::Place { cause, expires, .. } = refused(&[found("A", "a.b", true), found("B", "a.c", false)], None)
        else {
            panic!()
        };
        assert!(cause.contains("`A` has no_ack") && expires, "{cause}");
        for found in [vec![], vec![found("A", "a.b", true)]] {
            assert!(matches!(refused(&found, None), Failure::Unavailable { .. }));
        }
    }

    #[test]
    fn only_what_differs_is_named() {
        let wanted = creation(&config("name = 'CDR'"), "a.*").unwrap();
        let same = stream::Config { max_bytes: 0, ..wanted.clone() };
        assert!(differences(&same, &wanted).is_empty());
        let other = stream::Config { max_bytes: 5, discard: DiscardPolicy::New, ..wanted.clone() };
        assert_eq!(differences(&other, &wanted), ["max_bytes: 5, not no limit", "discard: New, not Old"]);
    }
}
