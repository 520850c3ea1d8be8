//! What was refused, delivered or is still waiting can be looked at and published again, with the identity it had.

use std::collections::HashSet;
use std::process::Output;

use serde_json::Value;

use super::support::Bridge;
use super::support::bridge::command;
use super::support::fault::nats_sink;
use super::support::nats::{self, Received, create_stream, shared, stream_all, unique_name};
use super::support::{ANY_PORTS, PATIENCE, eventually};

const SAMPLES: &str = include_str!("support/payloads.ndjson");

/// One sink takes everything; the other cannot name a topic after a team of 300 letters.
const CONFIG: &str = "
    [ingress]
    listen = '127.0.0.1:0'
    [admin]
    listen = '127.0.0.1:0'
    [spool]
    retain = { age = '1h' }
    [sinks.all]
    type = 'stdout'
    topic = 'all'
    [sinks.by-team]
    type = 'stdout'
    topic = 'cdr.{team}'
";

fn cdrelay(bridge: &Bridge, arguments: &[&str]) -> Output {
    let mut command = command();
    command.current_dir(bridge.directory()).args(arguments).args(["--config", "cdrelay.toml"]);
    command.output().unwrap()
}

fn text(output: &Output) -> &str {
    assert!(output.status.success(), "{output:?}");
    str::from_utf8(&output.stdout).unwrap()
}

fn published(bridge: &Bridge, topic: &str) -> Vec<Value> {
    let lines = bridge.stdout_lines();
    let values = lines.iter().map(|line| serde_json::from_str::<Value>(line).unwrap());
    values.filter(|line| line["topic"] == topic).collect()
}

async fn settled(bridge: &Bridge) {
    for sink in ["all", "by-team"] {
        let lag = format!("cdrelay_sink_lag_records{{sink=\"{sink}\"}}");
        eventually(PATIENCE, "everything is settled", async || bridge.metric(&lag).await == Some(0.0)).await;
    }
}

fn long_team(number: usize) -> String {
    format!("{{\"team\":\"{}\",\"conversation_uuid\":\"long\",\"n\":{number}}}", "x".repeat(300))
}

