use super::*;
use crate::event::Event;
use std::sync::Arc;

fn record(offset: u64, payload: &str) -> (Record, Message) {
    let event = Event::parse(payload, 9, Arrival(1_634_721_099_442)).unwrap();
    let event = event.with_query(Some("n=1".into()));
    let message = Message::of(event.id(), event.payload().clone(), "t", "a\nb/c", "c").with_header("ce_id", "x");
    (Record { offset, target: None, event }, message)
}

fn letters(spool: &Path, max_size: u64) -> DeadLetters {
    let config = Config { max_size: ByteSize(max_size) };
    DeadLetters::new(spool, "kafka", &config, DeadLetterMetrics::default())
}

fn all(spool: &Path) -> Vec<Found<DeadLetter>> {
    let mut letters = Letters::of(spool, "kafka").unwrap();
    let mut all = Vec::new();
    while let Some(found) = letters.read_next().unwrap() {
        all.push(found);
    }
    assert_eq!(letters.damaged(), 0);
    all
}

#[tokio::test]
async fn a_dead_letter_is_one_line_with_everything_and_a_torn_one_costs_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let payload = "{\"team\":\"a\\nb\",\n\"conversation_uuid\":\"c\"}";
    let (record, message) = record(17, payload);
    letters(dir.path(), 1 << 20).keep(&record, &message, "too \"large\"").await.unwrap();
    let path = dir.path().join("dead-letters/kafka/00000000000000000000.ndjson");
    let written = std::fs::read(&path).unwrap();
    let line: serde_json::Value = serde_json::from_slice(&written).unwrap();
    assert_eq!((&line["number"], &line["offset"], &line["query"]), (&0.into(), &17.into(), &"n=1".into()));
    assert_eq!((&line["reason"], &line["payload"]), (&"too \"large\"".into(), &payload.into()));
    assert_eq!((&line["key"], &line["headers"]["ce_id"]), (&"a\nb/c".into(), &"x".into()));
    assert_eq!((&line["arrival"], &line["ingress"]), (&"2021-10-20T09:11:39.442Z".into(), &"default".into()));

    // The process that wrote half a line has gone, and the next one has the same record once more.
    std::fs::write(&path, [&written[..], b"{\"number\":1,\"torn"].concat()).unwrap();
    let letters = letters(dir.path(), 1 << 20);
    letters.keep(&record, &message, "twice").await.unwrap();
    letters.keep(&Record { offset: 18, ..record.clone() }, &message, "other").await.unwrap();
    let found = all(dir.path());
    assert_eq!(found.iter().map(|found| found.item.reason.as_str()).collect::<Vec<_>>(), ["too \"large\"", "other"]);
    assert_eq!(found.iter().map(|found| found.item.number).collect::<Vec<_>>(), [0, 2]);
    assert_eq!(found[0].item.query.as_deref(), Some("n=1"));
    assert_eq!(sinks(dir.path()).unwrap(), ["kafka"]);

    // A file that somebody has moved away is not written to.
    std::fs::rename(dir.path().join("dead-letters"), dir.path().join("moved")).unwrap();
    letters.keep(&record, &message, "after").await.unwrap();
    assert_eq!(all(dir.path()).len(), 1);
}

#[tokio::test]
async fn dead_letters_that_come_together_share_a_sync_and_at_the_bound_none_is_dropped() {
    const BOUND: u64 = 64 << 10;
    let dir = tempfile::tempdir().unwrap();
    let letters = Arc::new(letters(dir.path(), BOUND));
    let payload = format!("{{\"x\":\"{}\"}}", "x".repeat(500));
    let mut tasks = tokio::task::JoinSet::new();
    for offset in 0..200 {
        let (letters, (record, message)) = (letters.clone(), record(offset, &payload));
        tasks.spawn(async move { letters.keep(&record, &message, "refused").await });
    }
    let results = tasks.join_all().await;
    let kept = results.iter().filter(|result| result.is_ok()).count();
    let full = KeepError::Full { max_size: ByteSize(BOUND) };
    assert!(kept > 50 && kept < 200, "{kept}");
    assert!(results.iter().all(|result| result.is_ok() || *result == Err(full.clone())), "{results:?}");
    assert_eq!(all(dir.path()).len(), kept);
    let size = directory(dir.path(), "kafka").size().unwrap();
    assert!(size <= BOUND && size > BOUND - 2000, "{size}");
    assert_eq!((letters.0.metrics.bytes.get(), letters.0.metrics.max_bytes.get()), (size as i64, BOUND as i64));

    // Space that a command frees is used.
    let (record, message) = record(999, &payload);
    assert_eq!(letters.keep(&record, &message, "held").await, Err(full));
    assert_eq!(directory(dir.path(), "kafka").prune(&[3, 4].into()).unwrap(), 2);
    letters.keep(&record, &message, "held").await.unwrap();
    assert_eq!(all(dir.path()).len(), kept - 1);
}

#[tokio::test]
async fn a_cancelled_publish_does_not_cost_the_letters_of_others() {
    let dir = tempfile::tempdir().unwrap();
    let letters = letters(dir.path(), 1 << 20);
    let (first, message) = record(1, "{\"n\":1}");
    let held = letters.0.store.clone().lock_owned().await;
    let mut cancelled = Box::pin(letters.keep(&first, &message, "cancelled"));
    assert!(futures_util::FutureExt::now_or_never(&mut cancelled).is_none());
    drop((cancelled, held));
    let (second, message) = record(2, "{\"n\":2}");
    letters.keep(&second, &message, "kept").await.unwrap();
    assert_eq!(all(dir.path()).last().unwrap().item.offset, 2);
}

#[tokio::test]
async fn symbolic_links_are_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let target = elsewhere.path().join("victim");
    std::fs::write(&target, "unharmed").unwrap();
    let (record, message) = record(1, "{\"n\":1}");
    // The directory of all dead letters, that of the sink, the lock, and the next file.
    let parent = dir.path().join("dead-letters");
    let own = parent.join("kafka");
    let refused = async || {
        let refused = letters(dir.path(), 1 << 20).keep(&record, &message, "x").await;
        assert!(matches!(refused, Err(KeepError::Failed { .. })), "{refused:?}");
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "unharmed");
        assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 1);
    };
    std::os::unix::fs::symlink(elsewhere.path(), &parent).unwrap();
    refused().await;
    std::fs::remove_file(&parent).unwrap();
    std::fs::create_dir(&parent).unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), &own).unwrap();
    refused().await;
    assert!(Letters::of(dir.path(), "kafka").is_err());
    std::fs::remove_file(&own).unwrap();
    std::fs::create_dir(&own).unwrap();
    std::os::unix::fs::symlink(&target, own.join("lock")).unwrap();
    refused().await;
    std::fs::remove_file(own.join("lock")).unwrap();
    // The bridge's own file takes the place of the link.
    std::os::unix::fs::symlink(&target, own.join("00000000000000000000.ndjson")).unwrap();
    letters(dir.path(), 1 << 20).keep(&record, &message, "x").await.unwrap();
    assert_eq!(std::fs::read_to_string(&target).unwrap(), "unharmed");
    std::os::unix::fs::symlink(&target, own.join("00000000000000000000.replayed")).unwrap();
    assert!(directory(dir.path(), "kafka").mark_replayed(&[0]).is_err());
    assert_eq!(std::fs::read_to_string(&target).unwrap(), "unharmed");
}
