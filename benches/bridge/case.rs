//! The cases: which sinks, what load, on which disk.

mod backlog;

use crate::destination::Destination::{self, Kafka, Nats, Stdout};
use crate::floor::{Floor, raw_commits};
use crate::load::{Load, Measured, Over, SECRET, Shape, WARM_UP, percentile};
use crate::process::{Cores, Usage, memory};
use crate::running::{BINARY, Running};
use crate::support::tls::{Authority, Client};
use std::collections::BTreeMap;
use std::fs::{metadata, write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

/// What was measured, by name and unit.
pub type Figures = BTreeMap<&'static str, f64>;

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

/// All that can be measured here: those with Kafka or NATS only where one is named.
pub fn all() -> Vec<Case> {
    let shape = Shape::default();
    let with = |clients| Shape { clients, ..shape };
    let over = |over| Shape { over, ..shape };
    let case = |name, sinks, shape| Case { name, sinks, shape, on_disk: false, open: false, tls: false, backlog: 0 };
    let cases = [
        case("stdout, 1 connection", &[Stdout][..], with(1)),
        case("stdout, 64 connections", &[Stdout], shape),
        case("stdout, 64 connections, HMAC", &[Stdout], Shape { signed: true, ..shape }),
        Case { tls: true, ..case("stdout, 64 connections, TLS", &[Stdout], shape) },
        case("stdout, 1,000 connections", &[Stdout], with(1000)),
        case("stdout, 2,000 connections", &[Stdout], with(2000)),
        case("stdout, a connection per request", &[Stdout], over(Over::New)),
        case("stdout, HTTP/2, 64 streams", &[Stdout], over(Over::Shared(4))),
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
    let (here, not): (Vec<_>, Vec<_>) =
        cases.into_iter().partition(|case| case.sinks.iter().all(|sink| sink.is_here()));
    for case in not {
        eprintln!("left out: {} (CDRELAY_TEST_KAFKA, CDRELAY_TEST_NATS; tests/run starts both)", case.name);
    }
    here
}

/// What the producers of all sinks come to.
struct Producers {
    figures: Figures,
    /// For an event to each of them, in microseconds.
    cpu: f64,
    /// Of the slowest.
    rate: f64,
}

impl Case {
    /// The case and its floors, once.
    pub async fn measure(&self, cores: Cores, measure: Duration) -> Figures {
        // The file system that this stands on is taken for a disk.
        let directory = if self.on_disk { TempDir::new_in(".") } else { TempDir::new_in("/dev/shm") }.unwrap();
        let directory = directory.path();
        if self.backlog > 0 {
            return self.catch_up(cores, directory, measure).await;
        }
        let mut figures = Figures::new();
        let hyper = self.floor(None, None, cores, directory, measure).await;
        figures.insert("hyper, events/s", hyper["events/s"]);
        figures.insert("hyper, cpu µs", hyper["cpu µs"]);
        if self.on_disk {
            figures.extend(self.raw_commits(directory, measure / 4));
        }
        let commits = Some(directory.join("commits"));
        let closed = match self.on_disk && !self.open {
            true => Some(self.floor(commits.clone(), None, cores, directory, measure).await),
            false => None,
        };
        let producers = self.producers(cores, directory, measure / 2).await;
        let (bridge, rate) = self.bridge(cores, directory, measure).await;
        figures.insert("x hyper", bridge["cpu µs"] / hyper["cpu µs"]);
        if let Some(producers) = producers {
            figures.insert("x hyper + producers", bridge["cpu µs"] / (hyper["cpu µs"] + producers.cpu));
            figures.extend(producers.figures);
        }
        if let Some(floor) = closed {
            figures.insert("hyper + commit, events/s", floor["events/s"]);
            figures.insert("of hyper + commit", bridge["events/s"] / floor["events/s"]);
        }
        if let Some(rate) = rate.filter(|_| self.on_disk) {
            let floor = self.floor(commits, Some(rate), cores, directory, measure).await;
            figures.insert("hyper + commit p99, ms", floor["p99, ms"]);
            figures.insert("p99 x hyper + commit", bridge["p99, ms"] / floor["p99, ms"]);
        }
        figures.extend(bridge);
        figures
    }

    /// A loop of commits as large as if every client waited for each.
    fn raw_commits(&self, directory: &Path, measure: Duration) -> Figures {
        let Shape { clients, bytes, events, .. } = self.shape;
        let (records, latencies) = raw_commits(&directory.join("commits"), clients, bytes * events, measure);
        Figures::from([
            ("raw commits, events/s", records * events as f64),
            ("raw commit p99, ms", percentile(&latencies, 0.99)),
        ])
    }

    /// A bare server under the same load: in a closed loop, or with so many requests a second.
    async fn floor(
        &self,
        commits: Option<PathBuf>,
        rate: Option<f64>,
        cores: Cores,
        directory: &Path,
        measure: Duration,
    ) -> Figures {
        let http2 = matches!(self.shape.over, Over::Shared(_));
        let (server, address) = Floor::Server { http2, commits }.listening(cores, directory).await;
        let load = Load::connect(&address, self.shape, None).await;
        let mark = || Usage::of(server.pid());
        let (measured, before, after) = match rate {
            Some(rate) => load.open(rate, WARM_UP, measure, mark).await,
            None => load.closed(WARM_UP, measure, mark).await,
        };
        figures(&measured, before, after)
    }

    /// A producer for each sink that has one, alone.
    async fn producers(&self, cores: Cores, directory: &Path, measure: Duration) -> Option<Producers> {
        let mut all = None;
        for sink in self.sinks {
            if let Some((floor, [rate, cpu])) = sink.producer(self.shape.bytes, measure).await {
                let produced = floor.produced(cores, directory).await;
                let all = all.get_or_insert(Producers { figures: Figures::new(), cpu: 0.0, rate: f64::INFINITY });
                all.figures.extend([(rate, produced.rate), (cpu, produced.cpu)]);
                all.cpu += produced.cpu;
                all.rate = all.rate.min(produced.rate);
            }
        }
        all
    }

    /// The bridge, and at what rate requests came in an open loop.
    async fn bridge(&self, cores: Cores, directory: &Path, measure: Duration) -> (Figures, Option<f64>) {
        let authority = self.tls.then(|| Authority::new("bench"));
        let client = authority.as_ref().map(Client::trusting);
        let mut settings = Destination::settings(self.sinks).await;
        if self.shape.signed {
            settings += &format!("[[ingress.auth]]\ntype = 'github'\nsecrets = '{SECRET}'\n");
        }
        if let Some(authority) = authority {
            let pair = authority.issue();
            write(directory.join("tls.pem"), pair.certificate + &pair.key).unwrap();
            settings += "[ingress.tls]\ncert_file = 'tls.pem'\nkey_file = 'tls.pem'\n";
        }
        let bridge = Running::start(cores, directory, &settings).await;
        let mark = || Usage::of(bridge.process.pid());
        tokio::time::sleep(Duration::from_millis(500)).await;
        let idle = memory(bridge.process.pid(), "VmRSS");
        let connect = async || Load::connect(&bridge.address, self.shape, client.as_ref()).await;
        let counts = async || {
            let syncs = bridge.metric("cdrelay_spool_syncs_total").await;
            (syncs, bridge.metric("cdrelay_spool_appended_records_total").await)
        };
        let mut rate = None;
        if self.open {
            let (measured, ..) = connect().await.closed(WARM_UP, measure / 2, || ()).await;
            rate = Some(measured.rate() / self.shape.events as f64 / 2.0);
        }
        let load = connect().await;
        let (syncs, stored) = counts().await;
        let (measured, before, after) = match rate {
            Some(rate) => load.open(rate, WARM_UP, measure, mark).await,
            None => load.closed(WARM_UP, measure, mark).await,
        };
        let (syncs_after, stored_after) = counts().await;
        let mut figures = figures(&measured, before, after);
        figures.insert("syncs/event", (syncs_after - syncs) / (stored_after - stored));
        figures.insert("start, ms", bridge.started.as_secs_f64() * 1000.0);
        figures.insert("RSS idle, MiB", idle);
        figures.insert("RSS peak, MiB", memory(bridge.process.pid(), "VmHWM"));
        figures.insert("binary, MB", metadata(BINARY).unwrap().len() as f64 / 1e6);
        figures.insert("behind at the end, events", bridge.behind(self.sinks).await);
        (figures, rate)
    }
}

fn figures(measured: &Measured, before: Usage, after: Usage) -> Figures {
    let (user, system) = (after.user - before.user, after.system - before.system);
    let events = measured.events as f64;
    let mut figures = Figures::from([
        ("events/s", measured.rate()),
        ("p50, ms", measured.percentile(0.5)),
        ("p99, ms", measured.percentile(0.99)),
        ("p99.9, ms", measured.percentile(0.999)),
        ("cpu µs", (user + system) / events),
        ("cpu user µs", user / events),
    ]);
    if !measured.late.is_empty() {
        figures.insert("load late p50, ms", percentile(&measured.late, 0.5));
        figures.insert("load late p99, ms", percentile(&measured.late, 0.99));
    }
    figures
}
