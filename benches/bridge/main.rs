//! What the bridge costs, beside what cannot be saved, in the same run on the same machine:
//!
//! ```text
//! cargo bench --bench bridge -- [--rounds 5] [--seconds 5] [--json FILE] [--figure FILE] [NAME]…
//! tests/run --release --bench bridge    the same with Kafka and NATS
//! ```
//!
//! The server has one processor and the load another. Every round measures every case once, next to its floor; what is printed are
//! medians over the rounds. `cpu` is what the kernel accounts to the server for an event, `x hyper` how many times that of a bare
//! hyper server which only reads the body and answers, with the same requests over as many connections, in the same round.
//! Latencies at a fixed rate count from when a request was due; `load late` says how much of them is the load's own.
//! Where the spool is on disk there is one more floor, `hyper + commit`: a bare hyper server that answers when the body is on disk.
//! Where there is a sink to Kafka or JetStream, `rdkafka` and `async-nats` are producers of the same messages, made beforehand.

mod case;
mod destination;
mod figure;
mod floor;
mod load;
mod process;
mod report;
mod running;
#[expect(dead_code, unused_imports, reason = "the tests need more of their support than the bench")]
#[path = "../../tests"]
mod tests {
    pub mod support;
}

use clap::Parser;
use process::Cores;
use std::path::PathBuf;
use std::time::Duration;
use tests::support;

#[derive(Debug, Parser)]
struct Arguments {
    /// Only the cases whose names contain one of these.
    names: Vec<String>,
    /// How often every case is measured.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// For how long, each time.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Where the figures are written to.
    #[arg(long, default_value = "target/bench-bridge.json")]
    json: PathBuf,
    /// Where a figure is drawn to, as SVG.
    #[arg(long)]
    figure: Option<PathBuf>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    if let Some(floor) = floor::Floor::asked_for() {
        return floor.be();
    }
    let Arguments { names, rounds, seconds, json, figure, .. } = Arguments::parse();
    let cores = Cores::take();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let measure = Duration::from_secs_f64(seconds);
    let wanted = |name: &str| names.is_empty() || names.iter().any(|part| name.contains(part.as_str()));
    let cases: Vec<_> = case::all().into_iter().filter(|case| wanted(case.name)).collect();
    let mut report = report::Report::default();
    for round in 1..=rounds {
        for case in &cases {
            eprintln!("round {round} of {rounds}: {}", case.name);
            let figures = runtime.block_on(case.measure(cores, measure));
            report.add(case.name, figures);
        }
    }
    report.print();
    report.write(&json);
    if let Some(figure) = figure {
        report.draw(&figure);
    }
}
