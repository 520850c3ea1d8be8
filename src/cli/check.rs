//! `cdrelay check`

use super::CommandError;
use super::output::{Output, note};
use crate::bridge::{self, RunError};
use crate::config::Config;
use crate::ingress::tls;

/// Makes every sink, which reads the files it names and checks what they hold, and drops it again. The same for the ingress's TLS.
pub fn execute(config: &Config) -> Result<(), CommandError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let sinks = runtime.block_on(async { bridge::prepare(config).map(|sinks| sinks.len()) });
    runtime.shutdown_background();
    if let Some(config) = &config.ingress.tls {
        let certificate = tls::check(config).map_err(RunError::from)?;
        if let Some(problem) = certificate.problem() {
            note(format_args!("warning: {problem}"));
        }
    }
    let mut out = Output::new();
    out.line(format_args!("configuration is sound: {} sink(s)", sinks?))?;
    Ok(out.flush()?)
}
