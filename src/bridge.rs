//! Wires the stages and owns the order in which they start and stop.

mod drain;
mod sinks;

pub use drain::{Left, drain};
pub use sinks::{Prepared, prepare};

use crate::admin::AdminService;
use crate::config::{Config, Shutdown};
use crate::control;
use crate::dead_letter::rejected::RejectedBodies;
use crate::ingress::auth;
use crate::ingress::routes::Routes;
use crate::ingress::tls::{self, TlsError};
use crate::ingress::{Ack, Delivery, Ingress};
use crate::metrics::{LimitMetrics, Metrics};
use crate::server::{Limits, Preamble, ProxyProtocol, Tls, serve};
use crate::sink::SetupError;
use crate::spool::{OpenError, Spool, measure_free_space};
use futures_util::future::join;
use sinks::Sinks;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
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

/// The warning when open files limit `max_connections`.
pub const FEW_FILES: &str =
    "the limit of open files leaves fewer connections than `ingress.max_connections`; raise it (ulimit -n)";

/// How many files this process may open; `None` if there is no bound.
pub fn open_file_limit() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
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

    let mut background = JoinSet::new();
    let mut sinks = Sinks::start(sinks, &config, &spool, &metrics)?;
    let healths = sinks.healths().to_vec();

    let tls = tls.map(|(config, reloading)| {
        background.spawn(reloading);
        Tls { config, metrics: metrics.ingress.tls.clone() }
    });
    let proxies = config.ingress.proxy_protocol.as_ref();
    let proxy_protocol = proxies.map(|proxies| ProxyProtocol::new(proxies, metrics.ingress.proxy_protocol.clone()));
    let preamble = Preamble { proxy_protocol, tls };

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
        ingress = ingress.waiting_for(Delivery::new(
            sinks.take_delivery_watches(),
            config.ingress.delivery_timeout,
            serving.clone(),
        ));
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
    let Shutdown { drain_delay, grace_period: grace, drain } = config.shutdown;
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
        () = sinks.ended() => true,
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
