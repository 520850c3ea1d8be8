//! JSON as `serde_json` reads it: exact bytes, members in order, duplicates kept, numbers never converted.

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

/// Where and why a text is not the JSON that was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {problem}")]
pub struct Error {
    /// Counted from 1.
    pub line: usize,
    /// Counted from 1, in bytes.
    pub column: usize,
    /// A phrase for the operator of the sender.
    pub problem: String,
}

impl Error {
    /// The error of a parser that read `text`.
    pub fn from_parser(error: &serde_json::Error, text: &str) -> Self {
        let (line, column) = (error.line().max(1), error.column().max(1));
        let full = error.to_string();
        let position = format!(" at line {} column {}", error.line(), error.column());
        let mut problem = full.strip_suffix(&position).unwrap_or(&full).to_owned();
        let found = text.split('\n').nth(line - 1).and_then(|line| line.as_bytes().get(column - 1));
        match found {
            Some(b'\'') => problem.push_str(" (text has to be in double quotes, not single ones)"),
            Some(b'a'..=b'z' | b'A'..=b'Z' | b'_' | b'$') if problem.starts_with("key must be a string") => {
                problem.push_str(" (this looks like a JavaScript object literal, not JSON)");
            }
            _ => {}
        }
        Self { line, column, problem }
    }

    /// An error at a byte of `text`.
    pub fn at(text: &str, offset: usize, problem: impl Into<String>) -> Self {
        let before = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        let column = before.rsplit(|byte| *byte == b'\n').next().map_or(0, <[u8]>::len) + 1;
        Self { line, column, problem: problem.into() }
    }
}

/// Where `part`, a part of `text`, begins.
pub fn offset(text: &str, part: &RawValue) -> usize {
    (part.get().as_ptr() as usize).saturating_sub(text.as_ptr() as usize)
}

/// Reads `text` as one JSON value that is nested at most `max_depth` levels deep.
pub fn parse(text: &str, max_depth: usize) -> Result<&RawValue, Error> {
    check_depth(text, max_depth)?;
    serde_json::from_str(text).map_err(|error| Error::from_parser(&error, text))
}

/// Refuses objects and arrays nested deeper than `max_depth`. The parser itself skips values without recursion, at any depth.
pub fn check_depth(text: &str, max_depth: usize) -> Result<(), Error> {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for (offset, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                if depth > max_depth {
                    return Err(Error::at(text, offset, format!("nested more than {max_depth} levels deep")));
                }
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}

/// `text` as a JSON string, quotes included.
pub fn quote(text: &str) -> String {
    // To write a string into memory does not fail. The second way is the slower one that cannot.
    serde_json::to_string(text).unwrap_or_else(|_| serde_json::Value::from(text).to_string())
}

/// The length of [`quote`] of this text, in bytes.
pub fn quoted_len(text: &str) -> usize {
    let escaped = |byte| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 2,
        0..0x20 => 6,
        _ => 1,
    };
    2 + text.bytes().map(escaped).sum::<usize>()
}

/// A value: text without quotes and escapes, or JSON as it is written.
#[derive(Clone, Debug)]
pub enum Value<'a> {
    /// The content of a string. A lone surrogate (`\ud800`), which UTF-8 cannot hold, is kept as WTF-8.
    Text(Cow<'a, [u8]>),
    /// Anything else.
    Json(&'a RawValue),
}

impl<'a> Value<'a> {
    /// The value in `raw`.
    pub fn of(raw: &'a RawValue) -> Self {
        let text = raw.get().starts_with('"').then(|| serde_json::from_str(raw.get()));
        match text {
            Some(Ok(Text(text))) => Self::Text(text),
            _ => Self::Json(raw),
        }
    }

    /// The object or array that the value is, or holds as JSON in a text.
    pub fn container(&self) -> Option<&RawValue> {
        match self {
            Self::Json(raw) => is_container(raw).then_some(*raw),
            Self::Text(text) if text.starts_with(b"{") || text.starts_with(b"[") => serde_json::from_slice(text).ok(),
            Self::Text(_) => None,
        }
    }

    /// The content of a string; the JSON text of anything else.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Text(text) => text,
            Self::Json(raw) => raw.get().as_bytes(),
        }
    }
}

/// Whether this JSON value is an object or an array.
pub fn is_container(raw: &RawValue) -> bool {
    raw.get().starts_with(['{', '['])
}

