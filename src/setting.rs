//! The value types that every module's `Config` is made of.
//!
//! Durations are written `"100ms"`, `"30s"`, `"45m"`, `"1h 30m"` ([`std::time::Duration`] with [`period`]), sizes `"512KiB"`, `"1GiB"`
//! ([`bytesize::ByteSize`]).

mod list;
mod network;
mod secret;

pub use list::List;
pub use network::Network;
pub use secret::{Secret, SecretError};

/// `#[serde(with = "period")]` for a [`std::time::Duration`] written as `"30s"`, or an `Option` of one.
pub mod period {
    use jiff::fmt::friendly::SpanParser;
    use serde::de::{self, Deserializer, Unexpected, Visitor};
    use std::fmt;
    use std::time::Duration;

    /// A hundred years: adding more to the present moment could overflow.
    const MAX: Duration = Duration::from_secs(876_000 * 3600);

    /// Reads a duration.
    pub fn deserialize<'de, D: Deserializer<'de>, T: From<Duration>>(deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_str(Text).map(T::from)
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
}
