//! What is in bodies.

use super::reference;
use crate::ingress::decode::{self, IDENTIFIERS};
use crate::ingress::{Ack, Config};
use serde_json::{Map, Value, json};

/// The fields that senders are known to send, with an example of each. None has to be there, and none is bound to a type.
const FIELDS: [(&str, &str, &str); 19] = [
    ("type", "What the event is.", r#""cdr""#),
    ("appid", "The account. Events that are no CDR call it `app_id`.", "2222223"),
    ("cmiuuid", "One leg of the call. Formerly `cmiuid`.", r#""4d1f9521-50e5-447d-bf5f-c3292995a727""#),
    (
        "conversation_uuid",
        "The conversation, within which events keep their order. Without it `request_id`, `cmiuuid` or the event itself stand in.",
        r#""4d1f9521-50e5-447d-bf5f-c3292995a727""#,
    ),
    ("request_id", "What a click-to-call was asked for by.", r#""1ZVtqF0yBBbQ9sLdMxmx5c""#),
    ("status", "How far the call has come.", r#""missed""#),
    ("direction", "Of the leg.", r#""inbound""#),
    ("leg", "Which side of the call.", r#""a""#),
    ("time", "When the leg began, in milliseconds since 1970.", "1634721099442"),
    ("team", "Who was called.", r#""Sales_2222223""#),
    ("user", "The agent.", r#""204_2222223""#),
    ("from", "The caller's number.", "440000000000"),
    ("to", "The called number.", r#""440000000001""#),
    ("virtual_number", "The account's number.", "440000000002"),
    ("answeredsec", "Seconds of talk.", "42"),
    ("waitedsec", "Seconds of waiting.", "12"),
    ("hangup_reason", "How it ended.", r#""recv_bye""#),
    ("record", "Whether it was recorded.", "false"),
    ("custom", "Whatever the account attached to the call.", r#""{\"crm\":\"true\"}""#),
];

/// All schemas, by name.
pub fn all(config: &Config) -> Value {
    json!({
        "Event": event(&config.decode),
        "Events": events(&config.decode),
        "Fields": fields(&config.decode),
        "Stored": stored(config.ack),
        "Problem": problem(),
        "IngressReadiness": ingress_readiness(),
        "Readiness": readiness(),
    })
}

fn event(config: &decode::Config) -> Value {
    let property = |(name, description, example): (&str, &str, &str)| {
        let example: Value = serde_json::from_str(example).unwrap_or_default();
        (name.to_owned(), json!({ "description": description, "examples": [example] }))
    };
    json!({
        "description": format!(
            "One notification. Any field may be missing, null or of another type, and others are kept as they are. Nested {} \
             levels deep at the most.",
            config.max_depth
        ),
        "type": "object",
        "maxProperties": config.max_fields,
        "properties": FIELDS.map(property).into_iter().collect::<Map<_, _>>(),
        "additionalProperties": true,
    })
}

/// What a JSON body may be: an object, which may be an envelope, or an array.
fn events(config: &decode::Config) -> Value {
    let list = json!({ "type": "array", "items": reference("schemas", "Event"), "maxItems": config.max_events });
    let identified = IDENTIFIERS.map(|name| json!({ "required": [name] }));
    json!({
        "description": "An event, an array of events, or an envelope around such an array: an object with `count` and `cdr`, and \
                        with none of a call's own identifiers. They are stored all together or not at all.",
        "anyOf": [reference("schemas", "Event"), list],
        "if": {
            "type": "object",
            "required": ["count", "cdr"],
            "properties": { "count": { "type": "number" }, "cdr": { "type": "array" } },
            "not": { "anyOf": identified },
        },
        "then": { "properties": { "cdr": list } },
    })
}

fn fields(config: &decode::Config) -> Value {
    let alone = match config.json_fields.as_slice() {
        [] => String::new(),
        names => format!(" One of these alone may hold the whole event as JSON: {}.", names.join(", ")),
    };
    json!({
        "description": format!(
            "The fields of one event, {} at the most. Each becomes a text, whatever it was.{alone}",
            config.max_fields
        ),
        "type": "object",
        "additionalProperties": true,
    })
}

fn stored(ack: Ack) -> Value {
    let count = |description: &str| json!({ "description": description, "type": "integer", "minimum": 0 });
    let mut members = vec![
        ("stored", count("Events that were stored.")),
        ("duplicates", count("Events that had been stored before.")),
    ];
    if ack == Ack::Delivered {
        let delivered = "Whether every required sink has all of them.";
        members.push(("delivered", json!({ "description": delivered, "type": "boolean" })));
        members.push(("dead_letters", count("Events that a sink refused for good.")));
    }
    let required: Vec<_> = members.iter().map(|(name, _)| *name).collect();
    let required = json!(required);
    let properties: Map<_, _> = members.into_iter().map(|(name, schema)| (name.to_owned(), schema)).collect();
    json!({ "type": "object", "required": required, "properties": properties })
}

/// RFC 9457
fn problem() -> Value {
    let place = |what: &str| {
        let description = format!("The {what} where the text stops making sense, counted from 1.");
        json!({ "description": description, "type": "integer", "minimum": 1 })
    };
    json!({
        "description": "Problem details as of RFC 9457.",
        "type": "object",
        "required": ["title", "status", "detail"],
        "properties": {
            "title": { "description": "What the status means.", "type": "string" },
            "status": { "description": "The status.", "type": "integer" },
            "detail": { "description": "What is wrong, for whoever runs the sender.", "type": "string" },
            "line": place("line"),
            "column": place("column"),
        },
    })
}

fn ready() -> Value {
    json!({ "type": "boolean" })
}

fn reason() -> Value {
    json!({ "description": "Why it is not ready.", "type": ["string", "null"] })
}

fn ingress_readiness() -> Value {
    json!({
        "description": "Whether webhooks can be stored.",
        "type": "object",
        "required": ["ready", "reason"],
        "properties": { "ready": ready(), "reason": reason() },
    })
}

fn readiness() -> Value {
    let sink = json!({
        "type": "object",
        "required": ["ready", "required", "reason"],
        "properties": {
            "ready": ready(),
            "required": { "description": "Whether the bridge is not ready without it.", "type": "boolean" },
            "reason": reason(),
        },
    });
    json!({
        "description": "Whether webhooks can be stored, and every required sink is reachable and taking messages.",
        "type": "object",
        "required": ["ready", "ingress", "sinks"],
        "properties": {
            "ready": ready(),
            "ingress": reference("schemas", "IngressReadiness"),
            "sinks": { "description": "By name.", "type": "object", "additionalProperties": sink },
        },
    })
}
