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

    /// The ids and times of the event's call; `None` once its conversation is resolved.
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
mod tests;
