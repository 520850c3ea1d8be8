//! `deploy/monitoring`: each alert fires in its fault and none in a healthy hour, and each expression of the dashboard has data.
//!
//! The series are recorded from real runs: what `/metrics` said at their beginning and at their end. Faults that no test can make, such as
//! a certificate that ends, are a healthy run with one series changed.

mod recording;

use crate::support::bridge::Bridge;
use crate::support::process::Process;
use crate::support::prometheus::program;
use crate::support::{ANY_PORTS, PATIENCE, STDOUT, eventually, free_port, kafka};
use http_body_util::Full;
use hyper::Request;
use recording::{Recording, test_alerts};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use tempfile::TempDir;

const ALERTS: &str = include_str!("../deploy/monitoring/alerts.yaml");
const DASHBOARD: &str = include_str!("../deploy/monitoring/dashboard.json");
const RUNBOOK: &str = include_str!("../deploy/README.md");

fn dead(name: &str) -> String {
    format!("[sinks.{name}]\ntype = 'nats'\nservers = '127.0.0.1:{}'\n", free_port())
}

async fn post(bridge: &Bridge, bodies: impl IntoIterator<Item = String>) {
    for body in bodies {
        bridge.post(body, "application/json").await;
    }
}

fn events(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|n| format!("{{\"type\":\"cdr\",\"conversation_uuid\":\"c{n}\",\"text\":\"{}\"}}", "x".repeat(1000)))
}

/// A run of a bridge with this configuration that works.
async fn healthy(config: &str) -> Recording {
    let bridge = Bridge::start(&format!("{ANY_PORTS}{config}{STDOUT}")).await;
    post(&bridge, events(20)).await;
    eventually(PATIENCE, "all is settled", async || bridge.stdout_lines().len() == 20).await;
    let mut recording = Recording::begin(&bridge).await;
    post(&bridge, (20..40).map(|n| format!("{{\"n\":{n}}}"))).await;
    eventually(PATIENCE, "all is settled", async || {
        bridge.metric("cdrelay_sink_lag_records{sink=\"out\"}").await == Some(0.0) && bridge.stdout_lines().len() == 40
    })
    .await;
    recording.end(&bridge).await;
    recording
}

/// A run in which `fault` happens, until `metric` is above zero, or is zero if its name begins with `!`.
async fn faulty(bridge: &Bridge, metric: &str, fault: impl AsyncFnOnce()) -> Recording {
    let mut recording = Recording::begin(bridge).await;
    fault().await;
    eventually(PATIENCE, metric, async || match metric.strip_prefix('!') {
        Some(name) => bridge.metric(name).await == Some(0.0),
        None => bridge.metric(metric).await > Some(0.0),
    })
    .await;
    recording.end(bridge).await;
    recording
}

