//! What is logged, and how it looks.

use serde::Deserialize;
use tracing_subscriber::filter::{LevelFilter, Targets};

/// `[log]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// A level, or directives such as `info,cdrelay::spool=debug`.
    pub level: String,
    /// How lines look.
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".into(), format: LogFormat::Text }
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

impl Log {
    /// What `level` lets through; `None` if it is neither a level nor directives. A name alone would be taken for a module whose every line is
    /// wanted, and a level with a slip of the pen for such a name.
    pub fn targets(&self) -> Option<Targets> {
        let mut targets = Targets::new();
        for directive in self.level.split(',').map(str::trim) {
            targets = match directive.split_once('=') {
                Some((target, level)) => targets.with_target(name(target)?, parse(level)?),
                None => targets.with_default(parse(directive)?),
            };
        }
        Some(targets)
    }
}

/// The path of a module, for all below it.
fn name(text: &str) -> Option<&str> {
    let legal = |character: char| character.is_ascii_alphanumeric() || matches!(character, '_' | ':');
    (!text.is_empty() && text.chars().all(legal)).then_some(text)
}

/// A level by its name; `tracing` would take numbers and nothing at all for levels too.
fn parse(text: &str) -> Option<LevelFilter> {
    let named = text.chars().all(|character| character.is_ascii_alphabetic());
    text.parse().ok().filter(|_| named && !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::filter::LevelFilter as Level;

    fn targets(level: &str) -> Option<Targets> {
        Log { level: level.into(), ..Log::default() }.targets()
    }

    #[test]
    fn levels_and_directives_are_told_from_slips_of_the_pen() {
        assert_eq!(targets("info"), Some(Targets::new().with_default(Level::INFO)));
        assert_eq!(targets("OFF"), Some(Targets::new().with_default(Level::OFF)));
        let expected = Targets::new().with_default(Level::WARN).with_target("cdrelay::spool", Level::DEBUG);
        for same in ["warn,cdrelay::spool=debug", "cdrelay::spool=debug, warn"] {
            assert_eq!(targets(same), Some(expected.clone()), "{same}");
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
            assert_eq!(targets(wrong), None, "{wrong}");
        }
    }
}
