//! The stream behind the subject: whether it is there, and its creation where the settings ask for it.

use crate::setting::optional_period;
use crate::sink::nats::link::Link;
use crate::sink::{Failure, SetupError};
use async_nats::Client;
use async_nats::jetstream::context::{ContextBuilder, RequestErrorKind};
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::{self, DiscardPolicy, StorageType};
use async_nats::jetstream::{Context, ErrorCode};
use bytesize::ByteSize;
use serde::Deserialize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tracing::{info, warn};

const API_TIMEOUT: Duration = Duration::from_secs(3);
/// Between two attempts to create the stream, and between two looks at it however often a publish asks.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

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

/// The stream as settings and subject describe it.
pub(super) struct StreamCheck {
    sink: String,
    domain: Option<String>,
    /// Its name, where the settings give one.
    name: Option<String>,
    /// What to create it with, where the settings ask for that.
    creation: Option<stream::Config>,
    /// The subject with wildcards, to ask the server who takes it.
    subject: Option<String>,
    /// Why the last attempt to create it failed.
    error: Mutex<Option<String>>,
}

impl StreamCheck {
    /// Refuses settings that the server would refuse every time.
    pub(super) fn new(
        sink: &str,
        domain: Option<&str>,
        config: Option<&StreamConfig>,
        subject: Option<&str>,
    ) -> Result<Self, SetupError> {
        let creation = match config {
            Some(config) if config.create => Some(creation(config, subject)?),
            _ => None,
        };
        if let Some(config) = config {
            let legal = |c: char| c.is_ascii_graphic() && !matches!(c, '.' | '*' | '>' | '/' | '\\');
            if config.name.is_empty() || !config.name.chars().all(legal) {
                return Err(SetupError(format!(
                    "`stream.name`: `{}` is empty or holds a blank, `.`, `*`, `>` or a slash",
                    config.name
                )));
            }
        }
        Ok(Self {
            sink: sink.to_owned(),
            domain: domain.map(str::to_owned),
            name: config.map(|config| config.name.clone()),
            creation,
            subject: subject.map(str::to_owned),
            error: Mutex::default(),
        })
    }

    pub(super) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    pub(super) fn creates(&self) -> bool {
        self.creation.is_some()
    }

    /// What to tell when nobody answered for `subject`.
    pub(super) fn describe_missing(&self, subject: &str) -> String {
        let error = self.error().clone();
        match (&self.name, self.creates(), error) {
            (Some(name), true, Some(error)) => {
                format!("no JetStream stream takes subject `{subject}`, and stream `{name}` cannot be created: {error}")
            }
            (Some(name), true, None) => {
                format!("no JetStream stream takes subject `{subject}` yet; stream `{name}` is being created")
            }
            _ => format!(
                "no JetStream stream takes subject `{subject}`; create one, or set [sinks.{}.stream] name and create = true",
                self.sink
            ),
        }
    }

