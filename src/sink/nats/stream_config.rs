//! The settings of the stream that stores the messages, and the stream that is created by them.

use crate::setting::{Period, Size};
use crate::sink::SetupError;
use async_nats::jetstream::stream::{self, DiscardPolicy, StorageType};
use bytesize::ByteSize;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The JetStream stream that stores the messages.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
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
    #[schemars(with = "Option<Size>")]
    pub max_bytes: Option<ByteSize>,
    /// How long it keeps a message. Default: for ever.
    #[serde(default, with = "Period")]
    pub max_age: Option<Duration>,
    /// How many messages it keeps. Default: no limit.
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
    #[serde(default, with = "Period")]
    pub duplicate_window: Option<Duration>,
    /// When a limit is reached: `old` (default) drops the oldest messages, as a log does; `new` refuses new ones, which then
    /// wait in the spool.
    #[serde(default)]
    pub discard: Discard,
}

/// Where a stream keeps its messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Storage {
    /// On disk.
    #[default]
    File,
    /// In the server's memory.
    Memory,
}

/// The messages that a full stream drops.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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

/// The stream to create. Refuses settings that the server would refuse every time.
pub(super) fn creation(config: &StreamConfig, subject: &str) -> Result<stream::Config, SetupError> {
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
pub(super) fn differences(found: &stream::Config, wanted: &stream::Config) -> String {
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
    fn only_what_differs_is_named() {
        let wanted = creation(&config("name = 'CDR'"), "a.*").unwrap();
        let same = stream::Config { max_bytes: 0, ..wanted.clone() };
        assert!(differences(&same, &wanted).is_empty());
        let other = stream::Config { max_bytes: 5, discard: DiscardPolicy::New, ..wanted.clone() };
        assert_eq!(differences(&other, &wanted), "max_bytes: 5, not no limit, discard: New, not Old");
    }
}
