//! Several routes lead into one bridge; what came by which is known at the sinks, whatever happens on the way.

use crate::command_line::finished;
use crate::support::bridge::command;
use crate::support::{Bridge, PATIENCE, eventually, free_port};
use http_body_util::Full;
use hyper::Request;
use hyper::body::Bytes;
use serde_json::Value;
use std::fs;

const ROUTES: &str = "[admin]\nlisten = '127.0.0.1:0'\n[ingress]\nlisten = '127.0.0.1:0'\npath = '/webhook/cdr'\nlabels = { region = 'main' }\n\
    [ingress.routes.eu]\npath = '/eu'\nmethods = ['POST']\nlabels = { region = 'europe', tier = 'gold' }\nsource = '/eu/{ingress}/{appid|none}'\n\
    [ingress.routes.in]\npath = '/in'\nmethods = ['GET', 'PUT']\n";
const SINK: &str = "[sinks.out]\ntype = 'stdout'\ntopic = 'cdr.{ingress}.{labels.region|none}'\nkey = '{labels.tier}/{conversation_uuid}'\nsource = '/sink'\n";

async fn send(bridge: &Bridge, method: &str, path: &str, body: &str) -> u16 {
    let request = Request::builder().method(method).uri(format!("http://{}{path}", bridge.ingress()));
    bridge.send(request.body(Full::new(Bytes::copy_from_slice(body.as_bytes()))).unwrap()).await.status
}

fn body(number: usize) -> String {
    // What the payload says of these is of no consequence.
    format!(
        r#"{{"n":{number},"conversation_uuid":"c{number}","ingress":"forged","labels":{{"region":"f"}},"labels.region":"f","labels.tier":"f"}}"#
    )
}

/// Topic, key and source of everything published, by the number in the event.
fn published(bridge: &Bridge) -> Vec<(String, [String; 3])> {
    let lines = bridge.stdout_lines();
    let mut published: Vec<_> = lines
        .iter()
        .map(|line| {
            let line: Value = serde_json::from_str(line).unwrap();
            let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            (text(&line["event"]["n"]), [text(&line["topic"]), text(&line["key"]), text(&line["headers"]["ce_source"])])
        })
        .collect();
    published.sort();
    published
}

fn row(number: usize, topic: &str, key: &str, source: &str) -> (String, [String; 3]) {
    (number.to_string(), [topic, key, source].map(String::from))
}

#[tokio::test]
async fn routes_have_their_own_methods_labels_and_sources() {
    let bridge = Bridge::start(&format!("{ROUTES}{SINK}")).await;
    assert_eq!(send(&bridge, "POST", "/webhook/cdr", &body(0)).await, 200);
    assert_eq!(send(&bridge, "POST", "/eu", &body(1)).await, 200);
    assert_eq!(send(&bridge, "PUT", "/in", &body(2)).await, 200);
    assert_eq!(send(&bridge, "GET", "/in?n=3&conversation_uuid=c3&ingress=forged", "").await, 200);
    for (method, path, status) in [
        ("GET", "/eu?n=9", 405),
        ("POST", "/in", 405),
        ("HEAD", "/eu", 405),
        ("HEAD", "/webhook/cdr", 200),
        ("POST", "/us", 404),
    ] {
        assert_eq!(send(&bridge, method, path, "").await, status, "{method} {path}");
    }
    let expected = [
        row(0, "cdr.default.main", "/c0", "/sink"),
        row(1, "cdr.eu.europe", "gold/c1", "/eu/eu/none"),
        row(2, "cdr.in.none", "/c2", "/sink"),
        row(3, "cdr.in.none", "/c3", "/sink"),
    ];
    eventually(PATIENCE, "all are delivered", async || published(&bridge).len() == expected.len()).await;
    assert_eq!(published(&bridge), expected);
}

