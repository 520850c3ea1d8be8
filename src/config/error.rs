//! What is wrong with a configuration, in words: where the value came from, its key, what was found and what is allowed.

use super::{environment, renamed};
use figment::{Metadata, Source};
use std::fmt;

/// Everything that is wrong with the configuration.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError {
    pub(super) problems: Vec<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problems.join("\n"))
    }
}

impl std::error::Error for ConfigError {}

impl ConfigError {
    /// One problem, in words for the operator.
    pub fn new(problem: impl Into<String>) -> Self {
        Self { problems: vec![problem.into()] }
    }
}

impl From<figment::Error> for ConfigError {
    fn from(error: figment::Error) -> Self {
        Self { problems: error.into_iter().map(|error| describe(&error)).collect() }
    }
}

/// `file: `, or whatever else a value came from; nothing for a default.
pub fn origin(metadata: Option<&Metadata>, path: &[&str]) -> String {
    let Some(metadata) = metadata else { return String::new() };
    match &metadata.source {
        Some(Source::File(file)) => format!("{}: ", file.display()),
        _ if metadata.name == environment::NAME => {
            format!("environment variable {}: ", environment::variable(&path.join(".")))
        }
        _ => format!("{}: ", metadata.name),
    }
}

pub fn describe(error: &figment::Error) -> String {
    use figment::error::Kind;
    let path: Vec<&str> = error.path.iter().map(String::as_str).collect();
    let place = origin(error.metadata.as_ref(), &path);
    let key = path.join(".");
    match &error.kind {
        Kind::UnknownField(field, allowed) => {
            // The path ends in the unknown field already, except at the very top.
            let key = if path.last() == Some(&field.as_str()) { key } else { [&path[..], &[field]].concat().join(".") };
            unknown(&place, &key, allowed)
        }
        Kind::MissingField(field) => format!("{place}`{}`: is missing", [&path[..], &[field]].concat().join(".")),
        Kind::InvalidType(found, expected) | Kind::InvalidValue(found, expected) => {
            // That is all that bytesize says.
            let expected = expected.replace("parsable string", "a size such as \"512KiB\" or \"1GiB\"");
            format!("{place}`{key}`: found {found}; allowed is {expected}")
        }
        Kind::Message(text) if text == "invalid socket address syntax" => {
            format!("{place}`{key}`: {text}; allowed is an address with a port such as \"127.0.0.1:8080\"")
        }
        Kind::UnknownVariant(found, allowed) => {
            format!("{place}`{key}`: found {found:?}; allowed are {}", allowed.join(", "))
        }
        other if key.is_empty() => format!("{place}{}", without_source(&other.to_string())),
        other => format!("{place}`{key}`: {other}"),
    }
}

/// The line for a key that no struct has; `place` is its [`origin`].
pub fn unknown(place: &str, key: &str, allowed: &[&str]) -> String {
    match renamed::new_name(key) {
        Some(name) => format!("{place}`{key}`: was renamed to `{name}`"),
        None => format!("{place}`{key}`: is unknown; allowed are {}", allowed.join(", ")),
    }
}

/// What a parser says without the lines of the file that it shows along, which may hold a secret.
fn without_source(text: &str) -> String {
    let shown =
        |line: &&str| line.trim_start_matches([' ', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9']).starts_with('|');
    text.lines().filter(|line| !shown(line) && !line.is_empty()).collect::<Vec<_>>().join(": ")
}
