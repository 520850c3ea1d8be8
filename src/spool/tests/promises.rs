//! What the spool promises, one by one: first as a whole with its threads and a directory, then step by step.

use super::*;
use crate::spool::disk::simulated::Operation;
use crate::spool::disk::{DiskFile, LockError};
use futures_util::future::join_all;
use std::future::Future;
use std::task::{Context, Waker};
use std::time::Instant;

fn open(path: &std::path::Path, sinks: &[&str]) -> Result<Spool, OpenError> {
    Spool::open(&Config { path: path.into(), ..config() }, sinks, SpoolMetrics::default())
}

pub(super) async fn read_until(reader: &mut Reader, end: u64) -> Vec<Event> {
    let mut events = Vec::new();
    while reader.position() < end {
        reader.ready().await;
        events.extend(reader.read(1000).await.unwrap().iter().map(|record| record.event.clone()));
    }
    events
}

/// Waits until `attempt` brings something.
pub(super) async fn eventually<T>(mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = attempt().await {
            return found;
        }
        assert!(Instant::now() < deadline, "not within a minute");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_spool_in_a_directory_keeps_everything_over_restarts() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a/b/spool");
    for life in 0..3 {
        let spool = open(&path, &["analytics"]).unwrap();
        let sent = events(life * 20..(life + 1) * 20, 300);
        for event in &sent {
            assert_eq!(spool.append(vec![event.clone()]).await, Ok(Appended { stored: 1, duplicates: 0 }));
        }
        let mut reader = spool.reader("analytics").unwrap();
        assert_eq!(reader.position(), (life * 20).saturating_sub(5));
        let expected = events(reader.position()..(life + 1) * 20, 300);
        assert_eq!(read_until(&mut reader, (life + 1) * 20).await, expected);
        spool.settle(&spool.cursor("analytics").unwrap(), reader.position() - 5);
        spool.close();
        assert_eq!(spool.append(sent).await, Err(AppendError::Closed));
    }
    let spool = open(&path, &["analytics"]).unwrap();
    spool.settle(&spool.cursor("analytics").unwrap(), 60);
    drop(spool);
    let names = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut files: Vec<_> = names.map(|name| name.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned()).collect();
    files.sort();
    let kept = ["acknowledged", "cursor-analytics", "dedup-", "legs-", "lock", "names-", "removed"];
    assert_eq!(files, kept, "segments that all sinks have passed are removed");
    assert_eq!(open(&path, &["analytics"]).unwrap().status().end, 60);
}

#[tokio::test]
async fn records_come_in_order_from_disk_and_are_skipped_when_their_reader_goes_on_elsewhere() {
    let directory = tempfile::tempdir().unwrap();
    let large = Config { path: directory.path().into(), max_size: ByteSize::mib(1), ..config() };
    let spool = Spool::open(&large, &["analytics"], SpoolMetrics::default()).unwrap();
    let sent = events(0..600, 900);
    for some in sent.chunks(50) {
        spool.append(some.to_vec()).await.unwrap();
    }
    let mut reader = spool.reader("analytics").unwrap();
    let mut random = fastrand::Rng::with_seed(7);
    let mut next = 0;
    while next < 600 {
        let bytes = random.usize(0..40_000);
        let records = reader.read(bytes).await.unwrap();
        let held = records.iter().map(|record| record.event.memory()).sum::<usize>();
        assert!(records.len() == 1 || held <= bytes, "{} records of {held} bytes, {bytes} wanted", records.len());
        for record in &records {
            assert_eq!((record.offset, &record.event), (next, &sent[next as usize]));
            next += 1;
        }
        assert_eq!(reader.position(), next);
        if random.u32(0..8) == 0 {
            next += random.u64(1..60);
            reader.advance(next);
            assert_eq!(reader.position(), next);
        }
    }
    assert!(reader.read(1).await.unwrap().is_empty());
}

#[test]
fn a_second_process_is_refused_and_told_who_has_the_spool() {
    let directory = tempfile::tempdir().unwrap();
    let first = open(directory.path(), &["analytics"]).unwrap();
    let error = open(directory.path(), &["analytics"]).unwrap_err();
    assert!(matches!(&error, OpenError::Lock(LockError::InUse { .. })));
    assert_eq!(
        error.to_string(),
        format!(
            "spool {} is in use by another process (pid {}); give every bridge a spool of its own, or stop the other one",
            directory.path().display(),
            std::process::id()
        )
    );
    drop(first);
    open(directory.path(), &["analytics"]).unwrap();
}

#[test]
fn a_path_that_cannot_be_a_spool_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = open(&file, &[]).unwrap_err().to_string();
    assert!(error.starts_with(&format!("spool {}: ", file.display())) && error.contains("writable"), "{error}");
}

