//! `cdrelay reconcile`: compare the platform's lists of calls with the webhooks that came.

use super::output::Output;
use super::replay_client::open;
use super::select::moment;
use super::{CommandError, Location};
use crate::control;
use crate::event::Arrival;
use crate::reconcile::{Metrics, Outcome, Reconciliations, Report, Request};
use clap::Args;
use std::io;
use std::sync::Arc;

/// Compare the platform's lists of calls with the webhooks that came, once, and add the calls whose webhook never did. A running
/// bridge does it, with the settings it was started with; without one the calls wait in the spool for its start.
#[derive(Debug, Args)]
pub struct Reconcile {
    #[command(flatten)]
    location: Location,
    /// The table [reconcile.NAME]; all of them if not given.
    name: Option<String>,
    /// Look so far back (`24h`), or back to this moment (RFC 3339), in place of `window`.
    #[arg(long, value_name = "PERIOD|TIME")]
    since: Option<String>,
    /// Add nothing. Exit code 1 if a call is missing.
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object a line.
    #[arg(long)]
    json: bool,
}

impl Reconcile {
    pub fn execute(self) -> Result<(), CommandError> {
        let since = self.since.as_deref().map(|since| moment("--since", since)).transpose()?;
        let window_ms = since.map(|since| Arrival::now().0.saturating_sub(since.0));
        let request = Request { name: self.name.clone(), window_ms, dry_run: self.dry_run };
        let site = self.location.open()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let outcome = match runtime.block_on(control::reconcile(&site.spool, &request))? {
            Some(outcome) => outcome,
            None => {
                let spool = Arc::new(open(&site, None)?);
                let all = Reconciliations::open(&site.config.reconcile, spool, Metrics::default());
                runtime.block_on(all.map_err(CommandError::Reconcile)?.run_now(&request))
            }
        };
        let Outcome { reports, error } = outcome;
        if let Some(error) = error {
            return Err(CommandError::Usage(error));
        }
        let mut out = Output::new();
        for (index, report) in reports.iter().enumerate() {
            if self.json {
                out.line(serde_json::to_string(report).map_err(io::Error::other)?)?;
            } else {
                out.line(format_args!("{}{report}", if index > 0 { "\n" } else { "" }))?;
            }
        }
        out.flush()?;
        let missing: u64 = reports.iter().map(Report::missing).sum();
        if !reports.iter().all(Report::is_complete) {
            Err(CommandError::Reconcile("a list could not be compared completely".into()))
        } else if self.dry_run && missing > 0 {
            Err(CommandError::Reconcile(format!("{missing} call(s) are missing")))
        } else {
            Ok(())
        }
    }
}