#[tokio::test]
async fn each_alert_fires_in_its_fault_and_none_in_a_healthy_hour() {
    let well = healthy("").await;
    let mut cases = Vec::new();
    cases.push(("healthy", well.series(), vec![]));

    let bridge = Bridge::start(&format!("{ANY_PORTS}{STDOUT}")).await;
    let run = faulty(&bridge, "cdrelay_ingress_rejected_kept_total", async || {
        post(&bridge, ["{".into(), "{\"a\":1}".into()]).await
    });
    cases.push(("undecodable", run.await.series(), vec!["CdrelayUndecodableBodies"]));

    let bridge = Bridge::start(&format!("{ANY_PORTS}{}", dead("away"))).await;
    let run = faulty(&bridge, "cdrelay_sink_lag_seconds{sink=\"away\"}", async || post(&bridge, events(3)).await);
    cases.push(("sink down", run.await.series(), vec!["CdrelaySinkDown", "CdrelayLagGrowing"]));

    let topic = kafka::unique_topic("alerts");
    kafka::create_topic(&kafka::shared(), &format!("{topic}.here"), 1).await;
    let sink = format!("[sinks.k]\ntype = 'kafka'\nbrokers = '{}'\ntopic = '{topic}.{{team}}'\n", kafka::shared());
    let bridge = Bridge::start(&format!("{ANY_PORTS}{sink}")).await;
    post(&bridge, ["{\"team\":\"here\"}".to_owned()]).await;
    eventually(PATIENCE, "it is up", async || bridge.metric("cdrelay_sink_up{sink=\"k\"}").await == Some(1.0)).await;
    let run = faulty(&bridge, "cdrelay_sink_places_unavailable{sink=\"k\"}", async || {
        post(&bridge, ["{\"team\":\"gone\"}".to_owned(), "{\"team\":\"here\",\"n\":1}".to_owned()]).await;
    });
    cases.push(("place away", run.await.series(), vec!["CdrelayPlaceUnavailable", "CdrelayLagGrowing"]));

    let small = "max_body = '2KiB'\n[spool]\nmax_size = '64KiB'\n";
    let bridge = Bridge::start(&format!("{ANY_PORTS}{small}{}", dead("away"))).await;
    let run = faulty(&bridge, "!cdrelay_ingress_up", async || post(&bridge, events(70)).await);
    let expected =
        ["CdrelayIngressDown", "CdrelaySinkDown", "CdrelayLagGrowing", "CdrelayRefusalsRising", "CdrelaySpoolFillsUp"];
    cases.push(("spool full", run.await.series(), expected.to_vec()));

    let bridge = Bridge::start(&format!("{ANY_PORTS}[sinks.out]\ntype = 'stdout'\ntopic = '{{nothing}}'\n")).await;
    let run =
        faulty(&bridge, "cdrelay_sink_dead_lettered_total{sink=\"out\"}", async || post(&bridge, events(1)).await);
    cases.push(("dead letter", run.await.series(), vec!["CdrelayDeadLetters"]));

    let auth = "auth = [{ type = 'bearer', secrets = ['right-token'] }]\n";
    let bridge = Bridge::start(&format!("{ANY_PORTS}{auth}{STDOUT}")).await;
    let unauthorized = "cdrelay_ingress_requests_total{status=\"401\"}";
    let run = faulty(&bridge, unauthorized, async || post(&bridge, events(10)).await);
    cases.push(("wrong credentials", run.await.series(), vec!["CdrelayRefusalsRising"]));

    let directory = TempDir::new().unwrap();
    let [secret, key] = ["secret", "key"].map(|name| directory.path().join(name));
    for path in [&secret, &key] {
        fs::write(path, "a secret of more than sixteen bytes").unwrap();
    }
    let auth = format!("auth = [{{ type = 'bearer', secret_files = [{secret:?}] }}]\n");
    let redact = format!("{STDOUT}[sinks.out.redact]\nhash = ['from']\nkey_file = {key:?}\n");
    for (path, metric) in
        [(&secret, "cdrelay_ingress_secret_files_unusable"), (&key, "cdrelay_sink_redact_key_unusable{sink=\"out\"}")]
    {
        let bridge = Bridge::start(&format!("{ANY_PORTS}{auth}{redact}")).await;
        let run = faulty(&bridge, metric, async || fs::write(path, "short").unwrap()).await;
        fs::write(path, "a secret of more than sixteen bytes").unwrap();
        cases.push((metric, run.series(), vec!["CdrelaySecretUnreadable"]));
    }

    // What no test can make happen, or not within its time.
    let changed = |name: &str, values: &str| well.clone().with(name, values).series();
    let mut change = |name: &'static str, values: &str, expected: &[&'static str]| {
        cases.push((name, changed(name, values), expected.to_vec()))
    };
    change("cdrelay_ingress_tls_files_unusable", "0+0x30 1+0x60", &["CdrelaySecretUnreadable"]);
    // The clock of promtool begins at 0.
    change("cdrelay_ingress_tls_not_after_timestamp_seconds", "518400+0x90", &["CdrelayCertificateExpires"]);
    change("cdrelay_ingress_tls_not_after_timestamp_seconds", "31536000+0x90", &[]);
    change("cdrelay_spool_damaged_records_total", "0+0x30 3+0x60", &["CdrelayDiskDamage"]);
    change("cdrelay_spool_failures_total", "0+0x30 1+1x60", &["CdrelayDiskFails"]);
    change("cdrelay_spool_read_failures_total", "0+0x30 1+1x60", &["CdrelayDiskFails"]);
    change("cdrelay_spool_skipped_records_total{sink=\"out\"}", "0+0x30 5+0x60", &["CdrelayRecordsSkipped"]);
    change("cdrelay_sink_dead_letter_bytes{sink=\"out\"}", "0+0x30 240000000+0x60", &["CdrelayDeadLettersFull"]);
    change("cdrelay_config_last_reload_successful", "1+0x30 0+0x60", &["CdrelayReloadFailed"]);
    change(
        "cdrelay_reconcile_missing_total{reconcile=\"calls\",list=\"missed\"}",
        "0+0x30 2+0x60",
        &["CdrelayCallsMissing"],
    );
    change("up", "1+0x30 0+0x60", &["CdrelayTargetGone"]);
    change("up", "1+0x10 _x80", &["CdrelayTargetGone"]);
    // Low and falling, low alone, falling alone.
    let gib = "cdrelay_sink_lag_bytes{sink=\"out\"}";
    change(gib, "300000000+4000000x90", &["CdrelaySpoolFillsUp"]);
    change(gib, "900000000+0x90", &[]);
    change(gib, "0+2000000x90", &[]);
    let free = "cdrelay_spool_filesystem_free_bytes";
    change(free, "250000000-2000000x90", &["CdrelaySpoolFillsUp"]);
    change(free, "100000000+0x90", &[]);
    change(free, "40000000000-10000000x90", &[]);
    let mut slow = well.clone();
    slow.slow_down("cdrelay_spool_sync_duration_seconds", 2.5);
    cases.push(("slow disk", slow.series(), vec!["CdrelayDiskSlow"]));

    let covered: BTreeSet<_> = cases.iter().flat_map(|(_, _, expected)| expected.iter().copied()).collect();
    let stopped = [("up", "1+0x1600"), ("cdrelay_ingress_events_accepted_total", "0+5x1440 7200+0x160")];
    test_alerts(&cases, ("CdrelayWebhooksStopped", &stopped));
    let all: BTreeSet<_> = rules().iter().map(|rule| rule["alert"].as_str().unwrap().to_owned()).collect();
    let covered: BTreeSet<_> = covered.into_iter().chain(["CdrelayWebhooksStopped"]).map(str::to_owned).collect();
    assert_eq!(covered, all);
}

