//! Replays through a running bridge: a socket in the spool's directory, which only the directory's owner can enter.
//!
//! One exchange a connection, one JSON object a line. The client sends a [`Request`], then a [`ReplayEvent`] per event, and
//! closes its side. The answer is one [`Outcome`].

use crate::dead_letter::DeadLetter;
use crate::event::{Arrival, DEFAULT_INGRESS, Event, EventId};
use crate::spool::Spool;
use futures_util::{SinkExt, StreamExt};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::codec::{Framed, LinesCodec};

/// Events that are appended together, and their bytes: a replay must not take much of the bridge's memory.
const BATCH: usize = 100;
const BATCH_BYTES: usize = 1 << 20;
/// The largest event has 64 MiB; JSON can double that, and more.
const MAX_LINE_BYTES: usize = 256 << 20;

/// An event to be published again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayEvent {
    /// When it first arrived, in milliseconds since 1970.
    pub arrival: u64,
    /// Its id.
    pub id: String,
    /// Its conversation.
    pub conversation: String,
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
            conversation: event.conversation().into(),
            ingress: event.other_ingress().map(|name| name.to_string()),
            query: event.query().map(Into::into),
            payload: event.payload().to_string(),
        }
    }

    fn event(self) -> io::Result<Event> {
        let id = u128::from_str_radix(&self.id, 16).map_err(io::Error::other)?;
        let id = EventId(id.to_be_bytes());
        let event = Event::restore(&self.payload, id, &self.conversation, Arrival(self.arrival));
        Ok(event.by(self.ingress.map(Into::into)).with_query(self.query.map(Into::into)))
    }
}

impl From<DeadLetter> for ReplayEvent {
    fn from(letter: DeadLetter) -> Self {
        Self {
            arrival: letter.arrival.parse::<Arrival>().unwrap_or_default().0,
            id: letter.id,
            conversation: letter.conversation,
            ingress: Some(letter.ingress).filter(|name| name != DEFAULT_INGRESS),
            query: letter.query,
            payload: letter.payload,
        }
    }
}

/// The first line of an exchange.
#[derive(Serialize, Deserialize)]
struct Request {
    /// The only sink that publishes the events; all of them if there is none.
    target: Option<String>,
}

/// The answer.
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
pub async fn serve(listener: UnixListener, spool: Arc<Spool>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(answer(stream, spool.clone()))),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a control connection");
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            }
        }
    }
}

type Exchange = Framed<UnixStream, LinesCodec>;

fn exchange(stream: UnixStream) -> Exchange {
    Framed::new(stream, LinesCodec::new_with_max_length(MAX_LINE_BYTES))
}

async fn answer(stream: UnixStream, spool: Arc<Spool>) {
    let mut exchange = exchange(stream);
    let mut outcome = Outcome::default();
    if let Err(error) = replay(&mut exchange, &spool, &mut outcome).await {
        outcome.error = Some(error.to_string());
    }
    // A client that has gone asks again, which is safe.
    let _ = send_line(&mut exchange, &outcome).await;
    let _ = flush(&mut exchange).await;
}

async fn replay(exchange: &mut Exchange, spool: &Spool, outcome: &mut Outcome) -> io::Result<()> {
    let Some(Request { target }) = next_line(exchange).await? else { return Ok(()) };
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
        outcome.duplicates += store(spool, target.as_deref(), batch).await?;
        outcome.stored += count;
    }
}

async fn next_line<T: DeserializeOwned>(exchange: &mut Exchange) -> io::Result<Option<T>> {
    match exchange.next().await {
        Some(line) => Ok(Some(serde_json::from_str(&line.map_err(io::Error::other)?)?)),
        None => Ok(None),
    }
}

async fn send_line(exchange: &mut Exchange, line: &impl Serialize) -> io::Result<()> {
    exchange.feed(serde_json::to_string(line)?).await.map_err(io::Error::other)
}

