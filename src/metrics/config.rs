//! The metrics of the configuration.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use std::time::{SystemTime, UNIX_EPOCH};

/// Which configuration runs, and whether it is the one in the files.
#[derive(Clone, Debug, Default)]
pub struct ConfigMetrics {
    successful: Gauge,
    success_time: Gauge,
    info: Family<HashLabel, Gauge>,
}

/// `hash="…"`
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HashLabel {
    hash: String,
}

impl ConfigMetrics {
    pub(super) fn register(&self, at: &mut Registry) {
        at.register(
            "last_reload_successful",
            "1 if the configuration that was read last is the one that runs",
            self.successful.clone(),
        );
        at.register_with_unit(
            "last_reload_success_timestamp",
            "When the running configuration was last found to be the one that was read, since 1970",
            Unit::Seconds,
            self.success_time.clone(),
        );
        at.register("info", "The configuration that runs: 1 for its hash", self.info.clone());
    }

    /// The configuration with this hash was read, and runs.
    pub fn loaded(&self, hash: &str) {
        self.successful.set(1);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.success_time.set(now.as_secs() as i64);
        self.info.clear();
        self.info.get_or_create(&HashLabel { hash: hash.to_owned() }).set(1);
    }

    /// A configuration was read and refused.
    pub fn refused(&self) {
        self.successful.set(0);
    }
}
