//! The metrics of the spool.

use super::{Durations, Label, catalogue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

// Events are shown with the ingress and counted in the spool: the client may be gone by then.
catalogue! {
    /// Counts what the spool stores and reads.
    SpoolMetrics {
        accepted: Counter = "ingress_events_accepted", "Events stored durably";
        duplicates: Counter = "ingress_events_duplicate", "Events that had been stored before";
        conversations: Family<Label, Counter> = "event_conversation", "Events stored, by how their conversation was found";
        conversation_conflicts: Counter = "event_conversation_conflicts",
            "Ids of calls that came with another conversation than before, and stayed with the first";
        appended_records: Counter = "spool_appended_records", "Records written and synced";
        written_bytes: Counter = "spool_written_bytes", "Bytes written and synced";
        syncs: Counter = "spool_syncs", "Group commits, one fdatasync each";
        sync_durations: Durations = "spool_sync_duration_seconds", "Time that fdatasync takes";
        failures: Counter = "spool_failures", "Writes, syncs or new segments that failed";
        read_failures: Counter = "spool_read_failures", "Reads that the disk refused, tried again";
        damaged_records: Counter = "spool_damaged_records", "Acknowledged records that could not be read back";
        skipped_records: Family<Label<String>, Counter> = "spool_skipped_records",
            "Records that a sink that is not required lost to a full spool";
        bytes: Gauge = "spool_bytes", "Bytes on disk";
        max_bytes: Gauge = "spool_max_bytes", "Bytes that the segments may take on disk";
        records: Gauge = "spool_records", "Records on disk";
        segments: Gauge = "spool_segments", "Segment files";
        free_bytes: Gauge = "spool_filesystem_free_bytes", "Free bytes of the file system of the spool";
    }
}

/// The ways in which the conversation of an event is found: by its own `conversation_uuid`, by an id in common with an earlier event, not at
/// all.
pub const FOUND_BY: [&str; 3] = ["field", "index", "fallback"];

impl SpoolMetrics {
    /// Events of requests by one of [`FOUND_BY`].
    pub fn conversations(&self, by: &'static str) -> Counter {
        self.conversations.get_or_create_owned(&[("by", by)])
    }

    /// Records that `sink` lost because the spool was full.
    pub fn skipped(&self, sink: &str) -> Counter {
        self.skipped_records.get_or_create_owned(&[("sink", sink.to_owned())])
    }

    /// Shows a sink that was removed no longer.
    pub(super) fn remove_sink(&self, sink: &str) {
        self.skipped_records.remove(&[("sink", sink.to_owned())]);
    }
}
