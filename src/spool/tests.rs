//! The spool against a simulated disk. Most tests drive the writer and the maintenance by hand, without their threads: then everything
//! that happens follows from a seed.

mod conversations;
mod damage;
mod deadline;
mod duplicates;
mod format;
mod full_disk;
mod keeping;
mod model;
mod promises;

use super::disk::simulated::Machine;
use super::segment::{Found, Scan};
use super::*;
use crate::event::EventId;
use bytesize::ByteSize;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::LazyLock;
use std::time::Duration;

/// When all events arrived, so that the same number always gives the same event.
static START: LazyLock<Arrival> = LazyLock::new(Arrival::now);

/// A number for as many different events as a test wants.
fn event(number: u64, size: usize) -> Event {
    let conversation = format!("call-{}", number % 5);
    let payload = format!("event {number} {}", "x".repeat(size));
    Event::restore(&payload, EventId(u128::from(number).to_be_bytes()), &conversation, *START)
}

fn events(numbers: Range<u64>, size: usize) -> Vec<Event> {
    numbers.map(|number| event(number, size)).collect()
}

fn config() -> Config {
    Config {
        max_size: ByteSize::kib(64),
        segment_size: Some(ByteSize::kib(4)),
        dedup_window: Duration::from_secs(3600),
        dedup_capacity: 100_000,
        read_cache: ByteSize::b(0),
        ..Config::default()
    }
}

/// One life of the process that has the spool, without threads.
struct Life {
    shared: Arc<Shared>,
    writer: Writer,
    maintenance: Maintenance,
}

impl Life {
    fn begin(machine: &Machine, config: &Config, sinks: &[&str]) -> io::Result<Self> {
        Self::begin_at(Arrival::now(), machine, config, sinks)
    }

    /// The same with a clock that stands still.
    fn begin_at(now: Arrival, machine: &Machine, config: &Config, sinks: &[&str]) -> io::Result<Self> {
        let shared = Arc::new(Shared::open(machine.mount(), config, sinks, SpoolMetrics::default(), now)?);
        let (mut writer, maintenance) = (Writer::new(shared.clone()), Maintenance::new(shared.clone()));
        writer.pause = Duration::ZERO;
        writer.clock = Box::new(move || now);
        Ok(Self { shared, writer, maintenance })
    }

    /// Stores requests in one or more group commits; for each group commit, the results of its requests.
    fn append(&mut self, requests: Vec<Vec<Event>>) -> Vec<Vec<Result<Appended, AppendError>>> {
        let mut queue = VecDeque::new();
        let mut answers = VecDeque::new();
        for events in requests {
            let (done, answer) = oneshot::channel();
            queue.push_back(Append::new(events, Purpose::Webhook, None, done));
            answers.push_back(answer);
        }
        let mut groups = Vec::new();
        while !queue.is_empty() {
            let waiting = queue.len();
            self.writer.commit(&mut queue);
            let group = answers.drain(..waiting - queue.len());
            groups.push(group.map(|mut answer| answer.try_recv().unwrap().map(|placed| placed.count())).collect());
        }
        groups
    }

    /// Stores one request.
    fn store(&mut self, events: Vec<Event>) -> Result<Appended, AppendError> {
        self.append(vec![events]).remove(0).remove(0)
    }

    fn end(&self) -> u64 {
        self.shared.log.end()
    }

    fn start(&self) -> u64 {
        self.shared.log.status().start
    }

    fn reader(&self, position: u64) -> Reader {
        Reader::new(self.shared.clone(), position)
    }

    /// All records from `position` on.
    fn read_from(&self, position: u64) -> Vec<Arc<Record>> {
        let mut reader = self.reader(position);
        let mut records = Vec::new();
        while reader.position() < self.end() {
            records.extend(read(&mut reader, 1000).unwrap());
        }
        records
    }

    /// All events from `position` on.
    fn events_from(&self, position: u64) -> Vec<Event> {
        self.read_from(position).iter().map(|record| record.event.clone()).collect()
    }

    /// Lets every sink settle everything below `position`, durably.
    fn settle(&mut self, position: u64) {
        self.shared.cursors.read().iter().for_each(|cursor| cursor.set(position));
        self.maintenance.round(true);
    }

    fn damaged_records(&self) -> u64 {
        self.shared.metrics.damaged_records.get()
    }
}

fn offsets(records: &[Arc<Record>]) -> Vec<u64> {
    records.iter().map(|record| record.offset).collect()
}

/// What [`Reader::read`] does, on this thread.
fn read(reader: &mut Reader, bytes: usize) -> io::Result<Vec<Arc<Record>>> {
    if let Some(records) = reader.take_cached(bytes) {
        return Ok(records);
    }
    // As much as may be ready before it is asked for.
    read_from_disk(reader, 3 * bytes)?;
    Ok(reader.hand_out(bytes))
}

fn read_from_disk(reader: &mut Reader, bytes: usize) -> io::Result<()> {
    let mut disk = reader.disk_reader();
    let records = disk.read(bytes);
    reader.take(disk, records)
}

/// How many cases a property is tried with, and the first seed; `CDRELAY_SPOOL_CASES` and `CDRELAY_SPOOL_SEED` set them.
fn seeds(cases: u64) -> impl Iterator<Item = u64> {
    let variable = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let first = variable("CDRELAY_SPOOL_SEED").unwrap_or_else(|| fastrand::u64(..1 << 48));
    let cases = variable("CDRELAY_SPOOL_CASES").unwrap_or(cases);
    println!("CDRELAY_SPOOL_SEED={first} CDRELAY_SPOOL_CASES={cases}");
    first..first + cases
}

/// Says how to run a failed case again.
struct Case(u64);

impl Drop for Case {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("failed: CDRELAY_SPOOL_SEED={} CDRELAY_SPOOL_CASES=1", self.0);
        }
    }
}
