//! The index of recent records: the identities of events, so that a resent webhook is not stored twice; the names of calls, so that an
//! event finds its conversation; the legs that have their CDR, for reconciliation.
//!
//! All of it follows from durable records. A start reads the identities from the segments, as long as these are there, so that a damaged
//! record has none; names and legs, whose windows are long, from a file for each segment that is full, see [`Window`].

use super::disk::Disk;
use super::segment::{self, Scan};
use super::segments::Segment;
use super::window::{Changes, Entry, Key, Window};
use super::{Config, Record};
use crate::event::{Arrival, CallName, Event, EventId, LegKey};
use crate::metrics::FOUND_BY;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// The part of a record that goes into the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Indexed {
    /// The record's offset.
    pub offset: u64,
    /// When it was stored.
    pub stored: Arrival,
    /// The event's identity; `None` for a record that a replay stored for one sink alone, and that no resent webhook is compared with.
    pub id: Option<EventId>,
    /// The event's conversation.
    pub conversation: Arc<str>,
    /// The names that stand for the conversation from here on.
    pub names: Vec<CallName>,
    /// The legs whose CDR the event is.
    pub legs: Vec<LegKey>,
}

impl Indexed {
    /// The part of a record whose conversation was resolved before.
    pub fn of(record: &Record, stored: Arrival) -> Self {
        let event = &record.event;
        Self {
            offset: record.offset,
            stored,
            id: record.target.is_none().then(|| event.id()),
            conversation: event.shared_conversation().clone(),
            names: Vec::new(),
            legs: Vec::new(),
        }
    }

    fn entry<V>(&self, key: Key, value: V) -> Entry<V> {
        Entry { key, offset: self.offset, stored: self.stored, value }
    }
}

/// An event whose conversation is resolved.
#[derive(Debug)]
pub struct Resolved {
    pub event: Event,
    /// Its part in the index.
    pub indexed: Indexed,
    /// One of [`FOUND_BY`]: how its conversation was found; `None` if it was resolved before.
    pub found_by: Option<&'static str>,
    /// How many of its names stand for another conversation, and go on doing so.
    pub conflicts: u64,
}

/// The names that the records of a group commit teach before they are durable.
pub type Pending = HashMap<CallName, Arc<str>>;

/// The three windows.
#[derive(Debug)]
pub struct Index {
    /// By the identity of an event.
    pub ids: Window<()>,
    names: Window<Arc<str>>,
    legs: Window<()>,
    /// The names and legs of segments below this offset are in files.
    kept: u64,
}

impl Index {
    /// An empty index.
    pub fn new(config: &Config) -> Self {
        Self {
            kept: 0,
            ids: Window::new("dedup", config.dedup_window, config.dedup_capacity),
            names: Window::new("names", config.names_window, config.names_capacity),
            legs: Window::new("legs", config.legs_window, config.legs_capacity),
        }
    }

    /// The offset of the event with this identity, if it was stored within the window before `now`.
    pub fn offset(&self, id: &EventId, now: Arrival) -> Option<u64> {
        self.ids.get(&id.0, now).map(|entry| entry.offset)
    }

    /// The offset of the CDR of this leg, if it was stored within the window before `now`.
    pub fn leg(&self, leg: &LegKey, now: Arrival) -> Option<u64> {
        self.legs.get(&leg.0, now).map(|entry| entry.offset)
    }

    /// From when on every leg that got its CDR is found at `now`; `None` if none is.
    pub fn legs_since(&self, now: Arrival) -> Option<Arrival> {
        self.legs.complete_since(now)
    }

    /// Finds the conversation of an event that is stored at `now` with this offset, and adds the names that it teaches to `pending`. An
    /// event that is stored for one sink alone is only `replayed`, and teaches nothing.
    pub fn resolve(&self, event: Event, replayed: bool, offset: u64, pending: &mut Pending, now: Arrival) -> Resolved {
        let id = (!replayed).then(|| event.id());
        let (mut names, mut legs) = (Vec::new(), Vec::new());
        let (mut found, mut found_by, mut conflicts) = (None, None, 0);
        let [by_field, by_index, by_fallback] = FOUND_BY;
        if let Some(call) = event.call().filter(|_| !replayed) {
            legs = call.legs.iter().flatten().copied().collect();
            let known = |name: &CallName| {
                let fresh = pending.get(name).map(|conversation| (conversation.clone(), now));
                fresh.or_else(|| self.names.get(&name.0, now).map(|entry| (entry.value.clone(), entry.stored)))
            };
            let known = call.names.iter().flatten().map(|name| (*name, known(name)));
            if call.has_conversation {
                found_by = Some(by_field);
                for (name, known) in known.filter(|_| self.names.is_on()) {
                    match known {
                        None => names.push(name),
                        Some((conversation, _)) if *conversation != *event.conversation() => conflicts += 1,
                        Some((conversation, stored)) => {
                            names.extend(self.names.is_worn(stored, now).then_some(name));
                            // One text in memory for all names of the call.
                            found = Some(conversation);
                        }
                    }
                }
            } else {
                found = known.filter_map(|(_, known)| known).map(|(conversation, _)| conversation).next();
                found_by = Some(if found.is_some() { by_index } else { by_fallback });
            }
        }
        let event = event.resolved(found);
        let conversation = event.shared_conversation().clone();
        pending.extend(names.iter().map(|name| (*name, conversation.clone())));
        let indexed = Indexed { offset, stored: now, id, conversation, names, legs };
        Resolved { event, indexed, found_by, conflicts }
    }

