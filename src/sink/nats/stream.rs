//! The streams that take the sink's subjects: whether they are there, and the creation of one where the settings ask for it.

use super::connection::{Confirm, Connection};
use super::replies::Answer;
use crate::setting::period;
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

const USER_INFO: &str = "$SYS.REQ.USER.INFO";
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
    #[serde(default, with = "period")]
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
    #[serde(default, with = "period")]
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

/// The messages that a full stream drops.
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
    seen: Mutex<Option<(Instant, Seen)>>,
    /// The differences between settings and stream that were logged.
    differences: Mutex<String>,
}

/// The streams as the server described them; `None` if this user may not ask.
type Seen = Result<Option<Arc<Vec<Found>>>, Failure>;

/// A stream that takes subjects of the sink.
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

/// The answer to `STREAM.NAMES`.
#[derive(Deserialize)]
struct Names {
    #[serde(default)]
    streams: Option<Vec<String>>,
}

/// The used part of the answer to `$SYS.REQ.USER.INFO`.
#[derive(Deserialize)]
struct UserInfo {
    data: User,
}

#[derive(Deserialize)]
struct User {
    #[serde(default)]
    permissions: Permissions,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Permissions {
    publish: Subjects,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Subjects {
    deny: Vec<String>,
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
        if let Some(text) = connection.recent_denial()
            && self.denies_all(connection).await
        {
            return Err(Failure::unavailable(format!("nats refused: {text}")));
        }
        // A user may publish and still be forbidden to ask; then being connected has to do.
        let Some(found) = self.look(connection).await? else { return Ok(()) };
        self.none_confirms(&found, &self.subject).map_or(Ok(()), Err)
    }

    /// Refuses a message for a stream that never confirms, before it is published again and again.
    pub(super) async fn admit(&self, connection: &Connection, subject: &str) -> Result<(), Failure> {
        let known = self.seen.lock().as_ref().map(|(_, seen)| seen.clone());
        let seen = match known {
            Some(seen) => seen,
            None => self.ask(connection, FRESH).await,
        };
        match seen {
            Ok(Some(found)) if found.iter().any(|stream| stream.never_confirms() && stream.takes(subject)) => {
                Err(self.failure(&found, subject, None))
            }
            // Where the server did not tell, the publish will show.
            _ => Ok(()),
        }
    }

    /// Why no stream confirmed a message to `subject` that was published so long ago: `error`, or none takes the subject.
    pub(super) async fn explain(
        &self,
        connection: &Connection,
        subject: &str,
        error: Option<String>,
        since: Duration,
    ) -> Failure {
        match (self.ask(connection, since.min(FRESH)).await, error) {
            (Ok(Some(found)), error) => self.failure(&found, subject, error),
            (_, Some(error)) => Failure::unavailable(error),
            (Ok(None), None) => missing(subject, self.describe_missing(subject)),
            (Err(failure), None) => failure,
        }
    }

    /// The fault is the stream's, or the subject's where no stream takes it. It is the destination's where there is no other stream.
    fn failure(&self, found: &[Found], subject: &str, error: Option<String>) -> Failure {
        if let Some(failure) = self.none_confirms(found, subject) {
            return failure;
        }
        let Some(stream) = found.iter().find(|stream| stream.takes(subject)) else {
            return missing(subject, self.describe_missing(subject));
        };
        let name = &stream.name;
        let (cause, expires) = match error {
            _ if stream.never_confirms() => (never_confirms(name), true),
            Some(error) => (error, false),
            None => (format!("stream `{name}` takes subject `{subject}` and does not answer"), false),
        };
        match found {
            [_] => Failure::unavailable(cause),
            _ => Failure::Place { place: format!("stream {name}"), cause, expires },
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
        let remedy = match &self.name {
            Some(name) => format!("stream `{name}` is missing or has other subjects"),
            None => format!("create one, or set [sinks.{}.stream] name and create = true", self.sink),
        };
        format!("no JetStream stream takes subject `{subject}`; {remedy}")
    }

    /// Whether the server denies every subject of this sink to this user, as far as it tells. `$SYS.REQ.USER.INFO` is answered by
    /// nats-server 2.9 and newer.
    async fn denies_all(&self, connection: &Connection) -> bool {
        let request = connection.publish(USER_INFO, HeaderMap::new(), Default::default(), Confirm::Reply, API_TIMEOUT);
        let Ok(Some(Answer::Reply(reply))) = request.await else { return false };
        let user = serde_json::from_slice::<UserInfo>(&reply.payload);
        user.is_ok_and(|user| user.data.permissions.publish.deny.iter().any(|denied| matches(denied, &self.subject)))
    }

    /// Asks the server for its streams, unless it answered so short a time ago.
    async fn ask(&self, connection: &Connection, max_age: Duration) -> Seen {
        connection.client()?;
        let _asking = self.asking.lock().await;
        let fresh = self.seen.lock().clone().filter(|(at, _)| at.elapsed() < max_age);
        if let Some((_, seen)) = fresh {
            return seen;
        }
        self.look(connection).await
    }

    async fn look(&self, connection: &Connection) -> Seen {
        connection.client()?;
        let seen = self.find(connection).await.map(|found| found.map(Arc::new));
        *self.seen.lock() = Some((Instant::now(), seen.clone()));
        seen
    }

    async fn find(&self, connection: &Connection) -> Result<Option<Vec<Found>>, Failure> {
        let query = serde_json::json!({ "subject": self.subject });
        let mut names = match self.request::<Names>(connection, "STREAM.NAMES", &query).await? {
            Some(Response::Ok(names)) => names.streams.unwrap_or_default(),
            Some(Response::Err { error }) => return Err(Failure::unavailable(error)),
            None => return Ok(None),
        };
        names.retain(|name| self.name().is_none_or(|own| own == name));
        if let (Some(config), true) = (&self.creation, names.is_empty()) {
            self.create(connection, config).await?;
            names.push(config.name.clone());
        }
        let found = join_all(names.into_iter().take(MAX_STREAMS).map(|name| self.describe(connection, name))).await;
        Ok(Some(found.into_iter().flatten().collect()))
    }

    async fn describe(&self, connection: &Connection, name: String) -> Option<Found> {
        let config = match self.request::<stream::Info>(connection, &format!("STREAM.INFO.{name}"), &()).await {
            Ok(Some(Response::Ok(info))) => Some(info.config),
            Ok(Some(Response::Err { error })) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => return None,
            // Forbidden, or without a leader.
            _ => None,
        };
        if let (Some(wanted), Some(found)) = (&self.creation, &config) {
            let differences = differences(found, wanted);
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

    async fn create(&self, connection: &Connection, config: &stream::Config) -> Result<(), Failure> {
        let name = &config.name;
        let error = match self.request::<stream::Info>(connection, &format!("STREAM.CREATE.{name}"), config).await? {
            Some(Response::Ok(_)) => {
                info!(sink = self.sink, stream = name, "stream created");
                return Ok(());
            }
            Some(Response::Err { error }) => error.to_string(),
            None => "the server denies that to this user".to_owned(),
        };
        let subject = &self.subject;
        Err(Failure::unavailable(format!(
            "no JetStream stream takes subject `{subject}`, and stream `{name}` cannot be created: {error}"
        )))
    }

    /// A request of the JetStream API; `None` if this user may not make it.
    async fn request<T: DeserializeOwned>(
        &self,
        connection: &Connection,
        request: &str,
        body: &impl Serialize,
    ) -> Result<Option<Response<T>>, Failure> {
        let failed = |error: String| Failure::unavailable(format!("nats does not answer {request}: {error}"));
        let subject = format!("{}.{request}", self.api);
        let body = serde_json::to_vec(body).map_err(|error| failed(error.to_string()))?.into();
        match connection.publish(&subject, HeaderMap::new(), body, Confirm::Reply, API_TIMEOUT).await? {
            Some(Answer::Reply(reply)) if reply.status == Some(StatusCode::NO_RESPONDERS) => Err(Failure::unavailable(
                "JetStream is not enabled on the nats server for this account; enable it, or set mode = \"core\"",
            )),
            Some(Answer::Reply(reply)) => {
                serde_json::from_slice(&reply.payload).map(Some).map_err(|error| failed(error.to_string()))
            }
            Some(Answer::Denied(_)) => Ok(None),
            _ => Err(failed(format!("nothing within {API_TIMEOUT:?}"))),
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

/// The settings in which an existing stream differs, as `setting: found, not wanted`.
fn differences(found: &stream::Config, wanted: &stream::Config) -> String {
    // A server may report "no limit" as 0 or as -1.
    let limit = |value: i64| if value <= 0 { "no limit".to_owned() } else { value.to_string() };
    let settings = |config: &stream::Config| {
        [
            ("subjects", config.subjects.join(" ")),
            ("max_bytes", limit(config.max_bytes)),
            ("max_age", format!("{:?}", config.max_age)),
            ("max_messages", limit(config.max_messages)),
            ("replicas", config.num_replicas.to_string()),
            ("storage", format!("{:?}", config.storage)),
            ("duplicate_window", format!("{:?}", config.duplicate_window)),
            ("discard", format!("{:?}", config.discard)),
        ]
    };
    let pairs = settings(found).into_iter().zip(settings(wanted)).filter(|(found, wanted)| found != wanted);
    let texts: Vec<_> = pairs.map(|((name, found), (_, wanted))| format!("{name}: {found}, not {wanted}")).collect();
    texts.join(", ")
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
        let refused = |found: &[Found], error: Option<&str>| streams.failure(found, "a.b", error.map(str::to_owned));
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
        assert_eq!(differences(&other, &wanted), "max_bytes: 5, not no limit, discard: New, not Old");
    }
}
