//! A client, and over which connections its requests go.

use crate::support::tls;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::{LocalSet, spawn_local};

/// Over which connections requests go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// One of each client's own, which is kept.
    Own,
    /// A new one for each request.
    New,
    /// So many that all clients share, by HTTP/2.
    Shared(usize),
}

/// Sends one request after the other.
pub struct Client {
    host: String,
    sender: Sender,
}

enum Sender {
    Own(http1::SendRequest<Full<Bytes>>),
    New,
    Shared(http2::SendRequest<Full<Bytes>>),
}

impl Client {
    /// So many clients of one server, by TLS if there is somebody who speaks it.
    pub async fn connect(
        host: &str,
        clients: usize,
        over: Over,
        tls: Option<&tls::Client>,
        local: &LocalSet,
    ) -> Vec<Self> {
        let mut shared = Vec::new();
        if let Over::Shared(connections) = over {
            for _ in 0..connections {
                let stream = TokioIo::new(open(host).await);
                let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
                local.spawn_local(connection);
                shared.push(sender);
            }
        }
        let mut all = Vec::new();
        for number in 0..clients {
            let sender = match (over, tls) {
                (Over::Own, None) => Sender::Own(keep(open(host).await, local).await),
                (Over::Own, Some(tls)) => {
                    Sender::Own(keep(tls.shake_hands(open(host).await).await.unwrap(), local).await)
                }
                (Over::New, _) => Sender::New,
                (Over::Shared(connections), _) => Sender::Shared(shared[number % connections].clone()),
            };
            all.push(Self { host: host.to_owned(), sender });
        }
        all
    }

    /// Posts a body, with a signature if there is one.
    pub async fn post(&mut self, body: Bytes, signature: Option<String>) -> Response<Incoming> {
        const PATH: &str = "/webhook/cdr";
        let mut request = match self.sender {
            Sender::Own(_) | Sender::New => Request::post(PATH).header(HOST, &self.host),
            Sender::Shared(_) => Request::post(format!("http://{}{PATH}", self.host)),
        };
        request = request.header(CONTENT_TYPE, "application/json");
        if let Some(signature) = signature {
            request = request.header("x-hub-signature-256", signature);
        }
        let mut request = request.body(Full::new(body)).unwrap();
        match &mut self.sender {
            Sender::Own(sender) => {
                sender.ready().await.unwrap();
                sender.send_request(request).await
            }
            Sender::New => {
                request.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                let stream = TokioIo::new(open(&self.host).await);
                let (mut sender, connection) = http1::handshake(stream).await.unwrap();
                spawn_local(connection);
                sender.send_request(request).await
            }
            Sender::Shared(sender) => {
                sender.ready().await.unwrap();
                sender.send_request(request).await
            }
        }
        .unwrap()
    }
}

async fn open(host: &str) -> TcpStream {
    let stream = TcpStream::connect(host).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

async fn keep(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    local: &LocalSet,
) -> http1::SendRequest<Full<Bytes>> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    local.spawn_local(connection);
    sender
}
