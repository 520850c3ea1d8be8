//! Wires the stages and owns the order in which they start, change and stop: [`Bridge::start`] → [`Bridge::run`], with
//! [`Bridge::change`] for each reload → [`Bridge::stop`].

mod change;
mod drain;
mod front;
mod reload;
mod sinks;
mod worker;

pub use drain::{Left, drain};
pub use front::{FEW_FILES, open_file_limit};
pub use sinks::prepare;
pub use worker::Prepared;

use crate::admin::AdminService;
use crate::config::{Config, Shutdown, Sink as SinkConfig, Source};
use crate::control;
use crate::dead_letter::rejected::RejectedBodies;
use crate::ingress::tls::TlsError;
use crate::logging;
use crate::metrics::{LimitMetrics, Metrics};
use crate::reconcile::Reconciliations;
use crate::server::{Limits, Preamble, Settings, serve};
use crate::sink::SetupError;
use crate::spool::{OpenError, Spool, measure_free_space};
use front::{Front, Opened, Stages};
use futures_util::future::{join, join_all};
use reload::{Change, Reloader, Requests};
use sinks::Sinks;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, timeout, timeout_at};

/// Connections to the admin port at once. Probes and scrapers are few, and must get through when others connect all the time.
const ADMIN_CONNECTIONS: usize = 64;
const ADMIN_EVICTION_AGE: Duration = Duration::from_millis(100);
/// How long a stop waits for sinks that keep up to get the last events.
const LAST: Duration = Duration::from_secs(1);

/// The sockets of a bridge.
#[derive(Debug)]
pub struct Listeners {
    /// For webhooks.
    pub ingress: TcpListener,
    /// For probes and metrics.
    pub admin: TcpListener,
}

