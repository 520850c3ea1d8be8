//! librdkafka properties that a configuration passes through.

use crate::setting::Secret;
use crate::sink::SetupError;
use rdkafka::ClientConfig;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// librdkafka properties by name. Values are kept secret: some of them are passwords.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(from = "BTreeMap<String, Property>")]
pub struct Properties(pub BTreeMap<String, Secret>);

/// A property, or the inner table that TOML makes of a dotted name without quotes.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a librdkafka property is a text, a number or a boolean")]
enum Property {
    Boolean(bool),
    Number(serde_json::Number),
    Text(String),
    Table(BTreeMap<String, Property>),
}

impl From<BTreeMap<String, Property>> for Properties {
    fn from(table: BTreeMap<String, Property>) -> Self {
        let mut properties = BTreeMap::new();
        let mut tables = vec![(String::new(), table)];
        while let Some((prefix, table)) = tables.pop() {
            for (key, property) in table {
                let name = prefix.clone() + &key;
                let value = match property {
                    Property::Boolean(value) => value.to_string(),
                    Property::Number(value) => value.to_string(),
                    Property::Text(value) => value,
                    Property::Table(inner) => {
                        tables.push((name + ".", inner));
                        continue;
                    }
                };
                properties.insert(name, Secret::new(value));
            }
        }
        Self(properties)
    }
}

impl JsonSchema for Properties {
    fn schema_name() -> Cow<'static, str> {
        "Properties".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "object", "additionalProperties": { "type": ["string", "number", "boolean", "object"], "writeOnly": true } })
    }
}

impl Properties {
    /// Sets the properties in `client`, in place of its own. Refuses those that the guarantees depend on.
    pub(super) fn apply(&self, client: &mut ClientConfig) -> Result<(), SetupError> {
        for (name, value) in &self.0 {
            let name = canonical(name);
            let guard =
                GUARDED.iter().find(|(guarded, allowed, _)| *guarded == name && !allowed.contains(&value.reveal()));
            if let Some((_, _, reason)) = guard {
                return Err(SetupError(format!("`librdkafka`: `{name}` cannot be set here: {reason}")));
            }
            client.set(name, value.reveal());
        }
        Ok(())
    }
}

/// One name for properties that have several, so that a property that is passed through replaces ours instead of racing it.
fn canonical(name: &str) -> &str {
    match name {
        "request.required.acks" => "acks",
        "delivery.timeout.ms" => "message.timeout.ms",
        "queue.buffering.max.ms" => "linger.ms",
        "compression.codec" => "compression.type",
        "sasl.mechanism" => "sasl.mechanisms",
        "metadata.broker.list" => "bootstrap.servers",
        name => name,
    }
}

/// Properties that the guarantees depend on, the values they may have, and why no others.
const GUARDED: [(&str, &[&str], &str); 10] = [
    ("enable.idempotence", &["true", "1", "t"], "without idempotence a retry can duplicate and reorder messages"),
    ("acks", &["all", "-1"], "anything but \"all\" acknowledges messages that a broker's failure can still lose"),
    ("message.timeout.ms", &["0"], "a broker may still append a message that is given up; the spool is the buffer"),
    ("enable.gapless.guarantee", &["false", "0", "f"], "one message that is too large would stop all others"),
    ("delivery.report.only.error", &["false", "0", "f"], "deliveries would never be confirmed"),
    ("transactional.id", &[], "the sink does not use transactions"),
    ("partitioner", &[], "`partition_by` chooses the partition"),
    ("queue.buffering.max.messages", &[], "the sink bounds its queue itself; see `max_in_flight`"),
    ("queue.buffering.max.kbytes", &[], "the sink bounds its queue itself; see `max_in_flight`"),
    ("bootstrap.servers", &[], "use `brokers`"),
];

#[cfg(test)]
mod tests {
    use super::super::Config;

    fn parse(text: &str) -> Config {
        use figment::providers::{Format, Toml};
        figment::Figment::from(Toml::string(text)).extract().unwrap()
    }

    #[test]
    fn properties_pass_through_by_either_spelling_and_any_type() {
        let client = parse("brokers = 'a:1'\n[librdkafka]\nsocket.timeout.ms = 1234\n\"socket.keepalive.enable\" = false\n\"queue.buffering.max.ms\" = 7.5").client().unwrap();
        assert_eq!(client.get("socket.timeout.ms"), Some("1234"));
        assert_eq!(client.get("socket.keepalive.enable"), Some("false"));
        assert_eq!(client.get("linger.ms"), Some("7.5"));
    }

    #[test]
    fn properties_that_conflict_with_the_guarantees_are_refused_with_the_reason() {
        for (property, reason) in [
            ("'enable.idempotence' = false", "duplicate"),
            ("acks = 1", "lose"),
            ("'request.required.acks' = 0", "lose"),
            ("'delivery.timeout.ms' = 5000", "spool"),
            ("partitioner = 'random'", "partition_by"),
            ("'transactional.id' = 't'", "transactions"),
            ("'bootstrap.servers' = 'b:1'", "brokers"),
            ("'queue.buffering.max.kbytes' = 1", "max_in_flight"),
        ] {
            let refusal =
                parse(&format!("brokers = 'a:1'\n[librdkafka]\n{property}")).client().unwrap_err().to_string();
            assert!(refusal.contains(reason), "{property}: {refusal}");
        }
        parse("brokers = 'a:1'\n[librdkafka]\nacks = -1\n'message.timeout.ms' = 0\n'enable.idempotence' = true")
            .client()
            .unwrap();
    }
}
