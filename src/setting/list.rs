//! One or many values.

use super::Secret;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde::Serialize;
use serde::de::value::StrDeserializer;
use serde::de::{DeserializeOwned, Deserializer};
use serde_json::json;
use std::borrow::Cow;

/// Several values, or one, which is a list of one. They may be secrets, so that no error about the list itself shows a value.
#[derive(Clone, Debug, Serialize)]
pub struct List<T>(pub Vec<T>);

impl<T> Default for List<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "allowed is a text or a list of texts")]
enum OneOrMany {
    One(Secret),
    Many(Vec<Secret>),
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let texts = match OneOrMany::deserialize(deserializer)? {
            OneOrMany::One(text) => vec![text],
            OneOrMany::Many(texts) => texts,
        };
        let values = texts.iter().map(|text| T::deserialize(StrDeserializer::new(text.reveal())));
        values.collect::<Result<_, _>>().map(Self)
    }
}

impl<T: JsonSchema> JsonSchema for List<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("ListOf{}", T::schema_name()).into()
    }

    /// YAML reads a text of digits as a number.
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut one = generator.subschema_for::<T>();
        one.insert("type".into(), json!(["string", "integer"]));
        json_schema!({ "anyOf": [one, { "type": "array", "items": one }] })
    }
}
