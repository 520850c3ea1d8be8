//! `cdrelay drain`: empties the spool of a bridge that will not come back.

use super::output::Output;
use super::replay_client::period;
use super::run::runtime;
use super::{CommandError, Location};
use crate::bridge::{self, Left};
use crate::dead_letter::{self, rejected};
use crate::logging;
use clap::Args;
use std::path::Path;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// Deliver everything in the spool to the sinks, and take no webhooks. For the volume of a replica that is gone. Exits with 0 when
/// every sink has everything, and with 1 if something is left, which stays in the spool.
#[derive(Debug, Args)]
pub struct Drain {
    #[command(flatten)]
    location: Location,
    /// How long to try. SIGTERM ends it before that.
    #[arg(long, value_name = "PERIOD", default_value = "10m", value_parser = period)]
    wait: Duration,
}

impl Drain {
    pub fn execute(self) -> Result<(), CommandError> {
        if self.location.settings.config.is_empty() {
            // Delivered to the sinks of the embedded default, the records would count as delivered, and be removed.
            let problem = "name the bridge's configuration with --config: its sinks get the records";
            return Err(CommandError::Usage(problem.into()));
        }
        let mut site = self.location.site()?;
        site.config.spool.path.clone_from(&site.spool);
        logging::start(&site.config.log)?;
        let runtime = runtime()?;
        let left = runtime.block_on(async {
            let mut terminate = signal(SignalKind::terminate())?;
            let mut interrupt = signal(SignalKind::interrupt())?;
            let stop = async {
                tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            };
            Ok::<_, CommandError>(bridge::drain(&site.config, self.wait, stop).await?)
        });
        runtime.shutdown_background();
        let left = left?;
        report(&left, &site.spool)?;
        let undelivered = left.sinks.iter().map(|(_, records, _)| records).sum();
        match undelivered {
            0 if left.damaged > 0 => Err(CommandError::Damaged),
            0 => Ok(()),
            undelivered => Err(CommandError::Undelivered(undelivered)),
        }
    }
}

/// Says for each sink what is left, and what lies beside the spool.
fn report(left: &Left, spool: &Path) -> Result<(), CommandError> {
    let mut out = Output::new();
    for (sink, records, cause) in &left.sinks {
        match cause {
            Some(cause) if *records > 0 => out.line(format_args!("sink {sink}: {records} record(s) left: {cause}"))?,
            _ => out.line(format_args!("sink {sink}: {records} record(s) left"))?,
        }
    }
    if left.damaged > 0 {
        out.line(format_args!("{} record(s) are damaged; their files are kept", left.damaged))?;
    }
    let sinks = dead_letter::sinks(spool)?;
    let dirs = sinks.iter().map(|sink| (format!("dead letters of {sink}"), dead_letter::directory(spool, sink)));
    for (what, dir) in dirs.chain([("bodies that could not be decoded".to_owned(), rejected::directory(spool))]) {
        if dir.size()? > 0 {
            let path = dir.path();
            out.line(format_args!("{what} are in {}; look at them before the volume is deleted", path.display()))?;
        }
    }
    Ok(out.flush()?)
}
