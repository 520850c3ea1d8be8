//! The metrics of sinks, each with the name of its sink as a label.

use super::{Durations, catalogue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use std::sync::atomic::AtomicU64;

catalogue! {
    /// Counts what one sink does.
    SinkMetrics {
        published: Counter = "sink_published", "Messages that the destination acknowledged";
        duplicates: Counter = "sink_duplicates", "Acknowledged messages that the destination had stored before";
        publish_durations: Durations = "sink_publish_duration_seconds", "Time from the start of a publish to its acknowledgement";
        settle_durations: Durations = "sink_settle_duration_seconds", "Time from the arrival of an event to its settlement";
        dead_lettered: Counter = "sink_dead_lettered", "Messages refused for good and kept as dead letters";
        filtered: Counter = "sink_filtered", "Records that `when` kept from this sink";
        filter_failures: Counter = "sink_filter_failures",
            "Evaluations of `when` without a result: a field is missing, or cannot be read";
        redact_key_unusable: Gauge = "sink_redact_key_unusable", "1 if the present key file of `redact` cannot be used";
        in_flight: Gauge = "sink_in_flight", "Messages handed to the destination and not answered yet";
        retrying: Gauge = "sink_retrying", "Records that wait to be tried again";
        parked_records: Gauge = "sink_parked_records",
            "Records that wait for a topic, subject, stream or partition that is away";
        places_unavailable: Gauge = "sink_places_unavailable",
            "Topics, subjects, streams and partitions that are away while the destination is up";
        lag_records: Gauge = "sink_lag_records", "Records stored and not settled";
        lag_bytes: Gauge = "sink_lag_bytes", "Bytes of the spool from the oldest record that is not settled on";
        lag_seconds: Gauge<f64, AtomicU64> = "sink_lag_seconds", "Age of the oldest record that is not settled";
        up: Gauge = "sink_up", "1 if the destination takes messages";
        ..retried: RetryMetrics;
        ..dead_letters: DeadLetterMetrics;
    }
}

catalogue! {
    /// Counts failed publishes that are tried again: the destination cannot be reached or does not acknowledge, a
    /// topic, subject, stream or partition is away, or a dead letter cannot be kept.
    RetryMetrics {
        "sink_retried" by "cause", "Publishes that failed and were tried again, by cause":
            unavailable = "unavailable",
            place = "place",
            dead_letters = "dead_letters";
    }
}

catalogue! {
    /// The size of one sink's dead letters, which hold the sink when they reach their bound.
    DeadLetterMetrics {
        bytes: Gauge = "sink_dead_letter_bytes", "Dead letters on disk";
        max_bytes: Gauge = "sink_dead_letter_max_bytes", "Bytes that the dead letters may take on disk";
    }
}
