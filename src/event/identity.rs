//! What counts as the same event.
//!
//! TeleCMI gives webhooks no delivery id. Two of them are the same event, and the later one is a duplicate, if they say the same:
//!
//! - The order of members does not matter; that of members with the same name does.
//! - The text form of scalars does not matter: `7` and `"7"`, `true` and `"true"`, `null` and `"null"` are alike, so an event that
//!   is sent again by GET, where every value is a text, is the same one. Nothing is converted: `7` and `7.0` differ.
//! - A top-level text that holds a JSON object or array counts as that JSON.
//! - A field of TeleCMI's documents that is null, empty or the text `null` counts as absent. Of other fields nothing is left out:
//!   `?a` and `?b`, or `{"x":""}` and `{"x":null}`, are two events.
//! - Nested values that are very deep (over eight levels) or large (over 1,000 entries) count by their exact text.
//!
//! The request's method, route, headers and the query beside a body do not count. Every other difference makes another event:
//! a later copy of a CDR with a recording is a new one. Charsets count by the text they stand for.

use super::EventId;
use super::fields::{Fields, is_blank_documented};
use super::json::{self, Member, Value};
use ring::digest::{Context, SHA256};
use serde_json::value::RawValue;

/// The fields that name one notification of one leg; the content is added to them.
const NATURAL_IDENTITY: [&str; 5] = ["appid", "type", "cmiuuid", "leg", "status"];

/// Levels of nesting that have a canonical form, in which order does not matter. Each level is scanned once more.
const MAX_LEVELS: usize = 8;

/// Entries of a nested object or array that has a canonical form.
const MAX_ENTRIES: usize = 1000;

/// Hashes the natural identity and the canonical content.
pub fn of(fields: &Fields<'_>) -> EventId {
    let mut out = Context::new(&SHA256);
    out.update(b"cdrelay event 1");
    for name in NATURAL_IDENTITY {
        write_scalar(fields.identifier(name).unwrap_or_default(), &mut out);
    }
    for same_name in sorted(fields.members()).chunk_by(|left, right| left.name == right.name) {
        if let [only] = same_name
            && is_blank_documented(only)
        {
            continue;
        }
        for member in same_name {
            write_scalar(&member.name, &mut out);
            match member.value.container() {
                Some(container) => write_container(container, MAX_LEVELS, &mut out),
                None => write_scalar(member.value.bytes(), &mut out),
            }
        }
    }
    EventId(out.finish().as_ref().first_chunk().copied().unwrap_or_default())
}

/// By name; members of the same name in their order.
fn sorted<'a, 'b>(members: &'b [Member<'a>]) -> Vec<&'b Member<'a>> {
    let mut sorted: Vec<_> = members.iter().collect();
    sorted.sort_by(|left, right| left.name.cmp(&right.name));
    sorted
}

fn write_scalar(text: &[u8], out: &mut Context) {
    write_tagged(b's', text, out);
}

fn write_tagged(tag: u8, text: &[u8], out: &mut Context) {
    out.update(&[tag]);
    out.update(&(text.len() as u32).to_le_bytes());
    out.update(text);
}

fn write_exact(raw: &RawValue, out: &mut Context) {
    write_tagged(b'x', raw.get().as_bytes(), out);
}

fn write_value(value: &Value<'_>, levels: usize, out: &mut Context) {
    match value {
        Value::Json(raw) if json::is_container(raw) => write_container(raw, levels, out),
        scalar => write_scalar(scalar.bytes(), out),
    }
}

/// An object enters as the digest of its sorted members, an array as its elements.
fn write_container(raw: &RawValue, levels: usize, out: &mut Context) {
    let Some(levels) = levels.checked_sub(1) else { return write_exact(raw, out) };
    if raw.get().starts_with('{') {
        let members = json::members(raw, MAX_ENTRIES);
        if members.truncated {
            return write_exact(raw, out);
        }
        let mut hash = Context::new(&SHA256);
        for member in sorted(&members.list) {
            hash.update(&(member.name.len() as u32).to_le_bytes());
            hash.update(&member.name);
            write_value(&member.value, levels, &mut hash);
        }
        out.update(b"o");
        out.update(hash.finish().as_ref());
    } else {
        let elements = json::elements(raw, MAX_ENTRIES);
        if elements.truncated {
            return write_exact(raw, out);
        }
        out.update(b"[");
        for element in elements.list {
            write_value(&Value::of(element), levels, out);
        }
        out.update(b"]");
    }
}
