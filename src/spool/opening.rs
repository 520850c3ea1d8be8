//! From what lies on the disk to a spool that works: positions, segments, and the latest identities.

use super::cursor::{self, Cursor};
use super::disk::Disk;
use super::janitor::{Janitor, Keeper};
use super::known::{self, Known};
use super::queue::Queue;
use super::recent::Recent;
use super::recovery::{self, Recovered, Segment};
use super::writer::Writer;
use super::{Config, Log, Shared, report_damage, spare};
use crate::event::Arrival;
use crate::metrics::SpoolMetrics;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, OnceLock};
use tokio::sync::watch;

/// Recovers what is on the disk and puts the spool together, its threads not started yet.
pub(super) fn assemble(
    disk: Box<dyn Disk>,
    config: &Config,
    sinks: &[&str],
    metrics: SpoolMetrics,
) -> io::Result<(Writer, Keeper)> {
    let found = recovery::list(&*disk)?;
    if let Err(error) = spare::remove_all(&*disk) {
        tracing::debug!(%error, "a file for a next segment of the spool stays");
    }
    let mut cursors = Vec::new();
    let mut written = Vec::new();
    for sink in sinks {
        let (cursor, state) = Cursor::open(&*disk, sink)?;
        cursors.push(Arc::new(cursor));
        written.push(state);
    }
    // Should the disk have lost records that it had promised to keep, their offsets are not given out again.
    let mut settled = cursors.iter().map(|cursor| cursor.position()).max().unwrap_or_default();
    for file in disk.list()? {
        if let Some(sink) = cursor::sink(&file).filter(|sink| !sinks.contains(sink)) {
            tracing::warn!(sink, "the spool has a cursor of a sink that is not configured; nothing is kept for it");
            settled = settled.max(cursor::peek(&*disk, sink)?);
        }
    }
    let Recovered { segments, end, torn, damaged } = recovery::recover(&*disk, found, settled)?;
    if torn > 0 {
        tracing::warn!(bytes = torn, "cut unacknowledged records off the end of the spool");
    }
    for gone in damaged {
        report_damage(&metrics, &gone, gone.end - gone.start);
    }
    let start = segments.first_key_value().map_or(end, |(base, _)| *base);
    for cursor in &cursors {
        cursor.set(start);
    }
    let now = Arrival::now();
    let mut recent = Recent::new(config.duplicate_window, config.duplicate_capacity);
    // The segments that are gone come first.
    let mut known = Known::new(config.duplicate_window, recent.capacity());
    if let Err(error) = known.load(&*disk, |id, arrival, offset| recent.recall(id, arrival, offset, now)) {
        tracing::warn!(%error, "not all of the latest events could be read; a resent one may be stored twice");
    }
    if let Err(error) = remember(&*disk, &segments, end, &mut recent) {
        tracing::warn!(%error, "not all of the latest events could be read; a resent one may be stored twice");
    }
    let shared = Arc::new(Shared {
        disk,
        log: Mutex::new(Log { segments, ..Log::default() }),
        recent: Mutex::new(recent),
        sealing: Mutex::default(),
        end: watch::Sender::new(end),
        queue: Queue::default(),
        releases: OnceLock::new(),
        janitor: Janitor::default(),
        cursors,
        metrics,
        max_size: config.max_size.as_u64(),
        segment_size: config.segment_size(),
        memory: config.memory.as_u64() as usize,
        retain: config.retain,
        abandoned: watch::Sender::new(false),
    });
    Ok((Writer::new(shared.clone()), Keeper::new(shared, written, known)))
}

/// Fills the window of recent events from what is on disk, going back no further than it reaches.
fn remember(disk: &dyn Disk, segments: &BTreeMap<u64, Segment>, end: u64, recent: &mut Recent) -> io::Result<()> {
    let now = Arrival::now();
    let since = recent.since(now);
    let mut limit = end;
    let mut newest_first = Vec::new();
    let mut result = Ok(());
    for &base in segments.keys().rev() {
        let wanted = recent.capacity().saturating_sub(newest_first.len());
        if wanted == 0 {
            break;
        }
        let mut ids = VecDeque::new();
        // Among them may be some that came long before: bodies that could not be decoded then.
        let mut newest = None;
        result = known::identities(disk, base..limit, |id, arrival, offset| {
            newest = newest.max(Some(arrival));
            if ids.len() == wanted {
                ids.pop_front();
            }
            ids.push_back((id, arrival, offset));
        });
        limit = base;
        newest_first.extend(ids.into_iter().rev());
        if result.is_err() || newest.is_some_and(|newest| newest < since) {
            break;
        }
    }
    for (id, arrival, offset) in newest_first.into_iter().rev() {
        recent.recall(id, arrival, offset, now);
    }
    result
}