#[tokio::test]
async fn dead_letters_are_replayed_once_in_order_and_with_their_identity() {
    let mut bridge = Bridge::start(CONFIG).await;
    for number in 0..3 {
        assert_eq!(bridge.post(long_team(number), "application/json").await.status, 200);
    }
    settled(&bridge).await;
    assert_eq!(published(&bridge, "all").len(), 3);

    let listed = cdrelay(&bridge, &["dead-letters", "list"]);
    assert_eq!(text(&listed).lines().count(), 3);
    assert!(
        text(&listed).lines().all(|line| line.contains("  by-team  ") && line.contains("249 characters")),
        "{listed:?}"
    );
    let shown = cdrelay(&bridge, &["dead-letters", "show", "--sink", "by-team"]);
    let shown: Vec<Value> = text(&shown).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let payloads: Vec<_> = shown.iter().map(|letter| letter["payload"].as_str().unwrap().to_owned()).collect();
    assert_eq!(payloads, [0, 1, 2].map(long_team));
    for (filter, value, count) in [
        ("--conversation", "long", 3),
        ("--conversation", "x", 0),
        ("--reason", "249", 3),
        ("--reason", "acl", 0),
        ("--since", "1h", 3),
    ] {
        assert_eq!(
            text(&cdrelay(&bridge, &["dead-letters", "list", filter, value])).lines().count(),
            count,
            "{filter} {value}"
        );
    }

    // The cause is mended: the topic no longer holds the team.
    let mended = CONFIG.replace("'cdr.{team}'", "'mended'");
    std::fs::write(bridge.directory().join("cdrelay.toml"), mended).unwrap();
    bridge.terminate();
    assert!(bridge.wait(PATIENCE).await.success());
    bridge.start_again().await;
    assert!(text(&cdrelay(&bridge, &["dead-letters", "replay"])).contains("3 of 3"));
    eventually(PATIENCE, "they are published", async || published(&bridge, "mended").len() == 3).await;
    let numbers: Vec<_> =
        published(&bridge, "mended").iter().map(|line| line["event"]["n"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [0, 1, 2]);
    let ids =
        |topic: &str| published(&bridge, topic).iter().map(|line| line["headers"]["ce_id"].clone()).collect::<Vec<_>>();
    assert_eq!(ids("mended"), ids("all"), "the identity is kept, and the other sink saw nothing of the replay");

    assert_eq!(text(&cdrelay(&bridge, &["dead-letters", "list"])), "");
    assert_eq!(text(&cdrelay(&bridge, &["dead-letters", "replay"])), "");
    assert!(text(&cdrelay(&bridge, &["dead-letters", "replay", "--again"])).contains("3 of 3"));
    eventually(PATIENCE, "they are published again", async || published(&bridge, "mended").len() == 6).await;
    assert_eq!(published(&bridge, "all").len(), 3);
}

#[tokio::test]
async fn the_spool_is_inspected_verified_and_exported_alive_and_dead() {
    let mut bridge = Bridge::start(CONFIG).await;
    bridge.post(SAMPLES, "application/json").await;
    settled(&bridge).await;
    for alive in [true, false] {
        if !alive {
            bridge.terminate();
            assert!(bridge.wait(PATIENCE).await.success());
        }
        let inspected = cdrelay(&bridge, &["spool", "inspect"]);
        assert!(text(&inspected).contains("11 records from 0"), "{inspected:?}");
        // The cursors reach the disk a moment later.
        eventually(PATIENCE, "the cursor says so", async || {
            text(&cdrelay(&bridge, &["spool", "inspect"])).contains("sink all: settled below 11, 0 waiting")
        })
        .await;
        assert!(text(&cdrelay(&bridge, &["spool", "verify"])).contains("11 record(s) intact, 0 damaged"));
        let exported = cdrelay(&bridge, &["spool", "export"]);
        let lines: Vec<Value> = text(&exported).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let payloads: Vec<_> = lines.iter().map(|line| line["payload"].as_str().unwrap()).collect();
        assert_eq!(payloads, SAMPLES.lines().collect::<Vec<_>>());
        let team = cdrelay(&bridge, &["spool", "export", "--team", "Sales.*>"]);
        assert_eq!(text(&team).lines().count(), 1);
        assert_eq!(text(&cdrelay(&bridge, &["spool", "export", "--undelivered", "all"])), "");
        let unknown = cdrelay(&bridge, &["spool", "export", "--undelivered", "al"]);
        assert_eq!((unknown.status.code(), &*unknown.stdout), (Some(64), &b""[..]), "{unknown:?}");
    }
    let segment = bridge.directory().join("spool/segment-00000000000000000000");
    let mut bytes = std::fs::read(&segment).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let verified = cdrelay(&bridge, &["spool", "verify"]);
    assert_eq!(verified.status.code(), Some(1), "{verified:?}");
}

#[tokio::test]
async fn what_is_retained_can_be_published_again_by_conversation_and_team() {
    let mut bridge = Bridge::start(CONFIG).await;
    bridge.post(SAMPLES, "application/json").await;
    settled(&bridge).await;
    let before = published(&bridge, "all");
    assert_eq!(before.len(), 11);

    let conversation = "5202a928-07c3-4d32-a1a4-d304c9275971";
    let replayed = cdrelay(&bridge, &["replay", "--sink", "all", "--since", "2h", "--conversation", conversation]);
    assert!(text(&replayed).contains("3 event(s)") || text(&replayed).contains("2 event(s)"), "{replayed:?}");
    let expected: Vec<_> =
        before.iter().filter(|line| line["headers"]["ce_subject"] == conversation).cloned().collect();
    eventually(PATIENCE, "they come again", async || published(&bridge, "all").len() == 11 + expected.len()).await;
    assert_eq!(published(&bridge, "all")[11..], expected, "the same messages, in order, arrival and identity included");

    // A stopped bridge takes them into its spool, and publishes them when it runs again.
    bridge.terminate();
    assert!(bridge.wait(PATIENCE).await.success());
    let team = cdrelay(&bridge, &["replay", "--sink", "all", "--team", "Sales.*>"]);
    assert!(text(&team).contains("1 event(s)"), "{team:?}");
    bridge.start_again().await;
    settled(&bridge).await;
    let all = published(&bridge, "all");
    assert_eq!(all.len(), 11 + expected.len() + 1);
    assert_eq!(all.last().unwrap()["event"]["team"], "Sales.*>");
    let ids: HashSet<_> = all.iter().map(|line| line["headers"]["ce_id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 11);

    let unknown = cdrelay(&bridge, &["replay", "--sink", "nobody"]);
    assert!(!unknown.status.success());
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("`nobody`"), "{unknown:?}");
}

/// `Nats-Msg-Id`, `ce-id` and the like.
fn header<'a>(message: &'a Received, name: &str) -> &'a str {
    let found = message.headers.iter().find(|(header, _)| header.eq_ignore_ascii_case(name));
    &found.unwrap_or_else(|| panic!("no {name}: {message:?}")).1
}

