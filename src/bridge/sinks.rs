//! The running sinks of a bridge.

use super::RunError;
use super::worker::{Prepared, Worker};
use crate::config::Config;
use crate::dispatch::{DeliveryWatch, Health, Healths};
use crate::metrics::Metrics;
use crate::sink::Sink;
use crate::spool::Spool;
use futures_util::future::{join_all, select_all};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout_at};

/// How long sinks may take to disconnect.
const CLOSE: Duration = Duration::from_secs(2);
/// How long publishes in flight may take when a reload changes their sink.
const HANDOVER: Duration = Duration::from_secs(3);
/// How often a stop or a drain looks at the cursors.
const CURSOR_POLL: Duration = Duration::from_millis(5);

/// Makes the sinks, which checks all their settings. They connect in the background; needs a tokio runtime.
pub fn prepare(config: &Config) -> Result<Vec<Prepared>, RunError> {
    config.sinks.iter().map(|(name, config)| Prepared::build(name, config)).collect()
}

/// The sinks of a bridge while they deliver.
pub struct Sinks {
    spool: Arc<Spool>,
    metrics: Arc<Metrics>,
    workers: BTreeMap<String, Worker>,
    healths: watch::Sender<Vec<Arc<Health>>>,
    deliveries: watch::Sender<Vec<DeliveryWatch>>,
}

