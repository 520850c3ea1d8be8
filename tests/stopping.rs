//! SIGTERM under load loses nothing, cuts nobody off, and is done in time.

use crate::support::raw::Raw;
use crate::support::{ANY_PORTS, Bridge, PATIENCE, STDOUT, eventually, free_port, until};
use futures_util::future::join_all;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Bytes;
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, open};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, remove_file};
use std::io::Read;
use std::net::TcpListener;
use std::time::{Duration, Instant};

const JSON: &str = "application/json";
/// What a slow machine may take on top of the time that is configured.
const SLACK: Duration = Duration::from_secs(3);

async fn bridge(shutdown: &str, sink: &str) -> Bridge {
    Bridge::start(&format!("{ANY_PORTS}[shutdown]\n{shutdown}\n{sink}")).await
}

fn dead_kafka() -> String {
    format!("[sinks.k]\ntype = 'kafka'\ntopic = 't'\nbrokers = '127.0.0.1:{}'\n", free_port())
}

async fn stops_cleanly(bridge: &mut Bridge, within: Duration) -> Duration {
    let begun = Instant::now();
    let in_time = tokio::time::timeout(within + SLACK, bridge.wait(PATIENCE)).await;
    let Ok(status) = in_time else { panic!("still running after {within:?}: {}", bridge.stderr()) };
    assert!(status.success(), "{status}: {}", bridge.stderr());
    begun.elapsed()
}

/// The number in each line on stdout, by conversation, in the order of arrival there.
fn arrived(bridge: &Bridge) -> BTreeMap<String, Vec<u64>> {
    let mut conversations = BTreeMap::<String, Vec<u64>>::new();
    for line in bridge.stdout_lines() {
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        let event = &line["event"];
        let conversation = event["conversation_uuid"].as_str().unwrap().to_owned();
        conversations.entry(conversation).or_default().push(event["n"].as_u64().unwrap());
    }
    conversations
}

/// Posts the events of one conversation one after another until the bridge is gone. Returns how many were stored, and
/// statuses other than 200.
async fn post_until_gone(bridge: &Bridge, conversation: usize) -> (u64, BTreeSet<u16>) {
    let (mut stored, mut others) = (0, BTreeSet::new());
    let mut client = Raw::connect(bridge).await;
    loop {
        let body = format!("{{\"conversation_uuid\":\"{conversation}\",\"n\":{stored}}}");
        if !client.try_send(Raw::post(&body)).await {
            return (stored, others);
        }
        match client.try_answer(PATIENCE).await.map(|answer| answer.status) {
            Some(200) => stored += 1,
            Some(status) => drop(others.insert(status)),
            None => return (stored, others),
        }
    }
}

#[tokio::test]
async fn what_was_acknowledged_under_load_is_delivered_in_order() {
    let mut bridge = bridge("drain_delay = '300ms'\ngrace_period = '10s'", STDOUT).await;
    for round in 0..3 {
        let load = join_all((0..32).map(|conversation| post_until_gone(&bridge, round * 32 + conversation)));
        let stop = async {
            let loaded = async || bridge.metric("cdrelay_ingress_events_accepted_total").await > Some(500.0);
            eventually(PATIENCE, "there is load", loaded).await;
            bridge.terminate();
            eventually(PATIENCE, "readiness turns false", async || bridge.admin("/readyz").await.status == 503).await;
        };
        let (answered, ()) = futures_util::future::join(load, stop).await;
        stops_cleanly(&mut bridge, Duration::from_secs(10)).await;
        bridge.start_again().await;
        let stored: Vec<u64> = answered.iter().map(|(stored, _)| *stored).collect();
        // A client that fell silent in between may have one more stored than it knows of.
        until(PATIENCE, "all that was acknowledged has arrived, in order", async || {
            let arrived = arrived(&bridge);
            let whole = |(conversation, &stored): (usize, &u64)| {
                let numbers = arrived.get(&(round * 32 + conversation).to_string()).map_or(&[][..], Vec::as_slice);
                numbers.len() as u64 >= stored
            };
            stored.iter().enumerate().all(whole).then_some(())
        })
        .await;
        for (stored, others) in &answered {
            assert!(*stored > 0 && others.iter().all(|status| *status == 503), "{answered:?}");
        }
    }
    for (conversation, numbers) in arrived(&bridge) {
        // Delivered once each, though at-least-once is all that is promised: every stop was clean.
        assert_eq!(numbers, (0..numbers.len() as u64).collect::<Vec<_>>(), "{conversation}");
    }
}

#[tokio::test]
async fn requests_are_still_taken_during_the_delay() {
    let mut bridge = bridge("drain_delay = '2s'\ngrace_period = '5s'", STDOUT).await;
    let begun = Instant::now();
    bridge.terminate();
    eventually(Duration::from_secs(1), "readiness turns false at once", async || {
        bridge.admin("/readyz").await.status == 503 && bridge.admin("/readyz/ingress").await.status == 503
    })
    .await;
    assert_eq!(bridge.admin("/livez").await.status, 200);
    let mut late = Raw::connect(&bridge).await;
    late.send(Raw::post("{\"late\":1}")).await;
    assert_eq!(late.answer().await.status, 200);
    stops_cleanly(&mut bridge, Duration::from_secs(7)).await;
    assert!(begun.elapsed() >= Duration::from_secs(2));
    assert_eq!(bridge.stdout_lines().len(), 1);
}

