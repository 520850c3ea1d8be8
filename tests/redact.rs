//! Personal data goes no further than the configuration lets it.

use crate::support::bridge::Bridge;
use crate::support::{ANY_PORTS, PATIENCE, eventually, kafka};
use std::fs;
use tempfile::TempDir;

/// The numbers of the run begin so, and nothing else does.
const PATTERN: &str = "4470091";

/// Every form in which TeleCMI's webhooks carry a number.
fn events(number: usize) -> [String; 4] {
    let [a, b, c] = [0, 1, 2].map(|part| format!("{PATTERN}{:05}", 3 * number + part));
    [
        format!(
            r#"{{"type":"cdr","appid":7,"team":"Sales","conversation_uuid":"c-{number}","from":{a},"to":"+{b}","virtual_number":"{c}"}}"#
        ),
        format!(
            r#"{{"type":"event","app_id":7,"conversation_uuid":"c-{number}","from":"{a}","callerid":"+{b}","custom":"{{\"phone\": \"{c}\"}}"}}"#
        ),
        format!(
            r#"{{"type":"cdr","conversation_uuid":"c-{number}","to":[{a}],"extra_params":{{"lead":{{"phone":{b}}},"n":1}},"custom":"{{ 'phone': {c} }}"}}"#
        ),
        format!(
            r#"{{"type":"cdr","conversation_uuid":"c-{number}","from":"00{a}","extra_params":"{{\"lead\":{{\"phone\":\"+{b}\"}}}}","to":""}}"#
        ),
    ]
}

#[tokio::test]
async fn no_number_of_a_run_is_in_its_output_logs_metrics_or_readiness() {
    let topic = kafka::unique_topic("redact");
    kafka::create_topic(&kafka::shared(), &topic, 1).await;
    let directory = TempDir::new().unwrap();
    let key = directory.path().join("key");
    fs::write(&key, "a key of at least sixteen bytes").unwrap();
    let redact = format!(
        "drop = ['callerid', 'extra_params.lead.phone']\nmask = ['to', 'custom.phone']\nhash = ['from', 'virtual_number']\nkey_file = {key:?}\n"
    );
    let config = format!(
        "{ANY_PORTS}[sinks.out]\ntype = 'stdout'\nkey = '{{from}}/{{to}}'\ntopic = 'cdr.{{to}}'\nformat = 'cloudevents'\n[sinks.out.redact]\n{redact}\
         [sinks.kafka]\ntype = 'kafka'\nbrokers = '{}'\ntopic = '{topic}'\nkey = '{{from}}'\nsource = '/{{custom.phone}}'\n[sinks.kafka.redact]\n{redact}\
         [sinks.missing]\ntype = 'kafka'\nbrokers = '{}'\ntopic = 'missing.{{to}}'\nrequired = false\n[sinks.missing.redact]\n{redact}\
         [sinks.undecided]\ntype = 'stdout'\nwhen = \"event.from.startsWith('1')\"\n[log]\nlevel = 'debug'\n",
        kafka::shared(),
        kafka::shared()
    );
    let bridge = Bridge::start(&config).await;
    for number in 0..25 {
        for event in events(number) {
            assert_eq!(bridge.post(event, "application/json").await.status, 200);
        }
    }
    assert_eq!(bridge.post(format!("{{ from: {PATTERN}00000 }}"), "application/json").await.status, 400);
    eventually(PATIENCE, "stdout has all", async || bridge.stdout_lines().len() == 100).await;
    let published = async || bridge.metric("cdrelay_sink_published_total{sink=\"kafka\"}").await;
    eventually(PATIENCE, "Kafka has all", async || published().await == Some(100.0)).await;
    eventually(PATIENCE, "places are named", async || {
        bridge.metric("cdrelay_sink_places_unavailable{sink=\"missing\"}").await > Some(0.0)
    })
    .await;
    let stdout = bridge.stdout_lines().join("\n");
    assert!(stdout.contains("+44******") && stdout.contains("\"c-24\""), "{stdout}");
    let records = kafka::consume(&kafka::shared(), &topic, 100, PATIENCE).await;
    assert_eq!(records.len(), 100);
    let parts = records.into_iter().flat_map(|record| {
        let headers = record.headers.into_iter().map(|(_, value)| value);
        record.key.into_iter().chain(headers).chain([record.payload])
    });
    let kafka = parts.map(|part| String::from_utf8(part).unwrap() + "\n").collect::<String>();
    let texts = [
        ("stdout", stdout),
        ("Kafka", kafka),
        ("log", bridge.stderr()),
        ("metrics", bridge.admin("/metrics").await.text().to_owned()),
        ("readiness", bridge.admin("/readyz").await.text().to_owned()),
    ];
    for (place, text) in texts {
        assert!(!text.is_empty(), "{place}");
        assert!(!text.contains(PATTERN), "{place}: {}", &text[text.find(PATTERN).unwrap().saturating_sub(200)..]);
    }
}
