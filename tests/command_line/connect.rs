//! `cdrelay check --connect`

use super::cdrelay;
use crate::support::fault::{kafka_sink, nats_sink};
use crate::support::{PATIENCE, eventually, free_port, kafka, nats};
use std::fs::write;
use tempfile::TempDir;

#[tokio::test]
async fn check_asks_the_destinations_for_their_limits() {
    let (topic, stream) = (kafka::unique_topic("checked"), nats::unique_name("checked"));
    kafka::create_topic_with(&kafka::shared(), &topic, 1, &[("max.message.bytes", "2000")]).await;
    nats::create_stream(&nats::shared(), &stream, &[&format!("{stream}.>")]).await;
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("cdrelay.toml");
    let check = |config: &str| {
        write(&path, config).unwrap();
        cdrelay(&["check", "--connect", "--config", path.to_str().unwrap()])
    };
    let both = format!("{}{}", kafka_sink(&kafka::shared(), &topic), nats_sink(&nats::shared(), &stream));
    let found = check(&both);
    assert_eq!(found.code, Some(0), "{found:?}");
    assert!(found.stdout.contains("2 sink(s), all of which take messages"), "{found:?}");
    let name = path.display().to_string();
    for warning in ["`max.message.bytes` is 2000", "`min.insync.replicas` is 1"] {
        let line = found.stderr.lines().find(|line| line.contains(warning)).unwrap_or_else(|| panic!("{found:?}"));
        assert!(line.contains(&name) && line.contains("`sinks.kafka`: topic `"), "{line}");
    }

    let missing = kafka_sink(&kafka::shared(), &kafka::unique_topic("missing"));
    let dead = nats_sink(&format!("nats://127.0.0.1:{}", free_port()), &stream);
    let found = check(&format!("{missing}{dead}"));
    assert_eq!(found.code, Some(78), "{found:?}");
    for sink in ["`sinks.kafka`: does not take messages", "`sinks.nats`: does not take messages"] {
        assert!(found.stderr.contains(&format!("{name}: {sink}")), "{found:?}");
    }
    nats::delete_stream(&nats::shared(), &stream).await;
}

/// The permission to write is tried, and nothing is stored by that.
#[tokio::test]
async fn check_tells_a_destination_that_may_be_read_and_not_written_to() {
    let broker = kafka::Broker::start_sasl_tls(&[
        ("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer"),
        ("super.users", "User:ANONYMOUS"),
    ])
    .await;
    kafka::create_topic(&broker.address(), "cdr", 1).await;
    kafka::allow(&broker.address(), "cdr", &["Describe", "DescribeConfigs"]).await;
    // A topic whose limit the user may not read.
    kafka::create_topic_with(&broker.address(), "large", 1, &[("max.message.bytes", "50000000")]).await;
    kafka::allow_writing(&broker.address(), "large").await;
    let users = |denied: &str| {
        format!(
            "max_payload: 100000
            no_auth_user: admin
            authorization {{ users: [
                {{ user: admin, password: admin }}
                {{ user: cdrelay, password: secret, permissions: {{ publish: {{ deny: [{denied}] }} }} }}
            ] }}"
        )
    };
    let server = nats::Server::start(&users("\"telecmi.>\"")).await;
    nats::create_stream(&server.url(), "CDR", &["telecmi.cdr.>"]).await;
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("cdrelay.toml");
    let (brokers, authority, user, password) =
        (broker.secure_address(), broker.authority(), kafka::USER, kafka::PASSWORD);
    let kafka_sink = format!(
        "[sinks.kafka]\ntype = 'kafka'\nbrokers = '{brokers}'\ntopic = 'cdr'\ntls = {{ ca_file = {authority:?} }}\n\
         sasl = {{ mechanism = 'PLAIN', username = '{user}', password = '{password}' }}\n"
    );
    let servers = server.url();
    let nats_sink =
        format!("[sinks.nats]\ntype = 'nats'\nservers = '{servers}'\nuser = 'cdrelay'\npassword = 'secret'\n");
    write(&path, format!("{kafka_sink}{nats_sink}")).unwrap();
    let check = || cdrelay(&["check", "--connect", "--config", path.to_str().unwrap()]);

    let found = check();
    assert_eq!(found.code, Some(78), "{found:?}");
    for problem in [
        "`sinks.kafka`: topic `cdr`: may not be written to: ",
        "`sinks.nats`: subject `telecmi.cdr.cdrelay-check.cdrelay-check`: may not be written to: ",
    ] {
        assert!(found.stderr.contains(problem), "{problem}: {found:?}");
    }

    kafka::allow_writing(&broker.address(), "cdr").await;
    server.reload(&users(""));
    // Either server takes a moment to know of a permission.
    eventually(PATIENCE, "both may be written to", async || check().code == Some(0)).await;
    let found = check();
    assert!(found.stderr.contains("`sinks.nats`: `max_payload` of the server is 100000"), "{found:?}");
    assert!(!found.stderr.contains("may be written to"), "{found:?}");
    assert_eq!(kafka::consume_all(&broker.address(), "cdr", PATIENCE).await.len(), 0);
    assert_eq!(nats::stream_length(&server.url(), "CDR").await, 0);

    write(&path, kafka_sink.replace("topic = 'cdr'", "topic = 'large'")).unwrap();
    let found = check();
    assert_eq!(found.code, Some(0), "{found:?}");
    assert!(
        found.stderr.contains("`sinks.kafka`: topic `large`: whether it may be written to was not tried"),
        "{found:?}"
    );
    assert_eq!(kafka::consume_all(&broker.address(), "large", PATIENCE).await.len(), 0);
}
