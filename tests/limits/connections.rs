//! How many connections there may be.

use super::*;
use crate::support::{eventually, free_port, nats};
use futures_util::future::join_all;
use std::time::Instant;

/// So long that no deadline can be what ends a connection.
const FOR_EVER: &str = "header_timeout = '1h'\nidle_timeout = '1h'\nbody_timeout = '1h'\n";

/// As slow clients do it: nothing at all, half a header, half a body, half a chunk, half a preface.
fn beginnings() -> [String; 5] {
    [
        String::new(),
        "POST /webhook/cdr HTTP/1.1\r\nhost: test\r\nx:".into(),
        Raw::head("POST", "content-length: 1000\r\n") + "{",
        Raw::head("POST", "transfer-encoding: chunked\r\n") + "5\r\n{",
        "PRI * HTTP/2.0\r\n".into(),
    ]
}

#[tokio::test]
async fn clients_that_keep_the_bridge_waiting_make_room_for_others() {
    let bridge = bridge(&format!("max_connections = 8\n{FOR_EVER}")).await;
    let mut silent = Vec::new();
    beside_others(&bridge, "four times as many silent clients as there are places", async {
        for beginning in beginnings().iter().cycle().take(32) {
            let mut client = Raw::connect(&bridge).await;
            client.try_send(beginning).await;
            silent.push(client);
        }
        eventually(PATIENCE, "silent ones had to go", async || limited(&bridge, "connections").await >= 24.0).await;
    })
    .await;
}

/// A byte now and then keeps no place.
#[tokio::test]
async fn clients_that_send_byte_by_byte_make_room_too() {
    let bridge = bridge(&format!("max_connections = 4\n{FOR_EVER}")).await;
    let mut slow = Vec::new();
    for beginning in beginnings().iter().skip(1).take(3) {
        let mut client = Raw::connect(&bridge).await;
        client.send(beginning).await;
        slow.push(client);
    }
    slow.push(Raw::connect(&bridge).await);
    slow[3].send(&beginnings()[1]).await;
    let drip = async {
        loop {
            for client in &mut slow {
                client.try_send(" ").await;
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    let other = async { Raw::connect(&bridge).await.exchange("{\"a\":1}").await };
    tokio::select! {
        status = other => assert_eq!(status, Ok(200)),
        () = drip => {}
    }
}

#[tokio::test]
async fn whoever_never_reads_makes_room_too() {
    let bridge = bridge(&format!("max_connections = 2\n{FOR_EVER}")).await;
    let mut deaf = [Raw::connect(&bridge).await, Raw::connect(&bridge).await];
    let probes = Raw::head("GET", "").repeat(1000);
    for client in &mut deaf {
        // Until it would block: what is answered is not read.
        while tokio::time::timeout(Duration::from_secs(1), client.try_send(&probes)).await.is_ok_and(|sent| sent) {}
    }
    let mut other = Raw::connect(&bridge).await;
    assert_eq!(other.exchange("{\"a\":1}").await, Ok(200));
}

#[tokio::test]
async fn one_address_has_no_more_connections_than_it_may() {
    let bridge = bridge("max_connections_per_peer = 2\n").await;
    let mut first = Raw::connect(&bridge).await;
    let mut second = Raw::connect(&bridge).await;
    for (n, client) in [&mut first, &mut second].into_iter().enumerate() {
        assert_eq!(client.exchange(&format!("{{\"n\":{n}}}")).await, Ok(200));
    }
    let mut third = Raw::connect(&bridge).await;
    assert!(third.ends(PATIENCE).await);
    assert_eq!(limited(&bridge, "connections_per_peer").await, 1.0);
    drop(first);
    eventually(PATIENCE, "there is room for another", async || {
        Raw::connect(&bridge).await.exchange("{\"n\":3}").await == Ok(200)
    })
    .await;
    assert_eq!(second.exchange("{\"n\":4}").await, Ok(200));
}

/// As many as the default settings allow to one address, nearly.
#[tokio::test]
async fn two_thousand_idle_connections_fit_a_small_container() {
    const CLIENTS: usize = 2000;
    open_many_files();
    let bridge = bridge("").await;
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let mut client = Raw::connect(&bridge).await;
        assert_eq!(client.exchange(&format!("{{\"n\":{number},\"custom\":\"{}\"}}", "x".repeat(400))).await, Ok(200));
        clients.push(client);
    }
    assert_small(&bridge, &format!("{CLIENTS} idle connections"));
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.exchange(&format!("{{\"again\":{number}}}")).await, Ok(200), "{number}");
    }
}

