//! Producers of messages as the bridge makes them, without HTTP and without a spool. They are rendered beforehand.

use crate::load::{Bodies, Shape, WARM_UP};
use crate::process::Usage;
use crate::support::kafka::PlainProducer;
use async_nats::header::NATS_MESSAGE_ID;
use async_nats::{HeaderMap, jetstream};
use cdrelay::event::{Arrival, Event, MAX_DEPTH};
use cdrelay::route::{Config, Dialect, Route, Routed};
use cdrelay::sink::Message;
use cdrelay::spool::Record;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hyper::body::Bytes;
use serde::{Deserialize, Serialize};
use std::future::IntoFuture;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How many messages there are, which are sent again and again.
const MESSAGES: u64 = 1000;
/// As many messages as a sink has under way at the most.
const IN_FLIGHT: usize = 2048;
/// librdkafka's own, for the largest batches.
const LINGER: Duration = Duration::from_millis(5);

/// What a producer comes to.
#[derive(Debug, Serialize, Deserialize)]
pub struct Produced {
    /// Acknowledged messages a second.
    pub rate: f64,
    /// Processor time for each of them, in microseconds.
    pub cpu: f64,
}

impl Produced {
    pub(super) fn print(&self) {
        println!("{}", serde_json::to_string(self).unwrap());
    }
}

/// What this process has done so far.
struct Mark {
    at: Instant,
    usage: Usage,
    acknowledged: u64,
}

impl Mark {
    fn now(acknowledged: u64) -> Self {
        Self { at: Instant::now(), usage: Usage::of(std::process::id()), acknowledged }
    }

    fn since(&self, begin: &Self) -> Produced {
        let messages = (self.acknowledged - begin.acknowledged) as f64;
        let cpu = self.usage.user + self.usage.system - begin.usage.user - begin.usage.system;
        Produced { rate: messages / (self.at - begin.at).as_secs_f64(), cpu: cpu / messages }
    }
}

pub(super) fn to_kafka(brokers: &str, topic: &str, bytes: usize, measure: Duration) -> Produced {
    let messages = messages(Dialect::Kafka, topic, bytes);
    let acknowledged = Arc::<AtomicU64>::default();
    let producer = PlainProducer::new(brokers, LINGER, {
        let acknowledged = acknowledged.clone();
        move |_| {
            acknowledged.fetch_add(1, Ordering::Relaxed);
        }
    });
    let mut messages = messages.iter().cycle();
    let mut send_until = |end: Instant| {
        for message in messages.by_ref().take_while(|_| Instant::now() < end) {
            producer.send(0, message.topic(), message.key(), message.headers(), message.payload());
        }
        Mark::now(acknowledged.load(Ordering::Relaxed))
    };
    let begin = send_until(Instant::now() + WARM_UP);
    send_until(begin.at + measure).since(&begin)
}

pub(super) fn to_nats(servers: &str, stream: &str, bytes: usize, measure: Duration) -> Produced {
    let messages = messages(Dialect::Nats, &format!("{stream}.{{team}}.{{conversation_uuid}}"), bytes);
    let mut messages = (0_u64..).zip(messages.iter().cycle());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let context = jetstream::new(async_nats::connect(servers).await.unwrap());
        let (mut sent, mut acknowledged) = (FuturesUnordered::new(), 0);
        let mut send_until = async |end: Instant| {
            while Instant::now() < end {
                while sent.len() < IN_FLIGHT {
                    let (number, message) = messages.next().unwrap();
                    let mut headers = HeaderMap::new();
                    message.headers().for_each(|(name, value)| headers.insert(name, value));
                    // A stream would not store a message that it has, and it keeps account of subjects.
                    headers.insert(NATS_MESSAGE_ID, format!("{number:032x}"));
                    let subject = format!("{}-{number:x}", message.topic());
                    let payload = Bytes::from_owner(message.payload().clone());
                    let receipt = context.publish_with_headers(subject, headers, payload).await.unwrap();
                    sent.push(receipt.into_future());
                }
                assert!(!sent.next().await.unwrap().unwrap().duplicate);
                acknowledged += 1;
            }
            Mark::now(acknowledged)
        };
        let begin = send_until(Instant::now() + WARM_UP).await;
        send_until(begin.at + measure).await.since(&begin)
    })
}

/// Messages to this topic or subject, each of another conversation.
fn messages(dialect: Dialect, topic: &str, bytes: usize) -> Vec<Message> {
    let route = Route::compile(&Config { topic: Some(topic.to_owned()), ..Config::default() }, dialect).unwrap();
    let bodies = Bodies::new(Shape { bytes, ..Shape::default() });
    let message = |offset| {
        let event = Event::parse(&bodies.event(offset), MAX_DEPTH, Arrival::now()).unwrap();
        match route.render(&Record { offset, target: None, event }, |error| panic!("{error}")) {
            Routed::Message(message) => message,
            other => panic!("{other:?}"),
        }
    };
    (0..MESSAGES).map(message).collect()
}
