//! Dead letters take a bounded part of the disk, and none is dropped for that.

use super::{cdrelay, letters};
use crate::support::{ANY_PORTS, Bridge, PATIENCE, eventually};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;

const BOUND: u64 = 1 << 20;

/// One sink takes everything; the other cannot name a topic after a team of 300 letters.
fn config(topic: &str) -> String {
    format!(
        "{ANY_PORTS}max_body = '128KiB'\n[dead_letters]\nmax_size = '1MiB'\n[sinks.out]\ntype = 'stdout'\ntopic = 'all'\n\
         [sinks.by-team]\ntype = 'stdout'\ntopic = '{topic}'\n"
    )
}

fn refused(number: usize, bytes: usize) -> String {
    let (team, padding) = ("x".repeat(300), "y".repeat(bytes));
    format!("{{\"number\":{number},\"team\":\"{team}\",\"conversation_uuid\":\"c{number}\",\"padding\":\"{padding}\"}}")
}

fn bytes_on_disk(bridge: &Bridge) -> u64 {
    let Ok(files) = fs::read_dir(bridge.directory().join("spool/dead-letters/by-team")) else { return 0 };
    files.map(|file| file.unwrap().metadata().map_or(0, |file| file.len())).sum()
}

/// The number of the event in a dead letter.
fn number(letter: &Value) -> u64 {
    serde_json::from_str::<Value>(letter["payload"].as_str().unwrap()).unwrap()["number"].as_u64().unwrap()
}

fn numbers(bridge: &Bridge) -> BTreeSet<u64> {
    bridge.dead_letters("by-team").iter().map(number).collect()
}

fn published(bridge: &Bridge, topic: &str) -> usize {
    let lines = bridge.stdout_lines();
    let topics = lines.iter().map(|line| serde_json::from_str::<Value>(line).unwrap()["topic"].clone());
    topics.filter(|published| published == topic).count()
}

#[tokio::test]
async fn at_the_bound_the_sink_holds_says_so_and_goes_on_when_there_is_space() {
    let bridge = Bridge::start(&config("{team}")).await;
    const SENT: u64 = 40;
    for number in 0..SENT as usize {
        assert_eq!(bridge.post(refused(number, 60_000), "application/json").await.status, 200);
        assert!(bytes_on_disk(&bridge) <= BOUND);
    }
    eventually(PATIENCE, "readiness says why", async || {
        let ready = bridge.admin("/readyz").await;
        ready.status == 503 && ready.text().contains("`dead_letters.max_size`, 1.0 MiB")
    })
    .await;
    eventually(PATIENCE, "the other sink has all", async || published(&bridge, "all") == SENT as usize).await;
    // A message that is not refused passes those that wait.
    let good = "{\"number\":99,\"team\":\"good\",\"conversation_uuid\":\"c\"}";
    assert_eq!(bridge.post(good, "application/json").await.status, 200);
    eventually(PATIENCE, "a good one is delivered", async || published(&bridge, "good") == 1).await;

    let size = bytes_on_disk(&bridge);
    println!("{SENT} refused messages of 60 kB: {size} bytes of dead letters");
    assert!(size <= BOUND && size > BOUND - 70_000, "{size}");
    let metric = async |name: &str| bridge.metric(&format!("cdrelay_sink_{name}{{sink=\"by-team\"}}")).await;
    assert_eq!(metric("dead_letter_max_bytes").await, Some(BOUND as f64));
    assert_eq!(metric("dead_letter_bytes").await, Some(size as f64));
    let kept = numbers(&bridge);
    assert_eq!(metric("dead_lettered_total").await, Some(kept.len() as f64));
    assert!(metric("lag_records").await.unwrap() >= (SENT - kept.len() as u64) as f64);
    let log = fs::read_to_string(bridge.directory().join("stderr")).unwrap();
    assert_eq!(log.matches("message refused; kept as a dead letter").count(), 1, "{log}");
    assert!(log.contains("`dead_letters.max_size`"), "{log}");

    // The operator prunes again and again. All that were refused are kept in the meantime.
    let mut all = kept;
    eventually(PATIENCE, "the others are kept", async || {
        // A letter of a moment ago may be about to be written.
        let before = Timestamp::now() - SignedDuration::from_secs(3);
        all.extend(numbers(&bridge));
        letters(&bridge, &["prune", "--older-than", &before.to_string(), "--sink", "by-team"]).success();
        assert!(bytes_on_disk(&bridge) <= BOUND);
        all.len() == SENT as usize
    })
    .await;
    eventually(PATIENCE, "it is ready", async || bridge.admin("/readyz").await.status == 200).await;
    assert_eq!(all, (0..SENT).collect());
    assert_eq!(metric("dead_lettered_total").await, Some(SENT as f64));
    assert_eq!(metric("lag_records").await, Some(0.0));
}

