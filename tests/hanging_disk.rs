//! A disk whose `fdatasync` does not return is a failure that senders and probes are told of.
//!
//! A library that is loaded in front of libc holds up every sync for as long as a file exists.

use crate::support::{ANY_PORTS, Bridge, PATIENCE, STDOUT, eventually};
use std::fs::{remove_file, write};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const JSON: &str = "application/json";
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

static void hang(void) {
    const char *path = getenv("SYNC_HANGS_WHILE");
    while (path && access(path, F_OK) == 0) usleep(10000);
}

int fdatasync(int file) { hang(); return syscall(SYS_fdatasync, file); }
int fsync(int file) { hang(); return syscall(SYS_fsync, file); }
"#;

fn compile(directory: &Path) -> String {
    let (source, library) = (directory.join("hang.c"), directory.join("hang.so"));
    write(&source, SHIM).unwrap();
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status().unwrap();
    assert!(compiled.success());
    library.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn webhooks_get_503_and_probes_tell_while_a_sync_hangs() {
    let directory = TempDir::new().unwrap();
    let (library, hangs) = (compile(directory.path()), directory.path().join("hangs"));
    let config = format!("{ANY_PORTS}[spool]\nappend_timeout = '1s'\n{STDOUT}");
    let environment = [("LD_PRELOAD", library.as_str()), ("SYNC_HANGS_WHILE", hangs.to_str().unwrap())];
    let bridge = Bridge::start_with(&config, &environment).await;
    assert_eq!(bridge.post(r#"{"n":1}"#, JSON).await.status, 200);

    write(&hangs, "").unwrap();
    for body in [r#"{"n":2}"#, r#"{"n":3}"#] {
        let begin = Instant::now();
        let answer = bridge.post(body, JSON).await;
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert!(answer.headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap() > 0);
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    }
    eventually(PATIENCE, "readiness tells", async || {
        let ready = bridge.admin("/readyz/ingress").await;
        ready.status == 503 && ready.text().contains("disk")
    })
    .await;
    assert_eq!(bridge.admin("/livez").await.status, 200);

    remove_file(&hangs).unwrap();
    eventually(PATIENCE, "readiness returns", async || bridge.admin("/readyz/ingress").await.status == 200).await;
    for body in [r#"{"n":2}"#, r#"{"n":3}"#, r#"{"n":4}"#] {
        assert_eq!(bridge.post(body, JSON).await.status, 200);
    }
    eventually(PATIENCE, "each is delivered", async || bridge.stdout_lines().len() >= 4).await;
    let lines = bridge.stdout_lines();
    assert_eq!(lines.len(), 4, "{lines:?}");
    for n in 1..=4 {
        let event = format!(r#""event":{{"n":{n}}}"#);
        assert_eq!(lines.iter().filter(|line| line.contains(&event)).count(), 1, "{lines:?}");
    }
}
