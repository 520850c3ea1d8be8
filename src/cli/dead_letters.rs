//! `cdrelay dead-letters list|show|replay|prune`

mod prune;
mod replay;

use super::output::Output;
use super::replay_client::Manner;
use super::select::{Filter, Selection};
use super::{CommandError, Location, Site};
use crate::dead_letter::rejected::{self, RejectedBody};
use crate::dead_letter::store::{Dir, Found};
use crate::dead_letter::{self, DeadLetter, Letters};
use crate::event::{Arrival, DEFAULT_INGRESS, Events};
use crate::ingress::decode::{Content, DecodeError};
use clap::{Args, Subcommand};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Debug, Subcommand)]
pub enum DeadLetters {
    /// List what sinks refused for good and which request bodies could not be decoded, one line each.
    List(Which),
    /// Show whole dead letters as JSON lines.
    Show {
        #[command(flatten)]
        which: Which,
        /// Write nothing but the exact body, or the event's exact text. Choose one with --id.
        #[arg(long)]
        body: bool,
    },
    /// Publish them once more, in order, and mark them, so that they are not replayed again: a message to the sink that
    /// refused it, a body, decoded with the present configuration, to all sinks.
    Replay {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        manner: Manner,
        /// Replay the body in this file, `-` for standard input, in place of the one that --rejected --id chooses.
        #[arg(long, value_name = "FILE", requires = "rejected", requires = "id")]
        with: Option<PathBuf>,
    },
    /// Remove those that were replayed, or are older; with both options, those that are both. The bridge may run.
    Prune(prune::Prune),
}

/// Where dead letters are looked for.
#[derive(Debug, Args)]
pub struct From {
    #[command(flatten)]
    location: Location,
    /// Only those of this sink.
    #[arg(long, conflicts_with = "rejected")]
    sink: Option<String>,
    /// Only request bodies that could not be decoded.
    #[arg(long)]
    rejected: bool,
}

/// Which dead letters.
#[derive(Debug, Args)]
pub struct Which {
    #[command(flatten)]
    from: From,
    #[command(flatten)]
    selection: Selection,
    /// Only those whose reason holds this text.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Only the one with this event id, or the body with this number.
    #[arg(long)]
    id: Option<String>,
    /// Also those that were replayed already.
    #[arg(long)]
    again: bool,
}

/// A dead letter of either kind.
enum Entry {
    Letter(DeadLetter),
    Body(RejectedBody),
}

impl Entry {
    fn body(&self) -> Vec<u8> {
        match self {
            Self::Letter(letter) => letter.payload.clone().into_bytes(),
            Self::Body(body) => body.body().unwrap_or_default(),
        }
    }
}

/// Where dead letters come from; bodies stand behind the sinks.
enum Source {
    Sink(String),
    Rejected,
}

impl Source {
    /// No sink has such a name.
    fn name(&self) -> &str {
        match self {
            Self::Sink(sink) => sink,
            Self::Rejected => "(rejected)",
        }
    }

    fn dir(&self, spool: &Path) -> Dir {
        match self {
            Self::Sink(sink) => dead_letter::directory(spool, sink),
            Self::Rejected => rejected::directory(spool),
        }
    }
}

impl DeadLetters {
    pub fn execute(self) -> Result<(), CommandError> {
        match self {
            Self::List(which) => which.open()?.list(),
            Self::Show { which, body: true } => which.open()?.show_body(),
            Self::Show { which, body: false } => which.open()?.show(),
            Self::Replay { which, manner, with: None } => which.open()?.replay(&manner),
            Self::Replay { which, with: Some(file), .. } => which.open()?.replay_with(&file),
            Self::Prune(prune) => prune.execute(),
        }
    }
}

impl From {
    fn open(&self) -> Result<Site, CommandError> {
        let site = self.location.open()?;
        if let Some(sink) = &self.sink {
            site.check_sink("--sink", sink)?;
        }
        Ok(site)
    }

    fn sources(&self, site: &Site) -> Result<Vec<Source>, CommandError> {
        Ok(match &self.sink {
            _ if self.rejected => vec![Source::Rejected],
            Some(sink) => vec![Source::Sink(sink.clone())],
            None => {
                let sinks = dead_letter::sinks(&site.spool)?;
                sinks.into_iter().map(Source::Sink).chain([Source::Rejected]).collect()
            }
        })
    }
}

impl Which {
    fn open(&self) -> Result<Selected<'_>, CommandError> {
        let filter = self.selection.compile()?;
        Ok(Selected { which: self, filter, site: self.from.open()? })
    }
}

/// The dead letters of one spool that the options select.
struct Selected<'a> {
    which: &'a Which,
    filter: Filter<'a>,
    site: Site,
}

