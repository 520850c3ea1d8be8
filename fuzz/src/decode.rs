//! Requests to events: JSON in every form it may have, forms, queries.

use super::input::Input;
use cdrelay::event::json;
use cdrelay::event::{Arrival, Event, MAX_DEPTH};
use cdrelay::ingress::decode::{Config, Content, DecodeError};
use form_urlencoded::Serializer;
use serde::de::IgnoredAny;
use serde_json::Value;
use serde_json::value::RawValue;

const FORM: &[u8] = b"application/x-www-form-urlencoded";

/// The first byte says what kind of request it is, the rest is its body or query.
pub fn decode(data: &[u8]) {
    let mut input = Input(data);
    let kind = input.byte();
    let body = input.0;
    let config = config(kind & 4 != 0);
    let query = std::str::from_utf8(body).ok();
    let multipart = (kind & 8 != 0).then_some(&b"multipart/form-data; boundary=b"[..]);
    let content_type = [Some(&b"application/json"[..]), Some(FORM), multipart, None];
    let content = match (kind & 3, query) {
        (3, Some(query)) => Content { method: "GET", query: Some(query), content_type: None, body: b"" },
        (kind, _) => Content { method: "POST", query: None, content_type: content_type[usize::from(kind)], body },
    };
    match content.decode(&config, Arrival(1)) {
        Ok(events) => {
            assert!(events.len() <= config.max_events, "{} events", events.len());
            let held: usize = events.iter().map(Event::memory).sum();
            let most = most_memory(&content, &config);
            assert!(held <= most, "events hold {held} bytes, more than {most}");
            events.iter().for_each(|event| is_sound(event, &config));
        }
        Err(DecodeError::Malformed { detail, place }) => {
            assert!(!detail.is_empty());
            let lines = 1 + body.iter().filter(|byte| **byte == b'\n').count();
            // A field of a form may hold more lines than the form has.
            assert!(
                place.is_none_or(|(line, column)| line >= 1 && column >= 1 && column <= 6 * body.len() + 10),
                "{place:?}"
            );
            assert!(kind & 3 != 0 || place.is_none_or(|(line, _)| line <= lines), "{place:?} of {lines} lines");
        }
        Err(DecodeError::TooMany { limit }) => assert_eq!(limit, config.max_events),
        Err(DecodeError::TooLarge { bytes, limit }) => assert!(bytes > limit && limit == config.max_event),
    }
    if let Some(text) = query {
        agrees_with_serde(text);
    }
}

/// Bounds as small as make a difference, or the usual ones.
fn config(small: bool) -> Config {
    if small { Config { max_depth: 5, max_events: 3, max_fields: 6, ..Config::default() } } else { Config::default() }
}

/// The bytes of memory that the events of a request may take: no request makes many times its size of them.
fn most_memory(content: &Content<'_>, config: &Config) -> usize {
    const EVENT: usize = 300;
    let query = content.query.map_or(0, str::len);
    // JSON is copied. A character of a form can become an escape sequence of six.
    let body = match content.body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content.body).trim_ascii_start() {
        json @ [b'{' | b'[', ..] => {
            let objects = json.iter().filter(|byte| **byte == b'{').count();
            3 * json.len() + (EVENT + query) * objects.min(config.max_events)
        }
        form => 20 * form.len() + EVENT,
    };
    body + 20 * query
}

/// An event is one JSON object, and whoever reads it again finds the same in it.
fn is_sound(event: &Event, config: &Config) {
    let text = &**event.payload();
    serde_json::from_str::<IgnoredAny>(text).expect("a payload is JSON");
    assert!(!event.conversation().is_empty());
    let again = Event::parse(text, config.max_depth, event.arrival()).expect("a payload is an event");
    assert_eq!(&again, event);
    let restored = Event::restore(event.payload(), event.id(), event.conversation(), event.arrival());
    assert_eq!(restored, event.clone().resolved(None));
    assert_eq!(&Event::restore_unresolved(text, event.id(), event.arrival()), event);
    let object: &RawValue = serde_json::from_str(text).expect("a payload is JSON");
    let members = json::members(object, usize::MAX).list;
    let mut query = Serializer::new(String::new());
    let mut telling = true;
    for member in &members {
        let [name, value] = [&member.name, member.value.bytes()].map(String::from_utf8_lossy);
        assert!(again.text(&name).is_none_or(|text| !text.is_empty()));
        // Half of a character pair is one that no query can hold.
        telling &= !name.contains('\u{fffd}') && !value.contains('\u{fffd}');
        query.append_pair(&name, &value);
    }
    let alone = members.len() == 1
        && (members[0].value.bytes().is_empty()
            || config.json_fields.iter().any(|name| *members[0].name == *name.as_bytes()));
    if telling && !alone && !members.is_empty() {
        let query = query.finish();
        let content = Content { method: "GET", query: Some(&query), content_type: None, body: b"" };
        let got = content.decode(&Config { max_depth: MAX_DEPTH, ..config.clone() }, event.arrival());
        let got = got.expect("what came by POST may come by GET");
        assert_eq!(got.len(), 1);
        assert_eq!(got[0].id(), event.id(), "{text} by GET is another event");
        assert_eq!(got[0].conversation(), event.conversation(), "{text} by GET is of another conversation");
    }
}

/// A text is an event if the parser takes it for an object.
fn agrees_with_serde(text: &str) {
    let own = Event::parse(text, MAX_DEPTH, Arrival(1));
    let is_object = text.trim_start_matches([' ', '\t', '\n', '\r']).starts_with('{');
    let other = is_object && serde_json::from_str::<IgnoredAny>(text).is_ok();
    let too_deep = own.as_ref().is_err_and(|error| error.problem.contains("levels deep"));
    assert!(too_deep || own.is_ok() == other, "{own:?}");
    let (Ok(event), Ok(Value::Object(values))) = (own, serde_json::from_str(text)) else { return };
    for (name, value) in values {
        let absent = matches!(&value, Value::String(text) if matches!(&**text, "" | "null" | "undefined"));
        if ["appid", "app_id", "cmiuuid", "cmiuid"].contains(&name.as_str()) {
            continue;
        }
        match value {
            _ if absent => assert_eq!(event.text(&name), None),
            Value::String(value) => assert_eq!(event.text(&name).unwrap_or_default(), value, "{name}"),
            Value::Null => assert_eq!(event.text(&name), None),
            Value::Bool(value) => assert_eq!(event.text(&name).as_deref(), Some(value.to_string().as_str())),
            _ => assert!(event.text(&name).is_some()),
        }
    }
}

/// A form is the same event as a query; fields that hold secrets leave the others alone.
pub fn form(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let config = config(false);
    let content = Content { method: "GET", query: Some(text), content_type: None, body: b"" };
    let events = content.decode(&config, Arrival(1));
    for event in events.iter().flatten() {
        is_sound(event, &config);
    }
    if !text.trim_start().starts_with(['{', '[', '\u{feff}']) && text.contains('=') && text.trim() == text {
        let content = Content { method: "POST", query: None, content_type: Some(FORM), body: data };
        assert_eq!(events, content.decode(&config, Arrival(1)));
    }
    super::auth::secrets_are_stripped(text);
}
