//! The cases: which sinks, what load, on which disk.

use crate::SERVE;
use crate::floor;
use crate::load::{Load, Measured, SECRET, Shape};
use crate::process::{Cores, Usage, memory};
use crate::support::process::Process;
use crate::support::tls::{Authority, Client};
use crate::support::{PATIENCE, free_port, kafka, nats, until};
use std::collections::BTreeMap;
use std::env;
use std::fs::{metadata, read_to_string, write};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// What was measured, by name and unit.
pub type Figures = BTreeMap<&'static str, f64>;

/// How long a load runs before it is measured.
const WARM_UP: Duration = Duration::from_secs(1);
/// New requests a second while a backlog is caught up with.
const TRICKLE: f64 = 500.0;
const BINARY: &str = env!("CARGO_BIN_EXE_cdrelay");

/// One line of the report.
#[derive(Clone, Debug)]
pub struct Case {
    pub name: &'static str,
    sinks: &'static [Destination],
    shape: Shape,
    /// On a disk that syncs, or on one in memory.
    on_disk: bool,
    /// Requests at half the rate that a closed loop has just come to.
    open: bool,
    /// By TLS, without the handshakes. The floor has none.
    tls: bool,
    /// So many events are in the spool when the bridge starts. What is measured is how it catches up with them.
    backlog: usize,
}

/// A bridge that has answered.
struct Running {
    process: Process,
    ingress: u16,
    admin: u16,
    /// How long it took to answer.
    started: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Destination {
    Stdout,
    Kafka,
    Nats,
}

use Destination::{Kafka, Nats, Stdout};

/// All that can be measured here: those with Kafka or NATS only where one is named.
pub fn all() -> Vec<Case> {
    let shape = Shape::default();
    let with = |connections| Shape { connections, ..shape };
    let case = |name, sinks, shape| Case { name, sinks, shape, on_disk: false, open: false, tls: false, backlog: 0 };
    let cases = [
        case("stdout, 1 connection", &[Stdout][..], with(1)),
        case("stdout, 64 connections", &[Stdout], shape),
        case("stdout, 64 connections, HMAC", &[Stdout], Shape { signed: true, ..shape }),
        Case { tls: true, ..case("stdout, 64 connections, TLS", &[Stdout], shape) },
        case("stdout, 1,000 connections", &[Stdout], with(1000)),
        case("stdout, 10,000 connections", &[Stdout], with(10_000)),
        case("stdout, one conversation", &[Stdout], Shape { one_conversation: true, ..shape }),
        case("stdout, arrays of 100", &[Stdout], Shape { events: 100, ..shape }),
        case("stdout, 4 KB", &[Stdout], Shape { bytes: 4 << 10, ..shape }),
        case("stdout, 64 KB", &[Stdout], Shape { bytes: 64 << 10, ..shape }),
        Case { on_disk: true, ..case("stdout, 64 connections, disk", &[Stdout], shape) },
        Case { on_disk: true, ..case("stdout, 1,000 connections, disk", &[Stdout], with(1000)) },
        Case { on_disk: true, open: true, ..case("stdout, half load, disk", &[Stdout], shape) },
        Case { backlog: 1_000_000, ..case("stdout, a backlog of a million", &[Stdout], with(8)) },
        case("Kafka, 64 connections", &[Kafka], shape),
        Case { backlog: 1_000_000, ..case("Kafka, a backlog of a million", &[Kafka], with(8)) },
        case("JetStream, 64 connections", &[Nats], shape),
        case("three sinks, 64 connections", &[Stdout, Kafka, Nats], shape),
    ];
    let here = |destination: &Destination| match destination {
        Stdout => true,
        Kafka => env::var_os("CDRELAY_TEST_KAFKA").is_some(),
        Nats => env::var_os("CDRELAY_TEST_NATS").is_some(),
    };
    let (here, not): (Vec<_>, Vec<_>) = cases.into_iter().partition(|case| case.sinks.iter().all(here));
    for case in not {
        eprintln!("left out: {} (CDRELAY_TEST_KAFKA, CDRELAY_TEST_NATS; tests/run starts both)", case.name);
    }
    here
}

impl Case {
    /// The case and its floors, once.
    pub async fn measure(&self, cores: Cores, measure: Duration) -> Figures {
        let directory = if self.on_disk { TempDir::new_in(".") } else { TempDir::new_in("/dev/shm") }.unwrap();
        if self.backlog > 0 {
            return self.catch_up(cores, directory.path(), measure).await;
        }
        let mut figures = Figures::new();
        let floor = self.bare_hyper(cores, directory.path(), measure).await;
        let (commit_rate, commits) =
            floor::commits(directory.path(), self.shape.connections, self.shape.bytes * self.shape.events, measure / 4);
        if self.on_disk {
            let events = commit_rate * self.shape.events as f64;
            figures.insert("raw commits, events/s", events);
            figures.insert("raw commit p99, ms", f64::from(commits[(commits.len() - 1) * 99 / 100]) / 1000.0);
        }
        let bridge = self.bridge(cores, directory.path(), measure).await;
        figures.insert("hyper, events/s", floor["events/s"]);
        figures.insert("hyper, cpu µs", floor["cpu µs"]);
        figures.insert("x hyper", bridge["cpu µs"] / floor["cpu µs"]);
        figures.extend(bridge);
        figures
    }

