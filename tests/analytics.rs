//! The tables, views and reports of `deploy/analytics` count what was sent, on every engine.

use crate::support::kafka;
use crate::support::process::Process;
use std::env;
use std::fs;
use std::io::{Write as _, stderr};
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

const TESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/analytics/tests");
/// A loaded machine with two processors needs a quarter of this.
const TIME: Duration = Duration::from_secs(300);

/// Runs a script of `deploy/analytics/tests` to its end, and returns its output. `None` where its libraries cannot be had.
async fn python(script: &str, arguments: &[&str]) -> Option<String> {
    let libraries = env::var("CDRELAY_TEST_ANALYTICS")
        .expect("CDRELAY_TEST_ANALYTICS names no libraries for Python: run tests/run, which fetches them");
    if libraries.is_empty() {
        let told = format!(
            "\n*** NOT TESTED: deploy/analytics by {script}. tests/run says at its start why its libraries cannot be had here.\n"
        );
        // Past the harness, which shows the output of failed tests only.
        stderr().write_all(told.as_bytes()).unwrap();
        return None;
    }
    let directory = TempDir::new().unwrap();
    let output = directory.path().join("output");
    let mut python = Command::new("python3");
    python.env("PYTHONPATH", libraries).env("PYTHONDONTWRITEBYTECODE", "1").env("PYTHONUTF8", "1");
    python.env("TMPDIR", directory.path()).arg(format!("{TESTS}/{script}")).args(arguments);
    let status = Process::spawn(&mut python, &output, &output).wait(TIME).await;
    let told = fs::read_to_string(&output).unwrap();
    assert!(status.success(), "{script}: {status}\n{told}");
    Some(told)
}

#[tokio::test]
async fn duckdb_clickhouse_and_a_count_of_the_input_agree() {
    let kafka = kafka::shared();
    let arguments = ["--binary", env!("CARGO_BIN_EXE_cdrelay"), "--kafka", &kafka, "--calls", "500"];
    let Some(told) = python("end_to_end.py", &arguments).await else { return };
    for engine in ["DuckDB", "ClickHouse", "dbt"] {
        assert!(told.contains(&format!("{engine} agrees")), "{engine}: {told}");
    }
}
