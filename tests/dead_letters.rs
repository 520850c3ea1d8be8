//! A request that could not be decoded is kept, within bounds, until its cause is mended; and the commands tell the truth.

use crate::command_line::{Finished, finished};
use crate::support::bridge::command;
use crate::support::raw::Raw;
use crate::support::{Bridge, PATIENCE, eventually};
use futures_util::future::{join, join_all};
use http_body_util::Full;
use hyper::Request;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

mod bounds;

const NARROW: &str = "max_fields = 3\nmax_events = 2\n";
const KEPT: &str = "cdrelay_ingress_rejected_kept_total";

fn config(decode: &str, more: &str) -> String {
    format!(
        "[admin]\nlisten = '127.0.0.1:0'\n[ingress]\nlisten = '127.0.0.1:0'\n[ingress.decode]\n{decode}\n{more}\n\
         [sinks.out]\ntype = 'stdout'\n"
    )
}

fn cdrelay(directory: &Path, arguments: &[&str]) -> Finished {
    finished(command().current_dir(directory).args(arguments).args(["--config", "cdrelay.toml"]))
}

fn letters(bridge: &Bridge, arguments: &[&str]) -> Finished {
    cdrelay(bridge.directory(), &[&["dead-letters"], arguments].concat())
}

async fn kept(bridge: &Bridge, count: usize) {
    eventually(PATIENCE, "they are kept", async || bridge.metric(KEPT).await == Some(count as f64)).await;
}

/// `n` and the header `ce_time` of everything published.
fn published(bridge: &Bridge) -> Vec<(String, String)> {
    let lines = bridge.stdout_lines();
    let lines = lines.iter().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    lines.map(|line| (text(&line["event"]["n"]), text(&line["headers"]["ce_time"]))).collect()
}

