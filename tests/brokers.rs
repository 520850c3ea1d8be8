//! The ground the other promises stand on: brokers that take messages, lose none when killed, and come back.

use std::pin::pin;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::{self, stream};
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use tokio::time::timeout;

use crate::support::{PATIENCE, eventually, kafka, nats, tls};

/// Text that a reader which splits or quotes would stumble on.
const HARD: &str = "a\tb\nc\0d:,\u{1}அ =";

fn client(address: &str, more: &[(&str, &str)]) -> FutureProducer {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", address)
        .set("message.timeout.ms", "10000")
        .extend(more.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())));
    config.create().unwrap()
}

async fn produce(client: &FutureProducer, topic: &str, partition: i32, payload: &str) -> Result<i64, KafkaError> {
    let headers = OwnedHeaders::new()
        .insert(Header { key: "ce_id", value: Some(HARD) })
        .insert(Header { key: "ce_type", value: Some("") });
    let record = FutureRecord::to(topic).partition(partition).key(HARD).payload(payload).headers(headers);
    Ok(client.send(record, PATIENCE).await.map_err(|(error, _)| error)?.offset)
}

fn expected(partition: i32, offset: i64, payload: &str) -> kafka::Consumed {
    let headers = vec![("ce_id".to_owned(), HARD.as_bytes().to_vec()), ("ce_type".to_owned(), vec![])];
    let (key, payload) = (Some(HARD.as_bytes().to_vec()), payload.as_bytes().to_vec());
    kafka::Consumed { partition, offset, key, headers, payload }
}

fn code(result: Result<i64, KafkaError>) -> Option<RDKafkaErrorCode> {
    result.err().and_then(|error| error.rdkafka_error_code())
}

#[tokio::test]
async fn both_kafka_consumers_read_exactly_what_was_produced() {
    let address = kafka::shared();
    let topic = kafka::unique_topic("brokers");
    kafka::create_topic(&address, &topic, 3).await;
    let producer = client(&address, &[]);
    produce(&producer, &topic, 2, HARD).await.unwrap();
    produce(&producer, &topic, 2, "").await.unwrap();
    produce(&producer, &topic, 0, "NO_HEADERS").await.unwrap();
    producer.send(FutureRecord::<(), ()>::to(&topic).partition(1), PATIENCE).await.unwrap();

    let bare = kafka::Consumed { partition: 1, offset: 0, key: None, headers: vec![], payload: vec![] };
    let expected = vec![expected(0, 0, "NO_HEADERS"), bare, expected(2, 0, HARD), expected(2, 1, "")];
    let all = [
        kafka::consume(&address, &topic, 4, PATIENCE).await,
        kafka::consume_all(&address, &topic, PATIENCE).await,
        kafka::java_consume(&address, &topic, 4, PATIENCE).await,
    ];
    for mut consumed in all {
        consumed.sort_by_key(|message| (message.partition, message.offset));
        assert_eq!(consumed, expected);
    }
    kafka::delete_topic(&address, &topic).await;
}

#[tokio::test]
async fn a_missing_topic_stays_missing() {
    let producer =
        client(&kafka::shared(), &[("message.timeout.ms", "1000"), ("topic.metadata.propagation.max.ms", "100")]);
    let result = produce(&producer, &kafka::unique_topic("brokers.missing"), 0, "").await;
    assert_eq!(code(result), Some(RDKafkaErrorCode::UnknownTopicOrPartition));
}

#[tokio::test]
async fn a_kafka_broker_keeps_its_address_and_its_data() {
    let mut broker = kafka::Broker::start(&[("num.network.threads", "1")]).await;
    kafka::create_topic_with(&broker.address(), "cdr", 1, &[("max.message.bytes", "2000")]).await;
    let producer = client(&broker.address(), &[]);
    produce(&producer, "cdr", 0, "0").await.unwrap();
    assert_eq!(
        code(produce(&producer, "cdr", 0, &"x".repeat(3000)).await),
        Some(RDKafkaErrorCode::MessageSizeTooLarge)
    );

    broker.kill();
    broker.start_again().await;
    produce(&producer, "cdr", 0, "1").await.unwrap();

    broker.stop().await;
    let hasty = client(&broker.address(), &[("message.timeout.ms", "1000")]);
    assert_eq!(code(produce(&hasty, "cdr", 0, "lost").await), Some(RDKafkaErrorCode::MessageTimedOut));
    broker.start_again().await;
    produce(&producer, "cdr", 0, "2").await.unwrap();

    broker.pause();
    let mut sending = pin!(produce(&producer, "cdr", 0, "3"));
    timeout(Duration::from_millis(200), &mut sending).await.expect_err("nobody is there to answer");
    broker.resume();
    sending.await.unwrap();

    let expected: Vec<_> = (0..4).map(|offset| expected(0, offset, &offset.to_string())).collect();
    assert_eq!(kafka::consume_all(&broker.address(), "cdr", PATIENCE).await, expected);
}

