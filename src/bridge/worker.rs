//! One sink at work: the dispatcher that delivers to it, and the tasks that probe its destination and measure its dead letters.

use super::RunError;
use crate::config::{Config, Sink as SinkConfig};
use crate::dead_letter::{self, DeadLetters};
use crate::dispatch::{self, DeliveryWatch, Dispatcher, Health, Parts};
use crate::metrics::Metrics;
use crate::redact;
use crate::route::{Route, RouteError};
use crate::sink::{SetupError, Sink};
use crate::spool::Spool;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// How often a destination is asked whether it is there, and how often when it is not or publishing fails.
const PROBE_UP: Duration = Duration::from_secs(10);
const PROBE_DOWN: Duration = Duration::from_secs(1);
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a new destination may take to be reached, and how often it is asked.
const CONNECT: Duration = Duration::from_secs(5);
const CONNECT_POLL: Duration = Duration::from_millis(20);

/// A sink that is built and does not deliver yet.
pub struct Prepared {
    pub(super) name: String,
    config: SinkConfig,
    route: Route,
    /// `None`: the connection of the sink that runs under this name is kept.
    pub(super) sink: Option<Arc<dyn Sink>>,
    /// Whether the destination was found to take messages; `None` if it was not asked.
    pub(super) probed: Option<Result<(), String>>,
}

impl Prepared {
    /// Compiles the route and makes the sink, which checks all settings and connects in the background; needs a tokio runtime.
    pub(super) fn build(name: &str, config: &SinkConfig) -> Result<Self, RunError> {
        let mut prepared = Self::keeping_connection(name, config)?;
        let built = config.destination.build(name, &prepared.route);
        prepared.sink = Some(built.map_err(|source| RunError::Sink { name: name.to_owned(), source })?);
        Ok(prepared)
    }

    /// Compiles the route alone.
    pub(super) fn keeping_connection(name: &str, config: &SinkConfig) -> Result<Self, RunError> {
        let route = Route::compile(&config.route, config.destination.dialect()).map_err(|error: RouteError| {
            RunError::Sink { name: name.to_owned(), source: SetupError(error.to_string()) }
        })?;
        Ok(Self { name: name.to_owned(), config: config.clone(), route, sink: None, probed: None })
    }

    /// Waits until a new destination takes messages. An error names the sink, and the cause.
    pub(super) async fn reach(&mut self) -> Result<(), String> {
        let Some(sink) = &self.sink else { return Ok(()) };
        let deadline = Instant::now() + CONNECT;
        loop {
            match probe_once(&**sink).await {
                Err(cause) if Instant::now() >= deadline => {
                    return Err(format!("`sinks.{}`: does not take messages: {cause}", self.name));
                }
                Err(_) => sleep(CONNECT_POLL).await,
                Ok(()) => {
                    self.probed = Some(Ok(()));
                    return Ok(());
                }
            }
        }
    }
}

/// A sink that delivers.
pub struct Worker {
    pub sink: Arc<dyn Sink>,
    pub health: Arc<Health>,
    /// Asks when records are settled.
    pub deliveries: DeliveryWatch,
    dead_letters: DeadLetters,
    stop: watch::Sender<bool>,
    dispatching: JoinSet<()>,
    background: JoinSet<()>,
}

impl Worker {
    /// Begins to deliver at the sink's cursor. `former` is the stopped worker of the same sink, if there was one.
    pub fn start(
        prepared: Prepared,
        former: Option<Self>,
        config: &Config,
        spool: &Arc<Spool>,
        metrics: &Metrics,
    ) -> Result<Self, RunError> {
        let Prepared { name, config: own, route, sink, probed } = prepared;
        let sink = sink.or(former.as_ref().map(|former| former.sink.clone())).ok_or(RunError::Defect)?;
        let health = Health::new(&name, own.dispatch.required);
        let last_probe = || former.as_ref().and_then(|former| former.health.last_probe());
        if let Some(result) = probed.or_else(last_probe) {
            health.probed(result);
        }
        let metrics = metrics.sink(&name);
        // Publishes that were dropped did not count themselves down.
        metrics.in_flight.set(0);
        metrics.redact_key_unusable.set(0);
        let dead_letters = match former {
            // A dead letter of a dropped publish may still be written: two stores must not append to one file.
            Some(former) => former.dead_letters,
            None => DeadLetters::new(&config.spool.path, &name, &config.dead_letters, metrics.dead_letters.clone()),
        };
        dead_letters.set_max_size(config.dead_letters.max_size);
        let redact_key = route.redact_key().map(|key| (key.clone(), name.clone(), metrics.redact_key_unusable.clone()));
        let (deliveries, requests) = dispatch::delivery_watch();
        let (stop, stopped) = watch::channel(false);
        let parts = Parts {
            name,
            config: own.dispatch,
            route,
            sink: sink.clone(),
            dead_letters: dead_letters.clone(),
            metrics,
            health: health.clone(),
            directory: config.spool.path.clone(),
        };
        // The spool has a cursor for every configured sink.
        let dispatcher = Dispatcher::new(spool.clone(), parts, requests, stopped).ok_or(RunError::Defect)?;
        let (mut dispatching, mut background) = (JoinSet::new(), JoinSet::new());
        dispatching.spawn(dispatcher.run());
        background.spawn(probe(sink.clone(), health.clone()));
        background.spawn(dead_letter::measure(dead_letters.clone()));
        if let Some((key, sink, unusable)) = redact_key {
            background.spawn(redact::watch(key, sink, unusable));
        }
        Ok(Self { sink, health, deliveries, dead_letters, stop, dispatching, background })
    }

    /// Resolves when one of the tasks ends by itself, which is a defect.
    pub async fn ended(&mut self) {
        tokio::select! {
            _ = self.dispatching.join_next() => {}
            _ = self.background.join_next() => {}
        }
    }

    /// Delivers nothing more. Publishes in flight may take until `deadline` to be confirmed; returns whether all were. The others are
    /// dropped, and their records stay in the spool.
    pub async fn stop(&mut self, deadline: Instant) -> bool {
        self.stop.send_replace(true);
        let all_done = async { while self.dispatching.join_next().await.is_some() {} };
        let confirmed = timeout_at(deadline, all_done).await.is_ok();
        self.dispatching.shutdown().await;
        self.background.shutdown().await;
        confirmed
    }
}

async fn probe(sink: Arc<dyn Sink>, health: Arc<Health>) {
    loop {
        let result = probe_once(&*sink).await;
        let up = result.is_ok();
        health.probed(result);
        sleep(PROBE_DOWN).await;
        if up {
            let _ = timeout(PROBE_UP - PROBE_DOWN, health.suspected()).await;
        }
    }
}

/// Whether the destination takes messages now, and why not.
async fn probe_once(sink: &dyn Sink) -> Result<(), String> {
    match timeout(PROBE_TIMEOUT, sink.probe()).await {
        Ok(result) => result.map_err(|failure| failure.to_string()),
        Err(_) => Err(format!("no answer within {} s", PROBE_TIMEOUT.as_secs())),
    }
}