#[tokio::test]
async fn a_call_refused_for_what_it_held_is_replayed_when_the_cause_is_mended() {
    let mut bridge = Bridge::start(&config(NARROW, "")).await;
    let literal = "{ n: 3, direction: 'inbound' }";
    let wide = r#"{"n":1,"a":1,"b":2,"c":3}"#;
    assert_eq!(bridge.post(wide, "application/json").await.status, 400);
    assert_eq!(bridge.get("n=2&a=1&b=2&c=%C3%A9").await.status, 400);
    assert_eq!(bridge.post(literal, "text/plain").await.status, 400);
    assert_eq!(bridge.post(r#"[{"n":4},{"n":5},{"n":6}]"#, "application/json").await.status, 413);
    kept(&bridge, 4).await;
    // Of these only the body in an unknown coding is kept; the others are refused without regard to what they hold, or hold nothing.
    let mut raw = Raw::connect(&bridge).await;
    for (request, status) in [
        (Raw::head("PUT", &format!("content-length: {}\r\n", wide.len())) + wide, 405),
        (Raw::head("POST", "content-encoding: compress\r\ncontent-length: 2\r\n") + "{ ", 415),
        (Raw::post(wide).replace("/webhook/cdr", "/webhook"), 404),
        (Raw::post(" \n"), 400),
    ] {
        raw.send(request).await;
        assert_eq!(raw.answer().await.status, status);
        raw = Raw::connect(&bridge).await;
    }
    raw.send(Raw::head("POST", "content-length: 9\r\n") + "{ torn").await;
    drop(raw);
    assert_eq!(bridge.post("{ n: 7 }", "text/plain").await.status, 400);
    kept(&bridge, 6).await;

    let listed = letters(&bridge, &["list"]).success();
    let lines: Vec<_> = listed.lines().collect();
    assert!(lines.iter().all(|line| line.contains("  (rejected)  ")), "{listed}");
    assert!(lines[0].contains("  0  ") && lines[0].ends_with("more than 3 fields in one event"), "{listed}");
    assert!(lines[3].contains("  3  more than 2 events"), "{listed}");
    assert!(lines[4].contains("compress"), "{listed}");
    assert_eq!(lines.len(), 6);
    let arrivals: Vec<_> = lines.iter().map(|line| line.split("  ").next().unwrap().to_owned()).collect();
    assert_eq!(letters(&bridge, &["show", "--id", "2", "--body"]).success(), literal);
    assert_eq!(letters(&bridge, &["show", "--body"]).code, Some(64));
    let shown: Value = serde_json::from_str(&letters(&bridge, &["show", "--rejected", "--id", "1"]).success()).unwrap();
    assert_eq!(shown["query"], "n=2&a=1&b=2&c=%C3%A9");
    assert_eq!(letters(&bridge, &["list", "--reason", "fields"]).success().lines().count(), 2);
    assert_eq!(letters(&bridge, &["list", "--until", "1h"]).success(), "");
    assert_eq!(letters(&bridge, &["list", "--sink", "out"]).success(), "");

    let in_vain = letters(&bridge, &["replay", "--rejected"]);
    assert_eq!((in_vain.code, &*in_vain.stdout), (Some(1), ""), "{in_vain:?}");
    assert!(in_vain.stderr.contains("(rejected)  3  more than 2 events"), "{in_vain:?}");
    assert!(in_vain.stderr.contains("6 of the bodies"), "{in_vain:?}");

    // The command reads the mended configuration; the bridge goes on with the narrow one.
    fs::write(bridge.directory().join("cdrelay.toml"), config("", "")).unwrap();
    assert_eq!(letters(&bridge, &["list", "--conversation", "x"]).success(), "");
    let replayed = letters(&bridge, &["replay"]);
    assert_eq!(replayed.code, Some(1), "{replayed:?}");
    assert_eq!(replayed.stdout, "(rejected): 3 of 6 bodies back in the spool: 5 event(s), 0 of them stored before\n");
    assert!(replayed.stderr.contains("(rejected)  2  line 1, column 3: "), "{replayed:?}");
    eventually(PATIENCE, "they are published", async || bridge.stdout_lines().len() == 5).await;
    let expected = [("1", 0), ("2", 1), ("4", 3), ("5", 3), ("6", 3)];
    let mut published_now = published(&bridge);
    assert_eq!(published_now, expected.map(|(n, body)| (n.to_owned(), arrivals[body].clone())), "order and arrival");

    assert_eq!(letters(&bridge, &["replay"]).stdout, "");
    let again = letters(&bridge, &["replay", "--again", "--reason", "fields"]).success();
    assert!(again.contains("2 of 2") && again.contains("2 of them stored before"), "{again}");
    assert_eq!(letters(&bridge, &["list", "--again"]).success().matches("  (replayed)").count(), 3);

    // One corrected by hand, and one with the bridge stopped.
    bridge.terminate();
    assert!(bridge.wait(PATIENCE).await.success());
    fs::write(bridge.directory().join("body"), "{\"n\": 3}").unwrap();
    let with = |file, id| letters(&bridge, &["replay", "--rejected", "--id", id, "--with", file]);
    assert!(with("body", "2").success().contains("1 event(s)"));
    assert_eq!(with("body", "2").code, Some(64), "once");
    assert_eq!(with("nowhere", "4").code, Some(64));
    fs::write(bridge.directory().join("body"), "{\"n\": ").unwrap();
    assert!(with("body", "4").stderr.contains("--with body: line 1, column "));
    assert_eq!(letters(&bridge, &["list"]).success().lines().count(), 2);
    bridge.start_again().await;
    eventually(PATIENCE, "it is published", async || bridge.stdout_lines().len() == 6).await;
    published_now.push(("3".into(), arrivals[2].clone()));
    assert_eq!(published(&bridge), published_now);
}

#[tokio::test]
async fn a_resent_body_is_stored_once_and_only_those_of_a_conversation_if_so_asked() {
    let bridge = Bridge::start(&config(NARROW, "")).await;
    let body = |n: usize| format!("{{\"n\":{n},\"a\":1,\"b\":2,\"conversation_uuid\":\"c{}\"}}", n % 2);
    for n in [1, 2, 1, 1] {
        assert_eq!(bridge.post(body(n), "application/json").await.status, 400);
    }
    kept(&bridge, 4).await;
    fs::write(bridge.directory().join("cdrelay.toml"), config("", "")).unwrap();
    let odd = letters(&bridge, &["replay", "--conversation", "c1"]).success();
    assert!(odd.contains("3 of 3 bodies") && odd.contains("2 of them stored before"), "{odd}");
    eventually(PATIENCE, "one is published", async || bridge.stdout_lines().len() == 1).await;
    assert_eq!(letters(&bridge, &["list"]).success().lines().count(), 1);
}

#[tokio::test]
async fn binary_bodies_are_kept_exactly_and_survive_kill_9() {
    let mut bridge = Bridge::start(&config("", "")).await;
    let mut bodies = Vec::new();
    for round in 0..3u8 {
        for n in 0..20u8 {
            let body: Vec<u8> = (0..=255).map(|byte: u8| byte.wrapping_add(n).wrapping_mul(2 * round + 1)).collect();
            assert_eq!(bridge.post(body.clone(), "application/octet-stream").await.status, 400);
            bodies.push(body);
        }
        // Of this run alone.
        kept(&bridge, 20).await;
        bridge.kill();
        assert_eq!(letters(&bridge, &["list"]).success().lines().count(), bodies.len());
        bridge.start_again().await;
    }
    for (id, body) in bodies.iter().enumerate() {
        let mut show = command();
        show.current_dir(bridge.directory()).args(["dead-letters", "show", "--body", "--config", "cdrelay.toml"]);
        assert_eq!(show.args(["--id", &id.to_string()]).output().unwrap().stdout, *body, "{id}");
    }
}

#[tokio::test]
async fn kill_9_in_the_middle_leaves_whole_bodies_without_a_gap() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bridge = Bridge::start(&config("", "")).await;
    let mut before = 0;
    for round in 0..5 {
        let after = random.usize(20..400);
        let sent = AtomicU64::new(0);
        let send = async || {
            let mut client = Raw::connect(&bridge).await;
            while sent.fetch_add(1, Ordering::Relaxed) < after as u64 {
                client.send(Raw::post(&format!("no call {}", "x".repeat(500)))).await;
                assert_eq!(client.answer().await.status, 400);
            }
        };
        join_all((0..4).map(|_| send())).await;
        let synced = bridge.metric(KEPT).await.unwrap() as usize;
        bridge.kill();
        let shown = letters(&bridge, &["show"]).success();
        let ids: Vec<_> =
            shown.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["number"].clone()).collect();
        println!("round {round}: {after} sent, {synced} counted as kept, {} there", ids.len() - before);
        assert!(ids.len() >= before + synced && ids.len() <= before + after);
        assert_eq!(ids, (0..ids.len()).map(Value::from).collect::<Vec<_>>());
        before = ids.len();
        bridge.start_again().await;
    }
}

