//! The catalogue of metrics: every family with its unit and help, one struct per stage, handed in.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::sync::atomic::AtomicU64;

/// All metrics of a bridge.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Of the ingress.
    pub ingress: IngressMetrics,
    /// Of the spool.
    pub spool: SpoolMetrics,
    sinks: SinkFamilies,
}

/// Counts requests and events at the ingress.
#[derive(Clone, Debug, Default)]
pub struct IngressMetrics {
    /// Requests by HTTP status.
    pub requests: Family<StatusLabel, Counter>,
    /// Requests being read, stored or answered.
    pub in_flight: Gauge,
    /// Of bodies that could not be decoded.
    pub rejected: RejectedMetrics,
    /// Of secrets that lie in files.
    pub secrets: SecretMetrics,
    unauthorized: Family<IngressLabel, Counter>,
    /// Of encryption.
    pub tls: TlsMetrics,
    /// Of proxies that tell whom they speak for.
    pub proxy_protocol: ProxyProtocolMetrics,
    /// Requests and connections refused for others' sake.
    pub limits: LimitMetrics,
}

/// Counts requests and connections that a server refuses for others' sake.
#[derive(Clone, Debug, Default)]
pub struct LimitMetrics {
    /// Connections that had to end because others waited for their place.
    pub connections: Counter,
    /// Connections of an address that has all it may have.
    pub connections_per_peer: Counter,
    /// Requests for which there is no memory beside those that are open.
    pub requests: Counter,
    /// Bodies that were not complete in time.
    pub body_time: Counter,
    malformed: Family<ReasonLabel, Counter>,
}

/// Counts how files of secrets are read again.
#[derive(Clone, Debug, Default)]
pub struct SecretMetrics {
    /// Files whose new secrets are valid now.
    pub reloads: Counter,
    /// Attempts that failed; the secrets read before stay valid.
    pub failures: Counter,
}

/// Counts what encryption does at the ingress.
#[derive(Clone, Debug, Default)]
pub struct TlsMetrics {
    /// Handshakes that led to a connection.
    pub shaken: Counter,
    /// Handshakes that were broken off, by either side.
    pub failed: Counter,
    /// Changes of the certificate's files that are in use.
    pub reloaded: Counter,
    /// Changes of the certificate's files that cannot be used.
    pub reload_failed: Counter,
    /// When the certificate expires, in seconds since 1970.
    pub not_after: Gauge,
}

/// Counts connections that were closed since they did not begin as the PROXY protocol demands.
#[derive(Clone, Debug, Default)]
pub struct ProxyProtocolMetrics {
    /// Those of others than the proxies.
    pub untrusted: Counter,
    /// Connections that begin with something else.
    pub missing: Counter,
    /// Those whose header is not as it has to be.
    pub invalid: Counter,
    /// Connections that ended within the header.
    pub incomplete: Counter,
    /// Those whose header did not come in time.
    pub timeout: Counter,
}

/// Counts bodies that could not be decoded.
#[derive(Clone, Debug, Default)]
pub struct RejectedMetrics {
    /// Bodies kept durably.
    pub kept: Counter,
    /// Bodies that came faster than they can be written.
    pub busy: Counter,
    /// Bodies that were larger than all that may be kept.
    pub too_large: Counter,
    /// Bodies that the disk refused.
    pub failed: Counter,
    /// Bodies that were kept and had to make room for younger ones, before they were replayed.
    pub oldest: Counter,
}

/// Counters of the spool.
#[derive(Clone, Debug, Default)]
pub struct SpoolMetrics {
    /// Events of requests, stored durably. Shown with the ingress, counted here: the client may be gone by then.
    pub accepted: Counter,
    /// Events of requests that had been stored before.
    pub duplicates: Counter,
    /// Records written and synced.
    pub appended_records: Counter,
    /// Bytes written and synced.
    pub written_bytes: Counter,
    /// Group commits, one fdatasync each.
    pub syncs: Counter,
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
}

