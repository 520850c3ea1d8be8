//! The value types that every module's `Config` is made of.
//!
//! Periods are written `"100ms"`, `"30s"`, `"45m"`, `"1h 30m"` and sizes `"512KiB"`, `"1GiB"`; both have ready types
//! ([`std::time::Duration`] with [`period`], [`bytesize::ByteSize`]). What is left for us are texts that may be secret, lists and networks.

mod list;
mod network;

pub use list::List;
pub use network::Network;

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};
use std::fmt;
use std::path::{Path, PathBuf};

/// `#[serde(with = "period")]` for a [`std::time::Duration`] written as `"30s"`.
pub mod period {
    use jiff::fmt::friendly::SpanParser;
    use serde::de::{self, Deserializer, Unexpected, Visitor};
    use std::fmt;
    use std::time::Duration;

    /// Reads a period.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        deserializer.deserialize_str(Text)
    }

    /// A hundred years. From now on that is still a moment that can be reckoned with, which the most that can be written
    /// is not.
    const MOST: Duration = Duration::from_secs(876_000 * 3600);

    struct Text;

    impl Visitor<'_> for Text {
        type Value = Duration;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a period such as \"100ms\", \"30s\" or \"1h 30m\", 876000h at the most")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
            let period = SpanParser::new().parse_unsigned_duration(text).ok().filter(|period| *period <= MOST);
            period.ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
        }
    }
}

/// `#[serde(default, with = "optional_period")]` for an `Option<Duration>`.
pub mod optional_period {
    use serde::{Deserialize, Deserializer};
    use std::time::Duration;

    #[derive(Deserialize)]
    struct Period(#[serde(with = "super::period")] Duration);

    /// Reads a period, or null.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<Period>::deserialize(deserializer)?.map(|Period(period)| period))
    }
}

/// A text that must not appear in logs, metrics or errors. `Debug` and `Display` show a placeholder.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// Why a secret could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// Both the value and the file were given.
    #[error("`{name}` and `{name}_file` are both set; keep one of them")]
    Both {
        /// The setting's name.
        name: &'static str,
    },
    /// The file could not be read.
    #[error("`{name}_file`: cannot read {}: {source}", path.display())]
    Unreadable {
        /// The setting's name.
        name: &'static str,
        /// The file named by the setting.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl Secret {
    /// Wraps `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself: hand it to the client library and nowhere else.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// The secret called `name`, given as a value or in a file (whose last line break does not count); `None` if neither is set.
    pub fn resolve(
        name: &'static str,
        value: Option<&Secret>,
        file: Option<&Path>,
    ) -> Result<Option<Secret>, SecretError> {
        match (value, file) {
            (Some(_), Some(_)) => Err(SecretError::Both { name }),
            (Some(value), None) => Ok(Some(value.clone())),
            (None, Some(path)) => match std::fs::read_to_string(path) {
                Ok(text) => Ok(Some(Secret::new(text.trim_end_matches(['\r', '\n'])))),
                Err(source) => Err(SecretError::Unreadable { name, path: path.to_owned(), source }),
            },
            (None, None) => Ok(None),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

impl<'de> Deserialize<'de> for Secret {
    /// Accepts a number too: a password of digits alone arrives as one from YAML or the environment.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Secret;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Secret, E> {
                Ok(Secret::new(text))
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Secret, E> {
                Ok(Secret::new(number.to_string()))
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Secret, E> {
                Ok(Secret::new(number.to_string()))
            }
            // What serde says of these by itself would hold the value.
            fn visit_f64<E: de::Error>(self, _: f64) -> Result<Secret, E> {
                Err(E::custom("found a number with a fraction or exponent; put a secret in quotes"))
            }
            fn visit_bool<E: de::Error>(self, _: bool) -> Result<Secret, E> {
                Err(E::custom("found a truth value; put a secret in quotes"))
            }
        }
        deserializer.deserialize_any(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_never_shows_its_text() {
        let secret = Secret::new("hunter2");
        assert!(!format!("{secret:?} {secret}").contains("hunter2"));
        let error = serde_json::from_str::<Secret>("1234.5").unwrap_err().to_string();
        assert!(error.contains("quotes") && !error.contains("1234"), "{error}");
    }

    #[test]
    fn a_secret_file_loses_only_its_last_line_break() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        std::fs::write(&path, " pass word \r\n").unwrap();
        let secret = Secret::resolve("password", None, Some(&path)).unwrap().unwrap();
        assert_eq!(secret.reveal(), " pass word ");
        let both = Secret::resolve("password", Some(&secret), Some(&path)).unwrap_err();
        assert!(both.to_string().contains("`password` and `password_file`"));
        let gone = Secret::resolve("password", None, Some(&dir.path().join("gone"))).unwrap_err();
        assert!(gone.to_string().contains("gone"));
    }
}
