//! What makes two webhooks the same event.

use super::fields::Fields;
use super::json::{self, Kind, Member, Reader};
use super::{EventId, MAX_DEPTH};
use sha2::{Digest, Sha256};
use smallvec::SmallVec;
use std::borrow::Cow;
use std::cell::RefCell;

/// The natural identity of one leg's notification; the content is added to it.
const NATURAL_IDENTITY: [&str; 5] = ["appid", "type", "cmiuuid", "leg", "status"];

thread_local! {
    /// What is hashed, for the room it takes: each event needs as much as the one before, about.
    static CANON: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}
/// More room than this is not kept.
const KEPT: usize = 64 << 10;

/// Hashes the natural identity and the canonical content: names sorted, scalars as text, JSON text in a top-level string
/// as the JSON it holds, and members that are null, empty or the text `null` left out, since a query string cannot tell
/// these apart. So the same event has the same identity whether it comes by POST, with its members in another order, or by
/// GET with every value as text.
pub fn of(text: &[u8], fields: &Fields) -> EventId {
    let mut canon = CANON.take();
    canon.clear();
    canon.reserve(text.len() + 256);
    canon.extend_from_slice(b"cdrelay event 1");
    for name in NATURAL_IDENTITY {
        let value = fields.scalar(text, name);
        write_scalar(&value.map_or_else(Cow::default, |value| value.bytes(text)), &mut canon);
    }
    for member in by_name(text, fields.members()) {
        let value = member.value.bytes(text);
        if member.value.kind == Kind::Null || value.is_empty() || *value == *b"null" {
            continue;
        }
        write_scalar(&member.name.bytes(text), &mut canon);
        let json = matches!(value.first(), Some(b'{' | b'[')).then(|| str::from_utf8(&value).ok()).flatten();
        if !json.is_some_and(|json| write_json(json, &mut canon)) {
            write_scalar(&value, &mut canon);
        }
    }
    let digest: [u8; 32] = Sha256::digest(&canon).into();
    if canon.capacity() <= KEPT {
        CANON.set(canon);
    }
    EventId(std::array::from_fn(|index| digest.get(index).copied().unwrap_or_default()))
}

/// The members by their names; those with the same one in their order.
fn by_name<'a>(text: &[u8], members: &'a [Member]) -> impl Iterator<Item = &'a Member> {
    let name = |member: &Member| member.name.bytes(text);
    // The first bytes tell most names apart.
    let first = |member: &Member| match (member.name.kind, text.get(member.name.span.range().start..)) {
        (Kind::String, Some(rest)) => beginning(rest, member.name.span.range().len()),
        _ => beginning(&name(member), usize::MAX),
    };
    let mut sorted: SmallVec<[(u64, &Member); 32]> = members.iter().map(|member| (first(member), member)).collect();
    sorted.sort_by_key(|(first, _)| *first);
    for alike in sorted.chunk_by_mut(|left, right| left.0 == right.0).filter(|alike| alike.len() > 1) {
        alike.sort_by(|left, right| name(left.1).cmp(&name(right.1)));
    }
    sorted.into_iter().map(|(_, member)| member)
}

/// The first eight of `bytes`, of which `length` count, as a number that sorts as they do. What is missing counts as NUL.
fn beginning(bytes: &[u8], length: usize) -> u64 {
    let first = match bytes.first_chunk() {
        Some(first) => *first,
        None => std::array::from_fn(|index| bytes.get(index).copied().unwrap_or_default()),
    };
    let beyond = 8_usize.saturating_sub(length) as u32;
    u64::MAX.checked_shl(8 * beyond).map_or(0, |mask| u64::from_be_bytes(first) & mask)
}

fn write_scalar(text: &[u8], canon: &mut Vec<u8>) {
    let [a, b, c, d] = (text.len() as u32).to_le_bytes();
    canon.extend_from_slice(&[b's', a, b, c, d]);
    canon.extend_from_slice(text);
}

/// Writes the canonical form of a JSON object or array; leaves `canon` alone and says `false` if `text` is not one.
fn write_json(text: &str, canon: &mut Vec<u8>) -> bool {
    let start = canon.len();
    let mut reader = Reader::new(text, MAX_DEPTH);
    let whole = write_next(&mut reader, text, canon).is_ok() && reader.peek().is_none();
    if !whole {
        canon.truncate(start);
    }
    whole
}

/// An object enters as the digest of its sorted members, so that the work stays linear however deep it is nested.
fn write_next(reader: &mut Reader<'_>, text: &str, canon: &mut Vec<u8>) -> Result<(), json::Error> {
    let start = canon.len();
    match reader.peek() {
        Some(b'{') => {
            let mut members = Vec::new();
            reader.members(|reader, name| {
                let from = canon.len();
                write_next(reader, text, canon)?;
                members.push((name.bytes(text.as_bytes()), from..canon.len()));
                Ok(())
            })?;
            members.sort_by(|(left, _), (right, _)| left.cmp(right));
            let mut hash = Sha256::new();
            for (name, value) in members {
                hash.update((name.len() as u32).to_le_bytes());
                hash.update(&name);
                hash.update(canon.get(value).unwrap_or_default());
            }
            canon.truncate(start);
            canon.push(b'o');
            canon.extend_from_slice(&hash.finalize());
        }
        Some(b'[') => {
            canon.push(b'[');
            reader.array(|reader| write_next(reader, text, canon))?;
            canon.push(b']');
        }
        _ => write_scalar(&reader.value()?.bytes(text.as_bytes()), canon),
    }
    Ok(())
}