/// As much of a header as the bridge reads, on as many connections as there may be.
#[tokio::test]
async fn headers_that_are_never_completed_fit_a_small_container() {
    open_many_files();
    let bridge = bridge("header_timeout = '1h'\n").await;
    let header = format!("POST /webhook/cdr HTTP/1.1\r\nhost: test\r\nx: {}", "x".repeat(15 << 10));
    let mut clients = Vec::new();
    for address in ["127.0.0.1", "127.0.0.2"] {
        for _ in 0..1088 {
            let mut client = Raw::connect_from(&bridge, address).await;
            client.try_send(&header).await;
            clients.push(client);
        }
    }
    assert_small(&bridge, &format!("{} connections with 15 KiB of a header", clients.len()));
    assert_eq!(Raw::connect_from(&bridge, "127.0.0.3").await.exchange("{\"a\":1}").await, Ok(200));
}

/// 600 connections announce a large body and send nothing.
#[tokio::test]
async fn announced_bodies_shut_nobody_out() {
    open_many_files();
    let bridge = bridge("").await;
    let mut silent = Vec::new();
    for _ in 0..600 {
        let mut client = Raw::connect(&bridge).await;
        client.send(Raw::head("POST", "content-length: 1000000\r\n")).await;
        silent.push(client);
    }
    let begun = Instant::now();
    let webhook = async |n: usize| Raw::connect(&bridge).await.exchange(&format!("{{\"n\":{n}}}")).await;
    let answers = join_all((0..496).map(webhook)).await;
    let taken = begun.elapsed();
    println!("496 webhooks beside 600 announced bodies in {taken:?}");
    assert!(answers.iter().all(|answer| *answer == Ok(200)), "{answers:?}");
    assert!(taken < Duration::from_secs(3), "{taken:?}");
}

/// The kubelet restarts a pod whose probes take longer than a second, by default.
#[tokio::test]
async fn probes_are_answered_while_others_connect_to_the_admin_port() {
    open_many_files();
    let bridge = bridge("").await;
    let strangers = async {
        let mut silent = Vec::new();
        loop {
            silent.push(tokio::net::TcpStream::connect(bridge.admin_address()).await);
            sleep(Duration::from_millis(2)).await;
        }
    };
    let probes = async {
        let mut slowest = Duration::ZERO;
        let until = Instant::now() + Duration::from_secs(5);
        while Instant::now() < until {
            let begun = Instant::now();
            let mut probe = Raw::over(tokio::net::TcpStream::connect(bridge.admin_address()).await.unwrap());
            probe.send("GET /livez HTTP/1.1\r\nhost: test\r\n\r\n").await;
            assert_eq!(probe.answer().await.status, 200);
            slowest = slowest.max(begun.elapsed());
            sleep(Duration::from_millis(100)).await;
        }
        slowest
    };
    let slowest = tokio::select! {
        slowest = probes => slowest,
        () = strangers => unreachable!(),
    };
    println!("the slowest probe took {slowest:?}");
    assert!(slowest < Duration::from_millis(500), "{slowest:?}");
}

#[tokio::test]
async fn a_connection_closes_when_it_has_been_idle_for_long() {
    let bridge = bridge("idle_timeout = '1s'\n").await;
    let mut client = Raw::connect(&bridge).await;
    assert_eq!(client.exchange("{\"a\":1}").await, Ok(200));
    assert!(client.ends(PATIENCE).await);
}

/// A client whose disk or network ended is not told apart from one that closed its sending side, but for the time it waits.
#[tokio::test]
async fn a_client_that_is_gone_gives_its_connection_back() {
    let dead = format!("[sinks.k]\ntype = 'kafka'\ntopic = 't'\nbrokers = '127.0.0.1:{}'\n", free_port());
    let bridge = Bridge::start(&format!("{ANY_PORTS}ack = 'delivered'\ndelivery_timeout = '1h'\n{dead}")).await;
    let mut gone = Raw::connect(&bridge).await;
    gone.send(Raw::post("{\"gone\":1}")).await;
    let in_flight = async |count| bridge.metric("cdrelay_ingress_requests_in_flight").await == Some(count);
    eventually(PATIENCE, "it is stored", async || bridge.metric("cdrelay_spool_records").await == Some(1.0)).await;
    assert!(in_flight(1.0).await);
    drop(gone);
    eventually(PATIENCE, "its request is over", async || in_flight(0.0).await).await;
}

