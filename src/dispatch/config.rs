//! The part of `[sinks.NAME]` about delivery, and `[sinks.NAME.retry]`

use crate::setting::{Period, Size};
use bytesize::ByteSize;
use schemars::JsonSchema;
use serde::Deserialize;
use std::time::Duration;

/// The part of `[sinks.NAME]` that says how messages are sent.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Config {
    /// Whether readiness depends on this sink. The spool keeps its records either way.
    pub required: bool,
    /// How many messages may be with the destination at once.
    pub max_in_flight: usize,
    /// How many bytes of records may be in flight or wait behind a busy conversation.
    #[schemars(with = "Size")]
    pub max_in_flight_bytes: ByteSize,
    /// How failed messages are retried.
    pub retry: Retry,
}

/// `[sinks.NAME.retry]`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Retry {
    /// How long messages wait for a topic, subject or stream that is missing or not permitted, before they become dead letters.
    #[serde(with = "Period")]
    pub max_age: Duration,
}

impl Default for Config {
    fn default() -> Self {
        let max_in_flight_bytes = ByteSize::mib(4);
        Self { required: true, max_in_flight: 2048, max_in_flight_bytes, retry: Retry::default() }
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self { max_age: Duration::from_secs(3600) }
    }
}