#[tokio::test]
async fn a_request_under_way_is_finished() {
    let mut bridge = bridge("grace_period = '20s'", STDOUT).await;
    let mut client = Raw::connect(&bridge).await;
    let request = Raw::post("{\"whole\":1}");
    client.send(&request[..request.len() - 4]).await;
    eventually(PATIENCE, "it has begun", async || {
        bridge.metric("cdrelay_ingress_requests_in_flight").await == Some(1.0)
    })
    .await;
    bridge.terminate();
    eventually(PATIENCE, "no more connections are taken", async || {
        tokio::net::TcpStream::connect(bridge.ingress()).await.is_err()
    })
    .await;
    client.send(&request[request.len() - 4..]).await;
    assert_eq!(client.answer().await.status, 200);
    assert!(client.ends(PATIENCE).await);
    stops_cleanly(&mut bridge, SLACK).await;
    assert_eq!(bridge.stdout_lines().len(), 1);
}

#[tokio::test]
async fn slow_and_silent_clients_do_not_hold_it_up() {
    let mut bridge = bridge("grace_period = '2s'", STDOUT).await;
    let mut idle = Raw::connect(&bridge).await;
    idle.send(Raw::post("{\"a\":1}")).await;
    assert_eq!(idle.answer().await.status, 200);
    let silent = Raw::connect(&bridge).await;
    bridge.terminate();
    let taken = stops_cleanly(&mut bridge, SLACK).await;
    println!("with idle connections it stopped in {taken:?}");
    assert!(taken < Duration::from_millis(1500), "{taken:?}");
    drop(silent);

    bridge.start_again().await;
    let mut slow = Raw::connect(&bridge).await;
    slow.send(Raw::head("POST", "content-length: 10\r\n")).await;
    eventually(PATIENCE, "it has begun", async || {
        bridge.metric("cdrelay_ingress_requests_in_flight").await == Some(1.0)
    })
    .await;
    bridge.terminate();
    let taken = stops_cleanly(&mut bridge, Duration::from_secs(2)).await;
    println!("with a slow client it stopped in {taken:?}");
    assert!(taken < Duration::from_millis(3500), "{taken:?}");
}

#[tokio::test]
async fn a_destination_that_is_gone_does_not_hold_it_up() {
    let nats = format!("[sinks.n]\ntype = 'nats'\nservers = 'nats://127.0.0.1:{}'\n", free_port());
    let mut bridge = bridge("grace_period = '2s'", &(dead_kafka() + &nats)).await;
    for n in 0..100 {
        assert_eq!(bridge.post(format!("{{\"n\":{n}}}"), JSON).await.status, 200);
    }
    bridge.terminate();
    let taken = stops_cleanly(&mut bridge, Duration::from_secs(2)).await;
    println!("with dead brokers it stopped in {taken:?}");
    assert!(taken < Duration::from_millis(3500), "{taken:?}");
    bridge.start_again().await;
    assert_eq!(bridge.metric("cdrelay_spool_records").await, Some(100.0));
}

/// Makes stdout a pipe that somebody holds open and nobody reads.
fn unread_stdout(bridge: &Bridge) -> File {
    let path = bridge.directory().join("stdout");
    remove_file(&path).unwrap();
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    open(&path, flags, Mode::empty()).unwrap().into()
}

