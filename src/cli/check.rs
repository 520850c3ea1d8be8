//! `cdrelay check`

use super::CommandError;
use super::output::Output;
use crate::bridge;
use crate::config::Config;

/// Makes every sink, which reads the files it names and checks what they hold, and drops it again.
pub fn execute(config: &Config) -> Result<(), CommandError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let sinks = runtime.block_on(async { bridge::prepare(config).map(|sinks| sinks.len()) });
    runtime.shutdown_background();
    let mut out = Output::new();
    out.line(format_args!("configuration is sound: {} sink(s)", sinks?))?;
    Ok(out.flush()?)
}
