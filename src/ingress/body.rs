//! A request's body in memory, within the bounds of size, time and memory.

use super::Config;
use super::refusal::{Reason, Refusal, refusal, unavailable};
use super::unpack::{Packing, UnpackError};
use crate::http::Arriving;
use crate::metrics::LimitMetrics;
use crate::spool::AppendError;
use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout, timeout_at};

/// A body may have as many bytes as this without waiting for memory, which is less than its connection holds anyway: webhooks
/// are small, and do not wait behind slow clients with large bodies.
const SMALL_BODY: usize = 16 << 10;

/// How long a body may take in any case, and one that takes memory which others wait for. Only then is it asked how fast it comes: a
/// small one whose sender or network falters for a while is not refused. (Apache's mod_reqtimeout has 20 s, Kestrel 5 s.)
const GRACE: Duration = Duration::from_secs(10);
const GRACE_OF_LARGE: Duration = Duration::from_secs(5);

/// A body and the memory it takes.
pub type Held = (Bytes, Option<OwnedSemaphorePermit>);

/// The next piece of a body, if there is another.
type Piece = Option<Result<Frame<Bytes>, hyper::Error>>;

/// Reads bodies.
#[derive(Debug)]
pub struct Bodies {
    max_body: usize,
    max_unpacked: usize,
    timeout: Duration,
    /// Bytes a second.
    rate: u64,
    metrics: LimitMetrics,
    /// A permit for every byte of large body that may be in memory as it came.
    received: Arc<Semaphore>,
    /// A permit for every byte that unpacking and large unpacked bodies may take, `budget` of them. Who waits for these may hold some of
    /// those above, and never the other way round: else requests could wait for each other for ever.
    unpacked: Arc<Semaphore>,
    budget: usize,
}

impl Bodies {
    /// Of `budget` bytes each, received and unpacked.
    pub fn new(config: &Config, budget: usize, metrics: LimitMetrics) -> Self {
        let [received, unpacked] = [budget; 2].map(|bytes| Arc::new(Semaphore::new(bytes)));
        let [max_body, max_unpacked] =
            [config.max_body, config.largest_body()].map(|size| usize::try_from(size.as_u64()).unwrap_or(usize::MAX));
        let (timeout, rate) = (config.body_timeout, config.min_body_rate.as_u64());
        Self { max_body, max_unpacked, timeout, rate, metrics, received, unpacked, budget }
    }

    /// Reads the body within the bounds of size, time and memory.
    pub async fn read(&self, mut body: Arriving) -> Result<Held, Refusal> {
        if body.is_end_stream() {
            return Ok((Bytes::new(), None));
        }
        let declared = body.size_hint().exact().map(|size| usize::try_from(size).unwrap_or(usize::MAX));
        let most = self.max_body;
        if declared.is_some_and(|size| size > most) {
            return Err(self.too_large());
        }
        // Most are there already, in one piece. Only the others are read by a future that has room for timers and more.
        let first = declared.filter(|size| *size <= SMALL_BODY).and_then(|_| body.frame().now_or_never());
        match first {
            Some(Some(Ok(frame))) if frame.is_data() && body.is_end_stream() => {
                Ok((frame.into_data().unwrap_or_default(), None))
            }
            first => Box::pin(self.read_on(body, declared, first)).await,
        }
    }

    async fn read_on(
        &self,
        mut body: Arriving,
        declared: Option<usize>,
        mut next: Option<Piece>,
    ) -> Result<Held, Refusal> {
        let most = self.max_body;
        let mut held = None;
        if declared.is_some_and(|size| size > SMALL_BODY) {
            held = Some(self.reserve(&self.received, declared.unwrap_or(most)).await?);
        }
        // Since when it is waited for.
        let mut begun = None;
        let mut first = Bytes::new();
        let mut all = BytesMut::new();
        loop {
            // What is there already needs no timer.
            let frame = match next.take().or_else(|| body.frame().now_or_never()) {
                Some(frame) => frame,
                None => {
                    let allowed = self.allowed(first.len() + all.len(), held.is_some());
                    let begun = *begun.get_or_insert_with(Instant::now);
                    timeout_at(begun + allowed, body.frame()).await.map_err(|_| self.too_slow(allowed))?
                }
            };
            let Some(frame) = frame else { break };
            let frame = frame.map_err(|_| refusal(Reason::Malformed, "the body broke off or is not framed well"))?;
            let Ok(data) = frame.into_data() else { continue };
            let size = first.len() + all.len() + data.len();
            if size > most {
                return Err(self.too_large());
            }
            if size > SMALL_BODY && held.is_none() {
                // All that it may come to, at once: bodies that grow side by side could each lack the rest for ever.
                held = Some(self.reserve(&self.received, most).await?);
                begun = None;
            }
            // Most bodies come in one piece, which needs no copy.
            if size == data.len() {
                first = data;
            } else {
                if all.is_empty() {
                    all.reserve(declared.unwrap_or(if held.is_some() { most } else { SMALL_BODY }));
                }
                all.extend_from_slice(&std::mem::take(&mut first));
                all.extend_from_slice(&data);
            }
        }
        let bytes = if all.is_empty() { first } else { all.freeze() };
        if let Some(held) = &mut held {
            drop(held.split(held.num_permits().saturating_sub(bytes.len())));
        }
        Ok((bytes, held))
    }

