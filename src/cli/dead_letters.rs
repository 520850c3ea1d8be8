//! `cdrelay dead-letters list|show|replay`

mod replay;

use super::output::Output;
use super::select::{Chosen, Selection};
use super::{CommandError, Location, Site};
use crate::dead_letter::bodies::{self, Kept};
use crate::dead_letter::{self, DeadLetter, Found, Letters};
use crate::event::{Arrival, DEFAULT_INGRESS, Events};
use crate::ingress::decode::{Content, DecodeError};
use clap::{Args, Subcommand};
use std::ops::ControlFlow;
use std::path::PathBuf;
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
        /// Replay the body in this file, `-` for standard input, in place of the one that --undecodable --id chooses.
        #[arg(long, value_name = "FILE", requires = "undecodable", requires = "id")]
        with: Option<PathBuf>,
    },
}

/// Which dead letters.
#[derive(Debug, Args)]
pub struct Which {
    #[command(flatten)]
    location: Location,
    #[command(flatten)]
    selection: Selection,
    /// Only those of this sink.
    #[arg(long, conflicts_with = "undecodable")]
    sink: Option<String>,
    /// Only request bodies that could not be decoded.
    #[arg(long)]
    undecodable: bool,
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
    Body(Kept),
}

impl Entry {
    fn body(&self) -> Vec<u8> {
        match self {
            Self::Letter(letter) => letter.payload.clone().into_bytes(),
            Self::Body(kept) => kept.body().unwrap_or_default(),
        }
    }
}

/// Where dead letters come from; bodies stand behind the sinks.
enum Source {
    Sink(String),
    Undecodable,
}

impl Source {
    /// No sink has such a name.
    fn name(&self) -> &str {
        match self {
            Self::Sink(sink) => sink,
            Self::Undecodable => "(undecodable)",
        }
    }
}

impl DeadLetters {
    pub fn execute(self) -> Result<(), CommandError> {
        match self {
            Self::List(which) => which.open()?.list(),
            Self::Show { which, body: true } => which.open()?.show_body(),
            Self::Show { which, body: false } => which.open()?.show(),
            Self::Replay { which, with: None } => which.open()?.replay(),
            Self::Replay { which, with: Some(file) } => which.open()?.replay_with(&file),
        }
    }
}

impl Which {
    fn open(&self) -> Result<Letterbox<'_>, CommandError> {
        let chosen = self.selection.compile()?;
        let site = self.location.open()?;
        if let Some(sink) = &self.sink {
            site.check_sink("--sink", sink)?;
        }
        Ok(Letterbox { which: self, chosen, site })
    }
}

/// The dead letters of one spool, and which of them are wanted.
struct Letterbox<'a> {
    which: &'a Which,
    chosen: Chosen<'a>,
    site: Site,
}

impl Letterbox<'_> {
    fn sources(&self) -> Result<Vec<Source>, CommandError> {
        if self.which.undecodable {
            return Ok(vec![Source::Undecodable]);
        }
        Ok(match &self.which.sink {
            Some(sink) => vec![Source::Sink(sink.clone())],
            None => {
                let sinks = dead_letter::sinks(&self.site.spool)?;
                sinks.into_iter().map(Source::Sink).chain([Source::Undecodable]).collect()
            }
        })
    }

    /// Shows the wanted ones among those from `source`, one after another, until `each` has enough; says how many are
    /// unreadable.
    fn each(
        &self,
        source: &Source,
        mut each: impl FnMut(Found<Entry>) -> Result<ControlFlow<()>, CommandError>,
    ) -> Result<u64, CommandError> {
        match source {
            Source::Sink(sink) => {
                let mut letters = Letters::of(&self.site.spool, sink)?;
                while let Some(Found { item, replayed, line }) = letters.read_next()? {
                    let wanted = self.wants(&item.reason, &item.id, replayed) && self.chosen.takes_letter(&item);
                    let found = Found { item: Entry::Letter(item), replayed, line };
                    if wanted && each(found)?.is_break() {
                        break;
                    }
                }
                Ok(letters.damaged())
            }
            Source::Undecodable => {
                let mut bodies = bodies::Reader::of(&self.site.spool)?;
                let mut damaged = 0;
                while let Some(Found { item, replayed, line }) = bodies.read_next()? {
                    let Some(body) = item.body() else {
                        damaged += 1;
                        continue;
                    };
                    let wanted = self.wants(&item.reason, &item.id.to_string(), replayed)
                        && self.chosen.takes_body(arrival(&item), || self.decode(&item, &body).unwrap_or_default());
                    let found = Found { item: Entry::Body(item), replayed, line };
                    if wanted && each(found)?.is_break() {
                        break;
                    }
                }
                Ok(damaged + bodies.damaged())
            }
        }
    }

    fn wants(&self, reason: &str, id: &str, replayed: bool) -> bool {
        (self.which.again || !replayed)
            && self.which.reason.as_deref().is_none_or(|text| reason.contains(text))
            && self.which.id.as_deref().is_none_or(|wanted| wanted == id)
    }

    /// The events in `body`, which came with this request, as the present configuration sees it.
    fn decode(&self, kept: &Kept, body: &[u8]) -> Result<Events, DecodeError> {
        let content = Content {
            method: &kept.method,
            query: kept.query.as_deref(),
            content_type: kept.content_type.as_deref().map(str::as_bytes),
            body,
        };
        let ingress = &self.site.config.ingress;
        let events = content.decode(&ingress.decode, arrival(kept))?;
        if !ingress.takes(&kept.ingress, &events) {
            let detail = format!("an event is of an appid that the route `{}` does not take", kept.ingress);
            return Err(DecodeError::Malformed { detail, place: None });
        }
        Ok(by_route(events, kept))
    }

    fn list(&self) -> Result<(), CommandError> {
        self.print(|out, source, found| {
            let (time, id, reason) = match &found.item {
                Entry::Letter(letter) => (&letter.time, letter.id.clone(), &letter.reason),
                Entry::Body(kept) => (&kept.arrival, kept.id.to_string(), &kept.reason),
            };
            let mark = if found.replayed { "  (replayed)" } else { "" };
            out.line(format_args!("{time}  {}  {id}  {}{mark}", source.name(), reason.escape_debug()))
        })
    }

    fn show(&self) -> Result<(), CommandError> {
        // As it stands in the file, whatever version wrote it.
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
fn by(ingress: &str) -> Option<Arc<str>> {
    (ingress != DEFAULT_INGRESS).then(|| ingress.into())
}

/// The events of a body that came by a route.
fn by_route(events: Events, kept: &Kept) -> Events {
    let ingress = by(&kept.ingress);
    events.into_iter().map(|event| event.by(ingress.clone())).collect()
}

fn arrival(kept: &Kept) -> Arrival {
    kept.arrival.parse().unwrap_or_default()
}