impl Selected<'_> {
    fn sources(&self) -> Result<Vec<Source>, CommandError> {
        self.which.from.sources(&self.site)
    }

    /// Calls `each` for the selected ones from `source`, one after another, until it breaks; returns how many are unreadable.
    fn each(
        &self,
        source: &Source,
        mut each: impl FnMut(Found<Entry>) -> Result<ControlFlow<()>, CommandError>,
    ) -> Result<u64, CommandError> {
        match source {
            Source::Sink(sink) => {
                let mut letters = Letters::of(&self.site.spool, sink)?;
                while let Some(Found { item, replayed, line }) = letters.read_next()? {
                    let selected = self.selects(&item.reason, &item.id, replayed) && self.filter.takes_letter(&item);
                    if selected && each(Found { item: Entry::Letter(item), replayed, line })?.is_break() {
                        break;
                    }
                }
                Ok(letters.damaged())
            }
            Source::Rejected => {
                let mut bodies = rejected::read(&self.site.spool)?;
                let mut damaged = 0;
                while let Some(Found { item, replayed, line }) = bodies.read_next()? {
                    let Some(body) = item.body() else {
                        damaged += 1;
                        continue;
                    };
                    let selected = self.selects(&item.reason, &item.number.to_string(), replayed)
                        && self.filter.takes_body(arrival(&item), || self.decode(&item, &body).unwrap_or_default());
                    if selected && each(Found { item: Entry::Body(item), replayed, line })?.is_break() {
                        break;
                    }
                }
                Ok(damaged + bodies.damaged())
            }
        }
    }

    fn selects(&self, reason: &str, id: &str, replayed: bool) -> bool {
        (self.which.again || !replayed)
            && self.which.reason.as_deref().is_none_or(|text| reason.contains(text))
            && self.which.id.as_deref().is_none_or(|wanted| wanted == id)
    }

    /// The events in `body`, which came with this request, under the present configuration.
    fn decode(&self, request: &RejectedBody, body: &[u8]) -> Result<Events, DecodeError> {
        let content = Content {
            method: &request.method,
            query: request.query.as_deref(),
            content_type: request.content_type.as_deref().map(str::as_bytes),
            body,
        };
        let ingress = &self.site.config.ingress;
        let events = content.decode(&ingress.decode, arrival(request))?;
        if !ingress.takes(&request.ingress, &events) {
            let detail = format!("an event is of an appid that the route `{}` does not take", request.ingress);
            return Err(DecodeError::Malformed { detail, place: None });
        }
        let route = route(&request.ingress);
        Ok(events.into_iter().map(|event| event.by(route.clone())).collect())
    }

    fn list(&self) -> Result<(), CommandError> {
        self.print(|out, source, found| {
            let (time, id, reason) = match &found.item {
                Entry::Letter(letter) => (&letter.time, letter.id.clone(), &letter.reason),
                Entry::Body(body) => (&body.arrival, body.number.to_string(), &body.reason),
            };
            let mark = if found.replayed { "  (replayed)" } else { "" };
            out.line(format_args!("{time}  {}  {id}  {}{mark}", source.name(), reason.escape_debug()))
        })
    }

    fn show(&self) -> Result<(), CommandError> {
        self.print(|out, _, found| {
            out.bytes(&found.line)?;
            out.bytes(b"\n")
        })
    }

    fn show_body(&self) -> Result<(), CommandError> {
        let mut only = None;
        for source in self.sources()? {
            self.each(&source, |found| {
                if only.replace(found.item.body()).is_some() {
                    return Err(CommandError::Usage("--body: there are several; choose one with --id".into()));
                }
                Ok(ControlFlow::Continue(()))
            })?;
        }
        let only = only.ok_or_else(|| CommandError::Usage("--body: there is none that fits".into()))?;
        let mut out = Output::new();
        out.bytes(&only)?;
        Ok(out.flush()?)
    }

    fn print(
        &self,
        mut each: impl FnMut(&mut Output, &Source, &Found<Entry>) -> std::io::Result<()>,
    ) -> Result<(), CommandError> {
        let mut out = Output::new();
        let mut damaged = 0;
        for source in self.sources()? {
            damaged += self.each(&source, |found| {
                each(&mut out, &source, &found)?;
                Ok(if out.is_unread() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?;
        }
        out.flush()?;
        refuse_damage(damaged)
    }
}

fn refuse_damage(damaged: u64) -> Result<(), CommandError> {
    if damaged == 0 { Ok(()) } else { Err(CommandError::DamagedLetters(damaged)) }
}

/// The route of this name as events carry it.
fn route(ingress: &str) -> Option<Arc<str>> {
    (ingress != DEFAULT_INGRESS).then(|| ingress.into())
}

fn arrival(request: &RejectedBody) -> Arrival {
    request.arrival.parse().unwrap_or_default()
}
