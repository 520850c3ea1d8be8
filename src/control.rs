//! Commands to a running bridge: a socket in the spool's directory, which only the directory's owner can enter.
//!
//! One exchange a connection, one JSON object a line. For a replay the client sends a [`Request`], then a [`ReplayEvent`] per event, and
//! closes its side; the answer is an [`Outcome`], and [`ReplayCounts`] behind it if the request waits for these. For a reload it sends a
//! [`Reload`] as the member `reload`; the answer is a [`Reloaded`]. For a reconciliation it sends a [`crate::reconcile::Request`] as the
//! member `reconcile`; the answer is a [`crate::reconcile::Outcome`].

mod reconcile;
mod reload;

pub use reconcile::reconcile;
pub use reload::{Reload, Reloaded, Reloads, reload};

use crate::dead_letter::DeadLetter;
use crate::dispatch::replay::{self, ReplayCounts};
use crate::dispatch::{Health, Healths};
use crate::event::{Arrival, DEFAULT_INGRESS, Event, EventId};
use crate::reconcile::{Reconciliations, Request as ReconcileRequest};
use crate::spool::Spool;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream};
use tokio::net::{UnixListener, UnixStream};

/// Events that are appended together, and their bytes: a replay must not take much of the bridge's memory.
const BATCH: usize = 100;
const BATCH_BYTES: usize = 1 << 20;
/// The largest event has 64 MiB; JSON can double that, and more.
const MAX_LINE_BYTES: u64 = 256 << 20;

/// An event to be published again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayEvent {
    /// When it first arrived, in milliseconds since 1970.
    pub arrival: u64,
    /// Its id.
    pub id: String,
    /// Its conversation; none if that has yet to be resolved, since the event was never stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation: Option<String>,
    /// The route that it came by, if not the default one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<String>,
    /// The query string that stood beside its body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<String>,
    /// Its exact text.
    pub payload: String,
}

impl ReplayEvent {
    /// The event, as it came.
    pub fn of(event: &Event) -> Self {
        Self {
            arrival: event.arrival().0,
            id: event.id().to_string(),
            conversation: event.call().is_none().then(|| event.conversation().into()),
            ingress: event.other_ingress().map(|name| name.to_string()),
            query: event.query().map(Into::into),
            payload: event.payload().to_string(),
        }
    }

    fn event(self) -> io::Result<Event> {
        let id = u128::from_str_radix(&self.id, 16).map_err(io::Error::other)?;
        let id = EventId(id.to_be_bytes());
        let arrival = Arrival(self.arrival);
        let event = match &self.conversation {
            Some(conversation) => Event::restore(&self.payload, id, conversation, arrival),
            None => Event::restore_unresolved(&self.payload, id, arrival),
        };
        Ok(event.by(self.ingress.map(Into::into)).with_query(self.query.map(Into::into)))
    }
}

impl From<DeadLetter> for ReplayEvent {
    fn from(letter: DeadLetter) -> Self {
        Self {
            arrival: letter.arrival.parse::<Arrival>().unwrap_or_default().0,
            id: letter.id,
            conversation: Some(letter.conversation),
            ingress: Some(letter.ingress).filter(|name| name != DEFAULT_INGRESS),
            query: letter.query,
            payload: letter.payload,
        }
    }
}

/// The first line of an exchange.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Request {
    /// The only sink that publishes the events; all of them if there is none.
    pub target: Option<String>,
    /// Whether the target's destination is to store messages that it has already.
    #[serde(default)]
    pub force: bool,
    /// How long to wait for the outcomes at the target, in milliseconds; 0 waits for none.
    #[serde(default)]
    pub wait_ms: u64,
}

/// The first line of any exchange.
#[derive(Deserialize)]
#[serde(untagged)]
enum First {
    Reload { reload: Reload },
    Reconcile { reconcile: ReconcileRequest },
    Replay(Request),
}