#[tokio::test]
async fn a_flood_of_garbage_stays_within_its_bounds_and_good_requests_go_on() {
    const BYTES: u64 = 256 << 10;
    let bounds = "[ingress.rejected]\nmax_size = '256KiB'";
    let bridge = Bridge::start(&config("", bounds)).await;
    let garbage = AtomicU64::new(0);
    let over = AtomicBool::new(false);
    let flood = async |number: usize| {
        let mut random = fastrand::Rng::with_seed(number as u64);
        let mut client = Raw::connect(&bridge).await;
        while !over.load(Ordering::Relaxed) {
            let size = if random.u8(0..20) == 0 { random.usize(0..600 << 10) } else { random.usize(1..4000) };
            client.send(Raw::post(&"x".repeat(size.max(1)))).await;
            assert_eq!(client.answer().await.status, 400);
            garbage.fetch_add(1, Ordering::Relaxed);
        }
    };
    let calls = async {
        let mut client = Raw::connect(&bridge).await;
        let mut times = Vec::new();
        for n in 0..300 {
            let begun = Instant::now();
            client.send(Raw::post(&format!("{{\"n\":{n}}}"))).await;
            assert_eq!(client.answer().await.status, 200);
            times.push(begun.elapsed());
            assert!(kept_bytes(&bridge) <= BYTES);
        }
        times.sort();
        over.store(true, Ordering::Relaxed);
        times
    };
    let (_, times) = join(join_all((0..8).map(&flood)), calls).await;
    let sent = garbage.load(Ordering::Relaxed);
    println!("{sent} bodies of garbage beside 300 calls: median {:?}, slowest {:?}", times[150], times[299]);
    let cause = async |cause: &str| {
        let name = format!("cdrelay_ingress_rejected_dropped_total{{cause=\"{cause}\"}}");
        bridge.metric(&name).await.unwrap() as u64
    };
    eventually(PATIENCE, "everything is accounted for", async || {
        let kept = bridge.metric(KEPT).await.unwrap() as u64;
        kept + cause("busy").await + cause("too_large").await == sent
    })
    .await;
    let (kept, oldest) = (bridge.metric(KEPT).await.unwrap() as u64, cause("oldest").await);
    println!("{kept} kept, {oldest} of them dropped again, {} too large", cause("too_large").await);
    assert_eq!(cause("disk").await, 0);
    let listed = letters(&bridge, &["list"]).success().lines().count() as u64;
    assert_eq!(listed, kept - oldest);
    assert!(oldest > 0 && cause("too_large").await > 0 && kept_bytes(&bridge) <= BYTES);
    let peak = bridge.peak_rss_bytes() >> 20;
    println!("peak {peak} MiB");
    assert!(peak < 72, "{peak} MiB");
    eventually(PATIENCE, "all calls are published", async || bridge.stdout_lines().len() == 300).await;
}