/// Counts what one sink does.
#[derive(Clone, Debug, Default)]
pub struct SinkMetrics {
    /// Messages that the destination acknowledged.
    pub published: Counter,
    /// Acknowledged messages that the destination had stored before.
    pub duplicates: Counter,
    /// Publishes that failed and were tried again.
    pub retried: Counter,
    /// Messages refused for good and kept as dead letters.
    pub dead_lettered: Counter,
    /// The dead letters that are kept.
    pub dead_letters: DeadLetterMetrics,
    /// Records that `when` kept from this sink.
    pub filtered: Counter,
    /// Evaluations of `when` that failed.
    pub filter_failures: Counter,
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
    /// Age of the oldest record that is not settled.
    pub lag_seconds: Gauge<f64, AtomicU64>,
    /// 1 if the destination takes messages.
    pub up: Gauge,
}

/// The size of one sink's dead letters.
#[derive(Clone, Debug, Default)]
pub struct DeadLetterMetrics {
    /// Bytes on disk.
    pub bytes: Gauge,
    /// Bytes that they may take; the sink holds when they do.
    pub max_bytes: Gauge,
}

/// `status="200"`
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StatusLabel {
    /// The HTTP status code.
    pub status: u16,
}

/// `cause="busy"`
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CauseLabel {
    cause: &'static str,
}

/// `ingress="name"`
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct IngressLabel {
    ingress: String,
}

/// `limit="connections"`
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LimitLabel {
    limit: &'static str,
}

/// `reason="missing"`
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// `result="ok"`
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

/// `sink="name"`
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SinkLabel {
    sink: String,
}

#[derive(Clone, Debug, Default)]
struct SinkFamilies {
    published: Family<SinkLabel, Counter>,
    duplicates: Family<SinkLabel, Counter>,
    retried: Family<SinkLabel, Counter>,
    dead_lettered: Family<SinkLabel, Counter>,
    dead_letter_bytes: Family<SinkLabel, Gauge>,
    dead_letter_max_bytes: Family<SinkLabel, Gauge>,
    filtered: Family<SinkLabel, Counter>,
    filter_failures: Family<SinkLabel, Counter>,
    in_flight: Family<SinkLabel, Gauge>,
    retrying: Family<SinkLabel, Gauge>,
    parked_records: Family<SinkLabel, Gauge>,
    places_unavailable: Family<SinkLabel, Gauge>,
    lag_records: Family<SinkLabel, Gauge>,
    lag_seconds: Family<SinkLabel, Gauge<f64, AtomicU64>>,
    up: Family<SinkLabel, Gauge>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("cdrelay");
        let build = Family::<[(&str, &str); 1], Gauge>::default();
        build.get_or_create(&[("version", env!("CARGO_PKG_VERSION"))]).set(1);
        registry.register("build_info", "The running version", build);
        registry.register(
            "log_lines_dropped",
            "Log lines dropped because nobody reads stderr",
            crate::logging::dropped_lines(),
        );

        let (mut ingress, spool) = (IngressMetrics::default(), SpoolMetrics::default());
        let at = registry.sub_registry_with_prefix("ingress");
        at.register("requests", "Requests by HTTP status", ingress.requests.clone());
        at.register("requests_in_flight", "Requests being read, stored or answered", ingress.in_flight.clone());
        at.register("events_accepted", "Events stored durably", spool.accepted.clone());
        at.register("events_duplicate", "Events that had been stored before", spool.duplicates.clone());

        let dropped = Family::<CauseLabel, Counter>::default();
        let lost = |cause| dropped.get_or_create_owned(&CauseLabel { cause });
        ingress.rejected.busy = lost("busy");
        ingress.rejected.too_large = lost("too_large");
        ingress.rejected.failed = lost("disk");
        ingress.rejected.oldest = lost("oldest");
        at.register("rejected_kept", "Bodies that could not be decoded, kept", ingress.rejected.kept.clone());
        at.register("rejected_dropped", "Bodies that could not be decoded and are lost, by cause", dropped);