#[tokio::test]
async fn requests_that_wait_together_share_a_sync() {
    let directory = tempfile::tempdir().unwrap();
    let config = Config { path: directory.path().into(), ..Config::default() };
    let metrics = SpoolMetrics::default();
    let spool = Spool::open(&config, &["analytics"], metrics.clone()).unwrap();
    let stored = join_all((0..400).map(|number| spool.append(vec![event(number, 100)]))).await;
    assert!(stored.iter().all(Result::is_ok));
    assert!(metrics.syncs.get() < 400, "{} syncs for 400 requests", metrics.syncs.get());

    let machine = Machine::new(0);
    let mut life = Life::begin(&machine, &config, &["analytics"]).unwrap();
    life.store(vec![event(1000, 10)]).unwrap();
    let syncs = machine.count(Operation::Sync);
    assert_eq!(life.append((0..400).map(|number| vec![event(number, 100)]).collect()).len(), 1);
    assert_eq!(machine.count(Operation::Sync), syncs + 1);
}

#[tokio::test]
async fn a_request_whose_sender_has_gone_is_stored_all_the_same() {
    let spool = Spool::on(Machine::new(0).mount(), &config(), &["analytics"], SpoolMetrics::default()).unwrap();
    {
        let gone = std::pin::pin!(spool.append(vec![event(0, 10)]));
        let _ = gone.poll(&mut Context::from_waker(Waker::noop()));
    }
    spool.append(vec![event(1, 10)]).await.unwrap();
    assert_eq!(read_until(&mut spool.reader("analytics").unwrap(), 2).await, events(0..2, 10));
}

#[tokio::test]
async fn a_full_spool_refuses_until_the_sinks_have_caught_up() {
    let machine = Machine::new(0);
    let spool = Spool::on(machine.mount(), &config(), &["fast", "slow"], SpoolMetrics::default()).unwrap();
    let mut stored = 0;
    let retry_after = loop {
        match spool.append(vec![event(stored, 900)]).await {
            Ok(_) => stored += 1,
            Err(AppendError::Full { retry_after }) => break retry_after,
            Err(other) => panic!("{other}"),
        }
    };
    assert_eq!(stored, 16 * 4, "all of the room is used");
    assert_eq!(retry_after, Duration::from_secs(60), "nobody drains");
    assert_eq!(spool.health(), Err("the spool is full".into()));
    spool.settle(&spool.cursor("fast").unwrap(), stored);
    assert!(spool.append(vec![event(stored, 900)]).await.is_err(), "the slow sink has nothing yet");
    spool.settle(&spool.cursor("slow").unwrap(), 9);
    eventually(async || spool.append(vec![event(stored, 900)]).await.ok()).await;
    assert_eq!(spool.health(), Ok(()));
    assert!(spool.status().bytes <= spool.max_size());
    let mut slow = spool.reader("slow").unwrap();
    assert_eq!(read_until(&mut slow, stored + 1).await, events(9..stored + 1, 900));
    // A file can be the only one and too full for the next request.
    spool.settle(&spool.cursor("slow").unwrap(), stored + 1);
    spool.settle(&spool.cursor("fast").unwrap(), stored + 1);
    eventually(async || spool.append(vec![event(1000, 64_000)]).await.ok()).await;
}

#[test]
fn how_long_to_wait_for_room_follows_from_who_is_behind() {
    let machine = Machine::new(0);
    let mut life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
    life.store(events(0..60, 900)).unwrap();
    assert_eq!(life.shared.until_free(1000), Duration::from_secs(60));
    life.shared.cursors.read()[0].set(60);
    assert_eq!(life.store(vec![event(99, 9000)]), Err(AppendError::Full { retry_after: Duration::from_secs(1) }));
    life.maintenance.round(true);
    assert!(life.store(vec![event(99, 9000)]).is_ok());
    let needed = 100_000 + segment::size_of_record(&event(100, 0), None) as u64;
    let needed = needed + segment::HEADER as u64;
    assert_eq!(life.store(vec![event(100, 100_000)]), Err(AppendError::TooLarge { needed, max_size: 64 << 10 }));
    assert_eq!(life.shared.queue.trouble(), None, "there is nothing wrong with the spool");
}

/// A disk with a bug.
#[derive(Debug)]
struct Defective(Box<dyn Disk>);

impl Disk for Defective {
    fn list(&self) -> io::Result<Vec<String>> {
        self.0.list()
    }
    fn create(&self, name: &str, size: u64) -> io::Result<Arc<dyn DiskFile>> {
        assert!(segment::base(name).is_none(), "a defect, for this test");
        self.0.create(name, size)
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.0.open(name)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.remove(name)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }
    fn exists(&self) -> bool {
        self.0.exists()
    }
}

