//! Reads the configuration again, and hands the bridge what it changes once all of it is built and checked.
//!
//! A reload begins with a change of the files, SIGHUP, or `cdrelay reload`. One is made at a time; a change that comes meanwhile is found
//! after it. The configuration that runs stays as it is, whatever fails.

use super::change::{Difference, SinkChange};
use super::front::Opened;
use super::worker::Prepared;
use crate::config::{Config, Source};
use crate::control::{Reload, Reloaded};
use crate::dispatch::Healths;
use crate::metrics::Metrics;
use crate::reloaded::{self, Change as FileChange};
use crate::spool::Spool;
use futures_util::future::join_all;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// How often the files are read.
const POLL: Duration = Duration::from_millis(250);
/// How often a configuration that was refused is tried again: a broker may be back, a secret may be mounted.
const RETRY: Duration = Duration::from_secs(30);
/// How long a sink that is removed may take to get the last events.
const LAST_EVENTS: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(20);

/// A configuration that can be taken up at once.
pub struct Change {
    pub config: Config,
    /// `None`: the ingress stays as it is.
    pub ingress: Option<Opened>,
    /// Sinks that are added, replaced or adjusted.
    pub sinks: Vec<Prepared>,
    pub removed: Vec<String>,
    /// Told when the change is made, or why not.
    pub done: oneshot::Sender<Result<(), String>>,
}

/// Requests of the control socket.
pub type Requests = mpsc::Receiver<(Reload, oneshot::Sender<Reloaded>)>;

/// The task that reloads.
pub struct Reloader {
    source: Source,
    running: Config,
    spool: Arc<Spool>,
    healths: Healths,
    metrics: Arc<Metrics>,
    changes: mpsc::Sender<Change>,
    /// The problems of the last reload, and when it was.
    refused: Option<(Vec<String>, Instant)>,
}

impl Reloader {
    /// A task for the bridge that runs with this configuration, which was read from `source`.
    pub fn new(
        source: Source,
        running: Config,
        spool: Arc<Spool>,
        healths: Healths,
        metrics: Arc<Metrics>,
        changes: mpsc::Sender<Change>,
    ) -> Self {
        Self { source, running, spool, healths, metrics, changes, refused: None }
    }

    /// Reloads whenever there is a reason to, for ever.
    pub async fn run(mut self, mut requests: Requests) {
        let files = reloaded::Reloaded::open(self.source.files.clone(), |_| Ok::<_, ()>(())).ok().map(Arc::new);
        let mut hangups = signal(SignalKind::hangup())
            .inspect_err(|error| tracing::warn!(%error, "SIGHUP does not reload the configuration"))
            .ok();
        if self.running.reload.watch {
            // The files may have changed since the start read them.
            self.reload(&Reload::default()).await;
        }
        loop {
            let watched = files.as_ref().filter(|_| self.running.reload.watch);
            let (request, answer) = tokio::select! {
                Some((request, answer)) = requests.recv() => (request, Some(answer)),
                () = hangup(&mut hangups) => (Reload::default(), None),
                () = changed(watched) => (Reload::default(), None),
                () = retry_due(self.refused.as_ref()), if self.running.reload.watch => (Reload::default(), None),
            };
            let reloaded = self.reload(&request).await;
            if let Some(answer) = answer {
                // The client may have gone.
                let _ = answer.send(reloaded);
            }
        }
    }

    /// Takes up the configuration if all of it can be used.
    async fn reload(&mut self, request: &Reload) -> Reloaded {
        let source = self.source.clone();
        let read = spawn_blocking(move || source.load().map_err(|error| error.problems().to_vec()));
        let result = match read.await {
            Ok(Ok(read)) => self.take_up(read, request).await,
            Ok(Err(problems)) => Err(problems),
            Err(error) => Err(vec![error.to_string()]),
        };
        let reloaded = match result {
            Ok(changes) => Reloaded { changes, problems: Vec::new() },
            Err(problems) => Reloaded { changes: Vec::new(), problems },
        };
        if !request.dry_run {
            self.report(&reloaded);
        }
        reloaded
    }

    /// Tells log and metrics of a reload. A configuration that is refused again for the same reasons is not logged again.
    fn report(&mut self, Reloaded { changes, problems }: &Reloaded) {
        if problems.is_empty() {
            self.metrics.config.loaded(&self.running.values.hash());
            if !changes.is_empty() {
                tracing::info!(changes = changes.join("; "), "configuration reloaded");
            } else if self.refused.is_some() {
                tracing::info!("the configuration that was read is the one that runs again");
            }
            self.refused = None;
            return;
        }
        self.metrics.config.refused();
        if self.refused.as_ref().is_none_or(|(known, _)| known != problems) {
            for problem in problems {
                tracing::error!(problem, "the configuration was not reloaded; the former one stays in use");
            }
        }
        self.refused = Some((problems.clone(), Instant::now()));
    }

