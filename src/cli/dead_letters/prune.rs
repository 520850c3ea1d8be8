//! `cdrelay dead-letters prune`

use super::{From, Source};
use crate::cli::CommandError;
use crate::cli::output::Output;
use crate::cli::select::moment;
use crate::dead_letter::store::{Line, Reader};
use crate::dead_letter::{DeadLetter, rejected};
use crate::event::Arrival;
use clap::Args;
use std::collections::{BTreeSet, HashSet};
use std::io;
use std::path::Path;

#[derive(Debug, Args)]
pub struct Prune {
    #[command(flatten)]
    from: From,
    /// Those written longer ago than this period (`30d`, `12h`), or before this moment (RFC 3339).
    #[arg(long, value_name = "PERIOD|TIME", required_unless_present = "replayed")]
    older_than: Option<String>,
    /// Replayed ones.
    #[arg(long)]
    replayed: bool,
}

impl Prune {
    pub fn execute(self) -> Result<(), CommandError> {
        let older_than = self.older_than.as_deref().map(|text| moment("--older-than", text)).transpose()?;
        let site = self.from.open()?;
        let mut out = Output::new();
        for source in self.from.sources(&site)? {
            let (total, numbers) = match &source {
                Source::Sink(_) => self.letters(&source, &site.spool, older_than)?,
                Source::Rejected => self.bodies(&site.spool, older_than)?,
            };
            if total > 0 {
                let removed = source.dir(&site.spool).prune(&numbers)?;
                out.line(format_args!("{}: {removed} of {total} removed", source.name()))?;
            }
        }
        Ok(out.flush()?)
    }

    /// The letters that are there, and the numbers of those to remove. One that a crash had written twice is replayed if one
    /// of its lines is.
    fn letters(&self, source: &Source, spool: &Path, older_than: Option<Arrival>) -> io::Result<(u64, BTreeSet<u64>)> {
        let mut replayed = HashSet::new();
        let mut letters = Reader::<DeadLetter>::new(source.dir(spool))?;
        while let Some(found) = letters.read_next()? {
            if found.replayed {
                replayed.insert(found.item.identity());
            }
        }
        let read = Reader::<DeadLetter>::new(source.dir(spool))?;
        self.choose(read, older_than, |letter, _| (&letter.time, replayed.contains(&letter.identity())))
    }

    fn bodies(&self, spool: &Path, older_than: Option<Arrival>) -> io::Result<(u64, BTreeSet<u64>)> {
        self.choose(rejected::read(spool)?, older_than, |body, replayed| (&body.arrival, replayed))
    }

    fn choose<T: Line>(
        &self,
        mut lines: Reader<T>,
        older_than: Option<Arrival>,
        state: impl Fn(&T, bool) -> (&String, bool),
    ) -> io::Result<(u64, BTreeSet<u64>)> {
        let (mut total, mut numbers) = (0, BTreeSet::new());
        while let Some(found) = lines.read_next()? {
            total += 1;
            let (time, replayed) = state(&found.item, found.replayed);
            let is_older = |limit| time.parse::<Arrival>().is_ok_and(|time| time < limit);
            if (replayed || !self.replayed) && older_than.is_none_or(is_older) {
                numbers.insert(found.item.number());
            }
        }
        Ok((total, numbers))
    }
}
