//! The input of a sink: a record rendered for its destination.

use crate::event::EventId;
use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

/// A record rendered for one sink.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    id: EventId,
    topic: String,
    key: String,
    partition_by: String,
    headers: Vec<(&'static str, String)>,
    payload: Arc<[u8]>,
    /// In place of the event's id, where the destination is to store the event once more.
    dedup_id: Option<String>,
    duplicate: OnceLock<()>,
}

impl Message {
    /// A message without headers.
    pub fn of(id: EventId, payload: impl Into<Arc<[u8]>>, topic: &str, key: &str, partition_by: &str) -> Self {
        Self {
            id,
            topic: topic.into(),
            key: key.into(),
            partition_by: partition_by.into(),
            headers: Vec::new(),
            payload: payload.into(),
            dedup_id: None,
            duplicate: OnceLock::new(),
        }
    }

    /// The same message with one more header. The value has to be legal for the destination.
    pub fn with_header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// The same message with another payload.
    pub fn with_payload(self, payload: impl Into<Arc<[u8]>>) -> Self {
        Self { payload: payload.into(), ..self }
    }

    /// Stable across resends of the same event: consumers and JetStream deduplicate by it.
    pub fn id(&self) -> EventId {
        self.id
    }

    /// The same message with an id of its own for the destination to deduplicate by. Its headers keep the event's id.
    pub fn with_dedup_id(self, id: impl Into<String>) -> Self {
        Self { dedup_id: Some(id.into()), ..self }
    }

    /// The text by which the destination recognises a copy: the event's id unless it was set.
    pub fn dedup_id(&self) -> Cow<'_, str> {
        self.dedup_id.as_deref().map_or_else(|| self.id.to_string().into(), Cow::from)
    }

    /// The destination had stored the message before, and has not stored it again. A sink says so before it returns `Ok`.
    pub fn mark_duplicate(&self) {
        let _ = self.duplicate.set(());
    }

    /// Whether the destination had stored the message before.
    pub fn is_duplicate(&self) -> bool {
        self.duplicate.get().is_some()
    }

    /// The event as received, or a CloudEvents envelope around it.
    pub fn payload(&self) -> &Arc<[u8]> {
        &self.payload
    }

    /// Kafka topic or NATS subject, legal for its destination.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Kafka message key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The text whose hash chooses the Kafka partition.
    pub fn partition_by(&self) -> &str {
        &self.partition_by
    }

    /// Header names and values.
    pub fn headers(&self) -> impl ExactSizeIterator<Item = (&'static str, &str)> {
        self.headers.iter().map(|(name, value)| (*name, value.as_str()))
    }
}