/// The answer to a replay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// So many events, from the first on, are stored durably.
    pub stored: usize,
    /// So many of these were stored before. An event for one sink alone is stored again.
    #[serde(default)]
    pub duplicates: usize,
    /// Why the rest is not.
    pub error: Option<String>,
}

/// The socket's name in the spool's directory.
const NAME: &str = "control";
/// The longest path of a socket's address, in bytes.
const MAX_PATH: usize = 107;

/// A path to the socket of the bridge whose spool is in a directory.
struct Address {
    path: PathBuf,
    /// Held where the path leads over it.
    _directory: Option<File>,
}

impl Address {
    fn of(spool: &Path) -> io::Result<Self> {
        let path = spool.join(NAME);
        if path.as_os_str().len() <= MAX_PATH {
            return Ok(Self { path, _directory: None });
        }
        let directory = File::open(spool)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
        if !path.exists() {
            return Err(io::Error::other(format!(
                "the path of {} is longer than the {MAX_PATH} bytes of a socket's address, and there is no /proc to go round \
                 that; give the spool a shorter path",
                spool.join(NAME).display()
            )));
        }
        Ok(Self { path: path.join(NAME), _directory: Some(directory) })
    }
}

/// Listens in the spool's directory, which this process has locked: a socket that is there belongs to no other process.
pub fn listen(spool: &Path) -> io::Result<UnixListener> {
    let path = spool.join(NAME);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&Address::of(spool)?.path)?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers until the future is dropped.
pub async fn serve(
    listener: UnixListener,
    spool: Arc<Spool>,
    sinks: Healths,
    reloads: Reloads,
    reconciliations: Arc<Reconciliations>,
) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (spool, sinks) = (spool.clone(), sinks.clone());
                tokio::spawn(answer(stream, spool, sinks, reloads.clone(), reconciliations.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a control connection");
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            }
        }
    }
}

type Exchange = BufStream<UnixStream>;

async fn answer(
    stream: UnixStream,
    spool: Arc<Spool>,
    sinks: Healths,
    reloads: Reloads,
    reconciliations: Arc<Reconciliations>,
) {
    let mut exchange = Exchange::new(stream);
    let answered = match next_line::<First>(&mut exchange).await {
        Ok(Some(First::Reload { reload })) => reload::answer(&mut exchange, reload, &reloads).await,
        Ok(Some(First::Reconcile { reconcile })) => {
            reconcile::answer(&mut exchange, &reconcile, &reconciliations).await
        }
        Ok(Some(First::Replay(request))) => replay_all(&mut exchange, request, &spool, &sinks).await,
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    // A client that has gone asks again, which is safe.
    if let Err(error) = answered {
        tracing::debug!(%error, "a control connection failed");
    }
}

async fn replay_all(exchange: &mut Exchange, request: Request, spool: &Spool, sinks: &Healths) -> io::Result<()> {
    let is_target = |sink: &&Arc<Health>| request.wait_ms > 0 && request.target.as_deref() == Some(sink.sink());
    let target = sinks.borrow().iter().find(is_target).cloned();
    let counted = match &target {
        Some(sink) => Some(sink.replays().begin().await),
        None => None,
    };
    if let Some(counted) = &counted {
        counted.count_from(spool.status().end);
    }
    let mut outcome = Outcome::default();
    if let Err(error) = append(exchange, &request, spool, &mut outcome).await {
        outcome.error = Some(error.to_string());
    }
    send_line(exchange, &outcome).await?;
    exchange.flush().await?;
    if let Some(counted) = counted {
        send_line(exchange, &counted.counts(outcome.stored, Duration::from_millis(request.wait_ms)).await).await?;
    }
    exchange.flush().await
}

async fn append(exchange: &mut Exchange, request: &Request, spool: &Spool, outcome: &mut Outcome) -> io::Result<()> {
    loop {
        let mut batch = Vec::<ReplayEvent>::with_capacity(BATCH);
        let mut bytes = 0;
        while batch.len() < BATCH && bytes < BATCH_BYTES {
            let Some(event) = next_line::<ReplayEvent>(exchange).await? else { break };
            bytes += event.payload.len();
            batch.push(event);
        }
        if batch.is_empty() {
            return Ok(());
        }
        let count = batch.len();
        outcome.duplicates += store(spool, request, batch).await?;
        outcome.stored += count;
    }
}

async fn next_line<T: DeserializeOwned>(exchange: &mut Exchange) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    exchange.take(MAX_LINE_BYTES).read_until(b'\n', &mut line).await?;
    if line.is_empty() { Ok(None) } else { Ok(Some(serde_json::from_slice(&line)?)) }
}

