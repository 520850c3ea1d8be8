//! One webhook notification: its bytes, its fields, its identity and the conversation it belongs to.
//!
//! TeleCMI's documents and public receivers of its webhooks say: there is no delivery id, identifiers have several spellings, and
//! every field may be missing, null, or a number here and a text there.

mod calls;
mod fields;
mod identity;
pub mod json;

pub use calls::{Call, CallName, LegKey, MAX_NAME};
pub use fields::Fields;

use serde_json::value::RawValue;
use std::fmt;
use std::sync::Arc;

/// The greatest depth of nesting that can be configured.
pub const MAX_DEPTH: usize = 128;

/// The name of the route that events have unless another is set.
pub const DEFAULT_INGRESS: &str = "default";

/// 128 bits of SHA-256 over the event's content; written as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventId(pub [u8; 16]);

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The time a webhook arrived, in milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arrival(pub u64);

impl Arrival {
    /// The present time.
    pub fn now() -> Self {
        Self::from(jiff::Timestamp::now())
    }
}

impl From<jiff::Timestamp> for Arrival {
    fn from(time: jiff::Timestamp) -> Self {
        Self(time.as_millisecond().max(0) as u64)
    }
}

impl std::str::FromStr for Arrival {
    type Err = jiff::Error;

    /// Reads RFC 3339.
    fn from_str(text: &str) -> Result<Self, jiff::Error> {
        text.parse().map(|time: jiff::Timestamp| time.into())
    }
}

impl fmt::Display for Arrival {
    /// RFC 3339 in UTC with milliseconds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = jiff::Timestamp::from_millisecond(self.0 as i64).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        write!(f, "{time:.3}")
    }
}

/// The events of one request, in their order.
pub type Events = Vec<Event>;

/// One webhook notification.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    payload: Arc<str>,
    id: EventId,
    conversation: Arc<str>,
    /// `None` once the conversation is resolved.
    call: Option<Box<Call>>,
    arrival: Arrival,
    /// `None` is [`DEFAULT_INGRESS`].
    ingress: Option<Arc<str>>,
    query: Option<Arc<str>>,
}

impl Event {
    /// Reads `object`, which may be nested `max_depth` levels deep, as an event.
    pub fn parse(object: &str, max_depth: usize, arrival: Arrival) -> Result<Self, json::Error> {
        let raw = json::parse(object, max_depth)?;
        if !raw.get().starts_with('{') {
            return Err(json::Error::at(object, object.len() - object.trim_start().len(), "expected a JSON object"));
        }
        Ok(Self::new(raw.get().into(), &Fields::of_payload(raw.get()), arrival))
    }

    /// The event in a JSON object with these fields; its bytes are kept exactly.
    pub fn from_object(object: &RawValue, fields: &Fields<'_>, arrival: Arrival) -> Self {
        Self::new(object.get().into(), fields, arrival)
    }

    /// The event of fields that came as texts: an object of strings.
    pub fn from_texts(fields: &[(String, String)], arrival: Arrival) -> Self {
        let mut payload = String::from("{");
        for (name, value) in fields {
            let separator = if payload.len() > 1 { "," } else { "" };
            payload.extend([separator, &json::quote(name), ":", &json::quote(value)]);
        }
        payload.push('}');
        Self::new(payload.into(), &Fields::of_texts(fields), arrival)
    }

    fn new(payload: Arc<str>, fields: &Fields<'_>, arrival: Arrival) -> Self {
        Self::with_id(payload, fields, identity::of(fields), arrival)
    }

    fn with_id(payload: Arc<str>, fields: &Fields<'_>, id: EventId, arrival: Arrival) -> Self {
        let (call, conversation) = Call::of(fields);
        let conversation = conversation.map_or_else(|| id.to_string().into(), Arc::from);
        Self { payload, id, conversation, call: Some(Box::new(call)), arrival, ingress: None, query: None }
    }

    /// Restores an event from its stored parts, without looking at them. Its conversation is resolved.
    pub fn restore(payload: &str, id: EventId, conversation: &str, arrival: Arrival) -> Self {
        let conversation = conversation.into();
        Self { payload: payload.into(), id, conversation, call: None, arrival, ingress: None, query: None }
    }

    /// Restores an event that was not stored yet: its conversation is not resolved.
    pub fn restore_unresolved(payload: &str, id: EventId, arrival: Arrival) -> Self {
        Self::with_id(payload.into(), &Fields::of_payload(payload), id, arrival)
    }

    /// The same event in this conversation for good; in the one it has if there is none.
    pub fn resolved(self, conversation: Option<Arc<str>>) -> Self {
        Self { conversation: conversation.unwrap_or(self.conversation), call: None, ..self }
    }

    /// The same event as it came by the route of this name; `None` is [`DEFAULT_INGRESS`].
    pub fn by(self, ingress: Option<Arc<str>>) -> Self {
        Self { ingress, ..self }
    }

