//! stdout as a sink: what a reader of lines sees when processes are killed, and a stdout that nobody has.

use crate::support::bridge::command;
use crate::support::{ANY_PORTS, Bridge, PATIENCE, STDOUT, eventually};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, open};
use serde_json::Value;
use std::fs::{File, remove_file};
use std::io::Read;
use std::process::Command;
use std::time::Duration;
use tokio::time::timeout;

const JSON: &str = "application/json";

/// The numbers of the events in whole lines, and how many lines hold no event.
fn read_lines(text: &str) -> (Vec<u64>, usize) {
    let (mut numbers, mut torn) = (Vec::new(), 0);
    for line in text.split_inclusive('\n').filter(|line| *line != "\n") {
        match serde_json::from_str::<Value>(line) {
            Ok(line) => numbers.push(line["event"]["n"].as_u64().unwrap()),
            Err(_) => torn += 1,
        }
    }
    (numbers, torn)
}

#[tokio::test]
async fn a_reader_of_lines_sees_every_event_though_a_kill_tore_a_line() {
    let mut bridge = Bridge::start(&format!("{ANY_PORTS}{STDOUT}")).await;
    bridge.terminate();
    bridge.wait(PATIENCE).await;
    let path = bridge.directory().join("stdout");
    remove_file(&path).unwrap();
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let mut pipe = File::from(open(&path, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()).unwrap());
    bridge.start_again().await;

    // The reader is behind: the pipe fills up within a line.
    let filler = "x".repeat(10_000);
    for n in 0..30 {
        let body = format!("{{\"conversation_uuid\":\"{n}\",\"n\":{n},\"x\":\"{filler}\"}}");
        assert_eq!(bridge.post(body, JSON).await.status, 200);
    }
    let (mut text, mut piece) = (String::new(), vec![0; 1 << 16]);
    let mut read = |text: &mut String| {
        while let Ok(count) = pipe.read(&mut piece) {
            text.push_str(str::from_utf8(&piece[..count]).unwrap());
        }
    };
    bridge.kill();
    read(&mut text);
    assert!(!text.ends_with('\n'), "the kill came in the middle of a line");
    bridge.start_again().await;
    eventually(PATIENCE, "every event stands on a line of its own", async || {
        read(&mut text);
        let (mut numbers, _) = read_lines(&text);
        numbers.sort_unstable();
        numbers.dedup();
        numbers == (0..30).collect::<Vec<_>>()
    })
    .await;
    let (_, torn) = read_lines(&text);
    assert_eq!(torn, 1, "the torn line stands alone");
}

#[tokio::test]
async fn a_closed_stdout_is_refused_at_start() {
    let bridge = Bridge::start(&format!("{ANY_PORTS}{STDOUT}")).await;
    std::fs::write(bridge.directory().join("other.toml"), format!("{ANY_PORTS}{STDOUT}[spool]\npath = 'other'\n"))
        .unwrap();
    let run = async |redirection: &str| {
        let program = command().get_program().to_owned();
        let mut shell = Command::new("sh");
        let script = format!("exec timeout 2 \"$0\" run --config other.toml {redirection}");
        shell.current_dir(bridge.directory()).arg("-c").arg(script).arg(program);
        let output = tokio::task::spawn_blocking(move || shell.output().unwrap());
        let output = timeout(Duration::from_secs(30), output).await.unwrap().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, stderr) = run(">&-").await;
    assert!(code == Some(78) && stderr.contains("stdout is closed"), "{code:?}: {stderr}");
    let (code, stderr) = run(">/dev/null").await;
    assert_eq!(code, Some(124), "it ran until it was stopped: {stderr}");
}

#[tokio::test]
async fn a_full_disk_and_a_vanished_reader_behind_stdout_are_named_and_lose_nothing() {
    // /dev/full answers every write with ENOSPC.
    let mut bridge = Bridge::start(&format!("{ANY_PORTS}{STDOUT}")).await;
    bridge.terminate();
    bridge.wait(PATIENCE).await;
    let path = bridge.directory().join("stdout");
    for (behind, cause) in [("/dev/full", "No space left on device"), ("", "Broken pipe")] {
        let _ = remove_file(&path);
        let mut reader = None;
        if behind.is_empty() {
            mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
            reader = Some(File::from(
                open(&path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()).unwrap(),
            ));
        } else {
            std::os::unix::fs::symlink(behind, &path).unwrap();
        }
        bridge.start_again().await;
        drop(reader);
        assert_eq!(bridge.post(format!("{{\"cause\":\"{cause}\",\"n\":1}}"), JSON).await.status, 200);
        eventually(Duration::from_secs(5), "readiness names it", async || {
            let readiness = bridge.admin("/readyz").await;
            readiness.status == 503 && readiness.text().contains(cause)
        })
        .await;
        bridge.kill();
        remove_file(&path).unwrap();
        bridge.start_again().await;
        eventually(PATIENCE, "it is delivered", async || bridge.stdout_lines().len() == 1).await;
        assert!(bridge.stdout_lines()[0].contains(cause), "{:?}", bridge.stdout_lines());
        bridge.terminate();
        bridge.wait(PATIENCE).await;
    }
}
