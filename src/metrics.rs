//! The catalogue of metrics: every family with its unit and help, one struct per stage, handed in.

mod config;
mod durations;
mod exposition;
mod ingress;
mod process;
mod sink;
mod spool;

pub use config::ConfigMetrics;
pub use durations::Durations;
pub use exposition::Exposition;
pub use ingress::{
    IngressMetrics, LimitMetrics, ProxyProtocolMetrics, RejectedMetrics, SecretMetrics, StatusLabel, TlsMetrics,
};
pub use sink::{DeadLetterMetrics, RetryMetrics, SinkMetrics};
pub use spool::{FOUND_BY, SpoolMetrics};

use crate::reconcile;
use process::Process;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use sink::SinkFamilies;

/// All metrics of a bridge.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Of the ingress.
    pub ingress: IngressMetrics,
    /// Of the spool.
    pub spool: SpoolMetrics,
    /// Of the configuration.
    pub config: ConfigMetrics,
    /// Of reconciliations.
    pub reconcile: reconcile::Metrics,
    sinks: SinkFamilies,
}

/// `reason="missing"`
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// `cause="busy"`
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CauseLabel {
    cause: &'static str,
}

/// `sink="name"`
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SinkLabel {
    sink: String,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let own = registry.sub_registry_with_prefix("cdrelay");
        let build = Family::<[(&str, &str); 1], Gauge>::default();
        build.get_or_create(&[("version", env!("CARGO_PKG_VERSION"))]).set(1);
        own.register("build_info", "The running version", build);
        own.register(
            "log_lines_dropped",
            "Log lines dropped because nobody reads stderr",
            crate::logging::dropped_lines(),
        );
        let config = ConfigMetrics::default();
        config.register(own.sub_registry_with_prefix("config"));
        let (ingress, spool, sinks) = (IngressMetrics::default(), SpoolMetrics::default(), SinkFamilies::default());
        let ingress = ingress.register(own.sub_registry_with_prefix("ingress"), &spool);
        spool.register_events(own.sub_registry_with_prefix("event"));
        spool.register(own.sub_registry_with_prefix("spool"));
        sinks.register(own.sub_registry_with_prefix("sink"));
        let reconcile = reconcile::Metrics::default();
        reconcile.register(own.sub_registry_with_prefix("reconcile"));
        registry.register_collector(Box::new(Process::default()));
        Self { registry, ingress, spool, config, reconcile, sinks }
    }
}

impl Metrics {
    /// The metrics of the sink called `name`.
    pub fn sink(&self, name: &str) -> SinkMetrics {
        // Shown from the start, as the others are.
        self.spool.skipped(name);
        self.sinks.of(name)
    }

    /// Shows a sink that was removed no longer.
    pub fn remove_sink(&self, name: &str) {
        self.spool.remove_sink(name);
        self.sinks.remove(name);
    }

    /// All metrics as text.
    pub fn render(&self, exposition: Exposition) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        exposition.of_open_metrics(text)
    }
}
