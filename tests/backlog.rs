//! Long outages: the backlog grows on the disk and not in memory, and when the broker is back it is caught up with in order, while
//! webhooks go on being acknowledged. Twice: a broker that has just been started may be slow for as long as its machine code is
//! not compiled, so it is the second catching up, with a broker that only did not answer, that is compared with plain producers.
//! The same with three copies of each message, as in production, where the brokers have three times the work.
//!
//! 100,000 events each by default. With a million, and against a release build, which the figures are about:
//!
//! ```sh
//! CDRELAY_BACKLOG=1000000 tests/run --release backlog:: -- --nocapture
//! ```

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use futures_util::future::{join, join_all};
use serde::Deserialize;
use tokio::time::sleep;

use crate::bounds::assert_small;
use crate::support::{ANY_PORTS, Bridge, PATIENCE, eventually, kafka};

const MIB: f64 = 1_048_576.0;
const SENDERS: usize = 8;
/// Events in one request, each of another conversation.
const ARRAY: usize = 100;
/// Events in one conversation.
const CALL: usize = 10;

/// How long a phase may take: as if there were a few hundred events a second.
fn patience(events: usize) -> Duration {
    PATIENCE + Duration::from_millis(4 * events as u64)
}

fn conversation(number: usize) -> String {
    format!("5202a928-60fb-4a9d-b5b8-{number:012}")
}

/// The text of an event as a call has it; about 500 bytes.
fn event(conversation_number: usize, number: usize) -> String {
    let conversation = conversation(conversation_number);
    let custom = "x".repeat(180);
    format!(
        r#"{{"type":"event","appid":2222223,"direction":"inbound","status":"started","team":"Sales_2222223","conversation_uuid":"{conversation}","request_id":"{conversation}","from":440000000000,"to":441111111111,"time":1634721099442,"agent":"101_2222223","number":{number},"custom":"{custom}"}}"#
    )
}

/// Stores the events of `conversations` over a few connections, each conversation's in order.
async fn fill(bridge: &Bridge, conversations: Range<usize>) {
    let sender = async |sender: usize| {
        let calls = conversations.len() / SENDERS / ARRAY;
        for group in 0..calls {
            let first = conversations.start + (sender * calls + group) * ARRAY;
            for number in 0..CALL {
                let array: Vec<_> = (first..first + ARRAY).map(|conversation| event(conversation, number)).collect();
                let answer = bridge.post(format!("[{}]", array.join(",")), "application/json").await;
                assert_eq!(answer.status, 200, "{}", answer.text());
            }
        }
    };
    join_all((0..SENDERS).map(sender)).await;
}

/// Posts single events of one more conversation until `stop`; how long each answer took.
async fn trickle(bridge: &Bridge, conversation: usize, stop: &AtomicBool) -> Vec<Duration> {
    let mut latencies = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let answer = bridge.post(event(conversation, latencies.len()), "application/json").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        latencies.push(begun.elapsed());
        sleep(Duration::from_millis(5)).await;
    }
    latencies
}

/// How the bridge catches up.
struct CatchingUp {
    /// Events published in a second, from the first on.
    rate: f64,
    /// Of the bridge's processor time, for each of them.
    cpu: Duration,
    /// How long each new event took to be acknowledged meanwhile, the shortest first.
    latencies: Vec<Duration>,
}

/// Waits until the sink has published `events` more, while new ones of `conversation` come.
async fn catch_up(bridge: &Bridge, events: usize, conversation: usize) -> CatchingUp {
    let stop = AtomicBool::new(false);
    let published = async || bridge.metric("cdrelay_sink_published_total{sink=\"kafka\"}").await.unwrap();
    let before = bridge.metric("cdrelay_spool_appended_records_total").await.unwrap() - events as f64;
    let cpu = bridge.cpu_time();
    let caught_up = async {
        let mut begun = None;
        let deadline = Instant::now() + patience(events);
        let rate = loop {
            let count = published().await - before;
            if count > 0.0 && begun.is_none() {
                begun = Some((count, Instant::now()));
            }
            if let Some((first, at)) = begun.filter(|_| count >= events as f64) {
                break (count - first) / at.elapsed().as_secs_f64();
            }
            assert!(Instant::now() < deadline, "only {count} of {events} published");
            sleep(Duration::from_millis(50)).await;
        };
        stop.store(true, Ordering::Relaxed);
        rate
    };
    let (rate, mut latencies) = join(caught_up, trickle(bridge, conversation, &stop)).await;
    let cpu = (bridge.cpu_time() - cpu).div_f64(events as f64);
    eventually(PATIENCE, "nothing is left", async || {
        bridge.metric("cdrelay_sink_lag_records{sink=\"kafka\"}").await == Some(0.0)
    })
    .await;
    latencies.sort();
    CatchingUp { rate, cpu, latencies }
}

