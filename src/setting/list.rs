//! One or many values.

use super::Secret;
use serde::Deserialize;
use serde::de::value::StrDeserializer;
use serde::de::{DeserializeOwned, Deserializer};

/// Several values, or one, which is a list of one. They may be secrets, so that no error about the list itself shows a value.
#[derive(Clone, Debug)]
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