#[tokio::test]
async fn a_flood_of_refused_messages_takes_no_more_than_its_bound_of_the_disk() {
    let bridge = Bridge::start(&config("{team}")).await;
    let send = async |first: usize| {
        for number in first..first + 250 {
            assert_eq!(bridge.post(refused(number, 20_000), "application/json").await.status, 200);
            assert!(bytes_on_disk(&bridge) <= BOUND);
        }
    };
    futures_util::future::join_all((0..4).map(|sender| send(250 * sender))).await;
    eventually(PATIENCE, "the other sink has all", async || published(&bridge, "all") == 1000).await;
    let size = bytes_on_disk(&bridge);
    println!("1000 refused messages of 20 kB, 20 MB: {size} bytes of dead letters");
    assert!(size <= BOUND);
    let log = fs::read_to_string(bridge.directory().join("stderr")).unwrap();
    let errors = log.lines().filter(|line| line.contains("\"ERROR\"")).count();
    println!("{errors} ERROR line(s)");
    assert!(errors <= 2, "{log}");
}

#[tokio::test]
async fn replayed_letters_and_bodies_are_pruned_beside_a_running_bridge_and_no_others() {
    let mut bridge = Bridge::start(&config("{team}")).await;
    for number in 0..3 {
        assert_eq!(bridge.post(refused(number, 10), "application/json").await.status, 200);
        assert_eq!(bridge.post(format!("no call {number}"), "text/plain").await.status, 400);
    }
    eventually(PATIENCE, "they are kept", async || {
        bridge.dead_letters("by-team").len() == 3 && bridge.rejected_bodies().len() == 3
    })
    .await;
    fs::write(bridge.directory().join("cdrelay.toml"), config("mended")).unwrap();
    bridge.terminate();
    assert!(bridge.wait(PATIENCE).await.success());
    bridge.start_again().await;
    assert_eq!(letters(&bridge, &["prune"]).code, Some(64));
    assert_eq!(
        letters(&bridge, &["prune", "--replayed"]).success(),
        "by-team: 0 of 3 removed\n(rejected): 0 of 3 removed\n"
    );
    let id = bridge.dead_letters("by-team")[1]["id"].as_str().unwrap().to_owned();
    assert!(letters(&bridge, &["replay", "--id", &id]).success().contains("1 of 1"));
    fs::write(bridge.directory().join("body"), "{\"number\":3}").unwrap();
    letters(&bridge, &["replay", "--rejected", "--id", "2", "--with", "body"]).success();
    assert_eq!(
        letters(&bridge, &["prune", "--replayed", "--older-than", "1h"]).success().matches(" 0 of 3").count(),
        2
    );
    assert_eq!(letters(&bridge, &["prune", "--replayed", "--sink", "by-team"]).success(), "by-team: 1 of 3 removed\n");
    assert_eq!(letters(&bridge, &["prune", "--replayed", "--rejected"]).success(), "(rejected): 1 of 3 removed\n");
    assert_eq!(numbers(&bridge), [0, 2].into());
    assert_eq!(letters(&bridge, &["list", "--again"]).success().lines().count(), 4);

    // The bridge goes on with numbers of its own, and so does the next one.
    assert_eq!(bridge.post("no call 4", "text/plain").await.status, 400);
    eventually(PATIENCE, "it is kept", async || bridge.rejected_bodies().len() == 3).await;
    let bodies: Vec<_> = bridge.rejected_bodies().iter().map(|body| body["number"].as_u64().unwrap()).collect();
    assert_eq!(bodies, [0, 1, 3]);
    assert_eq!(
        letters(&bridge, &["prune", "--older-than", "0s"]).success(),
        "by-team: 2 of 2 removed\n(rejected): 3 of 3 removed\n"
    );
    assert_eq!(letters(&bridge, &["list", "--again"]).success(), "");
    let elsewhere = cdrelay(bridge.directory(), &["dead-letters", "prune", "--older-than", "soon"]);
    assert_eq!(elsewhere.code, Some(64), "{elsewhere:?}");
}
