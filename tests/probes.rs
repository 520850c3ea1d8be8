//! A pod's probes: readiness tells whether webhooks can be stored apart from whether they can be delivered.

use crate::support::bridge::Bridge;
use crate::support::{PATIENCE, eventually, nats};

const PORTS: &str = "[ingress]\nlisten = '127.0.0.1:0'\n[admin]\nlisten = '127.0.0.1:0'\n";

/// Why the readiness probe asks for `/readyz/ingress`.
#[tokio::test]
async fn a_broker_that_is_away_does_not_take_the_webhook_out_of_service() {
    let bridge = Bridge::start(&format!("{PORTS}[sinks.far]\ntype = 'kafka'\nbrokers = '127.0.0.1:1'\n")).await;
    eventually(PATIENCE, "readiness says no", async || bridge.admin("/readyz").await.status == 503).await;
    let readiness = bridge.admin("/readyz").await.json();
    assert_eq!(readiness["sinks"]["far"]["ready"], false, "{readiness}");
    assert_eq!(bridge.admin("/readyz/ingress").await.status, 200);
    assert_eq!(bridge.post(r#"{"type":"cdr"}"#, "application/json").await.status, 200);
}

/// A probe may be about some of the sinks.
#[tokio::test]
async fn readiness_can_be_asked_of_chosen_sinks() {
    let sinks = "[sinks.far]\ntype = 'kafka'\nbrokers = '127.0.0.1:1'\n[sinks.near]\ntype = 'stdout'\n\
                 [sinks.spare]\ntype = 'kafka'\nbrokers = '127.0.0.1:1'\nrequired = false\n";
    let bridge = Bridge::start(&format!("{PORTS}{sinks}")).await;
    let status = async |query: &str| bridge.admin(&format!("/readyz?{query}")).await.status;
    eventually(PATIENCE, "the near one is ready", async || status("sinks=near").await == 200).await;
    for (query, expected) in
        [("sinks=far", 503), ("sinks=near,far", 503), ("sinks=near%2Cspare", 503), ("x=1&sinks=near", 200), ("", 503)]
    {
        assert_eq!(status(query).await, expected, "{query}");
    }
    for unknown in ["sinks=nera", "sinks=near,", "sinks="] {
        let answer = bridge.admin(&format!("/readyz?{unknown}")).await;
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(answer.status == 404 && detail.contains("far, near, spare"), "{unknown}: {detail}");
    }
}

/// A pod that is not ready gets no webhooks, so it cannot be a webhook that finds out that there is room again.
#[tokio::test]
async fn a_full_spool_is_ready_again_by_itself_once_it_drains() {
    let stream = nats::unique_name("full");
    let sink = format!("type = 'nats'\nservers = '{}'\nsubject = '{stream}.{{n}}'", nats::shared());
    let bridge = Bridge::start(&format!(
        "[ingress]\nlisten = '127.0.0.1:0'\nmax_body = '2KiB'\n[admin]\nlisten = '127.0.0.1:0'\n\
         [spool]\nmax_size = '64KiB'\n[sinks.nats]\n{sink}\n"
    ))
    .await;
    let mut stored = 0;
    let full = loop {
        let body = format!("{{\"n\":{stored},\"text\":\"{}\"}}", "x".repeat(1000));
        let answer = bridge.post(body, "application/json").await;
        if answer.status != 200 {
            break answer;
        }
        stored += 1;
        assert!(stored < 64, "64 KiB hold more than 64 KiB");
    };
    assert_eq!((full.status, full.json()["detail"].as_str()), (503, Some("the spool is full")));
    assert_eq!(full.headers["retry-after"], "60");
    let readiness = bridge.admin("/readyz/ingress").await;
    assert_eq!((readiness.status, readiness.json()["reason"].as_str()), (503, Some("the spool is full")));

    nats::create_stream(&nats::shared(), &stream, &[&format!("{stream}.>")]).await;
    eventually(PATIENCE, "ready again", async || bridge.admin("/readyz/ingress").await.status == 200).await;
    assert_eq!(bridge.post("{\"n\":\"last\"}", "application/json").await.status, 200);
    let count = stored + 1;
    eventually(PATIENCE, "all delivered", async || nats::stream_length(&nats::shared(), &stream).await == count).await;
    nats::delete_stream(&nats::shared(), &stream).await;
}
