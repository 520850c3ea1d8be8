//! From the bytes of a request to events. The Content-Type only guides: the shape of the body decides.
//!
//! Nothing is altered silently: bytes that are not UTF-8 are decoded by their declared charset, or the request is refused.

mod form;

use crate::event::json::{self, Value};
use crate::event::{Arrival, Event, Fields};
use form::Charset;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::sync::Arc;

/// `[ingress.decode]`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Form fields that may hold the complete event as JSON text, if they are the only field.
    pub json_fields: Vec<String>,
    /// Members that may hold the events of a request as an array, in an object that is no event itself.
    pub envelopes: Vec<String>,
    /// Levels of nesting of a request's JSON, 128 at most.
    pub max_depth: usize,
    /// Events in one request.
    pub max_events: usize,
    /// Fields at the top level of an event.
    pub max_fields: usize,
    /// Bytes of an event that is made of form fields: the size of a body. A control character takes six in JSON.
    #[serde(skip)]
    pub max_event: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            json_fields: ["data", "payload", "myoperator"].map(String::from).into(),
            envelopes: ["cdr"].map(String::from).into(),
            max_depth: 64,
            max_events: 1000,
            max_fields: 1000,
            max_event: usize::MAX,
        }
    }
}

/// An object with any of these is an event, not an envelope around events.
pub const IDENTIFIERS: [&str; 6] = ["type", "appid", "app_id", "cmiuuid", "cmiuid", "conversation_uuid"];

/// Why a request holds no events.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not decodable.
    #[error("{detail}")]
    Malformed {
        /// The problem, for the operator of the sender.
        detail: String,
        /// Line and column in the body, counted from 1, where JSON is broken.
        place: Option<(usize, usize)>,
    },
    /// A larger event than allowed.
    #[error("the fields take {bytes} bytes as JSON, and an event may have {limit}")]
    TooLarge {
        /// Bytes of the event.
        bytes: usize,
        /// The size of a body.
        limit: usize,
    },
    /// More events than allowed.
    #[error("more than {limit} events in one request; send them in several")]
    TooMany {
        /// The configured bound.
        limit: usize,
    },
}

impl From<json::Error> for DecodeError {
    fn from(error: json::Error) -> Self {
        Self::Malformed { detail: error.to_string(), place: Some((error.line, error.column)) }
    }
}

impl DecodeError {
    fn malformed(detail: impl Into<String>) -> Self {
        Self::Malformed { detail: detail.into(), place: None }
    }

    fn in_field(self, name: &str) -> Self {
        match self {
            Self::Malformed { detail, place } => {
                Self::Malformed { detail: format!("in the form field `{name}`: {detail}"), place }
            }
            other => other,
        }
    }
}

/// The parts of a request that hold its events.
#[derive(Clone, Copy, Debug)]
pub struct Content<'a> {
    /// The method.
    pub method: &'a str,
    /// The query string, percent-encoded, without secrets.
    pub query: Option<&'a str>,
    /// The Content-Type.
    pub content_type: Option<&'a [u8]>,
    /// The complete body, decompressed.
    pub body: &'a [u8],
}

impl Content<'_> {
    /// The events of the request, in their order. Those of a body carry the query with them; a query beside a body without events
    /// is an event itself.
    pub fn decode(&self, config: &Config, arrival: Arrival) -> Result<Vec<Event>, DecodeError> {
        let decoder = Decoder { config, arrival, content_type: self.content_type.unwrap_or_default() };
        let blank = says_nothing(self.body);
        let events = if blank { Vec::new() } else { decoder.body(self.body)? };
        let query = self.query.filter(|query| !query.is_empty());
        if !events.is_empty() {
            let query: Option<Arc<str>> = query.map(Into::into);
            return Ok(events.into_iter().map(|event| event.with_query(query.clone())).collect());
        }
        let events = decoder.form(query.unwrap_or_default().as_bytes())?;
        if events.is_empty() && blank && self.method == "POST" {
            return Err(DecodeError::malformed("the body is empty; expected a JSON object"));
        }
        Ok(events)
    }
}

/// UTF-8's byte order mark.
const BOM: &[u8] = b"\xef\xbb\xbf";

fn without_bom(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(BOM).unwrap_or(bytes)
}

/// Whether a body holds no value: nothing, white space or `null`.
pub fn says_nothing(body: &[u8]) -> bool {
    matches!(without_bom(body).trim_ascii(), b"" | b"null")
}

struct Decoder<'a> {
    config: &'a Config,
    arrival: Arrival,
    content_type: &'a [u8],
}

