//! The streams that take the sink's subjects: whether they are there, and the creation of one where the settings ask for it.

use super::connection::{Confirm, Connection};
use super::permissions::{denies, matches};
use super::place;
use super::replies::Answer;
use super::stream_config::{StreamConfig, creation, differences};
use crate::sink::{Failure, SetupError};
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::{ErrorCode, stream};
use async_nats::{HeaderMap, StatusCode, header};
use futures_util::future::join_all;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::{info, warn};

pub(super) const API_TIMEOUT: Duration = Duration::from_secs(3);
/// The answer of the server about its streams serves for so long, however many publishes ask.
const FRESH: Duration = Duration::from_secs(1);
/// The server is asked about no more streams than these.
const MAX_STREAMS: usize = 32;

/// The streams that take the sink's subjects, as settings and server describe them.
pub(super) struct Streams {
    sink: String,
    /// `$JS.API`, or that of the domain.
    api: String,
    /// The name of the stream that must store the messages, where the settings give one.
    name: Option<String>,
    /// Its settings, if it is to be created where it is missing.
    creation: Option<stream::Config>,
    /// The sink's subject, with a wildcard for each templated token.
    subject: String,
    /// Held while the server is asked.
    fetching: tokio::sync::Mutex<()>,
    fetched: Mutex<Option<(Instant, Fetched)>>,
    /// The streams as the server described them last.
    described: Mutex<Option<Arc<Vec<Found>>>>,
    /// The differences between settings and stream that were logged.
    differences: Mutex<String>,
}

/// The streams as the server described them; `None` if this user may not ask.
type Fetched = Result<Option<Arc<Vec<Found>>>, Failure>;

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
    streams: Option<Vec<String>>,
}

