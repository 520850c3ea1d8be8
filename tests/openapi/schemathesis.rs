//! [schemathesis](https://schemathesis.io) reads the description and makes requests of it, sound ones and others: what comes back has to be
//! as described, and what is described has to be taken.

use crate::command_line::cdrelay;
use crate::support::bridge::Bridge;
use crate::support::process::Process;
use crate::support::tls::issue;
use crate::support::{ANY_PORTS, PATIENCE, STDOUT, eventually, free_port};
use std::env;
use std::fs;
use std::io::{Write as _, stderr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

const SUPPORT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/schemathesis");
/// Of methods on paths, those of the admin port included.
const OPERATIONS: usize = 3 + 5 * 2;
/// The names of sinks in the description.
const SINKS: &str = "^[a-z0-9_-]{1,64}(,[a-z0-9_-]{1,64})*$";
const SEED: &str = "1";
/// Made up for each operation, beside those that the description leads to by itself.
const EXAMPLES: &str = "10";
/// Slower machines than any that is known need a third of this.
const TIME: Duration = Duration::from_secs(300);

/// Python that knows schemathesis and `jsonschema_rs`, in `directory`. `None` where there can be none.
pub fn python(directory: &Path) -> Option<Command> {
    let libraries = env::var("CDRELAY_TEST_SCHEMATHESIS")
        .expect("CDRELAY_TEST_SCHEMATHESIS names no schemathesis: run tests/run, which fetches it");
    if libraries.is_empty() {
        let told = "\n*** NOT TESTED: the description of the API and the schema of the configuration by schemathesis. tests/run says at its start why it cannot be had here.\n";
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

/// Serves the document for as long as the test runs.
async fn serve(document: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/openapi.json", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n";
        let answer = format!("{head}content-length: {}\r\n\r\n{document}", document.len());
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let _ = client.read(&mut [0; 4096]).await;
            let _ = client.write_all(answer.as_bytes()).await;
        }
    });
    url
}

/// Has the bridge tested, and returns what there is to read about it. `None` where that cannot be.
async fn test(bridge: &Bridge, scheme: &str, more: &[&str]) -> Option<String> {
    let mut python = python(bridge.directory())?;
    // The document names default addresses.
    let (ingress, admin) = (bridge.ingress(), bridge.admin_address());
    let document = bridge.admin("/openapi.json").await.text().to_owned();
    let document = document.replace("http://{host}:{port}", &format!("{scheme}://{ingress}"));
    let document = document.replace("\"url\": \"/\"", &format!("\"url\": \"http://{admin}/\""));
    // Any other name is answered with 404.
    let document = document.replace(SINKS, "^out$");
    let url = serve(document).await;
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
    let bridge = Bridge::start(&format!("{ANY_PORTS}{STDOUT}")).await;
    let Some(told) = test(&bridge, "http", &[]).await else { return };
    assert!(
        told.contains(&format!("Selected: {OPERATIONS}/{OPERATIONS}\n  Tested: {OPERATIONS}\n")),
        "not all was tested"
    );
    // What was answered with a 200 is there, whatever it is.
    let accepted = bridge.metric("cdrelay_ingress_events_accepted_total").await.unwrap() as usize;
    assert!(accepted > 100, "only {accepted} events were taken");
    eventually(PATIENCE, "every event is published", async || bridge.stdout_lines().len() == accepted).await;
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
    let Some(told) = test(&bridge, "https", &path).await else { return };
    assert!(told.contains("Tested: 3\n"), "not all was tested");
    let late = bridge.metric("cdrelay_ingress_requests_total{status=\"202\"}").await.unwrap();
    assert!(late > 20.0, "only {late} requests were stored and not delivered");
}

#[test]
fn the_description_is_sound_openapi() {
    let directory = TempDir::new().unwrap();
    let Some(mut python) = python(directory.path()) else { return };
    let printed = cdrelay(&["openapi"]).success();
    fs::write(directory.path().join("openapi.json"), printed).unwrap();
    let check = "import json\n\
        from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR as official\n\
        official.validate(json.load(open('openapi.json')))";
    let output = python.args(["-c", check]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
