//! `cdrelay reload` and its answer.

use super::{Address, Exchange, next_line, send_line};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

/// Asks a bridge to read its configuration again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reload {
    /// Whether only to check what would happen.
    #[serde(default)]
    pub dry_run: bool,
    /// Sinks that may be removed while they have undelivered events.
    #[serde(default)]
    pub discard: Vec<String>,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// A line for each thing that changes, or would; none if the configuration is the one that runs.
    pub changes: Vec<String>,
    /// A line for each reason why the configuration is refused; none if it is not.
    pub problems: Vec<String>,
}

/// Asks a bridge in the same process.
pub type Reloads = mpsc::Sender<(Reload, oneshot::Sender<Reloaded>)>;

/// Answers one request.
pub(super) async fn answer(exchange: &mut Exchange, reload: Reload, reloads: &Reloads) -> io::Result<()> {
    let (answer, answered) = oneshot::channel();
    let sent = reloads.send((reload, answer)).await;
    let reloaded = match sent.map_err(drop) {
        Ok(()) => answered.await.ok(),
        Err(()) => None,
    };
    let reloaded = reloaded.ok_or_else(|| io::Error::other("this bridge does not reload, or stops"))?;
    send_line(exchange, &reloaded).await?;
    exchange.flush().await
}

/// Sends the request to the bridge that runs on the spool in `spool`; `None` if none does.
pub async fn reload(spool: &Path, reload: &Reload) -> io::Result<Option<Reloaded>> {
    #[derive(Serialize)]
    struct Line<'a> {
        reload: &'a Reload,
    }
    let address = Address::of(spool)?;
    let Some(stream) = address.connect().await? else { return Ok(None) };
    let mut exchange = Exchange::new(stream);
    send_line(&mut exchange, &Line { reload }).await?;
    exchange.flush().await?;
    let answer = next_line(&mut exchange).await?;
    answer.map(Some).ok_or_else(|| io::Error::other("the bridge stopped before it answered"))
}

impl Address {
    /// Connects to the bridge; `None` if none listens.
    pub(super) async fn connect(&self) -> io::Result<Option<UnixStream>> {
        match UnixStream::connect(&self.path).await {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                Ok(None)
            }
            stream => stream.map(Some),
        }
    }
}