impl CatchingUp {
    fn latency(&self, share: f64) -> Duration {
        self.latencies[((self.latencies.len() - 1) as f64 * share) as usize]
    }

    fn tell(&self, of: &str) {
        let Self { rate, cpu, latencies } = self;
        let (count, median, most) = (latencies.len(), self.latency(0.5), self.latency(1.0));
        println!(
            "caught up with {of}: {rate:.0} events a second, {cpu:.1?} of processor each; meanwhile {count} new events, acknowledged \
             in {median:.1?} (median), {:.1?} (99 %), {most:.1?} at the most",
            self.latency(0.99)
        );
        assert!(count > 10 && self.latency(0.99) < Duration::from_secs(5), "{latencies:?}");
    }
}

/// A producer without a bridge, which sends messages like the bridge's.
struct Plain {
    producer: kafka::PlainProducer<Box<dyn Fn(usize) + Send + Sync>>,
    topic: &'static str,
    acknowledged: mpsc::Receiver<usize>,
}

/// How many events a second a plain producer sends as fast as librdkafka takes them, in batches as large as can be.
fn rate(address: &str, events: usize) -> f64 {
    let plain = Plain::new(address, "plain", Duration::from_millis(5));
    let begun = Instant::now();
    (0..events).for_each(|event| plain.send(event / CALL, event % CALL));
    plain.acknowledged(events, |_| {});
    events as f64 / begun.elapsed().as_secs_f64()
}

/// The same as the bridge does it: as many conversations at a time as the backlog has, and an event of each only when the one before it
/// was acknowledged.
fn rate_in_order(address: &str, events: usize) -> f64 {
    let plain = Plain::new(address, "ordered", Duration::from_millis(1));
    let begun = Instant::now();
    let mut conversations = 0..events / CALL;
    let mut begin_next = || conversations.next().into_iter().for_each(|conversation| plain.send(conversation, 0));
    (0..SENDERS * ARRAY).for_each(|_| begin_next());
    plain.acknowledged(events, |event| match event % CALL + 1 {
        CALL => begin_next(),
        next => plain.send(event / CALL, next),
    });
    events as f64 / begun.elapsed().as_secs_f64()
}

impl Plain {
    fn new(address: &str, topic: &'static str, linger: Duration) -> Self {
        let (tell, acknowledged) = mpsc::channel();
        let tell = Box::new(move |number| tell.send(number).unwrap_or_default());
        Self { producer: kafka::PlainProducer::new(address, linger, tell), topic, acknowledged }
    }

    /// Waits until so many events are acknowledged, and shows each.
    fn acknowledged(&self, events: usize, mut show: impl FnMut(usize)) {
        let deadline = Instant::now() + patience(events);
        for _ in 0..events {
            let left = deadline.saturating_duration_since(Instant::now());
            show(self.acknowledged.recv_timeout(left).expect("an acknowledgement"));
        }
    }

    /// Sends one event of a conversation.
    fn send(&self, conversation_number: usize, number: usize) {
        let payload = event(conversation_number, number);
        let conversation = conversation(conversation_number);
        let key = format!("Sales_2222223/{conversation}");
        let headers = [
            ("content-type", "application/json"),
            ("ce_specversion", "1.0"),
            ("ce_id", "d6592339747413002b8c96be1de73301"),
            ("ce_source", "/telecmi/2222223"),
            ("ce_type", "com.telecmi.event.inbound.started"),
            ("ce_subject", conversation.as_str()),
            ("ce_time", "2026-01-01T00:00:00.000Z"),
        ];
        let event = conversation_number * CALL + number;
        self.producer.send(event, self.topic, &key, headers.into_iter(), payload.as_bytes());
    }
}

#[derive(Deserialize)]
struct Mark {
    conversation_uuid: String,
    number: usize,
}

/// How many events a backlog has.
fn events() -> usize {
    let wanted = std::env::var("CDRELAY_BACKLOG").map_or(100_000, |count| count.parse().expect("a number"));
    wanted - wanted % (SENDERS * ARRAY * CALL)
}

const TOPICS: [&str; 3] = ["cdr", "plain", "ordered"];
const PARTITIONS: i32 = 12;

async fn bridge_to(brokers: &str) -> Bridge {
    Bridge::start(&format!(
        "{ANY_PORTS}[spool]\nmax_size = '2GiB'\n[sinks.kafka]\ntype = 'kafka'\nbrokers = '{brokers}'\ntopic = 'cdr'"
    ))
    .await
}