async fn flush(exchange: &mut Exchange) -> io::Result<()> {
    SinkExt::<String>::flush(exchange).await.map_err(io::Error::other)
}

/// Stores events for `target` alone, or for all sinks, which do not get again an event stored within the dedup window;
/// returns how many events that leaves out.
pub async fn store(spool: &Spool, target: Option<&str>, events: Vec<ReplayEvent>) -> io::Result<usize> {
    let events = events.into_iter().map(ReplayEvent::event).collect::<io::Result<Vec<_>>>()?;
    let appended = match target {
        Some(target) if spool.cursor(target).is_none() => {
            return Err(io::Error::other(format!("no sink is called `{target}`")));
        }
        Some(target) => spool.append_again(events, target).await,
        None => spool.append(events).await,
    };
    appended.map(|appended| appended.duplicates).map_err(io::Error::other)
}

/// Sends events to the bridge that runs on the spool in `spool`; `None` if none does.
pub async fn send(spool: &Path, target: Option<&str>, events: &[ReplayEvent]) -> io::Result<Option<Outcome>> {
    let address = Address::of(spool)?;
    let stream = match UnixStream::connect(&address.path).await {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        other => other?,
    };
    let mut exchange = exchange(stream);
    // A bridge that cannot store an event answers at once and reads no further: its answer counts, not that it hung up.
    let sent = send_all(&mut exchange, target, events).await;
    match next_line(&mut exchange).await {
        Ok(Some(outcome)) => Ok(Some(outcome)),
        answered => {
            sent.and(answered)?;
            Err(io::Error::other("the bridge stopped before it answered; run the command again when it is back"))
        }
    }
}

async fn send_all(exchange: &mut Exchange, target: Option<&str>, events: &[ReplayEvent]) -> io::Result<()> {
    send_line(exchange, &Request { target: target.map(str::to_owned) }).await?;
    for event in events {
        send_line(exchange, event).await?;
    }
    flush(exchange).await?;
    exchange.get_mut().shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    fn event(payload: &str) -> ReplayEvent {
        ReplayEvent::of(&Event::parse(payload, 9, Arrival(1)).unwrap())
    }

    #[tokio::test]
    async fn the_answer_is_heard_though_the_bridge_takes_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let config = crate::spool::Config { path: dir.path().to_owned(), ..Default::default() };
        let spool = Arc::new(Spool::open(&config, &["known"], Metrics::default().spool).unwrap());
        let server = tokio::spawn(serve(listen(dir.path()).unwrap(), spool));
        let payload = format!("{{\"x\":\"{}\"}}", "x".repeat(1000));
        let events = vec![event(&payload); 5000];
        let outcome = send(dir.path(), Some("unknown"), &events).await.unwrap().unwrap();
        assert_eq!(outcome.stored, 0);
        assert!(outcome.error.unwrap().contains("`unknown`"));
        assert_eq!(send(dir.path(), Some("known"), &events).await.unwrap().unwrap().stored, 5000);
        let for_all = send(dir.path(), None, &events).await.unwrap().unwrap();
        assert_eq!(for_all, Outcome { stored: 5000, duplicates: 4999, error: None });
        server.abort();
    }

    #[tokio::test]
    async fn a_long_path_to_the_spool_is_no_obstacle() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x".repeat(100)).join("y".repeat(100));
        std::fs::create_dir_all(&path).unwrap();
        let events = [event("{\"x\":1}")];
        assert_eq!(send(&path, Some("sink"), &events).await.unwrap(), None);
        let config = crate::spool::Config { path: path.clone(), ..Default::default() };
        let spool = Arc::new(Spool::open(&config, &["sink"], Metrics::default().spool).unwrap());
        let server = tokio::spawn(serve(listen(&path).unwrap(), spool));
        assert_eq!(send(&path, Some("sink"), &events).await.unwrap().unwrap().stored, 1);
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
    }
}