    async fn bare_hyper(&self, cores: Cores, directory: &Path, measure: Duration) -> Figures {
        let (out, err) = (directory.join("hyper.out"), directory.join("hyper.err"));
        let mut server = cores.spawn(Command::new(env::current_exe().unwrap()).arg(SERVE), &out, &err);
        let address = until(PATIENCE, "the bare server listens", async || {
            server.assert_running();
            read_to_string(&out).ok().filter(|text| text.ends_with('\n'))
        })
        .await;
        let load = Load::connect(address.trim(), self.shape, None).await;
        let (measured, before, after) = load.closed(WARM_UP, measure, || Usage::of(server.pid())).await;
        figures(&measured, before, after)
    }

    async fn bridge(&self, cores: Cores, directory: &Path, measure: Duration) -> Figures {
        let authority = self.tls.then(|| Authority::new("bench"));
        let client = authority.as_ref().map(Client::trusting);
        let mut config = self.sinks().await;
        if self.shape.signed {
            config += &format!("[[ingress.auth]]\ntype = 'github'\nsecrets = '{SECRET}'\n");
        }
        if let Some(authority) = authority {
            let pair = authority.issue();
            write(directory.join("tls.pem"), pair.certificate + &pair.key).unwrap();
            config += "[ingress.tls]\ncert_file = 'tls.pem'\nkey_file = 'tls.pem'\n";
        }
        let Running { process: bridge, ingress, admin, started } = start(cores, directory, &config).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let idle = memory(bridge.pid(), "VmRSS");
        let address = format!("127.0.0.1:{ingress}");
        let syncs = async || metric(admin, "cdrelay_spool_syncs_total").await;
        let mut rate = 0.0;
        if self.open {
            let load = Load::connect(&address, self.shape, client.as_ref()).await;
            let (measured, ..) = load.closed(WARM_UP, measure / 2, || ()).await;
            rate = measured.rate() / self.shape.events as f64 / 2.0;
        }
        let load = Load::connect(&address, self.shape, client.as_ref()).await;
        let before = (syncs().await, metric(admin, "cdrelay_spool_appended_records_total").await);
        let mark = || Usage::of(bridge.pid());
        let (measured, first, last) = match self.open {
            true => load.open(rate, WARM_UP, measure, mark).await,
            false => load.closed(WARM_UP, measure, mark).await,
        };
        let stored = metric(admin, "cdrelay_spool_appended_records_total").await - before.1;
        let mut figures = figures(&measured, first, last);
        figures.insert("syncs/event", (syncs().await - before.0) / stored);
        figures.insert("start, ms", started.as_secs_f64() * 1000.0);
        figures.insert("RSS idle, MiB", idle);
        figures.insert("RSS peak, MiB", memory(bridge.pid(), "VmHWM"));
        figures.insert("binary, MB", metadata(BINARY).unwrap().len() as f64 / 1e6);
        figures.insert("behind at the end, events", self.behind(admin).await);
        figures
    }