#[tokio::test]
async fn a_secure_kafka_broker_lets_in_only_whom_it_knows() {
    let broker = kafka::Broker::start_sasl_tls(&[]).await;
    kafka::create_topic(&broker.address(), "cdr", 1).await;
    let authority = broker.authority();
    let login = |mechanism, password| {
        let more = [
            ("security.protocol", "SASL_SSL"),
            ("ssl.ca.location", authority.to_str().unwrap()),
            ("sasl.mechanisms", mechanism),
            ("sasl.username", kafka::USER),
            ("sasl.password", password),
            ("message.timeout.ms", "3000"),
        ];
        client(&broker.secure_address(), &more)
    };
    for mechanism in ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] {
        produce(&login(mechanism, kafka::PASSWORD), "cdr", 0, mechanism).await.unwrap();
    }
    produce(&login("SCRAM-SHA-512", "guess"), "cdr", 0, "").await.unwrap_err();
    assert_eq!(kafka::consume_all(&broker.address(), "cdr", PATIENCE).await.len(), 3);
}

#[tokio::test]
async fn a_stream_holds_exactly_what_was_published() {
    let url = nats::shared();
    let name = nats::unique_name("brokers");
    nats::create_stream(&url, &name, &[&format!("{name}.>")]).await;
    let jetstream = jetstream::new(async_nats::connect(&url).await.unwrap());
    let mut headers = HeaderMap::new();
    headers.insert("ce-type", "t");
    headers.insert("ce-id", "அ");
    for _ in 0..2 {
        let subject = format!("{name}.a.b");
        jetstream.publish_with_headers(subject, headers.clone(), HARD.into()).await.unwrap().await.unwrap();
    }

    let headers = vec![("ce-id".to_owned(), "அ".to_owned()), ("ce-type".to_owned(), "t".to_owned())];
    let (subject, payload) = (format!("{name}.a.b"), HARD.as_bytes().to_vec());
    let first = nats::Received { subject, headers, payload, sequence: 1 };
    let second = nats::Received { sequence: 2, ..first.clone() };
    assert_eq!(nats::stream_messages(&url, &name, 2, PATIENCE).await, [first, second]);
    nats::delete_stream(&url, &name).await;
}

#[tokio::test]
async fn a_nats_server_keeps_its_address_and_its_streams() {
    let mut server = nats::Server::start("max_payload: 2000").await;
    let config = stream::Config { name: "CDR".to_owned(), subjects: vec!["cdr.>".to_owned()], ..Default::default() };
    nats::create_stream_with(&server.url(), config).await;
    let publish = async |url: String| {
        let jetstream = jetstream::new(async_nats::connect(url).await.unwrap());
        jetstream.publish("cdr.a", "".into()).await.unwrap().await.unwrap();
    };
    publish(server.url()).await;

    server.kill();
    server.start_again().await;
    publish(server.url()).await;

    server.stop().await;
    assert!(async_nats::connect(server.url()).await.is_err());
    server.start_again().await;

    server.pause();
    server.resume();
    publish(server.url()).await;
    let url = server.url();
    eventually(PATIENCE, "three messages", async || nats::stream_length(&url, "CDR").await == 3).await;
}

#[tokio::test]
async fn a_nats_server_serves_tls() {
    let directory = tempfile::tempdir().unwrap();
    let files = tls::issue(directory.path());
    let server =
        nats::Server::start(&format!("tls {{ cert_file: {:?}, key_file: {:?} }}", files.certificate, files.key)).await;
    assert!(async_nats::connect(server.url()).await.is_err());
    let trusting = async_nats::ConnectOptions::new().add_root_certificates(files.authority).require_tls(true);
    trusting.connect(server.url()).await.unwrap();
}
