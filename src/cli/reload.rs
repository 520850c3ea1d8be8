//! `cdrelay reload`

use super::output::Output;
use super::{CommandError, Location};
use crate::config::ConfigError;
use crate::control;
use clap::Args;

/// Have the running bridge read its configuration again, as SIGHUP does, and tell what changes: exit 0, or 78 with every problem.
#[derive(Debug, Args)]
pub struct Reload {
    #[command(flatten)]
    location: Location,
    /// Only check what would happen.
    #[arg(long)]
    dry_run: bool,
    /// Remove this sink even if it has undelivered events, which are given up.
    #[arg(long, value_name = "SINK")]
    discard: Vec<String>,
}

impl Reload {
    /// Asks the bridge and prints its answer.
    pub fn execute(self) -> Result<(), CommandError> {
        let spool = self.location.open()?.spool;
        let request = control::Reload { dry_run: self.dry_run, discard: self.discard };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let Some(answer) = runtime.block_on(control::reload(&spool, &request))? else {
            let problem = format!("no bridge runs on the spool in {}", spool.display());
            return Err(CommandError::Io(std::io::Error::other(problem)));
        };
        if !answer.problems.is_empty() {
            return Err(CommandError::Config(ConfigError::new(answer.problems.join("\n"))));
        }
        let mut out = Output::new();
        if answer.changes.is_empty() {
            out.line("nothing changed")?;
        }
        for change in answer.changes {
            out.line(format_args!("{change}"))?;
        }
        Ok(out.flush()?)
    }
}