#[tokio::test]
async fn a_defect_in_the_writer_leaves_nobody_waiting() {
    let disk = Box::new(Defective(Machine::new(0).mount()));
    let spool = Spool::on(disk, &config(), &["analytics"], SpoolMetrics::default()).unwrap();
    for number in 0..5 {
        assert_eq!(spool.append(vec![event(number, 10)]).await, Err(AppendError::Closed));
    }
    let trouble = eventually(async || spool.health().err()).await;
    assert_eq!(trouble, "a thread of the spool panicked; restart the bridge");
    // The bridge ends on this, so that whoever supervises it starts it again.
    tokio::time::timeout(Duration::from_secs(60), spool.abandoned()).await.unwrap();
}

#[test]
fn a_failing_disk_costs_refusals_and_nothing_acknowledged() {
    use Operation::*;
    for operation in [Create, Write, Sync, SyncDirectory, Resize, Remove] {
        for times in [1, 2, 3] {
            for seed in 0..20 {
                let machine = Machine::new(seed);
                let mut life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
                life.store(events(0..3, 100)).unwrap();
                if operation == Create || operation == SyncDirectory {
                    life.writer.seal();
                }
                let acknowledged = machine.bytes(&segment::name(0)).unwrap();
                machine.fail(operation, times);
                let mut refused = 0;
                while life.store(events(3..6, 100)).is_err() {
                    refused += 1;
                    assert!(life.shared.queue.trouble().is_some());
                }
                assert!(refused <= times, "{operation:?} failed {times} times, {refused} requests were refused");
                assert!(refused > 0 || operation == Resize || operation == Remove);
                assert_eq!(life.shared.queue.trouble(), None);
                assert_eq!(life.end(), 6);
                assert_eq!(life.events_from(0), events(0..6, 100));
                let places = segment::HEADER..segment::HEADER + 3 * segment::size_of_record(&event(0, 100), None);
                assert_eq!(machine.bytes(&segment::name(0)).unwrap()[places.clone()], acknowledged[places]);
                machine.mend();
                machine.crash();
                let life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
                assert_eq!(life.events_from(0), events(0..6, 100), "{operation:?} failed {times} times, seed {seed}");
            }
        }
    }
}

#[test]
fn after_a_failure_the_disk_is_left_in_peace_for_a_while() {
    let machine = Machine::new(0);
    let mut life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
    life.store(events(0..2, 10)).unwrap();
    life.writer.pause = Duration::from_secs(3600);
    machine.fail(Operation::Write, 1);
    assert!(matches!(life.store(vec![event(2, 10)]), Err(AppendError::Failed { .. })));
    let before = (machine.count(Operation::Create), machine.count(Operation::Write));
    for _ in 0..10 {
        assert!(matches!(life.store(vec![event(2, 10)]), Err(AppendError::Failed { .. })));
    }
    assert_eq!((machine.count(Operation::Create), machine.count(Operation::Write)), before);
    assert_eq!(life.store(events(0..2, 10)), Ok(Appended { stored: 0, duplicates: 2 }), "these are durable");
    assert!(life.shared.queue.trouble().is_some(), "which does not make the disk well");
}

#[test]
fn a_file_that_could_not_be_removed_is_not_in_the_way() {
    let machine = Machine::new(0);
    let mut life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
    for failing in [Operation::Write, Operation::Sync, Operation::SyncDirectory] {
        machine.fail(failing, 1);
        machine.fail(Operation::Remove, 1);
        assert!(life.store(vec![event(1, 10)]).is_err());
        machine.mend();
        assert!(life.store(vec![event(life.end() + 10, 10)]).is_ok(), "after {failing:?}");
        life.writer.seal();
    }
}

#[test]
fn a_full_disk_at_the_first_start_is_told() {
    let machine = Machine::new(0);
    machine.fail(Operation::Create, 1);
    let error = Life::begin(&machine, &config(), &["analytics"]).err().unwrap().to_string();
    assert_eq!(error, "cannot make cursor-analytics: No space left on device (os error 28)");
}

#[test]
fn what_a_killed_process_left_unsynced_is_made_durable_before_it_counts() {
    for seed in 0..50 {
        let machine = Machine::new(seed);
        let mut life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
        life.store(events(0..2, 100)).unwrap();
        machine.fail(Operation::Sync, 1);
        machine.fail(Operation::Resize, 1);
        assert!(life.store(events(2..4, 100)).is_err());
        machine.kill();
        let mut life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
        let end = life.end();
        let again = life.store(events(2..4, 100)).unwrap();
        assert_eq!(again.duplicates as u64, end - 2, "what is in the log is a duplicate");
        machine.crash();
        let life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
        assert_eq!(life.events_from(0), events(0..4, 100));
    }
}
