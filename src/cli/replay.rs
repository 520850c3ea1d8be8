//! `cdrelay replay`: publish again what the spool still retains.

use super::again::publish_again;
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

impl Replay {
    pub fn execute(self) -> Result<(), CommandError> {
        let chosen = self.selection.compile()?;
        let inspection = Inspection::of(&self.location.spool()?)?;
        let mut batch = Vec::with_capacity(BATCH);
        let mut stored = 0;
        let mut flush = |batch: &mut Vec<Again>| -> io::Result<()> {
            let outcome = publish_again(&self.location, &self.sink, batch).map_err(io::Error::other)?;
            stored += outcome.stored;
            batch.clear();
            outcome.error.map_or(Ok(()), |error| Err(io::Error::other(error)))
        };
        let damaged = inspection.read(0, |record| {
            // What was appended for a replay is there a second time already.
            if record.target.is_some() || !chosen.takes_event(&record.event) {
                return Ok(());
            }
            let payload = String::from_utf8_lossy(record.event.payload()).into_owned();
            batch.push(Again { arrival: record.event.arrival().0, payload });
            if batch.len() == BATCH { flush(&mut batch) } else { Ok(()) }
        });
        let result = damaged.and_then(|damaged| {
            if !batch.is_empty() {
                flush(&mut batch)?;
            }
            Ok(damaged)
        });
        if result.is_ok() || stored > 0 {
            println!("{stored} event(s) back in the spool for {}", self.sink);
        }
        for gone in result? {
            eprintln!("damaged: offsets {} to {}", gone.start, gone.end - 1);
        }
        Ok(())
    }
}
