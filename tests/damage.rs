//! A disk that loses, flips or refuses what was stored, under a real bridge: what is gone is named, everything else is delivered in
//! order, and nothing is given up that the disk may still have.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::{Value, json};

use crate::support::{ANY_PORTS, Bridge, PATIENCE, eventually, nats};

const CONVERSATIONS: usize = 7;
const EVENTS: usize = 700;

/// A NATS server that is down, and a bridge that has stored [`EVENTS`] for it in more than ten segments. It keeps next to nothing in
/// memory, and reads little ahead: the backlog is on the disk alone.
async fn backlog() -> (nats::Server, Bridge) {
    let mut server = nats::Server::start("").await;
    nats::create_stream(&server.url(), "CDR", &["CDR.>"]).await;
    server.kill();
    let bridge = Bridge::start(&format!(
        "[ingress]\nlisten = '127.0.0.1:0'\n[admin]\nlisten = '127.0.0.1:0'
        [spool]\nmax_size = '8MiB'\nsegment_size = '64KiB'\nread_cache = '1KiB'
        [sinks.nats]\ntype = 'nats'\nservers = '{}'\nsubject = 'CDR.{{conversation_uuid}}'\nmax_in_flight_bytes = '64KiB'",
        server.url()
    ))
    .await;
    for first in (0..EVENTS).step_by(50) {
        assert_eq!(send(&bridge, first..first + 50).await, (50, 0));
    }
    assert!(segments(&bridge).len() > 10);
    eventually(PATIENCE, "all but the last have their final length", async || {
        let lengths: Vec<_> = segments(&bridge).values().map(|file| fs::metadata(file).unwrap().len()).collect();
        lengths.iter().rev().skip(1).all(|length| *length < 64 << 10)
    })
    .await;
    (server, bridge)
}

/// Stores events of these numbers, which are their offsets the first time; says how many were stored and how many are duplicates.
async fn send(bridge: &Bridge, numbers: std::ops::Range<usize>) -> (u64, u64) {
    let padding = "x".repeat(900);
    let event = |number| json!({ "conversation_uuid": format!("c{}", number % CONVERSATIONS), "number": number, "custom": padding });
    let answer = bridge.post(json!(numbers.map(event).collect::<Vec<_>>()).to_string(), "application/json").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let count = |name: &str| answer.json()[name].as_u64().unwrap();
    (count("stored"), count("duplicates"))
}

/// The segment files and the offsets of their first records, oldest first.
fn segments(bridge: &Bridge) -> BTreeMap<usize, PathBuf> {
    let files = fs::read_dir(bridge.directory().join("spool")).unwrap().map(|entry| entry.unwrap().path());
    let base = |file: &PathBuf| file.file_name()?.to_str()?.strip_prefix("segment-")?.parse().ok();
    files.filter_map(|file| Some((base(&file)?, file))).collect()
}

/// Overwrites a few records in the middle of the file.
fn spoil(file: &PathBuf) {
    let writable = File::options().write(true).open(file).unwrap();
    writable.write_all_at(&[0x55; 3000], writable.metadata().unwrap().len() / 2).unwrap();
}

/// The numbers in the stream, in its order, once `count` are there; of each conversation in ascending order.
async fn delivered(server: &nats::Server, count: usize) -> Vec<usize> {
    let received = nats::stream_messages(&server.url(), "CDR", count, PATIENCE).await;
    let number =
        |payload: &[u8]| serde_json::from_slice::<Value>(payload).unwrap()["number"].as_u64().unwrap() as usize;
    received.iter().map(|message| number(&message.payload)).collect()
}

fn assert_in_order(numbers: &[usize]) {
    let mut last = [None; CONVERSATIONS];
    for &number in numbers {
        let last = &mut last[number % CONVERSATIONS];
        assert!(*last < Some(number), "{number} after {last:?}");
        *last = Some(number);
    }
}

