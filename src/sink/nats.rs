//! Publishes to NATS: into a JetStream stream with an acknowledgement for each message, or to core NATS as best effort.
//!
//! All publishes share one connection and are pipelined: each waits only for its own acknowledgement. Messages arrive at least
//! once, in order, and without copies that a consumer would see, because:
//!
//! - `Ok` follows the stream's acknowledgement (PubAck). A lost connection fails everything in flight at once, a silent server
//!   fails it after `ack_timeout`; the dispatcher sends it again with the same `Nats-Msg-Id`.
//! - A publish given up here may still be stored: it can sit in the library's queue, in a socket or in the server. If it
//!   arrives before its retry, the retry is answered as a duplicate, which is a success. If it arrives after (then out of an
//!   old connection, since one connection keeps its order), the server drops it, because the dispatcher moves on in
//!   that conversation only after the retry was stored. Both hold within the stream's `duplicate_window`. After that the stream is
//!   asked for its last message of the subject before a retry ([`unconfirmed`]).
//! - Core NATS stores nothing. There, each message is followed by an empty one to ourselves, on the same connection: once it is
//!   back, the server has processed the message. A server that fails right then, or a subject without subscribers, loses it.
//!
//! A subject that no stream takes, or that this user may not publish to, is the fault of that subject alone. The server answers
//! the first at once with "no responders". It reports the second outside of the inbox, and [`connection`] matches the report with
//! the publish.

mod auth;
mod config;
mod connection;
pub(crate) mod options;
mod permissions;
mod replies;
mod stream;
mod stream_config;
mod unconfirmed;

pub use config::{Config, Mode, TlsConfig};
pub use stream_config::{Discard, Storage, StreamConfig};

use crate::route::{Dialect, Route};
use crate::sink::{Failure, Message, SetupError, Sink, SinkConfig};
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::response::Response;
use async_nats::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use connection::{Confirm, Connection};
use futures_util::future::BoxFuture;
use hyper::body::Bytes;
use replies::Answer;
use std::sync::Arc;
use std::time::{Duration, Instant};
use stream::Streams;
use tokio::task::JoinSet;
use unconfirmed::Unconfirmed;

/// The longest subject that is sent. A server drops the whole connection at a protocol line over 4096 bytes
/// (`max_control_line`), so one over-long subject would stop every other message. The rest of the line holds verb, inbox and
/// sizes on the way in, and the acknowledgement address on the way to a consumer, whose client may enforce the same limit.
const MAX_SUBJECT_BYTES: usize = 4096 - 512;
/// As much of a subject as names a place.
const MAX_PLACE_CHARS: usize = 200;

/// A [`Sink`] over one connection, which is made and kept in the background.
pub struct NatsSink {
    connection: Arc<Connection>,
    /// `None` in core mode.
    streams: Option<Streams>,
    unconfirmed: Unconfirmed,
    ack_timeout: Duration,
    max_payload_bytes: Option<usize>,
    /// The task of the connection, aborted when the sink is dropped.
    _tasks: JoinSet<()>,
}

impl NatsSink {
    /// Starts connecting and returns at once; needs a tokio runtime, not a server. `name` is the sink's in the configuration;
    /// `subject` is its subject template with a wildcard for each templated token.
    pub fn new(name: &str, config: &Config, subject: &str) -> Result<Self, SetupError> {
        if config.ack_timeout.is_zero() {
            return Err(SetupError("`ack_timeout` is zero, so no message could ever be acknowledged".to_owned()));
        }
        let streams = match (config.mode, &config.stream) {
            (Mode::Core, Some(_)) => {
                return Err(SetupError("`stream` has no meaning with mode = \"core\"; remove one of them".to_owned()));
            }
            (Mode::Core, None) => None,
            (Mode::Jetstream, stream) => Some(Streams::new(name, config.domain.as_deref(), stream.as_ref(), subject)?),
        };
        let mut tasks = JoinSet::new();
        Ok(Self {
            connection: Connection::open(name, config, &mut tasks)?,
            streams,
            unconfirmed: Unconfirmed::default(),
            ack_timeout: config.ack_timeout,
            max_payload_bytes: config.max_payload.map(|size| usize::try_from(size.as_u64()).unwrap_or(usize::MAX)),
            _tasks: tasks,
        })
    }

