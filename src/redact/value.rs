//! Edits JSON text in place: only the values that a rule reaches are written anew.

use super::Action;
use crate::event::json::{self, Value};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::ops::Range;

/// A masked value that is no number.
pub const HIDDEN: &str = "******";
/// The least digits of a number that stays recognisable when it is masked.
const MIN_DIGITS: usize = 10;

/// The rest of a path from here on, and the treatment of the field at its end.
type Rules<'a> = [(&'a [String], &'a Action)];

/// The name of a member, none for an element of an array, and where the value lies in the text.
type Entry<'a> = (Option<Cow<'a, [u8]>>, Range<usize>);

/// The JSON text with the rules applied to it.
pub fn redact(text: &str, rules: &Rules<'_>) -> String {
    // The event is JSON, or it would not have been taken.
    let Some(entries) = entries(text) else { return json::quote(HIDDEN) };
    let (mut out, mut end) = (String::new(), 0);
    for (name, place) in &entries {
        let ours: Vec<_> = match name {
            Some(name) => {
                let reached = rules.iter().filter_map(|(path, action)| Some((path.split_first()?, *action)));
                let reached = reached.filter(|((first, _), _)| first.as_bytes() == &**name);
                reached.map(|((_, rest), action)| (rest, action)).collect()
            }
            None => rules.to_vec(),
        };
        let before = slice(text, &(end..place.start));
        end = place.end;
        if ours.iter().any(|(rest, action)| rest.is_empty() && matches!(action, Action::Drop)) {
            continue;
        }
        if out.is_empty() && !before.trim_start().starts_with(['{', '[']) {
            // All members before this one were dropped, and with them goes the comma.
            out.push_str(text.split('"').next().unwrap_or_default());
            out.push_str(before.trim_start().trim_start_matches(',').trim_start());
        } else {
            out.push_str(before);
        }
        out.push_str(&value(slice(text, place), &ours));
    }
    if out.is_empty() && !entries.is_empty() {
        return "{}".to_owned();
    }
    out.push_str(slice(text, &(end..text.len())));
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
    let Some(entries) = entries(raw) else { return json::quote(HIDDEN) };
    let (mut out, mut end) = (String::new(), 0);
    for (_, place) in entries {
        out.push_str(slice(raw, &(end..place.start)));
        out.push_str(&value(slice(raw, &place), &[(&[], action)]));
        end = place.end;
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

/// The entries of an object or array; `None` if the text is neither.
fn entries(text: &str) -> Option<Vec<Entry<'_>>> {
    let raw: &RawValue = serde_json::from_str(text).ok()?;
    let place = |value: &RawValue| {
        let start = json::offset(text, value);
        start..start + value.get().len()
    };
    let entries: Vec<Entry<'_>> = match raw.get().as_bytes() {
        [b'{', ..] => {
            let members = json::raw_members(raw, usize::MAX).list.into_iter();
            members.map(|(name, value)| (Some(name), place(value))).collect()
        }
        [b'[', ..] => json::elements(raw, usize::MAX).list.into_iter().map(|value| (None, place(value))).collect(),
        _ => return None,
    };
    // Entries that cannot be read must not pass unredacted.
    let is_empty = raw.get().trim_matches(['{', '}', '[', ']']).trim_ascii().is_empty();
    (is_empty || !entries.is_empty()).then_some(entries)
}
