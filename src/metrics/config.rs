//! The metrics of the configuration.

use super::{Label, catalogue};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use std::time::{SystemTime, UNIX_EPOCH};

catalogue! {
    /// Which configuration runs, and whether it is the one in the files.
    ConfigMetrics {
        successful: Gauge = "config_last_reload_successful",
            "1 if the configuration that was read last is the one that runs";
        success_time: Gauge = "config_last_reload_success_timestamp_seconds",
            "When the running configuration was last found to be the one that was read, since 1970";
        info: Family<Label<String>, Gauge> = "config_info", "The configuration that runs: 1 for its hash";
    }
}

impl ConfigMetrics {
    /// The configuration with this hash was read, and runs.
    pub fn loaded(&self, hash: &str) {
        self.successful.set(1);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.success_time.set(now.as_secs() as i64);
        self.info.clear();
        self.info.get_or_create(&[("hash", hash.to_owned())]).set(1);
    }

    /// A configuration was read and refused.
    pub fn refused(&self) {
        self.successful.set(0);
    }
}
