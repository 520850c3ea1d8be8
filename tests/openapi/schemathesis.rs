//! [schemathesis](https://schemathesis.io) reads the description and makes requests of it, sound ones and others: what comes back has to be
//! as described, and what is described has to be taken.

use crate::command_line::cdrelay;
use crate::support::bridge::Bridge;
use crate::support::process::Process;
use crate::support::tls::issue;
use crate::support::{ANY_PORTS, PATIENCE, eventually, free_port};
use std::env;
use std::fs;
use std::io::{Write as _, stderr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

const SUPPORT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/schemathesis");
const CONFIG: &str = "[admin]\nlisten = '127.0.0.1:0'\n[ingress]\nlisten = '127.0.0.1:0'\npath = '/webhook/cdr'\n\
    [ingress.routes.bearer]\npath = '/bearer'\nmethods = ['PUT']\nauth = [{ type = 'bearer', secrets = ['right-bearer'] }]\n\
    [ingress.routes.query]\npath = '/query'\nmethods = ['GET', 'HEAD']\nauth = [{ type = 'query', parameter = 'token', secrets = ['right-query'] }]\n\
    [ingress.routes.both]\npath = '/both'\nmethods = ['POST']\n\
    auth = [{ type = 'basic', username = 'telecmi', secrets = ['right-basic'] }, { type = 'header', header = 'x-key', secrets = ['right-header'] }]\n\
    [ingress.routes.url]\npath = '/url/{secret}'\nmethods = ['POST']\nauth = [{ type = 'path', secrets = ['right-path'] }]\n\
    [ingress.routes.github]\npath = '/github'\nmethods = ['POST']\nauth = [{ type = 'github', secrets = ['right-signature'] }]\n\
    [ingress.routes.slack]\npath = '/slack'\nmethods = ['POST']\nauth = [{ type = 'hmac', header = 'x-slack-signature', prefix = 'v0=', \
    timestamp_header = 'x-slack-request-timestamp', signed = 'v0:{timestamp}:{body}', secrets = ['right-signature'] }]\n\
    [sinks.out]\ntype = 'stdout'\ntopic = '{ingress}'\n";
/// Of methods on paths, those of the admin port included.
const OPERATIONS: usize = 3 + 1 + 2 + 1 + 1 + 1 + 1 + 5 * 2;
const SEED: &str = "1";
/// Made up for each operation, beside those that the description leads to by itself.
const EXAMPLES: &str = "10";
/// Slower machines than any that is known need a third of this.
const TIME: Duration = Duration::from_secs(300);

/// Python that knows schemathesis, in `directory`. `None` where there can be none.
fn python(directory: &Path) -> Option<Command> {
    let libraries = env::var("CDRELAY_TEST_SCHEMATHESIS")
        .expect("CDRELAY_TEST_SCHEMATHESIS names no schemathesis: run tests/run, which fetches it");
    if libraries.is_empty() {
        let told = "\n*** NOT TESTED: the description of the API by schemathesis. tests/run says at its start why it cannot be had here.\n";
        // Past the harness, which shows the output of failed tests only.
        stderr().write_all(told.as_bytes()).unwrap();
        return None;
    }
    let mut python = Command::new("python3");
    python
        .env("PYTHONPATH", format!("{libraries}:{SUPPORT}"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("PYTHONUTF8", "1");
    python.env("SCHEMATHESIS_HOOKS", "hooks").current_dir(directory);
    Some(python)
}

/// Has the bridge tested, and returns what there is to read about it. `None` where that cannot be.
async fn test(bridge: &Bridge, more: &[&str]) -> Option<String> {
    let mut python = python(bridge.directory())?;
    let url = format!("http://{}/openapi.json", bridge.admin_address());
    python.args(["-m", "schemathesis.cli", "--config-file", &format!("{SUPPORT}/schemathesis.toml"), "run", &url]);
    python.args(["--seed", SEED, "--max-examples", EXAMPLES, "--workers", "1", "--continue-on-failure"]);
    python.args(["--generation-database", "none", "--suppress-health-check", "all", "--request-timeout", "60"]);
    python.args(["--no-color", "--report", "json", "--report-json-path", "report.json"]).args(more);
    let output = bridge.directory().join("schemathesis");
    let mut run = Process::spawn(&mut python, &output, &output);
    let status = run.wait(TIME).await;
    let told = fs::read_to_string(&output).unwrap();
    println!("{told}");
    assert!(status.success(), "{status}, as printed above");
    let log = bridge.stderr();
    assert!(!log.contains("\"ERROR\""), "{log}");
    Some(told)
}

#[tokio::test]
async fn the_bridge_does_what_is_described() {
    let bridge = Bridge::start(CONFIG).await;
    let Some(told) = test(&bridge, &[]).await else { return };
    assert!(
        told.contains(&format!("Selected: {OPERATIONS}/{OPERATIONS}\n  Tested: {OPERATIONS}\n")),
        "not all was tested"
    );
    // What was answered with a 200 is there, whatever it is.
    let accepted = bridge.metric("cdrelay_ingress_events_accepted_total").await.unwrap() as usize;
    assert!(accepted > 100, "only {accepted} events were taken");
    eventually(PATIENCE, "every event is published", async || bridge.stdout_lines().len() == accepted).await;
    let lines = bridge.stdout_lines();
    for route in ["default", "bearer", "query", "both", "url", "github", "slack"] {
        let topic = format!("{{\"topic\":\"{route}\",");
        let count = lines.iter().filter(|line| line.starts_with(&topic)).count();
        println!("{count} events by the route {route}");
        assert!(count > 0, "no request by the route {route} was taken for a right one");
    }
}

/// Encrypted, and with a sink that takes nothing.
#[tokio::test]
async fn what_is_not_delivered_yet_is_answered_as_is_described_too() {
    let files = TempDir::new().unwrap();
    let tls = issue(files.path());
    let bridge = Bridge::start(&format!(
        "{ANY_PORTS}ack = 'delivered'\ndelivery_timeout = '1ms'\n[ingress.tls]\ncert_file = {:?}\nkey_file = {:?}\n\
         [sinks.dead]\ntype = 'nats'\nservers = '127.0.0.1:{}'\n",
        tls.certificate,
        tls.key,
        free_port()
    ))
    .await;
    let path = ["--include-path", "/webhook/cdr", "--tls-verify", tls.authority.to_str().unwrap()];
    let Some(told) = test(&bridge, &path).await else { return };
    assert!(told.contains("Tested: 3\n"), "not all was tested");
    let late = bridge.metric("cdrelay_ingress_requests_total{status=\"202\"}").await.unwrap();
    assert!(late > 20.0, "only {late} requests were stored and not delivered");
}

/// All ways to show who one is, so many more than the bridge above has.
#[test]
fn the_description_is_sound_openapi() {
    let directory = TempDir::new().unwrap();
    let Some(mut python) = python(directory.path()) else { return };
    let printed =
        cdrelay(&["openapi", "--config", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/openapi/every.toml")]).success();
    fs::write(directory.path().join("openapi.json"), printed).unwrap();
    let check = "import json\n\
        from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR as official\n\
        official.validate(json.load(open('openapi.json')))";
    let output = python.args(["-c", check]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
