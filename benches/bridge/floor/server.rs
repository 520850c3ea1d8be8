//! A server that does nothing but HTTP, and where it is asked to, commits.

use super::commit::GroupCommit;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::io::Write;
use std::path::Path;
use tokio::net::TcpListener;

/// Serves for ever on a loopback port, which it prints.
pub fn serve(http2: bool, commits: Option<&Path>) -> ! {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let commits = commits.map(GroupCommit::start);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("{}", listener.local_addr().unwrap());
        std::io::stdout().flush().unwrap();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let commits = commits.clone();
            let service = service_fn(move |request| answer(request, commits.clone()));
            let stream = TokioIo::new(stream);
            match http2 {
                true => drop(tokio::spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(stream, service))),
                false => drop(tokio::spawn(http1::Builder::new().serve_connection(stream, service))),
            }
        }
    })
}

async fn answer(request: Request<Incoming>, commits: Option<GroupCommit>) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    if let Some(commits) = commits {
        commits.append(&body).await.unwrap();
    }
    Ok(Response::new(Full::from(if body.is_empty() { "empty" } else { "ok" })))
}
