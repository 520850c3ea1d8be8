//! Delivers a spool that no bridge serves any more: the sinks of a bridge, without its ingress.

use super::RunError;
use super::sinks::{self, Sinks};
use crate::config::Config;
use crate::dispatch::Health;
use crate::metrics::Metrics;
use crate::spool::Spool;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How often the log says how much is left.
const PROGRESS: Duration = Duration::from_secs(10);

/// How far a drain has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// For each sink: its name, the records that are not settled, and why it takes no messages, if it does not.
    pub sinks: Vec<(String, u64, Option<String>)>,
    /// Records that could not be read.
    pub damaged: u64,
}

/// Delivers until every sink has settled everything in the spool, `within` is over, or `stop` resolves.
pub async fn drain(config: &Config, within: Duration, stop: impl Future<Output = ()>) -> Result<Left, RunError> {
    let metrics = Arc::new(Metrics::default());
    let prepared = sinks::prepare(config)?;
    let names: Vec<&str> = config.sinks.keys().map(String::as_str).collect();
    let spool = Arc::new(Spool::open(&config.spool, &names, metrics.spool.clone())?);
    let mut sinks = Sinks::start(prepared, config, &spool, &metrics)?;
    let healths = sinks.healths().borrow().clone();
    let defect = tokio::select! {
        () = sinks::drained(&spool, &healths) => false,
        () = sleep(within) => false,
        () = stop => false,
        () = tell(&spool, &healths) => false,
        () = sinks.ended() => true,
        () = spool.abandoned() => true,
    };
    // Closing the sinks changes what they say of themselves.
    let causes: Vec<_> = healths.iter().map(|sink| sink.check().err()).collect();
    let grace = config.shutdown.grace_period;
    sinks.stop(Instant::now() + grace, grace / 10).await;
    let status = spool.status();
    spool.close();
    if defect {
        return Err(RunError::Defect);
    }
    let left = healths.iter().zip(causes);
    let sinks = left.map(|(sink, cause)| (sink.sink().to_owned(), sink.undelivered(&status), cause)).collect();
    Ok(Left { sinks, damaged: metrics.spool.damaged_records.get() })
}

/// Logs from time to time how much is left. Never resolves.
async fn tell(spool: &Spool, sinks: &[Arc<Health>]) {
    loop {
        sleep(PROGRESS).await;
        for sink in sinks {
            tracing::info!(sink = sink.sink(), undelivered = sink.undelivered(&spool.status()), "draining");
        }
    }
}
