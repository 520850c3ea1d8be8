//! `cdrelay openapi`

use super::CommandError;
use super::output::Output;
use crate::config::Config;
use crate::openapi;

/// Prints what the admin port would serve; secrets are not looked at.
pub fn execute(config: &Config) -> Result<(), CommandError> {
    let mut out = Output::new();
    out.bytes(openapi::document(config, config.ingress.listen).as_bytes())?;
    Ok(out.flush()?)
}
