//! The JSON Schema of a configuration, for editors and linters.

use super::{Admin, Document, Reload, Shutdown, Test, keys};
use crate::sink::Registry;
use crate::{dead_letter, dispatch, ingress, logging, route, spool};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

/// The schema of a configuration with these types of sinks. A table that has no schema of its own may hold anything.
pub fn schema(registry: &Registry) -> Value {
    let mut generator = SchemaGenerator::default();
    let mut tables = Map::new();
    for name in keys::of::<Document>() {
        tables.insert((*name).to_owned(), json!(true));
    }
    let own = [
        ("ingress", generator.subschema_for::<ingress::Config>()),
        ("admin", generator.subschema_for::<Admin>()),
        ("spool", generator.subschema_for::<spool::Config>()),
        ("dead_letters", generator.subschema_for::<dead_letter::Config>()),
        ("shutdown", generator.subschema_for::<Shutdown>()),
        ("log", generator.subschema_for::<logging::Config>()),
        ("reload", generator.subschema_for::<Reload>()),
        ("tests", generator.subschema_for::<Vec<Test>>()),
    ];
    tables.extend(own.map(|(name, schema)| (name.to_owned(), schema.to_value())));
    let sinks: Vec<_> = registry.types().map(|(name, schema)| sink(name, schema(&mut generator), &mut generator)).collect();
    let name = "^[a-z0-9_-]{1,64}$";
    let sinks = json!({ "type": "object", "patternProperties": { name: { "oneOf": sinks } }, "additionalProperties": false });
    tables.insert("sinks".to_owned(), sinks);
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "cdrelay",
        "description": "The configuration of cdrelay. config/README.md describes every key.",
        "type": "object",
        "properties": tables,
        "additionalProperties": false,
        "$defs": generator.take_definitions(true),
    })
}

/// The table of a sink of one type: it is read by several structs, none of which has all keys.
fn sink(kind: &str, own: Schema, generator: &mut SchemaGenerator) -> Value {
    let parts = [own, route::Config::json_schema(generator), dispatch::Config::json_schema(generator)];
    let mut properties = Map::new();
    let mut required = vec![json!("type")];
    let mut is_closed = true;
    for part in &parts {
        is_closed &= part.as_bool().is_none();
        properties.extend(part.get("properties").and_then(Value::as_object).cloned().unwrap_or_default());
        required.extend(part.get("required").and_then(Value::as_array).cloned().unwrap_or_default());
    }
    if let Some(topic) = properties.get("topic").cloned() {
        properties.insert("subject".to_owned(), topic);
    }
    properties.insert("type".to_owned(), json!({ "const": kind }));
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": !is_closed })
}