    /// How long a body may have taken of which so much has come.
    fn allowed(&self, size: usize, large: bool) -> Duration {
        let grace = if large { GRACE_OF_LARGE } else { GRACE };
        match (size as u64 * 1000).checked_div(self.rate) {
            Some(milliseconds) => self.timeout.min(grace + Duration::from_millis(milliseconds)),
            None => self.timeout,
        }
    }

    fn too_slow(&self, allowed: Duration) -> Refusal {
        if allowed < self.timeout {
            self.metrics.body_rate.inc();
            return refusal(Reason::TooSlow, format!("the body came more slowly than {} bytes a second", self.rate));
        }
        self.metrics.body_time.inc();
        let seconds = self.timeout.as_secs_f64();
        refusal(Reason::TooSlow, format!("the body was not complete within {seconds} s"))
    }

    async fn reserve(&self, memory: &Arc<Semaphore>, size: usize) -> Result<OwnedSemaphorePermit, Refusal> {
        let reserved = timeout(self.timeout, reserve(memory, size)).await;
        reserved.unwrap_or_else(|_| Err(unavailable(1, "too many large bodies are on their way")))
    }

    /// What is in it.
    pub async fn unpack(
        &self,
        packing: Packing,
        packed: Bytes,
        held: Option<OwnedSemaphorePermit>,
    ) -> Result<Held, Refusal> {
        if packed.is_empty() {
            return Ok((packed, held));
        }
        let most = self.max_unpacked;
        let small = most.min(SMALL_BODY);
        if packed.len() <= SMALL_BODY {
            match packing.unpack(&packed, small) {
                // It may yet be within what is allowed.
                Err(UnpackError::TooLarge) if small < most => {}
                result => return result.map(|bytes| (bytes.into(), None)).map_err(|error| self.not_unpacked(error)),
            }
        }
        let mut reserved = self.reserve(&self.unpacked, packing.memory(most).min(self.budget)).await?;
        // Takes milliseconds, in which a thread of the runtime has other requests to see to. What is held goes along: it is in use
        // until the end, even if the client is gone by then.
        let unpacking = spawn_blocking(move || {
            let bytes = packing.unpack(&packed, most)?;
            drop((packed, held));
            drop(reserved.split(reserved.num_permits().saturating_sub(bytes.len())));
            Ok((bytes.into(), Some(reserved)))
        });
        let unpacked = unpacking.await.unwrap_or_else(|error| {
            tracing::error!(%error, "a defect: unpacking a body failed");
            Err(UnpackError::Broken)
        });
        unpacked.map_err(|error| self.not_unpacked(error))
    }

    fn too_large(&self) -> Refusal {
        refusal(Reason::TooLarge, format!("a body may have {} bytes", self.max_body))
    }

    fn not_unpacked(&self, error: UnpackError) -> Refusal {
        match error {
            UnpackError::TooLarge => {
                refusal(Reason::TooLarge, format!("a compressed body may come to {} bytes", self.max_unpacked))
            }
            UnpackError::Broken => refusal(
                Reason::Malformed,
                "the body cannot be unpacked: it is damaged, incomplete, or not what its Content-Encoding says",
            ),
        }
    }
}

/// Waits for memory.
pub async fn reserve(memory: &Arc<Semaphore>, bytes: usize) -> Result<OwnedSemaphorePermit, Refusal> {
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    if let Ok(permit) = memory.clone().try_acquire_many_owned(bytes) {
        return Ok(permit);
    }
    let permit = Box::pin(memory.clone().acquire_many_owned(bytes)).await;
    permit.map_err(|_| AppendError::Closed.into())
}
