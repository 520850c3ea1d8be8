//! `cdrelay reconcile` and its answer.

use super::{Address, Exchange, next_line, send_line};
use crate::reconcile::{Outcome, Reconciliations, Request};
use serde::Serialize;
use std::io;
use std::path::Path;
use tokio::io::AsyncWriteExt as _;

/// Answers one request, which may take minutes.
pub(super) async fn answer(exchange: &mut Exchange, request: &Request, all: &Reconciliations) -> io::Result<()> {
    send_line(exchange, &all.run_now(request).await).await?;
    exchange.flush().await
}

/// Has the bridge that runs on the spool in `spool` reconcile; `None` if none does.
pub async fn reconcile(spool: &Path, reconcile: &Request) -> io::Result<Option<Outcome>> {
    #[derive(Serialize)]
    struct Line<'a> {
        reconcile: &'a Request,
    }
    let address = Address::of(spool)?;
    let Some(stream) = address.connect().await? else { return Ok(None) };
    let mut exchange = Exchange::new(stream);
    send_line(&mut exchange, &Line { reconcile }).await?;
    exchange.flush().await?;
    let answer = next_line(&mut exchange).await?;
    answer
        .map(Some)
        .ok_or_else(|| io::Error::other("the bridge stopped before it answered; run the command again when it is back"))
}
