//! Two threads: one hands bodies to the system, so that they survive the end of the process; one has them synced, which can take
//! long, and nothing is lost meanwhile.

use super::{Config, Queue, Refused};
use crate::dead_letter::bodies::{Bodies, Unsynced, Written};
use crate::metrics::UndecodableMetrics;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A flood leaves the disk to the spool: there is one sync in this time at the most,
const PERIOD: Duration = Duration::from_secs(1);
/// and no more than about so many bytes are written between two of them.
const BURST: u64 = 2 << 20;
/// How often the log tells of bodies that are lost.
const COMPLAIN: Duration = Duration::from_secs(60);

/// Writes what is in the queue.
pub struct Writer {
    queue: Arc<Queue>,
    config: Config,
    spool: PathBuf,
    /// `None` until stock was taken, which reads all that is kept.
    bodies: Option<Bodies>,
    syncer: Syncer,
    /// Bodies and bytes that the syncer does not have yet.
    unsynced: (u64, u64),
    /// When it may have them.
    due: Instant,
    complaints: Complaints,
}

impl Writer {
    pub fn new(queue: Arc<Queue>, config: Config, spool: PathBuf) -> io::Result<Self> {
        let syncer = Syncer::start(queue.metrics.clone())?;
        let (unsynced, due, complaints) = ((0, 0), Instant::now(), Complaints::default());
        Ok(Self { queue, config, spool, bodies: None, syncer, unsynced, due, complaints })
    }

    /// Writes until the queue is closed and empty.
    pub fn run(mut self) {
        let burst = BURST.min(self.config.max_size.as_u64());
        loop {
            let batch = self.queue.take((self.unsynced.0 > 0).then_some(self.due));
            let ended = batch.is_empty() && self.queue.state().closed;
            let mut result = self.write(batch);
            if self.unsynced.1 >= burst {
                self.queue.pause(self.due);
            }
            if ended || Instant::now() >= self.due {
                self.sync(ended);
            }
            if let Some(error) = self.syncer.failure() {
                // What a file holds whose sync failed nobody knows.
                self.bodies.iter_mut().for_each(Bodies::abandon);
                result = Err(error);
            }
            self.complaints.note(&self.queue.metrics, result.err());
            if ended {
                return;
            }
        }
    }

    fn write(&mut self, batch: Vec<Refused<'_>>) -> io::Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let (written, result) = match self.bodies() {
            Ok(bodies) => bodies.append(&batch),
            Err(error) => (Written { failed: batch.len() as u64, ..Written::default() }, Err(error)),
        };
        self.unsynced.0 += written.added;
        self.unsynced.1 += written.bytes;
        let metrics = &self.queue.metrics;
        metrics.oldest.inc_by(written.oldest);
        metrics.too_large.inc_by(written.too_large);
        metrics.failed.inc_by(written.failed);
        let freed = batch.iter().map(Refused::memory).sum();
        drop(batch);
        self.queue.held.fetch_sub(freed, Ordering::Relaxed);
        result
    }

    /// Hands over what was written, unless the syncer is behind; at the end it has to take it all the same.
    fn sync(&mut self, at_the_end: bool) {
        if self.unsynced.0 > 0
            && (at_the_end || !self.syncer.is_busy())
            && let Some(bodies) = &mut self.bodies
        {
            self.syncer.begin(bodies.take_unsynced(), std::mem::take(&mut self.unsynced).0);
        }
        self.due = Instant::now() + PERIOD;
    }

    fn bodies(&mut self) -> io::Result<&mut Bodies> {
        match &mut self.bodies {
            Some(bodies) => Ok(bodies),
            none => Ok(none.insert(Bodies::open(&self.spool, &self.config)?)),
        }
    }
}

/// Files and how many bodies were added to them.
type Job = (Unsynced, u64);

/// Makes bodies durable and counts them; ends with what it has when dropped.
struct Syncer {
    jobs: Option<SyncSender<Job>>,
    progress: Arc<Progress>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Progress {
    busy: AtomicBool,
    failure: Mutex<Option<io::Error>>,
}

impl Syncer {
    fn start(metrics: UndecodableMetrics) -> io::Result<Self> {
        let (jobs, waiting) = sync_channel(1);
        let progress = Arc::<Progress>::default();
        let thread = std::thread::Builder::new().name("undecodable-sync".into()).spawn({
            let progress = progress.clone();
            move || progress.run(&waiting, &metrics)
        })?;
        Ok(Self { jobs: Some(jobs), progress, thread: Some(thread) })
    }

    fn is_busy(&self) -> bool {
        self.progress.busy.load(Ordering::Acquire)
    }

    fn begin(&self, unsynced: Unsynced, count: u64) {
        self.progress.busy.store(true, Ordering::Release);
        // The thread outlives the channel.
        let _ = self.jobs.as_ref().map(|jobs| jobs.send((unsynced, count)));
    }

    /// Why a sync failed, once.
    fn failure(&self) -> Option<io::Error> {
        self.progress.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Progress {
    fn run(&self, jobs: &Receiver<Job>, metrics: &UndecodableMetrics) {
        while let Ok((unsynced, count)) = jobs.recv() {
            match unsynced.sync() {
                Ok(()) => metrics.kept.inc_by(count),
                Err(error) => {
                    *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    metrics.failed.inc_by(count)
                }
            };
            self.busy.store(false, Ordering::Release);
        }
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.jobs = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that syncs undecodable bodies panicked");
        }
    }
}

/// Tells of losses, but not of each.
#[derive(Default)]
struct Complaints {
    last: Option<Instant>,
    told: u64,
}

impl Complaints {
    fn note(&mut self, metrics: &UndecodableMetrics, error: Option<io::Error>) {
        let lost = [&metrics.busy, &metrics.oldest, &metrics.too_large, &metrics.failed].map(|cause| cause.get());
        let lost: u64 = lost.iter().sum();
        let due = self.last.is_none_or(|last| last.elapsed() >= COMPLAIN);
        if lost == self.told || !due {
            return;
        }
        let error = error.map(|error| error.to_string());
        tracing::warn!(
            bodies = lost - self.told,
            error,
            "bodies that could not be decoded are lost; `ingress.undecodable` bounds how many are kept"
        );
        self.told = lost;
        self.last = Some(Instant::now());
    }
}
