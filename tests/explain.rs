//! `cdrelay explain` shows what the bridge would publish, and `cdrelay send` sends what a route takes.

use crate::command_line::{Finished, cdrelay, finished};
use crate::support::bridge::{Bridge, command};
use crate::support::{ANY_PORTS, PATIENCE, STDOUT, eventually};
use serde_json::Value;
use std::fs;
use std::process::Stdio;
use tempfile::TempDir;
use tokio::task::spawn_blocking;

const EVENT: &str = r#"{"type":"cdr","appid":7,"direction":"inbound","status":"missed","team":"Sales.1","request_id":"r-1","from":440000000001}"#;

/// Runs `explain` with this configuration and body.
fn explain(config: &str, body: &str, more: &[&str]) -> Finished {
    let directory = TempDir::new().unwrap();
    fs::write(directory.path().join("cdrelay.toml"), config).unwrap();
    fs::write(directory.path().join("body"), body).unwrap();
    let mut command = command();
    command.current_dir(directory.path()).args(["explain", "--config", "cdrelay.toml", "--file", "body"]).args(more);
    finished(&mut command)
}

/// The value of the first line that begins with this name, within the part behind `after`.
fn value<'a>(text: &'a str, after: &str, name: &str) -> &'a str {
    let (_, part) = text.split_once(after).unwrap_or_else(|| panic!("no {after:?} in {text}"));
    let line = part.lines().map(str::trim).find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name:?} behind {after:?} in {text}")).trim()
}

#[tokio::test]
async fn what_is_explained_is_what_is_published() {
    let sink =
        "[sinks.out]\ntype = 'stdout'\ntopic = 'cdr.{team}'\nkey = '{from}'\n[sinks.out.redact]\nmask = ['from']\n";
    let config = format!("{ANY_PORTS}{sink}");
    let bridge = Bridge::start(&config).await;
    assert_eq!(bridge.post(EVENT, "application/json").await.status, 200);
    eventually(PATIENCE, "it is published", async || !bridge.stdout_lines().is_empty()).await;
    let published: Value = serde_json::from_str(&bridge.stdout_lines()[0]).unwrap();
    let text = explain(&config, EVENT, &[]).success();
    assert_eq!(value(&text, "event 1", "conversation "), "r-1");
    let source = value(&text, "event 1", "conversation from");
    assert!(source.starts_with("request_id, unless an earlier event"), "{source}");
    assert_eq!(value(&text, "event 1", "id"), published["headers"]["ce_id"].as_str().unwrap());
    assert_eq!(value(&text, "sink out: sent", "topic"), "cdr.Sales.1");
    assert_eq!(value(&text, "sink out: sent", "topic"), published["topic"].as_str().unwrap());
    assert_eq!(value(&text, "sink out: sent", "key"), "+44******0001");
    assert_eq!(value(&text, "sink out: sent", "key"), published["key"].as_str().unwrap());
    let payload: Value = serde_json::from_str(value(&text, "sink out: sent", "payload")).unwrap();
    assert_eq!(payload, published["event"]);
    for (name, header) in published["headers"].as_object().unwrap().iter().filter(|(name, _)| *name != "ce_time") {
        assert!(text.contains(&format!("{name}: {}\n", header.as_str().unwrap())), "{name} in {text}");
    }
    assert!(!text.contains("440000000001"), "{text}");
}

#[test]
fn a_sink_that_gets_nothing_says_why() {
    let config = "[sinks.a]\ntype = 'kafka'\nbrokers = 'a:1'\nwhen = \"event.type == 'event'\"\n\
                  [sinks.b]\ntype = 'nats'\nwhen = 'event.gone == 1'\n\
                  [sinks.c]\ntype = 'stdout'\ntopic = '{gone}'\n[sinks.d]\ntype = 'nats'\n";
    let text = explain(config, EVENT, &[]).success();
    assert!(text.contains("sink a: kept back, `when` is false"), "{text}");
    assert!(text.contains("sink b: kept back, ") && text.contains("`when_undecided` is \"skip\""), "{text}");
    assert!(text.contains("sink c: dead letter, a Kafka topic has 1 to 249 characters"), "{text}");
    assert_eq!(value(&text, "sink d: sent", "subject"), "telecmi.cdr.Sales%2E1.r-1");
    let only = explain(config, EVENT, &["--sink", "d"]).success();
    assert!(!only.contains("sink a") && only.contains("sink d"), "{only}");
}