/// The members of an object, or elements of an array, up to a limit.
#[derive(Clone, Debug)]
pub struct Entries<T> {
    /// In their order.
    pub list: Vec<T>,
    /// Whether there are more.
    pub truncated: bool,
}

/// A member of an object.
#[derive(Clone, Debug)]
pub struct Member<'a> {
    /// The name as WTF-8.
    pub name: Cow<'a, [u8]>,
    /// The value.
    pub value: Value<'a>,
}

/// The first `limit` members of an object, with their values as they are written; none of any other value.
pub fn raw_members(raw: &RawValue, limit: usize) -> Entries<(Cow<'_, [u8]>, &RawValue)> {
    let mut deserializer = serde_json::Deserializer::from_str(raw.get());
    deserializer.deserialize_map(Members(limit)).unwrap_or_default()
}

/// The first `limit` members of an object; none of any other value.
pub fn members(raw: &RawValue, limit: usize) -> Entries<Member<'_>> {
    let Entries { list, truncated } = raw_members(raw, limit);
    let list = list.into_iter().map(|(name, value)| Member { name, value: Value::of(value) }).collect();
    Entries { list, truncated }
}

/// The first `limit` elements of an array; none of any other value.
pub fn elements(raw: &RawValue, limit: usize) -> Entries<&RawValue> {
    let mut deserializer = serde_json::Deserializer::from_str(raw.get());
    deserializer.deserialize_seq(Elements(limit)).unwrap_or_default()
}

impl<T> Default for Entries<T> {
    fn default() -> Self {
        Self { list: Vec::new(), truncated: false }
    }
}

struct Members(usize);

impl<'de> Visitor<'de> for Members {
    type Value = Entries<(Cow<'de, [u8]>, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = Entries::default();
        while let Some(Text(name)) = map.next_key()? {
            if entries.list.len() == self.0 {
                entries.truncated = true;
                map.next_value::<IgnoredAny>()?;
            } else {
                entries.list.push((name, map.next_value()?));
            }
        }
        Ok(entries)
    }
}

struct Elements(usize);

impl<'de> Visitor<'de> for Elements {
    type Value = Entries<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut entries = Entries::default();
        while entries.list.len() < self.0 {
            match seq.next_element()? {
                Some(element) => entries.list.push(element),
                None => return Ok(entries),
            }
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {
            entries.truncated = true;
        }
        Ok(entries)
    }
}

/// A JSON string as WTF-8: `serde_json` reads lone surrogates into bytes, not into a `str`.
#[derive(Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, [u8]>);

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str) -> String {
        parse(text, 8).unwrap_err().to_string()
    }

    #[test]
    fn errors_name_line_and_column() {
        assert!(
            problem("{\"a\":1,\n \"b\":}").starts_with("line 2, column 6: expected value"),
            "{}",
            problem("{\"a\":1,\n \"b\":}")
        );
        let javascript = problem("{ appid: 2222223 }");
        assert!(javascript.starts_with("line 1, column 3: ") && javascript.contains("JavaScript"), "{javascript}");
        assert!(problem("{\"a\":'x'}").contains("double quotes"), "{}", problem("{\"a\":'x'}"));
        assert!(problem("[[[[[[[[[1]]]]]]]]]").starts_with("line 1, column 9: nested more than 8 levels deep"));
        assert!(parse("{\"a\":\"[[[[[[[[[[\\\"[[[[[\"}", 1).is_ok());
    }

    #[test]
    fn the_length_of_a_quoted_text_is_exact() {
        let all: String = ('\0'..='\u{ff}').chain(['\u{2028}', '😀']).collect();
        for text in ["", "x", &all] {
            assert_eq!(quoted_len(text), quote(text).len(), "{text:?}");
        }
    }

    #[test]
    fn members_keep_order_duplicates_and_exact_values() {
        let raw = parse(r#"{"b":1.50,"a":1e999,"b":"x\u00e9\n","\ud800":[ 1 ]}"#, 8).unwrap();
        let read = members(raw, 9).list;
        let read: Vec<_> = read.iter().map(|member| (&*member.name, member.value.bytes())).collect();
        let expected: [(&[u8], &[u8]); 4] =
            [(b"b", b"1.50"), (b"a", b"1e999"), (b"b", "xé\n".as_bytes()), (b"\xed\xa0\x80", b"[ 1 ]")];
        assert_eq!(read, expected);
        assert!(members(raw, 3).truncated && !members(raw, 4).truncated);
    }
}
