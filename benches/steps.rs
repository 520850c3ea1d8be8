//! What each step on an event's way costs alone, without HTTP and without a destination:
//!
//! ```text
//! cargo bench --bench steps [-- NAME]…
//! ```
//!
//! The spool lies in memory. A time is that of one round; where that is of many events, their rate stands below.

#[path = "bridge/load/event.rs"]
mod event;

use bytesize::ByteSize;
use cdrelay::event::{Arrival, Event, Events, MAX_DEPTH};
use cdrelay::ingress::decode::{self, Content};
use cdrelay::metrics::SpoolMetrics;
use cdrelay::route::{self, Dialect, Route, Routed};
use cdrelay::spool::{Config, Record, Spool};
use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use futures_util::future::join_all;
use std::cell::Cell;
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Events where a step is measured with many.
const MANY: u64 = 1000;
/// A usual event.
const BYTES: usize = 480;

fn main() {
    divan::main();
}

fn parsed(number: u64, conversation: &str) -> Event {
    let text = event::text(&number.to_string(), conversation, BYTES);
    Event::parse(&text, MAX_DEPTH, Arrival::now()).unwrap()
}

/// A request's body to events, identities included: of so many events of so many bytes.
#[divan::bench(sample_count = 1000, args = [(1, BYTES), (1, 4 << 10), (1, 64 << 10), (100, BYTES)])]
fn decode(bencher: Bencher, (events, bytes): (u64, usize)) {
    let texts: Vec<_> = (0..events).map(|number| event::text(&number.to_string(), "c", bytes)).collect();
    let text = if events == 1 { texts.concat() } else { format!("[{}]", texts.join(",")) };
    let config = decode::Config::default();
    bencher.counter(BytesCount::of_str(&text)).counter(ItemsCount::new(events)).bench_local(|| {
        let body = black_box(text.as_bytes());
        let content = Content { method: "POST", query: None, content_type: Some(b"application/json"), body };
        content.decode(&config, Arrival(1)).unwrap()
    });
}

/// A record to a message: topic or subject, key, headers.
#[divan::bench(sample_count = 1000, args = [Dialect::Kafka, Dialect::Nats])]
fn render(bencher: Bencher, dialect: Dialect) {
    let topic = Some("cdr.{team}.{conversation_uuid}".to_owned());
    let route = Route::compile(&route::Config { topic, ..route::Config::default() }, dialect).unwrap();
    let record = Record { offset: 0, target: None, event: parsed(0, "c") };
    bencher.bench_local(|| match route.render(black_box(&record), |error| panic!("{error}")) {
        Routed::Message(message) => message,
        other => panic!("{other:?}"),
    });
}

/// Requests of one event each that come at the same time, until all of them are durable.
#[divan::bench(sample_count = 1000, args = [1, 64])]
fn append(bencher: Bencher, requests: u64) {
    let (runtime, directory) = (runtime(), in_memory());
    let spool = runtime.block_on(async { open(&directory, ByteSize::mib(2)) });
    let cursor = spool.cursor(SINK).unwrap();
    let next = Cell::new(0);
    bencher
        .counter(ItemsCount::new(requests))
        .with_inputs(|| {
            let first = next.replace(next.get() + requests);
            (first..first + requests).map(|number| parsed(number, "c")).collect::<Vec<_>>()
        })
        .bench_local_values(|events| {
            runtime.block_on(async {
                for appended in join_all(events.into_iter().map(|event| spool.append([event]))).await {
                    assert_eq!(appended.unwrap().stored, 1);
                }
            });
            spool.settle(&cursor, spool.status().end);
        });
}

/// Many records, from where a reader finds them.
#[divan::bench(sample_count = 1000, args = ["memory", "disk"])]
fn read(bencher: Bencher, from: &str) {
    let (runtime, directory) = (runtime(), in_memory());
    let memory = if from == "memory" { ByteSize::mib(16) } else { ByteSize::b(1) };
    let spool = runtime.block_on(async {
        let spool = open(&directory, memory);
        let events: Events = (0..MANY).map(|number| parsed(number, "c")).collect();
        spool.append(events).await.unwrap();
        spool
    });
    bencher.counter(ItemsCount::new(MANY)).with_inputs(|| spool.reader(SINK).unwrap()).bench_local_values(
        |mut reader| {
            runtime.block_on(async {
                while reader.position() < MANY {
                    black_box(reader.read(1 << 20).await.unwrap());
                }
            });
        },
    );
}

const SINK: &str = "bench";

fn open(directory: &TempDir, memory: ByteSize) -> Spool {
    let config = Config { path: directory.path().join("spool"), read_cache: memory, ..Config::default() };
    Spool::open(&config, &[SINK], SpoolMetrics::default()).unwrap()
}

fn in_memory() -> TempDir {
    TempDir::new_in("/dev/shm").unwrap()
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}