        at.register("unauthorized", "Requests without the right credentials", ingress.unauthorized.clone());
        at.register("secret_reloads", "Files of secrets whose new content is valid", ingress.secrets.reloads.clone());
        at.register(
            "secret_failures",
            "Files of secrets that could not be read again",
            ingress.secrets.failures.clone(),
        );

        let limited = Family::<LimitLabel, Counter>::default();
        let beyond = |limit| limited.get_or_create_owned(&LimitLabel { limit });
        ingress.limits.connections = beyond("connections");
        ingress.limits.connections_per_peer = beyond("connections_per_peer");
        ingress.limits.requests = beyond("requests");
        ingress.limits.body_time = beyond("body_time");
        for (_, reason) in crate::server::MALFORMED {
            ingress.limits.malformed(reason);
        }
        at.register(
            "malformed_requests",
            "Requests that are no valid HTTP, by reason",
            ingress.limits.malformed.clone(),
        );
        at.register("limited", "Connections and requests refused or ended for others, by limit", limited);

        let (handshakes, reloads) =
            (Family::<ResultLabel, Counter>::default(), Family::<ResultLabel, Counter>::default());
        let [ok, failed] = ["ok", "failed"].map(|result| ResultLabel { result });
        ingress.tls.shaken = handshakes.get_or_create_owned(&ok);
        ingress.tls.failed = handshakes.get_or_create_owned(&failed);
        ingress.tls.reloaded = reloads.get_or_create_owned(&ok);
        ingress.tls.reload_failed = reloads.get_or_create_owned(&failed);
        at.register("tls_handshakes", "TLS handshakes by result", handshakes);
        at.register("tls_reloads", "Changes of the files of the certificate, by whether they can be used", reloads);
        at.register(
            "tls_not_after_timestamp_seconds",
            "When the certificate expires; 0 without TLS",
            ingress.tls.not_after.clone(),
        );

        let refused = Family::<ReasonLabel, Counter>::default();
        let because = |reason| refused.get_or_create_owned(&ReasonLabel { reason });
        ingress.proxy_protocol.untrusted = because("untrusted");
        ingress.proxy_protocol.missing = because("missing");
        ingress.proxy_protocol.invalid = because("invalid");
        ingress.proxy_protocol.incomplete = because("incomplete");
        ingress.proxy_protocol.timeout = because("timeout");
        at.register("proxy_protocol_refused", "Connections closed for lack of a PROXY header, by reason", refused);

        let at = registry.sub_registry_with_prefix("spool");
        at.register("appended_records", "Records written and synced", spool.appended_records.clone());
        at.register("written_bytes", "Bytes written and synced", spool.written_bytes.clone());
        at.register("syncs", "Group commits, one fdatasync each", spool.syncs.clone());
        at.register("failures", "Writes, syncs or new segments that failed", spool.failures.clone());
        at.register("read_failures", "Reads that the disk refused, tried again", spool.read_failures.clone());
        at.register(
            "damaged_records",
            "Acknowledged records that could not be read back",
            spool.damaged_records.clone(),
        );
        at.register(
            "skipped_records",
            "Records that a sink that is not required lost to a full spool",
            spool.skipped_records.clone(),
        );
        at.register("bytes", "Bytes on disk", spool.bytes.clone());
        at.register("max_bytes", "Bytes that the segments may take on disk", spool.max_bytes.clone());
        at.register("records", "Records on disk", spool.records.clone());
        at.register("segments", "Segment files", spool.segments.clone());

