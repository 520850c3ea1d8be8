//! One webhook notification: its bytes, its fields, its identity and the conversation it belongs to.
//!
//! What TeleCMI's webhooks look like is gathered from its public documentation and from code that receives them: there is
//! no delivery id, identifiers go by several names, every field may be missing, null, or a number here and a text there.

mod fields;
mod identity;
pub mod json;

pub use fields::Name;

use fields::Fields;
use json::{Kind, Member, Reader, Span};
use smallvec::SmallVec;
use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt::{self, Write as _};
use std::ops::Range;
use std::sync::Arc;

/// How deep an event may be nested unless configured otherwise; also the bound when it is read back from the spool.
pub const MAX_DEPTH: usize = 128;

/// The route that an event came by unless it says otherwise.
pub const DEFAULT_INGRESS: &str = "default";

/// Where to look for the conversation, in this order.
const CONVERSATION: [Name; 3] = [Name::of("conversation_uuid"), Name::of("request_id"), Name::of("cmiuuid")];

/// 128 bits of SHA-256 over the event's natural identity; written as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventId(pub [u8; 16]);

impl EventId {
    /// Adds it to a text.
    pub fn write(self, out: &mut String) {
        out.push_str(std::str::from_utf8(&self.digits()).unwrap_or_default());
    }

    fn digits(self) -> [u8; 32] {
        let digit = |half: u8| if half < 10 { b'0' + half } else { b'a' - 10 + half };
        let mut digits = [0; 32];
        for (pair, byte) in digits.as_chunks_mut().0.iter_mut().zip(self.0) {
            *pair = [digit(byte >> 4), digit(byte & 0xF)];
        }
        digits
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.digits()).unwrap_or_default())
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arrival(pub u64);

impl Arrival {
    /// The present moment.
    pub fn now() -> Self {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self(since.as_millis() as u64)
    }

    /// Adds it to a text, in RFC 3339. Many events come within a millisecond.
    pub fn write(self, out: &mut String) {
        thread_local! {
            static LAST: RefCell<(Arrival, String)> = const { RefCell::new((Arrival(0), String::new())) };
        }
        LAST.with_borrow_mut(|(last, text)| {
            if *last != self || text.is_empty() {
                *last = self;
                text.clear();
                let _ = write!(text, "{self}");
            }
            out.push_str(text);
        });
    }
}

impl std::str::FromStr for Arrival {
    type Err = jiff::Error;

    /// Reads RFC 3339.
    fn from_str(text: &str) -> Result<Self, jiff::Error> {
        Ok(Self(text.parse::<jiff::Timestamp>()?.as_millisecond().max(0) as u64))
    }
}

impl fmt::Display for Arrival {
    /// RFC 3339 in UTC with milliseconds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = jiff::Timestamp::from_millisecond(self.0 as i64).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        write!(f, "{time:.3}")
    }
}

/// The events of one request: mostly a single one.
pub type Events = SmallVec<[Event; 1]>;

/// Where the text of the conversation is.
#[derive(Clone, Debug)]
enum Conversation {
    /// In the payload, as it is.
    Inside(Span),
    /// Here, because it is nowhere else.
    Own(Box<str>),
}

/// One webhook notification.
#[derive(Clone, Debug)]
pub struct Event {
    payload: Arc<str>,
    fields: Fields,
    id: EventId,
    conversation: Conversation,
    arrival: Arrival,
    /// `None` is [`DEFAULT_INGRESS`].
    ingress: Option<Arc<str>>,
    query: Option<Arc<str>>,
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
            && self.arrival == other.arrival
            && self.ingress == other.ingress
            && self.query == other.query
            && self.payload == other.payload
            && self.conversation_bytes() == other.conversation_bytes()
    }
}

impl Event {
    /// Takes the JSON object that lies at `at` in `text`, where its members have been read, and works out its identity and
    /// conversation. The members are then those of the object alone.
    pub fn within(text: &str, at: Range<usize>, members: &mut [Member], arrival: Arrival) -> Self {
        if at.start > 0 {
            members.iter_mut().for_each(|member| member.move_back(at.start));
        }
        Self::new(text.get(at).unwrap_or_default(), members, arrival)
    }

    fn new(object: &str, members: &[Member], arrival: Arrival) -> Self {
        let text = object.as_bytes();
        let fields = Fields::new(text, members);
        let id = identity::of(text, &fields);
        let conversation = match CONVERSATION.iter().find_map(|name| fields.scalar(text, name)) {
            Some(value) if value.kind != Kind::Escaped => Conversation::Inside(value.span),
            Some(value) => Conversation::Own(value.text(object).into()),
            None => Conversation::Own(id.to_string().into()),
        };
        // The object is a part of a request's buffer: a copy of its own lets that buffer go.
        Self { payload: object.into(), fields, id, conversation, arrival, ingress: None, query: None }
    }