#[tokio::test]
async fn the_route_survives_the_spool_replays_and_dead_letters() {
    let retain = "[spool]\nretain = { age = '1h' }\n[ingress.decode]\nmax_fields = 6\n";
    let stuck = format!("[sinks.out]\ntype = 'kafka'\nbrokers = '127.0.0.1:{}'\n", free_port());
    let mut bridge = Bridge::start(&format!("{ROUTES}{retain}{stuck}")).await;
    assert_eq!(send(&bridge, "POST", "/webhook/cdr", &body(0)).await, 200);
    assert_eq!(send(&bridge, "POST", "/eu", &body(1)).await, 200);
    assert_eq!(send(&bridge, "POST", "/eu", r#"{ n: 2 }"#).await, 400);
    let wide = r#"{"n":3,"conversation_uuid":"c3","a":1,"b":2,"c":3,"d":4,"e":5}"#;
    assert_eq!(send(&bridge, "POST", "/eu", wide).await, 400);
    eventually(PATIENCE, "they are kept", async || {
        bridge.metric("cdrelay_ingress_rejected_kept_total").await == Some(2.0)
    })
    .await;
    bridge.kill();

    // Another process, another destination, and a route less: its name stays.
    let config = |routes: &str, sink: &str| {
        fs::write(bridge.directory().join("cdrelay.toml"), format!("{routes}{}{sink}", retain.replace("= 6", "= 7")))
            .unwrap();
    };
    config(ROUTES, SINK);
    let cdrelay = |arguments: &[&str]| {
        finished(command().current_dir(bridge.directory()).args(arguments).args(["--config", "cdrelay.toml"]))
    };
    let exported = cdrelay(&["spool", "export"]).success();
    let names = exported.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["ingress"].clone());
    assert_eq!(names.collect::<Vec<_>>(), ["default", "eu"]);
    let letters = cdrelay(&["dead-letters", "show", "--rejected"]).success();
    assert!(letters.lines().all(|line| serde_json::from_str::<Value>(line).unwrap()["ingress"] == "eu"), "{letters}");
    // Who may not send may not be replayed either.
    let narrow = ROUTES.replace("methods = ['POST']", "methods = ['POST']\nauth = [{ type = 'appid', appids = [1] }]");
    config(&narrow, SINK);
    let refused = cdrelay(&["dead-letters", "replay", "--rejected"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("the route `eu` does not take"), "{refused:?}");
    config(ROUTES, SINK);
    // No bridge runs: straight into the spool.
    let replayed = cdrelay(&["dead-letters", "replay", "--rejected"]);
    assert_eq!(replayed.code, Some(1), "{replayed:?}");
    let (zero, one, three) = (
        row(0, "cdr.default.main", "/c0", "/sink"),
        row(1, "cdr.eu.europe", "gold/c1", "/eu/eu/none"),
        row(3, "cdr.eu.europe", "gold/c3", "/eu/eu/none"),
    );
    let mut expected = vec![zero, one, three];
    bridge.start_again().await;
    eventually(PATIENCE, "all are delivered", async || published(&bridge).len() == 3).await;
    assert_eq!(published(&bridge), expected);

    // Through the running bridge.
    let cdrelay = |arguments: &[&str]| {
        finished(command().current_dir(bridge.directory()).args(arguments).args(["--config", "cdrelay.toml"]))
    };
    cdrelay(&["replay", "--sink", "out", "--conversation", "c1"]).success();
    let corrected = bridge.directory().join("corrected");
    fs::write(&corrected, r#"{"n":2,"conversation_uuid":"c2"}"#).unwrap();
    cdrelay(&["dead-letters", "replay", "--rejected", "--id", "0", "--with", "corrected"]).success();
    expected.insert(2, expected[1].clone());
    expected.insert(3, row(2, "cdr.eu.europe", "gold/c2", "/eu/eu/none"));
    eventually(PATIENCE, "all are delivered", async || published(&bridge).len() == expected.len()).await;
    assert_eq!(published(&bridge), expected);
    bridge.terminate();
    assert!(bridge.wait(PATIENCE).await.success());
}

#[tokio::test]
async fn a_dead_letter_is_replayed_as_of_its_route_and_one_that_is_gone_has_no_labels() {
    let refusing = "[sinks.out]\ntype = 'stdout'\ntopic = '{nothing}'\n";
    let mut bridge = Bridge::start(&format!("{ROUTES}{refusing}")).await;
    assert_eq!(send(&bridge, "POST", "/eu", &body(1)).await, 200);
    eventually(PATIENCE, "a dead letter", async || {
        bridge.metric("cdrelay_sink_dead_lettered_total{sink=\"out\"}").await == Some(1.0)
    })
    .await;
    bridge.terminate();
    assert!(bridge.wait(PATIENCE).await.success());
    let routes = ROUTES.split("[ingress.routes.eu]").next().unwrap();
    let sink = SINK.replace("{labels.tier}", "{labels.region}");
    fs::write(bridge.directory().join("cdrelay.toml"), format!("{routes}{sink}")).unwrap();
    bridge.start_again().await;
    let arguments = ["dead-letters", "replay", "--config", "cdrelay.toml"];
    finished(command().current_dir(bridge.directory()).args(arguments)).success();
    let expected = [row(1, "cdr.eu.none", "/c1", "/sink")];
    eventually(PATIENCE, "it is delivered", async || published(&bridge).len() == expected.len()).await;
    assert_eq!(published(&bridge), expected);
}
