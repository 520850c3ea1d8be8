//! The parts of the spool that its threads and readers have in common.

use super::Config;
use super::cursor::{self, Cursor, PositionFile};
use super::disk::Disk;
use super::index::Index;
use super::log::{self, Log};
use super::maintenance::Signal;
use super::queue::{AppendError, Queue};
use super::recovery::{self, Proven, Recovered};
use crate::event::Arrival;
use crate::metrics::SpoolMetrics;
use parking_lot::{Mutex, RwLock};
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::watch;

/// Why nothing can be stored once the directory is gone.
pub const DIRECTORY_LOST: &str = "its directory or files have been deleted under the running bridge; restart it";

/// The parts of the spool that its threads and readers have in common.
#[derive(Debug)]
pub struct Shared {
    pub log: Log,
    pub index: Mutex<Index>,
    /// Of the sinks that run now. Held for reading while segments are removed.
    pub cursors: RwLock<Vec<Arc<Cursor>>>,
    pub queue: Arc<Queue>,
    pub maintenance: Signal,
    pub metrics: SpoolMetrics,
    directory_lost: AtomicBool,
    /// Whether one of the threads has panicked.
    pub abandoned: watch::Sender<bool>,
}

impl Shared {
    /// Recovers the log, the cursors and the index.
    pub fn open(
        disk: Box<dyn Disk>,
        config: &Config,
        sinks: &[&str],
        metrics: SpoolMetrics,
        now: Arrival,
    ) -> io::Result<Self> {
        let found = recovery::list(&*disk)?;
        log::clean_up(&*disk);
        let mut cursors = Vec::new();
        for sink in sinks {
            cursors.push(Arc::new(Cursor::open(&*disk, sink)?));
        }
        let (acknowledged_file, acknowledged) = PositionFile::open(&*disk, log::ACKNOWLEDGED)?;
        let (removed_file, removed) = PositionFile::open(&*disk, log::REMOVED)?;
        let settled = cursors.iter().map(|cursor| cursor.position()).max().unwrap_or_default();
        let mut acknowledged = acknowledged.unwrap_or_default().max(settled);
        for file in disk.list()? {
            if let Some(sink) = cursor::sink(&file).filter(|sink| !sinks.contains(sink)) {
                tracing::warn!(sink, "the spool has a cursor of a sink that is not configured; nothing is kept for it");
                acknowledged = acknowledged.max(cursor::peek(&*disk, &file)?.unwrap_or_default());
            }
        }
        let proven = Proven { removed, acknowledged };
        let Recovered { segments, end, torn, lost } = recovery::recover(&*disk, found, proven, true)?;
        if torn > 0 {
            tracing::warn!(bytes = torn, "cut unacknowledged records off the end of the spool");
        }
        for lost in lost {
            report_damage(&metrics, &lost, lost.end - lost.start);
        }
        let start = segments.first_key_value().map_or(end, |(base, _)| *base);
        cursors.iter().for_each(|cursor| cursor.set(start));
        if removed.is_none() {
            removed_file.sync(start)?;
        }
        let mut index = Index::new(config);
        index.load(&*disk, &segments, end, now);
        Ok(Self {
            log: Log::new(disk, config, [acknowledged_file, removed_file], segments, end),
            index: Mutex::new(index),
            cursors: RwLock::new(cursors),
            queue: Arc::default(),
            maintenance: Signal::default(),
            metrics,
            directory_lost: AtomicBool::new(false),
            abandoned: watch::Sender::new(false),
        })
    }

    /// The position of the sink that is furthest behind.
    pub fn slowest(&self) -> u64 {
        self.cursors.read().iter().map(|cursor| cursor.position()).min().unwrap_or_default()
    }

    /// Takes note of acknowledged records that cannot be read, and reports them once. A reader whose sink has passed them meanwhile proves
    /// nothing: their file may have been removed.
    pub fn lose(&self, base: u64, lost: Range<u64>) {
        if lost.end <= self.slowest() {
            return;
        }
        let news = self.log.lose(base, lost.clone());
        if news > 0 {
            self.index.lock().forget(&lost);
            report_damage(&self.metrics, &lost, news);
        }
    }

    /// Sees to it that there is room for a segment of `size` bytes, and if possible for another one: sinks that are not required skip
    /// the oldest records, as far as required sinks have passed them.
    pub fn free(&self, size: u64) -> Result<(), AppendError> {
        let missing = self.log.excess(size, size);
        if missing > 0 {
            let cursors = self.cursors.read();
            let required = cursors.iter().filter(|cursor| !cursor.is_optional());
            let passed = required.map(|cursor| cursor.position()).min().unwrap_or(self.log.end());
            let until = self.log.oldest(missing, passed);
            for cursor in cursors.iter().filter(|cursor| cursor.is_optional()) {
                let skipped = cursor.skip(until);
                if skipped > 0 {
                    self.metrics.skipped(cursor.sink()).inc_by(skipped);
                    tracing::error!(
                        sink = cursor.sink(),
                        records = skipped,
                        "spool full: records skipped for a sink that is not required"
                    );
                }
            }
            self.maintenance.wake();
        }
        match self.log.excess(size, 0) {
            0 => Ok(()),
            _ => Err(AppendError::Full { retry_after: self.until_free(size) }),
        }
    }

    pub fn is_directory_lost(&self) -> bool {
        self.directory_lost.load(Ordering::Acquire)
    }

    /// Takes nothing more, for good: the files that are open are lost when the process ends, and the directory may be another's by now.
    pub fn lose_directory(&self) {
        if !self.directory_lost.swap(true, Ordering::AcqRel) {
            tracing::error!(
                "the spool's directory or files have been deleted under the running bridge; webhooks are refused, records in \
                 memory and in open files are still delivered; restart the bridge for a new spool"
            );
        }
        self.queue.set_trouble(Some(AppendError::Failed { cause: DIRECTORY_LOST.to_owned() }.to_string()));
    }
}

/// Refuses further appends if a thread of the spool panics, and says so.
pub struct AbandonOnPanic(pub Arc<Shared>);

impl Drop for AbandonOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.queue.break_off("a thread of the spool panicked; restart the bridge");
            self.0.abandoned.send_replace(true);
        }
    }
}

fn report_damage(metrics: &SpoolMetrics, lost: &Range<u64>, news: u64) {
    metrics.damaged_records.inc_by(news);
    tracing::error!(
        from = lost.start,
        until = lost.end,
        "records of the spool are unreadable and will not be delivered; their file is kept aside as damaged-*"
    );
}