fn kept_bytes(bridge: &Bridge) -> u64 {
    let Ok(files) = fs::read_dir(bridge.directory().join("spool/rejected")) else { return 0 };
    files.map(|file| file.unwrap().metadata().map_or(0, |file| file.len())).sum()
}

#[tokio::test]
async fn none_is_kept_where_none_is_wanted() {
    let bridge = Bridge::start(&config("", "[ingress.rejected]\nmax_size = '0B'")).await;
    assert_eq!(bridge.post("no call", "text/plain").await.status, 400);
    bridge.terminate();
    let mut bridge = bridge;
    assert!(bridge.wait(PATIENCE).await.success());
    assert!(!bridge.directory().join("spool/dead-letters").exists());
    assert!(!bridge.directory().join("spool/rejected").exists());
}

/// A stopped bridge that had one letter, one kept body and two calls.
async fn stopped() -> Bridge {
    let teams = "[sinks.by-team]\ntype = 'stdout'\ntopic = '{team}'\n";
    let mut bridge = Bridge::start(&(config("", "[spool]\nretain = { age = '1h' }") + teams)).await;
    assert_eq!(bridge.post("no call", "text/plain").await.status, 400);
    kept(&bridge, 1).await;
    let long = format!("{{\"n\":1,\"team\":\"{}\"}}", "x".repeat(300));
    for body in [long.as_str(), "{\"n\":2,\"team\":\"t\"}"] {
        assert_eq!(bridge.post(body.to_owned(), "application/json").await.status, 200);
    }
    eventually(PATIENCE, "all is published", async || bridge.stdout_lines().len() == 3).await;
    eventually(PATIENCE, "the letter is there", async || {
        bridge.metric("cdrelay_sink_dead_lettered_total{sink=\"by-team\"}").await == Some(1.0)
    })
    .await;
    bridge.terminate();
    assert!(bridge.wait(PATIENCE).await.success());
    bridge
}

