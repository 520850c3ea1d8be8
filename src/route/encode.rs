//! How a value is written where not every character may be.

use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, utf8_percent_encode};
use std::borrow::Cow;

/// As it is.
pub fn verbatim(value: &str, out: &mut String) {
    out.push_str(value);
}

/// A character that a Kafka topic cannot have becomes `_`.
pub fn topic_characters(value: &str, out: &mut String) {
    out.extend(value.chars().map(|character| if legal_in_topic(character) { character } else { '_' }));
}

/// Whether a Kafka topic may have it.
pub fn legal_in_topic(character: char) -> bool {
    matches!(character, 'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '_' | '-')
}

/// All that could end a token, match more than itself, or leave ASCII.
const TOKEN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_');

/// Percent-encodes a value so that it is one token of a NATS subject; `~` stands for the empty text, which no token may be.
/// Percent-decoding gives the value back.
pub fn subject_token(value: &str, out: &mut String) {
    if value.is_empty() {
        out.push('~');
    }
    percent_encode(value, TOKEN, out);
}

/// All that is not unreserved (RFC 3986, 2.3).
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Percent-encodes a value so that it is one segment of a URI's path.
pub fn uri_segment(value: &str, out: &mut String) {
    percent_encode(value, SEGMENT, out);
}

/// Encodes what is in `set`. Most values are of letters and digits alone, which no set here has.
fn percent_encode(value: &str, set: &'static AsciiSet, out: &mut String) {
    match value.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        true => out.push_str(value),
        false => out.extend(utf8_percent_encode(value, set)),
    }
}

/// As the HTTP protocol binding of CloudEvents 1.0 has it (section 3.1.3.2), which the one for NATS refers to.
const HEADER_VALUE: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// Percent-encodes what stands in `text` from `start` on.
pub fn make_header_value(text: &mut String, start: usize) {
    let value = text.get(start..).unwrap_or_default();
    // As nearly every value is. Without a way out at the first byte that is not, many are looked at together.
    if value.bytes().fold(true, |plain, byte| plain & matches!(byte, b'!'..=b'~') & (byte != b'"') & (byte != b'%')) {
        return;
    }
    let encoded: Cow<'_, str> = utf8_percent_encode(value, HEADER_VALUE).into();
    if encoded != value {
        let encoded = encoded.into_owned();
        text.truncate(start);
        text.push_str(&encoded);
    }
}
