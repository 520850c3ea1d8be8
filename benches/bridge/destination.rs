//! Where a bridge's sinks publish to.

use crate::floor::Floor;
use crate::support::{kafka, nats};
use std::env;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    Stdout,
    Kafka,
    Nats,
}

use Destination::{Kafka, Nats, Stdout};

impl Destination {
    pub fn name(self) -> &'static str {
        match self {
            Stdout => "stdout",
            Kafka => "kafka",
            Nats => "nats",
        }
    }

    /// Whether there is one to publish to.
    pub fn is_here(self) -> bool {
        match self {
            Stdout => true,
            Kafka => env::var_os("CDRELAY_TEST_KAFKA").is_some(),
            Nats => env::var_os("CDRELAY_TEST_NATS").is_some(),
        }
    }

    /// The settings of a sink for each of these, with topics and streams of their own.
    pub async fn settings(sinks: &[Self]) -> String {
        let mut settings = String::new();
        for sink in sinks {
            settings += &sink.sink().await;
        }
        settings
    }

    async fn sink(self) -> String {
        match self {
            Stdout => "[sinks.stdout]\ntype = 'stdout'\n".to_owned(),
            Kafka => {
                let (brokers, topic) = topic().await;
                format!("[sinks.kafka]\ntype = 'kafka'\nbrokers = '{brokers}'\ntopic = '{topic}'\n")
            }
            Nats => {
                let (servers, stream) = stream().await;
                let subject = "{team}.{conversation_uuid}";
                format!("[sinks.nats]\ntype = 'nats'\nservers = '{servers}'\nsubject = '{stream}.{subject}'\n")
            }
        }
    }

    /// A producer for this, of events of so many bytes, and what its figures are called.
    pub async fn producer(self, bytes: usize, measure: Duration) -> Option<(Floor, [&'static str; 2])> {
        let seconds = measure.as_secs_f64();
        match self {
            Stdout => None,
            Kafka => {
                let (brokers, topic) = topic().await;
                let names = ["rdkafka, events/s", "rdkafka, cpu µs"];
                Some((Floor::Kafka { brokers, topic, bytes, seconds }, names))
            }
            Nats => {
                let (servers, stream) = stream().await;
                let names = ["async-nats, events/s", "async-nats, cpu µs"];
                Some((Floor::Nats { servers, stream, bytes, seconds }, names))
            }
        }
    }
}

/// A new topic, and its brokers.
async fn topic() -> (String, String) {
    let (brokers, topic) = (kafka::shared(), kafka::unique_topic("bench"));
    kafka::create_topic(&brokers, &topic, 6).await;
    (brokers, topic)
}

/// A new stream, and its servers.
async fn stream() -> (String, String) {
    let (servers, stream) = (nats::shared(), nats::unique_name("bench"));
    nats::create_stream(&servers, &stream, &[&format!("{stream}.>")]).await;
    (servers, stream)
}
