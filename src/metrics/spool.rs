//! The metrics of the spool.

use super::{Durations, SinkLabel};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Counters of the spool.
#[derive(Clone, Debug, Default)]
pub struct SpoolMetrics {
    /// Events of requests, stored durably. Shown with the ingress, counted here: the client may be gone by then.
    pub accepted: Counter,
    /// Events of requests that had been stored before.
    pub duplicates: Counter,
    conversations: Family<FoundByLabel, Counter>,
    /// Ids of calls that came with another conversation than before, and stayed with the first.
    pub conversation_conflicts: Counter,
    /// Records written and synced.
    pub appended_records: Counter,
    /// Bytes written and synced.
    pub written_bytes: Counter,
    /// Group commits, one fdatasync each.
    pub syncs: Counter,
    /// How long they take.
    pub sync_durations: Durations,
    /// Writes, syncs or new segments that failed.
    pub failures: Counter,
    /// Reads that the disk refused, to be tried again.
    pub read_failures: Counter,
    /// Acknowledged records that could not be read back.
    pub damaged_records: Counter,
    skipped_records: Family<SinkLabel, Counter>,
    /// Bytes on disk.
    pub bytes: Gauge,
    /// Bytes that the segments may take.
    pub max_bytes: Gauge,
    /// Records on disk.
    pub records: Gauge,
    /// Segment files.
    pub segments: Gauge,
    /// Bytes that the file system has for this user.
    pub free_bytes: Gauge,
}

/// `by="index"`
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FoundByLabel {
    by: &'static str,
}

/// The ways in which the conversation of an event is found: by its own `conversation_uuid`, by an id in common with an earlier event, not at
/// all.
pub const FOUND_BY: [&str; 3] = ["field", "index", "fallback"];

impl SpoolMetrics {
    /// Events of requests by one of [`FOUND_BY`].
    pub fn conversations(&self, by: &'static str) -> Counter {
        self.conversations.get_or_create_owned(&FoundByLabel { by })
    }

    pub(super) fn register_events(&self, at: &mut Registry) {
        FOUND_BY.iter().for_each(|by| drop(self.conversations(by)));
        at.register("conversation", "Events stored, by how their conversation was found", self.conversations.clone());
        at.register(
            "conversation_conflicts",
            "Ids of calls that came with another conversation than before, and stayed with the first",
            self.conversation_conflicts.clone(),
        );
    }

    /// Records that `sink` lost because the spool was full.
    pub fn skipped(&self, sink: &str) -> Counter {
        self.skipped_records.get_or_create_owned(&SinkLabel { sink: sink.to_owned() })
    }

    pub(super) fn remove_sink(&self, sink: &str) {
        self.skipped_records.remove(&SinkLabel { sink: sink.to_owned() });
    }

    pub(super) fn register(&self, at: &mut Registry) {
        at.register("appended_records", "Records written and synced", self.appended_records.clone());
        at.register("written_bytes", "Bytes written and synced", self.written_bytes.clone());
        at.register("syncs", "Group commits, one fdatasync each", self.syncs.clone());
        at.register("sync_duration_seconds", "Time that fdatasync takes", self.sync_durations.clone());
        at.register("failures", "Writes, syncs or new segments that failed", self.failures.clone());
        at.register("read_failures", "Reads that the disk refused, tried again", self.read_failures.clone());
        at.register(
            "damaged_records",
            "Acknowledged records that could not be read back",
            self.damaged_records.clone(),
        );
        at.register(
            "skipped_records",
            "Records that a sink that is not required lost to a full spool",
            self.skipped_records.clone(),
        );
        at.register("bytes", "Bytes on disk", self.bytes.clone());
        at.register("max_bytes", "Bytes that the segments may take on disk", self.max_bytes.clone());
        at.register("records", "Records on disk", self.records.clone());
        at.register("segments", "Segment files", self.segments.clone());
        at.register("filesystem_free_bytes", "Free bytes of the file system of the spool", self.free_bytes.clone());
    }
}