    /// Reads `object` and takes it as an event.
    pub fn parse(object: &str, max_depth: usize, arrival: Arrival) -> Result<Self, json::Error> {
        let mut reader = Reader::new(object, max_depth);
        let mut members = Vec::new();
        reader.object(&mut members)?;
        match reader.peek() {
            None => Ok(Self::new(object, &members, arrival)),
            Some(_) => Err(reader.error("expected nothing after the object")),
        }
    }

    /// Puts an event together again from what was stored with it. Fields are found only if `payload` is a JSON object.
    pub fn restore(payload: &str, id: EventId, conversation: &str, arrival: Arrival) -> Self {
        let mut members = Vec::new();
        if Reader::new(payload, MAX_DEPTH).object(&mut members).is_err() {
            members.clear();
        }
        Self {
            payload: payload.into(),
            fields: Fields::new(payload.as_bytes(), &members),
            id,
            conversation: Conversation::Own(conversation.into()),
            arrival,
            ingress: None,
            query: None,
        }
    }

    /// The same event as it came by the route of this name; `None` is [`DEFAULT_INGRESS`].
    pub fn by(self, ingress: Option<Arc<str>>) -> Self {
        Self { ingress, ..self }
    }

    /// The same event with the query string of the request whose body it was in; `None` if there was none.
    pub fn with_query(self, query: Option<Arc<str>>) -> Self {
        Self { query, ..self }
    }

    /// The JSON object, byte for byte as received where it came as JSON.
    pub fn payload(&self) -> &Arc<str> {
        &self.payload
    }

    /// Stable across resends of the same event.
    pub fn id(&self) -> EventId {
        self.id
    }

    /// What order is kept within: the conversation's id, or whatever stands in for it. Never empty.
    pub fn conversation(&self) -> &str {
        match &self.conversation {
            Conversation::Inside(span) => self.payload.get(span.range()).unwrap_or_default(),
            Conversation::Own(text) => text,
        }
    }

    /// The same as bytes, which nobody has to check again.
    pub fn conversation_bytes(&self) -> &[u8] {
        match &self.conversation {
            Conversation::Inside(span) => span.of(self.payload.as_bytes()),
            Conversation::Own(text) => text.as_bytes(),
        }
    }

    /// When the webhook arrived here.
    pub fn arrival(&self) -> Arrival {
        self.arrival
    }

    /// The name of the route it came by. Nothing in the payload can change it, and it is no part of the identity.
    pub fn ingress(&self) -> &str {
        self.ingress.as_deref().unwrap_or(DEFAULT_INGRESS)
    }

    /// The name of the route if it is not [`DEFAULT_INGRESS`].
    pub fn other_ingress(&self) -> Option<&Arc<str>> {
        self.ingress.as_ref()
    }

    /// The query string that stood beside the body, percent-encoded, without secrets. It is no part of the identity.
    pub fn query(&self) -> Option<&str> {
        self.query.as_deref()
    }

