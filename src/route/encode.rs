//! How a value is written where not every character is legal.

use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, utf8_percent_encode};

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
    character.is_ascii_alphanumeric() || matches!(character, '.' | '_' | '-')
}

/// All characters that could end a token, match more than themselves, or leave ASCII.
const TOKEN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_');

/// Percent-encodes a value so that it is one token of a NATS subject; `~` stands for the empty text, since a token is never
/// empty. Percent-decoding gives the value back.
pub fn subject_token(value: &str, out: &mut String) {
    if value.is_empty() {
        out.push('~');
    }
    out.extend(utf8_percent_encode(value, TOKEN));
}

/// All characters but the unreserved (RFC 3986, section 2.3).
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Percent-encodes a value so that it is one segment of a URI's path.
pub fn uri_segment(value: &str, out: &mut String) {
    out.extend(utf8_percent_encode(value, SEGMENT));
}

/// The HTTP protocol binding of CloudEvents 1.0, section 3.1.3.2, which the one for NATS refers to.
const HEADER_VALUE: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// Percent-encodes the value of a CloudEvents header.
pub fn header_value(value: &str) -> String {
    utf8_percent_encode(value, HEADER_VALUE).to_string()
}