    /// The same event with the query string of the request whose body it was in; `None` if there was none.
    pub fn with_query(self, query: Option<Arc<str>>) -> Self {
        Self { query, ..self }
    }

    /// The same event with another payload; identity and conversation stay.
    pub fn with_payload(self, payload: Arc<str>) -> Self {
        Self { payload, ..self }
    }

    /// The JSON object, byte for byte as received where it came as JSON.
    pub fn payload(&self) -> &Arc<str> {
        &self.payload
    }

    /// Stable across resends of the same event.
    pub fn id(&self) -> EventId {
        self.id
    }

    /// The key of the order: the conversation's id, or the identifier that stands in for it. Never empty. Resolved when the event is
    /// stored, until then as far as the event itself tells it.
    pub fn conversation(&self) -> &str {
        &self.conversation
    }

    /// The same, shared.
    pub fn shared_conversation(&self) -> &Arc<str> {
        &self.conversation
    }

    /// What the event tells of its call; `None` once its conversation is resolved.
    pub fn call(&self) -> Option<&Call> {
        self.call.as_deref()
    }

    /// The keys of the leg whose CDR the event is; none once its conversation is resolved.
    pub fn legs(&self) -> impl Iterator<Item = LegKey> {
        self.call().into_iter().flat_map(|call| call.legs).flatten()
    }

    /// The key that tells the leg whose CDR the event is best: by its id if it has one.
    pub fn leg(&self) -> Option<LegKey> {
        self.legs().next()
    }

    /// When the webhook arrived.
    pub fn arrival(&self) -> Arrival {
        self.arrival
    }

    /// The name of the route it came by. The payload cannot change it, and it is no part of the identity.
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

    /// The last query parameter of this name that has a value.
    pub fn query_parameter(&self, name: &str) -> Option<String> {
        let parameters = form_urlencoded::parse(self.query()?.as_bytes());
        let legible = |text: &str| !text.is_empty() && !text.contains(char::REPLACEMENT_CHARACTER);
        let named = parameters.filter(|(key, value)| key == name && legible(value));
        named.last().map(|(_, value)| value.into_owned())
    }

    /// The fields of the payload, read anew.
    pub fn fields(&self) -> Fields<'_> {
        Fields::of_payload(&self.payload)
    }

    /// The text of one top-level field, as [`Fields::text`] has it.
    pub fn text(&self, name: &str) -> Option<String> {
        self.fields().text(name).map(|text| text.into_owned())
    }

    /// About how many bytes of memory the event holds.
    pub fn memory(&self) -> usize {
        let call = self.call().map_or(0, size_of_val);
        size_of::<Self>() + call + self.payload.len() + self.conversation.len() + self.query().map_or(0, str::len)
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
        assert_eq!(event(r#"{"x":{"a":["null",2],"b":"1"},"type":"cdr"}"#).id(), id);
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
            r#"{"a":""}"#,
            r#"{"b":""}"#,
            r#"{"a":null}"#,
            r#"{"a":"","a":1}"#,
            r#"{"team":"a"}"#,
            r#"{"team":"a","team":""}"#,
            r#"{"team":"","team":"a"}"#,
            r#"{"a":7}"#,
            r#"{"a":7.0}"#,
            r#"{"a":9007199254740993}"#,
            r#"{"a":9007199254740992}"#,
            r#"{"a":-0}"#,
            r#"{"a":0}"#,
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
        assert_eq!(of(r#"{"call_id":"k","request_id":"r","cmiuuid":"m"}"#), "k");
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
            assert_eq!(restored, original.clone().resolved(None));
            assert_eq!(**restored.payload(), *line);
            assert_eq!(Event::restore_unresolved(line, original.id(), original.arrival()), original);
        }
    }

    #[test]
    fn deep_and_large_values_count_by_their_text() {
        let deep = format!("{{\"x\":{}1{}}}", "{\"a\":".repeat(60), "}".repeat(60));
        assert_ne!(event(&deep).id(), event(&deep.replace(":1", ":2")).id());
        let large = format!("{{\"x\":[{}1]}}", "1,".repeat(2000));
        assert_ne!(event(&large).id(), event(&large.replace("1]", "2]")).id());
        assert_ne!(event(&large).id(), event(&large.replace("[", "[[").replace("]", "]]")).id());
        let as_text = format!("{{\"x\":{}}}", json::quote(&large[5..large.len() - 1]));
        assert_eq!(event(&as_text).id(), event(&large).id());
    }

    #[test]
    fn undefined_is_no_conversation() {
        assert_eq!(
            event(r#"{"conversation_uuid":"undefined","request_id":"undefined","cmiuuid":"m"}"#).conversation(),
            "m"
        );
    }

    #[test]
    fn arrival_is_written_as_rfc_3339() {
        assert_eq!(Arrival(1_634_721_099_442).to_string(), "2021-10-20T09:11:39.442Z");
    }
}
