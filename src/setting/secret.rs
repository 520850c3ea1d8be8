//! Texts that must not appear in logs, metrics or errors.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};
use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

/// A text that must not appear in logs, metrics or errors. `Debug` shows a placeholder.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// Why a secret cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// Both the value and the file are set.
    #[error("`{name}` and `{name}_file` are both set; keep one of them")]
    Both {
        /// The setting's name.
        name: &'static str,
    },
    /// The file cannot be read.
    #[error("`{name}_file`: cannot read {}: {source}", path.display())]
    Unreadable {
        /// The setting's name.
        name: &'static str,
        /// The file named by the setting.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
}

impl Secret {
    /// Wraps `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself: for the client library and nothing else.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// The secret called `name`, set as a value or in a file, without the file's byte order mark and last line break; `None` if neither
    /// is set.
    pub fn resolve(
        name: &'static str,
        value: Option<&Secret>,
        file: Option<&Path>,
    ) -> Result<Option<Secret>, SecretError> {
        match (value, file) {
            (Some(_), Some(_)) => Err(SecretError::Both { name }),
            (Some(value), None) => Ok(Some(value.clone())),
            (None, Some(path)) => match std::fs::read_to_string(path) {
                Ok(text) => {
                    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
                    Ok(Some(Secret::new(text.trim_end_matches(['\r', '\n']))))
                }
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

impl<'de> Deserialize<'de> for Secret {
    /// Accepts an integer too, because YAML reads a password of digits as one. No error shows the value.
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

impl JsonSchema for Secret {
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }

    /// `writeOnly` is JSON Schema's mark of a value that is not shown.
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "integer"], "writeOnly": true })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_never_shows_its_text() {
        assert!(!format!("{:?}", Secret::new("hunter2")).contains("hunter2"));
        let error = serde_json::from_str::<Secret>("1234.5").unwrap_err().to_string();
        assert!(error.contains("quotes") && !error.contains("1234"), "{error}");
    }

    #[test]
    fn a_secret_file_loses_its_byte_order_mark_and_its_last_line_break() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        for (text, expected) in [(" pass word \r\n", " pass word "), ("\u{feff}word\n", "word")] {
            std::fs::write(&path, text).unwrap();
            let secret = Secret::resolve("password", None, Some(&path)).unwrap().unwrap();
            assert_eq!(secret.reveal(), expected);
        }
        let both = Secret::resolve("password", Some(&Secret::new("x")), Some(&path)).unwrap_err();
        assert!(both.to_string().contains("`password` and `password_file`"));
        let missing = Secret::resolve("password", None, Some(&dir.path().join("missing"))).unwrap_err();
        assert!(missing.to_string().contains("missing"));
    }
}
