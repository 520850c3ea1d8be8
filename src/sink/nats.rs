//! Publishes to NATS: into a JetStream stream with an acknowledgement for each message, or to core NATS as best effort.
//!
//! All publishes share one connection and are pipelined: each waits only for its own acknowledgement. What keeps the promise
//! of at least once, in order, without copies that a consumer would see:
//!
//! - `Ok` follows the stream's acknowledgement (PubAck). A lost connection fails everything in flight at once, a silent server
//!   fails it after `ack_timeout`; the dispatcher sends it again with the same `Nats-Msg-Id`.
//! - A publish given up here may still be stored: it can sit in the library's queue, in a socket or in the server. If it
//!   arrives before its retry, the retry is answered as a duplicate, which is a success. If it arrives after (then out of an
//!   old connection, since one connection keeps its order), the server drops it, because the dispatcher moves on in
//!   that conversation only after the retry was stored. Both hold within the stream's `duplicate_window`.
//! - Core NATS stores nothing. There, each message is followed by an empty one to ourselves, on the same connection: once it is
//!   back, the server has processed the message. A server that fails right then, or a subject without subscribers, loses it.

mod auth;
mod config;
mod connection;
mod headers;
mod link;
mod puback;
mod replies;
mod stream;

pub use config::{Config, Mode, Servers, TlsConfig};
pub use connection::Connection;
pub use stream::{Discard, Storage, StreamConfig};

use crate::sink::{Failure, Message, SetupError, Sink};
use async_nats::client::PublishErrorKind;
use async_nats::{Client, HeaderMap, StatusCode};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use headers::Headers;
use link::Link;
use std::sync::Arc;
use std::time::{Duration, Instant};
use stream::StreamCheck;
use tokio::task::AbortHandle;

/// The longest subject that is sent. A server drops the whole connection at a protocol line over 4096 bytes
/// (`max_control_line`), so one over-long subject would stop every other message. The rest of the line holds verb, inbox and
/// sizes on the way in, and the acknowledgement address on the way to a consumer, whose client may enforce the same limit.
const MAX_SUBJECT: usize = 4096 - 512;

/// A [`Sink`] over one connection, which is made and kept in the background.
pub struct NatsSink {
    link: Arc<Link>,
    /// `None` in core mode.
    stream: Option<Arc<StreamCheck>>,
    headers: Headers,
    ack_timeout: Duration,
    max_payload: Option<usize>,
    /// The task that looks after the stream.
    keepers: Vec<AbortHandle>,
}

impl NatsSink {
    /// Starts connecting and returns at once; needs a tokio runtime, not a server. `name` is the sink's in the configuration;
    /// `subject` is its subject template with a wildcard for each templated token.
    pub fn new(name: &str, config: &Config, subject: Option<&str>) -> Result<Self, SetupError> {
        if config.ack_timeout.is_zero() {
            return Err(SetupError("`ack_timeout` is zero, so no message could ever be acknowledged".to_owned()));
        }
        let stream = match (config.mode, &config.stream) {
            (Mode::Core, Some(_)) => {
                return Err(SetupError("`stream` has no meaning with mode = \"core\"; remove one of them".to_owned()));
            }
            (Mode::Core, None) => None,
            (Mode::Jetstream, stream) => {
                Some(Arc::new(StreamCheck::new(name, config.domain.as_deref(), stream.as_ref(), subject)?))
            }
        };
        let link = Link::open(name, config)?;
        let mut keepers = Vec::new();
        if let Some(stream) = stream.as_ref().filter(|stream| stream.creates()) {
            let keep = stream.clone().keep(Arc::downgrade(&link), link.stream_wanted.clone());
            keepers.push(tokio::spawn(keep).abort_handle());
        }
        Ok(Self {
            headers: Headers::new(stream.as_ref().and_then(|stream| stream.name())),
            link,
            stream,
            ack_timeout: config.ack_timeout,
            max_payload: config.max_payload.map(|size| usize::try_from(size.as_u64()).unwrap_or(usize::MAX)),
            keepers,
        })
    }

    async fn send(&self, message: &Message) -> Result<(), Failure> {
        let headers = self.check(message)?;
        let client = self.link.client()?;
        let start = Instant::now();
        let confirmed = async {
            match &self.stream {
                Some(stream) => self.store(client, stream, message, headers).await,
                None => self.send_and_echo(client, message, headers, start).await,
            }
        };
        tokio::time::timeout(self.ack_timeout, confirmed).await.unwrap_or_else(|_| {
            let complaint = self.link.complaint_about(&format!("\"{}\"", message.topic()), start);
            Err(Failure::unavailable(complaint.unwrap_or_else(|| {
                format!("nats did not acknowledge a message to `{}` within {:?}", message.topic(), self.ack_timeout)
            })))
        })
    }

    /// The headers of a message that the server may be sent.
    fn check(&self, message: &Message) -> Result<HeaderMap, Failure> {
        check_subject(message.topic())?;
        let headers = self.headers.of(message)?;
        if let Some(limit) = self.max_payload {
            let bytes = message.payload().len() + headers::size(&headers);
            if bytes > limit {
                return Err(Failure::rejected(format!("message of {bytes} bytes exceeds max_payload of {limit}")));
            }
        }
        Ok(headers)
    }