#[tokio::test]
async fn a_blocked_stdout_does_not_hold_it_up_and_nothing_is_lost() {
    let mut bridge = bridge("grace_period = '2s'", STDOUT).await;
    bridge.kill();
    let mut pipe = unread_stdout(&bridge);
    bridge.start_again().await;
    // Far more than a pipe takes.
    let large = "x".repeat(10_000);
    let count = 100;
    for n in 0..count {
        let body = format!("{{\"conversation_uuid\":\"c\",\"n\":{n},\"x\":\"{large}\"}}");
        assert_eq!(bridge.post(body, JSON).await.status, 200);
    }
    bridge.terminate();
    let taken = stops_cleanly(&mut bridge, Duration::from_secs(2)).await;
    println!("with a blocked stdout it stopped in {taken:?}");
    assert!(taken < Duration::from_millis(3500), "{taken:?}");

    bridge.start_again().await;
    let (mut text, mut piece) = (Vec::new(), vec![0; 1 << 16]);
    let last = format!("\"n\":{},", count - 1);
    eventually(PATIENCE, "everything is delivered", async || {
        while let Ok(read) = pipe.read(&mut piece) {
            text.extend_from_slice(&piece[..read]);
        }
        String::from_utf8_lossy(&text).contains(&last)
    })
    .await;
    let text = String::from_utf8(text).unwrap();
    let mut positions = (0..count).map(|n| text.rfind(&format!("\"n\":{n},")).unwrap());
    assert!(positions.by_ref().is_sorted(), "out of order");
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once_and_loses_nothing() {
    let mut bridge = bridge("drain_delay = '60s'\ngrace_period = '60s'", &dead_kafka()).await;
    for n in 0..50 {
        assert_eq!(bridge.post(format!("{{\"n\":{n}}}"), JSON).await.status, 200);
    }
    bridge.terminate();
    eventually(PATIENCE, "it is stopping", async || bridge.admin("/readyz/ingress").await.status == 503).await;
    bridge.terminate();
    let status = bridge.wait(SLACK).await;
    assert_eq!(status.code(), Some(1), "{status}");
    bridge.start_again().await;
    assert_eq!(bridge.metric("cdrelay_spool_records").await, Some(50.0));
}

#[tokio::test]
async fn a_stop_says_how_many_records_are_undelivered_for_each_sink() {
    let mut bridge = bridge("grace_period = '2s'", &(dead_kafka() + STDOUT)).await;
    for n in 0..20 {
        assert_eq!(bridge.post(format!("{{\"n\":{n}}}"), JSON).await.status, 200);
    }
    eventually(PATIENCE, "stdout has all", async || bridge.stdout_lines().len() == 20).await;
    bridge.terminate();
    bridge.wait(PATIENCE).await;
    let log = bridge.stderr();
    let told: Vec<_> = log.lines().filter(|line| line.contains("records wait in the spool for this sink")).collect();
    assert!(told.len() == 1 && told[0].contains("20") && !told[0].contains("\"out\""), "{log}");
}

#[tokio::test]
async fn after_a_clean_stop_nothing_is_delivered_again() {
    let mut bridge = bridge("", STDOUT).await;
    let send = async |n: usize| {
        let body: Bytes = format!("{{\"n\":{n}}}").into();
        let request = Request::post(bridge.ingress_url()).body(Full::new(body)).unwrap();
        bridge.send(request).await.status
    };
    assert_eq!(join_all((0..200).map(send)).await, [200; 200]);
    bridge.terminate();
    stops_cleanly(&mut bridge, Duration::from_secs(10)).await;
    bridge.start_again().await;
    assert_eq!(bridge.post("{\"n\":200}", JSON).await.status, 200);
    eventually(PATIENCE, "the new one is delivered", async || bridge.stdout_lines().len() > 200).await;
    bridge.terminate();
    stops_cleanly(&mut bridge, Duration::from_secs(10)).await;
    let lines: BTreeSet<_> = bridge.stdout_lines().into_iter().collect();
    assert_eq!((lines.len(), bridge.stdout_lines().len()), (201, 201));
}

#[tokio::test]
async fn what_is_taken_already_is_said_clearly() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let bridge = bridge("", STDOUT).await;
    let run = async |setting: &str| {
        let mut command = crate::support::bridge::command();
        command.current_dir(bridge.directory()).args(["run", "--config", "cdrelay.toml", "--set", setting]);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap());
        let output = tokio::time::timeout(PATIENCE, output).await.unwrap().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for key in ["ingress.listen", "admin.listen"] {
        let (code, stderr) = run(&format!("{key}={address}")).await;
        assert_eq!(code, Some(1), "{stderr}");
        assert!(stderr.contains(key) && stderr.contains(&address.to_string()), "{stderr}");
        assert!(stderr.contains("in use"), "{stderr}");
    }
    let (code, stderr) = run("shutdown.grace_period=1s").await;
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("spool") && stderr.contains(&bridge.pid().to_string()), "{stderr}");
    assert_eq!(bridge.post("{\"a\":1}", JSON).await.status, 200);
}

/// HTTP/2 requests on their way end with a status too.
#[tokio::test]
async fn http2_requests_are_finished_before_the_connection_ends() {
    let mut bridge = bridge("grace_period = '10s'", STDOUT).await;
    let client = crate::support::bridge::client(true);
    let mut round = 0;
    let statuses = loop {
        let send = async |n: usize| {
            let body: Bytes = format!("{{\"n\":{}}}", round * 100 + n).into();
            let answer =
                client.request(Request::post(bridge.ingress_url()).body(Full::new(body)).unwrap()).await.ok()?;
            let status = answer.status().as_u16();
            answer.into_body().collect().await.ok().map(|_| status)
        };
        if round == 3 {
            bridge.terminate();
        }
        let statuses = join_all((0..100).map(send)).await;
        if statuses.iter().any(|status| *status != Some(200)) {
            break statuses;
        }
        round += 1;
    };
    stops_cleanly(&mut bridge, Duration::from_secs(10)).await;
    assert!(round >= 3, "{statuses:?}");
    let stored = round * 100 + statuses.iter().filter(|status| **status == Some(200)).count();
    assert!(statuses.iter().flatten().all(|status| matches!(status, 200 | 503)), "{statuses:?}");
    bridge.start_again().await;
    eventually(PATIENCE, "all that was stored is delivered", async || bridge.stdout_lines().len() >= stored).await;
}
