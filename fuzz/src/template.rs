//! Templates, and what a value from an event can do to a topic, a subject or a header.

use super::input::Input;
use cdrelay::event::{Arrival, Event, MAX_DEPTH, json};
use cdrelay::route::{Config, Dialect, Format, Origin, Route, Routed, Template};
use cdrelay::spool::Record;
use percent_encoding::percent_decode_str;
use serde_json::Value;
use std::sync::Arc;

const NAMES: [&str; 8] = ["team", "conversation_uuid", "user", "appid", "type", "direction", "status", "leg"];

/// The first line is a template, each of the next ones the value of a field.
pub fn template(data: &[u8]) {
    let mut input = Input(data);
    let text = input.line();
    let mut object = String::from("{\"payload\":true");
    for name in NAMES {
        if input.is_empty() {
            break;
        }
        object.push_str(&format!(",\"{name}\":"));
        object.push_str(&json::quote(&input.line()));
    }
    object.push('}');
    let event = Event::parse(&object, MAX_DEPTH, Arrival(1)).expect("an object that was written is an event");
    let event = event.by((!input.is_empty()).then(|| input.line().into()));
    let record = Record { offset: 0, target: None, event };

    let escaped = text.replace('{', "{{").replace('}', "}}");
    let constant = Template::parse(&escaped).expect("a template whose braces are doubled holds no fields");
    assert_eq!(constant.constant().unwrap_or_default(), text);

    let origin = Origin { labels: [("region".to_owned(), text.clone())].into(), ..Origin::default() };
    let origins = Arc::new([("default".to_owned(), origin)].into());
    for dialect in [Dialect::Nats, Dialect::Kafka] {
        for format in [Format::Event, Format::CloudEvents] {
            let config =
                Config { topic: Some(text.clone()), format, origins: Arc::clone(&origins), ..Config::default() };
            match Route::compile(&config, dialect) {
                Ok(route) => stays_within(&route, dialect, &text, &record),
                Err(error) => assert!(!error.problem.is_empty()),
            }
        }
        let config =
            Config { key: text.clone(), partition_by: text.clone(), source: text.clone(), ..Config::default() };
        if let Ok(route) = Route::compile(&config, dialect) {
            stays_within(&route, dialect, "{team}", &record);
        }
    }
    comes_back(&record);
}

/// A message is legal at its destination, and one of those that its route admits to making.
fn stays_within(route: &Route, dialect: Dialect, template: &str, record: &Record) {
    let message = match route.render(record, |error| panic!("{error}")) {
        Routed::Message(message) => message,
        Routed::Refused { cause, .. } => return assert!(dialect == Dialect::Kafka && !cause.is_empty()),
        Routed::Filtered => panic!("there is no filter"),
    };
    let topic = message.topic();
    assert!(route.may_name(topic), "{topic:?} is none of {template:?}");
    match dialect {
        Dialect::Kafka => {
            let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
            assert!((1..=249).contains(&topic.len()) && topic.bytes().all(legal), "{topic:?}");
            assert!(!matches!(topic, "." | ".."));
        }
        Dialect::Nats => {
            assert!(topic.bytes().all(|byte| byte.is_ascii_graphic() && !b"*>".contains(&byte)), "{topic:?}");
            assert!(!topic.starts_with('$') && topic.split('.').all(|token| !token.is_empty()), "{topic:?}");
            let wildcard = route.subject_wildcard();
            let (wild, tokens) = (wildcard.split('.'), topic.split('.'));
            assert_eq!(wild.clone().count(), tokens.clone().count(), "{topic:?} is not of {wildcard:?}");
            assert!(wild.zip(tokens).all(|(wild, token)| wild == "*" || wild == token), "{topic:?}, {wildcard:?}");
            for (name, value) in message.headers() {
                assert!(value.bytes().all(|byte| byte >= b' ' && byte != 0x7f), "{name}: {value:?}");
                assert!(name == "content-type" || !value.contains([' ', '"']), "{name}: {value:?}");
            }
        }
    }
    let header = |name: &str| message.headers().find(|(other, _)| *other == name).map(|(_, value)| value);
    if let Some(value) = header("ce-subject") {
        let subject = percent_decode_str(value).decode_utf8().expect("a header is UTF-8");
        assert_eq!(subject, record.event.conversation());
    }
    if header("content-type").is_some_and(|value| value.contains("cloudevents")) {
        let envelope: Value = serde_json::from_slice(message.payload()).expect("an envelope is JSON");
        let data: Value = serde_json::from_str(record.event.payload()).expect("a payload is JSON");
        assert_eq!(envelope.get("data"), Some(&data));
        assert_eq!(envelope.get("subject"), Some(&record.event.conversation().into()));
    } else {
        assert_eq!(**message.payload(), *record.event.payload().as_bytes());
    }
}

/// A value is one token of a subject, and can be had back from it.
fn comes_back(record: &Record) {
    let config = Config { topic: Some("cdr.{user}.end".into()), ..Config::default() };
    let route = Route::compile(&config, Dialect::Nats).expect("the template is right");
    let Routed::Message(message) = route.render(record, |error| panic!("{error}")) else { panic!("it is legal") };
    let tokens: Vec<_> = message.topic().split('.').collect();
    let [_, token, _] = tokens.as_slice() else { panic!("{:?} has other tokens", message.topic()) };
    let user = record.event.text("user").unwrap_or_default();
    let expected = if user.is_empty() { "~".into() } else { user };
    assert_eq!(percent_decode_str(token).decode_utf8().expect("it is UTF-8"), expected);
    assert_eq!(*token == "~", record.event.text("user").is_none());
}