/// The used part of the answer to `STREAM.MSG.GET`.
#[derive(Deserialize)]
struct LastMessage {
    message: stream::RawMessage,
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
            fetching: tokio::sync::Mutex::default(),
            fetched: Mutex::default(),
            described: Mutex::default(),
            differences: Mutex::default(),
        })
    }

    pub(super) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Whether a stream takes messages, as far as the server lets this user ask.
    pub(super) async fn probe(&self, connection: &Connection) -> Result<(), Failure> {
        if let Some(text) = connection.recent_denial()
            && denies(connection, &self.subject).await
        {
            return Err(Failure::unavailable(format!("nats refused: {text}")));
        }
        // A user may publish and still be forbidden to ask; then being connected has to do.
        let Some(found) = self.refresh(connection).await? else { return Ok(()) };
        match found.as_slice() {
            [] => Err(self.no_stream()),
            [first, ..] if found.iter().all(Found::never_confirms) => Err(never_confirms(&first.name)),
            _ => Ok(()),
        }
    }

    /// Refuses a message for a stream that never confirms, before it is published again and again.
    pub(super) async fn admit(&self, connection: &Connection, subject: &str) -> Result<(), Failure> {
        let found = self.described(connection).await.unwrap_or_default();
        match found.iter().find(|stream| stream.never_confirms() && stream.takes(subject)) {
            Some(stream) => Err(never_confirms(&stream.name)),
            None => Ok(()),
        }
    }

    /// Whether a stream has the message `id`, which was published to `subject` so long ago without an acknowledgement. Within the
    /// stream's `duplicate_window` the answer is no: the stream recognises a copy by itself. Looks at the last message of
    /// the subject, which is this one where the subject names the conversation, since nothing of the conversation was published
    /// behind it.
    pub(super) async fn holds(&self, connection: &Connection, subject: &str, id: &str, age: Duration) -> bool {
        let found = self.described(connection).await.unwrap_or_default();
        let Some(stream) = found.iter().find(|stream| stream.takes(subject)) else { return false };
        if stream.config.as_ref().is_some_and(|config| age < config.duplicate_window) {
            return false;
        }
        let request = format!("STREAM.MSG.GET.{}", stream.name);
        let query = serde_json::json!({ "last_by_subj": subject });
        let Ok(Some(Response::Ok(last))) = self.request::<LastMessage>(connection, &request, &query).await else {
            // The user may not ask, or there is no such message.
            return false;
        };
        let last = StreamMessage::try_from(last.message);
        last.is_ok_and(|last| last.headers.get(header::NATS_MESSAGE_ID).is_some_and(|found| found.as_str() == id))
    }

    /// Why no stream confirmed a message to `subject` that was published so long ago: `error`, or none takes the subject.
    pub(super) async fn explain(
        &self,
        connection: &Connection,
        subject: &str,
        error: Option<String>,
        since: Duration,
    ) -> Failure {
        match (self.recent(connection, since.min(FRESH)).await, error) {
            (Ok(Some(found)), error) => self.failure(&found, subject, error),
            (_, Some(error)) => Failure::unavailable(error),
            (Ok(None), None) => self.missing(place(subject), subject),
            (Err(failure), None) => failure,
        }
    }

    /// The fault is the stream's, or the subject's where no stream takes it. A stream that fails is the destination's fault where there is
    /// no other.
    fn failure(&self, found: &[Found], subject: &str, error: Option<String>) -> Failure {
        let Some(stream) = found.iter().find(|stream| stream.takes(subject)) else {
            return if found.is_empty() { self.no_stream() } else { self.missing(place(subject), subject) };
        };
        let name = &stream.name;
        if stream.never_confirms() {
            return never_confirms(name);
        }
        let cause = error.unwrap_or_else(|| format!("stream `{name}` takes subject `{subject}` and does not answer"));
        match found {
            [_] => Failure::unavailable(cause),
            _ => Failure::Place { place: format!("stream {name}"), cause, expires: false },
        }
    }

    /// No stream takes any subject of the sink: one place for all of them.
    fn no_stream(&self) -> Failure {
        let place = self.name.as_ref().map_or_else(|| place(&self.subject), |name| format!("stream {name}"));
        self.missing(place, &self.subject)
    }

    fn missing(&self, place: String, subject: &str) -> Failure {
        let remedy = match &self.name {
            Some(name) => format!("stream `{name}` is missing or has other subjects"),
            None => format!("create one, or set [sinks.{}.stream] name and create = true", self.sink),
        };
        let cause = format!("no JetStream stream takes subject `{subject}`; {remedy}");
        Failure::Place { place, cause, expires: true }
    }

    /// The streams as the server described them last.
    async fn described(&self, connection: &Connection) -> Option<Arc<Vec<Found>>> {
        if self.fetched.lock().is_none() {
            // Where the server does not tell, the publish will show.
            let _ = self.recent(connection, FRESH).await;
        }
        self.described.lock().clone()
    }

    /// Asks the server for its streams, unless it answered so short a time ago.
    async fn recent(&self, connection: &Connection, max_age: Duration) -> Fetched {
        connection.client()?;
        let _fetching = self.fetching.lock().await;
        let fresh = self.fetched.lock().clone().filter(|(at, _)| at.elapsed() < max_age);
        if let Some((_, fetched)) = fresh {
            return fetched;
        }
        self.refresh(connection).await
    }

    async fn refresh(&self, connection: &Connection) -> Fetched {
        connection.client()?;
        let fetched = self.fetch(connection).await.map(|found| found.map(Arc::new));
        *self.fetched.lock() = Some((Instant::now(), fetched.clone()));
        if let Ok(Some(found)) = &fetched {
            *self.described.lock() = Some(Arc::clone(found));
        }
        fetched
    }

    async fn fetch(&self, connection: &Connection) -> Result<Option<Vec<Found>>, Failure> {
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
            Answer::Reply(reply) if reply.status == Some(StatusCode::NO_RESPONDERS) => Err(Failure::unavailable(
                "JetStream is not enabled on the nats server for this account; enable it, or set mode = \"core\"",
            )),
            Answer::Reply(reply) => {
                serde_json::from_slice(&reply.payload).map(Some).map_err(|error| failed(error.to_string()))
            }
            Answer::Denied(_) => Ok(None),
            Answer::Lost => Err(connection.lost()),
            Answer::TimedOut => Err(failed(format!("nothing within {API_TIMEOUT:?}"))),
        }
    }
}

fn never_confirms(stream: &str) -> Failure {
    let cause = format!("stream `{stream}` has no_ack set, so it never confirms a message; unset it");
    Failure::Place { place: format!("stream {stream}"), cause, expires: true }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(toml: &str) -> StreamConfig {
        use figment::providers::{Format, Toml};
        figment::Figment::from(Toml::string(toml)).extract().unwrap()
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
        let place = |found: &[Found]| match refused(found, None) {
            Failure::Place { place, cause, expires: true } => (place, cause),
            other => panic!("{other}"),
        };
        assert_eq!(place(&both[1..]).0, "subject a.b");
        for found in [vec![found("A", "a.b", true), found("B", "a.c", false)], vec![found("A", "a.b", true)]] {
            let (place, cause) = place(&found);
            assert!(place == "stream A" && cause.contains("`A` has no_ack"), "{place}: {cause}");
        }
        assert_eq!(place(&[]).0, "subject a.*", "one place for all subjects");
    }
}
