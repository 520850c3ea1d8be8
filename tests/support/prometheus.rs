//! Prometheus and its promtool, which `tests/run` finds or installs.

use std::env;
use std::io::{Write as _, stderr};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// A program of Prometheus. `None` where it cannot be had; then the test says that it did not test.
pub fn program(name: &str) -> Option<Command> {
    // Without the variable those of the system are wanted.
    let Some(directory) = env::var_os("CDRELAY_TEST_PROMETHEUS") else { return Some(Command::new(name)) };
    if directory.is_empty() {
        let told = "\n*** NOT TESTED: metrics, alerts and dashboard with Prometheus. tests/run says at its start why it cannot be had here.\n";
        // Past the harness, which shows the output of failed tests only.
        stderr().write_all(told.as_bytes()).unwrap();
        return None;
    }
    Some(Command::new(PathBuf::from(directory).join(name)))
}

/// Runs promtool with this input. Panics with what it says unless it finds nothing wrong.
pub fn promtool(arguments: &[&str], input: &str) {
    let Some(mut promtool) = program("promtool") else { return };
    promtool.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = promtool.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let told = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "promtool {arguments:?}: {}\n{input}", String::from_utf8_lossy(&told));
}
