//! The metrics of the ingress.

use super::{Durations, Label, catalogue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

catalogue! {
    /// Counts requests at the ingress.
    IngressMetrics {
        requests: Family<Label<u16>, Counter> = "ingress_requests", "Requests by HTTP status";
        in_flight: Gauge = "ingress_requests_in_flight", "Requests being read, stored or answered";
        acknowledgements: Durations = "ingress_acknowledgement_duration_seconds",
            "Time from the header of a request to its 2xx";
        up: Gauge = "ingress_up", "1 if webhooks can be stored";
        unauthorized: Family<Label<String>, Counter> = "ingress_unauthorized", "Requests without the right credentials";
        ..rejected: RejectedMetrics;
        ..secrets: SecretMetrics;
        ..tls: TlsMetrics;
        ..proxy_protocol: ProxyProtocolMetrics;
        ..limits: LimitMetrics;
    }
}

catalogue! {
    /// Counts requests and connections that a server refuses for others' sake.
    LimitMetrics {
        malformed: Family<Label, Counter> = "ingress_malformed_requests", "Requests that are no valid HTTP, by reason";
        "ingress_limited" by "limit", "Connections and requests refused or ended for others, by limit":
            connections = "connections",
            connections_per_peer = "connections_per_peer",
            requests = "requests",
            body_time = "body_time";
    }
}

catalogue! {
    /// Counts how files of secrets are read again.
    SecretMetrics {
        reloads: Counter = "ingress_secret_reloads", "Files of secrets whose new content is valid";
        failures: Counter = "ingress_secret_failures", "Files of secrets that could not be read again";
        unusable: Gauge = "ingress_secret_files_unusable", "Files of secrets whose present content cannot be used";
    }
}

catalogue! {
    /// Counts TLS handshakes, and changes of the certificate.
    TlsMetrics {
        unusable: Gauge = "ingress_tls_files_unusable", "1 if the present files of the certificate cannot be used";
        not_after: Gauge = "ingress_tls_not_after_timestamp_seconds", "When the certificate expires; 0 without TLS";
        "ingress_tls_handshakes" by "result", "TLS handshakes by result": succeeded = "ok", failed = "failed";
        "ingress_tls_reloads" by "result", "Changes of the files of the certificate, by whether they can be used":
            reloaded = "ok",
            reload_failed = "failed";
    }
}

catalogue! {
    /// Counts connections that were closed since they did not begin as the PROXY protocol demands.
    ProxyProtocolMetrics {
        "ingress_proxy_protocol_refused" by "reason", "Connections closed for lack of a PROXY header, by reason":
            untrusted = "untrusted",
            missing = "missing",
            invalid = "invalid",
            incomplete = "incomplete",
            timeout = "timeout";
    }
}

catalogue! {
    /// Counts bodies that could not be decoded. They are lost if they come faster than they can be written (`busy`), exceed the bound by
    /// themselves, are refused by the disk, or make room for younger ones before they were replayed (`oldest`).
    RejectedMetrics {
        kept: Counter = "ingress_rejected_kept", "Bodies that could not be decoded, kept";
        "ingress_rejected_dropped" by "cause", "Bodies that could not be decoded and are lost, by cause":
            busy = "busy",
            too_large = "too_large",
            failed = "disk",
            oldest = "oldest";
    }
}

impl LimitMetrics {
    /// Requests that are no HTTP, by reason.
    pub fn malformed(&self, reason: &'static str) -> Counter {
        self.malformed.get_or_create_owned(&[("reason", reason)])
    }
}

impl IngressMetrics {
    /// Requests by this route without the right credentials.
    pub fn unauthorized(&self, ingress: &str) -> Counter {
        self.unauthorized.get_or_create_owned(&[("ingress", ingress.to_owned())])
    }
}