    /// Builds and checks all that changes, and hands it to the bridge. Returns a line for each change, or for each problem.
    async fn take_up(&mut self, read: Config, request: &Reload) -> Result<Vec<String>, Vec<String>> {
        let difference = Difference::between(&self.running, &read);
        let restart =
            |key: &String| read.values.problem(key, "needs a restart to change; nothing of this configuration is used");
        let mut problems: Vec<String> = difference.fixed.iter().map(restart).collect();
        let located = |error: super::RunError| read.values.locate(&error.to_string());
        let mut ingress = None;
        if difference.touches("ingress") {
            match Opened::read(&read.ingress, &self.metrics.ingress) {
                Ok(opened) => ingress = Some(opened),
                Err(error) => problems.push(located(error)),
            }
        }
        let mut sinks = Vec::new();
        for (name, change) in &difference.sinks {
            let Some(config) = read.sinks.get(name) else { continue };
            let prepared = match change {
                SinkChange::Adjusted => Prepared::keeping_connection(name, config),
                _ => Prepared::build(name, config),
            };
            match prepared {
                Ok(prepared) => sinks.push(prepared),
                Err(error) => problems.push(located(error)),
            }
        }
        let removed: Vec<String> = difference
            .sinks
            .iter()
            .filter(|(_, change)| **change == SinkChange::Removed)
            .map(|(name, _)| name.clone())
            .collect();
        let reached = join_all(sinks.iter_mut().map(Prepared::reach)).await;
        problems.extend(reached.into_iter().filter_map(Result::err).map(|problem| read.values.locate(&problem)));
        let may_discard = |name: &&String| request.discard.contains(name) || read.reload.discard.0.contains(name);
        let kept = removed.iter().filter(|name| !may_discard(name));
        let settled = join_all(kept.map(|name| self.settled(name))).await;
        problems.extend(settled.into_iter().filter_map(Result::err));
        if !problems.is_empty() {
            let unused = sinks.iter().filter_map(|prepared| prepared.sink.as_ref());
            join_all(unused.map(|sink| sink.close())).await;
            return Err(problems);
        }
        let lines = difference.lines();
        if request.dry_run {
            let unused = sinks.iter().filter_map(|prepared| prepared.sink.as_ref());
            join_all(unused.map(|sink| sink.close())).await;
        } else if !lines.is_empty() {
            let (done, made) = oneshot::channel();
            let change = Change { config: read.clone(), ingress, sinks, removed, done };
            let stops = || vec!["the bridge stops".to_owned()];
            self.changes.send(change).await.map_err(|_| stops())?;
            made.await.map_err(|_| stops())?.map_err(|problem| vec![problem])?;
            self.running = read;
        }
        Ok(lines)
    }

    /// Waits until a sink that is to be removed has what was stored when the reload began. It gets no more than that for certain.
    async fn settled(&self, name: &str) -> Result<(), String> {
        let end = self.spool.status().end;
        let caught_up = async {
            while self.spool.cursor(name).is_some_and(|cursor| cursor.position() < end) {
                sleep(PAUSE).await;
            }
        };
        if timeout(LAST_EVENTS, caught_up).await.is_ok() {
            return Ok(());
        }
        let status = self.spool.status();
        let healths = self.healths.borrow();
        let health = healths.iter().find(|health| health.sink() == name);
        let undelivered = health.map_or(0, |health| health.undelivered(&status));
        Err(format!(
            "`sinks.{name}`: is missing, and {undelivered} events are undelivered to it; wait for it, or give them up with `cdrelay reload --discard {name}` or `reload.discard = [\"{name}\"]`"
        ))
    }
}

async fn hangup(signal: &mut Option<Signal>) {
    let received = match signal {
        Some(signal) => signal.recv().await,
        None => None,
    };
    if received.is_none() {
        std::future::pending().await
    }
}

/// Resolves when the files have changed and were the same twice running.
async fn changed(files: Option<&Arc<reloaded::Reloaded<(), ()>>>) {
    let Some(files) = files else { return std::future::pending().await };
    loop {
        sleep(POLL).await;
        let files = files.clone();
        if matches!(spawn_blocking(move || files.poll(|()| Ok(()))).await, Ok(FileChange::Replaced)) {
            return;
        }
    }
}

async fn retry_due(refused: Option<&(Vec<String>, Instant)>) {
    match refused {
        Some((_, at)) => sleep_until(*at + RETRY).await,
        None => std::future::pending().await,
    }
}
