//! The top-level fields of an event, found by name.

use super::MAX_DEPTH;
use super::json::{Kind, Member, Reader, Value};
use std::borrow::Cow;

/// How many names have a place.
const PLACES: usize = 11;

/// The place of a name that nearly every event has and is asked for: looked for once, when the event is read.
const fn place(name: &[u8]) -> Option<usize> {
    Some(match name {
        b"appid" => 0,
        b"app_id" => 1,
        b"cmiuid" => 2,
        b"cmiuuid" => 3,
        b"conversation_uuid" => 4,
        b"direction" => 5,
        b"leg" => 6,
        b"request_id" => 7,
        b"status" => 8,
        b"team" => 9,
        b"type" => 10,
        _ => return None,
    })
}

/// The places of the names that say the same as the name at this one, the current name first.
fn alike(place: &usize) -> &[usize] {
    match place {
        0 | 1 => &[0, 1],
        2 | 3 => &[3, 2],
        _ => std::slice::from_ref(place),
    }
}

/// A name to ask many events for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    text: Cow<'static, str>,
    place: Option<usize>,
}

impl Name {
    /// This name.
    pub const fn of(text: &'static str) -> Self {
        Self { text: Cow::Borrowed(text), place: place(text.as_bytes()) }
    }
}

impl From<String> for Name {
    fn from(text: String) -> Self {
        Self { place: place(text.as_bytes()), text: Cow::Owned(text) }
    }
}

/// Where the members of an object lie in its text, which every question brings along.
#[derive(Clone, Debug, PartialEq)]
pub struct Fields {
    members: Box<[Member]>,
    /// By place, one more than the index of the last member with that name.
    places: [u32; PLACES],
}

impl Fields {
    /// The fields of the object `text`, whose members have been read.
    pub fn new(text: &[u8], members: &[Member]) -> Self {
        let mut places = [0; PLACES];
        for (index, member) in (1..).zip(members) {
            let place = match member.name.kind {
                Kind::Escaped => place(&member.name.bytes(text)),
                _ => place(member.name.span.of(text)),
            };
            if let Some(place) = place.and_then(|place| places.get_mut(place)) {
                *place = index;
            }
        }
        Self { members: members.into(), places }
    }

    /// All members, in their order.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// How many bytes of memory the fields hold beside themselves.
    pub fn memory(&self) -> usize {
        size_of_val(&*self.members)
    }

    /// The text of a field under any of its names; `None` if it is missing, null or empty.
    pub fn text_of<'a>(&self, text: &'a str, name: &Name) -> Option<Cow<'a, str>> {
        self.find(text.as_bytes(), name, |_| true).map(|value| value.text(text))
    }

    /// An identifier under any of its names: the first that is a scalar, and not the text of null, of an object or of an array, which
    /// is all that a query string can make of these.
    pub fn scalar(&self, text: &[u8], name: &Name) -> Option<Value> {
        self.find(text, name, |value| {
            let bytes = value.bytes(text);
            !matches!(value.kind, Kind::Object | Kind::Array) && *bytes != *b"null" && !is_structure(&bytes)
        })
    }

    /// The first of the field's names under which there is a value that is not null, not empty, and passes.
    fn find(&self, text: &[u8], name: &Name, passes: impl Fn(&Value) -> bool) -> Option<Value> {
        let says = |member: &Member| {
            let value = member.value;
            (value.kind != Kind::Null && !value.span.range().is_empty() && passes(&value)).then_some(value)
        };
        // Of members with the same name the last one counts, as for most JSON readers.
        match &name.place {
            Some(place) => alike(place).iter().find_map(|place| says(self.at(*place)?)),
            None => says(self.members.iter().rev().find(|member| member.is_named(&name.text, text))?),
        }
    }

    fn at(&self, place: usize) -> Option<&Member> {
        self.members.get(self.places.get(place)?.checked_sub(1)? as usize)
    }
}

/// Whether this is the text of a JSON object or array.
fn is_structure(value: &[u8]) -> bool {
    let json = matches!(value.first(), Some(b'{' | b'[')).then(|| str::from_utf8(value).ok()).flatten();
    json.is_some_and(|json| {
        let mut reader = Reader::new(json, MAX_DEPTH);
        reader.value().is_ok() && reader.peek().is_none()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_member_of_a_name_counts_however_it_is_written() {
        let names = ["team", "te\\u0061m", "user", "us\\u0065r", "appid", "leg", "x"];
        let plain = |name: &str| name.replace("\\u0061", "a").replace("\\u0065", "e");
        let mut random = fastrand::Rng::with_seed(31);
        for _ in 0..2_000 {
            let members: Vec<_> =
                (0..random.usize(0..20)).map(|number| (*random.choice(&names).unwrap(), number)).collect();
            let written: Vec<_> = members.iter().map(|(name, number)| format!("\"{name}\":{number}")).collect();
            let text = format!("{{{}}}", written.join(","));
            let mut read = Vec::new();
            Reader::new(&text, 9).object(&mut read).unwrap();
            let fields = Fields::new(text.as_bytes(), &read);
            for name in ["team", "user", "appid", "leg", "x", "y", "status"] {
                let last =
                    members.iter().rev().find(|(other, _)| plain(other) == name).map(|(_, number)| number.to_string());
                assert_eq!(fields.text_of(&text, &Name::of(name)).as_deref(), last.as_deref(), "{name} in {text}");
            }
        }
    }
}
