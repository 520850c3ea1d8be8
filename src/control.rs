//! How commands on the same machine reach a running bridge: a socket in the spool's directory, which its owner alone may enter.
//!
//! One exchange a connection. The client sends a line `{"target":"SINK"}`, then one line `{"arrival":MS,"payload":"TEXT"}` per
//! event, and closes its side. The answer is one line: how many events are stored, in order, and what stopped the rest.

use crate::event::{Arrival, Event, MAX_DEPTH};
use crate::spool::Spool;
use serde::{Deserialize, Serialize};
use std::fs::Permissions;
use std::io;
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
}

/// What became of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// So many events, from the first on, are stored durably.
    pub stored: usize,
    /// Why the rest is not.
    pub error: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Head {
    target: String,
}

/// The socket of the bridge whose spool is in `spool`.
pub fn path(spool: &Path) -> PathBuf {
    spool.join("control")
}

/// Listens in the spool's directory, which this process has locked; a socket left there is nobody's.
pub fn listen(spool: &Path) -> io::Result<UnixListener> {
    let path = path(spool);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
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
    if let Err(error) = take(BufReader::new(reader), &spool, &mut outcome.stored).await {
        outcome.error = Some(error.to_string());
    }
    let line = serde_json::to_string(&outcome).unwrap_or_default() + "\n";
    // A client that is gone asks again, which is safe.
    let _ = writer.write_all(line.as_bytes()).await;
}

async fn take(mut reader: impl AsyncBufReadExt + Unpin, spool: &Spool, stored: &mut usize) -> io::Result<()> {
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
        store(spool, &head.target, batch).await?;
        *stored += count;
    }
}

async fn next_line(reader: &mut (impl AsyncBufReadExt + Unpin)) -> io::Result<Option<String>> {
    let mut line = String::new();
    let read = reader.take(MAX_LINE).read_line(&mut line).await?;
    Ok((read > 0).then_some(line))
}

/// Stores events for `target` alone.
pub async fn store(spool: &Spool, target: &str, events: Vec<Again>) -> io::Result<()> {
    if spool.cursor(target).is_none() {
        return Err(io::Error::other(format!("no sink is called `{target}`")));
    }
    let parse =
        |again: Again| Event::parse(&again.payload, MAX_DEPTH, Arrival(again.arrival)).map_err(io::Error::other);
    let events = events.into_iter().map(parse).collect::<io::Result<Vec<_>>>()?;
    spool.append_again(events, target).await.map(drop).map_err(io::Error::other)
}

/// Hands events to the bridge that runs on the spool in `spool`; `None` if none does.
pub async fn send(spool: &Path, target: &str, events: &[Again]) -> io::Result<Option<Outcome>> {
    let stream = match UnixStream::connect(path(spool)).await {
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

async fn send_all(writer: &mut (impl AsyncWrite + Unpin), target: &str, events: &[Again]) -> io::Result<()> {
    let mut text = serde_json::to_string(&Head { target: target.to_owned() })? + "\n";
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
        let events = vec![Again { arrival: 1, payload }; 5000];
        let outcome = send(dir.path(), "unknown", &events).await.unwrap().unwrap();
        assert_eq!(outcome.stored, 0);
        assert!(outcome.error.unwrap().contains("`unknown`"));
        assert_eq!(send(dir.path(), "known", &events).await.unwrap().unwrap().stored, 5000);
        server.abort();
    }
}
