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
    start_at(log.targets(), log.format);
}

/// For a command that ends by itself: what the spool finds when it is opened has to be seen, and little else.
pub fn start_for_command(log: &Log) {
    start_at(Some(Targets::new().with_default(LevelFilter::WARN)), log.format);
}

/// What `wanted` does not say is logged from `info` on; a configuration that was loaded says it.
fn start_at(wanted: Option<Targets>, format: LogFormat) {
    let wanted = wanted.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let default = wanted.default_level().unwrap_or(LevelFilter::OFF);
    let targets =
        Targets::new().with_default(default).with_targets([PROVOKED]).with_targets(wanted).with_targets([QUIET]);
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
