//! Handing events back to the spool: through the running bridge, or directly if none runs.

use super::{CommandError, Location};
use crate::control::{self, Again, Outcome};
use crate::metrics::Metrics;
use crate::spool::{OpenError, Spool};
use std::io;

/// Stores `events` for the sink called `target` and tells how far that went.
pub fn publish_again(location: &Location, target: &str, events: &[Again]) -> Result<Outcome, CommandError> {
    let spool = location.spool()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        if let Some(outcome) = control::send(&spool, target, events).await? {
            return Ok(outcome);
        }
        let config = location.config()?;
        let sinks: Vec<&str> = config.sinks.keys().map(String::as_str).collect();
        let mut spool_config = config.spool.clone();
        spool_config.path = spool;
        let spool = Spool::open(&spool_config, &sinks, Metrics::default().spool)
            .map_err(|error: OpenError| io::Error::other(error))?;
        let stored = control::store(&spool, target, events.to_vec()).await;
        spool.close();
        Ok(match stored {
            Ok(()) => Outcome { stored: events.len(), error: None },
            Err(error) => Outcome { stored: 0, error: Some(error.to_string()) },
        })
    })
}