/// The offsets that the log says are gone.
fn gone(bridge: &Bridge) -> BTreeSet<usize> {
    let lines = bridge.stderr();
    let lines = lines.lines().filter(|line| line.contains("unreadable and will not be delivered"));
    let fields = lines.map(|line| serde_json::from_str::<Value>(line).unwrap()["fields"].clone());
    let offset = |fields: &Value, name: &str| fields[name].as_u64().unwrap() as usize;
    fields.flat_map(|fields| offset(&fields, "from")..offset(&fields, "until")).collect()
}

/// Everything but what is gone arrives, in order; the damaged files are kept; returns what is gone.
async fn the_rest_is_delivered(server: &nats::Server, bridge: &Bridge) -> BTreeSet<usize> {
    let lag = async || bridge.metric("cdrelay_sink_lag_records{sink=\"nats\"}").await == Some(0.0);
    eventually(PATIENCE, "all that is left is delivered", lag).await;
    let gone = gone(bridge);
    println!("{EVENTS} events in a damaged spool, gone are {gone:?}");
    assert!(!gone.is_empty() && gone.len() < 100);
    assert_eq!(bridge.metric("cdrelay_spool_damaged_records_total").await, Some(gone.len() as f64));
    let numbers = delivered(server, EVENTS - gone.len()).await;
    assert_in_order(&numbers);
    let expected: BTreeSet<_> = (0..EVENTS).filter(|number| !gone.contains(number)).collect();
    assert_eq!(numbers.into_iter().collect::<BTreeSet<_>>(), expected);
    gone
}

async fn kept_aside(bridge: &Bridge, file: &Path, content: &[u8]) {
    let name = file.file_name().unwrap().to_str().unwrap().replace("segment", "damaged");
    let aside = file.with_file_name(&name);
    eventually(PATIENCE, "the damaged file is kept aside", async || aside.exists()).await;
    assert_eq!(fs::read(aside).unwrap(), content, "as it was");
    assert!(bridge.stderr().contains(&name));
}

#[tokio::test]
async fn damage_in_the_middle_of_a_backlog_costs_what_was_hit_and_nothing_else() {
    let (mut server, mut bridge) = backlog().await;
    bridge.kill();
    let segments: Vec<_> = segments(&bridge).into_iter().collect();
    let (base, middle) = &segments[segments.len() / 2];
    spoil(middle);
    let content = fs::read(middle).unwrap();
    bridge.start_again().await;
    server.start_again().await;
    let gone = the_rest_is_delivered(&server, &bridge).await;
    let next = segments[segments.len() / 2 + 1].0;
    assert!(gone.len() <= 6 && gone.iter().all(|offset| (*base..next).contains(offset)), "{base}..{next}: {gone:?}");
    kept_aside(&bridge, middle, &content).await;
    eventually(PATIENCE, "ready", async || bridge.admin("/readyz").await.status == 200).await;
}

#[tokio::test]
async fn damage_behind_a_running_bridge_costs_what_was_hit_and_can_be_mended_by_sending_it_again() {
    let (mut server, bridge) = backlog().await;
    let segments: Vec<_> = segments(&bridge).into_values().collect();
    let [flipped, cut, lost] = [5, 7, 9].map(|number| &segments[number]);
    spoil(flipped);
    let half = fs::metadata(cut).unwrap().len() / 2;
    File::options().write(true).open(cut).unwrap().set_len(half).unwrap();
    fs::remove_file(lost).unwrap();
    let contents = [flipped, cut].map(|file| fs::read(file).unwrap());
    server.start_again().await;
    let gone = the_rest_is_delivered(&server, &bridge).await;
    for (file, content) in [flipped, cut].into_iter().zip(contents) {
        kept_aside(&bridge, file, &content).await;
    }

    // Its sender sends everything again.
    let mut counts = (0, 0);
    for first in (0..EVENTS).step_by(50) {
        let (stored, duplicates) = send(&bridge, first..first + 50).await;
        counts = (counts.0 + stored, counts.1 + duplicates);
    }
    println!("sent again: {} stored, {} known to be delivered", counts.0, counts.1);
    assert_eq!(counts, (gone.len() as u64, (EVENTS - gone.len()) as u64));
    let all = delivered(&server, EVENTS).await;
    let late = &all[EVENTS - gone.len()..];
    assert_in_order(late);
    assert_eq!(late.iter().copied().collect::<BTreeSet<_>>(), gone);
}

