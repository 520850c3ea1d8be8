//! A disk that hangs, and a directory that is deleted under the running spool.

use super::promises::{eventually, read_until};
use super::*;
use crate::spool::disk::simulated::Operation;
use std::task::{Context, Waker};
use std::time::Instant;
use tokio::sync::Semaphore;

fn impatient() -> Config {
    Config { append_timeout: Duration::from_millis(50), ..config() }
}

#[tokio::test]
async fn an_append_has_a_deadline_and_its_events_are_duplicates_when_they_are_sent_again() {
    let machine = Machine::new(0);
    let spool = Spool::on(machine.mount(), &impatient(), &["analytics"], SpoolMetrics::default()).unwrap();
    spool.append(vec![event(0, 10)]).await.unwrap();
    let hanging = machine.hang();
    let begun = Instant::now();
    let answer = spool.append(vec![event(1, 10)]).await;
    assert_eq!(answer, Err(AppendError::TimedOut { after: Duration::from_millis(50) }));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let trouble = eventually(async || spool.health().err()).await;
    assert!(trouble.starts_with("the disk hangs: an append has waited for "), "{trouble}");
    assert!(begun.elapsed() > Duration::from_secs(3), "a slow sync is no trouble yet");

    drop(hanging);
    eventually(async || spool.health().ok()).await;
    let again = eventually(async || spool.append(vec![event(1, 10), event(2, 10)]).await.ok()).await;
    assert_eq!(again, Appended { stored: 1, duplicates: 1 });
    assert_eq!(read_until(&mut spool.reader("analytics").unwrap(), 3).await, events(0..3, 10));
}

#[tokio::test]
async fn a_client_that_goes_frees_its_memory_while_the_disk_hangs() {
    let machine = Machine::new(0);
    let memory = Arc::new(Semaphore::new(1000));
    let spool = Spool::on(machine.mount(), &config(), &["analytics"], SpoolMetrics::default()).unwrap();
    let hanging = machine.hang();
    let place = |number| {
        let permit = memory.clone().try_acquire_owned().unwrap();
        let mut placing = Box::pin(spool.place(vec![event(number, 10)], Some(permit)));
        assert!(placing.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        placing
    };
    let first = place(0);
    eventually(async || (spool.shared.queue.len() == 0).then_some(())).await;
    // The disk has not hung for long when these clients go: they may be senders that do not wait for an answer.
    drop(place(1));
    assert_eq!(spool.shared.queue.len(), 1);
    let waiting: Vec<_> = (100..500).map(place).collect();
    assert_eq!(memory.available_permits(), 1000 - 402);
    let stuck = Instant::now() + Duration::from_millis(1100);
    eventually(async || (Instant::now() > stuck).then_some(())).await;
    drop(waiting);
    assert_eq!((spool.shared.queue.len(), memory.available_permits()), (1, 1000 - 2));
    drop(hanging);
    first.await.unwrap();
    spool.append(vec![event(2, 10)]).await.unwrap();
    assert_eq!(memory.available_permits(), 1000);
    assert_eq!(read_until(&mut spool.reader("analytics").unwrap(), 3).await, events(0..3, 10));
}

#[tokio::test]
async fn a_deleted_directory_refuses_the_next_append_and_gives_what_is_in_open_files() {
    for in_memory in [0, 100_000] {
        let machine = Machine::new(0);
        let config = Config { read_cache: ByteSize::b(in_memory), segment_size: Some(ByteSize::kib(32)), ..config() };
        let spool = Spool::on(machine.mount(), &config, &["analytics"], SpoolMetrics::default()).unwrap();
        spool.append(events(0..20, 100)).await.unwrap();
        machine.delete_directory();
        for number in 20..23 {
            let refused = spool.append(vec![event(number, 100)]).await.unwrap_err();
            assert!(matches!(refused, AppendError::Failed { .. }), "{refused}");
        }
        assert!(spool.health().unwrap_err().contains("have been deleted under the running bridge"));
        assert_eq!(spool.append(vec![event(1, 100)]).await.unwrap().duplicates, 1);
        assert_eq!(read_until(&mut spool.reader("analytics").unwrap(), 20).await, events(0..20, 100));
        spool.settle(&spool.cursor("analytics").unwrap(), 20);
        spool.close();
        assert!(machine.files().is_empty(), "it does not begin a new spool by itself");
    }
}

#[tokio::test]
async fn a_deleted_directory_is_noticed_while_nothing_is_appended() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("spool");
    let spool = Spool::open(&Config { path: path.clone(), ..config() }, &["analytics"], SpoolMetrics::default());
    let spool = spool.unwrap();
    spool.append(events(0..20, 100)).await.unwrap();
    std::fs::remove_dir_all(&path).unwrap();
    let begun = Instant::now();
    eventually(async || spool.health().err()).await;
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    // A directory of the same name is another one.
    std::fs::create_dir(&path).unwrap();
    spool.append(vec![event(50, 100)]).await.unwrap_err();
    spool.close();
    assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
}

#[test]
fn a_segment_whose_name_is_deleted_takes_no_more_acknowledged_records() {
    let machine = Machine::new(0);
    let mut life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
    life.store(events(0..2, 100)).unwrap();
    machine.take(&segment::name(0));
    assert!(matches!(life.store(events(2..3, 100)), Err(AppendError::Failed { .. })));
    let created = machine.count(Operation::Create);
    assert!(matches!(life.store(events(2..3, 100)), Err(AppendError::Failed { .. })));
    assert_eq!(machine.count(Operation::Create), created);
}

/// In a directory that others can write, a link could point at any file of this user.
#[test]
fn symbolic_links_in_the_directory_are_not_followed() {
    for name in ["lock", "cursor-analytics", log::ACKNOWLEDGED, &segment::name(0), "index-new"] {
        let directory = tempfile::tempdir().unwrap();
        let victim = directory.path().join("victim");
        std::fs::write(&victim, "precious").unwrap();
        let path = directory.path().join("spool");
        std::fs::create_dir(&path).unwrap();
        std::os::unix::fs::symlink(&victim, path.join(name)).unwrap();
        let spool = Spool::open(&Config { path: path.clone(), ..config() }, &["analytics"], SpoolMetrics::default());
        if name == "index-new" {
            let mut changes = window::Changes::default();
            changes.new.push(("dedup-0".into(), b"new".into()));
            let made = spool.map(|_| changes.make(&Directory::read_only(&path).unwrap()));
            assert!(made.unwrap().is_ok(), "a new file takes the place of the link");
        } else {
            let error = spool.unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("symbolic link"), "{error}");
        }
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
    }
}