    /// Adds a record that has become durable, behind all others.
    pub fn insert(&mut self, record: &Indexed) {
        record.id.iter().for_each(|id| self.ids.insert(record.entry(id.0, ())));
        for name in &record.names {
            self.names.insert(record.entry(name.0, record.conversation.clone()));
        }
        record.legs.iter().for_each(|leg| self.legs.insert(record.entry(leg.0, ())));
    }

    /// Adds a record before all others, as far as no file covers it.
    fn recall(&mut self, record: &Indexed, now: Arrival) {
        record.id.iter().for_each(|id| self.ids.recall(record.entry(id.0, ()), now));
        for name in record.names.iter().rev() {
            self.names.recall(record.entry(name.0, record.conversation.clone()), now);
        }
        record.legs.iter().rev().for_each(|leg| self.legs.recall(record.entry(leg.0, ()), now));
    }

    /// The records at these offsets turned out to be unreadable. To send their events again mends that, so these are no duplicates, and
    /// their legs have no CDR. Conversations stay as they are.
    pub fn forget(&mut self, lost: &Range<u64>) {
        self.ids.forget(lost);
        self.legs.forget(lost);
    }

    /// Up to which offset there are files for names and legs.
    pub fn kept(&self) -> u64 {
        self.kept
    }

    /// The files for the names and legs of a segment that is full.
    pub fn keep_calls(&mut self, segment: &Range<u64>) -> Changes {
        let mut changes = Changes::default();
        self.names.keep(segment, &mut changes);
        self.legs.keep(segment, &mut changes);
        self.kept = segment.end;
        changes
    }

    /// The file for the identities of a segment that is about to be removed.
    pub fn keep_ids(&mut self, segment: &Range<u64>) -> Changes {
        let mut changes = Changes::default();
        self.ids.keep(segment, &mut changes);
        changes
    }

    /// Fills the windows with the records of earlier processes: reads backwards, no further than the windows reach.
    pub fn load(&mut self, disk: &dyn Disk, segments: &BTreeMap<u64, Segment>, end: u64, now: Arrival) {
        let unread = |error: &io::Error| {
            tracing::warn!(
                %error,
                "not all of the latest events could be read; a resent one may be stored twice, and a call detail record may not \
                 find the conversation of its call"
            );
        };
        let found = [self.ids.find_files(disk, end), self.names.find_files(disk, end), self.legs.find_files(disk, end)];
        found.iter().filter_map(|found| found.as_ref().err()).for_each(unread);
        self.kept = self.names.covered().min(self.legs.covered());
        let (mut limit, mut newest) = (end, now);
        for (&base, segment) in segments.iter().rev() {
            let lacks = self.ids.lacks(limit, newest, now)
                || self.names.lacks(limit, newest, now)
                || self.legs.lacks(limit, newest, now);
            if !lacks {
                break;
            }
            let Ok(records) = records_of(disk, base..limit).inspect_err(unread) else { break };
            records.iter().rev().for_each(|record| self.recall(record, now));
            limit = base;
            // An unreadable segment does not tell.
            if segment.begun != Arrival::default() {
                newest = segment.begun;
            }
        }
        let loaded = [self.ids.load(disk, now), self.names.load(disk, now), self.legs.load(disk, now)];
        loaded.iter().filter_map(|loaded| loaded.as_ref().err()).for_each(unread);
    }
}

/// The records of the segment with these offsets, as far as they can be read.
fn records_of(disk: &dyn Disk, offsets: Range<u64>) -> io::Result<Vec<Indexed>> {
    let mut records = Vec::new();
    let file = match disk.open(&segment::name(offsets.start)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(records),
        file => file?,
    };
    Scan::new(file)?.read_all(offsets, |frame, stored| {
        records.extend(frame.indexed(stored));
        Ok(())
    })?;
    Ok(records)
}
