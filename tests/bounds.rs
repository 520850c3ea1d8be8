//! What it costs: time to start, processor when idle, memory when everything is full, syncs under load.
//!
//! The promises are about a release build. A build for debugging has a larger file to map and slower code, and gets some slack.

use crate::support::process::Process;
use crate::support::raw::Raw;
use crate::support::{ANY_PORTS, Bridge, PATIENCE, STDOUT, eventually, free_port};
use futures_util::future::{join, join_all};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
/// Of a release build.
const MEMORY: u64 = 64 * MIB;
/// The part of it that is read from the program's file, code and constants: 11.3 MiB of an idle release build. Under load it is 15 MiB; the rest
/// is for the larger futures of a build for debugging.
const RELEASE_CODE: u64 = 12 * MIB;
const START: Duration = Duration::from_millis(if cfg!(debug_assertions) { 400 } else { 100 });
/// Syncs per event at 64 connections. It follows from how long the disk takes against how long a request does: a build for
/// debugging takes its requests slowly, and a fast disk does not let them gather. That requests which do wait take exactly one sync
/// is shown beside the spool.
const SHARE: f64 = if cfg!(debug_assertions) { 0.75 } else { 0.25 };

const JSON: &str = "application/json";
const FORM: &str = "application/x-www-form-urlencoded";

fn dead_brokers() -> String {
    let (kafka, nats) = (free_port(), free_port());
    format!(
        "[sinks.k]\ntype = 'kafka'\ntopic = 't'\nbrokers = '127.0.0.1:{kafka}'\n[sinks.n]\ntype = 'nats'\nservers = 'nats://127.0.0.1:{nats}'\n"
    )
}

/// Serves nothing twice: every body is an event of its own.
fn fresh() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn event(custom: usize) -> String {
    let (n, custom) = (fresh(), "x".repeat(custom));
    format!(
        "{{\"type\":\"cdr\",\"appid\":2222223,\"direction\":\"inbound\",\"cmiuuid\":\"{n:032}\",\"conversation_uuid\":\"{n}\",\
         \"status\":\"missed\",\"from\":440000000000,\"team\":\"Sales_2222223\",\"time\":1634721099442,\"custom\":\"{custom}\"}}"
    )
}

/// The shapes of request that ask for most memory, each in its own way.
#[derive(Clone, Copy, Debug)]
enum Shape {
    Small,
    Large,
    Array,
    ArrayOfTiny,
    ManyFields,
    TooManyFields,
    Nested,
    Form,
    /// Six times as long as JSON.
    ControlCharacters,
}

impl Shape {
    const ALL: [Self; 9] = [
        Self::Small,
        Self::Array,
        Self::ArrayOfTiny,
        Self::Large,
        Self::ManyFields,
        Self::TooManyFields,
        Self::Nested,
        Self::Form,
        Self::ControlCharacters,
    ];

    fn body(self) -> String {
        let fields = |count: usize| {
            let mut text = format!("{{\"n\":{}", fresh());
            (0..count).for_each(|n| write!(text, ",\"{n:x}\":1").unwrap());
            text + "}"
        };
        match self {
            Self::Small => event(100),
            Self::Large => event((MIB - 1000) as usize),
            Self::Array => format!("[{}]", (0..1000).map(|_| event(300)).collect::<Vec<_>>().join(",")),
            Self::ArrayOfTiny => {
                let events: Vec<_> = (0..1000).map(|_| format!("{{\"a\":{}}}", fresh())).collect();
                format!("[{}]", events.join(","))
            }
            Self::ManyFields => {
                format!("[{}]", (0..50).map(|_| fields(900)).collect::<Vec<_>>().join(","))
            }
            Self::TooManyFields => fields(40_000),
            Self::Nested => format!("{{\"n\":{},\"x\":{}}}", fresh(), fields(40_000)),
            Self::Form => format!("n={}{}", fresh(), "&a".repeat(300_000)),
            Self::ControlCharacters => format!("n={}&a={}", fresh(), "\u{1}".repeat((MIB - 1000) as usize)),
        }
    }
}

