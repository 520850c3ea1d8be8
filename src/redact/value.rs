//! Edits JSON text in place: only the values that a rule reaches are written anew.

use super::Action;
use crate::event::json::{self, Value};
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;
use std::ops::Range;

/// A masked value that is no number.
pub const HIDDEN: &str = "******";
/// The least digits of a number that stays recognisable when it is masked.
const MIN_DIGITS: usize = 10;

/// The rest of a path from here on, and what happens at its end.
type Rules<'a> = [(&'a [String], &'a Action)];

/// A member of an object, or an element of an array without a name: where each lies in the text.
struct Entry {
    name: Option<String>,
    value: Range<usize>,
    /// From the name on, if there is one.
    whole: Range<usize>,
}

/// The JSON text with the rules applied to it.
pub fn redact(text: &str, rules: &Rules<'_>) -> String {
    let entries = match text.trim_start().as_bytes().first() {
        Some(b'{') => members(text),
        Some(b'[') => elements(text),
        _ => None,
    };
    // The event is JSON, or it would not have been taken.
    let Some(entries) = entries else { return json::quote(HIDDEN) };
    let mut out = String::with_capacity(text.len());
    let (mut kept, mut end) = (false, None);
    for entry in &entries {
        let ours = match &entry.name {
            Some(name) => rules
                .iter()
                .filter_map(|(path, action)| {
                    path.split_first().filter(|(first, _)| *first == name).map(|(_, rest)| (rest, *action))
                })
                .collect(),
            None => rules.to_vec(),
        };
        let is_dropped = ours.iter().any(|(rest, action)| rest.is_empty() && matches!(action, Action::Drop));
        if !is_dropped {
            // The first one that is kept follows the opening brace, the others their comma.
            let before = if kept {
                end.unwrap_or(0)..entry.whole.start
            } else {
                0..entries.first().map_or(0, |first| first.whole.start)
            };
            out.push_str(slice(text, &before));
            out.push_str(slice(text, &(entry.whole.start..entry.value.start)));
            out.push_str(&value(slice(text, &entry.value), &ours));
            kept = true;
        }
        end = Some(entry.whole.end);
    }
    match end {
        Some(end) if kept => out.push_str(slice(text, &(end..text.len()))),
        Some(_) => out.push_str("{}"),
        None => out.push_str(text),
    }
    out
}

/// A value with the rules applied to it.
fn value(raw: &str, rules: &Rules<'_>) -> String {
    if rules.is_empty() {
        return raw.to_owned();
    }
    let here = rules.iter().find(|(rest, _)| rest.is_empty()).map(|(_, action)| *action);
    let Ok(parsed) = serde_json::from_str::<&RawValue>(raw) else { return json::quote(HIDDEN) };
    let parsed = Value::of(parsed);
    let is_text = matches!(parsed, Value::Text(_));
    let begins_container =
        parsed.bytes().trim_ascii_start().starts_with(b"{") || parsed.bytes().trim_ascii_start().starts_with(b"[");
    if let Some(action) = here {
        return if begins_container && !is_text { all(raw, action) } else { action.of_scalar(raw, &parsed) };
    }
    if !begins_container {
        return raw.to_owned();
    }
    if !is_text {
        return redact(raw, rules);
    }
    let inner = std::str::from_utf8(parsed.bytes()).ok();
    let inner = inner.filter(|inner| serde_json::from_str::<&RawValue>(inner).is_ok());
    inner.map_or_else(|| json::quote(HIDDEN), |inner| json::quote(&redact(inner, rules)))
}

/// Applies the action to every scalar within an object or array.
fn all(raw: &str, action: &Action) -> String {
    let entries = if raw.starts_with('{') { members(raw) } else { elements(raw) };
    let Some(entries) = entries else { return json::quote(HIDDEN) };
    let (mut out, mut end) = (String::new(), 0);
    for entry in entries {
        out.push_str(slice(raw, &(end..entry.value.start)));
        out.push_str(&value(slice(raw, &entry.value), &[(&[], action)]));
        end = entry.value.end;
    }
    out.push_str(slice(raw, &(end..raw.len())));
    out
}

/// The digits of a number: a JSON integer, or a text of digits with `+`, spaces, hyphens, dots and parentheses around them. Without the
/// prefix of international calls, `00`.
pub fn number(value: &Value<'_>) -> Option<String> {
    let text = std::str::from_utf8(value.bytes()).ok()?.trim();
    let digits = match value {
        Value::Json(_) => text.to_owned(),
        Value::Text(_) => text.strip_prefix('+').unwrap_or(text).replace([' ', '-', '.', '(', ')', '\u{a0}'], ""),
    };
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| digits.strip_prefix("00").filter(|rest| !rest.is_empty()).map_or(digits.clone(), str::to_owned))
}

/// `+44******0001`
pub fn mask(digits: &str) -> String {
    match (digits.get(..2), digits.len().checked_sub(4).and_then(|at| digits.get(at..))) {
        (Some(first), Some(last)) if digits.len() >= MIN_DIGITS => {
            format!("+{first}{}{last}", "*".repeat(digits.len() - 6))
        }
        _ => HIDDEN.to_owned(),
    }
}

fn slice<'a>(text: &'a str, range: &Range<usize>) -> &'a str {
    text.get(range.clone()).unwrap_or_default()
}

/// Where `part`, a part of `text`, lies in it.
fn range(text: &str, part: &RawValue) -> Range<usize> {
    let start = (part.get().as_ptr() as usize).saturating_sub(text.as_ptr() as usize);
    start..start + part.get().len()
}

fn members(text: &str) -> Option<Vec<Entry>> {
    let pairs = serde_json::Deserializer::from_str(text).deserialize_map(Members).ok()?;
    let entry = |(name, value): (&RawValue, &RawValue)| {
        let (written, value) = (range(text, name), range(text, value));
        let name = Value::of(name);
        Entry { name: Some(String::from_utf8_lossy(name.bytes()).into_owned()), whole: written.start..value.end, value }
    };
    Some(pairs.into_iter().map(entry).collect())
}

fn elements(text: &str) -> Option<Vec<Entry>> {
    let elements = serde_json::Deserializer::from_str(text).deserialize_seq(Elements).ok()?;
    let entry = |element: &RawValue| Entry { name: None, value: range(text, element), whole: range(text, element) };
    Some(elements.into_iter().map(entry).collect())
}

struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Vec<(&'de RawValue, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = map.next_entry()? {
            pairs.push(pair);
        }
        Ok(pairs)
    }
}

struct Elements;

impl<'de> Visitor<'de> for Elements {
    type Value = Vec<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut elements = Vec::new();
        while let Some(element) = seq.next_element()? {
            elements.push(element);
        }
        Ok(elements)
    }
}
