//! How commands on the same machine reach a running bridge: a socket in the spool's directory, which its owner alone may enter.
//!
//! One exchange a connection. The client sends a line `{"target":"SINK"}`, or `{}` for all sinks, then one line
//! `{"arrival":MS,"payload":"TEXT"}` per event, with an `ingress` if that is not the default one, and closes its side. The answer is one line: how many events are stored, in order,
//! how many of them had been stored before, and what stopped the rest.

use crate::event::{Arrival, Event, MAX_DEPTH};
use crate::spool::Spool;
use serde::{Deserialize, Serialize};
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

/// Events that are appended together, and their bytes: the bridge has little memory to spare for a replay.
const BATCH: usize = 100;
const BATCH_BYTES: usize = 1 << 20;
/// A line longer than this is no event of ours.
const MAX_LINE: u64 = 256 << 20;

/// An event to be published again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Again {
    /// Milliseconds since 1970 when it first arrived.
    pub arrival: u64,
    /// Its exact text.
    pub payload: String,
    /// The route that it came by, if not the default one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Box<str>>,
}

impl Again {
    /// The event, as it came.
    pub fn of(event: &Event) -> Self {
        Self {
            arrival: event.arrival().0,
            payload: event.payload().to_string(),
            ingress: event.other_ingress().map(|name| (**name).into()),
        }
    }
}

/// What became of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// So many events, from the first on, are stored durably.
    pub stored: usize,
    /// So many of these were stored before. What is for one sink alone is stored again.
    #[serde(default)]
    pub duplicates: usize,
    /// Why the rest is not.
    pub error: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Head {
    target: Option<String>,
}

/// The socket's name in the spool's directory.
const NAME: &str = "control";
/// What a socket's address has room for.
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

/// Listens in the spool's directory, which this process has locked; a socket left there is nobody's.
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
                tracing::warn!(%error, "a control connection could not be accepted");
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            }
        }
    }
}

async fn answer(stream: UnixStream, spool: Arc<Spool>) {
    let (reader, mut writer) = stream.into_split();
    let mut outcome = Outcome::default();
    if let Err(error) = take(BufReader::new(reader), &spool, &mut outcome).await {
        outcome.error = Some(error.to_string());
    }
    let line = serde_json::to_string(&outcome).unwrap_or_default() + "\n";
    // A client that is gone asks again, which is safe.
    let _ = writer.write_all(line.as_bytes()).await;
}

async fn take(mut reader: impl AsyncBufReadExt + Unpin, spool: &Spool, outcome: &mut Outcome) -> io::Result<()> {
    let Some(line) = next_line(&mut reader).await? else { return Ok(()) };
    let head: Head = serde_json::from_str(&line)?;
    loop {
        let mut batch = Vec::with_capacity(BATCH);
        let mut bytes = 0;
        while batch.len() < BATCH && bytes < BATCH_BYTES {
            let Some(line) = next_line(&mut reader).await? else { break };
            bytes += line.len();
            batch.push(serde_json::from_str(&line)?);
        }
        if batch.is_empty() {
            return Ok(());
        }
        let count = batch.len();
        outcome.duplicates += store(spool, head.target.as_deref(), batch).await?;
        outcome.stored += count;
    }
}

async fn next_line(reader: &mut (impl AsyncBufReadExt + Unpin)) -> io::Result<Option<String>> {
    let mut line = String::new();
    let read = reader.take(MAX_LINE).read_line(&mut line).await?;
    Ok((read > 0).then_some(line))
}

/// Stores events for `target` alone, or for all sinks, which do not get again what was stored within the window of
/// duplicates; says how many events that leaves out.
pub async fn store(spool: &Spool, target: Option<&str>, events: Vec<Again>) -> io::Result<usize> {
    let parse = |again: Again| {
        let event = Event::parse(&again.payload, MAX_DEPTH, Arrival(again.arrival)).map_err(io::Error::other)?;
        Ok(event.by(again.ingress.map(Arc::from)))
    };
    let events = events.into_iter().map(parse).collect::<io::Result<Vec<_>>>()?;
    let appended = match target {
        Some(target) if spool.cursor(target).is_none() => {
            return Err(io::Error::other(format!("no sink is called `{target}`")));
        }
        Some(target) => spool.append_again(events, target).await,
        None => spool.append(events).await,
    };
    appended.map(|appended| appended.duplicates).map_err(io::Error::other)
}

/// Hands events to the bridge that runs on the spool in `spool`; `None` if none does.
pub async fn send(spool: &Path, target: Option<&str>, events: &[Again]) -> io::Result<Option<Outcome>> {
    let address = Address::of(spool)?;
    let stream = match UnixStream::connect(&address.path).await {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        other => other?,
    };
    let (reader, mut writer) = stream.into_split();
    // A bridge that cannot store an event answers at once and reads no further: what it says counts, not that it hung up.
    let sent = send_all(&mut writer, target, events).await;
    let mut answer = String::new();
    let answered = BufReader::new(reader).read_line(&mut answer).await;
    if answer.is_empty() {
        sent.and(answered)?;
        return Err(io::Error::other("the bridge stopped before it answered; run the command again when it is back"));
    }
    Ok(Some(serde_json::from_str(&answer)?))
}

async fn send_all(writer: &mut (impl AsyncWrite + Unpin), target: Option<&str>, events: &[Again]) -> io::Result<()> {
    let mut text = serde_json::to_string(&Head { target: target.map(str::to_owned) })? + "\n";
    for event in events {
        text.push_str(&serde_json::to_string(event)?);
        text.push('\n');
        if text.len() > 1 << 20 {
            writer.write_all(text.as_bytes()).await?;
            text.clear();
        }
    }
    writer.write_all(text.as_bytes()).await?;
    writer.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[tokio::test]
    async fn the_answer_is_heard_though_the_bridge_takes_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let config = crate::spool::Config { path: dir.path().to_owned(), ..Default::default() };
        let spool = Arc::new(Spool::open(&config, &["known"], Metrics::default().spool).unwrap());
        let server = tokio::spawn(serve(listen(dir.path()).unwrap(), spool));
        let payload = format!("{{\"x\":\"{}\"}}", "x".repeat(1000));
        let events = vec![Again { arrival: 1, payload, ingress: None }; 5000];
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
        let events = [Again { arrival: 1, payload: "{}".into(), ingress: None }];
        assert_eq!(send(&path, Some("sink"), &events).await.unwrap(), None);
        let config = crate::spool::Config { path: path.clone(), ..Default::default() };
        let spool = Arc::new(Spool::open(&config, &["sink"], Metrics::default().spool).unwrap());
        let server = tokio::spawn(serve(listen(&path).unwrap(), spool));
        assert_eq!(send(&path, Some("sink"), &events).await.unwrap().unwrap().stored, 1);
        let mode = std::fs::metadata(path.join(NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        server.abort();
    }
}
