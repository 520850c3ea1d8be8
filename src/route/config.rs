//! The keys of `[sinks.NAME]` that set the form of messages.

use super::Origins;
use crate::redact;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The part of `[sinks.NAME]` that sets the form of messages.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(transform = crate::config::schema::with_subject)]
pub struct Config {
    /// Template of the topic (Kafka, stdout) or subject (NATS).
    #[serde(alias = "subject")]
    pub topic: Option<String>,
    /// Template of the key.
    pub key: String,
    /// Template of the text that chooses the Kafka partition.
    pub partition_by: String,
    /// CEL expression on `event`, `query` and `ingress`; records for which it is false are not sent to this sink.
    pub when: Option<String>,
    /// The fate of records for which `when` is undecided: a field is missing or of another type.
    pub when_undecided: Undecided,
    /// How the event and its CloudEvents attributes are laid out.
    pub format: Format,
    /// Template of the CloudEvents source.
    pub source: String,
    /// Which fields the sink must not get.
    pub redact: redact::Config,
    /// The routes of the ingress; set from `[ingress]`.
    #[serde(skip)]
    pub origins: Arc<Origins>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            topic: None,
            key: "{team}/{conversation_uuid}".into(),
            partition_by: "{conversation_uuid}".into(),
            when: None,
            when_undecided: Undecided::Skip,
            format: Format::Event,
            source: "/telecmi/{appid|unknown}".into(),
            redact: redact::Config::default(),
            origins: Arc::default(),
        }
    }
}

/// The fate of a record for which `when` is undecided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Undecided {
    /// Not sent, as if `when` were false.
    Skip,
    /// Sent, as if `when` were true.
    Send,
    /// Kept as a dead letter.
    DeadLetter,
}

/// The content modes of CloudEvents 1.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// Binary mode: the payload is the event itself, the attributes are headers.
    Event,
    /// Structured mode: the payload is a JSON envelope with the event as its data.
    #[serde(rename = "cloudevents")]
    CloudEvents,
    /// Binary mode, and the sink puts the id of a schema before the payload (Kafka).
    JsonSchema,
}
