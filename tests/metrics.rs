//! `/metrics` speaks the formats that scrapers ask for, and its histograms and gauges tell how the bridge is.

use crate::support::bridge::Bridge;
use crate::support::prometheus::promtool;
use crate::support::{ANY_PORTS, PATIENCE, STDOUT, eventually, free_port};
use http_body_util::Full;
use hyper::Request;
use hyper::header::ACCEPT;
use rustix::fs::statvfs;

async fn scrape(bridge: &Bridge, accept: &str) -> (String, String) {
    let request = Request::get(format!("http://{}/metrics", bridge.admin_address())).header(ACCEPT, accept);
    let answer = bridge.send(request.body(Full::default()).unwrap()).await;
    assert_eq!(answer.status, 200);
    (answer.headers["content-type"].to_str().unwrap().to_owned(), answer.text().to_owned())
}

fn away() -> String {
    format!("[sinks.away]\ntype = 'nats'\nservers = '127.0.0.1:{}'\n", free_port())
}

#[tokio::test]
async fn text_is_the_format_unless_open_metrics_is_asked_for() {
    let bridge = Bridge::start(&format!("{ANY_PORTS}{STDOUT}{}", away())).await;
    assert_eq!(bridge.post("{\"a\":1}", "application/json").await.status, 200);
    assert_eq!(bridge.post("{", "application/json").await.status, 400);
    let (media_type, text) = scrape(&bridge, "text/html, */*;q=0.8").await;
    assert_eq!(media_type, "text/plain; version=0.0.4; charset=utf-8");
    let documented = |kind: &str| {
        let lines = text.lines().filter_map(|line| line.strip_prefix(kind)?.split_once(' '));
        lines.map(|(name, _)| name.to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(documented("# HELP "), documented("# TYPE "));
    assert!(text.contains("# TYPE cdrelay_ingress_requests_total counter\n") && !text.contains("# EOF"), "{text}");
    promtool(&["check", "metrics"], &text);

    let (media_type, open_metrics) =
        scrape(&bridge, "application/openmetrics-text;version=1.0.0,text/plain;q=0.5").await;
    assert_eq!(media_type, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(open_metrics.contains("# TYPE cdrelay_ingress_requests counter\n") && open_metrics.ends_with("# EOF\n"));
}

#[tokio::test]
async fn each_step_of_an_event_has_its_duration() {
    let bridge = Bridge::start(&format!("{ANY_PORTS}{STDOUT}")).await;
    for n in 0..5 {
        assert_eq!(bridge.post(format!("{{\"n\":{n}}}"), "application/json").await.status, 200);
    }
    assert_eq!(bridge.post("{", "application/json").await.status, 400);
    let count = async |name: &str| bridge.metric(name).await.unwrap();
    eventually(PATIENCE, "all are settled", async || {
        count("cdrelay_sink_settle_duration_seconds_count{sink=\"out\"}").await == 5.0
    })
    .await;
    assert_eq!(count("cdrelay_sink_publish_duration_seconds_count{sink=\"out\"}").await, 5.0);
    assert_eq!(count("cdrelay_ingress_acknowledgement_duration_seconds_count").await, 5.0);
    assert_eq!(count("cdrelay_spool_sync_duration_seconds_count").await, count("cdrelay_spool_syncs_total").await);
    let settled = count("cdrelay_sink_settle_duration_seconds_sum{sink=\"out\"}").await;
    assert!((0.0..60.0).contains(&settled), "{settled}");
    assert!(count("process_cpu_seconds_total").await > 0.0);
    let resident = count("process_resident_memory_bytes").await / bridge.rss_bytes() as f64;
    assert!((0.5..2.0).contains(&resident), "{resident}");
    assert!(count("process_open_fds").await > 5.0 && count("process_start_time_seconds").await > 1.6e9);
}

/// A metric of a sink.
async fn of(bridge: &Bridge, name: &str, labels: &str) -> f64 {
    bridge.metric(&format!("cdrelay_sink_{name}{{{labels}}}")).await.unwrap()
}

#[tokio::test]
async fn a_sink_that_is_away_tells_how_much_it_misses() {
    let mut bridge = Bridge::start(&format!("{ANY_PORTS}{STDOUT}{}", away())).await;
    for n in 0..30 {
        let body = format!("{{\"n\":{n},\"text\":\"{}\"}}", "x".repeat(900));
        assert_eq!(bridge.post(body, "application/json").await.status, 200);
    }
    eventually(PATIENCE, "stdout has all", async || bridge.stdout_lines().len() == 30).await;
    eventually(PATIENCE, "stdout is settled", async || of(&bridge, "lag_bytes", "sink=\"out\"").await == 0.0).await;
    assert_eq!(of(&bridge, "lag_records", "sink=\"out\"").await, 0.0);
    assert_eq!(of(&bridge, "lag_records", "sink=\"away\"").await, 30.0);
    let bytes = of(&bridge, "lag_bytes", "sink=\"away\"").await;
    assert!((30_000.0..34_000.0).contains(&bytes), "{bytes}");
    eventually(PATIENCE, "it is tried again", async || {
        of(&bridge, "retried_total", "sink=\"away\",cause=\"unavailable\"").await > 0.0
    })
    .await;
    assert_eq!(of(&bridge, "retried_total", "sink=\"away\",cause=\"place\"").await, 0.0);
    let file_system = statvfs(bridge.directory()).unwrap();
    let free = (file_system.f_bavail * file_system.f_frsize) as f64;
    eventually(PATIENCE, "the free space is known", async || {
        let measured = bridge.metric("cdrelay_spool_filesystem_free_bytes").await.unwrap();
        (measured / free - 1.0).abs() < 0.2
    })
    .await;
    assert_eq!(bridge.metric("cdrelay_ingress_up").await, Some(1.0));

    // A sink that has everything misses nothing, also where it has had nothing to do since its start.
    bridge.terminate();
    bridge.wait(PATIENCE).await;
    bridge.start_again().await;
    eventually(PATIENCE, "the lag is known", async || of(&bridge, "lag_records", "sink=\"away\"").await == 30.0).await;
    assert_eq!(of(&bridge, "lag_records", "sink=\"out\"").await, 0.0);
    bridge.terminate();
    bridge.wait(PATIENCE).await;
    let log = bridge.stderr();
    let told: Vec<_> = log.lines().filter(|line| line.contains("records wait in the spool for this sink")).collect();
    assert!(told.len() == 2 && told.iter().all(|line| line.contains("30") && line.contains("\"away\"")), "{log}");
}