#[test]
fn a_webhook_is_decoded_as_the_bridge_does() {
    let config = format!(
        "[ingress.routes.east]\npath = '/e'\nlabels = {{ region = 'x' }}\n{STDOUT}key = '{{ingress}}/{{labels.region}}/{{query.q}}/{{a}}'\n"
    );
    let form = ["--content-type", "application/x-www-form-urlencoded", "--query", "q=1%262"];
    let text = explain(&config, "a=b&c=d", &form).success();
    assert_eq!(value(&text, "sink out", "key"), "east/x/1&2/b");
    let two = explain(&config, "{\"a\":1}\n{\"a\":\"\\u001b[31m\"}", &[]).success();
    assert_eq!(value(&two, "event 2", "key"), "east/x//\\u{1b}[31m");
    let get = explain(&config, "", &["--method", "GET", "--query", "a=get"]).success();
    assert_eq!(value(&get, "sink out", "key"), "east/x//get");
    let broken = explain(&config, "{ a: 1 }", &[]);
    assert!(broken.code == Some(1) && broken.stderr.contains("line 1, column 3"), "{broken:?}");
    for (more, word) in [(["--route", "west"], "east"), (["--sink", "west"], "out")] {
        let unknown = explain(&config, EVENT, &more);
        assert!(unknown.code == Some(64) && unknown.stderr.contains(word), "{unknown:?}");
    }
}

/// Every kind of authentication, on a route of its own.
const ROUTES: &str = "\
    [ingress.routes.path]\npath = '/p/{secret}/x'\nauth = [{ type = 'path', secrets = ['right-token'] }]\n\
    [ingress.routes.query]\npath = '/query'\nauth = [{ type = 'query', parameter = 'token', secrets = ['right token&'] }]\n\
    [ingress.routes.header]\npath = '/header'\nauth = [{ type = 'header', header = 'x-token', secrets = ['right-token'] }]\n\
    [ingress.routes.bearer]\npath = '/bearer'\nauth = [{ type = 'bearer', secret_files = ['TOKEN'] }]\n\
    [ingress.routes.basic]\npath = '/basic'\nauth = [{ type = 'basic', username = 'u', secrets = ['right-token'] }]\n\
    [ingress.routes.hmac]\npath = '/hmac'\nauth = [{ type = 'hmac', header = 'x-signature', algorithm = 'sha512', encoding = 'base64', prefix = 'v0=', timestamp_header = 'x-time', signed = 'v0:{timestamp}:{body}', secrets = ['right-token'] }]\n\
    [ingress.routes.github]\npath = '/github'\nauth = [{ type = 'github', secrets = ['right-token'] }]\n\
    [ingress.routes.shopify]\npath = '/shopify'\nauth = [{ type = 'shopify', secrets = ['right-token'] }]\n\
    [ingress.routes.standard]\npath = '/standard'\nauth = [{ type = 'standard-webhooks', secrets = ['whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw'] }]\n\
    [ingress.routes.twilio]\npath = '/twilio'\nauth = [{ type = 'twilio', url = 'https://cdr.example.com', secrets = ['right-token'] }]\n\
    [ingress.routes.appid]\npath = '/appid'\nauth = [{ type = 'appid', appids = [77] }, { type = 'query', parameter = 't', secrets = ['right-token'] }, { type = 'cidr', networks = ['127.0.0.0/8'] }]\n";