/// Why a bridge does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// An address cannot be listened on.
    #[error("`{key}`: cannot listen on {address}: {source}")]
    Listen {
        /// The setting.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
    /// The spool cannot be opened.
    #[error(transparent)]
    Spool(#[from] OpenError),
    /// A sink's settings are wrong.
    #[error("`sinks.{name}`: {source}")]
    Sink {
        /// The sink's name.
        name: String,
        /// The cause.
        source: SetupError,
    },
    /// The settings of the ingress are wrong, or a file of secrets cannot be read.
    #[error("{0}")]
    Ingress(String),
    /// The files of the ingress's TLS cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The files of a reconciliation cannot be used.
    #[error("{0}")]
    Reconcile(String),
    /// A defect: a task ended that never should.
    #[error("a part of the bridge stopped by itself; what was accepted is kept in the spool")]
    Defect,
}

impl Listeners {
    /// Listens on the configured addresses.
    pub async fn bind(config: &Config) -> Result<Self, RunError> {
        let bind = async |key, address| {
            TcpListener::bind(address).await.map_err(|source| RunError::Listen { key, address, source })
        };
        Ok(Self {
            ingress: bind("ingress.listen", config.ingress.listen).await?,
            admin: bind("admin.listen", config.admin.listen).await?,
        })
    }
}

/// Makes everything that a configuration names, and returns every problem with its origin. Needs a tokio runtime.
pub fn check(config: &Config) -> Vec<String> {
    let ingress = Opened::read(&config.ingress, &Metrics::default().ingress).err();
    let sinks = config.sinks.iter().filter_map(|(name, config)| Prepared::build(name, config).err());
    let located = |error: RunError| config.values.locate(&error.to_string());
    ingress.into_iter().chain(sinks).map(located).collect()
}

/// Connects every sink, and returns a problem for each whose destination does not take messages within seconds.
pub async fn check_destinations(config: &Config) -> Vec<String> {
    let reach = async |(name, sink): (&String, &SinkConfig)| match Prepared::build(name, sink) {
        Ok(mut prepared) => prepared.reach().await,
        Err(error) => Err(error.to_string()),
    };
    let reached = join_all(config.sinks.iter().map(reach)).await;
    reached.into_iter().filter_map(Result::err).map(|problem| config.values.locate(&problem)).collect()
}

/// Runs a bridge until `stop` resolves, then stops it in order. Undelivered events stay in the spool.
pub async fn run(config: Config, listeners: Listeners, stop: impl Future<Output = ()>) -> Result<(), RunError> {
    let (mut bridge, _reloading) = Bridge::start(config, listeners)?;
    let defect = bridge.run(stop).await;
    bridge.stop(defect).await
}

/// The same, and takes up changes of `config` where it was read from.
pub async fn run_reloading(
    source: Source,
    config: Config,
    listeners: Listeners,
    stop: impl Future<Output = ()>,
) -> Result<(), RunError> {
    let (mut bridge, Reloading { changes, requests }) = Bridge::start(config, listeners)?;
    let (running, healths) = (bridge.config.clone(), bridge.sinks.healths());
    let reloader = Reloader::new(source, running, bridge.spool.clone(), healths, bridge.metrics.clone(), changes);
    bridge.background.spawn(reloader.run(requests));
    let defect = bridge.run(stop).await;
    bridge.stop(defect).await
}

/// The ends that a [`Reloader`] gets.
struct Reloading {
    changes: mpsc::Sender<Change>,
    requests: Requests,
}

/// All stages of a bridge that runs.
struct Bridge {
    config: Config,
    spool: Arc<Spool>,
    metrics: Arc<Metrics>,
    sinks: Sinks,
    front: Front,
    rejected: Arc<RejectedBodies>,
    admin: Arc<AdminService>,
    webhooks: JoinHandle<()>,
    admin_server: JoinHandle<()>,
    stop_serving: watch::Sender<bool>,
    stop_admin: watch::Sender<bool>,
    background: JoinSet<()>,
    changes: mpsc::Receiver<Change>,
}

impl Bridge {
    /// Checks everything, opens the spool, and starts sinks first, listeners last.
    fn start(config: Config, listeners: Listeners) -> Result<(Self, Reloading), RunError> {
        let metrics = Arc::new(Metrics::default());
        metrics.config.loaded(&config.values.hash());
        let prepared = prepare(&config)?;
        let opened = Opened::read(&config.ingress, &metrics.ingress)?;
        let names: Vec<&str> = config.sinks.keys().map(String::as_str).collect();
        let spool = Arc::new(Spool::open(&config.spool, &names, metrics.spool.clone())?);
        let rejected =
            RejectedBodies::start(&config.ingress.rejected, &config.spool.path, metrics.ingress.rejected.clone());
        let rejected = Arc::new(rejected.map_err(OpenError::Io)?);

        let sinks = Sinks::start(prepared, &config, &spool, &metrics)?;

        let mut background = JoinSet::new();
        background.spawn(measure_free_space(config.spool.path.clone(), metrics.spool.free_bytes.clone()));
        let reconciliations = Reconciliations::open(&config.reconcile, spool.clone(), metrics.reconcile.clone());
        let reconciliations = Arc::new(reconciliations.map_err(RunError::Reconcile)?);
        background.spawn(reconciliations.clone().repeat());
        let (reloads, requests) = mpsc::channel(1);
        match control::listen(&config.spool.path) {
            Ok(listener) => {
                let commands = control::serve(listener, spool.clone(), sinks.healths(), reloads, reconciliations);
                background.spawn(commands);
            }
            Err(error) => tracing::warn!(%error, "commands cannot reach this bridge through its spool"),
        }

        let (stop_serving, serving) = watch::channel(false);
        let (stop_admin, admin_serving) = watch::channel(false);
        let stages = Stages {
            spool: spool.clone(),
            rejected: rejected.clone(),
            metrics: metrics.ingress.clone(),
            deliveries: sinks.deliveries(),
            stop: serving.clone(),
        };
        let front = Front::new(opened, &config.ingress, stages);
        let admin = Arc::new(AdminService::new(metrics.clone(), spool.clone(), sinks.healths()));
        for (name, listener) in [("ingress listening", &listeners.ingress), ("admin listening", &listeners.admin)] {
            let address = listener.local_addr().map_or_else(|_| "unknown".to_owned(), |address| address.to_string());
            tracing::info!(address, "{name}");
        }
        let webhooks = tokio::spawn(serve(listeners.ingress, front.settings(), serving, front.service()));
        let admin_settings = watch::channel(admin_settings(&config)).1;
        let admin_server = tokio::spawn(serve(listeners.admin, admin_settings, admin_serving, admin.clone()));
        let (change_sender, changes) = mpsc::channel(1);
        let bridge = Self {
            config,
            spool,
            metrics,
            sinks,
            front,
            rejected,
            admin,
            webhooks,
            admin_server,
            stop_serving,
            stop_admin,
            background,
            changes,
        };
        Ok((bridge, Reloading { changes: change_sender, requests }))
    }

    /// Works and changes until `stop` resolves, which is no defect, or a task ends by itself, which is one.
    async fn run(&mut self, stop: impl Future<Output = ()>) -> bool {
        let mut stop = std::pin::pin!(stop);
        loop {
            let change = tokio::select! {
                () = &mut stop => return false,
                () = self.sinks.ended() => return true,
                () = self.front.ended() => return true,
                _ = &mut self.webhooks => return true,
                _ = self.background.join_next() => return true,
                () = self.spool.abandoned() => return true,
                Some(change) = self.changes.recv() => change,
            };
            if self.change(change).await.is_err() {
                return true;
            }
        }
    }

    /// Makes a change that was built and checked.
    async fn change(&mut self, change: Change) -> Result<(), RunError> {
        let Change { config, ingress, sinks, removed, done } = change;
        let changed = self.sinks.change(sinks, &removed, &config).await?;
        if changed.is_ok() {
            if let Some(opened) = ingress {
                self.front.replace(opened, &config.ingress);
            }
            logging::set_level(&config.log.level);
            self.config = config;
        }
        // Who asked for it may have gone.
        let _ = done.send(changed);
        Ok(())
    }

    /// Stops the stages in the order of the flow.
    async fn stop(self, defect: bool) -> Result<(), RunError> {
        let Self { config, spool, mut sinks, front, rejected, admin, mut webhooks, admin_server, .. } = self;
        let (stop_serving, stop_admin, mut background) = (self.stop_serving, self.stop_admin, self.background);
        let healths = sinks.healths().borrow().clone();
        let Shutdown { drain_delay, grace_period: grace, drain } = config.shutdown;
        tracing::info!("stopping");
        admin.stop();
        if !defect {
            tokio::time::sleep(drain_delay).await;
        }
        let deadline = Instant::now() + grace;
        stop_serving.send_replace(true);
        // Requests may take all of the grace period. Should they need the end of it, publishes stop without them: what is with a
        // destination by then needs that time for its confirmation, and the sinks for closing.
        let mut served = webhooks.is_finished() || timeout_at(deadline - grace / 4, &mut webhooks).await.is_ok();
        let draining = Instant::now();
        if !defect {
            let _ = timeout(drain, sinks::drained(&spool, &healths)).await;
        }
        let deadline = deadline + draining.elapsed();
        // What came last is stored, and its sinks may not have seen it yet.
        let _ = timeout(LAST.min(grace / 10), sinks::caught_up(&spool, &healths)).await;
        let finish_requests = async {
            served = served || timeout_at(deadline, &mut webhooks).await.is_ok();
        };
        let finish_publishes = async {
            sinks.stop(deadline, grace / 10).await;
            background.shutdown().await;
            drop(front);
        };
        join(finish_requests, finish_publishes).await;
        if !served {
            tracing::warn!("requests were cut off at the end of the grace period");
            webhooks.abort();
        }
        stop_admin.send_replace(true);
        let _ = timeout(Duration::from_millis(100), admin_server).await;
        let status = spool.status();
        rejected.close();
        spool.close();
        for health in &healths {
            match health.undelivered(&status) {
                0 => {}
                undelivered => {
                    tracing::info!(sink = health.sink(), undelivered, "records wait in the spool for this sink");
                }
            }
        }
        tracing::info!("stopped");
        if defect { Err(RunError::Defect) } else { Ok(()) }
    }
}

/// The admin port takes few connections, and makes room sooner.
fn admin_settings(config: &Config) -> Settings {
    let of_files = |limit: u64| ADMIN_CONNECTIONS.min(usize::try_from(limit).unwrap_or(usize::MAX) / 8).max(1);
    let limits = Limits {
        max_connections: open_file_limit().map_or(ADMIN_CONNECTIONS, of_files),
        max_connections_per_peer: None,
        eviction_age: ADMIN_EVICTION_AGE,
        ..config.ingress.limits(LimitMetrics::default())
    };
    Settings { limits, preamble: Preamble::default() }
}
