//! The settings that apply, with the origin of each: `cdrelay check --print`.

use super::{Config, schema};
use crate::sink::Registry;
use serde_json::Value;
use std::collections::BTreeSet;

/// In place of a value that must not be seen.
const HIDDEN: &str = "\"(hidden)\"";

impl Config {
    /// A line of TOML for each setting that has a value, with its file, variable or option, or `default`. Secrets are hidden. `[[tests]]`,
    /// which change nothing, are left out.
    pub fn effective(&self, registry: &Registry) -> Vec<String> {
        let document = schema::document(registry);
        let mut settings = self.values.json();
        settings.as_object_mut().map(|tables| tables.remove("tests"));
        let mut lines = Vec::new();
        self.add("", Some(&settings), &[&document], &mut lines);
        lines
    }

    /// Adds the line of a setting, or the lines of a table: its values, and the defaults from `schemas`.
    fn add(&self, path: &str, value: Option<&Value>, schemas: &[&Value], lines: &mut Vec<String>) {
        let schemas = alternatives(schemas, value);
        match value {
            Some(Value::Object(_)) if !is_hidden(&schemas) => {}
            Some(value) => {
                let origin = self.values.origin(path);
                return lines.push(format!("{path} = {}  # {origin}", toml(value, &schemas)));
            }
            None if schemas.iter().any(|schema| schema.get("type").is_some_and(|kind| kind == "object")) => {}
            None => {
                let default = schemas.iter().find_map(|schema| schema.get("default"));
                return lines.extend(default.map(|default| format!("{path} = {}  # default", toml(default, &schemas))));
            }
        }
        let table = value.and_then(Value::as_object);
        let known = schemas.iter().filter_map(|schema| schema.get("properties")?.as_object());
        let names: BTreeSet<&String> = known.chain(table).flat_map(|table| table.keys()).collect();
        for name in names {
            let key = if name.contains('.') { format!("{name:?}") } else { name.clone() };
            let inner = if path.is_empty() { key } else { format!("{path}.{key}") };
            self.add(&inner, table.and_then(|table| table.get(name)), &members(&schemas, name), lines);
        }
    }
}

/// The schemas of which each may describe `value`.
fn alternatives<'a>(schemas: &[&'a Value], value: Option<&Value>) -> Vec<&'a Value> {
    let mut found = Vec::new();
    for schema in schemas {
        let Some(condition) = schema.get("if") else {
            let inner = ["anyOf", "oneOf", "allOf"].iter().filter_map(|key| schema.get(key)?.as_array()).flatten();
            found.push(*schema);
            found.extend(alternatives(&inner.collect::<Vec<_>>(), value));
            continue;
        };
        let applies = value.is_some_and(|value| value.get("type") == condition.pointer("/properties/type/const"));
        if let Some(then) = schema.get("then").filter(|_| applies) {
            found.extend(alternatives(&[then], value));
        }
    }
    found
}

/// The schemas of a table's member.
fn members<'a>(schemas: &[&'a Value], name: &str) -> Vec<&'a Value> {
    let member = |schema: &&'a Value| {
        schema.get("properties").and_then(|known| known.get(name)).or_else(|| schema.get("additionalProperties"))
    };
    schemas.iter().filter_map(member).collect()
}

/// Whether a value is secret, or unknown.
fn is_hidden(schemas: &[&Value]) -> bool {
    schemas.is_empty() || schemas.iter().any(|schema| schema.get("writeOnly") == Some(&Value::Bool(true)))
}

/// A value on one line.
fn toml(value: &Value, schemas: &[&Value]) -> String {
    let schemas = alternatives(schemas, Some(value));
    if is_hidden(&schemas) {
        return HIDDEN.to_owned();
    }
    match value {
        Value::Array(list) => {
            let elements = schemas.iter().filter_map(|schema| schema.get("items")).collect::<Vec<_>>();
            format!("[{}]", list.iter().map(|value| toml(value, &elements)).collect::<Vec<_>>().join(", "))
        }
        Value::Object(table) => {
            let member =
                |(name, value): (&String, &Value)| format!("{name} = {}", toml(value, &members(&schemas, name)));
            format!("{{ {} }}", table.iter().map(member).collect::<Vec<_>>().join(", "))
        }
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_shown_with_its_origin_and_no_secret_is() {
        let config = Config::from_toml(
            "
            [ingress]
            max_connections = 7
            auth = [{ type = 'bearer', secrets = ['hunter2hunter2'] }, { type = 'query', parameter = 'token', secrets = 'hunter2hunter2' }]
            [sinks.k]
            type = 'kafka'
            brokers = 'a:1'
            sasl = { mechanism = 'PLAIN', username = 'u', password = 'hunter2' }
            librdkafka = { 'ssl.key.password' = 'hunter2', sasl.oauthbearer.config = 'hunter2' }
            [sinks.n]
            type = 'nats'
            subject = 'cdr'
            token = 'hunter2'
            [[tests]]
            name = 'x'
            event = '{}'
            sinks = {}",
        );
        let lines = config.unwrap().effective(&Registry::default());
        let text = lines.join("\n");
        assert!(!text.contains("hunter2"), "{text}");
        for line in [
            "ingress.max_connections = 7  # ",
            "ingress.auth = [{ secrets = \"(hidden)\", type = \"bearer\" }, { parameter = \"token\", secrets = \"(hidden)\", type = \"query\" }]  # ",
            "ingress.body_timeout = \"10s\"  # default",
            "ingress.decode.max_depth = 64  # default",
            "spool.max_size = \"1.0 GiB\"  # default",
            "sinks.k.linger = \"1ms\"  # default",
            "sinks.k.retry.max_age = \"1h\"  # default",
            "sinks.k.sasl.username = \"u\"  # ",
            "sinks.n.subject = \"cdr\"  # ",
            "sinks.n.mode = \"jetstream\"  # default",
        ] {
            assert!(lines.iter().any(|found| found.starts_with(line)), "{line}\n{text}");
        }
        for absent in ["tests", "sinks.n.topic", "sinks.n.linger", "spool.retain", "ingress.tls"] {
            assert!(!lines.iter().any(|found| found.starts_with(absent)), "{absent}\n{text}");
        }
    }
}
