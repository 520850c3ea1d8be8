//! The key of the HMAC, in a file that is read again when it changes.

use crate::reloaded::{Change, Content, Reloaded};
use prometheus_client::metrics::gauge::Gauge;
use ring::hmac::{self, HMAC_SHA256};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A shorter key can be guessed, and with it every number.
const MIN_BYTES: usize = 16;
/// How often the file is read.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// The key of one sink's hashes.
pub struct RedactKey {
    path: PathBuf,
    file: Reloaded<hmac::Key, String>,
}

impl fmt::Debug for RedactKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedactKey").field("path", &self.path).finish_non_exhaustive()
    }
}

impl RedactKey {
    /// Reads the key: all of the file but the line break at its end.
    pub fn open(path: &Path) -> Result<Self, String> {
        let file = Reloaded::open(vec![path.to_owned()], parse);
        let file = file.map_err(|problem: String| format!("{}: {problem}", path.display()))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// The HMAC-SHA256 in 64 hexadecimal digits.
    pub fn hash(&self, text: &[u8]) -> String {
        let tag = hmac::sign(&self.file.current(), text);
        tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Reads the file again. One that cannot be used leaves the key as it was.
    pub(super) fn poll(&self, sink: &str) {
        let path = self.path.display();
        match self.file.poll(|_| Ok(())) {
            Change::None => {}
            Change::Replaced => tracing::info!(sink, %path, "key of `redact` reloaded: hashes differ from now on"),
            Change::Unusable(error) => {
                tracing::error!(sink, %path, error, "cannot reload the key of `redact`; the old one stays valid");
            }
        }
    }
}

/// Polls the file, for ever. `unusable` is 1 while its present content cannot be used.
pub async fn watch(key: Arc<RedactKey>, sink: String, unusable: Gauge) {
    loop {
        tokio::time::sleep(POLL_INTERVAL).await;
        let (polled, sink) = (key.clone(), sink.clone());
        // It fails only when the runtime ends.
        let _ = tokio::task::spawn_blocking(move || polled.poll(&sink)).await;
        unusable.set(key.file.is_unusable().into());
    }
}

fn parse(contents: &[Content]) -> Result<hmac::Key, String> {
    let bytes: Vec<u8> = contents.iter().map(|content| content.bytes.clone()).collect::<Result<Vec<_>, _>>()?.concat();
    let end = bytes.iter().rposition(|byte| !matches!(byte, b'\r' | b'\n')).map_or(0, |last| last + 1);
    let key = bytes.get(..end).unwrap_or_default();
    if key.len() < MIN_BYTES {
        return Err(format!("a key of {} bytes can be guessed; use {MIN_BYTES} or more", key.len()));
    }
    Ok(hmac::Key::new(HMAC_SHA256, key))
}