#[tokio::test]
async fn a_replay_tells_of_messages_that_the_stream_has_already_and_stores_them_again_if_forced() {
    let stream = unique_name("replayed");
    create_stream(&shared(), &stream, &[&format!("{stream}.>")]).await;
    let config = format!("{ANY_PORTS}[spool]\nretain = {{ age = '1h' }}\n{}", nats_sink(&shared(), &stream));
    let bridge = Bridge::start(&config).await;
    let count = 9;
    for number in 0..count {
        let body = format!("{{\"team\":\"a\",\"conversation_uuid\":\"c{}\",\"number\":{number}}}", number % 3);
        assert_eq!(bridge.post(body, "application/json").await.status, 200);
    }
    let length = async || nats::stream_length(&shared(), &stream).await;
    eventually(PATIENCE, "they are delivered", async || length().await == count).await;

    let replayed = cdrelay(&bridge, &["replay", "--sink", "nats"]);
    println!("{}", text(&replayed).trim());
    assert!(
        text(&replayed).contains("9 event(s) back in the spool for nats: 0 delivered, 9 not stored"),
        "{replayed:?}"
    );
    assert_eq!(length().await, count);
    let again = cdrelay(&bridge, &["replay", "--sink", "nats", "--force", "--conversation", "c1"]);
    assert!(text(&again).ends_with("3 event(s) back in the spool for nats: 3 delivered\n"), "{again:?}");
    let again = cdrelay(&bridge, &["replay", "--sink", "nats", "--force"]);
    println!("{}", text(&again).trim());
    assert!(text(&again).ends_with("9 event(s) back in the spool for nats: 9 delivered\n"), "{again:?}");

    let messages = stream_all(&shared(), &stream).await;
    assert_eq!(messages.len(), 21);
    for conversation in ["c0", "c1", "c2"] {
        let of = |part: &[Received]| {
            let part = part.iter().filter(|message| header(message, "ce-subject") == conversation);
            part.map(|message| header(message, "ce-id").to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(of(&messages[12..]), of(&messages[..9]), "in order, with their identity");
    }
    let own: HashSet<_> = messages.iter().map(|message| header(message, "Nats-Msg-Id")).collect();
    assert_eq!(own.len(), 21);
    assert!(messages[..9].iter().all(|message| header(message, "Nats-Msg-Id") == header(message, "ce-id")));
}

#[tokio::test]
async fn a_replay_waits_no_longer_than_asked_for_a_destination_that_is_away() {
    let server = nats::Server::start("").await;
    let stream = unique_name("away");
    create_stream(&server.url(), &stream, &[&format!("{stream}.>")]).await;
    let config = format!("{ANY_PORTS}[spool]\nretain = {{ age = '1h' }}\n{}", nats_sink(&server.url(), &stream));
    let bridge = Bridge::start(&config).await;
    for number in 0..3 {
        let body = format!("{{\"team\":\"a\",\"conversation_uuid\":\"c\",\"number\":{number}}}");
        assert_eq!(bridge.post(body, "application/json").await.status, 200);
    }
    let delivered = async || bridge.metric("cdrelay_sink_published_total{sink=\"nats\"}").await == Some(3.0);
    eventually(PATIENCE, "they are delivered", delivered).await;
    server.pause();
    let replayed = cdrelay(&bridge, &["replay", "--sink", "nats", "--wait", "200ms"]);
    assert!(
        text(&replayed).ends_with("3 event(s) back in the spool for nats: 0 delivered, 3 waiting\n"),
        "{replayed:?}"
    );
    server.resume();
}
