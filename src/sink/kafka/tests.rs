use super::*;
use crate::event::EventId;
use rdkafka::bindings::rd_kafka_resp_err_t as Error;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::RDKafkaApiKey;
use tokio::time::{Instant, sleep};

/// For errors that a real broker answers with only when it is broken.
type Cluster = MockCluster<'static, DefaultProducerContext>;

fn cluster() -> (Cluster, KafkaSink) {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("present", 12, 1).unwrap();
    let sink = sink(&cluster.bootstrap_servers(), None);
    (cluster, sink)
}

fn sink(brokers: &str, topic: Option<&str>) -> KafkaSink {
    let config: Config = serde_json::from_value(serde_json::json!({ "brokers": brokers })).unwrap();
    KafkaSink::new("test", &config, topic).unwrap()
}

fn message(topic: &str) -> Message {
    Message::of(EventId([0; 16]), *b"{}", topic, "team/conversation", "conversation").with_header("ce_id", "1")
}

/// Publishes until the message is through, as the dispatcher does while the destination or a place is at fault.
async fn insist(sink: &KafkaSink, message: &Message) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while let Err(failure) = sink.publish(message).await {
        assert!(!matches!(failure, Failure::Rejected { .. }), "{failure}");
        assert!(Instant::now() < deadline, "{failure}");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_fatal_error_rebuilds_the_producer_and_answers_for_every_message() {
    let (cluster, sink) = cluster();
    sink.publish(&message("present")).await.unwrap();
    // A producer whose sequence the broker does not continue cannot go on.
    cluster.request_errors(RDKafkaApiKey::Produce, &[Error::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER]);
    let message = message("present");
    let failures = futures_util::future::join_all((0..50).map(|_| sink.publish(&message))).await;
    assert!(failures.iter().any(|result| matches!(result, Err(Failure::Unavailable { .. }))), "{failures:?}");
    insist(&sink, &message).await;
    sink.close().await;
}

#[tokio::test]
async fn a_refusal_of_the_batch_is_not_a_refusal_of_the_message() {
    use Error::{RD_KAFKA_RESP_ERR_INVALID_RECORD as INVALID, RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE as TOO_LARGE};
    let (cluster, sink) = cluster();
    for error in [TOO_LARGE, INVALID] {
        cluster.request_errors(RDKafkaApiKey::Produce, &[error]);
        sink.publish(&message("present")).await.unwrap();
        cluster.request_errors(RDKafkaApiKey::Produce, &[error, error]);
        assert!(matches!(sink.publish(&message("present")).await, Err(Failure::Rejected { .. })));
    }
    sink.publish(&message("present")).await.unwrap();
}

#[tokio::test]
async fn an_error_that_may_pass_is_no_rejection() {
    use Error::*;
    let (cluster, sink) = cluster();
    for (error, expires) in [
        (RD_KAFKA_RESP_ERR_INVALID_TIMESTAMP, Some(false)),
        (RD_KAFKA_RESP_ERR_POLICY_VIOLATION, Some(false)),
        (RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, Some(true)),
        (RD_KAFKA_RESP_ERR_UNKNOWN, None),
    ] {
        cluster.request_errors(RDKafkaApiKey::Produce, &[error]);
        let failure = sink.publish(&message("present")).await.unwrap_err();
        match (&failure, expires) {
            (Failure::Place { place, expires, .. }, Some(expected)) => {
                assert_eq!((place.as_str(), *expires), ("topic present", expected), "{error:?}");
            }
            (Failure::Unavailable { .. }, None) => {}
            _ => panic!("{error:?}: {failure:?}"),
        }
        insist(&sink, &message("present")).await;
    }
}

/// Most of these never get here: librdkafka has no timeout of its own, and asks again. Should it ever give one up, the
/// message must not be given up with it.
#[tokio::test]
async fn a_timeout_says_nothing_about_the_message() {
    use RDKafkaErrorCode::*;
    let (_cluster, sink) = cluster();
    for code in [MessageTimedOut, RequestTimedOut, OperationTimedOut, TimedOutQueue, BrokerTransportFailure, Unknown] {
        let failure = sink.classify(code, &message("present"));
        assert!(matches!(failure, Failure::Unavailable { .. }), "{code:?}: {failure}");
    }
}

#[tokio::test]
async fn a_topic_that_kafka_does_not_allow_is_rejected() {
    let (_cluster, sink) = cluster();
    for topic in ["", ".", "a b", "a\0", "தமிழ்", &"x".repeat(250)] {
        assert!(matches!(sink.publish(&message(topic)).await, Err(Failure::Rejected { .. })), "{topic:?}");
    }
}

#[tokio::test]
async fn an_unreachable_cluster_is_named_with_the_cause() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let sink = sink(&address, Some("present"));
    let (probe, publish) = (sink.probe().await.unwrap_err(), sink.publish(&message("present")).await.unwrap_err());
    for failure in [probe, publish] {
        let text = failure.to_string();
        assert!(matches!(failure, Failure::Unavailable { .. }));
        assert!(text.contains(&address) && text.contains("refused"), "{text}");
    }
    sink.close().await;
}