    /// Whether a stream takes the subject, as far as the server lets this client ask.
    pub(super) async fn probe(&self, link: &Link, client: &Client) -> Result<(), Failure> {
        let context = self.context(client);
        let start = Instant::now();
        let unknown = |subject: &str, error: &dyn std::fmt::Display| match link.complaint_about("$JS", start) {
            // An account may publish and still be forbidden to look; then being connected has to do.
            Some(_) => Ok(()),
            None => Err(Failure::unavailable(format!("cannot ask nats about the stream ({subject}): {error}"))),
        };
        if let Some(name) = &self.name {
            match context.request::<_, _, Response<stream::Info>>(format!("STREAM.INFO.{name}"), &()).await {
                Ok(Response::Ok(info)) if info.config.no_ack => {
                    return Err(Failure::unavailable(format!(
                        "stream `{name}` has no_ack set, so it never confirms a message; unset it"
                    )));
                }
                Ok(Response::Ok(_)) => {}
                Ok(Response::Err { error }) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                    return Err(Failure::unavailable(self.describe_missing(self.subject.as_deref().unwrap_or(name))));
                }
                Ok(Response::Err { error }) => return Err(Failure::unavailable(error)),
                Err(error) if error.kind() == RequestErrorKind::NoResponders => return Err(no_jetstream()),
                Err(error) => return unknown(name, &error),
            }
        }
        if let Some(subject) = &self.subject {
            let query = serde_json::json!({ "subject": subject });
            match context.request::<_, _, Response<Names>>("STREAM.NAMES", &query).await {
                Ok(Response::Ok(names)) if takes(&names, self.name()) => {}
                Ok(Response::Ok(_)) => return Err(Failure::unavailable(self.describe_missing(subject))),
                Ok(Response::Err { error }) => return Err(Failure::unavailable(error)),
                Err(error) if error.kind() == RequestErrorKind::NoResponders => return Err(no_jetstream()),
                Err(error) => return unknown(subject, &error),
            }
        }
        Ok(())
    }

    /// Creates the stream after each connect, and whenever a publish finds it gone, until it is there.
    pub(super) async fn keep(self: Arc<Self>, link: Weak<Link>, wanted: Arc<Notify>) {
        let Some(config) = &self.creation else { return };
        // Told once, not at every look.
        let mut known = String::new();
        loop {
            wanted.notified().await;
            let Some(link) = link.upgrade() else { return };
            let Ok(client) = link.client() else { continue };
            let outcome = self.ensure(&self.context(client), config).await;
            drop(link);
            match &outcome {
                Ok(differences) if !differences.is_empty() && *differences != known => {
                    known.clone_from(differences);
                    warn!(
                        sink = self.sink,
                        stream = config.name,
                        differences,
                        "the stream exists with other settings, left as it is"
                    );
                }
                Ok(_) => {}
                Err(error) => {
                    wanted.notify_one();
                    if self.error().as_ref() != Some(error) {
                        warn!(
                            sink = self.sink,
                            stream = config.name,
                            error,
                            "cannot create the stream, trying for ever"
                        );
                    }
                }
            }
            *self.error() = outcome.err();
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// Makes sure that the stream is there. Returns what differs from the settings.
    async fn ensure(&self, context: &Context, wanted: &stream::Config) -> Result<String, String> {
        let info = context.request::<_, _, Response<stream::Info>>(format!("STREAM.INFO.{}", wanted.name), &()).await;
        match info.map_err(|error| error.to_string())? {
            Response::Ok(found) => Ok(differences(&found.config, wanted).join(", ")),
            Response::Err { error } if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                context.create_stream(wanted.clone()).await.map_err(|error| error.to_string())?;
                info!(sink = self.sink, stream = wanted.name, "stream created");
                Ok(String::new())
            }
            Response::Err { error } => Err(error.to_string()),
        }
    }

    fn context(&self, client: &Client) -> Context {
        context(self.domain.as_deref(), client)
    }

    fn error(&self) -> MutexGuard<'_, Option<String>> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The JetStream of this domain.
pub(super) fn context(domain: Option<&str>, client: &Client) -> Context {
    match domain {
        Some(domain) => ContextBuilder::new().domain(domain).timeout(API_TIMEOUT).build(client.clone()),
        None => ContextBuilder::new().timeout(API_TIMEOUT).build(client.clone()),
    }
}

/// The answer to `STREAM.NAMES`.
#[derive(Deserialize)]
pub(super) struct Names {
    #[serde(default)]
    pub(super) streams: Option<Vec<String>>,
}

fn takes(names: &Names, expected: Option<&str>) -> bool {
    let mut streams = names.streams.iter().flatten();
    match expected {
        Some(expected) => streams.any(|name| name == expected),
        None => streams.next().is_some(),
    }
}

pub(super) fn no_jetstream() -> Failure {
    Failure::unavailable(
        "JetStream is not enabled on the nats server for this account; enable it, or set mode = \"core\"",
    )
}

fn creation(config: &StreamConfig, subject: Option<&str>) -> Result<stream::Config, SetupError> {
    let subjects = match (config.subjects.as_slice(), subject) {
        ([], Some(subject)) => vec![subject.to_owned()],
        ([], None) => return Err(SetupError("`stream.subjects` is needed to create a stream".to_owned())),
        (subjects, _) => subjects.to_vec(),
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
        let wanted = creation(&config("name = 'CDR'\ncreate = true"), Some("telecmi.cdr.*.*")).unwrap();
        assert_eq!(wanted.subjects, ["telecmi.cdr.*.*"]);
        assert_eq!(wanted.duplicate_window, Duration::from_secs(3600));
        assert_eq!((wanted.max_bytes, wanted.max_messages, wanted.max_age), (-1, -1, Duration::ZERO));
        let short = creation(&config("name = 'CDR'\nmax_age = '10m'\nmax_bytes = '1MiB'"), Some("a")).unwrap();
        assert_eq!(short.duplicate_window, Duration::from_secs(600));
        assert_eq!(short.max_bytes, 1 << 20);
    }

    #[test]
    fn what_the_server_would_refuse_is_refused_at_load() {
        let error =
            |toml: &str, subject| StreamCheck::new("n", None, Some(&config(toml)), subject).err().unwrap().to_string();
        assert!(error("name = 'CDR'\ncreate = true", None).contains("`stream.subjects`"));
        assert!(error("name = 'a.b'", None).contains("`stream.name`"));
        assert!(error("name = 'C'\ncreate = true\nreplicas = 6", Some("a")).contains("`stream.replicas`"));
        assert!(error("name = 'C'\ncreate = true\nsubjects = ['a..b']", None).contains("`a..b`"));
        let window = "name = 'C'\ncreate = true\nmax_age = '1m'\nduplicate_window = '2m'";
        assert!(error(window, Some("a")).contains("longer than `stream.max_age`"));
    }

    #[test]
    fn only_what_differs_is_named() {
        let wanted = creation(&config("name = 'CDR'"), Some("a.*")).unwrap();
        let same = stream::Config { max_bytes: 0, ..wanted.clone() };
        assert!(differences(&same, &wanted).is_empty());
        let other = stream::Config { max_bytes: 5, discard: DiscardPolicy::New, ..wanted.clone() };
        assert_eq!(differences(&other, &wanted), ["max_bytes: 5, not no limit", "discard: New, not Old"]);
    }
}
