//! The JSON Schema of a configuration: `cdrelay schema`.

use super::Document;
use crate::dispatch;
use crate::route;
use crate::sink::Registry;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

/// The draft that editors and Helm know.
const DRAFT: &str = "http://json-schema.org/draft-07/schema#";

/// Draft 7, with every definition in its place, so that the schema can be put into another one.
pub fn of<T: JsonSchema>() -> Schema {
    let settings = SchemaSettings::draft07().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    settings.into_generator().into_root_schema_for::<T>()
}

/// The schema of a configuration with these types of sinks.
pub fn document(registry: &Registry) -> Value {
    let mut document = of::<Document>();
    document.insert("$schema".into(), DRAFT.into());
    document.insert("title".into(), "cdrelay configuration".into());
    document.insert("description".into(), "config/README.md describes every key.".into());
    let sinks = registry.names().into_iter().map(|kind| sink(registry, kind)).collect::<Vec<_>>();
    let mut document = document.to_value();
    if let Some(table) = document.pointer_mut("/properties/sinks").and_then(Value::as_object_mut) {
        table.insert("additionalProperties".into(), by_type(&sinks));
    }
    tidy(&mut document);
    document
}

/// The schema of a table whose `type` tells which of `alternatives` applies. With `oneOf`, a mistake would be one in each of them.
fn by_type(alternatives: &[Value]) -> Value {
    let names: Vec<_> = alternatives.iter().filter_map(type_of).collect();
    let when = |then: &Value| json!({ "if": { "properties": { "type": { "const": type_of(then) } } }, "then": then });
    json!({
        "type": "object",
        "required": ["type"],
        "properties": { "type": { "enum": names } },
        "allOf": alternatives.iter().map(when).collect::<Vec<_>>(),
    })
}

/// The one `type` of tables that a schema describes.
fn type_of(schema: &Value) -> Option<&Value> {
    schema.pointer("/properties/type/const")
}

/// Puts descriptions on one line, and takes out what tells an author nothing.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Object(table) => {
            table.retain(|key, value| !(key == "default" && value.is_null() || key == "format" && value.is_string()));
            if let Some(Value::String(text)) = table.get_mut("description") {
                *text = text.replace('\n', " ");
            }
            if let Some(Value::Array(alternatives)) = table.get_mut("oneOf")
                && alternatives.iter().all(|schema| type_of(schema).is_some())
            {
                let alternatives = std::mem::take(alternatives);
                table.remove("oneOf");
                table.extend(by_type(&alternatives).as_object().cloned().unwrap_or_default());
            }
            table.values_mut().for_each(tidy);
        }
        Value::Array(list) => list.iter_mut().for_each(tidy),
        _ => {}
    }
}

/// The schema of a sink's table, which three structs read.
pub fn sink(registry: &Registry, kind: &str) -> Value {
    let own = registry.find(kind).map(|found| (found.schema)().to_value()).unwrap_or_default();
    let parts = [own, of::<route::Config>().to_value(), of::<dispatch::Config>().to_value()];
    let mut properties = Map::from_iter([("type".to_owned(), json!({ "const": kind }))]);
    let mut required = vec![json!("type")];
    for part in parts {
        properties.extend(part.get("properties").and_then(Value::as_object).cloned().unwrap_or_default());
        required.extend(part.get("required").and_then(Value::as_array).cloned().unwrap_or_default());
    }
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}

/// Adds the other name of `topic`.
pub fn with_subject(schema: &mut Schema) {
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut)
        && let Some(topic) = properties.get("topic").cloned()
    {
        properties.insert("subject".into(), topic);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Admin, Reload, Shutdown, Test, keys};
    use crate::{dead_letter, ingress, logging, reconcile, spool};

    /// A key that serde reads and the schema does not know would be marked as a mistake by editors.
    #[test]
    fn the_schema_has_every_key_that_is_read() {
        let registry = Registry::default();
        let document = document(&registry);
        let table = |name: &str| &document["properties"][name];
        let mut read = vec![
            (&document, keys::of::<Document>()),
            (table("ingress"), keys::of::<ingress::Config>()),
            (&table("ingress")["properties"]["decode"], keys::of::<ingress::decode::Config>()),
            (&table("ingress")["properties"]["routes"]["additionalProperties"], keys::of::<ingress::routes::Config>()),
            (table("admin"), keys::of::<Admin>()),
            (table("spool"), keys::of::<spool::Config>()),
            (table("dead_letters"), keys::of::<dead_letter::Config>()),
            (table("shutdown"), keys::of::<Shutdown>()),
            (table("log"), keys::of::<logging::Config>()),
            (table("reload"), keys::of::<Reload>()),
            (&table("reconcile")["additionalProperties"], keys::of::<reconcile::Config>()),
            (&table("tests")["items"], keys::of::<Test>()),
        ];
        let sinks: Vec<_> = registry.names().into_iter().map(|kind| (kind, sink(&registry, kind))).collect();
        for (kind, schema) in &sinks {
            let own = (registry.find(kind).unwrap().keys)();
            read.extend([own, keys::of::<route::Config>(), keys::of::<dispatch::Config>()].map(|keys| (schema, keys)));
        }
        for (schema, keys) in read {
            for key in keys {
                assert!(schema["properties"].get(key).is_some(), "{key} is missing in {schema:#}");
            }
            assert_eq!(schema["additionalProperties"], false, "{schema:#}");
        }
    }
}
