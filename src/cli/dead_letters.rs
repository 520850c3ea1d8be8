//! `cdrelay dead-letters list|show|replay`

use super::again::publish_again;
use super::select::Selection;
use super::{CommandError, Location};
use crate::control::Again;
use crate::dead_letter::{self, DeadLetter};
use crate::event::Arrival;
use clap::{Args, Subcommand};
use std::io::{self, Write};

/// Dead letters that are handed over together.
const PORTION: usize = 100;

#[derive(Debug, Subcommand)]
pub enum DeadLetters {
    /// List what sinks refused for good, one line each.
    List(Which),
    /// Show whole dead letters as JSON lines.
    Show(Which),
    /// Publish them once more to the sink that refused them, in order, and mark them, so that they are not replayed again.
    Replay(Which),
}

/// Which dead letters.
#[derive(Debug, Args)]
pub struct Which {
    #[command(flatten)]
    location: Location,
    #[command(flatten)]
    selection: Selection,
    /// Only those of this sink.
    #[arg(long)]
    sink: Option<String>,
    /// Only those whose reason holds this text.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Only the one with this event id.
    #[arg(long)]
    id: Option<String>,
    /// Also those that were replayed already.
    #[arg(long)]
    again: bool,
}

impl DeadLetters {
    pub fn execute(self) -> Result<(), CommandError> {
        match self {
            Self::List(which) => list(&which),
            Self::Show(which) => show(&which),
            Self::Replay(which) => replay(&which),
        }
    }
}

impl Which {
    fn of_sink(&self, sink: &str) -> Result<Vec<(DeadLetter, bool)>, CommandError> {
        let chosen = self.selection.compile()?;
        let mut letters = dead_letter::read(&self.location.spool()?, sink)?;
        letters.retain(|(letter, replayed)| {
            (self.again || !replayed)
                && self.reason.as_deref().is_none_or(|text| letter.reason.contains(text))
                && self.id.as_deref().is_none_or(|id| letter.id == id)
                && chosen.takes_letter(letter)
        });
        Ok(letters)
    }

    fn sinks(&self) -> Result<Vec<String>, CommandError> {
        Ok(match &self.sink {
            Some(sink) => vec![sink.clone()],
            None => dead_letter::sinks(&self.location.spool()?)?,
        })
    }
}

fn list(which: &Which) -> Result<(), CommandError> {
    let mut out = io::stdout().lock();
    for sink in which.sinks()? {
        for (letter, replayed) in which.of_sink(&sink)? {
            let mark = if replayed { "  (replayed)" } else { "" };
            writeln!(out, "{}  {sink}  {}  {}{mark}", letter.time, letter.id, letter.reason.escape_debug())?;
        }
    }
    Ok(())
}

fn show(which: &Which) -> Result<(), CommandError> {
    let mut out = io::stdout().lock();
    for sink in which.sinks()? {
        for (letter, _) in which.of_sink(&sink)? {
            writeln!(out, "{}", serde_json::to_string(&letter).map_err(io::Error::from)?)?;
        }
    }
    Ok(())
}

fn replay(which: &Which) -> Result<(), CommandError> {
    let spool = which.location.spool()?;
    for sink in which.sinks()? {
        let mut replayed = 0;
        let letters = which.of_sink(&sink)?;
        let letters: Vec<&DeadLetter> = letters.iter().map(|(letter, _)| letter).collect();
        // Marked portion by portion: what follows a failure is what was not replayed.
        for portion in letters.chunks(PORTION) {
            let again = portion.iter().map(|letter| Again {
                arrival: letter.arrival.parse().unwrap_or(Arrival(0)).0,
                payload: letter.payload.clone(),
            });
            let outcome = publish_again(&which.location, &sink, &again.collect::<Vec<_>>())?;
            let stored = portion.get(..outcome.stored).unwrap_or(portion);
            if !stored.is_empty() {
                dead_letter::mark_replayed(&spool, &sink, stored)?;
            }
            replayed += stored.len();
            if let Some(error) = outcome.error {
                println!("{sink}: {replayed} of {} dead letter(s) back in the spool", letters.len());
                return Err(CommandError::Io(io::Error::other(error)));
            }
        }
        if !letters.is_empty() {
            println!("{sink}: {replayed} of {} dead letter(s) back in the spool", letters.len());
        }
    }
    Ok(())
}
