//! Durations as texts.

use jiff::fmt::friendly::{SpanParser, SpanPrinter};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, Unexpected, Visitor};
use serde::ser::{Serialize as _, Serializer};
use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

/// A hundred years: adding more to the present moment could overflow.
const MAX: Duration = Duration::from_secs(876_000 * 3600);

/// `#[serde(with = "Period")]` for a [`Duration`] written as `"30s"`, or an `Option` of one.
pub struct Period;

impl Period {
    /// Reads a duration.
    pub fn deserialize<'de, D: Deserializer<'de>, T: From<Duration>>(deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_str(Text).map(T::from)
    }

    /// Writes a duration as it can be read.
    pub fn serialize<S: Serializer, T: Copy + Into<Option<Duration>>>(value: &T, to: S) -> Result<S::Ok, S::Error> {
        let text = |duration: Duration| SpanPrinter::new().unsigned_duration_to_string(&duration);
        (*value).into().map(text).serialize(to)
    }
}

struct Text;

impl Visitor<'_> for Text {
    type Value = Duration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a duration such as \"100ms\", \"30s\" or \"1h 30m\", 876000h at the most")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
        let duration = SpanParser::new().parse_unsigned_duration(text).ok().filter(|duration| *duration <= MAX);
        duration.ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }
}

impl JsonSchema for Period {
    fn schema_name() -> Cow<'static, str> {
        "Period".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "examples": ["100ms", "30s", "1h 30m"] })
    }
}
