//! The ingress of a bridge: the service, the bounds of its connections, and the tasks that read secrets and certificates again. A reload
//! replaces all of them and leaves the listener and its connections.

use super::RunError;
use crate::dead_letter::rejected::RejectedBodies;
use crate::dispatch::DeliveryWatch;
use crate::ingress::auth;
use crate::ingress::routes::Routes;
use crate::ingress::tls;
use crate::ingress::{Ack, Config, Delivery, Ingress};
use crate::metrics::IngressMetrics;
use crate::server::{self, Preamble, ProxyProtocol, Replaceable, Tls};
use crate::spool::Spool;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// The warning when open files limit `max_connections`.
pub const FEW_FILES: &str =
    "the limit of open files leaves fewer connections than `ingress.max_connections`; raise it (ulimit -n)";

/// How many files this process may open; `None` if there is no bound.
pub fn open_file_limit() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
}

/// The parts of the ingress that are made from files.
pub struct Opened {
    routes: Routes,
    tls: Option<tls::Files>,
}

impl Opened {
    /// Reads the files. An error names the setting.
    pub fn read(config: &Config, metrics: &IngressMetrics) -> Result<Self, RunError> {
        let routes = Routes::open(config, metrics).map_err(RunError::Ingress)?;
        let tls = config.tls.as_ref().map(tls::Files::open).transpose()?;
        Ok(Self { routes, tls })
    }
}

/// What the service of the ingress needs from the other stages.
pub struct Stages {
    pub spool: Arc<Spool>,
    pub rejected: Arc<RejectedBodies>,
    pub metrics: IngressMetrics,
    /// Of the required sinks.
    pub deliveries: watch::Receiver<Vec<DeliveryWatch>>,
    /// Turns true when the bridge stops.
    pub stop: watch::Receiver<bool>,
}

/// The ingress that runs.
pub struct Front {
    stages: Stages,
    service: Arc<Replaceable<Ingress>>,
    settings: watch::Sender<server::Settings>,
    watchers: JoinSet<()>,
}

impl Front {
    /// An ingress that serves nothing before [`Self::service`] is given a listener.
    pub fn new(opened: Opened, config: &Config, stages: Stages) -> Self {
        let mut watchers = JoinSet::new();
        let (service, settings) = build(opened, config, &stages, &mut watchers);
        Self { stages, service: Arc::new(Replaceable::new(service)), settings: watch::Sender::new(settings), watchers }
    }

    /// Requests from now on are answered as configured; connections stay open.
    pub fn replace(&mut self, opened: Opened, config: &Config) {
        let mut watchers = JoinSet::new();
        let (service, settings) = build(opened, config, &self.stages, &mut watchers);
        self.service.replace(service);
        self.settings.send_replace(settings);
        self.watchers = watchers;
    }

    /// Answers requests.
    pub fn service(&self) -> Arc<Replaceable<Ingress>> {
        self.service.clone()
    }

    /// The bounds of connections, and their preamble.
    pub fn settings(&self) -> watch::Receiver<server::Settings> {
        self.settings.subscribe()
    }

    /// Resolves when a task ends by itself, which is a defect.
    pub async fn ended(&mut self) {
        if self.watchers.join_next().await.is_none() {
            std::future::pending().await
        }
    }
}

fn build(
    Opened { routes, tls }: Opened,
    config: &Config,
    stages: &Stages,
    watchers: &mut JoinSet<()>,
) -> (Ingress, server::Settings) {
    for route in config.unauthenticated_routes() {
        tracing::warn!(ingress = route, "route has no authentication and listens on a non-loopback address");
    }
    let open_files = open_file_limit();
    let mut limits = config.limits(stages.metrics.limits.clone());
    limits.max_connections = config.connections_within(open_files);
    if limits.max_connections < config.max_connections {
        tracing::warn!(open_files, max_connections = limits.max_connections, "{FEW_FILES}");
    }
    // Set again by the tasks that read the files.
    stages.metrics.secrets.unusable.set(0);
    stages.metrics.tls.unusable.set(0);
    watchers.spawn(auth::watch(routes.watched()));
    let tls = tls.map(|files| {
        let metrics = stages.metrics.tls.clone();
        let (config, reloading) = files.start(metrics.clone());
        watchers.spawn(reloading);
        Tls { config, metrics }
    });
    let proxies = config.proxy_protocol.as_ref();
    let proxy_protocol =
        proxies.map(|proxies| Arc::new(ProxyProtocol::new(proxies, stages.metrics.proxy_protocol.clone())));
    let settings = server::Settings { limits, preamble: Preamble { proxy_protocol, tls } };
    let (spool, rejected) = (stages.spool.clone(), stages.rejected.clone());
    let mut ingress = Ingress::new(config.clone(), routes, spool, rejected, stages.metrics.clone());
    if config.ack == Ack::Delivered {
        let delivery = Delivery::new(stages.deliveries.clone(), config.delivery_timeout, stages.stop.clone());
        ingress = ingress.waiting_for(delivery);
    }
    (ingress, settings)
}
