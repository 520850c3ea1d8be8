//! The body of a request in memory, within bounds of size, time and memory.

use super::Config;
use super::decompress::{ContentEncoding, DecompressError};
use super::problem::Problem;
use crate::metrics::LimitMetrics;
use crate::server::RequestBody;
use hyper::StatusCode;
use hyper::body::Bytes;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout};

/// A body with no more bytes than this needs no share of `body_memory`: webhooks are small, and must not wait behind large bodies of
/// slow clients.
pub const SMALL_BODY: usize = 8 << 10;

/// A body, and the memory that is reserved for it.
pub struct Body {
    pub bytes: Bytes,
    pub permit: Option<OwnedSemaphorePermit>,
}

/// Reads bodies.
#[derive(Debug)]
pub struct BodyReader {
    max_body: usize,
    max_decompressed: usize,
    timeout: Duration,
    metrics: LimitMetrics,
    /// A permit for every byte of memory that large bodies take. A request acquires once: if it held some while it waited for more,
    /// requests could wait for each other.
    memory: Arc<Semaphore>,
    budget: usize,
    /// Large bodies are decompressed and decoded one at a time, so that others find a processor.
    large: Arc<Semaphore>,
}

impl BodyReader {
    pub fn new(config: &Config, metrics: LimitMetrics) -> Self {
        let bytes = |size: bytesize::ByteSize| usize::try_from(size.as_u64()).unwrap_or(usize::MAX);
        let budget = bytes(config.body_memory).min(Semaphore::MAX_PERMITS);
        Self {
            max_body: bytes(config.max_body),
            max_decompressed: bytes(config.largest_body()),
            timeout: config.body_timeout,
            metrics,
            memory: Arc::new(Semaphore::new(budget)),
            budget,
            large: Arc::new(Semaphore::new(1)),
        }
    }

    /// Reads a body that is encoded like this.
    pub async fn read(&self, body: &mut RequestBody, encoding: &ContentEncoding) -> Result<Body, Problem> {
        let declared = body.declared().map(|size| usize::try_from(size).unwrap_or(usize::MAX));
        let size = declared.unwrap_or(self.max_body);
        if size > self.max_body {
            return Err(self.too_large());
        }
        let mut permit = None;
        let mut bytes = Vec::new();
        // One timer for all pieces: a slow client sends a byte at a time.
        let mut deadline = pin!(sleep(self.timeout));
        loop {
            let piece = tokio::select! {
                biased;
                piece = body.next() => piece,
                () = &mut deadline => return Err(self.too_slow()),
            };
            let Some(piece) = piece else { return Ok(Body { bytes: bytes.into(), permit }) };
            let piece = piece.map_err(|_| {
                Problem::new(StatusCode::BAD_REQUEST, "the body broke off, or its chunks are malformed")
            })?;
            let length = bytes.len() + piece.len();
            if length > self.max_body {
                return Err(self.too_large());
            }
            if length > SMALL_BODY && permit.is_none() {
                let decompressed = if encoding.is_identity() { size } else { 2 * self.max_decompressed };
                permit = Some(self.reserve(size + decompressed).await?);
                deadline.as_mut().reset(Instant::now() + self.timeout);
                // A buffer that grows is there twice for a moment.
                bytes.reserve_exact(size.saturating_sub(bytes.len()));
            }
            bytes.extend_from_slice(&piece);
        }
    }

    /// The decompressed content of a body that is encoded like this.
    pub async fn decompress(&self, body: Body, encoding: ContentEncoding) -> Result<Body, Problem> {
        let decompress = |max| {
            let (encoding, bytes) = (encoding.clone(), body.bytes.clone());
            self.run_large(move || encoding.decompress(&bytes, max))
        };
        let max = self.max_decompressed;
        if body.permit.is_none() {
            // A small body needs no memory but that of the decoder, of which there is one at a time.
            match decompress(SMALL_BODY.min(max)).await? {
                Err(DecompressError::TooLarge) if SMALL_BODY < max => {}
                Ok(bytes) => return Ok(Body { bytes: bytes.into(), permit: None }),
                Err(error) => return Err(self.not_decompressed(error)),
            }
        }
        let permit = match body.permit {
            Some(permit) => permit,
            None => self.reserve(2 * max).await?,
        };
        match decompress(max).await? {
            Ok(bytes) => Ok(Body { bytes: bytes.into(), permit: Some(permit) }),
            Err(error) => Err(self.not_decompressed(error)),
        }
    }

    /// Runs work on a large body on a thread of its own, one at a time.
    pub async fn run_large<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
        let turn = self.large.clone().acquire_owned().await;
        let done = spawn_blocking(move || {
            let done = work();
            drop(turn);
            done
        });
        done.await.map_err(|error| {
            tracing::error!(%error, "a defect: reading a body panicked");
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the body could not be read")
        })
    }

    /// Reserves memory for a body, and for its events, which take about as much.
    async fn reserve(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Problem> {
        let permits = u32::try_from(bytes.min(self.budget)).unwrap_or(u32::MAX);
        match timeout(self.timeout, self.memory.clone().acquire_many_owned(permits)).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(Problem::unavailable(1, "too many large bodies are being received")),
        }
    }

    fn too_slow(&self) -> Problem {
        self.metrics.body_time.inc();
        let detail = format!("the body was not complete within {} s", self.timeout.as_secs_f64());
        Problem::new(StatusCode::REQUEST_TIMEOUT, detail)
    }

    fn too_large(&self) -> Problem {
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, format!("a body may have {} bytes", self.max_body))
    }

    fn not_decompressed(&self, error: DecompressError) -> Problem {
        match error {
            DecompressError::TooLarge => {
                let detail = format!("a compressed body may decompress to {} bytes", self.max_decompressed);
                Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
            }
            DecompressError::Corrupt => Problem::new(
                StatusCode::BAD_REQUEST,
                "the body cannot be decompressed: it is corrupt, incomplete, or not encoded as its Content-Encoding says",
            ),
        }
    }
}
