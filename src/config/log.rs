//! What is logged, and how it looks.

use serde::Deserialize;
use serde::de::{self, Deserializer, Unexpected, Visitor};
use std::fmt;
use tracing_subscriber::filter::{LevelFilter, Targets};

/// `[log]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// What is logged: a level, or directives such as `info,cdrelay::spool=debug`.
    #[serde(deserialize_with = "levels")]
    pub level: Targets,
    /// How lines look.
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: Targets::new().with_default(LevelFilter::INFO), format: LogFormat::Text }
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

fn levels<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Targets, D::Error> {
    deserializer.deserialize_str(Levels)
}

struct Levels;

impl Visitor<'_> for Levels {
    type Value = Targets;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("off, error, warn, info, debug, trace, or directives such as `info,cdrelay::spool=debug`")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Targets, E> {
        parse(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }
}

/// Stricter than [`Targets`] itself: it takes a name alone for a module whose every line is wanted, and so a level with a slip of the pen.
fn parse(text: &str) -> Option<Targets> {
    text.split(',').map(str::trim).try_fold(Targets::new(), |targets, directive| match directive.split_once('=') {
        Some((module, text)) => Some(targets.with_target(name(module)?, level(text)?)),
        None => Some(targets.with_default(level(directive)?)),
    })
}

/// The path of a module, for all below it.
fn name(text: &str) -> Option<&str> {
    let legal = |character: char| character.is_ascii_alphanumeric() || matches!(character, '_' | ':');
    (!text.is_empty() && text.chars().all(legal)).then_some(text)
}

/// A level by its name; `tracing` would take numbers and nothing at all for levels too.
fn level(text: &str) -> Option<LevelFilter> {
    let named = text.chars().all(|character| character.is_ascii_alphabetic());
    text.parse().ok().filter(|_| named && !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::filter::LevelFilter as Level;

    #[test]
    fn levels_and_directives_are_told_from_slips_of_the_pen() {
        assert_eq!(parse("info"), Some(Targets::new().with_default(Level::INFO)));
        assert_eq!(parse("OFF"), Some(Targets::new().with_default(Level::OFF)));
        let expected = Targets::new().with_default(Level::WARN).with_target("cdrelay::spool", Level::DEBUG);
        for same in ["warn,cdrelay::spool=debug", "cdrelay::spool=debug, warn"] {
            assert_eq!(parse(same), Some(expected.clone()), "{same}");
        }
        for wrong in [
            "",
            "warning",
            "verbose",
            "3",
            "info,",
            "info;debug",
            "cdrelay",
            "cdrelay=",
            "=info",
            "a=b=info",
            "a[b]=info",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
