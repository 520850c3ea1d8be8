//! `cdrelay dead-letters replay`

use super::{Entry, Letterbox, Source, arrival, by, by_route, refuse_damage};
use crate::cli::CommandError;
use crate::cli::again::Publisher;
use crate::cli::output::{Output, note};
use crate::control::Again;
use crate::dead_letter::bodies;
use crate::dead_letter::mark_replayed;
use crate::event::Arrival;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::path::Path;

/// Dead letters that are handed over together, and about how many bytes of events.
const PORTION: usize = 100;
const PORTION_BYTES: usize = 1 << 20;

impl Letterbox<'_> {
    pub fn replay(&self) -> Result<(), CommandError> {
        let mut publisher = Publisher::new(&self.site)?;
        let (mut damaged, mut stay) = (0, 0);
        for source in self.sources()? {
            damaged += match &source {
                Source::Sink(sink) => self.replay_letters(&mut publisher, &source, sink)?,
                Source::Undecodable => self.replay_bodies(&mut publisher, &source, &mut stay)?,
            };
        }
        refuse_damage(damaged)?;
        if stay > 0 { Err(CommandError::Undecodable(stay)) } else { Ok(()) }
    }

    fn replay_letters(&self, publisher: &mut Publisher<'_>, source: &Source, sink: &str) -> Result<u64, CommandError> {
        let mark = |letters: &[(u64, String)]| mark_replayed(&self.site.spool, sink, letters);
        let mut portions = Portions::new(publisher, Some(sink), mark);
        let result = self.each(source, |found| {
            if let Entry::Letter(letter) = found.item {
                let arrival = letter.arrival.parse().unwrap_or(Arrival(0)).0;
                let again =
                    Again { arrival, payload: letter.payload, ingress: by(&letter.ingress).map(|name| (*name).into()) };
                portions.add((letter.offset, letter.id), vec![again])?;
            }
            Ok(ControlFlow::Continue(()))
        });
        let result = result.and_then(|damaged| portions.hand_over().map(|()| damaged));
        portions.report(|replayed, total, _, _| {
            format!("{sink}: {replayed} of {total} dead letter(s) back in the spool")
        })?;
        result
    }

    /// Counts in `stay` what still cannot be decoded.
    fn replay_bodies(
        &self,
        publisher: &mut Publisher<'_>,
        source: &Source,
        stay: &mut u64,
    ) -> Result<u64, CommandError> {
        let mark = |ids: &[u64]| bodies::mark_replayed(&self.site.spool, ids);
        let mut portions = Portions::new(publisher, None, mark);
        let result = self.each(source, |found| {
            if let Entry::Body(kept) = found.item {
                match self.decode(&kept, &kept.body().unwrap_or_default()) {
                    Ok(events) => portions.add(kept.id, events.iter().map(Again::of).collect())?,
                    Err(error) => {
                        *stay += 1;
                        note(format_args!("{}  {}  {error}", source.name(), kept.id));
                    }
                }
            }
            Ok(ControlFlow::Continue(()))
        });
        let result = result.and_then(|damaged| portions.hand_over().map(|()| damaged));
        portions.report(|replayed, total, events, duplicates| {
            format!(
                "{}: {replayed} of {} bodies back in the spool: {events} event(s), {duplicates} of them stored before",
                source.name(),
                total as u64 + *stay
            )
        })?;
        result
    }

    /// Replays what is in `file` as the corrected body of the one that is chosen.
    pub fn replay_with(&self, file: &Path) -> Result<(), CommandError> {
        let mut found = None;
        let damaged = self.each(&Source::Undecodable, |each| {
            found = Some(each.item);
            Ok(ControlFlow::Break(()))
        })?;
        let Some(Entry::Body(kept)) = found else {
            refuse_damage(damaged)?;
            let problem = "--id: no such body is kept, or it was replayed already, which --again overrides";
            return Err(CommandError::Usage(problem.into()));
        };
        let name = file.display();
        let mut body = Vec::new();
        let read = if file == Path::new("-") {
            io::stdin().read_to_end(&mut body)
        } else {
            std::fs::File::open(file).and_then(|mut file| file.read_to_end(&mut body))
        };
        read.map_err(|error| CommandError::Usage(format!("--with {name}: cannot be read: {error}")))?;
        let config = &self.site.config.ingress.decode;
        let events = crate::ingress::decode::body(
            &body,
            kept.content_type.as_deref().map(str::as_bytes),
            config,
            arrival(&kept),
        );
        let events = events
            .map(|events| by_route(events, &kept))
            .map_err(|error| CommandError::Usage(format!("--with {name}: {error}")))?;
        let mut publisher = Publisher::new(&self.site)?;
        let mark = |ids: &[u64]| bodies::mark_replayed(&self.site.spool, ids);
        let mut portions = Portions::new(&mut publisher, None, mark);
        portions.add(kept.id, events.iter().map(Again::of).collect())?;
        portions.hand_over()?;
        portions.report(|_, _, events, duplicates| {
            format!("{}: {events} event(s) back in the spool, {duplicates} of them stored before", kept.id)
        })
    }
}

/// Hands dead letters over portion by portion, and marks each portion: what follows a failure is what was not replayed.
struct Portions<'a, 'b, K, M> {
    publisher: &'a mut Publisher<'b>,
    target: Option<&'a str>,
    mark: M,
    /// Those in the present portion.
    keys: Vec<K>,
    /// How many events there are up to the end of each of them.
    ends: Vec<usize>,
    events: Vec<Again>,
    bytes: usize,
    total: usize,
    replayed: usize,
    stored: usize,
    duplicates: usize,
}

impl<'a, 'b, K, M: Fn(&[K]) -> io::Result<()>> Portions<'a, 'b, K, M> {
    fn new(publisher: &'a mut Publisher<'b>, target: Option<&'a str>, mark: M) -> Self {
        Self {
            publisher,
            target,
            mark,
            keys: Vec::new(),
            ends: Vec::new(),
            events: Vec::new(),
            bytes: 0,
            total: 0,
            replayed: 0,
            stored: 0,
            duplicates: 0,
        }
    }

    fn add(&mut self, key: K, events: Vec<Again>) -> Result<(), CommandError> {
        self.total += 1;
        self.bytes += events.iter().map(|again| again.payload.len()).sum::<usize>();
        self.events.extend(events);
        self.keys.push(key);
        self.ends.push(self.events.len());
        if self.keys.len() < PORTION && self.bytes < PORTION_BYTES { Ok(()) } else { self.hand_over() }
    }

    fn hand_over(&mut self) -> Result<(), CommandError> {
        if self.keys.is_empty() {
            return Ok(());
        }
        let outcome = self.publisher.publish(self.target, &self.events)?;
        let whole = self.ends.iter().take_while(|end| **end <= outcome.stored).count();
        if whole > 0 {
            (self.mark)(self.keys.get(..whole).unwrap_or_default())?;
        }
        self.replayed += whole;
        self.stored += outcome.stored;
        self.duplicates += outcome.duplicates;
        self.keys.clear();
        self.ends.clear();
        self.events.clear();
        self.bytes = 0;
        outcome.error.map_or(Ok(()), |error| Err(CommandError::Io(io::Error::other(error))))
    }

    /// Prints how far it went, if there was anything, in words made of letters replayed, letters met, events, duplicates.
    fn report(&self, words: impl FnOnce(usize, usize, usize, usize) -> String) -> Result<(), CommandError> {
        let mut out = Output::new();
        if self.total > 0 {
            out.line(words(self.replayed, self.total, self.stored, self.duplicates))?;
        }
        Ok(out.flush()?)
    }
}