/// A thousand events in one request, the last thing before the bridge is killed, and one flipped bit.
#[tokio::test]
async fn a_flipped_bit_in_the_last_request_costs_one_event_of_a_thousand_and_is_told() {
    let mut server = nats::Server::start("").await;
    nats::create_stream(&server.url(), "CDR", &["CDR.>"]).await;
    server.kill();
    let mut bridge = Bridge::start(&format!(
        "{ANY_PORTS}[sinks.nats]\ntype = 'nats'\nservers = '{}'\nsubject = 'CDR.{{conversation_uuid}}'",
        server.url()
    ))
    .await;
    assert_eq!(send(&bridge, 0..1000).await, (1000, 0));
    bridge.kill();
    let file = segments(&bridge).remove(&0).unwrap();
    let content = fs::read(&file).unwrap();
    let hit = content.windows(13).position(|bytes| bytes == br#""number":500}"#).unwrap();
    File::options().write(true).open(&file).unwrap().write_all_at(&[content[hit + 1] ^ 1], hit as u64 + 1).unwrap();
    bridge.start_again().await;
    server.start_again().await;
    eventually(PATIENCE, "all that is left is delivered", async || {
        bridge.metric("cdrelay_sink_lag_records{sink=\"nats\"}").await == Some(0.0)
    })
    .await;
    assert_eq!(gone(&bridge), [500].into());
    assert_eq!(bridge.metric("cdrelay_spool_damaged_records_total").await, Some(1.0));
    let numbers = delivered(&server, 999).await;
    assert_in_order(&numbers);
    assert_eq!(numbers.into_iter().collect::<BTreeSet<_>>(), (0..1000).filter(|number| *number != 500).collect());
}

#[tokio::test]
async fn a_newest_segment_that_is_missing_or_cut_off_is_told() {
    for missing in [true, false] {
        let (mut server, mut bridge) = backlog().await;
        bridge.kill();
        let (base, newest) = segments(&bridge).pop_last().unwrap();
        if missing {
            fs::remove_file(&newest).unwrap();
        } else {
            File::options().write(true).open(&newest).unwrap().set_len(2000).unwrap();
        }
        bridge.start_again().await;
        server.start_again().await;
        let gone = the_rest_is_delivered(&server, &bridge).await;
        let first = if missing { base } else { base + 1 };
        assert_eq!(gone, (first..EVENTS).collect());
        // No offset is given twice.
        assert_eq!(send(&bridge, EVENTS..EVENTS + 10).await, (10, 0));
        assert!(segments(&bridge).contains_key(&EVENTS));
    }
}

#[tokio::test]
async fn a_deleted_directory_refuses_webhooks_and_what_is_in_memory_and_open_files_is_delivered() {
    for in_memory in ["4MiB", "1KiB"] {
        let mut server = nats::Server::start("").await;
        nats::create_stream(&server.url(), "CDR", &["CDR.>"]).await;
        server.kill();
        let bridge = Bridge::start(&format!(
            "{ANY_PORTS}[spool]\nread_cache = '{in_memory}'
            [sinks.nats]\ntype = 'nats'\nservers = '{}'\nsubject = 'CDR.{{conversation_uuid}}'",
            server.url()
        ))
        .await;
        assert_eq!(send(&bridge, 0..200).await, (200, 0));
        let spool = bridge.directory().join("spool");
        fs::remove_dir_all(&spool).unwrap();
        let begun = Instant::now();
        eventually(PATIENCE, "webhooks are refused", async || bridge.admin("/readyz/ingress").await.status == 503)
            .await;
        println!("noticed within {:.1?}", begun.elapsed());
        assert!(begun.elapsed() < Duration::from_secs(5));
        let answer = bridge.post(r#"{"conversation_uuid":"refused","number":0}"#, "application/json").await;
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert!(answer.text().contains("deleted under the running bridge"), "{}", answer.text());
        let ready = bridge.admin("/readyz").await;
        assert_eq!(ready.status, 503);
        assert!(ready.text().contains("deleted under the running bridge"), "{}", ready.text());
        assert!(bridge.stderr().lines().any(|line| line.contains("ERROR") && line.contains("have been deleted")));
        server.start_again().await;
        let numbers = delivered(&server, 200).await;
        assert_eq!(numbers.into_iter().collect::<BTreeSet<_>>(), (0..200).collect());
        assert_eq!(bridge.metric("cdrelay_spool_damaged_records_total").await, Some(0.0));
        assert!(!spool.exists(), "it does not begin a new spool by itself");
    }
}

#[tokio::test]
async fn a_file_that_the_disk_refuses_to_read_is_waited_for_and_costs_nothing() {
    let (mut server, mut bridge) = backlog().await;
    bridge.kill();
    let (before, middle) = segments(&bridge).into_iter().nth(6).unwrap();
    // As good as a disk that refuses: a directory can be neither written to nor read.
    let in_the_way = bridge.directory().join("in-the-way");
    fs::create_dir(&in_the_way).unwrap();
    let exchange = || renameat_with(CWD, &middle, CWD, &in_the_way, RenameFlags::EXCHANGE).unwrap();
    exchange();
    bridge.start_again().await;
    server.start_again().await;
    let name = middle.file_name().unwrap().to_str().unwrap();
    eventually(PATIENCE, "readiness names the file", async || {
        let answer = bridge.admin("/readyz").await;
        let reason = answer.json()["sinks"]["nats"]["reason"].as_str().unwrap_or_default().to_owned();
        answer.status == 503 && reason.contains("the spool cannot be read") && reason.contains(name)
    })
    .await;
    assert!(bridge.metric("cdrelay_spool_read_failures_total").await >= Some(1.0));
    let lag = async || bridge.metric("cdrelay_sink_lag_seconds{sink=\"nats\"}").await.unwrap();
    eventually(PATIENCE, "the lag grows", async || lag().await > 2.0).await;
    // Webhooks are taken all the same.
    assert_eq!(send(&bridge, EVENTS..EVENTS + 10).await, (10, 0));
    assert_eq!(bridge.admin("/readyz/ingress").await.status, 200);
    let said = || bridge.stderr().lines().filter(|line| line.contains("the spool cannot be read")).count();
    let failures = async || bridge.metric("cdrelay_spool_read_failures_total").await.unwrap();
    let so_far = failures().await;
    eventually(PATIENCE, "it is tried again", async || failures().await >= so_far + 3.0).await;
    assert!(said() <= 3, "and said now and then");
    assert_eq!(nats::stream_length(&server.url(), "CDR").await, before as u64, "nothing behind it overtakes");
    exchange();
    let numbers = delivered(&server, EVENTS + 10).await;
    assert_in_order(&numbers);
    assert_eq!(numbers.into_iter().collect::<BTreeSet<_>>(), (0..EVENTS + 10).collect());
    eventually(PATIENCE, "ready", async || bridge.admin("/readyz").await.status == 200).await;
    eventually(PATIENCE, "no lag", async || lag().await == 0.0).await;
    assert_eq!(bridge.metric("cdrelay_spool_damaged_records_total").await, Some(0.0));
    assert!(bridge.stderr().contains("the spool can be read again"));
}
