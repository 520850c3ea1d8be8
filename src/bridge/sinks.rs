//! The running sinks of a bridge: for each one a dispatcher, and a probe of its destination.

use super::RunError;
use crate::config::{Config, Sink as SinkConfig};
use crate::dead_letter::{self, DeadLetters};
use crate::dispatch::{self, DeliveryWatch, Dispatcher, Health, Parts};
use crate::ingress::Ack;
use crate::metrics::Metrics;
use crate::redact;
use crate::route::{Route, RouteError};
use crate::sink::{SetupError, Sink};
use crate::spool::Spool;
use futures_util::future::join_all;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

/// How often a destination is asked whether it is there, and how often when it is not or publishing fails.
const PROBE_UP: Duration = Duration::from_secs(10);
const PROBE_DOWN: Duration = Duration::from_secs(1);
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long sinks may take to disconnect.
const CLOSE: Duration = Duration::from_secs(2);
/// How often a stop or a drain looks at the cursors.
const CURSOR_POLL: Duration = Duration::from_millis(5);

/// A sink with its compiled route.
pub struct Prepared {
    name: String,
    config: SinkConfig,
    route: Route,
    sink: Arc<dyn Sink>,
}

/// Makes the sinks, which checks all their settings. They connect in the background; needs a tokio runtime.
pub fn prepare(config: &Config) -> Result<Vec<Prepared>, RunError> {
    let prepare = |(name, config): (&String, &SinkConfig)| {
        let failed = |source| RunError::Sink { name: name.clone(), source };
        let route = Route::compile(&config.route, config.destination.dialect());
        let route = route.map_err(|error: RouteError| failed(SetupError(error.to_string())))?;
        let sink = config.destination.build(name, &route).map_err(failed)?;
        Ok(Prepared { name: name.clone(), config: config.clone(), route, sink })
    };
    config.sinks.iter().map(prepare).collect()
}

/// The sinks of a bridge while they deliver.
pub(super) struct Sinks {
    healths: Vec<Arc<Health>>,
    delivery_watches: Vec<DeliveryWatch>,
    destinations: Vec<Arc<dyn Sink>>,
    dispatchers: JoinSet<()>,
    background: JoinSet<()>,
    stop: watch::Sender<bool>,
}

impl Sinks {
    /// Delivers from `spool`, which was opened with all of these sinks.
    pub fn start(
        prepared: Vec<Prepared>,
        config: &Config,
        spool: &Arc<Spool>,
        metrics: &Metrics,
    ) -> Result<Self, RunError> {
        let mut sinks = Self {
            healths: Vec::new(),
            delivery_watches: Vec::new(),
            destinations: Vec::new(),
            dispatchers: JoinSet::new(),
            background: JoinSet::new(),
            stop: watch::Sender::new(false),
        };
        let mut all_dead_letters = Vec::new();
        for Prepared { name, config: sink_config, route, sink } in prepared {
            let health = Health::new(&name, sink_config.dispatch.required);
            sinks.healths.push(health.clone());
            sinks.background.spawn(probe(sink.clone(), health.clone()));
            if let Some(key) = route.redact_key() {
                let unusable = metrics.sink(&name).redact_key_unusable;
                sinks.background.spawn(redact::watch(key.clone(), name.clone(), unusable));
            }
            sinks.destinations.push(sink.clone());
            let mut deliveries = None;
            if config.ingress.ack == Ack::Delivered && sink_config.dispatch.required {
                let (watch, requests) = dispatch::delivery_watch();
                sinks.delivery_watches.push(watch);
                deliveries = Some(requests);
            }
            let letters = metrics.sink(&name).dead_letters;
            let dead_letters = DeadLetters::new(&config.spool.path, &name, &config.dead_letters, letters);
            all_dead_letters.push(dead_letters.clone());
            let parts = Parts {
                dead_letters,
                metrics: metrics.sink(&name),
                config: sink_config.dispatch,
                name,
                route,
                sink,
                health,
                deliveries,
            };
            let dispatcher = Dispatcher::new(spool.clone(), parts, sinks.stop.subscribe()).ok_or(RunError::Defect)?;
            sinks.dispatchers.spawn(dispatcher.run());
        }
        sinks.background.spawn(dead_letter::measure(all_dead_letters));
        Ok(sinks)
    }

    /// The health of each.
    pub fn healths(&self) -> &[Arc<Health>] {
        &self.healths
    }

    /// With `ack = "delivered"`, tells of each required sink when it has settled a record.
    pub fn take_delivery_watches(&mut self) -> Vec<DeliveryWatch> {
        std::mem::take(&mut self.delivery_watches)
    }

    /// Resolves when a task has ended, which none does by itself.
    pub async fn ended(&mut self) {
        tokio::select! {
            _ = self.dispatchers.join_next() => {}
            _ = self.background.join_next() => {}
        }
    }

    /// Lets publishes in flight finish until `to_close` before `deadline`, then disconnects.
    pub async fn stop(&mut self, deadline: Instant, to_close: Duration) {
        self.stop.send_replace(true);
        let all_done = async { while self.dispatchers.join_next().await.is_some() {} };
        if timeout_at(deadline - to_close, all_done).await.is_err() {
            tracing::warn!("publishes in flight were not confirmed in the grace period; they will be sent again");
            self.dispatchers.shutdown().await;
        }
        self.background.shutdown().await;
        let close = join_all(self.destinations.iter().map(|sink| sink.close()));
        if timeout_at(deadline.min(Instant::now() + CLOSE), close).await.is_err() {
            tracing::warn!("a sink took too long to close");
        }
    }
}

/// Resolves when every sink has settled all that is stored, whether or not it takes messages now.
pub(super) async fn drained(spool: &Spool, sinks: &[Arc<Health>]) {
    while sinks.iter().any(|sink| is_behind(spool, sink)) {
        tokio::time::sleep(CURSOR_POLL).await;
    }
}

/// Resolves when every sink that takes messages has settled all that is stored.
pub(super) async fn caught_up(spool: &Spool, sinks: &[Arc<Health>]) {
    while sinks.iter().any(|sink| sink.check().is_ok() && is_behind(spool, sink)) {
        tokio::time::sleep(CURSOR_POLL).await;
    }
}

fn is_behind(spool: &Spool, sink: &Health) -> bool {
    let position = spool.cursor(sink.sink()).map(|cursor| cursor.position());
    position.is_some_and(|position| position < spool.status().end)
}

async fn probe(sink: Arc<dyn Sink>, health: Arc<Health>) {
    loop {
        let result = match timeout(PROBE_TIMEOUT, sink.probe()).await {
            Ok(result) => result.map_err(|failure| failure.to_string()),
            Err(_) => Err(format!("no answer within {} s", PROBE_TIMEOUT.as_secs())),
        };
        let up = result.is_ok();
        health.probed(result);
        tokio::time::sleep(PROBE_DOWN).await;
        if up {
            let _ = timeout(PROBE_UP - PROBE_DOWN, health.suspected()).await;
        }
    }
}