/// Sends requests of this shape over so many connections at once, each `count` one after another; how often each status came.
async fn hammer(bridge: &Bridge, shape: Shape, connections: usize, count: usize) -> BTreeMap<u16, usize> {
    let client = async || {
        let mut client = Raw::connect(bridge).await;
        let mut statuses = Vec::new();
        for _ in 0..count {
            let body = shape.body();
            let content_type = if let Shape::ControlCharacters = shape { FORM } else { JSON };
            let lines = format!("content-type: {content_type}\r\ncontent-length: {}\r\n", body.len());
            let sent = client.try_send(Raw::head("POST", &lines) + &body).await;
            match client.try_answer(PATIENCE).await {
                Some(answer) if sent && answer.headers.get("connection").is_none() => statuses.push(answer.status),
                answer => {
                    statuses.push(answer.map_or(0, |answer| answer.status));
                    client = Raw::connect(bridge).await;
                }
            }
        }
        statuses
    };
    let mut counts = BTreeMap::new();
    for status in join_all((0..connections).map(|_| client())).await.into_iter().flatten() {
        *counts.entry(status).or_default() += 1;
    }
    counts
}

/// Clients that announce a large body, send most of it, and stop.
async fn stall(bridge: &Bridge, connections: usize) {
    let piece = vec![b' '; 64 << 10];
    let stall = async || {
        let mut client = Raw::connect(bridge).await;
        client.send(Raw::head("POST", &format!("content-length: {MIB}\r\n"))).await;
        for _ in 0..15 {
            if !client.try_send(&piece).await {
                return;
            }
        }
        let _ = client.try_answer(PATIENCE).await;
    };
    join_all((0..connections).map(|_| stall())).await;
}

/// Asserts that the bridge has taken no more memory than a small container has. A build for debugging holds the same data beside two to three
/// times the code. The excess of the code is left out, so the bound of the data is that of a release build.
pub fn assert_small(bridge: &Bridge, when: &str) {
    let (peak, now) = (bridge.peak_rss_bytes(), bridge.rss_bytes());
    // The system takes pages of code back when it needs memory, but the peak was held with them.
    static CODE: AtomicU64 = AtomicU64::new(0);
    let code = bridge.code_bytes();
    let code = CODE.fetch_max(code, Ordering::Relaxed).max(code);
    let more_code = if cfg!(debug_assertions) { code.saturating_sub(RELEASE_CODE) } else { 0 };
    println!("{when}: peak {} KiB, now {} KiB, {} KiB of them code", peak >> 10, now >> 10, code >> 10);
    assert!(peak < MEMORY + more_code, "{when}: {} MiB", peak >> 20);
}

#[tokio::test]
async fn a_full_spool_and_dead_brokers_fit_the_memory() {
    let mut bridge =
        Bridge::start(&format!("{ANY_PORTS}max_body = '1MiB'\n[spool]\nmax_size = '64MiB'\n{}", dead_brokers())).await;
    assert_small(&bridge, "started");
    // While there is room, up to when there is none, and then on and on.
    for shape in Shape::ALL {
        let statuses = hammer(&bridge, shape, 64, 1).await;
        assert_small(&bridge, &format!("64 × {shape:?}, {statuses:?}"));
    }
    for shape in [Shape::Large, Shape::Array, Shape::Small] {
        eventually(PATIENCE, "the spool is full", async || hammer(&bridge, shape, 64, 1).await.contains_key(&503))
            .await;
        assert_small(&bridge, &format!("full of {shape:?}"));
    }
    for (shape, count) in [(Shape::Small, 10), (Shape::Array, 1), (Shape::ArrayOfTiny, 2), (Shape::Large, 1)] {
        let statuses = hammer(&bridge, shape, 96, count).await;
        assert_eq!(statuses, [(503, 96 * count)].into());
        assert_small(&bridge, &format!("full, 96 × {shape:?}"));
    }
    bridge.kill();
    bridge.start_again().await;
    assert_small(&bridge, "started again, full");
    let hammer_both = async {
        hammer(&bridge, Shape::Small, 64, 10).await;
        hammer(&bridge, Shape::Large, 64, 1).await;
    };
    join(stall(&bridge, 64), hammer_both).await;
    assert_small(&bridge, "full, 64 slow clients and 64 × 1 MiB");
}