impl Sinks {
    /// Delivers from `spool`, which was opened with all of these sinks.
    pub fn start(
        prepared: Vec<Prepared>,
        config: &Config,
        spool: &Arc<Spool>,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, RunError> {
        let mut sinks = Self {
            spool: spool.clone(),
            metrics: metrics.clone(),
            workers: BTreeMap::new(),
            healths: watch::Sender::default(),
            deliveries: watch::Sender::default(),
        };
        sinks.begin(prepared, BTreeMap::new(), config)?;
        Ok(sinks)
    }

    /// The health of each.
    pub fn healths(&self) -> Healths {
        self.healths.subscribe()
    }

    /// Tell of the required sinks when they have settled a record.
    pub fn deliveries(&self) -> watch::Receiver<Vec<DeliveryWatch>> {
        self.deliveries.subscribe()
    }

    /// Resolves when a task has ended, which none does by itself.
    pub async fn ended(&mut self) {
        select_all(self.workers.values_mut().map(|worker| Box::pin(worker.ended()))).await;
    }

    /// Adds, replaces, adjusts and removes sinks. One that differs is stopped, and begins again at its cursor after that: what its
    /// destination has not acknowledged is sent again before anything behind it, so that order within a conversation holds. `Err` of the
    /// inner result: the spool cannot keep a position for a new sink, and nothing has changed.
    pub async fn change(
        &mut self,
        prepared: Vec<Prepared>,
        removed: &[String],
        config: &Config,
    ) -> Result<Result<(), String>, RunError> {
        let names: Vec<String> = prepared.iter().map(|prepared| prepared.name.clone()).collect();
        let added = names.iter().filter(|name| !self.workers.contains_key(*name));
        if let Err(problem) = self.add_cursors(added.cloned().collect()).await {
            return Ok(Err(problem));
        }
        let names = names.iter().chain(removed);
        let mut former: BTreeMap<_, _> = names.filter_map(|name| self.workers.remove_entry(name)).collect();
        let deadline = Instant::now() + HANDOVER;
        stop(
            former.values_mut(),
            deadline,
            "publishes in flight were not confirmed in time; a changed sink sends them again",
        )
        .await;
        let keeps_connection = |name: &String| prepared.iter().any(|new| new.name == *name && new.sink.is_none());
        close(
            former.iter().filter(|(name, _)| !keeps_connection(name)).map(|(_, worker)| &worker.sink),
            deadline + CLOSE,
        )
        .await;
        self.begin(prepared, former, config)?;
        for name in removed {
            self.forget(name).await;
        }
        Ok(Ok(()))
    }

    /// Lets publishes in flight finish until `to_close` before `deadline`, then disconnects.
    pub async fn stop(&mut self, deadline: Instant, to_close: Duration) {
        let late = "publishes in flight were not confirmed in the grace period; they will be sent again";
        stop(self.workers.values_mut(), deadline - to_close, late).await;
        close(self.workers.values().map(|worker| &worker.sink), deadline.min(Instant::now() + CLOSE)).await;
    }

    /// Starts workers, and tells of all that run.
    fn begin(
        &mut self,
        prepared: Vec<Prepared>,
        mut former: BTreeMap<String, Worker>,
        config: &Config,
    ) -> Result<(), RunError> {
        for prepared in prepared {
            let name = prepared.name.clone();
            let worker = Worker::start(prepared, former.remove(&name), config, &self.spool, &self.metrics)?;
            self.workers.insert(name, worker);
        }
        self.healths.send_replace(self.workers.values().map(|worker| worker.health.clone()).collect());
        let required = self.workers.values().filter(|worker| worker.health.required());
        self.deliveries.send_replace(required.map(|worker| worker.deliveries.clone()).collect());
        Ok(())
    }

    /// Has the spool keep records for these sinks from now on; for none of them if that fails.
    async fn add_cursors(&self, names: Vec<String>) -> Result<(), String> {
        let spool = self.spool.clone();
        let added = spawn_blocking(move || {
            let add = |name: &String| spool.add_sink(name).map_err(|error| format!("`sinks.{name}`: spool: {error}"));
            names.iter().try_for_each(add).inspect_err(|_| {
                let _ = names.iter().try_for_each(|name| spool.remove_sink(name));
            })
        });
        added.await.unwrap_or_else(|error| Err(error.to_string()))
    }

    /// Keeps no more records for a sink that was removed.
    async fn forget(&self, name: &str) {
        let end = self.spool.status().end;
        let undelivered = self.spool.cursor(name).map_or(0, |cursor| end.saturating_sub(cursor.position()));
        tracing::info!(sink = name, undelivered, "sink removed; what is undelivered to it is given up");
        self.metrics.remove_sink(name);
        let (spool, sink) = (self.spool.clone(), name.to_owned());
        if let Ok(Err(error)) = spawn_blocking(move || spool.remove_sink(&sink)).await {
            tracing::warn!(sink = name, %error, "the position of a removed sink was not kept; it would begin earlier if it came back");
        }
    }
}

/// Stops workers, all of them at once.
async fn stop(workers: impl Iterator<Item = &mut Worker>, deadline: Instant, late: &str) {
    if join_all(workers.map(|worker| worker.stop(deadline))).await.contains(&false) {
        tracing::warn!("{late}");
    }
}

/// Disconnects sinks, all of them at once.
async fn close(sinks: impl Iterator<Item = &Arc<dyn Sink>>, deadline: Instant) {
    if timeout_at(deadline, join_all(sinks.map(|sink| sink.close()))).await.is_err() {
        tracing::warn!("a sink took too long to close");
    }
}

/// Resolves when every sink has settled all that is stored, whether or not it takes messages now.
pub async fn drained(spool: &Spool, sinks: &[Arc<Health>]) {
    while sinks.iter().any(|sink| is_behind(spool, sink)) {
        tokio::time::sleep(CURSOR_POLL).await;
    }
}

/// Resolves when every sink that takes messages has settled all that is stored.
pub async fn caught_up(spool: &Spool, sinks: &[Arc<Health>]) {
    while sinks.iter().any(|sink| sink.check().is_ok() && is_behind(spool, sink)) {
        tokio::time::sleep(CURSOR_POLL).await;
    }
}

fn is_behind(spool: &Spool, sink: &Health) -> bool {
    let position = spool.cursor(sink.sink()).map(|cursor| cursor.position());
    position.is_some_and(|position| position < spool.status().end)
}