fn rules() -> Vec<Value> {
    let file: Value = serde_saphyr::from_str(ALERTS).unwrap();
    file["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

#[test]
fn each_alert_says_how_bad_it_is_and_leads_to_its_section() {
    let headings: BTreeSet<_> =
        RUNBOOK.lines().filter_map(|line| line.strip_prefix("### ")).map(str::to_lowercase).collect();
    for rule in rules() {
        let name = rule["alert"].as_str().unwrap();
        let severity = rule["labels"]["severity"].as_str().unwrap();
        assert!(["critical", "warning"].contains(&severity), "{name}");
        let annotation = |key: &str| rule["annotations"][key].as_str().unwrap_or_else(|| panic!("{name} has no {key}"));
        assert!(annotation("summary").len() > 10 && annotation("description").len() > 20, "{name}");
        let (document, section) = annotation("runbook_url").split_once('#').unwrap();
        assert!(document.ends_with("/deploy/README.md") && section == name.to_lowercase(), "{name}");
        assert!(headings.contains(section), "deploy/README.md has no section {name}");
    }
}

#[tokio::test]
async fn each_expression_of_the_dashboard_has_data() {
    let Some(mut prometheus) = program("prometheus") else { return };
    let bridge = Bridge::start(&format!("{ANY_PORTS}{STDOUT}")).await;
    let directory = TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::write(path("alerts.yaml"), ALERTS).unwrap();
    let config = json!({
        "rule_files": ["alerts.yaml"],
        "scrape_configs": [{
            "job_name": "cdrelay",
            "scrape_interval": "1s",
            "scrape_timeout": "1s",
            "static_configs": [{ "targets": [bridge.admin_address()] }],
        }],
    });
    fs::write(path("prometheus.yaml"), config.to_string()).unwrap();
    let port = free_port();
    prometheus.arg(format!("--config.file={}", path("prometheus.yaml").display()));
    prometheus.arg(format!("--storage.tsdb.path={}", path("data").display()));
    prometheus.arg(format!("--web.listen-address=127.0.0.1:{port}"));
    let mut process = Process::spawn(&mut prometheus, &path("log"), &path("log"));
    process.listening(port).await;
    let get = async |path: &str| {
        let request = Request::get(format!("http://127.0.0.1:{port}/{path}"));
        bridge.send(request.body(Full::default()).unwrap()).await
    };
    // It listens before it has read its data, and answers 503 until then.
    eventually(PATIENCE, "Prometheus is ready", async || get("-/ready").await.status == 200).await;
    let query = async |path: &str| get(&format!("api/v1/{path}")).await;
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    assert!(variables.iter().any(|variable| variable["name"] == "datasource" && variable["type"] == "datasource"));
    let panels = dashboard["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row");
    let targets: Vec<_> = panels.flat_map(|panel| panel["targets"].as_array().unwrap()).collect();
    assert!(targets.len() > 40 && targets.iter().all(|target| target["datasource"]["uid"] == "${datasource}"));
    for target in targets {
        let shown = target["expr"].as_str().unwrap();
        let expression = shown.replace("$__rate_interval", "15s").replace("\"$job\"", "\".*\"");
        let expression = expression.replace("\"$instance\"", "\".*\"").replace("\"$sink\"", "\".*\"");
        let encoded: String = form_urlencoded::byte_serialize(expression.as_bytes()).collect();
        eventually(PATIENCE, shown, async || {
            post(&bridge, ["{".to_owned(), format!("{{\"n\":{}}}", fastrand::u64(..))]).await;
            let answer = query(&format!("query?query={encoded}")).await;
            assert_eq!(answer.status, 200, "{shown}: {}", answer.text());
            !answer.json()["data"]["result"].as_array().unwrap().is_empty()
        })
        .await;
    }
    let groups = query("rules").await.json();
    let rules = groups["data"]["groups"][0]["rules"].as_array().unwrap().clone();
    assert_eq!(rules.len(), self::rules().len());
    assert!(rules.iter().all(|rule| rule["health"] != "err"), "{rules:?}");
}