        let sinks = SinkFamilies::default();
        let at = registry.sub_registry_with_prefix("sink");
        at.register("published", "Messages that the destination acknowledged", sinks.published.clone());
        at.register(
            "duplicates",
            "Acknowledged messages that the destination had stored before",
            sinks.duplicates.clone(),
        );
        at.register("retried", "Publishes that failed and were tried again", sinks.retried.clone());
        at.register("dead_lettered", "Messages refused for good and kept as dead letters", sinks.dead_lettered.clone());
        at.register("dead_letter_bytes", "Dead letters on disk", sinks.dead_letter_bytes.clone());
        at.register(
            "dead_letter_max_bytes",
            "Bytes that the dead letters may take on disk",
            sinks.dead_letter_max_bytes.clone(),
        );
        at.register("filtered", "Records that `when` kept from this sink", sinks.filtered.clone());
        at.register(
            "filter_failures",
            "Evaluations of `when` without a result: a field is missing, or cannot be read",
            sinks.filter_failures.clone(),
        );
        at.register("in_flight", "Messages handed to the destination and not answered yet", sinks.in_flight.clone());
        at.register("retrying", "Records that wait to be tried again", sinks.retrying.clone());
        at.register(
            "parked_records",
            "Records that wait for a topic, subject, stream or partition that is away",
            sinks.parked_records.clone(),
        );
        at.register(
            "places_unavailable",
            "Topics, subjects, streams and partitions that are away while the destination is up",
            sinks.places_unavailable.clone(),
        );
        at.register("lag_records", "Records stored and not settled", sinks.lag_records.clone());
        at.register("lag_seconds", "Age of the oldest record that is not settled", sinks.lag_seconds.clone());
        at.register("up", "1 if the destination takes messages", sinks.up.clone());
        Self { registry, ingress, spool, sinks }
    }
}

impl LimitMetrics {
    /// Requests that are no HTTP, by reason.
    pub fn malformed(&self, reason: &'static str) -> Counter {
        self.malformed.get_or_create_owned(&ReasonLabel { reason })
    }
}

impl IngressMetrics {
    /// Requests by this route without the right credentials.
    pub fn unauthorized(&self, ingress: &str) -> Counter {
        self.unauthorized.get_or_create_owned(&IngressLabel { ingress: ingress.to_owned() })
    }
}

impl SpoolMetrics {
    /// Records that `sink` lost because the spool was full.
    pub fn skipped(&self, sink: &str) -> Counter {
        self.skipped_records.get_or_create_owned(&SinkLabel { sink: sink.to_owned() })
    }
}

impl Metrics {
    /// The metrics of the sink called `name`.
    pub fn sink(&self, name: &str) -> SinkMetrics {
        let label = SinkLabel { sink: name.to_owned() };
        // Shown from the start, as the others are.
        self.spool.skipped(name);
        SinkMetrics {
            published: self.sinks.published.get_or_create_owned(&label),
            duplicates: self.sinks.duplicates.get_or_create_owned(&label),
            retried: self.sinks.retried.get_or_create_owned(&label),
            dead_lettered: self.sinks.dead_lettered.get_or_create_owned(&label),
            dead_letters: DeadLetterMetrics {
                bytes: self.sinks.dead_letter_bytes.get_or_create_owned(&label),
                max_bytes: self.sinks.dead_letter_max_bytes.get_or_create_owned(&label),
            },
            filtered: self.sinks.filtered.get_or_create_owned(&label),
            filter_failures: self.sinks.filter_failures.get_or_create_owned(&label),
            in_flight: self.sinks.in_flight.get_or_create_owned(&label),
            retrying: self.sinks.retrying.get_or_create_owned(&label),
            parked_records: self.sinks.parked_records.get_or_create_owned(&label),
            places_unavailable: self.sinks.places_unavailable.get_or_create_owned(&label),
            lag_records: self.sinks.lag_records.get_or_create_owned(&label),
            lag_seconds: self.sinks.lag_seconds.get_or_create_owned(&label),
            up: self.sinks.up.get_or_create_owned(&label),
        }
    }

    /// The OpenMetrics text exposition.
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}
