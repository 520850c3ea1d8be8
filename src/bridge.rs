//! Wires the stages and owns the order in which they start and stop.

use crate::admin::AdminService;
use crate::config::{Config, Shutdown, Sink as SinkConfig};
use crate::control;
use crate::dead_letter::rejected::RejectedBodies;
use crate::dead_letter::{self, DeadLetters};
use crate::dispatch::{self, Dispatcher, Health, Parts};
use crate::ingress::auth;
use crate::ingress::routes::Routes;
use crate::ingress::tls::{self, TlsError};
use crate::ingress::{Ack, Delivery, Ingress};
use crate::metrics::{LimitMetrics, Metrics};
use crate::route::{Route, RouteError};
use crate::server::{Limits, Preamble, ProxyProtocol, Tls, serve};
use crate::sink::{SetupError, Sink};
use crate::spool::{OpenError, Spool, measure_free_space};
use futures_util::future::{join, join_all};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

/// How often a destination is asked whether it is there, and how often when it is not or publishing fails.
const PROBE_UP: Duration = Duration::from_secs(10);
const PROBE_DOWN: Duration = Duration::from_secs(1);
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections to the admin port at once. Probes and scrapers are few, and must get through when others connect all the time.
const ADMIN_CONNECTIONS: usize = 64;
const ADMIN_EVICTION_AGE: Duration = Duration::from_millis(100);
/// How long a stop waits for sinks that keep up to get the last events.
const LAST: Duration = Duration::from_secs(1);
/// How long sinks may take to disconnect.
const CLOSE: Duration = Duration::from_secs(2);

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

/// A sink with its compiled route.
pub struct Prepared {
    name: String,
    config: SinkConfig,
    route: Route,
    sink: Arc<dyn Sink>,
}

/// The warning when open files limit `max_connections`.
pub const FEW_FILES: &str =
    "the limit of open files leaves fewer connections than `ingress.max_connections`; raise it (ulimit -n)";

/// How many files this process may open; `None` if there is no bound.
pub fn open_file_limit() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
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

