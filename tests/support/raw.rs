//! HTTP by hand, for what no client library would send.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::PATIENCE;
use super::bridge::{Answer, Bridge};

/// A connection to the ingress.
pub struct Raw<S = TcpStream> {
    pub stream: S,
    unread: Vec<u8>,
    /// How reading has failed.
    broken: Option<io::Error>,
}

impl Raw {
    pub async fn connect(bridge: &Bridge) -> Self {
        Self::over(TcpStream::connect(bridge.ingress()).await.unwrap())
    }

    /// One from an address of this machine, such as `127.0.0.2`.
    pub async fn connect_from(bridge: &Bridge, address: &str) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(address.parse().unwrap(), 0)).unwrap();
        Self::over(socket.connect(bridge.ingress().parse().unwrap()).await.unwrap())
    }

    /// The head of a request to the webhook, with further header lines.
    pub fn head(method: &str, lines: &str) -> String {
        format!("{method} /webhook/cdr HTTP/1.1\r\nhost: test\r\n{lines}\r\n")
    }

    /// A whole request to the webhook.
    pub fn post(body: &str) -> String {
        Self::head("POST", &format!("content-length: {}\r\n", body.len())) + body
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Raw<S> {
    /// A connection that is there already.
    pub fn over(stream: S) -> Self {
        Self { stream, unread: Vec::new(), broken: None }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// Sends without minding that the other side may have closed.
    pub async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).await.is_ok() && self.stream.flush().await.is_ok()
    }

    /// Posts to the webhook. Returns the status, or what went wrong.
    pub async fn exchange(&mut self, body: &str) -> Result<u16, String> {
        let sent = self.stream.write_all(Raw::post(body).as_bytes()).await;
        let sent = sent.and(self.stream.flush().await);
        match self.try_answer(PATIENCE).await {
            Some(answer) => Ok(answer.status),
            // What the other side said last tells more than that it is gone.
            None => Err(self.broken.take().or(sent.err()).map_or("it ended".into(), |error| error.to_string())),
        }
    }

    /// The next answer; panics when there is none in time.
    pub async fn answer(&mut self) -> Answer {
        self.try_answer(PATIENCE).await.expect("an answer")
    }

    /// The next answer; `None` when the connection ends, breaks or stays silent instead.
    pub async fn try_answer(&mut self, within: Duration) -> Option<Answer> {
        timeout(within, self.read_answer()).await.ok().flatten()
    }

    async fn read_answer(&mut self) -> Option<Answer> {
        let end = loop {
            if let Some(end) = self.unread.windows(4).position(|window| window == b"\r\n\r\n") {
                break end;
            }
            self.fill().await?;
        };
        let head = String::from_utf8(self.unread.drain(..end + 4).collect()).unwrap();
        let mut lines = head.lines();
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let mut headers = HeaderMap::new();
        for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
            headers.append(HeaderName::try_from(name).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        let length = headers.get("content-length").map_or(0, |value| value.to_str().unwrap().parse().unwrap());
        while self.unread.len() < length {
            self.fill().await?;
        }
        let body = self.unread.drain(..length).collect::<Vec<_>>().into();
        Some(Answer { status, headers, body })
    }

    /// Whether the other side ends the connection, cleanly or not, without sending anything more.
    pub async fn ends(&mut self, within: Duration) -> bool {
        self.unread.is_empty() && timeout(within, self.fill()).await == Ok(None)
    }

    /// Whether these bytes come before the other side ends the connection; panics when neither happens in time.
    pub async fn receives(&mut self, bytes: &[u8], within: Duration) -> bool {
        let coming = async {
            while !self.unread.windows(bytes.len()).any(|window| window == bytes) {
                self.fill().await?;
            }
            Some(())
        };
        timeout(within, coming).await.expect("the bytes, or the end").is_some()
    }

    async fn fill(&mut self) -> Option<()> {
        let mut bytes = [0; 4096];
        let read = self.stream.read(&mut bytes).await.map_err(|error| self.broken = Some(error));
        let count = read.ok().filter(|count| *count > 0)?;
        self.unread.extend_from_slice(&bytes[..count]);
        Some(())
    }
}
