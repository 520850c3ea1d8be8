//! Logging never holds up the bridge.

use crate::support::bridge::{Client, client, command};
use crate::support::{ANY_PORTS, Bridge, PATIENCE, STDOUT, free_port, until};
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Bytes;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::process::{Child, Stdio};
use tempfile::TempDir;

/// Killed when dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_stderr_that_nobody_reads_stops_neither_webhooks_nor_probes_nor_sigterm() {
    let directory = TempDir::new().unwrap();
    let (ingress, admin) = (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
    let mut command = command();
    // h2 logs some dozens of lines for each request.
    let level = "log.level=info,h2=trace".to_owned();
    let listen = [format!("ingress.listen={ingress}"), format!("admin.listen={admin}"), level];
    command.current_dir(&directory).arg("run").args(listen.iter().flat_map(|setting| ["--set", setting]));
    let stdout = File::create(directory.path().join("stdout")).unwrap();
    // The read end stays open, and nobody reads it: the pipe holds 64 KiB.
    let mut bridge = Killed(command.stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped()).spawn().unwrap());

    let (http1, http2) = (client(false), client(true));
    let send = async |client: &Client, request: Request<Full<Bytes>>| {
        let answer = tokio::time::timeout(PATIENCE, client.request(request)).await.expect("no answer").ok()?;
        let (head, body) = answer.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Some((head.status.as_u16(), String::from_utf8(body.to_vec()).unwrap()))
    };
    let get = async |path: &str| {
        send(&http1, Request::get(format!("http://{admin}{path}")).body(Full::default()).unwrap()).await
    };
    until(PATIENCE, "the bridge is ready", async || get("/readyz").await.filter(|(status, _)| *status == 200)).await;
    let mut sent = 0;
    until(PATIENCE, "lines are dropped", async || {
        for _ in 0..100 {
            sent += 1;
            let body = format!("{{\"n\":{sent}}}");
            let request = Request::post(format!("http://{ingress}/webhook/cdr")).body(Full::from(body)).unwrap();
            assert_eq!(send(&http2, request).await.unwrap().0, 200);
        }
        let (_, metrics) = get("/metrics").await.unwrap();
        let dropped = metrics.lines().find_map(|line| line.strip_prefix("cdrelay_log_lines_dropped_total "));
        dropped.and_then(|count| count.parse::<f64>().ok()).filter(|count| *count > 0.0)
    })
    .await;
    for path in ["/livez", "/readyz"] {
        assert_eq!(get(path).await.unwrap().0, 200, "{path}");
    }
    kill_process(Pid::from_raw(bridge.0.id().try_into().unwrap()).unwrap(), Signal::TERM).unwrap();
    let status = until(PATIENCE, "the bridge has ended", async || bridge.0.try_wait().unwrap()).await;
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn the_last_lines_are_written_before_the_process_ends() {
    let mut bridge = Bridge::start(&format!("{ANY_PORTS}{STDOUT}[log]\nlevel = 'trace'\n")).await;
    bridge.terminate();
    assert!(bridge.wait(PATIENCE).await.success());
    let log = bridge.stderr();
    assert!(log.lines().any(|line| line.contains(r#""message":"stopped"#)), "{log}");
}