    /// Stores the backlog while the destination is away, and measures a bridge that has just been started beside it.
    async fn catch_up(&self, cores: Cores, directory: &Path, measure: Duration) -> Figures {
        let away: String = self
            .sinks
            .iter()
            .map(|destination| {
                let (name, port) = (destination.name(), free_port());
                format!("[sinks.{name}]\ntype = 'kafka'\ntopic = 'away'\nbrokers = '127.0.0.1:{port}'\n")
            })
            .collect();
        let shape = Shape { events: 100, ..self.shape };
        let filling = start(cores, directory, &away).await;
        let address = format!("127.0.0.1:{}", filling.ingress);
        while metric(filling.admin, "cdrelay_spool_records").await < self.backlog as f64 {
            Load::connect(&address, shape, None).await.closed(Duration::ZERO, Duration::from_secs(1), || ()).await;
        }
        drop(filling);

        let bridge = start(cores, directory, &self.sinks().await).await;
        let address = format!("127.0.0.1:{}", bridge.ingress);
        let trickle = async || Load::connect(&address, self.shape, None).await;
        let (before, begun, first) = (self.behind(bridge.admin).await, Instant::now(), Usage::of(bridge.process.pid()));
        let (beside, ..) = trickle().await.open(TRICKLE, Duration::ZERO, measure, || ()).await;
        let (mut behind, mut seconds, mut last) = (before, 0.0, first);
        while seconds == 0.0 || behind > TRICKLE {
            (behind, seconds) = (self.behind(bridge.admin).await, begun.elapsed().as_secs_f64());
            last = Usage::of(bridge.process.pid());
            assert!(seconds < 5.0 * PATIENCE.as_secs_f64(), "{behind} events are left");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let events = before - behind + beside.events as f64;
        let (alone, ..) = trickle().await.open(TRICKLE, WARM_UP, measure, || ()).await;
        Figures::from([
            ("events/s", events / seconds),
            ("cpu µs", (last.user + last.system - first.user - first.system) / events),
            ("backlog, events", before),
            ("start, ms", bridge.started.as_secs_f64() * 1000.0),
            ("p50, ms", beside.percentile(0.5)),
            ("p99, ms", beside.percentile(0.99)),
            ("p99 without a backlog, ms", alone.percentile(0.99)),
            ("RSS peak, MiB", memory(bridge.process.pid(), "VmHWM")),
        ])
    }

    /// The settings of all sinks.
    async fn sinks(&self) -> String {
        let mut sinks = String::new();
        for destination in self.sinks {
            sinks += &destination.config().await;
        }
        sinks
    }

    /// How many events the slowest sink has yet to publish.
    async fn behind(&self, admin: u16) -> f64 {
        let mut behind = 0.0_f64;
        for destination in self.sinks {
            let lag = format!("cdrelay_sink_lag_records{{sink=\"{}\"}}", destination.name());
            behind = behind.max(metric(admin, &lag).await);
        }
        behind
    }
}

/// Starts a bridge with these settings besides those that every case has.
async fn start(cores: Cores, directory: &Path, settings: &str) -> Running {
    let (ingress, admin) = (free_port(), free_port());
    let path = directory.join("cdrelay.toml");
    let always = format!(
        "[ingress]\nlisten = '127.0.0.1:{ingress}'\nmax_connections = 20000\n[admin]\nlisten = '127.0.0.1:{admin}'\n\
         [spool]\nmax_size = '4GiB'\n"
    );
    write(&path, always + settings).unwrap();
    let begun = Instant::now();
    let mut process = cores.spawn(
        Command::new(BINARY).args(["run", "--config"]).arg(&path).current_dir(directory),
        Path::new("/dev/null"),
        &directory.join("log"),
    );
    let started = first_answer(&mut process, ingress, begun).await;
    Running { process, ingress, admin, started }
}

impl Destination {
    fn name(self) -> &'static str {
        match self {
            Stdout => "stdout",
            Kafka => "kafka",
            Nats => "nats",
        }
    }

    async fn config(self) -> String {
        match self {
            Stdout => "[sinks.stdout]\ntype = 'stdout'\n".to_owned(),
            Kafka => {
                let (brokers, topic) = (kafka::shared(), kafka::unique_topic("bench"));
                kafka::create_topic(&brokers, &topic, 6).await;
                format!("[sinks.kafka]\ntype = 'kafka'\nbrokers = '{brokers}'\ntopic = '{topic}'\n")
            }
            Nats => {
                let (servers, stream) = (nats::shared(), nats::unique_name("bench"));
                nats::create_stream(&servers, &stream, &[&format!("{stream}.>")]).await;
                let subject = "{team}.{conversation_uuid}";
                format!("[sinks.nats]\ntype = 'nats'\nservers = '{servers}'\nsubject = '{stream}.{subject}'\n")
            }
        }
    }
}

fn figures(measured: &Measured, before: Usage, after: Usage) -> Figures {
    let (user, system) = (after.user - before.user, after.system - before.system);
    let events = measured.events as f64;
    Figures::from([
        ("events/s", measured.rate()),
        ("p50, ms", measured.percentile(0.5)),
        ("p99, ms", measured.percentile(0.99)),
        ("p99.9, ms", measured.percentile(0.999)),
        ("cpu µs", (user + system) / events),
        ("cpu user µs", user / events),
    ])
}

/// How long until the webhook answers: with a 200, or with the 400 that plain HTTP gets where only TLS is spoken.
async fn first_answer(bridge: &mut Process, port: u16, begun: Instant) -> Duration {
    loop {
        bridge.assert_running();
        assert!(begun.elapsed() < PATIENCE, "the bridge does not answer");
        if get(port, "/webhook/cdr").await.is_some_and(|answer| answer.starts_with("HTTP/1.1 ")) {
            return begun.elapsed();
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn metric(port: u16, name_with_labels: &str) -> f64 {
    let metrics = get(port, "/metrics").await.unwrap();
    let value = |line: &str| line.strip_prefix(name_with_labels)?.strip_prefix(' ')?.parse().ok();
    metrics.lines().find_map(value).unwrap_or_else(|| panic!("no {name_with_labels}"))
}

async fn get(port: u16, path: &str) -> Option<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    Some(answer)
}