#[tokio::test]
async fn large_bodies_side_by_side_wait_for_their_turn() {
    // However slowly a busy machine takes them, each is to get its turn.
    let time = format!("body_timeout = '{}s'\n", PATIENCE.as_secs());
    let bridge = Bridge::start(&format!("{ANY_PORTS}max_body = '1MiB'\n{time}{STDOUT}")).await;
    let statuses = hammer(&bridge, Shape::Large, 64, 1).await;
    assert_small(&bridge, &format!("64 × 1 MiB, {statuses:?}"));
    assert_eq!(statuses, [(200, 64)].into());
}

#[tokio::test]
async fn idle_connections_take_little_memory() {
    let bridge = Bridge::start(&format!("{ANY_PORTS}{STDOUT}")).await;
    let mut clients = Vec::new();
    for _ in 0..500 {
        let mut client = Raw::connect(&bridge).await;
        client.send(Raw::post(&event(100))).await;
        assert_eq!(client.answer().await.status, 200);
        clients.push(client);
    }
    assert_small(&bridge, "500 idle connections");
}

#[tokio::test]
async fn an_idle_bridge_uses_no_processor() {
    let bridge = Bridge::start(&format!("{ANY_PORTS}{STDOUT}{}", dead_brokers())).await;
    assert_eq!(hammer(&bridge, Shape::Small, 1, 10).await, [(200, 10)].into());
    eventually(PATIENCE, "every sink has tried", async || {
        let retried = async |sink| {
            bridge.metric(&format!("cdrelay_sink_retried_total{{sink=\"{sink}\",cause=\"unavailable\"}}")).await
        };
        bridge.stdout_lines().len() == 10 && retried("k").await > Some(20.0) && retried("n").await > Some(20.0)
    })
    .await;
    let before = bridge.cpu_time();
    let interval = Duration::from_secs(5);
    tokio::time::sleep(interval).await;
    let used = bridge.cpu_time() - before;
    println!("idle with dead Kafka and NATS: {used:?} of processor in {interval:?}");
    assert!(used < interval / 50, "{used:?}");
}

#[tokio::test]
async fn it_serves_soon_after_its_start() {
    let mut times = Vec::new();
    for _ in 0..5 {
        let directory = TempDir::new().unwrap();
        let path = |name| directory.path().join(name);
        let port = free_port();
        let config = format!("[admin]\nlisten = '127.0.0.1:0'\n[ingress]\nlisten = '127.0.0.1:{port}'\n{STDOUT}");
        write(path("cdrelay.toml"), config).unwrap();
        let mut command = crate::support::bridge::command();
        command.current_dir(directory.path()).args(["run", "--config", "cdrelay.toml"]);
        let begun = Instant::now();
        let _process = Process::spawn(&mut command, &path("stdout"), &path("stderr"));
        while begun.elapsed() < PATIENCE && !gets_200(port) {
            std::thread::sleep(Duration::from_millis(1));
        }
        times.push(begun.elapsed());
    }
    println!("from start to the first 200: {times:?}");
    // The machine may be busy with other tests: the best of them shows what it takes.
    assert!(times.iter().min().unwrap() < &START, "{times:?}");
}

fn gets_200(port: u16) -> bool {
    use std::io::{Read, Write};
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(Raw::post("{\"first\":1}").as_bytes()).unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    &answer == b"HTTP/1.1 200"
}

#[tokio::test]
async fn requests_that_wait_together_share_a_sync() {
    let bridge = Bridge::start(&format!("{ANY_PORTS}{STDOUT}")).await;
    let mut clients = join_all((0..64).map(|_| Raw::connect(&bridge))).await;
    // While the bridge stands still all requests arrive: then they do wait together, however slow this client is.
    for _ in 0..50 {
        bridge.pause();
        for client in &mut clients {
            assert!(client.try_send(Raw::post(&Shape::Small.body())).await);
        }
        bridge.resume();
        for client in &mut clients {
            assert_eq!(client.try_answer(PATIENCE).await.unwrap().status, 200);
        }
    }
    let syncs = bridge.metric("cdrelay_spool_syncs_total").await.unwrap();
    let records = bridge.metric("cdrelay_spool_appended_records_total").await.unwrap();
    println!("64 connections: {syncs} syncs for {records} events, {:.3} each", syncs / records);
    assert_eq!(records, 3200.0);
    assert!(syncs / records < SHARE, "{syncs} syncs for {records} events");
}
