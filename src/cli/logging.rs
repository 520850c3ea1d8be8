//! Where logs go: to stderr, so that stdout is free for what was asked for.

use crate::config::{Log, LogFormat};
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Libraries that log what we report ourselves, or more than an operator should see.
const QUIET: &str = "async_nats=off";

/// Libraries that warn of what any client can do as often as it likes, which would fill the log. A directive for one of them in `log.level`
/// overrides this.
const PROVOKED: &str = "h2=error";

/// For the bridge.
pub fn start(log: &Log) {
    start_at(&log.level, log.format);
}

/// For a command that ends by itself: what the spool finds when it is opened has to be seen, and little else.
pub fn start_for_command(log: &Log) {
    start_at("warn", log.format);
}

fn start_at(level: &str, format: LogFormat) {
    let filter = EnvFilter::new(format!("{PROVOKED},{level},{QUIET}"));
    // A line that cannot be written would be complained about where it could not be written, and that panics.
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().init(),
    }
}