async fn send_line(exchange: &mut Exchange, line: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(line)?;
    line.push(b'\n');
    exchange.write_all(&line).await
}

/// Stores events for the target alone, or for all sinks, which do not get again an event stored within the dedup window;
/// returns how many events that leaves out.
pub async fn store(spool: &Spool, request: &Request, events: Vec<ReplayEvent>) -> io::Result<usize> {
    let events = events.into_iter().map(ReplayEvent::event).collect::<io::Result<Vec<_>>>()?;
    let appended = match &request.target {
        Some(sink) if spool.cursor(sink).is_none() => {
            return Err(io::Error::other(format!("no sink is called `{sink}`")));
        }
        Some(sink) => spool.append_again(events, &replay::target(sink, request.force)).await,
        None => spool.append(events).await,
    };
    appended.map(|appended| appended.duplicates).map_err(io::Error::other)
}

/// Events that the bridge has answered for.
pub struct Sent {
    /// The answer.
    pub outcome: Outcome,
    exchange: Exchange,
}

impl Sent {
    /// The outcomes at the target, if the request waits for these.
    pub async fn counts(mut self) -> io::Result<Option<ReplayCounts>> {
        next_line(&mut self.exchange).await
    }
}

/// Sends events to the bridge that runs on the spool in `spool`; `None` if none does.
pub async fn send(spool: &Path, request: &Request, events: &[ReplayEvent]) -> io::Result<Option<Sent>> {
    let address = Address::of(spool)?;
    let Some(stream) = address.connect().await? else { return Ok(None) };
    let mut exchange = Exchange::new(stream);
    // A bridge that cannot store an event answers at once and reads no further: its answer counts, not that it hung up.
    let sent = send_all(&mut exchange, request, events).await;
    match next_line(&mut exchange).await {
        Ok(Some(outcome)) => Ok(Some(Sent { outcome, exchange })),
        answered => {
            sent.and(answered)?;
            Err(io::Error::other("the bridge stopped before it answered; run the command again when it is back"))
        }
    }
}

