//! A producer without a bridge, to compare one with.

use std::sync::mpsc;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, ProducerContext, ThreadedProducer};

/// librdkafka as the sink sets it up, and nothing else.
pub struct PlainProducer {
    producer: ThreadedProducer<Acknowledged>,
    /// The numbers of the messages that were acknowledged.
    acknowledged: mpsc::Receiver<Result<usize, KafkaError>>,
}

impl PlainProducer {
    /// With a longer `linger`, the more the fewer and larger the batches: good for whoever never runs out of messages.
    pub fn new(address: &str, linger: Duration) -> Self {
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
        let (tell, acknowledged) = mpsc::channel();
        Self { producer: config.create_with_context(Acknowledged(tell)).unwrap(), acknowledged }
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
        let mut record = BaseRecord::with_opaque_to(topic, Box::new(number)).key(key).payload(payload).headers(headers);
        while let Err((error, back)) = self.producer.send(record) {
            assert_eq!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull));
            std::thread::sleep(Duration::from_millis(1));
            record = back;
        }
    }

    /// The number of the next message that the broker acknowledges.
    pub fn acknowledged(&self, within: Duration) -> usize {
        self.acknowledged.recv_timeout(within).expect("an answer").expect("an acknowledgement")
    }
}

struct Acknowledged(mpsc::Sender<Result<usize, KafkaError>>);

impl ClientContext for Acknowledged {}

impl ProducerContext for Acknowledged {
    type DeliveryOpaque = Box<usize>;

    fn delivery(&self, result: &DeliveryResult<'_>, number: Box<usize>) {
        let result = result.as_ref().map(|_| *number).map_err(|(error, _)| error.clone());
        // Nobody may be waiting any more.
        let _ = self.0.send(result);
    }
}
