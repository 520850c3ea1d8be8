//! Watches the partitions, and replaces a producer that is of no more use: after a fatal error, when it hangs, and when a file it was made
//! from has changed.

use super::config::Config;
use super::partition::Condition;
use super::producer::Producers;
use super::topics::Topics;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often partitions are checked.
const TICK: Duration = Duration::from_millis(500);
/// How often producer and files are checked: an error that greets every new producer cannot keep the process busy.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// How often a new producer is tried while the whole cluster is silent.
const TRIAL_INTERVAL: Duration = Duration::from_secs(10);
/// How long a producer may go on with messages it has sent: librdkafka gives up the connection after `socket.timeout.ms`.
const GRACE: Duration = Duration::from_secs(35);

/// Runs until it is dropped. `files` is the [`fingerprint`] of the files that the producer in use was made from.
pub(super) async fn run(mut files: u64, producers: Arc<Producers>, topics: Arc<Topics>) {
    let sink = &producers.status.sink;
    let mut ticks = tokio::time::interval(TICK);
    let (mut checked_at, mut tried_at, mut worst, mut reported) = (Instant::now(), Instant::now(), None, None);
    loop {
        ticks.tick().await;
        worst = worst.max(topics.watch());
        if checked_at.elapsed() < CHECK_INTERVAL {
            continue;
        }
        checked_at = Instant::now();
        let made_from = Arc::clone(&producers);
        let read = tokio::task::spawn_blocking(move || fingerprint(&made_from.settings));
        let Ok(found) = read.await else { continue };
        let (fatal, worst) = (producers.fatal_error(), std::mem::take(&mut worst));
        let cause = match (&fatal, &worst) {
            // An idempotent producer that cannot say whether a broker has a message declares itself unusable.
            (Some(reason), _) => format!("it failed for good: {reason}"),
            (None, Some((Condition::Hanging, _))) => "it delivers nothing although the cluster answers".to_owned(),
            (None, _) if found != files => "its files have changed".to_owned(),
            // librdkafka can keep to addresses that are no longer the cluster's, such as an `advertised.listeners` that was wrong
            // (librdkafka#5088).
            (None, Some((Condition::Silent, topic))) if tried_at.elapsed() >= TRIAL_INTERVAL => {
                tried_at = Instant::now();
                if !producers.would_reach(Arc::clone(topic)).await {
                    continue;
                }
                "it gets no answer although the cluster answers a new one".to_owned()
            }
            _ => continue,
        };
        match producers.replace(if fatal.is_some() { Duration::ZERO } else { GRACE }).await {
            Ok(()) => {
                // Files change by intention, all else is a fault.
                match fatal.is_none() && found != files {
                    true => tracing::info!(sink, cause, "kafka producer replaced"),
                    false => tracing::warn!(sink, cause, "kafka producer replaced"),
                }
                files = found;
            }
            Err(error) if reported != Some(found) => {
                reported = Some(found);
                tracing::error!(sink, cause, %error, "kafka producer cannot be replaced");
            }
            Err(_) => {}
        }
    }
}

/// Changes with the content of any file. Blocks.
pub(super) fn fingerprint(settings: &Config) -> u64 {
    let mut hasher = DefaultHasher::new();
    for file in settings.files() {
        std::fs::read(file).ok().hash(&mut hasher);
    }
    hasher.finish()
}
