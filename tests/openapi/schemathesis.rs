//! [schemathesis](https://schemathesis.io) reads the description and makes requests of it, sound ones and others: what comes back has to be
//! as described, and what is described has to be taken.

use crate::command_line::cdrelay;
use crate::support::bridge::Bridge;
use crate::support::process::Process;
use crate::support::{PATIENCE, eventually};
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
    [sinks.out]\ntype = 'stdout'\n";
/// Of methods on paths, those of the admin port included.
const OPERATIONS: usize = 3 + 1 + 2 + 1 + 1 + 5 * 2;
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

#[tokio::test]
async fn the_bridge_does_what_is_described() {
    let bridge = Bridge::start(CONFIG).await;
    let Some(mut python) = python(bridge.directory()) else { return };
    let url = format!("http://{}/openapi.json", bridge.admin_address());
    python.args(["-m", "schemathesis.cli", "--config-file", &format!("{SUPPORT}/schemathesis.toml"), "run", &url]);
    python.args(["--seed", SEED, "--max-examples", EXAMPLES, "--workers", "1", "--continue-on-failure"]);
    python.args(["--generation-database", "none", "--suppress-health-check", "all", "--request-timeout", "60"]);
    python.args(["--no-color", "--report", "json", "--report-json-path", "report.json"]);
    let output = bridge.directory().join("schemathesis");
    let mut run = Process::spawn(&mut python, &output, &output);
    let status = run.wait(TIME).await;
    let told = fs::read_to_string(&output).unwrap();
    println!("{told}");
    assert!(status.success(), "{status}, as printed above");

    assert!(
        told.contains(&format!("Selected: {OPERATIONS}/{OPERATIONS}\n  Tested: {OPERATIONS}\n")),
        "not all was tested"
    );
    // What was answered with a 200 is there, whatever it is.
    let accepted = bridge.metric("cdrelay_ingress_events_accepted_total").await.unwrap() as usize;
    assert!(accepted > 100, "only {accepted} events were taken");
    eventually(PATIENCE, "every event is published", async || bridge.stdout_lines().len() == accepted).await;
    let log = bridge.stderr();
    assert!(!log.contains("\"ERROR\""), "{log}");
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
