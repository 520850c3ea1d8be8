//! What a sink is given to publish.

use crate::event::EventId;
use smallvec::SmallVec;
use std::ops::Range;
use std::sync::Arc;

/// How many headers there usually are.
const HEADERS: usize = 7;
/// How long all texts together usually are.
const TEXT: usize = 384;

/// The name of a header: visible ASCII without a colon, which every destination takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderName(&'static str);

impl HeaderName {
    /// This name. Panics if it is not legal: in a constant, when that is compiled.
    pub const fn new(name: &'static str) -> Self {
        let mut rest = name.as_bytes();
        assert!(!rest.is_empty(), "a header's name is empty");
        while let [first, behind @ ..] = rest {
            assert!(first.is_ascii_graphic() && *first != b':', "a header's name is of visible ASCII and has no colon");
            rest = behind;
        }
        Self(name)
    }
}

/// A record rendered for one sink. Its texts lie behind each other in one piece of memory: there are many, and they are short.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    id: EventId,
    payload: Arc<[u8]>,
    text: String,
    /// Where the topic, the key, and the text behind the key end.
    ends: [usize; 3],
    /// The names of the headers, and where their values end.
    headers: SmallVec<[(&'static str, usize); HEADERS]>,
}

impl Message {
    /// A message without headers whose texts are written by these, one behind the other.
    pub fn new(
        id: EventId,
        payload: Arc<[u8]>,
        topic: impl FnOnce(&mut String),
        key: impl FnOnce(&mut String),
        partition_by: impl FnOnce(&mut String),
    ) -> Self {
        let mut text = String::with_capacity(TEXT);
        topic(&mut text);
        let topic = text.len();
        key(&mut text);
        let key = text.len();
        partition_by(&mut text);
        let ends = [topic, key, text.len()];
        Self { id, payload, text, ends, headers: SmallVec::new() }
    }

    /// A message with these texts, and the first of them as its partition's.
    pub fn of(id: EventId, payload: impl Into<Arc<[u8]>>, topic: &str, key: &str, partition_by: &str) -> Self {
        let text = |text| move |out: &mut String| out.push_str(text);
        Self::new(id, payload.into(), text(topic), text(key), text(partition_by))
    }

    /// Adds a header whose value is written by `value`, and has to be legal for the destination.
    pub fn push_header(&mut self, name: HeaderName, value: impl FnOnce(&mut String)) {
        value(&mut self.text);
        self.headers.push((name.0, self.text.len()));
    }

    /// The same message with one more header. Panics if the name is not legal.
    pub fn with_header(mut self, name: &'static str, value: &str) -> Self {
        self.push_header(HeaderName::new(name), |text| text.push_str(value));
        self
    }

    /// The same message with another payload.
    pub fn with_payload(self, payload: impl Into<Arc<[u8]>>) -> Self {
        Self { payload: payload.into(), ..self }
    }

    /// Stable across resends of the same event: what consumers and JetStream deduplicate by.
    pub fn id(&self) -> EventId {
        self.id
    }

    /// The event as received, or a CloudEvents envelope around it.
    pub fn payload(&self) -> &Arc<[u8]> {
        &self.payload
    }

    /// Kafka topic or NATS subject, legal for its destination.
    pub fn topic(&self) -> &str {
        let [topic, ..] = self.ends;
        self.part(0..topic)
    }

    /// Kafka message key.
    pub fn key(&self) -> &str {
        let [topic, key, _] = self.ends;
        self.part(topic..key)
    }

    /// The text whose hash chooses the Kafka partition.
    pub fn partition_by(&self) -> &str {
        let [_, key, partition_by] = self.ends;
        self.part(key..partition_by)
    }

    /// Header names and values.
    pub fn headers(&self) -> impl ExactSizeIterator<Item = (&'static str, &str)> {
        let [.., mut start] = self.ends;
        self.headers.iter().map(move |(name, end)| (*name, self.part(std::mem::replace(&mut start, *end)..*end)))
    }

    /// All of these texts, one behind the other.
    pub fn texts(&self) -> &str {
        &self.text
    }

    fn part(&self, range: Range<usize>) -> &str {
        self.text.get(range).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_could_break_out_is_none() {
        for name in ["content-type", "ce_id", "Nats-Msg-Id", "~!"] {
            assert_eq!(HeaderName::new(name).0, name);
        }
        for name in ["", "ce:x", "ce\r\nx", "ce\n", "ce x", "\t", "é", "\u{7f}"] {
            assert!(std::panic::catch_unwind(|| HeaderName::new(name)).is_err(), "{name:?}");
        }
    }

    #[test]
    fn every_text_is_found_again() {
        for texts in [["t", "k", "p", "1", "2"], ["", "", "", "", ""], ["தலைப்பு", "", "பகுதி", "", "x"]]
        {
            let [topic, key, partition_by, first, second] = texts;
            let message = Message::of(EventId([1; 16]), *b"{}", topic, key, partition_by);
            let message = message.with_header("a", first).with_header("b", second);
            assert_eq!([message.topic(), message.key(), message.partition_by()], [topic, key, partition_by]);
            assert_eq!(message.headers().collect::<Vec<_>>(), [("a", first), ("b", second)]);
            assert_eq!(message.texts(), texts.concat());
        }
    }
}
