//! `cdrelay replay`: publish again what the spool still retains.

use super::again::Publisher;
use super::output::{Output, note};
use super::select::Selection;
use super::{CommandError, Location};
use crate::control::Again;
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
    /// The sink that publishes it.
    #[arg(long)]
    sink: String,
}

/// Events that are handed over together.
const BATCH: usize = 1000;
/// And their bytes.
const BATCH_BYTES: usize = 1 << 20;

impl Replay {
    pub fn execute(self) -> Result<(), CommandError> {
        let chosen = self.selection.compile()?;
        let site = self.location.open()?;
        site.check_sink("--sink", &self.sink)?;
        let inspection = Inspection::of(&site.spool)?;
        let mut publisher = Publisher::new(&site)?;
        let mut batch = Vec::with_capacity(BATCH);
        let (mut bytes, mut stored) = (0, 0);
        // The reason why an event could not be handed over, which an `io::Error` does not hold.
        let mut failure = None;
        let mut flush = |batch: &mut Vec<Again>| {
            let outcome = publisher.publish(Some(&self.sink), batch).and_then(|outcome| {
                stored += outcome.stored;
                outcome.error.map_or(Ok(()), |error| Err(CommandError::Io(io::Error::other(error))))
            });
            batch.clear();
            outcome.map_err(|error| {
                failure = Some(error);
                io::Error::other("not handed over")
            })
        };
        let damaged = inspection.read(0, |record| {
            // What was appended for a replay is there a second time already.
            if record.target.is_some() || !chosen.takes_event(&record.event) {
                return Ok(());
            }
            let again = Again::of(&record.event);
            bytes += again.payload.len();
            batch.push(again);
            if batch.len() < BATCH && bytes < BATCH_BYTES {
                return Ok(());
            }
            bytes = 0;
            flush(&mut batch)
        });
        let result = damaged.and_then(|damaged| {
            if !batch.is_empty() {
                flush(&mut batch)?;
            }
            Ok(damaged)
        });
        let result = result.map_err(|error| failure.unwrap_or(CommandError::Io(error)));
        if result.is_ok() || stored > 0 {
            let mut out = Output::new();
            out.line(format_args!("{stored} event(s) back in the spool for {}", self.sink))?;
            out.flush()?;
        }
        let damaged = result?;
        for gone in &damaged {
            note(format_args!("damaged: offsets {} to {}", gone.start, gone.end - 1));
        }
        if damaged.is_empty() { Ok(()) } else { Err(CommandError::Damaged) }
    }
}
