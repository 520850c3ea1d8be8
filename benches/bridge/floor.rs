//! What cannot be saved: reading a request, a shared sync, a produce, each without everything else.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;

/// Serves for ever on a loopback port, which it prints: reads each body and answers.
pub fn bare_hyper() -> ! {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("{}", listener.local_addr().unwrap());
        std::io::stdout().flush().unwrap();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)));
        }
    })
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    Ok(Response::new(Full::from(if body.is_empty() { "empty" } else { "ok" })))
}

/// A loop of group commits: `waiting` records of `bytes` in one write and one `fdatasync`, into a preallocated file. Returns
/// records per second, and how long each commit took in microseconds, ascending.
pub fn commits(directory: &Path, waiting: usize, bytes: usize, measure: Duration) -> (f64, Vec<u32>) {
    const SIZE: u64 = 16 << 20;
    let path = directory.join("commits");
    let file = File::create(&path).unwrap();
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, SIZE).unwrap();
    file.sync_all().unwrap();
    let batch = vec![b'x'; waiting * bytes];
    let begun = Instant::now();
    let (mut position, mut records, mut latencies) = (0, 0, Vec::new());
    while begun.elapsed() < measure {
        let commit = Instant::now();
        if position + batch.len() as u64 > SIZE {
            position = 0;
        }
        file.write_all_at(&batch, position).unwrap();
        file.sync_data().unwrap();
        position += batch.len() as u64;
        records += waiting;
        latencies.push(commit.elapsed().as_micros() as u32);
    }
    latencies.sort_unstable();
    std::fs::remove_file(path).unwrap();
    (records as f64 / begun.elapsed().as_secs_f64(), latencies)
}