#[tokio::test]
async fn webhooks_are_sent_with_the_credentials_of_each_route() {
    let directory = TempDir::new().unwrap();
    let token = directory.path().join("token");
    fs::write(&token, "\nright-token\n").unwrap();
    let routes = ROUTES.replace("TOKEN", token.to_str().unwrap());
    let bridge = Bridge::start(&format!("{ANY_PORTS}{routes}{STDOUT}")).await;
    let routes =
        ["path", "query", "header", "bearer", "basic", "hmac", "github", "shopify", "standard", "twilio", "appid"];
    for (number, route) in (1..).zip(routes) {
        let mut command = command();
        command.current_dir(bridge.directory()).args([
            "send",
            "--config",
            "cdrelay.toml",
            "--route",
            route,
            "--rate",
            "500",
        ]);
        command.args(["--set", &format!("ingress.listen={}", bridge.ingress())]);
        let sent = spawn_blocking(move || finished(&mut command)).await.unwrap();
        assert_eq!(sent.code, Some(0), "{route}: {sent:?}");
        assert!(
            sent.stdout.contains("8 of 8 webhooks acknowledged") && sent.stdout.contains("8 events stored"),
            "{sent:?}"
        );
        assert!(sent.stdout.contains("latency in ms: p50 ") && sent.stderr.is_empty(), "{sent:?}");
        eventually(PATIENCE, "they are published", async || bridge.stdout_lines().len() == 8 * number).await;
    }
}

#[tokio::test]
async fn webhooks_that_are_refused_are_told_by_reason() {
    let config = format!("{ANY_PORTS}auth = [{{ type = 'bearer', secrets = ['right-token'] }}]\n{STDOUT}");
    let bridge = Bridge::start(&config).await;
    let send = async |more: &[&str]| {
        let mut command = command();
        let url = format!("--url={}", bridge.ingress_url());
        command
            .current_dir(bridge.directory())
            .args(["send", "--config", "cdrelay.toml", "--rate", "1000", &url])
            .args(more);
        spawn_blocking(move || finished(&mut command)).await.unwrap()
    };
    let wrong = ["--set", "ingress.auth=[{type=\"bearer\",secrets=[\"wrong-token\"]}]", "--count", "3"];
    let refused = send(&wrong).await;
    assert!(refused.code == Some(1) && refused.stdout.contains("3 refused: 401"), "{refused:?}");
    let body = bridge.directory().join("bodies.ndjson");
    fs::write(&body, "{\"a\":1}\n{\"a\":2}\n").unwrap();
    let file = send(&["--file", body.to_str().unwrap(), "--count", "5"]).await;
    assert!(file.code == Some(0) && file.stdout.contains("2 events stored, 3 duplicates"), "{file:?}");
    let missed = send(&["--kind", "cdr-missed", "--count", "20"]).await;
    assert!(missed.code == Some(0) && missed.stdout.contains("20 events stored"), "{missed:?}");
    eventually(PATIENCE, "they are published", async || bridge.stdout_lines().len() == 22).await;
    let nowhere = cdrelay(&["send", "--url", "http://127.0.0.1:1/", "--count", "1"]);
    assert!(nowhere.code == Some(1) && nowhere.stdout.contains("1 refused: "), "{nowhere:?}");
}

#[test]
fn completions_and_the_man_page_name_every_command() {
    for text in [cdrelay(&["completions", "bash"]).success(), cdrelay(&["man"]).success().replace("\\-", "-")] {
        for command in ["check", "explain", "send", "dead-letters", "replay", "soak"] {
            assert!(text.contains(command), "{command} in {text}");
        }
    }
}

/// A stdin that is closed is an empty webhook.
#[test]
fn a_body_may_come_from_stdin() {
    let mut command = command();
    let empty = finished(command.arg("explain").stdin(Stdio::null()));
    assert!(empty.code == Some(1) && empty.stderr.contains("the body is empty"), "{empty:?}");
}
