//! `cdrelay dead-letters replay`

use super::{Entry, Selected, Source, refuse_damage};
use crate::cli::CommandError;
use crate::cli::output::{Output, note};
use crate::cli::replay_client::{Manner, ReplayClient};
use crate::control::{ReplayEvent, Request};
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::path::Path;

impl Selected<'_> {
    pub fn replay(&self, manner: &Manner) -> Result<(), CommandError> {
        let (mut damaged, mut undecodable) = (0, 0);
        for source in self.sources()? {
            damaged += match &source {
                Source::Sink(sink) => self.replay_letters(&source, manner.request(sink))?,
                Source::Rejected => self.replay_bodies(&source, &mut undecodable)?,
            };
        }
        refuse_damage(damaged)?;
        if undecodable > 0 { Err(CommandError::Rejected(undecodable)) } else { Ok(()) }
    }

    fn client<'a>(&'a self, source: &Source, request: Request) -> io::Result<ReplayClient<'a>> {
        let dir = source.dir(&self.site.spool);
        ReplayClient::new(&self.site, request, Box::new(move |numbers| dir.mark_replayed(numbers)))
    }

    fn replay_letters(&self, source: &Source, request: Request) -> Result<u64, CommandError> {
        let mut client = self.client(source, request)?;
        let result = self.each(source, |found| {
            if let Entry::Letter(letter) = found.item {
                client.add(letter.number, [ReplayEvent::from(letter)])?;
            }
            Ok(ControlFlow::Continue(()))
        });
        let result = result.and_then(|damaged| client.flush().map(|()| damaged));
        let (outcomes, ReplayClient { replayed, total, .. }) = (client.outcomes(), client);
        let name = source.name();
        report(total, format_args!("{name}: {replayed} of {total} dead letter(s) back in the spool: {outcomes}"))?;
        result
    }

    /// Counts in `undecodable` the bodies that still cannot be decoded.
    fn replay_bodies(&self, source: &Source, undecodable: &mut u64) -> Result<u64, CommandError> {
        let mut client = self.client(source, Request::default())?;
        let result = self.each(source, |found| {
            if let Entry::Body(body) = found.item {
                match self.decode(&body, &body.body().unwrap_or_default()) {
                    Ok(events) => client.add(body.number, events.iter().map(ReplayEvent::of))?,
                    Err(error) => {
                        *undecodable += 1;
                        note(format_args!("{}  {}  {error}", source.name(), body.number));
                    }
                }
            }
            Ok(ControlFlow::Continue(()))
        });
        let result = result.and_then(|damaged| client.flush().map(|()| damaged));
        let ReplayClient { replayed, total, stored, duplicates, .. } = client;
        let all = total as u64 + *undecodable;
        let (name, stores) = (source.name(), format!("{stored} event(s), {duplicates} of them stored before"));
        report(total, format_args!("{name}: {replayed} of {all} bodies back in the spool: {stores}"))?;
        result
    }

    /// Replays the content of `file` as the corrected body of the selected one.
    pub fn replay_with(&self, file: &Path) -> Result<(), CommandError> {
        let mut found = None;
        let damaged = self.each(&Source::Rejected, |each| {
            found = Some(each.item);
            Ok(ControlFlow::Break(()))
        })?;
        let Some(Entry::Body(request)) = found else {
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
        let events = self.decode(&request, &body);
        let events = events.map_err(|error| CommandError::Usage(format!("--with {name}: {error}")))?;
        let mut client = self.client(&Source::Rejected, Request::default())?;
        client.add(request.number, events.iter().map(ReplayEvent::of))?;
        client.flush()?;
        let ReplayClient { stored, duplicates, .. } = client;
        let stores = format!("{stored} event(s) back in the spool, {duplicates} of them stored before");
        report(1, format_args!("{}: {stores}", request.number))
    }
}

/// Writes the line, unless there was nothing to replay.
fn report(total: usize, line: impl std::fmt::Display) -> Result<(), CommandError> {
    let mut out = Output::new();
    if total > 0 {
        out.line(line)?;
    }
    Ok(out.flush()?)
}
