//! What makes two webhooks the same event.

use super::fields::{Fields, Name};
use super::json::{self, Kind, Member, Reader, Value};
use super::{EventId, MAX_DEPTH};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::cell::RefCell;

/// The natural identity of one leg's notification; the content is added to it.
const NATURAL_IDENTITY: [Name; 5] =
    [Name::of("appid"), Name::of("type"), Name::of("cmiuuid"), Name::of("leg"), Name::of("status")];

thread_local! {
    /// What is hashed, for the room it takes: each event needs as much as the one before, about.
    static CANON: RefCell<Canon> = const { RefCell::new(Canon { order: Order::new(), bytes: Vec::new(), end: 0 }) };
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
    canon.push(b"cdrelay event 1");
    for name in NATURAL_IDENTITY {
        let value = fields.scalar(text, &name);
        canon.write_scalar(&value.map_or_else(Cow::default, |value| value.bytes(text)));
    }
    let mut order = std::mem::take(&mut canon.order);
    for member in order.of(text, fields.members()).iter().filter_map(|index| fields.members().get(*index as usize)) {
        let value = member.value.bytes(text);
        if member.value.kind == Kind::Null || value.is_empty() || *value == *b"null" {
            continue;
        }
        canon.write_member(text, member.name);
        let json = matches!(value.first(), Some(b'{' | b'[')).then(|| str::from_utf8(&value).ok()).flatten();
        if !json.is_some_and(|json| write_json(json, &mut canon)) {
            canon.write_member(text, member.value);
        }
    }
    canon.order = order;
    let digest: [u8; 32] = Sha256::digest(canon.bytes()).into();
    if canon.bytes.len() <= KEPT {
        CANON.set(canon);
    }
    EventId(digest.first_chunk().copied().unwrap_or_default())
}

/// Where the members of an object belong by their names; those with the same one stay in their order.
#[derive(Default)]
struct Order {
    /// The first bytes of the names, as the members come.
    first: Vec<u64>,
    /// The members' indices by name, with the first bytes.
    sorted: Vec<(u64, u32)>,
    /// The indices alone.
    indices: Vec<u32>,
    /// Whether the first bytes tell all names apart, and so the order.
    tells: bool,
}

impl Order {
    const fn new() -> Self {
        Self { first: Vec::new(), sorted: Vec::new(), indices: Vec::new(), tells: false }
    }

    /// The indices of the members by name. Whoever sends events writes their members in the same order again and again: then it is known.
    fn of(&mut self, text: &[u8], members: &[Member]) -> &[u32] {
        let mut known = self.tells && self.first.len() == members.len();
        self.first.resize(members.len(), 0);
        for (first, member) in self.first.iter_mut().zip(members) {
            let span = member.name.span.range();
            let now = match (member.name.kind, text.get(span.start..)) {
                (Kind::String, Some(rest)) => beginning(rest, span.len()),
                _ => beginning(&member.name.bytes(text), usize::MAX),
            };
            known &= *first == now;
            *first = now;
        }
        if !known {
            self.sort(text, members);
        }
        &self.indices
    }

    #[inline(never)]
    fn sort(&mut self, text: &[u8], members: &[Member]) {
        let name = |index: u32| members.get(index as usize).map_or_else(Cow::default, |member| member.name.bytes(text));
        self.sorted.clear();
        self.sorted.extend(self.first.iter().copied().zip(0..));
        self.sorted.sort_by_key(|(first, _)| *first);
        self.tells = true;
        for alike in self.sorted.chunk_by_mut(|left, right| left.0 == right.0).filter(|alike| alike.len() > 1) {
            self.tells = false;
            alike.sort_by(|left, right| name(left.1).cmp(&name(right.1)));
        }
        self.indices.clear();
        self.indices.extend(self.sorted.iter().map(|(_, index)| *index));
    }
}

/// The first eight of `bytes`, of which `length` count, as a number that sorts as they do. What is missing counts as NUL.
#[inline]
fn beginning(bytes: &[u8], length: usize) -> u64 {
    let first = match bytes.first_chunk() {
        Some(first) => *first,
        None => std::array::from_fn(|index| bytes.get(index).copied().unwrap_or_default()),
    };
    let beyond = 8_usize.saturating_sub(length) as u32;
    u64::MAX.checked_shl(8 * beyond).map_or(0, |mask| u64::from_be_bytes(first) & mask)
}

/// What is hashed. It is written in steps of a fixed size, which takes less than copying texts that are this short byte for byte.
#[derive(Default)]
struct Canon {
    /// How the members before were sorted.
    order: Order,
    /// What has been written, and at least [`STEP`] more.
    bytes: Vec<u8>,
    end: usize,
}

/// How many bytes are copied at once.
const STEP: usize = 16;
/// What stands before a scalar.
const HEAD: usize = 5;

