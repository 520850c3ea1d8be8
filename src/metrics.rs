//! The catalogue of metrics: every family with its unit and help, one struct per stage, handed in.

mod catalogue;
mod config;
mod durations;
mod exposition;
mod ingress;
mod process;
mod sink;
mod spool;

pub(crate) use catalogue::catalogue;
pub use catalogue::{Catalogue, Entry};
pub use config::ConfigMetrics;
pub use durations::Durations;
pub use exposition::Exposition;
pub use ingress::{IngressMetrics, LimitMetrics, ProxyProtocolMetrics, RejectedMetrics, SecretMetrics, TlsMetrics};
pub use sink::{DeadLetterMetrics, RetryMetrics, SinkMetrics};
pub use spool::{FOUND_BY, SpoolMetrics};

use crate::{logging, reconcile};
use catalogue::Families;
use parking_lot::Mutex;
use process::Process;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::sync::Arc;

/// One label, with its name.
pub type Label<V = &'static str> = [(&'static str, V); 1];

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
    sinks: Arc<Mutex<BTreeMap<String, SinkMetrics>>>,
}

impl Default for Metrics {
    fn default() -> Self {
        let (ingress, spool) = (IngressMetrics::default(), SpoolMetrics::default());
        let (config, reconcile) = (ConfigMetrics::default(), reconcile::Metrics::default());
        // Shown from the start, as the others are.
        crate::server::MALFORMED.iter().for_each(|(_, reason)| drop(ingress.limits.malformed(reason)));
        FOUND_BY.iter().for_each(|by| drop(spool.conversations(by)));
        let sinks = Arc::default();
        let fixed: Vec<Box<dyn Catalogue>> = vec![
            Box::new(ingress.clone()),
            Box::new(spool.clone()),
            Box::new(config.clone()),
            Box::new(reconcile.clone()),
        ];
        let families = Families { fixed, sinks: Arc::clone(&sinks) };
        let mut registry = Registry::default();
        let own = registry.sub_registry_with_prefix("cdrelay");
        let build = Family::<Label, Gauge>::default();
        build.get_or_create(&[("version", env!("CARGO_PKG_VERSION"))]).set(1);
        own.register("build_info", "The running version", build);
        own.register("log_lines_dropped", "Log lines dropped because nobody reads stderr", logging::dropped_lines());
        own.register_collector(Box::new(families));
        registry.register_collector(Box::new(Process::default()));
        Self { registry, ingress, spool, config, reconcile, sinks }
    }
}

impl Metrics {
    /// The metrics of the sink called `name`.
    pub fn sink(&self, name: &str) -> SinkMetrics {
        // Shown from the start, as the others are.
        self.spool.skipped(name);
        self.sinks.lock().entry(name.to_owned()).or_default().clone()
    }

    /// Shows a sink that was removed no longer.
    pub fn remove_sink(&self, name: &str) {
        self.spool.remove_sink(name);
        self.sinks.lock().remove(name);
    }

    /// All metrics as text.
    pub fn render(&self, exposition: Exposition) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        exposition.of_open_metrics(text)
    }
}
