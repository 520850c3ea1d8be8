//! A sink that is not required costs the others nothing, not even when the spool is full.

use super::support::Bridge;
use super::support::{PATIENCE, eventually, free_port};

fn config(required: bool) -> String {
    format!(
        "
        [ingress]
        listen = '127.0.0.1:0'
        [admin]
        listen = '127.0.0.1:0'
        [spool]
        max_size = '4MiB'
        segment_size = '256KiB'
        [sinks.all]
        type = 'stdout'
        [sinks.dead]
        type = 'kafka'
        brokers = '127.0.0.1:{}'
        required = {required}
        ",
        free_port()
    )
}

/// About 100 KiB of events.
fn batch(number: usize) -> String {
    let filler = "x".repeat(1000);
    let event = |n| format!("{{\"conversation_uuid\":\"{number}-{n}\",\"custom\":\"{filler}\"}}");
    format!("[{}]", (0..100).map(event).collect::<Vec<_>>().join(","))
}

#[tokio::test]
async fn a_full_spool_skips_records_of_a_sink_that_is_not_required() {
    let bridge = Bridge::start(&config(false)).await;
    for number in 0..120 {
        let batch = batch(number);
        eventually(PATIENCE, "webhooks are taken", async || {
            bridge.post(batch.clone(), "application/json").await.status == 200
        })
        .await;
    }
    eventually(PATIENCE, "the other sink has everything", async || {
        bridge.metric("cdrelay_sink_lag_records{sink=\"all\"}").await == Some(0.0)
    })
    .await;
    assert_eq!(bridge.stdout_lines().len(), 12_000);
    let skipped = bridge.metric("cdrelay_spool_skipped_records_total{sink=\"dead\"}").await.unwrap();
    let lag = bridge.metric("cdrelay_sink_lag_records{sink=\"dead\"}").await.unwrap();
    println!("12000 events: {skipped} skipped, {lag} wait");
    assert_eq!(skipped + lag, 12_000.0);
    assert!(lag > 1_000.0, "the newest are kept as far as there is room");
    assert!(bridge.metric("cdrelay_spool_bytes").await.unwrap() <= 4.0 * 1024.0 * 1024.0);
    assert!(bridge.stderr().contains("records skipped"));
}

#[tokio::test]
async fn a_full_spool_refuses_webhooks_for_the_sake_of_a_required_sink() {
    let bridge = Bridge::start(&config(true)).await;
    let mut stored = 0;
    let refused = loop {
        let answer = bridge.post(batch(stored), "application/json").await;
        if answer.status != 200 {
            break answer;
        }
        stored += 1;
        assert!(stored < 120);
    };
    assert_eq!(refused.status, 503);
    assert!(refused.headers.contains_key("retry-after"));
    assert_eq!(bridge.metric("cdrelay_sink_lag_records{sink=\"dead\"}").await, Some(100.0 * stored as f64));
    assert_eq!(bridge.admin("/readyz/ingress").await.status, 503);
}
