//! A backlog to catch up with while new events come.

use super::{Case, Figures};
use crate::destination::Destination;
use crate::load::{Load, Shape, WARM_UP};
use crate::process::{Cores, Usage, memory};
use crate::running::Running;
use crate::support::{PATIENCE, free_port};
use std::path::Path;
use std::time::{Duration, Instant};

/// New requests a second while a backlog is caught up with.
const TRICKLE: f64 = 500.0;
/// What is left out of their latencies: a start is measured by itself.
const STARTING: Duration = Duration::from_millis(100);

impl Case {
    /// Stores the backlog while the destination is away, and measures a bridge that has just been started beside it.
    pub(super) async fn catch_up(&self, cores: Cores, directory: &Path, measure: Duration) -> Figures {
        let away: String = self
            .sinks
            .iter()
            .map(|destination| {
                let (name, port) = (destination.name(), free_port());
                format!("[sinks.{name}]\ntype = 'kafka'\ntopic = 'away'\nbrokers = '127.0.0.1:{port}'\n")
            })
            .collect();
        let shape = Shape { events: 100, ..self.shape };
        let filling = Running::start(cores, directory, &away).await;
        while filling.metric("cdrelay_spool_records").await < self.backlog as f64 {
            let load = Load::connect(&filling.address, shape, None).await;
            load.closed(Duration::ZERO, Duration::from_secs(1), || ()).await;
        }
        drop(filling);

        let producers = self.producers(cores, directory, measure).await;
        let bridge = Running::start(cores, directory, &Destination::settings(self.sinks).await).await;
        let trickle = async || Load::connect(&bridge.address, self.shape, None).await;
        let usage = || Usage::of(bridge.process.pid());
        let (before, begun, first) = (bridge.behind(self.sinks).await, Instant::now(), usage());
        let (beside, ..) = trickle().await.open(TRICKLE, STARTING, measure, || ()).await;
        let (mut behind, mut seconds, mut last) = (before, 0.0, first);
        while seconds == 0.0 || behind > TRICKLE {
            (behind, seconds) = (bridge.behind(self.sinks).await, begun.elapsed().as_secs_f64());
            last = usage();
            assert!(seconds < 5.0 * PATIENCE.as_secs_f64(), "{behind} events are left");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let events = before - behind + TRICKLE * (STARTING + measure).as_secs_f64();
        let (alone, ..) = trickle().await.open(TRICKLE, WARM_UP, measure, || ()).await;
        let mut figures = Figures::from([
            ("events/s", events / seconds),
            ("cpu µs", (last.user + last.system - first.user - first.system) / events),
            ("backlog, events", before),
            ("start, ms", bridge.started.as_secs_f64() * 1000.0),
            ("p50, ms", beside.percentile(0.5)),
            ("p99, ms", beside.percentile(0.99)),
            ("p99 without a backlog, ms", alone.percentile(0.99)),
            ("RSS peak, MiB", memory(bridge.process.pid(), "VmHWM")),
        ]);
        if let Some(producers) = producers {
            figures.insert("of the slowest producer", events / seconds / producers.rate);
            figures.extend(producers.figures);
        }
        figures
    }
}