impl Decoder<'_> {
    fn body(&self, body: &[u8]) -> Result<Vec<Event>, DecodeError> {
        let body = without_bom(body);
        let trimmed = body.trim_ascii();
        match trimmed {
            [b'{' | b'[', ..] => {
                let text = Charset::of(self.content_type).json(body)?;
                let events = self.json(&text);
                // JSON in place of a form field's name.
                let name = text.trim_end().strip_suffix('=').filter(|_| events.is_err());
                name.and_then(|name| self.json(name).ok()).map_or(events, Ok)
            }
            _ if form::is_multipart(self.content_type) => {
                self.fields(form::multipart(body, self.content_type, self.config)?)
            }
            _ if form::is_form(trimmed, self.content_type, &self.config.json_fields) => self.form(trimmed),
            _ => {
                let text = Charset::of(self.content_type).json(body)?;
                let offset = text.len() - text.trim_start().len();
                let problem = "expected a JSON object, an array of objects, or form fields";
                Err(json::Error::at(&text, offset, problem).into())
            }
        }
    }

    /// The event in a query string or a form; none if there is no field.
    fn form(&self, form: &[u8]) -> Result<Vec<Event>, DecodeError> {
        self.fields(form::fields(form, Charset::of(self.content_type), self.config)?)
    }

    fn fields(&self, fields: Vec<(String, String)>) -> Result<Vec<Event>, DecodeError> {
        match fields.as_slice() {
            [] => return Ok(Vec::new()),
            [(name, value)] if self.config.json_fields.contains(name) && is_json(value) => {
                return self.json(value).map_err(|error| error.in_field(name));
            }
            [(name, value)] if value.is_empty() && is_json(name) => {
                if let Ok(events) = self.json(name) {
                    return Ok(events);
                }
            }
            _ => {}
        }
        let size = |(name, value): &(String, String)| json::quoted_len(name) + json::quoted_len(value) + 2;
        let (bytes, limit) = (1 + fields.iter().map(size).sum::<usize>(), self.config.max_event);
        if bytes > limit {
            return Err(DecodeError::TooLarge { bytes, limit });
        }
        Ok(vec![Event::from_texts(&fields, self.arrival)])
    }

    /// One object, an array of objects, an envelope around such an array, or one object a line.
    fn json(&self, text: &str) -> Result<Vec<Event>, DecodeError> {
        json::check_depth(text, self.config.max_depth)?;
        let mut events = Vec::new();
        let mut values = serde_json::Deserializer::from_str(text).into_iter::<&RawValue>();
        let mut end = 0;
        while let Some(value) = values.next() {
            let value = value.map_err(|error| json::Error::from_parser(&error, text))?;
            let start = json::offset(text, value);
            if end > 0 && !text.get(end..start).is_some_and(|between| between.contains('\n')) {
                let problem = "expected the end, or the next object on a line of its own";
                return Err(json::Error::at(text, start, problem).into());
            }
            let first = end == 0;
            end = values.byte_offset();
            let rest = text.get(end..).unwrap_or_default();
            let array = if first && value.get().starts_with('[') { Some(value) } else { None };
            let array = array.or_else(|| self.envelope(value).filter(|_| first && rest.trim().is_empty()));
            match array {
                None => self.object(text, value, "expected a JSON object", &mut events)?,
                Some(_) if !rest.trim().is_empty() => {
                    let offset = end + rest.len() - rest.trim_start().len();
                    return Err(json::Error::at(text, offset, "expected nothing after the array").into());
                }
                Some(array) => {
                    let elements = json::elements(array, self.config.max_events);
                    if elements.truncated {
                        return Err(DecodeError::TooMany { limit: self.config.max_events });
                    }
                    for (number, element) in (1..).zip(elements.list) {
                        let problem = format!("element {number} of the array is not an object");
                        self.object(text, element, &problem, &mut events)?;
                    }
                }
            }
        }
        Ok(events)
    }

    /// Adds the event in `object`, unless that has no members.
    fn object(&self, text: &str, object: &RawValue, problem: &str, events: &mut Vec<Event>) -> Result<(), DecodeError> {
        if !object.get().starts_with('{') {
            return Err(json::Error::at(text, json::offset(text, object), problem).into());
        }
        let limit = self.config.max_fields;
        let Some(fields) = Fields::of(object, limit) else {
            let problem = form::too_many_fields(limit);
            return Err(json::Error::at(text, json::offset(text, object), problem).into());
        };
        if fields.members().is_empty() {
            return Ok(());
        }
        if events.len() == self.config.max_events {
            return Err(DecodeError::TooMany { limit: self.config.max_events });
        }
        events.push(Event::from_object(object, &fields, self.arrival));
        Ok(())
    }

    /// The array in an envelope such as `{"count":n,"cdr":[…],"code":200}`. A record of a call with such a field has identifiers too.
    fn envelope<'a>(&self, object: &'a RawValue) -> Option<&'a RawValue> {
        let fields = Fields::of(object, self.config.max_fields)?;
        if IDENTIFIERS.iter().any(|name| fields.member(name).is_some()) {
            return None;
        }
        self.config.envelopes.iter().find_map(|name| match fields.member(name) {
            Some(Value::Json(value)) if value.get().starts_with('[') => Some(*value),
            _ => None,
        })
    }
}

/// Whether a form's text is meant as JSON.
fn is_json(text: &str) -> bool {
    text.trim_start().starts_with(['{', '['])
}

#[cfg(test)]
mod tests;
