//! The metrics of the ingress.

use super::{CauseLabel, Durations, ReasonLabel, SpoolMetrics};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Counts requests and events at the ingress.
#[derive(Clone, Debug, Default)]
pub struct IngressMetrics {
    /// Requests by HTTP status.
    pub requests: Family<StatusLabel, Counter>,
    /// Requests being read, stored or answered.
    pub in_flight: Gauge,
    /// From the header of a request to its 2xx.
    pub acknowledgements: Durations,
    /// 1 if webhooks can be stored.
    pub up: Gauge,
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
    /// Files whose present content cannot be used.
    pub unusable: Gauge,
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
    /// 1 if the present files of the certificate cannot be used.
    pub unusable: Gauge,
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

/// `status="200"`
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StatusLabel {
    /// The HTTP status code.
    pub status: u16,
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

/// `result="ok"`
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
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

    /// Registers all of them, and those of the spool that count webhooks.
    pub(super) fn register(mut self, at: &mut Registry, spool: &SpoolMetrics) -> Self {
        at.register("requests", "Requests by HTTP status", self.requests.clone());
        at.register("requests_in_flight", "Requests being read, stored or answered", self.in_flight.clone());
        at.register(
            "acknowledgement_duration_seconds",
            "Time from the header of a request to its 2xx",
            self.acknowledgements.clone(),
        );
        at.register("up", "1 if webhooks can be stored", self.up.clone());
        at.register("events_accepted", "Events stored durably", spool.accepted.clone());
        at.register("events_duplicate", "Events that had been stored before", spool.duplicates.clone());

        let dropped = Family::<CauseLabel, Counter>::default();
        let lost = |cause| dropped.get_or_create_owned(&CauseLabel { cause });
        self.rejected.busy = lost("busy");
        self.rejected.too_large = lost("too_large");
        self.rejected.failed = lost("disk");
        self.rejected.oldest = lost("oldest");
        at.register("rejected_kept", "Bodies that could not be decoded, kept", self.rejected.kept.clone());
        at.register("rejected_dropped", "Bodies that could not be decoded and are lost, by cause", dropped);

        at.register("unauthorized", "Requests without the right credentials", self.unauthorized.clone());
        at.register("secret_reloads", "Files of secrets whose new content is valid", self.secrets.reloads.clone());
        at.register("secret_failures", "Files of secrets that could not be read again", self.secrets.failures.clone());

        at.register(
            "secret_files_unusable",
            "Files of secrets whose present content cannot be used",
            self.secrets.unusable.clone(),
        );

        let limited = Family::<LimitLabel, Counter>::default();
        let beyond = |limit| limited.get_or_create_owned(&LimitLabel { limit });
        self.limits.connections = beyond("connections");
        self.limits.connections_per_peer = beyond("connections_per_peer");
        self.limits.requests = beyond("requests");
        self.limits.body_time = beyond("body_time");
        for (_, reason) in crate::server::MALFORMED {
            self.limits.malformed(reason);
        }
        at.register("malformed_requests", "Requests that are no valid HTTP, by reason", self.limits.malformed.clone());
        at.register("limited", "Connections and requests refused or ended for others, by limit", limited);

        let (handshakes, reloads) =
            (Family::<ResultLabel, Counter>::default(), Family::<ResultLabel, Counter>::default());
        let [ok, failed] = ["ok", "failed"].map(|result| ResultLabel { result });
        self.tls.shaken = handshakes.get_or_create_owned(&ok);
        self.tls.failed = handshakes.get_or_create_owned(&failed);
        self.tls.reloaded = reloads.get_or_create_owned(&ok);
        self.tls.reload_failed = reloads.get_or_create_owned(&failed);
        at.register("tls_handshakes", "TLS handshakes by result", handshakes);
        at.register("tls_reloads", "Changes of the files of the certificate, by whether they can be used", reloads);
        at.register(
            "tls_files_unusable",
            "1 if the present files of the certificate cannot be used",
            self.tls.unusable.clone(),
        );
        at.register(
            "tls_not_after_timestamp_seconds",
            "When the certificate expires; 0 without TLS",
            self.tls.not_after.clone(),
        );

        let refused = Family::<ReasonLabel, Counter>::default();
        let because = |reason| refused.get_or_create_owned(&ReasonLabel { reason });
        self.proxy_protocol.untrusted = because("untrusted");
        self.proxy_protocol.missing = because("missing");
        self.proxy_protocol.invalid = because("invalid");
        self.proxy_protocol.incomplete = because("incomplete");
        self.proxy_protocol.timeout = because("timeout");
        at.register("proxy_protocol_refused", "Connections closed for lack of a PROXY header, by reason", refused);
        self
    }
}
