//! The line of a message.

use crate::sink::Message;
use serde::{Serialize, Serializer};

/// `{"topic":…,"key":…,"headers":{…},"event":…}` and a line break.
pub(super) fn render(message: &Message) -> serde_json::Result<Vec<u8>> {
    #[derive(Serialize)]
    struct Head<'a> {
        topic: &'a str,
        key: &'a str,
        #[serde(serialize_with = "headers")]
        headers: &'a Message,
    }
    fn headers<S: Serializer>(message: &Message, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(message.headers())
    }
    let mut line = serde_json::to_vec(&Head { topic: message.topic(), key: message.key(), headers: message })?;
    line.pop();
    line.extend_from_slice(br#","event":"#);
    // A line break in JSON is insignificant: in a text it is escaped.
    line.extend(message.payload().iter().filter(|byte| !matches!(byte, b'\n' | b'\r')));
    line.extend_from_slice(b"}\n");
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventId;

    fn message(payload: &str) -> Message {
        let bare = Message::of(EventId([7; 16]), payload.as_bytes(), "telecmi.cdr", "Sales \"A\"\n/42", "42");
        bare.with_header("ce_id", "x").with_header("ce_subject", "தமிழ்")
    }

    fn line(message: &Message) -> String {
        String::from_utf8(render(message).unwrap()).unwrap()
    }

    #[test]
    fn a_line_holds_topic_key_headers_and_the_event_as_received() {
        let line = line(&message(r#"{ "amount": 1.10,  "n":12345678901234567890 }"#));
        assert_eq!(
            line,
            concat!(
                r#"{"topic":"telecmi.cdr","key":"Sales \"A\"\n/42","headers":{"ce_id":"x","ce_subject":"தமிழ்"},"#,
                r#""event":{ "amount": 1.10,  "n":12345678901234567890 }}"#,
                "\n"
            )
        );
        let headless = Message::of(EventId([7; 16]), *b"{}", "t", "k", "");
        assert!(serde_json::from_str::<serde_json::Value>(&super::tests::line(&headless)).is_ok());
    }

    #[test]
    fn an_event_on_several_lines_loses_only_its_line_breaks() {
        let line = line(&message("{\r\n  \"a b\": [1.0 ,\t2e5],\n \"c\" : \"x \\\" \\n\" }"));
        assert!(line.ends_with("\"event\":{  \"a b\": [1.0 ,\t2e5], \"c\" : \"x \\\" \\n\" }}\n"), "{line}");
    }
}
