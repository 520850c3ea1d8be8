//! How many pieces of memory an event takes on its way from the socket to stdout, HTTP included.
//!
//! Unlike a time this is the same on every machine, and it grows with every copy that somebody adds. The program starts itself
//! once more as the bridge, whose allocations are counted, and sends it events.
//!
//! Nine pieces are each event's own. Three are those of a request: its header, its body, and what works on its answer.
//! Six are the event's: the list of what was read, the payload, its fields, the answer of the spool, the record, the texts of its message.
//! The others belong to a commit or a write, which many events share where many come at once.

use clap::Parser;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use std::alloc::System;
use std::env;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// What was measured when this was last changed. More than that fails, and less too: what has been won is to be kept.
const ONE_BY_ONE: f64 = 16.0;
const TOLERANCE: f64 = 0.05;
/// With 64 connections many events share a commit and a write. How many do depends on the machine: 9.6 was measured.
const TOGETHER: f64 = 12.0;

const BRIDGE: &str = "CDRELAY_TEST_COUNT_ALLOCATIONS";
const EVENTS: usize = 4_000;
const PATIENCE: Duration = Duration::from_secs(60);

fn main() {
    if env::var_os(BRIDGE).is_some() {
        return count();
    }
    let mut filters = env::args().skip(1).filter(|argument| !argument.starts_with('-')).peekable();
    let wanted = filters.peek().is_none() || filters.any(|filter| "allocations".contains(filter.trim_end_matches(':')));
    if !wanted || env::args().any(|argument| argument == "--list") {
        return;
    }
    let mut bridge = Bridge::start();
    bridge.send(1, EVENTS);
    let alone = bridge.allocations_of(1, EVENTS);
    bridge.send(64, EVENTS);
    let together = bridge.allocations_of(64, EVENTS);
    println!("allocations per event: {alone:.2} one by one, {together:.2} over 64 connections");
    assert!(together <= TOGETHER, "{together:.2} allocations per event over 64 connections, {TOGETHER} at the most");
    let change = (alone - ONE_BY_ONE) / ONE_BY_ONE;
    assert!(change < TOLERANCE, "{alone:.2} allocations per event, {ONE_BY_ONE} before: what needs the others?");
    assert!(change > -TOLERANCE, "{alone:.2} allocations per event, {ONE_BY_ONE} before: well done, now hold it here");
}

/// The bridge. For every line that it is sent it tells how often memory has been asked for.
fn count() {
    std::thread::spawn(|| {
        for _ in std::io::stdin().lines() {
            let stats = ALLOCATOR.stats();
            eprintln!("allocations {}", stats.allocations + stats.reallocations);
        }
    });
    let cli = cdrelay::cli::Cli::parse_from(["cdrelay", "run", "--config", "cdrelay.toml"]);
    cli.execute().unwrap();
}

struct Bridge {
    child: Child,
    told: Receiver<String>,
    /// For each event on stdout.
    printed: Receiver<()>,
    port: u16,
    sent: usize,
    _directory: tempfile::TempDir,
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Bridge {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let [port, admin] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port());
        let config = format!(
            "[ingress]\nlisten = '127.0.0.1:{port}'\n[admin]\nlisten = '127.0.0.1:{admin}'\n[sinks.stdout]\ntype = 'stdout'\n"
        );
        std::fs::write(directory.path().join("cdrelay.toml"), config).unwrap();
        let mut child = Command::new(env::current_exe().unwrap())
            .env(BRIDGE, "1")
            .current_dir(directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (tell, told) = channel();
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| drop(tell.send(line))));
        let events = BufReader::new(child.stdout.take().unwrap()).lines();
        let (print, printed) = channel();
        std::thread::spawn(move || events.map_while(Result::ok).try_for_each(|_| print.send(())));
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "{:?}", told.try_iter().collect::<Vec<_>>());
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { child, told, printed, port, sent: 0, _directory: directory }
    }

    fn allocations(&mut self) -> usize {
        self.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        loop {
            let line = self.told.recv_timeout(PATIENCE).expect("the bridge answers");
            if let Some(count) = line.strip_prefix("allocations ") {
                return count.parse().unwrap();
            }
        }
    }

    fn allocations_of(&mut self, connections: usize, events: usize) -> f64 {
        let before = self.allocations();
        self.send(connections, events);
        (self.allocations() - before) as f64 / events as f64
    }

    /// Sends events that the bridge has not seen, one behind the other on each connection, and waits until they are on stdout: on a
    /// single connection for each before the next, so that none of them shares anything.
    fn send(&mut self, connections: usize, events: usize) {
        let (first, port) = (self.sent, self.port);
        self.sent += events;
        let printed = |count: usize| (0..count).for_each(|_| self.printed.recv_timeout(PATIENCE).expect("an event"));
        let mut streams = connected(port, connections);
        if let [stream] = streams.as_mut_slice() {
            for number in first..first + events {
                post(stream, number);
                printed(1);
            }
            return;
        }
        std::thread::scope(|scope| {
            for (connection, mut stream) in streams.into_iter().enumerate() {
                scope.spawn(move || {
                    for number in (first + connection..first + events).step_by(connections) {
                        post(&mut stream, number);
                    }
                });
            }
        });
        printed(events);
    }
}

fn connected(port: u16, connections: usize) -> Vec<TcpStream> {
    let connect = || {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    };
    (0..connections).map(|_| connect()).collect()
}

fn post(stream: &mut TcpStream, number: usize) {
    let event = format!(
        "{{\"type\":\"cdr\",\"direction\":\"inbound\",\"status\":\"answered\",\"team\":\"Sales\",\"appid\":2222223,\
         \"cmiuid\":\"{number:036}\",\"conversation_uuid\":\"conversation-{number:010}\",\"from\":919999999999,\"to\":918888888888,\
         \"time\":1634721099442,\"duration\":30,\"billedsec\":28,\"rate\":0.35,\"record\":true,\"user\":\"5002_2222223\"}}"
    );
    let request = format!(
        "POST /webhook/cdr HTTP/1.1\r\nhost: bridge\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{event}",
        event.len()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    let mut piece = [0; 1024];
    while !answer.ends_with(b"}\n") {
        let count = stream.read(&mut piece).unwrap();
        assert!(count > 0, "{}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&piece[..count]);
    }
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
}