/// Runs a bridge until `stop` resolves, then stops it in order. Undelivered events stay in the spool.
pub async fn run(config: Config, listeners: Listeners, stop: impl Future<Output = ()>) -> Result<(), RunError> {
    let metrics = Metrics::default();
    let sinks = prepare(&config)?;
    let routes = Routes::open(&config.ingress, &metrics.ingress).map_err(RunError::Ingress)?;
    let tls = config.ingress.tls.as_ref().map(|tls| tls::start(tls, metrics.ingress.tls.clone())).transpose()?;
    let names: Vec<&str> = config.sinks.keys().map(String::as_str).collect();
    let spool = Arc::new(Spool::open(&config.spool, &names, metrics.spool.clone())?);

    let (stop_serving, serving) = watch::channel(false);
    let (stop_admin, admin_serving) = watch::channel(false);
    let (stop_dispatching, dispatching) = watch::channel(false);

    let mut healths = Vec::new();
    let mut dispatchers = JoinSet::new();
    let mut background = JoinSet::new();
    let mut open_sinks = Vec::new();
    let mut delivery_watches = Vec::new();
    let mut all_dead_letters = Vec::new();
    for Prepared { name, config: sink_config, route, sink } in sinks {
        let health = Health::new(&name, sink_config.dispatch.required);
        healths.push(health.clone());
        background.spawn(probe(sink.clone(), health.clone()));
        open_sinks.push(sink.clone());
        let mut deliveries = None;
        if config.ingress.ack == Ack::Delivered && sink_config.dispatch.required {
            let (watch, requests) = dispatch::delivery_watch();
            delivery_watches.push(watch);
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
        // The spool was opened with all of these sinks.
        let dispatcher = Dispatcher::new(spool.clone(), parts, dispatching.clone()).ok_or(RunError::Defect)?;
        dispatchers.spawn(dispatcher.run());
    }

    let tls = tls.map(|(config, reloading)| {
        background.spawn(reloading);
        Tls { config, metrics: metrics.ingress.tls.clone() }
    });
    let proxies = config.ingress.proxy_protocol.as_ref();
    let proxy_protocol = proxies.map(|proxies| ProxyProtocol::new(proxies, metrics.ingress.proxy_protocol.clone()));
    let preamble = Preamble { proxy_protocol, tls };

    background.spawn(dead_letter::measure(all_dead_letters));
    background.spawn(measure_free_space(config.spool.path.clone(), metrics.spool.free_bytes.clone()));
    match control::listen(&config.spool.path) {
        Ok(listener) => drop(background.spawn(control::serve(listener, spool.clone(), healths.clone()))),
        Err(error) => tracing::warn!(%error, "commands cannot reach this bridge through its spool"),
    }

    let rejected =
        RejectedBodies::start(&config.ingress.rejected, &config.spool.path, metrics.ingress.rejected.clone());
    let rejected = Arc::new(rejected.map_err(OpenError::Io)?);
    for route in config.ingress.unauthenticated_routes() {
        tracing::warn!(ingress = route, "route has no authentication and listens on a non-loopback address");
    }
    background.spawn(auth::watch(routes.watched()));
    let (settings, counts) = (config.ingress.clone(), metrics.ingress.clone());
    let mut ingress = Ingress::new(settings, routes, spool.clone(), rejected.clone(), counts);
    if config.ingress.ack == Ack::Delivered {
        ingress =
            ingress.waiting_for(Delivery::new(delivery_watches, config.ingress.delivery_timeout, serving.clone()));
    }
    let open_files = open_file_limit();
    let mut limits = config.ingress.limits(metrics.ingress.limits.clone());
    limits.max_connections = config.ingress.connections_within(open_files);
    if limits.max_connections < config.ingress.max_connections {
        tracing::warn!(open_files, max_connections = limits.max_connections, "{FEW_FILES}");
    }
    let admin_limits = Limits {
        max_connections: open_files.map_or(ADMIN_CONNECTIONS, |limit| ADMIN_CONNECTIONS.min(limit as usize / 8).max(1)),
        max_connections_per_peer: None,
        eviction_age: ADMIN_EVICTION_AGE,
        ..config.ingress.limits(LimitMetrics::default())
    };
    let Shutdown { drain_delay, grace_period: grace } = config.shutdown;
    let admin = Arc::new(AdminService::new(metrics, spool.clone(), healths.clone()));
    for (what, listener) in [("ingress listening", &listeners.ingress), ("admin listening", &listeners.admin)] {
        let address = listener.local_addr().map_or_else(|_| "unknown".to_owned(), |address| address.to_string());
        tracing::info!(address, "{what}");
    }
    let mut webhooks = tokio::spawn(serve(listeners.ingress, limits, preamble, serving, ingress));
    let admin_server =
        tokio::spawn(serve(listeners.admin, admin_limits, Preamble::default(), admin_serving, admin.clone()));

    let defect = tokio::select! {
        () = stop => false,
        _ = dispatchers.join_next() => true,
        _ = &mut webhooks => true,
        _ = background.join_next() => true,
        () = spool.abandoned() => true,
    };
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
    // What came last is stored, and its sinks may not have seen it yet.
    let _ = timeout(LAST.min(grace / 10), caught_up(&spool, &healths)).await;
    let finish_requests = async {
        served = served || timeout_at(deadline, &mut webhooks).await.is_ok();
    };
    let finish_publishes = async {
        stop_dispatching.send_replace(true);
        let all_done = async { while dispatchers.join_next().await.is_some() {} };
        if timeout_at(deadline - grace / 10, all_done).await.is_err() {
            tracing::warn!("publishes in flight were not confirmed in the grace period; they will be sent again");
            dispatchers.shutdown().await;
        }
        background.shutdown().await;
        let close = join_all(open_sinks.iter().map(|sink| sink.close()));
        if timeout_at(deadline.min(Instant::now() + CLOSE), close).await.is_err() {
            tracing::warn!("a sink took too long to close");
        }
    };
    join(finish_requests, finish_publishes).await;
    if !served {
        tracing::warn!("requests were cut off at the end of the grace period");
        webhooks.abort();
    }
    stop_admin.send_replace(true);
    let _ = timeout(Duration::from_millis(100), admin_server).await;
    let end = spool.status().end;
    rejected.close();
    spool.close();
    for health in &healths {
        match health.undelivered(end) {
            0 => {}
            undelivered => tracing::info!(sink = health.sink(), undelivered, "records wait in the spool for this sink"),
        }
    }
    tracing::info!("stopped");
    if defect { Err(RunError::Defect) } else { Ok(()) }
}

/// Resolves when every sink that works has all that is stored.
async fn caught_up(spool: &Spool, healths: &[Arc<Health>]) {
    let behind = |health: &&Arc<Health>| {
        let position = spool.cursor(health.sink()).map(|cursor| cursor.position());
        health.check().is_ok() && position.is_some_and(|position| position < spool.status().end)
    };
    while healths.iter().any(|health| behind(&health)) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
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
