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
    push_on_one_line(message.payload(), &mut line);
    line.extend_from_slice(b"}\n");
    Ok(line)
}

/// Appends a valid JSON text: as it is when it came on one line, without its insignificant white space when it did not.
/// Strings and numbers keep every byte.
fn push_on_one_line(json: &[u8], line: &mut Vec<u8>) {
    if !json.iter().any(|byte| matches!(byte, b'\n' | b'\r')) {
        return line.extend_from_slice(json);
    }
    let (mut in_string, mut escaped) = (false, false);
    for &byte in json {
        if in_string {
            in_string = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
        } else if matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
            continue;
        } else {
            in_string = byte == b'"';
        }
        line.push(byte);
    }
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

    fn one_line(json: &str) -> String {
        let mut line = Vec::new();
        push_on_one_line(json.as_bytes(), &mut line);
        String::from_utf8(line).unwrap()
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
    fn an_event_on_several_lines_loses_only_insignificant_white_space() {
        assert_eq!(one_line("{\r\n  \"a b\": [1.0 ,\t2e5],\n \"c\" : null }"), r#"{"a b":[1.0,2e5],"c":null}"#);
        assert_eq!(
            one_line("{\n\"a\": \"x \\\" y \\\\\", \"b\": \"\\\\\\\" z\"}"),
            r#"{"a":"x \" y \\","b":"\\\" z"}"#
        );
        assert_eq!(one_line(r#"{ "a" : 1 }"#), r#"{ "a" : 1 }"#);
    }
}
