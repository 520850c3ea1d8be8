//! Errors of a configuration: where the value came from, its key, what was found and what is allowed.

use super::renamed;
use figment::error::{Actual, Kind};
use figment::value::Value;
use figment::{Figment, Metadata, Source};
use std::fmt;

/// Everything that is wrong with a configuration.
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

    /// A line for each problem.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// The errors of reading a value from `figment`.
    pub(super) fn reading(figment: &Figment, error: figment::Error) -> Self {
        let line = |error: figment::Error| match describe(figment, &error) {
            (key, text) if key.is_empty() => format!("{}{}", origin(error.metadata.as_ref()), without_source(&text)),
            (key, text) => problem(figment, &key, text),
        };
        Self { problems: error.into_iter().map(line).collect() }
    }
}

/// The line for a problem with the value of `key`, which is set in figment or missing.
pub fn problem(figment: &Figment, key: &str, text: impl fmt::Display) -> String {
    format!("{}`{key}`: {text}", origin_of(figment, key))
}

/// The file, variable or option that sets `key`, or the table around it, and a colon.
pub fn origin_of(figment: &Figment, key: &str) -> String {
    // figment has no metadata for elements of lists and for missing values: the table or list around them has it.
    let mut holder = key;
    let metadata = loop {
        match (figment.find_metadata(holder), holder.rsplit_once('.')) {
            (None, Some((outer, _))) => holder = outer,
            (metadata, _) => break metadata,
        }
    };
    origin(metadata)
}

/// The text for a key that no struct has.
pub fn unknown(key: &str, allowed: &[&str]) -> String {
    match renamed::new_name(key) {
        Some(name) => format!("was renamed to `{name}`"),
        None => format!("is unknown; allowed are {}", choice(key.rsplit('.').next().unwrap_or(key), allowed)),
    }
}

/// The file, variable or option that a value came from, and a colon; nothing for a default.
fn origin(metadata: Option<&Metadata>) -> String {
    match metadata.map(|metadata| (&metadata.source, &metadata.name)) {
        None => String::new(),
        Some((Some(Source::File(file)), _)) => format!("{}: ", file.display()),
        Some((_, name)) => format!("{name}: "),
    }
}

/// The key that an error is about, and the text.
pub fn describe(figment: &Figment, error: &figment::Error) -> (String, String) {
    let path: Vec<&str> = error.path.iter().map(String::as_str).collect();
    let inner = |field: &str| match path.last() {
        // At the top level and in tables with a `type`, the path ends before the field.
        Some(last) if *last == field => path.join("."),
        _ => [&path[..], &[field]].concat().join("."),
    };
    match &error.kind {
        Kind::UnknownField(field, allowed) => {
            let key = inner(field);
            let text = unknown(&key, allowed);
            (key, text)
        }
        Kind::MissingField(field) => (inner(field), "is missing".to_owned()),
        Kind::InvalidType(found, allowed) | Kind::InvalidValue(found, allowed) => {
            // That is all that bytesize says.
            let allowed = allowed.replace("parsable string", "a size such as \"512KiB\" or \"1GiB\"");
            (holder(figment, &path, found), format!("found {}; allowed is {allowed}", shown(found)))
        }
        Kind::Message(text) if text == "invalid socket address syntax" => {
            (path.join("."), format!("{text}; allowed is an address with a port such as \"127.0.0.1:8080\""))
        }
        Kind::UnknownVariant(found, allowed) => (
            holder(figment, &path, &Actual::Str(found.clone())),
            format!("found {found:?}; allowed are {}", choice(found, allowed)),
        ),
        other => (path.join("."), other.to_string()),
    }
}

/// The allowed words, and the one that was probably meant.
pub fn choice(found: &str, allowed: &[&str]) -> String {
    let nearest = allowed.iter().map(|word| (distance(found, word), word)).min();
    let meant = nearest.filter(|(distance, _)| *distance <= 1 + found.chars().count() / 3);
    let meant = meant.map(|(_, word)| format!("; did you mean `{word}`?")).unwrap_or_default();
    format!("{}{meant}", allowed.join(", "))
}

/// How many characters have to be added, removed or replaced to make the one text the other (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (number, character) in one.chars().enumerate() {
        let mut next = vec![number + 1];
        for (above, expected) in row.windows(2).zip(&other) {
            let &[diagonal, above] = above else { continue };
            let left = next.last().copied().unwrap_or_default();
            next.push((diagonal + usize::from(character != *expected)).min(above + 1).min(left + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

/// The key with the value `found`. serde buffers a table with a `type`, so that the path of an error ends at the table: then the key is
/// that with this value.
fn holder(figment: &Figment, path: &[&str], found: &Actual) -> String {
    let key = path.join(".");
    let root = figment.find_value("").ok();
    let table = root.as_ref().and_then(|root| {
        path.iter().try_fold(root, |value, step| match value {
            Value::Array(_, list) => list.get(step.parse::<usize>().ok()?),
            value => value.as_dict()?.get(*step),
        })
    });
    let is_found = |value: &Value| {
        value.to_actual() == *found
            || value.as_array().is_some_and(|list| list.iter().any(|one| one.to_actual() == *found))
    };
    let holder = table.and_then(Value::as_dict).and_then(|table| table.iter().find(|(_, value)| is_found(value)));
    holder.map_or(key.clone(), |(name, _)| format!("{key}.{name}"))
}

fn shown(found: &Actual) -> String {
    match found {
        Actual::Str(text) => format!("{text:?}"),
        Actual::Bool(value) => value.to_string(),
        Actual::Unsigned(number) => number.to_string(),
        Actual::Signed(number) => number.to_string(),
        Actual::Float(number) => number.to_string(),
        other => other.to_string(),
    }
}

/// A parser's message without the lines of the file in it, which may hold a secret.
fn without_source(text: &str) -> String {
    let is_source =
        |line: &&str| line.trim_start_matches(|first: char| first == ' ' || first.is_ascii_digit()).starts_with('|');
    text.lines().filter(|line| !is_source(line) && !line.is_empty()).collect::<Vec<_>>().join(": ")
}
