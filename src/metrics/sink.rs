//! The metrics of sinks, each with the name of its sink as a label.

use super::{CauseLabel, Durations, SinkLabel};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::sync::atomic::AtomicU64;

/// Counts what one sink does.
#[derive(Clone, Debug, Default)]
pub struct SinkMetrics {
    /// Messages that the destination acknowledged.
    pub published: Counter,
    /// Acknowledged messages that the destination had stored before.
    pub duplicates: Counter,
    /// Publishes that failed and were tried again.
    pub retried: RetryMetrics,
    /// From the start of a publish to its acknowledgement.
    pub publish_durations: Durations,
    /// From the arrival of a record to its settlement.
    pub settle_durations: Durations,
    /// Messages refused for good and kept as dead letters.
    pub dead_lettered: Counter,
    /// The dead letters that are kept.
    pub dead_letters: DeadLetterMetrics,
    /// Records that `when` kept from this sink.
    pub filtered: Counter,
    /// Evaluations of `when` that failed.
    pub filter_failures: Counter,
    /// 1 if the present key file of `redact` cannot be used.
    pub redact_key_unusable: Gauge,
    /// Messages handed to the destination and not answered yet.
    pub in_flight: Gauge,
    /// Records that wait behind a failed publish.
    pub retrying: Gauge,
    /// Records that wait for a topic, subject, stream or partition that is away.
    pub parked_records: Gauge,
    /// Topics, subjects, streams and partitions that are away while the destination is up.
    pub places_unavailable: Gauge,
    /// Records stored and not settled.
    pub lag_records: Gauge,
    /// Bytes of the spool from the oldest record that is not settled on.
    pub lag_bytes: Gauge,
    /// Age of the oldest record that is not settled.
    pub lag_seconds: Gauge<f64, AtomicU64>,
    /// 1 if the destination takes messages.
    pub up: Gauge,
}

/// Counts failed publishes that are tried again, by cause.
#[derive(Clone, Debug, Default)]
pub struct RetryMetrics {
    /// The destination cannot be reached or does not acknowledge.
    pub unavailable: Counter,
    /// A topic, subject, stream or partition is away.
    pub place: Counter,
    /// A dead letter cannot be kept.
    pub dead_letters: Counter,
}

/// The size of one sink's dead letters.
#[derive(Clone, Debug, Default)]
pub struct DeadLetterMetrics {
    /// Bytes on disk.
    pub bytes: Gauge,
    /// Bytes that they may take; the sink holds when they do.
    pub max_bytes: Gauge,
}

const UNAVAILABLE: &str = "unavailable";
const PLACE: &str = "place";
const DEAD_LETTERS: &str = "dead_letters";
const RETRY_CAUSES: [&str; 3] = [UNAVAILABLE, PLACE, DEAD_LETTERS];

#[derive(Clone, Debug, Default)]
pub struct SinkFamilies {
    published: Family<SinkLabel, Counter>,
    duplicates: Family<SinkLabel, Counter>,
    retried: Family<(SinkLabel, CauseLabel), Counter>,
    publish_durations: Family<SinkLabel, Durations>,
    settle_durations: Family<SinkLabel, Durations>,
    dead_lettered: Family<SinkLabel, Counter>,
    dead_letter_bytes: Family<SinkLabel, Gauge>,
    dead_letter_max_bytes: Family<SinkLabel, Gauge>,
    filtered: Family<SinkLabel, Counter>,
    filter_failures: Family<SinkLabel, Counter>,
    redact_key_unusable: Family<SinkLabel, Gauge>,
    in_flight: Family<SinkLabel, Gauge>,
    retrying: Family<SinkLabel, Gauge>,
    parked_records: Family<SinkLabel, Gauge>,
    places_unavailable: Family<SinkLabel, Gauge>,
    lag_records: Family<SinkLabel, Gauge>,
    lag_bytes: Family<SinkLabel, Gauge>,
    lag_seconds: Family<SinkLabel, Gauge<f64, AtomicU64>>,
    up: Family<SinkLabel, Gauge>,
}