    /// JetStream: resolves with the stream's acknowledgement.
    async fn store(
        &self,
        client: &Client,
        stream: &StreamCheck,
        message: &Message,
        headers: HeaderMap,
    ) -> Result<(), Failure> {
        let ticket = self.link.replies.ticket();
        let sent = client.publish_with_reply_and_headers(
            message.topic().to_owned(),
            ticket.inbox(),
            headers,
            Bytes::from_owner(message.payload().clone()),
        );
        sent.await.map_err(send_failure)?;
        let reply = ticket.reply().await.map_err(|_| connection_lost())?;
        if reply.status == Some(StatusCode::NO_RESPONDERS) {
            self.link.stream_wanted.notify_one();
            return Err(Failure::unavailable(stream.describe_missing(message.topic())));
        }
        puback::acknowledged(&reply.payload)
    }

    /// Core: resolves once the server has processed the message, as far as a server without acknowledgements tells.
    async fn send_and_echo(
        &self,
        client: &Client,
        message: &Message,
        headers: HeaderMap,
        start: Instant,
    ) -> Result<(), Failure> {
        client
            .publish_with_headers(message.topic().to_owned(), headers, Bytes::from_owner(message.payload().clone()))
            .await
            .map_err(send_failure)?;
        let ticket = self.link.replies.ticket();
        client.publish(ticket.inbox(), Bytes::new()).await.map_err(send_failure)?;
        ticket.reply().await.map_err(|_| connection_lost())?;
        // A denied publish is reported before our echo, but through another task of the library; let that one run first.
        tokio::task::yield_now().await;
        match self.link.denied_since(start) {
            true => Err(Failure::unavailable(
                "nats denies publishes to this user (Permissions Violation for Publish); allow the subject",
            )),
            false => Ok(()),
        }
    }
}

impl Sink for NatsSink {
    fn publish<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(self.send(message))
    }

    /// Connected, and in JetStream mode a stream takes the subject.
    fn probe(&self) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(async {
            let client = self.link.client()?;
            match &self.stream {
                Some(stream) => stream.probe(&self.link, client).await,
                None => Ok(()),
            }
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.link.close())
    }
}

impl Drop for NatsSink {
    fn drop(&mut self) {
        self.keepers.iter().for_each(AbortHandle::abort);
    }
}

/// A subject that the server would answer by dropping the connection, or never store, is this message's own fault.
fn check_subject(subject: &str) -> Result<(), Failure> {
    if subject.len() > MAX_SUBJECT {
        return Err(Failure::rejected(format!(
            "subject of {} bytes exceeds the {MAX_SUBJECT} that fit a NATS protocol line",
            subject.len()
        )));
    }
    let illegal = |token: &[u8]| {
        matches!(token, b"" | b"*" | b">") || token.iter().any(|byte| byte.is_ascii_whitespace() || *byte == 0)
    };
    match subject.as_bytes().split(|byte| *byte == b'.').any(illegal) {
        true => Err(Failure::rejected(format!("`{}` is not a subject to publish to", subject.escape_debug()))),
        false => Ok(()),
    }
}

/// The library refuses on its own what is over the server's `max_payload`; the server would drop the connection.
fn send_failure(error: async_nats::PublishError) -> Failure {
    match error.kind() {
        PublishErrorKind::MaxPayloadExceeded => Failure::rejected(error),
        PublishErrorKind::InvalidSubject => Failure::rejected(error),
        PublishErrorKind::Send => Failure::unavailable("the connection to nats is closed"),
    }
}

fn connection_lost() -> Failure {
    Failure::unavailable("the connection to nats was lost before the acknowledgement")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventId;
    use figment::Figment;
    use figment::providers::{Format, Toml};

    fn config(toml: &str) -> Config {
        Figment::from(Toml::string(toml)).extract().unwrap()
    }

    #[tokio::test]
    async fn settings_that_cannot_work_are_refused_without_a_server() {
        let error = |toml: &str| NatsSink::new("n", &config(toml), Some("a.*")).err().unwrap().to_string();
        assert!(error("mode = 'core'\nstream = { name = 'A' }").contains("`stream` has no meaning"));
        assert!(error("ack_timeout = '0s'").contains("`ack_timeout`"));
        assert!(error("inbox_prefix = 'a.>'").contains("`inbox_prefix`"));
    }

    #[tokio::test]
    async fn without_a_server_a_publish_fails_at_once_and_says_why() {
        let sink = NatsSink::new("n", &config("servers = '127.0.0.1:1'"), Some("a.*")).unwrap();
        let message = message("a.b");
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let Err(Failure::Unavailable { cause, .. }) = sink.publish(&message).await else {
                panic!("published to nowhere")
            };
            assert!(cause.starts_with("not connected to nats at 127.0.0.1:1: "), "{cause}");
            if cause.contains("refused") {
                break;
            }
            assert!(Instant::now() < deadline, "{cause}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(sink.probe().await.is_err());
        sink.close().await;
    }

    #[test]
    fn a_subject_that_would_harm_the_connection_is_the_messages_fault() {
        assert_eq!(check_subject(&"a".repeat(MAX_SUBJECT)), Ok(()));
        for subject in ["", "a..b", "a.*.b", "a.>", "a b", "a\r\nPUB x 0", "a\tb", "a.", &"a".repeat(MAX_SUBJECT + 1)] {
            assert!(matches!(check_subject(subject), Err(Failure::Rejected { .. })), "{subject}");
        }
    }

    fn message(subject: &str) -> Message {
        Message::of(EventId([1; 16]), *b"{}", subject, "", "")
    }
}