async fn send_all(exchange: &mut Exchange, request: &Request, events: &[ReplayEvent]) -> io::Result<()> {
    send_line(exchange, request).await?;
    for event in events {
        send_line(exchange, event).await?;
    }
    exchange.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use tokio::sync::{mpsc, watch};
    use tokio::task::JoinHandle;

    fn event(payload: &str) -> ReplayEvent {
        ReplayEvent::of(&Event::parse(payload, 9, Arrival(1)).unwrap())
    }

    fn start(path: &Path, spool: Arc<Spool>, sinks: Vec<Arc<Health>>) -> JoinHandle<()> {
        let (sinks, reloads) = (watch::Sender::new(sinks).subscribe(), mpsc::channel(1).0);
        let none = Reconciliations::open(&Default::default(), spool.clone(), Metrics::default().reconcile).unwrap();
        tokio::spawn(serve(listen(path).unwrap(), spool, sinks, reloads, Arc::new(none)))
    }

    async fn outcome(spool: &Path, target: Option<&str>, events: &[ReplayEvent]) -> Option<Outcome> {
        let request = Request { target: target.map(Into::into), ..Request::default() };
        send(spool, &request, events).await.unwrap().map(|sent| sent.outcome)
    }

    #[tokio::test]
    async fn the_answer_is_heard_though_the_bridge_reads_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let config = crate::spool::Config { path: dir.path().to_owned(), ..Default::default() };
        let spool = Arc::new(Spool::open(&config, &["known"], Metrics::default().spool).unwrap());
        let server = start(dir.path(), spool, vec![Health::new("known", true)]);
        let events = vec![event(&format!("{{\"x\":\"{}\"}}", "x".repeat(1000))); 5000];
        let unknown = outcome(dir.path(), Some("unknown"), &events).await.unwrap();
        assert_eq!(unknown.stored, 0);
        assert!(unknown.error.unwrap().contains("`unknown`"));
        assert_eq!(outcome(dir.path(), Some("known"), &events).await.unwrap().stored, 5000);
        let for_all = outcome(dir.path(), None, &events).await.unwrap();
        assert_eq!(for_all, Outcome { stored: 5000, duplicates: 4999, error: None });
        server.abort();
    }

    #[tokio::test]
    async fn outcomes_are_told_when_they_are_there_or_when_the_wait_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let config = crate::spool::Config { path: dir.path().to_owned(), ..Default::default() };
        let spool = Arc::new(Spool::open(&config, &["nats"], Metrics::default().spool).unwrap());
        let health = Health::new("nats", true);
        let server = start(dir.path(), spool.clone(), vec![health.clone()]);
        let mut reader = spool.reader("nats").unwrap();
        for (force, wait_ms, duplicates) in [(false, 60_000, 2), (true, 100, 0)] {
            let request = Request { target: Some("nats".into()), force, wait_ms };
            let sent = send(dir.path(), &request, &[event("{\"x\":1}"), event("{\"x\":2}")]).await.unwrap().unwrap();
            assert_eq!(sent.outcome.stored, 2);
            let records = reader.read(usize::MAX).await.unwrap();
            assert_eq!(records.iter().map(|record| record.forced_id().is_some()).collect::<Vec<_>>(), [force; 2]);
            for record in records.iter().take(duplicates) {
                health.replays().ended(record, |counts| counts.duplicates += 1);
            }
            let counts = sent.counts().await.unwrap().unwrap();
            assert_eq!((counts.duplicates, counts.total()), (duplicates, duplicates));
        }
        server.abort();
    }

    #[tokio::test]
    async fn a_long_path_to_the_spool_is_no_obstacle() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x".repeat(100)).join("y".repeat(100));
        std::fs::create_dir_all(&path).unwrap();
        let events = [event("{\"x\":1}")];
        assert_eq!(outcome(&path, Some("sink"), &events).await, None);
        let config = crate::spool::Config { path: path.clone(), ..Default::default() };
        let spool = Arc::new(Spool::open(&config, &["sink"], Metrics::default().spool).unwrap());
        let server = start(&path, spool, Vec::new());
        assert_eq!(outcome(&path, Some("sink"), &events).await.unwrap().stored, 1);
        let mode = std::fs::metadata(path.join(NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        server.abort();
    }

    #[test]
    fn an_event_is_the_same_with_its_route_its_query_and_its_identity() {
        let event = Event::parse("{\"team\":\"a\",\"conversation_uuid\":\"c\"}", 9, Arrival(17)).unwrap();
        let event = event.by(Some("eu".into())).with_query(Some("n=1&m=%C3%A9".into()));
        let line = serde_json::to_string(&ReplayEvent::of(&event)).unwrap();
        let replayed = serde_json::from_str::<ReplayEvent>(&line).unwrap().event().unwrap();
        assert_eq!(replayed, event);
        assert_eq!(replayed.query(), Some("n=1&m=%C3%A9"));
        assert!(replayed.call().is_some(), "it was never stored, so its conversation has yet to be resolved");
        let stored = event.resolved(Some("other".into()));
        let line = serde_json::to_string(&ReplayEvent::of(&stored)).unwrap();
        assert_eq!(serde_json::from_str::<ReplayEvent>(&line).unwrap().event().unwrap(), stored);
    }
}
