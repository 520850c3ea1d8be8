//! `cdrelay spool inspect|verify|export`: read-only, on a live or a dead spool.

use super::output::{Output, note};
use super::select::Selection;
use super::{CommandError, Location};
use crate::spool::inspect::Inspection;
use clap::Subcommand;
use serde::Serialize;
use std::io;

#[derive(Debug, Subcommand)]
pub enum Spool {
    /// Show segments, cursors and how many records wait for each sink.
    Inspect(Location),
    /// Read every record and check it; exit code 1 if any is damaged.
    Verify(Location),
    /// Write records as JSON lines: offset, id, conversation, arrival, ingress, query if there is one, and the event's exact text.
    Export {
        #[command(flatten)]
        location: Location,
        #[command(flatten)]
        selection: Selection,
        /// Only records that this sink has not settled.
        #[arg(long, value_name = "SINK")]
        undelivered: Option<String>,
    },
}

impl Spool {
    pub fn execute(self) -> Result<(), CommandError> {
        match self {
            Self::Inspect(location) => inspect(&location),
            Self::Verify(location) => verify(&location),
            Self::Export { location, selection, undelivered } => export(&location, &selection, undelivered.as_deref()),
        }
    }
}

fn inspect(location: &Location) -> Result<(), CommandError> {
    let inspection = Inspection::of(&location.open()?.spool)?;
    let mut out = Output::new();
    let segments = inspection.segments();
    let bytes: u64 = segments.iter().map(|segment| segment.bytes).sum();
    out.line(format_args!("{} segment(s), {bytes} bytes, next offset {}", segments.len(), inspection.end()))?;
    for segment in &segments {
        let records = segment.offsets.end - segment.offsets.start;
        out.line(format_args!(
            "{}  {} records from {}  {} bytes",
            segment.file, records, segment.offsets.start, segment.bytes
        ))?;
    }
    for (sink, position) in &inspection.cursors {
        let waiting = inspection.end().saturating_sub(*position);
        out.line(format_args!("sink {sink}: settled below {position}, {waiting} waiting"))?;
    }
    Ok(out.flush()?)
}

fn verify(location: &Location) -> Result<(), CommandError> {
    let inspection = Inspection::of(&location.open()?.spool)?;
    let mut intact = 0u64;
    let damaged = inspection.read(0, |_| {
        intact += 1;
        Ok(())
    })?;
    let mut out = Output::new();
    for lost in &damaged {
        out.line(format_args!("damaged: offsets {} to {}", lost.start, lost.end - 1))?;
    }
    let count: u64 = damaged.iter().map(|lost| lost.end - lost.start).sum();
    out.line(format_args!("{intact} record(s) intact, {count} damaged"))?;
    out.flush()?;
    if damaged.is_empty() { Ok(()) } else { Err(CommandError::Damaged) }
}

fn export(location: &Location, selection: &Selection, undelivered: Option<&str>) -> Result<(), CommandError> {
    let chosen = selection.compile()?;
    let inspection = Inspection::of(&location.open()?.spool)?;
    let from = match undelivered {
        Some(sink) => position(&inspection, sink)?,
        None => 0,
    };
    let mut out = Output::new();
    let damaged = inspection.read(from, |record| {
        let event = &record.event;
        let for_another = undelivered.is_some_and(|sink| !record.is_for(sink));
        if for_another || !chosen.takes_event(event) {
            return Ok(());
        }
        let line = Exported {
            offset: record.offset,
            id: event.id().to_string(),
            conversation: event.conversation(),
            arrival: event.arrival().to_string(),
            ingress: event.ingress(),
            query: event.query(),
            payload: event.payload(),
        };
        out.line(serde_json::to_string(&line)?)?;
        // The reader of the output has gone.
        if out.is_unread() { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
    });
    out.flush()?;
    let damaged = match damaged {
        Err(_) if out.is_unread() => return Ok(()),
        damaged => damaged?,
    };
    for lost in &damaged {
        note(format_args!("damaged: offsets {} to {}", lost.start, lost.end - 1));
    }
    if damaged.is_empty() { Ok(()) } else { Err(CommandError::Damaged) }
}

/// One line of `export`.
#[derive(Serialize)]
struct Exported<'a> {
    offset: u64,
    id: String,
    conversation: &'a str,
    arrival: String,
    ingress: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    query: Option<&'a str>,
    payload: &'a str,
}

/// The offset below which `sink` has settled everything.
fn position(inspection: &Inspection, sink: &str) -> Result<u64, CommandError> {
    match inspection.cursors.iter().find(|(name, _)| name == sink) {
        Some((_, position)) => Ok(*position),
        None => {
            let names: Vec<&str> = inspection.cursors.iter().map(|(name, _)| name.as_str()).collect();
            let known = names.join(", ");
            Err(CommandError::Usage(format!("--undelivered {sink}: the spool knows no such sink; it knows: {known}")))
        }
    }
}