    async fn send(&self, message: &Message) -> Result<(), Failure> {
        let subject = message.topic();
        check_subject(subject)?;
        let headers = self.headers(message)?;
        let payload = Bytes::from_owner(message.payload().clone());
        if let Some(streams) = &self.streams {
            return self.store(streams, message, headers, payload).await;
        }
        let _permit = self.connection.permit().await;
        match self.connection.publish(subject, headers, payload, Confirm::Echo, self.ack_timeout).await? {
            Answer::Reply(_) => Ok(()),
            Answer::Denied(text) => Err(denied(subject, &text)),
            Answer::Lost => Err(self.connection.lost()),
            Answer::TimedOut => Err(Failure::unavailable(self.describe_timeout(subject))),
        }
    }

    /// Publishes to JetStream and reads the stream's answer.
    async fn store(
        &self,
        streams: &Streams,
        message: &Message,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Result<(), Failure> {
        let (connection, subject, id) = (&self.connection, message.topic(), message.dedup_id());
        streams.admit(connection, subject).await?;
        let permit = connection.permit().await;
        if let Some(age) = self.unconfirmed.age(&id)
            && streams.holds(connection, subject, &id, age + self.ack_timeout).await
        {
            self.unconfirmed.remove(&id);
            message.mark_duplicate();
            return Ok(());
        }
        let begun = Instant::now();
        let answer = connection.publish(subject, headers, payload, Confirm::Reply, self.ack_timeout).await?;
        drop(permit);
        let (error, since) = match answer {
            Answer::Denied(text) => return Err(denied(subject, &text)),
            Answer::Lost => {
                self.unconfirmed.insert(&id, begun);
                return Err(connection.lost());
            }
            Answer::TimedOut => {
                self.unconfirmed.insert(&id, begun);
                (Some(self.describe_timeout(subject)), self.ack_timeout)
            }
            Answer::Reply(reply) if reply.status == Some(StatusCode::NO_RESPONDERS) => (None, Duration::MAX),
            Answer::Reply(reply) => match acknowledged(subject, &reply.payload) {
                Err(Refused::Stream(error)) => (Some(error), Duration::MAX),
                Err(Refused::Message(failure)) => return Err(failure),
                Ok(ack) => {
                    self.unconfirmed.remove(&id);
                    if ack.duplicate {
                        message.mark_duplicate();
                    }
                    return Ok(());
                }
            },
        };
        Err(streams.explain(connection, subject, error, since).await)
    }

    fn describe_timeout(&self, subject: &str) -> String {
        format!("nats did not acknowledge a message to `{subject}` within {:?}", self.ack_timeout)
    }

    /// The headers of a message that the server accepts.
    fn headers(&self, message: &Message) -> Result<HeaderMap, Failure> {
        let mut headers = HeaderMap::new();
        for (name, text) in message.headers() {
            let value = text.parse::<HeaderValue>();
            let value = value.map_err(|error| Failure::rejected(format!("header `{name}`: {error}")))?;
            headers.insert(HeaderName::from_static(name), value);
        }
        headers.insert(header::NATS_MESSAGE_ID, &*message.dedup_id());
        if let Some(stream) = self.streams.as_ref().and_then(Streams::name) {
            headers.insert(header::NATS_EXPECTED_STREAM, stream);
        }
        let bytes = message.payload().len() + wire_bytes(&headers);
        match self.max_payload_bytes {
            Some(limit) if bytes > limit => {
                Err(Failure::rejected(format!("message of {bytes} bytes exceeds max_payload of {limit}")))
            }
            _ => Ok(headers),
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
            self.connection.client()?;
            match &self.streams {
                Some(streams) => streams.probe(&self.connection).await,
                None => Ok(()),
            }
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.connection.close())
    }
}

/// Why a stream did not store a message.
#[derive(Debug, PartialEq)]
enum Refused {
    /// The message's or its subject's fault.
    Message(Failure),
    /// The stream's, with its error.
    Stream(String),
}

/// Reads a PubAck; a duplicate is as good as stored. Of its errors, those that neither a retry nor a change of the server
/// can mend are the message's own.
fn acknowledged(subject: &str, payload: &[u8]) -> Result<PublishAck, Refused> {
    let error = match serde_json::from_slice::<Response<PublishAck>>(payload) {
        Ok(Response::Ok(ack)) => return Ok(ack),
        Ok(Response::Err { error }) => error,
        Err(_) => {
            let cause = "something other than JetStream answers on this subject; no stream confirmed the message";
            return Err(Refused::Stream(cause.to_owned()));
        }
    };
    let place = || Refused::Message(Failure::Place { place: place(subject), cause: error.to_string(), expires: true });
    Err(match error.error_code() {
        ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM | ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM => {
            Refused::Message(Failure::rejected(format!("the stream refuses the message: {error}")))
        }
        // Another stream than the configured one takes the subject.
        ErrorCode::STREAM_NOT_MATCH => place(),
        // `discard_new_per_subject`
        ErrorCode::STREAM_STORE_FAILED if error.to_string().contains("per subject") => place(),
        _ => Refused::Stream(format!("the stream does not take messages: {error}")),
    })
}

fn denied(subject: &str, text: &str) -> Failure {
    Failure::Place { place: place(subject), cause: format!("nats refused: {text}"), expires: true }
}

/// The name of a subject as a place, in bounded length.
fn place(subject: &str) -> String {
    match subject.char_indices().nth(MAX_PLACE_CHARS) {
        Some((end, _)) => format!("subject {}…", subject.get(..end).unwrap_or_default()),
        None => format!("subject {subject}"),
    }
}

/// A subject that the server would answer by dropping the connection, or never store, is this message's own fault.
fn check_subject(subject: &str) -> Result<(), Failure> {
    if subject.len() > MAX_SUBJECT_BYTES {
        return Err(Failure::rejected(format!(
            "subject of {} bytes exceeds the {MAX_SUBJECT_BYTES} that fit a NATS protocol line",
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

/// Bytes of the headers on the wire, as the server counts them: `NATS/1.0␍␊`, a line for each header, an empty line.
fn wire_bytes(headers: &HeaderMap) -> usize {
    let lines = headers.iter().flat_map(|(name, values)| values.iter().map(move |value| (name, value)));
    12 + lines.map(|(name, value)| AsRef::<str>::as_ref(name).len() + value.as_str().len() + 4).sum::<usize>()
}

impl SinkConfig for Config {
    const TYPE: &'static str = "nats";
    const DIALECT: Dialect = Dialect::Nats;

    fn build(&self, name: &str, route: &Route) -> Result<Arc<dyn Sink>, SetupError> {
        Ok(Arc::new(NatsSink::new(name, self, &route.subject_wildcard())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventId;
    use figment::Figment;
    use figment::providers::{Format, Toml};
    use std::time::Instant;

    fn config(toml: &str) -> Config {
        Figment::from(Toml::string(toml)).extract().unwrap()
    }

    fn sink(toml: &str) -> NatsSink {
        NatsSink::new("n", &config(toml), "a.*").unwrap()
    }

    fn message() -> Message {
        Message::of(EventId([0xab; 16]), *b"{}", "a.b", "", "")
    }

    #[tokio::test]
    async fn settings_that_cannot_work_are_refused_without_a_server() {
        let error = |toml: &str| NatsSink::new("n", &config(toml), "a.*").err().unwrap().to_string();
        assert!(error("mode = 'core'\nstream = { name = 'A' }").contains("`stream` has no meaning"));
        assert!(error("ack_timeout = '0s'").contains("`ack_timeout`"));
        assert!(error("inbox_prefix = 'a.>'").contains("`inbox_prefix`"));
    }

    #[tokio::test]
    async fn without_a_server_a_publish_fails_at_once_and_says_why() {
        let sink = sink("servers = '127.0.0.1:1'");
        let message = message();
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
        assert_eq!(check_subject(&"a".repeat(MAX_SUBJECT_BYTES)), Ok(()));
        for subject in ["", "a..b", "a.*.b", "a.>", "a b", "a\r\nPUB x 0", "a\tb", "a.", &"a".repeat(3585)] {
            assert!(matches!(check_subject(subject), Err(Failure::Rejected { .. })), "{subject}");
        }
    }

    #[tokio::test]
    async fn a_message_has_its_own_headers_its_id_and_its_stream() {
        let message = message().with_header("ce-id", "1").with_header("ce-subject", "").with_header("x", "அ b");
        let lines = |toml: &str| {
            let headers = sink(toml).headers(&message).unwrap();
            let lines =
                headers.iter().flat_map(|(name, values)| values.iter().map(move |value| format!("{name}: {value}")));
            let mut lines: Vec<_> = lines.collect();
            lines.sort();
            assert_eq!(wire_bytes(&headers), 12 + lines.iter().map(|line| line.len() + 2).sum::<usize>());
            lines
        };
        let id = "Nats-Msg-Id: ".to_owned() + &"ab".repeat(16);
        assert_eq!(lines(""), [&id, "ce-id: 1", "ce-subject: ", "x: அ b"]);
        let with_stream = lines("stream = { name = 'CALLS' }");
        assert_eq!(with_stream, ["Nats-Expected-Stream: CALLS", &id, "ce-id: 1", "ce-subject: ", "x: அ b"]);
    }

    #[tokio::test]
    async fn no_header_can_break_out() {
        let sink = sink("");
        for value in ["a\r\nNats-Msg-Id: 1", "a\nb", "\r", "\n", &format!("{}\n", "a".repeat(100))] {
            let refused = sink.headers(&message().with_header("ce-x", value));
            assert!(matches!(refused, Err(Failure::Rejected { .. })), "{value}");
        }
    }

    #[test]
    fn only_errors_that_no_operator_can_mend_reject_a_message() {
        let ack = |text: &str| acknowledged("a.b", text.as_bytes());
        assert!(!ack(r#"{"stream":"A","seq":7}"#).unwrap().duplicate);
        assert!(ack(r#"{"stream":"A","seq":7,"duplicate":true,"domain":"hub"}"#).unwrap().duplicate);
        let error = |code: u64, text: &str| {
            format!(r#"{{"error":{{"code":400,"err_code":{code},"description":"{text}"}},"stream":"A","seq":0}}"#)
        };
        for code in [10054, 10097] {
            assert!(matches!(ack(&error(code, "x")), Err(Refused::Message(Failure::Rejected { .. }))), "{code}");
        }
        for code in [0, 10023, 10047, 10077, 10109, 99999] {
            assert!(matches!(ack(&error(code, "x")), Err(Refused::Stream(_))), "{code}");
        }
        for (code, text) in [(10060, "x"), (10077, "maximum messages per subject exceeded")] {
            assert!(matches!(ack(&error(code, text)), Err(Refused::Message(Failure::Place { .. }))), "{code}");
        }
        for text in ["+OK", "{}", ""] {
            assert!(matches!(ack(text), Err(Refused::Stream(_))), "{text}");
        }
    }

    #[test]
    fn the_name_of_a_place_is_bounded() {
        assert_eq!(place("a.b"), "subject a.b");
        assert_eq!(place(&"அ".repeat(1000)), format!("subject {}…", "அ".repeat(200)));
    }
}