/// Tells how a bridge that has caught up at this rate compares with plain producers that send as many events to the same brokers.
async fn compare(brokers: String, events: usize, caught_up: &CatchingUp) {
    let producing = move || (rate_in_order(&brokers, events), rate(&brokers, events));
    let (in_order, freely) = tokio::task::spawn_blocking(producing).await.unwrap();
    println!(
        "a plain producer sends {in_order:.0} a second to the same brokers in the same order, {freely:.0} in any: {:.0} % and {:.0} %",
        100.0 * caught_up.rate / in_order,
        100.0 * caught_up.rate / freely
    );
}

/// Checks that the topic has every event of these backlogs, and of the new ones that came meanwhile, in order. The latter's
/// conversation follows those of the backlog.
async fn nothing_is_missing(brokers: &str, backlogs: &[(Range<usize>, CatchingUp)]) {
    let conversations = backlogs.iter().map(|(backlog, _)| backlog.end + 1).max().unwrap();
    let within = patience(conversations * CALL);
    let next = kafka::fold_all(brokers, "cdr", within, vec![0; conversations], |next, payload| {
        let Mark { conversation_uuid, number } = serde_json::from_slice(payload).unwrap();
        let conversation: usize = conversation_uuid.rsplit_once('-').unwrap().1.parse().unwrap();
        assert_eq!(number, next[conversation], "the next event of {conversation_uuid}");
        next[conversation] += 1;
    })
    .await;
    for (backlog, caught_up) in backlogs {
        assert!(next[backlog.clone()].iter().all(|count| *count == CALL), "some are lost");
        assert_eq!(next[backlog.end], caught_up.latencies.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_takes_disk_and_no_memory_and_is_caught_up_with_in_order() {
    let events = events();
    let mut broker = kafka::Broker::start(&[]).await;
    for topic in TOPICS {
        kafka::create_topic(&broker.address(), topic, PARTITIONS).await;
    }
    broker.stop().await;
    let bridge = bridge_to(&broker.address()).await;
    let metric = async |name: &str| bridge.metric(name).await.unwrap();
    // The conversations of the first backlog, that of the new events meanwhile, and the same once more.
    let calls = events / CALL;
    let (first, second) = (0..calls, calls + 1..2 * calls + 1);

    let begun = Instant::now();
    fill(&bridge, first.clone()).await;
    let (seconds, storing) = (begun.elapsed().as_secs_f64(), bridge.peak_rss_bytes() as f64 / MIB);
    let (bytes, most) = (metric("cdrelay_spool_bytes").await, metric("cdrelay_spool_max_bytes").await);
    println!(
        "{events} events stored in {seconds:.1} s, {:.0} a second: {storing:.1} MiB of memory, {:.0} MiB of disk",
        events as f64 / seconds,
        bytes / MIB
    );
    assert_eq!(metric("cdrelay_sink_lag_records{sink=\"kafka\"}").await, events as f64);
    assert_eq!(metric("cdrelay_spool_records").await, events as f64);
    // All of it, and no more than its frames on top, the rest of the last segment of 16 MiB, and once that is half full the next one.
    let size = event(0, 0).len() as f64;
    assert!(bytes > size * events as f64 && bytes < (size + 150.0) * events as f64 + 24.0 * MIB && bytes <= most);

    broker.start_again().await;
    let cold = catch_up(&bridge, events, first.end).await;
    cold.tell("a broker that has just been started");

    broker.pause();
    fill(&bridge, second.clone()).await;
    broker.resume();
    let warm = catch_up(&bridge, events, second.end).await;
    warm.tell("a broker that did not answer");
    assert_small(&bridge, "a backlog");
    compare(broker.address(), events, &warm).await;
    nothing_is_missing(&broker.address(), &[(first, cold), (second, warm)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_for_three_brokers_is_caught_up_with_in_order() {
    let events = events();
    let cluster = kafka::Cluster::start().await;
    for topic in TOPICS {
        cluster.create_topic(topic, PARTITIONS).await;
    }
    cluster.nodes().for_each(kafka::Broker::pause);
    let bridge = bridge_to(&cluster.addresses()).await;
    let backlog = 0..events / CALL;
    fill(&bridge, backlog.clone()).await;
    cluster.nodes().for_each(kafka::Broker::resume);
    let caught_up = catch_up(&bridge, events, backlog.end).await;
    caught_up.tell("three brokers that did not answer");
    assert_small(&bridge, "a backlog");
    compare(cluster.addresses(), events, &caught_up).await;
    nothing_is_missing(&cluster.addresses(), &[(backlog, caught_up)]).await;
}