/// Requests that wait for a dead sink hold up no other.
#[tokio::test]
async fn requests_that_wait_for_a_dead_sink_hold_up_nobody() {
    const CLIENTS: usize = 1100;
    open_many_files();
    let dead = "[sinks.dead]\ntype = 'kafka'\nbrokers = '127.0.0.1:1'\ntopic = 't'\n";
    let bridge = Bridge::start(&format!("{ANY_PORTS}ack = 'delivered'\ndelivery_timeout = '5min'\n{dead}")).await;
    let mut waiting = Vec::new();
    for number in 0..CLIENTS {
        let mut client = Raw::connect(&bridge).await;
        client.send(Raw::post(&format!("{{\"waiting\":{number}}}"))).await;
        waiting.push(client);
    }
    eventually(PATIENCE, "all are stored, however many wait", async || {
        bridge.metric("cdrelay_spool_appended_records_total").await == Some(CLIENTS as f64)
    })
    .await;
    assert_eq!(bridge.get("").await.status, 200);
    assert!(waiting[0].try_answer(Duration::from_millis(10)).await.is_none(), "the sink is dead");
}

/// 49 idle clients leave files to brokers, segments and the admin port.
#[tokio::test]
async fn few_open_files_leave_enough_for_sinks_segments_and_probes() {
    const FILES: u32 = 64;
    let stream = nats::unique_name("files");
    nats::create_stream(&nats::shared(), &stream, &[&format!("{stream}.>")]).await;
    let sink = format!("[sinks.n]\ntype = 'nats'\nservers = '{}'\nsubject = '{stream}.x'\n", nats::shared());
    let spool = "[spool]\nmax_size = '4MiB'\nsegment_size = '64KiB'\n";
    let bridge = Bridge::start_with_few_files(&format!("{ANY_PORTS}{spool}{sink}"), FILES).await;
    let warning = "fewer connections than `ingress.max_connections`";
    assert!(bridge.stderr().contains(warning), "{}", bridge.stderr());
    let mut idle = Vec::new();
    for _ in 0..49 {
        idle.push(Raw::connect(&bridge).await);
    }
    // Over several segments.
    for number in 0..30 {
        let event = format!("{{\"n\":{number},\"x\":\"{}\"}}", "x".repeat(10 << 10));
        assert_eq!(Raw::connect(&bridge).await.exchange(&event).await, Ok(200), "{number}");
        assert_eq!(bridge.admin("/livez").await.status, 200);
    }
    println!("{} of {FILES} files open", bridge.open_files());
    eventually(PATIENCE, "all are delivered", async || nats::stream_length(&nats::shared(), &stream).await == 30).await;
    assert!(!bridge.stderr().contains("Too many open files"), "{}", bridge.stderr());
    nats::delete_stream(&nats::shared(), &stream).await;

    let config = bridge.directory().join("cdrelay.toml");
    let mut check = std::process::Command::new("sh");
    check.args(["-c", "ulimit -n 64; exec \"$0\" check --config \"$1\"", env!("CARGO_BIN_EXE_cdrelay")]).arg(config);
    let output = check.output().unwrap();
    assert!(output.status.success() && String::from_utf8_lossy(&output.stderr).contains(warning), "{output:?}");
}

/// 20,000 of them in rounds, or as many as `CDRELAY_RECONNECTS` says.
#[tokio::test]
async fn clients_that_come_and_go_leave_nothing_behind() {
    const ROUND: usize = 2000;
    let count = std::env::var("CDRELAY_RECONNECTS").map_or(10 * ROUND, |count| count.parse().expect("a number"));
    let bridge = bridge("").await;
    let (before, files, begun) = (bridge.rss_bytes(), bridge.open_files(), Instant::now());
    for round in 0..count.div_ceil(ROUND) {
        beside_others(&bridge, &format!("connections without a word, round {round}"), async {
            for _ in 0..ROUND.min(count - round * ROUND) {
                drop(Raw::connect(&bridge).await);
            }
        })
        .await;
    }
    let taken = begun.elapsed();
    eventually(PATIENCE, "its sockets are closed", async || bridge.open_files() < 100).await;
    let (now, files_now) = (bridge.rss_bytes(), bridge.open_files());
    println!("{count} connections without a word in {taken:?}: {files} files open before, {files_now} after");
    println!("{} KiB before, {} KiB after", before >> 10, now >> 10);
}
