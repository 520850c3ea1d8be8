//! `cdrelay schema`

use super::CommandError;
use super::output::Output;
use crate::config::schema;
use crate::sink::Registry;

/// Prints the JSON Schema of a configuration.
pub fn execute() -> Result<(), CommandError> {
    let mut out = Output::new();
    out.line(format_args!("{:#}", schema::document(&Registry::default())))?;
    Ok(out.flush()?)
}
