//! `cdrelay replay`: publish again what the spool still retains.

use super::output::{Output, note};
use super::replay_client::{Manner, ReplayClient};
use super::select::Selection;
use super::{CommandError, Location};
use crate::control::ReplayEvent;
use crate::spool::inspect::Inspection;
use clap::Args;
use std::io;

/// Publish what the spool still holds once more to one sink, with the same identity, in the order of arrival. What was
/// delivered stays in the spool only as far as `spool.retain` says.
#[derive(Debug, Args)]
pub struct Replay {
    #[command(flatten)]
    location: Location,
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    manner: Manner,
    /// The sink that publishes it.
    #[arg(long)]
    sink: String,
}

impl Replay {
    pub fn execute(self) -> Result<(), CommandError> {
        let filter = self.selection.compile()?;
        let site = self.location.open()?;
        site.check_sink("--sink", &self.sink)?;
        let mut client = ReplayClient::new(&site, self.manner.request(&self.sink), Box::new(|_| Ok(())))?;
        // Why an event could not be stored, which an `io::Error` does not hold.
        let mut failure = None;
        let damaged = Inspection::of(&site.spool)?.read(0, |record| {
            // A record that was appended by a replay is there a second time already.
            if record.target.is_some() || !filter.takes_event(&record.event) {
                return Ok(());
            }
            client.add(record.offset, [ReplayEvent::of(&record.event)]).map_err(|error| {
                failure = Some(error);
                io::Error::other("not stored")
            })
        });
        let damaged = match failure {
            Some(failure) => Err(failure),
            None => damaged.map_err(CommandError::Io).and_then(|damaged| client.flush().map(|()| damaged)),
        };
        if damaged.is_ok() || client.stored > 0 {
            let mut out = Output::new();
            let outcomes = client.outcomes();
            out.line(format_args!("{} event(s) back in the spool for {}: {outcomes}", client.stored, self.sink))?;
            out.flush()?;
        }
        let damaged = damaged?;
        for lost in &damaged {
            note(format_args!("damaged: offsets {} to {}", lost.start, lost.end - 1));
        }
        if damaged.is_empty() { Ok(()) } else { Err(CommandError::Damaged) }
    }
}