    /// The text of a top-level field under any of its names; `None` if it is missing, null or empty.
    pub fn text(&self, name: &str) -> Option<Cow<'_, str>> {
        self.field(&Name::from(name.to_owned()))
    }

    /// The same, for a name that many events are asked for.
    pub fn field(&self, name: &Name) -> Option<Cow<'_, str>> {
        self.fields.text_of(&self.payload, name)
    }

    /// About how many bytes of memory the event holds.
    pub fn memory(&self) -> usize {
        size_of::<Self>()
            + self.payload.len()
            + self.fields.memory()
            + self.conversation_bytes().len()
            + self.query().map_or(0, str::len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLES: &str = include_str!("../tests/support/payloads.ndjson");

    fn event(text: &str) -> Event {
        Event::parse(text, 64, Arrival(1_634_721_099_442)).unwrap()
    }

    #[test]
    fn reordered_members_and_values_as_text_are_the_same_event() {
        for line in SAMPLES.lines() {
            let original: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line).unwrap();
            let reversed: Vec<String> =
                original.iter().rev().map(|(name, value)| format!("{name:?} : {value}")).collect();
            let as_text: Vec<String> = original
                .iter()
                .map(|(name, value)| match value {
                    serde_json::Value::String(text) => format!("{name:?}:{}", serde_json::json!(text)),
                    other => format!("{name:?}:{}", serde_json::json!(other.to_string())),
                })
                .collect();
            let id = event(line).id();
            assert_eq!(event(&format!("{{{}}}", reversed.join(" ,\n"))).id(), id, "{line}");
            assert_eq!(event(&format!("{{{}}}", as_text.join(","))).id(), id, "{line}");
        }
    }

    #[test]
    fn members_that_a_query_string_cannot_tell_apart_do_not_matter() {
        let id = event(r#"{"type":"cdr","team":null,"custom":"","x":{"b":1,"a":[null,"2"]}}"#).id();
        assert_eq!(event(r#"{"type":"cdr","team":"null","x":"{ \"a\": [null, 2], \"b\": \"1\" }"}"#).id(), id);
    }

    #[test]
    fn added_or_changed_content_is_another_event() {
        let mut ids: Vec<EventId> = SAMPLES
            .lines()
            .flat_map(|line| {
                [line.to_owned(), line.replacen('{', r#"{"filename":"late.mp3","#, 1), line.replacen("44", "45", 1)]
            })
            .map(|text| event(&text).id())
            .collect();
        let pairs = [
            r#"{"a":"bc"}"#,
            r#"{"ab":"c"}"#,
            r#"{"a":"b","c":"d"}"#,
            r#"{"a":"b,c:d"}"#,
            r#"{"x":{"a":1}}"#,
            r#"{"x":["a",1]}"#,
            r#"{"x":[["a"],1]}"#,
            r#"{"x":[["a",1]]}"#,
            r#"{"x":"a"}"#,
            r#"{"x":["a"]}"#,
            r#"{"x":{"a":{"b":1},"c":2}}"#,
            r#"{"x":{"a":{"b":1,"c":2}}}"#,
            r#"{"a":1,"a":2}"#,
            r#"{"a":2,"a":1}"#,
            r#"{}"#,
        ];
        ids.extend(pairs.map(|text| event(text).id()));
        let count = ids.len();
        ids.sort();
        ids.dedup();
        // Two sample lines hold no "44", so their third variant is the line itself.
        let unchanged = SAMPLES.lines().filter(|line| !line.contains("44")).count();
        assert_eq!(ids.len(), count - unchanged);
    }

    #[test]
    fn lone_surrogates_are_told_apart() {
        let texts = [r"\ud800", r"\ud801", r"\udc00", r"\ud801\ud800", r"\ud800\ud801", "\u{fffd}", r"\ud800\udc00"];
        let events = texts.iter().flat_map(|text| {
            [
                format!("{{\"x\":\"{text}\"}}"),
                format!("{{\"{text}\":1}}"),
                format!("{{\"cmiuuid\":\"{text}\"}}"),
                format!("{{\"x\":{{\"a\":[\"{text}\"]}}}}"),
                format!("{{\"x\":{{\"{text}\":1}}}}"),
                format!("{{\"x\":\"{{{text}\"}}"),
            ]
        });
        let mut ids: Vec<EventId> = events.map(|text| event(&text).id()).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 6 * texts.len());
        assert_eq!(event(r#"{"x":"\ud83d\ude00"}"#).id(), event(r#"{"x":"😀"}"#).id());
    }

    #[test]
    fn the_text_null_identifies_no_more_than_null_does() {
        for (post, get) in [
            (r#"{"type":"cdr","cmiuuid":null,"cmiuid":"m"}"#, r#"{"type":"cdr","cmiuuid":"null","cmiuid":"m"}"#),
            (r#"{"leg":null,"conversation_uuid":null}"#, r#"{"leg":"null","conversation_uuid":"null"}"#),
        ] {
            assert_eq!(event(post).id(), event(get).id());
            assert_eq!(event(post).conversation(), event(get).conversation());
        }
    }

    #[test]
    fn the_conversation_follows_the_documented_chain() {
        let of = |text| event(text).conversation().to_owned();
        assert_eq!(of(r#"{"conversation_uuid":"c","request_id":"r","cmiuuid":"m"}"#), "c");
        assert_eq!(of(r#"{"conversation_uuid":"","request_id":"r","cmiuuid":"m"}"#), "r");
        assert_eq!(of(r#"{"conversation_uuid":null,"cmiuuid":"m"}"#), "m");
        assert_eq!(of(r#"{"conversation_uuid":{"x":1},"cmiuid":17}"#), "17");
        assert_eq!(of(r#"{"conversation_uuid":"null","request_id":"null","cmiuuid":"m"}"#), "m");
        assert_eq!(of(r#"{"cmiuuid":{"x":1},"cmiuid":"m"}"#), "m");
        assert_eq!(of(r#"{"cmiuuid":[1],"cmiuid":""}"#), event(r#"{"cmiuuid":[1],"cmiuid":""}"#).id().to_string());
        let alone = event(r#"{"type":"sms"}"#);
        assert_eq!(alone.conversation(), alone.id().to_string());
    }

    #[test]
    fn a_restored_event_is_the_same() {
        for line in SAMPLES.lines() {
            let original = event(line);
            let restored =
                Event::restore(original.payload(), original.id(), original.conversation(), original.arrival());
            assert_eq!(restored, original);
            assert_eq!(**restored.payload(), *line);
        }
    }

    #[test]
    fn deep_nesting_is_hashed_in_linear_time() {
        let deep = format!("{{\"x\":{}1{}}}", "{\"a\":".repeat(60), "}".repeat(60));
        assert_ne!(event(&deep).id(), event(&deep.replace(":1", ":2")).id());
    }

    #[test]
    fn arrival_is_written_as_rfc_3339() {
        assert_eq!(Arrival(1_634_721_099_442).to_string(), "2021-10-20T09:11:39.442Z");
    }
}
