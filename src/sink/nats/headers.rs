//! The headers of a message, as the client library takes them.

use crate::sink::{Failure, Message};
use async_nats::{HeaderMap, HeaderName, HeaderValue, header};
use serde::Deserialize as _;
use serde::de::value::{Error, MapDeserializer, StrDeserializer};

/// More headers than a message has.
const ROOM: usize = 14;

/// Makes the headers of one message after the other.
pub(super) struct Headers {
    /// What they begin with.
    common: HeaderMap,
}

impl Headers {
    /// For messages that only the stream of this name may store, if there is one.
    pub(super) fn new(stream: Option<&str>) -> Self {
        // A map that is read gets room for what was announced, and a copy of it as much. One that begins empty is built again for the
        // first header, the fourth and the eighth.
        let name: &str = header::NATS_MESSAGE_ID.as_ref();
        let announced = std::iter::repeat_n((name, Vec::<&str>::new()), ROOM);
        let mut common = HeaderMap::deserialize(MapDeserializer::<_, Error>::new(announced)).unwrap_or_default();
        if let Some(name) = stream {
            common.insert(header::NATS_EXPECTED_STREAM, name);
        }
        Self { common }
    }

    /// The headers of `message`. One that would end before its end is rejected.
    pub(super) fn of(&self, message: &Message) -> Result<HeaderMap, Failure> {
        let mut headers = self.common.clone();
        // Mostly there is none in any of the texts.
        let breaks = breaks_a_line(message.texts());
        for (name, text) in message.headers() {
            let illegal = || Failure::rejected(format!("header `{name}` holds a character that NATS does not allow"));
            if breaks && breaks_a_line(text) {
                return Err(illegal());
            }
            headers.insert(HeaderName::from_static(name), value(text).ok_or_else(illegal)?);
        }
        let mut id = String::with_capacity(32);
        message.id().write(&mut id);
        headers.insert(header::NATS_MESSAGE_ID, value(&id).unwrap_or_default());
        Ok(headers)
    }
}

/// A value that has been checked: the library's own way to make one looks at each character another time, for longer than all the rest takes.
fn value(text: &str) -> Option<HeaderValue> {
    HeaderValue::deserialize(StrDeserializer::<Error>::new(text)).ok()
}

fn breaks_a_line(text: &str) -> bool {
    memchr::memchr2(b'\r', b'\n', text.as_bytes()).is_some()
}

/// Bytes on the wire, as the server counts them: `NATS/1.0␍␊`, a line for each header, an empty line.
pub(super) fn size(headers: &HeaderMap) -> usize {
    let lines = headers.iter().flat_map(|(name, values)| values.iter().map(move |value| (name, value)));
    12 + lines.map(|(name, value)| AsRef::<str>::as_ref(name).len() + value.as_str().len() + 4).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventId;

    fn message() -> Message {
        Message::of(EventId([0xab; 16]), *b"{}", "a.b", "", "")
    }

    fn lines(headers: &HeaderMap) -> Vec<String> {
        let values =
            headers.iter().flat_map(|(name, values)| values.iter().map(move |value| format!("{name}: {value}")));
        let mut lines: Vec<_> = values.collect();
        lines.sort();
        lines
    }

    #[test]
    fn a_message_has_its_own_headers_its_id_and_its_stream() {
        let id = ["Nats-Msg-Id: ".to_owned() + &"ab".repeat(16)];
        let message = message().with_header("ce-id", "1").with_header("ce-subject", "").with_header("x", "அ b");
        let own = ["ce-id: 1".to_owned(), "ce-subject: ".to_owned(), "x: அ b".to_owned()];
        assert_eq!(Headers::new(None).common.len(), 1, "the room has been announced");
        let headers = Headers::new(None).of(&message).unwrap();
        assert_eq!(lines(&headers), [&id, &own[..]].concat());
        assert_eq!(size(&headers), 12 + lines(&headers).iter().map(|line| line.len() + 2).sum::<usize>());
        let headers = Headers::new(Some("CALLS")).of(&message).unwrap();
        assert_eq!(lines(&headers), [&["Nats-Expected-Stream: CALLS".to_owned()], &id[..], &own].concat());
    }

    #[test]
    fn no_header_can_break_out() {
        let long = format!("{}\n", "a".repeat(100));
        for value in ["a\r\nNats-Msg-Id: 1", "a\nb", "\r", "\n", &long] {
            let message = message().with_header("ce-a", "1").with_header("ce-x", value).with_header("ce-z", "1");
            let refused = Headers::new(None).of(&message);
            assert!(matches!(refused, Err(Failure::Rejected { .. })), "{value}");
        }
        let elsewhere = Message::of(EventId([1; 16]), *b"{}", "a.b", "k\r\n", "\n").with_header("ce-x", "1");
        assert!(Headers::new(None).of(&elsewhere).is_ok());
    }
}
