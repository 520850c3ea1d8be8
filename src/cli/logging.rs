//! Where logs go: to stderr, so that stdout is free for what was asked for.

use crate::config::{Log, LogFormat};
use std::io::IsTerminal;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Libraries that log what we report ourselves, or more than an operator should see.
const QUIET: (&str, LevelFilter) = ("async_nats", LevelFilter::OFF);

/// Libraries that warn of what any client can do as often as it likes, which would fill the log. A directive for one of them in `log.level`
/// overrides this.
const PROVOKED: (&str, LevelFilter) = ("h2", LevelFilter::ERROR);

/// For the bridge.
pub fn start(log: &Log) {
    start_at(&log.level, log.format);
}

/// For a command that ends by itself: what the spool finds when it is opened has to be seen, and little else.
pub fn start_for_command(log: &Log) {
    start_at(&Targets::new().with_default(LevelFilter::WARN), log.format);
}

fn start_at(level: &Targets, format: LogFormat) {
    let targets = without_libraries(level);
    // A line that cannot be written would be complained about where it could not be written, and that panics.
    let builder = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_writer(std::io::stderr)
        .log_internal_errors(false);
    match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).finish().with(targets).init(),
        LogFormat::Json => builder.json().finish().with(targets).init(),
    }
}

/// What is asked for, without what is never wanted of libraries.
fn without_libraries(level: &Targets) -> Targets {
    let default = level.default_level().unwrap_or(LevelFilter::OFF);
    Targets::new().with_default(default).with_targets([PROVOKED]).with_targets(level.clone()).with_targets([QUIET])
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    #[test]
    fn libraries_say_less_than_we_do_unless_asked() {
        let everything = Targets::new().with_default(LevelFilter::TRACE);
        let asked =
            everything.clone().with_target("h2", LevelFilter::DEBUG).with_target("async_nats", LevelFilter::DEBUG);
        for (level, target, at, expected) in [
            (&everything, "cdrelay::spool", Level::TRACE, true),
            (&everything, "h2::proto", Level::WARN, false),
            (&everything, "h2::proto", Level::ERROR, true),
            (&everything, "async_nats", Level::ERROR, false),
            (&asked, "h2::proto", Level::DEBUG, true),
            (&asked, "h2::proto", Level::TRACE, false),
            (&asked, "async_nats", Level::ERROR, false),
            (&Targets::new().with_target("cdrelay", LevelFilter::INFO), "hyper", Level::ERROR, false),
        ] {
            assert_eq!(without_libraries(level).would_enable(target, &at), expected, "{target} at {at} of {level}");
        }
    }
}