impl SinkFamilies {
    /// The metrics of the sink called `name`.
    pub fn of(&self, name: &str) -> SinkMetrics {
        let label = SinkLabel { sink: name.to_owned() };
        let retried = |cause| self.retried.get_or_create_owned(&(label.clone(), CauseLabel { cause }));
        SinkMetrics {
            published: self.published.get_or_create_owned(&label),
            duplicates: self.duplicates.get_or_create_owned(&label),
            retried: RetryMetrics {
                unavailable: retried(UNAVAILABLE),
                place: retried(PLACE),
                dead_letters: retried(DEAD_LETTERS),
            },
            publish_durations: self.publish_durations.get_or_create_owned(&label),
            settle_durations: self.settle_durations.get_or_create_owned(&label),
            dead_lettered: self.dead_lettered.get_or_create_owned(&label),
            dead_letters: DeadLetterMetrics {
                bytes: self.dead_letter_bytes.get_or_create_owned(&label),
                max_bytes: self.dead_letter_max_bytes.get_or_create_owned(&label),
            },
            filtered: self.filtered.get_or_create_owned(&label),
            filter_failures: self.filter_failures.get_or_create_owned(&label),
            redact_key_unusable: self.redact_key_unusable.get_or_create_owned(&label),
            in_flight: self.in_flight.get_or_create_owned(&label),
            retrying: self.retrying.get_or_create_owned(&label),
            parked_records: self.parked_records.get_or_create_owned(&label),
            places_unavailable: self.places_unavailable.get_or_create_owned(&label),
            lag_records: self.lag_records.get_or_create_owned(&label),
            lag_bytes: self.lag_bytes.get_or_create_owned(&label),
            lag_seconds: self.lag_seconds.get_or_create_owned(&label),
            up: self.up.get_or_create_owned(&label),
        }
    }

    /// Removes every series of the sink called `name`.
    pub fn remove(&self, name: &str) {
        let label = SinkLabel { sink: name.to_owned() };
        for counters in [&self.published, &self.duplicates, &self.dead_lettered, &self.filtered, &self.filter_failures]
        {
            counters.remove(&label);
        }
        for cause in RETRY_CAUSES {
            self.retried.remove(&(label.clone(), CauseLabel { cause }));
        }
        for durations in [&self.publish_durations, &self.settle_durations] {
            durations.remove(&label);
        }
        for gauges in [
            &self.dead_letter_bytes,
            &self.dead_letter_max_bytes,
            &self.in_flight,
            &self.retrying,
            &self.parked_records,
            &self.places_unavailable,
            &self.lag_records,
            &self.lag_bytes,
            &self.redact_key_unusable,
            &self.up,
        ] {
            gauges.remove(&label);
        }
        self.lag_seconds.remove(&label);
    }

    pub fn register(&self, at: &mut Registry) {
        at.register("published", "Messages that the destination acknowledged", self.published.clone());
        at.register(
            "duplicates",
            "Acknowledged messages that the destination had stored before",
            self.duplicates.clone(),
        );
        at.register("retried", "Publishes that failed and were tried again, by cause", self.retried.clone());
        at.register(
            "publish_duration_seconds",
            "Time from the start of a publish to its acknowledgement",
            self.publish_durations.clone(),
        );
        at.register(
            "settle_duration_seconds",
            "Time from the arrival of an event to its settlement",
            self.settle_durations.clone(),
        );
        at.register("dead_lettered", "Messages refused for good and kept as dead letters", self.dead_lettered.clone());
        at.register("dead_letter_bytes", "Dead letters on disk", self.dead_letter_bytes.clone());
        at.register(
            "dead_letter_max_bytes",
            "Bytes that the dead letters may take on disk",
            self.dead_letter_max_bytes.clone(),
        );
        at.register("filtered", "Records that `when` kept from this sink", self.filtered.clone());
        at.register(
            "filter_failures",
            "Evaluations of `when` without a result: a field is missing, or cannot be read",
            self.filter_failures.clone(),
        );
        at.register(
            "redact_key_unusable",
            "1 if the present key file of `redact` cannot be used",
            self.redact_key_unusable.clone(),
        );
        at.register("in_flight", "Messages handed to the destination and not answered yet", self.in_flight.clone());
        at.register("retrying", "Records that wait to be tried again", self.retrying.clone());
        at.register(
            "parked_records",
            "Records that wait for a topic, subject, stream or partition that is away",
            self.parked_records.clone(),
        );
        at.register(
            "places_unavailable",
            "Topics, subjects, streams and partitions that are away while the destination is up",
            self.places_unavailable.clone(),
        );
        at.register("lag_records", "Records stored and not settled", self.lag_records.clone());
        at.register(
            "lag_bytes",
            "Bytes of the spool from the oldest record that is not settled on",
            self.lag_bytes.clone(),
        );
        at.register("lag_seconds", "Age of the oldest record that is not settled", self.lag_seconds.clone());
        at.register("up", "1 if the destination takes messages", self.up.clone());
    }
}
