//! A producer without a bridge, to compare one with.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};

/// librdkafka as the sink sets it up, and nothing else; with the longer `linger` that suits whoever never runs out of messages.
pub struct PlainProducer {
    producer: ThreadedProducer<Count>,
    acknowledged: Arc<AtomicU64>,
}

impl PlainProducer {
    pub fn new(address: &str) -> Self {
        let mut config = ClientConfig::new();
        for (property, value) in [
            ("bootstrap.servers", address),
            ("enable.idempotence", "true"),
            ("acks", "all"),
            ("linger.ms", "5"),
            ("compression.type", "none"),
        ] {
            config.set(property, value);
        }
        let acknowledged = Arc::<AtomicU64>::default();
        Self { producer: config.create_with_context(Count(acknowledged.clone())).unwrap(), acknowledged }
    }

    /// Hands a message over, as soon as there is room for it.
    pub fn send<'a, 'b>(
        &self,
        topic: &str,
        key: &str,
        headers: impl Iterator<Item = (&'a str, &'b str)>,
        payload: &[u8],
    ) {
        let headers = headers
            .fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: Some(value) }));
        let mut record = BaseRecord::to(topic).key(key).payload(payload).headers(headers);
        while let Err((error, back)) = self.producer.send(record) {
            assert_eq!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull));
            std::thread::sleep(Duration::from_millis(1));
            record = back;
        }
    }

    /// How many messages the broker has acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until every message was answered for.
    pub fn flush(&self, within: Duration) {
        self.producer.flush(within).unwrap();
    }
}

struct Count(Arc<AtomicU64>);

impl ClientContext for Count {}

impl ProducerContext for Count {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        self.0.fetch_add(u64::from(result.is_ok()), Ordering::Relaxed);
    }
}
