//! `cdrelay openapi`

use super::CommandError;
use super::output::Output;
use crate::admin::OPENAPI;

/// Prints the document that the admin port serves.
pub fn execute() -> Result<(), CommandError> {
    let mut out = Output::new();
    out.bytes(OPENAPI.as_bytes())?;
    Ok(out.flush()?)
}