const COMMANDS: [&[&str]; 8] = [
    &["check"],
    &["spool", "inspect"],
    &["spool", "verify"],
    &["spool", "export"],
    &["dead-letters", "list", "--again"],
    &["dead-letters", "show", "--again"],
    &["dead-letters", "replay", "--again", "--sink", "by-team"],
    &["replay", "--sink", "out"],
];

#[tokio::test]
async fn a_reader_that_goes_away_is_no_error() {
    let bridge = stopped().await;
    for arguments in COMMANDS {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = command();
        command.current_dir(bridge.directory()).args(arguments).args(["--config", "cdrelay.toml"]).stdout(writer);
        let output = command.stderr(std::process::Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
        assert_eq!((output.status.code(), str::from_utf8(&output.stderr).unwrap()), (Some(0), ""), "{arguments:?}");
    }
    assert!(letters(&bridge, &["list"]).success().lines().all(|line| !line.contains("by-team")), "it was replayed");
}

#[tokio::test]
async fn what_is_asked_for_and_not_there_is_an_error_that_says_what_is() {
    let bridge = stopped().await;
    let directory = bridge.directory();
    for arguments in [
        &["dead-letters", "list", "--sink", "by"][..],
        &["dead-letters", "replay", "--sink", "by"],
        &["replay", "--sink", "by"],
    ] {
        let unknown = cdrelay(directory, arguments);
        assert_eq!((unknown.code, &*unknown.stdout), (Some(64), ""), "{unknown:?}");
        assert!(unknown.stderr.contains("`by`") && unknown.stderr.contains("by-team, out"), "{unknown:?}");
    }
    for arguments in &COMMANDS[1..] {
        let elsewhere = finished(command().current_dir(directory).args(*arguments).args(["--spool", "nowhere"]));
        assert_eq!(elsewhere.code, Some(1), "{elsewhere:?}");
        assert!(elsewhere.stderr.contains("no spool in nowhere"), "{elsewhere:?}");
    }
    fs::write(directory.join("cdrelay.toml"), "[spool]\npaht = 'x'\n").unwrap();
    for arguments in COMMANDS {
        for more in [&[][..], &["--spool", "spool"]] {
            if arguments == ["check"] && !more.is_empty() {
                continue;
            }
            let wrong = cdrelay(directory, &[arguments, more].concat());
            assert_eq!(wrong.code, Some(78), "{arguments:?} {more:?}: {wrong:?}");
            assert!(wrong.stderr.contains("spool.paht"), "{wrong:?}");
        }
    }
}

#[tokio::test]
async fn damage_is_told_and_costs_the_exit_code() {
    let bridge = stopped().await;
    let spool = bridge.directory().join("spool");
    let path = spool.join("dead-letters/by-team/00000000000000000000.ndjson");
    let mut lines = fs::read(&path).unwrap();
    // A line cut off by a crash was never a letter; a byte that changed was part of one.
    lines.extend_from_slice(b"{\"time\":\"2026");
    fs::write(&path, &lines).unwrap();
    assert_eq!(letters(&bridge, &["list", "--sink", "by-team"]).success().lines().count(), 1);
    lines[2] ^= 0x80;
    fs::write(&path, &lines).unwrap();
    for command in ["list", "show", "replay"] {
        let damaged = letters(&bridge, &[command, "--sink", "by-team"]);
        assert_eq!(damaged.code, Some(1), "{command}: {damaged:?}");
        assert!(damaged.stderr.contains("1 dead letter(s) are unreadable"), "{damaged:?}");
    }

    let segment = spool.join("segment-00000000000000000000");
    let mut bytes = fs::read(&segment).unwrap();
    bytes[100] ^= 1;
    fs::write(&segment, bytes).unwrap();
    for arguments in [&["spool", "export"][..], &["replay", "--sink", "out"]] {
        let damaged = cdrelay(bridge.directory(), arguments);
        assert_eq!(damaged.code, Some(1), "{damaged:?}");
        assert!(damaged.stderr.contains("damaged: offsets 0 to 0"), "{damaged:?}");
        assert!(damaged.stdout.contains("n\\\":2") || damaged.stdout.contains("1 event(s) back"), "{damaged:?}");
        // What opening the spool finds is told too.
        let told = damaged.stderr.contains("records of the spool are unreadable");
        assert_eq!(told, arguments[0] == "replay", "{damaged:?}");
    }
}

#[tokio::test]
async fn a_bridge_whose_spool_has_a_long_path_hears_commands() {
    let long = ["x".repeat(90), "y".repeat(90)].join("/");
    let bridge = Bridge::start(&config(NARROW, &format!("[spool]\npath = '{long}'"))).await;
    assert_eq!(bridge.post(r#"{"n":1,"a":1,"b":2,"c":3}"#, "application/json").await.status, 400);
    kept(&bridge, 1).await;
    fs::write(bridge.directory().join("cdrelay.toml"), config("", &format!("[spool]\npath = '{long}'"))).unwrap();
    assert!(letters(&bridge, &["replay"]).success().contains("1 of 1"));
    eventually(PATIENCE, "it is published", async || bridge.stdout_lines().len() == 1).await;
}

#[tokio::test]
async fn the_query_goes_with_its_event_through_rejection_dead_letter_and_replay() {
    let bridge =
        Bridge::start(&config(NARROW, "[sinks.by-tenant]\ntype = 'stdout'\ntopic = '{query.tenant}.{n}'\n")).await;
    let post = async |query: &str, body: &str| {
        let request = Request::post(format!("{}?{query}", bridge.ingress_url()));
        bridge.send(request.body(Full::from(body.to_owned())).unwrap()).await.status
    };
    // The first has more fields than it may have; the fields of the second are in the query, as the sender's manual shows it.
    assert_eq!(post("tenant=acme&lead=42", r#"{"n":1,"a":1,"b":2,"c":3}"#).await, 400);
    assert_eq!(post("n=2&a=1&b=2&c=3", "").await, 400);
    kept(&bridge, 2).await;
    let queries: Vec<_> = bridge.rejected_bodies().iter().map(|body| body["query"].clone()).collect();
    assert_eq!(queries, ["tenant=acme&lead=42", "n=2&a=1&b=2&c=3"]);
    let wide = config("", "[sinks.by-tenant]\ntype = 'stdout'\ntopic = '{query.tenant}.{n}'\n");
    fs::write(bridge.directory().join("cdrelay.toml"), wide).unwrap();
    assert!(letters(&bridge, &["replay", "--rejected"]).success().contains("2 of 2 bodies"));
    let topics = || {
        let lines = bridge.stdout_lines();
        let topics = lines.iter().map(|line| serde_json::from_str::<Value>(line).unwrap()["topic"].clone());
        topics
            .filter_map(|topic| topic.as_str().map(str::to_owned))
            .filter(|topic| topic.contains('.'))
            .collect::<Vec<_>>()
    };
    eventually(PATIENCE, "they are published", async || topics().iter().any(|topic| topic == "acme.1")).await;

    // A tenant whose name is too long for a topic.
    let long = "x".repeat(300);
    assert_eq!(post(&format!("tenant={long}"), r#"{"n":3}"#).await, 200);
    eventually(PATIENCE, "a dead letter", async || {
        bridge.dead_letters("by-tenant").iter().any(|letter| letter["query"] == format!("tenant={long}"))
    })
    .await;
    let before = bridge.dead_letters("by-tenant").len();
    letters(&bridge, &["replay", "--sink", "by-tenant"]).success();
    eventually(PATIENCE, "refused once more", async || bridge.dead_letters("by-tenant").len() > before).await;
    let last = bridge.dead_letters("by-tenant").pop().unwrap();
    assert_eq!(last["query"], format!("tenant={long}"));
}