impl Canon {
    fn clear(&mut self) {
        self.end = 0;
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.end).unwrap_or_default()
    }

    fn push(&mut self, bytes: &[u8]) {
        let start = self.end;
        self.end += bytes.len();
        copy(bytes, self.room(start), bytes.len());
    }

    fn write_scalar(&mut self, text: &[u8]) {
        self.write_first(text, text.len());
    }

    /// Writes a value in `text` as a scalar.
    #[inline(always)]
    fn write_member(&mut self, text: &[u8], value: Value) {
        match (value.kind, text.get(value.span.range().start..)) {
            (Kind::Escaped, _) | (_, None) => self.write_scalar(&value.bytes(text)),
            (_, Some(rest)) => self.write_first(rest, value.span.range().len()),
        }
    }

    /// Writes the first `length` bytes of `text` as a scalar. Most are few: then some that stand behind them are copied along, which
    /// what comes next overwrites.
    #[inline(always)]
    fn write_first(&mut self, text: &[u8], length: usize) {
        let [a, b, c, d] = (length as u32).to_le_bytes();
        let start = self.end;
        self.end += HEAD + length;
        let Some((head, rest)) = self.room(start).split_first_chunk_mut::<HEAD>() else { return };
        *head = [b's', a, b, c, d];
        match (text.first_chunk::<STEP>(), rest.first_chunk_mut::<STEP>()) {
            (Some(from), Some(to)) if length <= STEP => *to = *from,
            _ => copy(text, rest, length),
        }
    }

    /// All from `start` on: up to the end, and at least [`STEP`] bytes more.
    #[inline(always)]
    fn room(&mut self, start: usize) -> &mut [u8] {
        if self.end + STEP > self.bytes.len() {
            self.grow();
        }
        self.bytes.get_mut(start..).unwrap_or_default()
    }

    #[cold]
    fn grow(&mut self) {
        self.bytes.resize((self.end + STEP).next_power_of_two(), 0);
    }

    /// Takes back what has been written behind `end`.
    fn truncate(&mut self, end: usize) {
        self.end = end;
    }
}

#[inline(never)]
fn copy(from: &[u8], to: &mut [u8], length: usize) {
    if let (Some(from), Some(to)) = (from.get(..length), to.get_mut(..length)) {
        to.copy_from_slice(from);
    }
}

/// Writes the canonical form of a JSON object or array; leaves `canon` alone and says `false` if `text` is not one.
fn write_json(text: &str, canon: &mut Canon) -> bool {
    let start = canon.end;
    let mut reader = Reader::new(text, MAX_DEPTH);
    let whole = write_next(&mut reader, text, canon).is_ok() && reader.peek().is_none();
    if !whole {
        canon.truncate(start);
    }
    whole
}

/// An object enters as the digest of its sorted members, so that the work stays linear however deep it is nested.
fn write_next(reader: &mut Reader<'_>, text: &str, canon: &mut Canon) -> Result<(), json::Error> {
    let start = canon.end;
    match reader.peek() {
        Some(b'{') => {
            let mut members = Vec::new();
            reader.members(|reader, name| {
                let from = canon.end;
                write_next(reader, text, canon)?;
                members.push((name.bytes(text.as_bytes()), from..canon.end));
                Ok(())
            })?;
            members.sort_by(|(left, _), (right, _)| left.cmp(right));
            let mut hash = Sha256::new();
            for (name, value) in members {
                hash.update((name.len() as u32).to_le_bytes());
                hash.update(&name);
                hash.update(canon.bytes.get(value).unwrap_or_default());
            }
            canon.truncate(start);
            canon.push(b"o");
            canon.push(&hash.finalize());
        }
        Some(b'[') => {
            canon.push(b"[");
            reader.array(|reader| write_next(reader, text, canon))?;
            canon.push(b"]");
        }
        _ => canon.write_member(text.as_bytes(), reader.value()?),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_does_not_depend_on_the_objects_before() {
        let names = [
            "a",
            "b",
            "a\\u0000",
            "cmiuuid",
            "conversation",
            "conversation_uuid",
            "conversations",
            "\\u0061b",
            "",
            "é",
        ];
        let mut random = fastrand::Rng::with_seed(77);
        let mut order = Order::new();
        let mut written = Vec::new();
        for _ in 0..20_000 {
            // One object in three is like the one before, another has one name less, more or else.
            match random.usize(0..3) {
                0 => {}
                1 if !written.is_empty() => {
                    let at = random.usize(0..written.len());
                    match random.usize(0..3) {
                        0 => drop(written.remove(at)),
                        1 => written.insert(at, *random.choice(&names).unwrap()),
                        _ => written[at] = *random.choice(&names).unwrap(),
                    }
                }
                _ => written = (0..random.usize(0..9)).map(|_| *random.choice(&names).unwrap()).collect(),
            }
            let text =
                format!("{{{}}}", written.iter().map(|name| format!("\"{name}\":1")).collect::<Vec<_>>().join(","));
            let mut members = Vec::new();
            Reader::new(&text, 9).object(&mut members).unwrap();
            let mut expected: Vec<_> = (0..members.len() as u32).collect();
            expected.sort_by_key(|index| members[*index as usize].name.bytes(text.as_bytes()).into_owned());
            assert_eq!(order.of(text.as_bytes(), &members), expected, "{text}");
        }
    }
}
