//! A producer without a bridge, to compare one with.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, ProducerContext, ThreadedProducer};

/// librdkafka as the sink sets it up, and nothing else.
pub struct PlainProducer<F: Fn(usize) + Send + Sync + 'static>(ThreadedProducer<Acknowledged<F>>);

impl<F: Fn(usize) + Send + Sync + 'static> PlainProducer<F> {
    /// With a longer `linger`, the more the fewer and larger the batches: good for whoever never runs out of messages. `acknowledged` is
    /// called with the number of each message that the broker has acknowledged.
    pub fn new(address: &str, linger: Duration, acknowledged: F) -> Self {
        let linger = linger.as_millis().to_string();
        let mut config = ClientConfig::new();
        for (property, value) in [
            ("bootstrap.servers", address),
            ("enable.idempotence", "true"),
            ("acks", "all"),
            ("linger.ms", &linger),
            ("compression.type", "none"),
        ] {
            config.set(property, value);
        }
        Self(config.create_with_context(Acknowledged(acknowledged)).unwrap())
    }

    /// Hands a message over, as soon as there is room for it.
    pub fn send<'a, 'b>(
        &self,
        number: usize,
        topic: &str,
        key: &str,
        headers: impl Iterator<Item = (&'a str, &'b str)>,
        payload: &[u8],
    ) {
        let headers = headers
            .fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: Some(value) }));
        let mut record = BaseRecord::with_opaque_to(topic, number).key(key).payload(payload).headers(headers);
        while let Err((error, back)) = self.0.send(record) {
            assert_eq!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull));
            std::thread::sleep(Duration::from_millis(1));
            record = back;
        }
    }
}

struct Acknowledged<F>(F);

impl<F: Send + Sync> ClientContext for Acknowledged<F> {}

impl<F: Fn(usize) + Send + Sync> ProducerContext for Acknowledged<F> {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        match result {
            Ok(_) => (self.0)(number),
            Err((error, _)) => eprintln!("a plain producer failed: {error}"),
        }
    }
}
