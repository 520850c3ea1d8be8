//! Removes personal data from the messages of one sink: fields are dropped, masked or hashed. All other bytes of an event stay as they are.
//!
//! A field is named by its path, such as `from` or `extra_params.phone`. A path leads through objects, through the elements of arrays, and
//! through texts that hold JSON. A rule masks a value that it cannot read: all of a text that begins as JSON and is none, where a path
//! leads into it.
//!
//! Numbers are normalised first, so that `440000000001`, `"440000000001"` and `"+44 0000 000001"` are masked and hashed alike.

mod key;
mod value;

pub use key::{RedactKey, watch};
pub use value::{mask, number};

use crate::event::{Event, json};
use crate::setting::List;
use schemars::JsonSchema;
use serde::Deserialize;
use std::path::PathBuf;
use std::sync::Arc;

/// The fields that identify the conversation: order and keys depend on them.
const IDENTIFIERS: [&str; 5] = ["conversation_uuid", "call_id", "request_id", "cmiuuid", "cmiuid"];

/// `[sinks.NAME.redact]`
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Fields that are left out.
    pub drop: List<String>,
    /// Fields of which the first two and the last four digits remain, or nothing if they hold no number of ten digits.
    pub mask: List<String>,
    /// Fields that are replaced by their HMAC-SHA256 in hexadecimal digits.
    pub hash: List<String>,
    /// The file with the key of the HMAC, read again when it changes.
    pub key_file: Option<PathBuf>,
}

/// A setting is wrong.
#[derive(Debug)]
pub struct Problem {
    /// The key within the sink's table.
    pub key: &'static str,
    /// The problem and a remedy.
    pub text: String,
}

/// The treatment of a field.
#[derive(Clone, Debug)]
enum Action {
    Drop,
    Mask,
    Hash(Arc<RedactKey>),
}

/// A path, and the treatment of the field at its end.
#[derive(Clone, Debug)]
struct Rule {
    path: Vec<String>,
    action: Action,
}

/// The rules of one sink.
#[derive(Clone, Debug)]
pub struct Redaction {
    rules: Vec<Rule>,
    key: Option<Arc<RedactKey>>,
}

impl Redaction {
    /// Checks the settings and reads the key; `None` if nothing is to be redacted.
    pub fn open(config: &Config) -> Result<Option<Self>, Problem> {
        let problem = |text: String| Problem { key: "redact.key_file", text };
        let key = match (&config.key_file, config.hash.0.is_empty()) {
            (Some(path), false) => Some(Arc::new(RedactKey::open(path).map_err(problem)?)),
            (None, true) => None,
            (None, false) => {
                let text = "is missing; `hash` needs a key, for example key_file = \"/etc/cdrelay/secrets/redact-key\"";
                return Err(problem(text.to_owned()));
            }
            (Some(_), true) => return Err(problem("has no meaning without `hash`".to_owned())),
        };
        let mut rules = Vec::new();
        let lists = [("redact.drop", &config.drop), ("redact.mask", &config.mask), ("redact.hash", &config.hash)];
        for (setting, fields) in lists {
            for field in &fields.0 {
                let path: Vec<String> = field.split('.').map(str::to_owned).collect();
                let problem = |text: &str| Problem { key: setting, text: format!("found {field:?}; {text}") };
                if path.iter().any(String::is_empty) {
                    return Err(problem("a field is named by its path, such as \"from\" or \"extra_params.phone\""));
                }
                if let [name] = path.as_slice()
                    && IDENTIFIERS.contains(&name.as_str())
                {
                    return Err(problem("it identifies the conversation, which order and keys depend on"));
                }
                let action = match (setting, &key) {
                    ("redact.drop", _) => Action::Drop,
                    ("redact.hash", Some(key)) => Action::Hash(key.clone()),
                    _ => Action::Mask,
                };
                rules.push(Rule { path, action });
            }
        }
        Ok((!rules.is_empty()).then_some(Self { rules, key }))
    }

    /// The key, if there is one: to be watched with [`watch`].
    pub fn key(&self) -> Option<&Arc<RedactKey>> {
        self.key.as_ref()
    }

    /// The event with its payload redacted. Identity, conversation, route, query and time stay.
    pub fn apply(&self, event: &Event) -> Event {
        let rules: Vec<_> = self.rules.iter().map(|rule| (rule.path.as_slice(), &rule.action)).collect();
        event.clone().with_payload(self::value::redact(event.payload(), &rules).into())
    }
}

impl Action {
    /// The JSON text in place of a number or a text; null, an empty text and truth values stay.
    fn of_scalar(&self, raw: &str, value: &json::Value<'_>) -> String {
        let number = value::number(value);
        match self {
            _ if matches!(raw, "null" | "true" | "false" | "\"\"") => raw.to_owned(),
            Self::Drop => "null".to_owned(),
            Self::Mask => json::quote(&number.map_or_else(|| value::HIDDEN.to_owned(), |digits| value::mask(&digits))),
            Self::Hash(key) => {
                let digest = number.map_or_else(|| key.hash(value.bytes()), |digits| key.hash(digits.as_bytes()));
                json::quote(&digest)
            }
        }
    }
}

#[cfg(test)]
mod tests;
