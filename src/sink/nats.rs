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
//! - What is handed over many at a time waits in the same way, a quarter longer at the most. Whatever its reply says but that it is
//!   stored, it is published then, and that tells why it fails.
//! - Core NATS stores nothing. There, each message is followed by an empty one to ourselves, on the same connection: once it is
//!   back, the server has processed the message. A server that fails right then, or a subject without subscribers, loses it.

mod auth;
mod connection;
mod link;
mod replies;
mod stream;

pub use connection::Connection;
pub use stream::{Discard, Storage, StreamConfig};

use crate::event::json::{Kind, Reader};
use crate::setting::{Secret, period};
use crate::sink::{Failure, Message, Pending, SetupError, Sink};
use async_nats::client::PublishErrorKind;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::response::Response;
use async_nats::{Client, HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use bytes::Bytes;
use bytesize::ByteSize;
use futures_util::FutureExt as _;
use link::Link;
use replies::Replies;
use serde::{Deserialize, Deserializer};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use stream::StreamCheck;
use tokio::task::{AbortHandle, unconstrained};

/// The longest subject that is sent. A server drops the whole connection at a protocol line over 4096 bytes
/// (`max_control_line`), so one over-long subject would stop every other message. The rest of the line holds verb, inbox and
/// sizes on the way in, and the acknowledgement address on the way to a consumer, whose client may enforce the same limit.
const MAX_SUBJECT: usize = 4096 - 512;

/// Where and how to publish.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    /// One server or several, as `nats://host:4222` or `tls://host:4222`, as a list or as one text with commas. Further
    /// servers of a cluster are learnt from the first one that answers. Default: `nats://127.0.0.1:4222`.
    #[serde(default)]
    pub servers: Servers,
    /// `jetstream` (default) waits until a stream has stored the message; `core` only until the server has processed it.
    #[serde(default)]
    pub mode: Mode,
    /// User name, with `password`.
    #[serde(default)]
    pub user: Option<String>,
    /// The user's password.
    #[serde(default)]
    pub password: Option<Secret>,
    /// A file that holds the password. Secret files are read again at each connect.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// A token, instead of a user.
    #[serde(default)]
    pub token: Option<Secret>,
    /// A file that holds the token.
    #[serde(default)]
    pub token_file: Option<PathBuf>,
    /// The seed of a user nkey (`SU…`), instead of a user.
    #[serde(default)]
    pub nkey: Option<Secret>,
    /// A file that holds the seed.
    #[serde(default)]
    pub nkey_file: Option<PathBuf>,
    /// A `.creds` file with user JWT and seed, as `nsc` writes it, instead of a user.
    #[serde(default)]
    pub credentials_file: Option<PathBuf>,
    /// TLS. Its presence demands an encrypted connection.
    #[serde(default)]
    pub tls: Option<TlsConfig>,
    /// How long to wait for an acknowledgement before the message is sent again. Default: 10 s.
    #[serde(default = "ten_seconds", with = "period")]
    pub ack_timeout: Duration,
    /// The stream that must store the messages. Default: whichever takes the subject.
    #[serde(default)]
    pub stream: Option<StreamConfig>,
    /// JetStream domain, where the streams live behind a leaf node.
    #[serde(default)]
    pub domain: Option<String>,
    /// The name under which the server lists this connection. Default: `cdrelay`.
    #[serde(default)]
    pub client_name: Option<String>,
    /// Where replies arrive, for accounts that may not subscribe below `_INBOX`.
    #[serde(default)]
    pub inbox_prefix: Option<String>,
    /// Refuse messages over this size even though the server announces more: for users whose JWT allows less than the server.
    #[serde(default)]
    pub max_payload: Option<ByteSize>,
}

/// What counts as delivered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Stored by a stream.
    #[default]
    Jetstream,
    /// Processed by the server: best effort.
    Core,
}

/// TLS to the servers. Files are PEM, checked at load and read again at each connect.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// Refuse a server that offers no TLS. Default: true.
    #[serde(default = "yes")]
    pub required: bool,
    /// Begin with the TLS handshake, for servers with `handshake_first`. Default: false.
    #[serde(default)]
    pub handshake_first: bool,
    /// The authorities to trust, instead of the system's.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// The certificate that identifies this client, with `key_file`.
    #[serde(default)]
    pub cert_file: Option<PathBuf>,
    /// The key of that certificate.
    #[serde(default)]
    pub key_file: Option<PathBuf>,
}

/// One or several server addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Servers(pub Vec<String>);

impl Default for Servers {
    fn default() -> Self {
        Self(vec!["nats://127.0.0.1:4222".to_owned()])
    }
}

impl<'de> Deserialize<'de> for Servers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "an address like \"nats://host:4222\", or a list of them")]
        enum OneOrMany {
            One(String),
            Many(Vec<String>),
        }
        Ok(Self(match OneOrMany::deserialize(deserializer)? {
            OneOrMany::One(text) => text.split(',').map(|url| url.trim().to_owned()).collect(),
            OneOrMany::Many(urls) => urls,
        }))
    }
}

fn ten_seconds() -> Duration {
    Duration::from_secs(10)
}

fn yes() -> bool {
    true
}

/// A [`Sink`] over one connection, which is made and kept in the background.
pub struct NatsSink {
    link: Arc<Link>,
    /// `None` in core mode.
    stream: Option<Arc<StreamCheck>>,
    ack_timeout: Duration,
    max_payload: Option<usize>,
    /// Tasks that look after the stream and the replies.
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
        if let Some(stream) = &stream {
            keepers.push(tokio::spawn(expire(link.replies.clone(), config.ack_timeout)).abort_handle());
            if stream.creates() {
                let keep = stream.clone().keep(Arc::downgrade(&link), link.stream_wanted.clone());
                keepers.push(tokio::spawn(keep).abort_handle());
            }
        }
        Ok(Self {
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
                None => self.hand_over(client, message, headers, start).await,
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
        let headers = self.headers(message)?;
        let bytes = message.payload().len() + size(&headers);
        match self.max_payload.filter(|limit| bytes > *limit) {
            Some(limit) => Err(Failure::rejected(format!("message of {bytes} bytes exceeds max_payload of {limit}"))),
            None => Ok(headers),
        }
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
        acknowledged(&reply.payload)
    }

    /// Core: resolves once the server has processed the message, as far as a server without acknowledgements tells.
    async fn hand_over(
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

    fn headers(&self, message: &Message) -> Result<HeaderMap, Failure> {
        let mut headers = HeaderMap::new();
        for (name, value) in message.headers() {
            let illegal = || Failure::rejected(format!("header `{name}` holds a character that NATS does not allow"));
            // What is parsed is copied. The names are ours, and need no copy.
            if !name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':') {
                return Err(illegal());
            }
            headers.insert(HeaderName::from_static(name), value.parse::<HeaderValue>().map_err(|_| illegal())?);
        }
        headers.insert(header::NATS_MESSAGE_ID, message.id().to_string());
        if let Some(name) = self.stream.as_ref().and_then(|stream| stream.name()) {
            headers.insert(header::NATS_EXPECTED_STREAM, name);
        }
        Ok(headers)
    }
}

impl Sink for NatsSink {
    async fn publish(&self, message: &Message) -> Result<(), Failure> {
        self.send(message).await
    }

    fn hand_over(&self, message: &Message, pending: Pending) -> Option<Pending> {
        if self.stream.is_none() {
            return Some(pending);
        }
        let (Ok(client), Ok(headers)) = (self.link.client(), self.check(message)) else { return Some(pending) };
        let (number, inbox) = self.link.replies.hold(pending);
        let subject = message.topic().to_owned();
        let payload = Bytes::from_owner(message.payload().clone());
        let sent = client.publish_with_reply_and_headers(subject, inbox, headers, payload);
        match unconstrained(sent).now_or_never() {
            Some(Ok(())) => None,
            // It was refused, or the library has no room: it does not have the message.
            _ => self.link.replies.give_back(number),
        }
    }

    /// Connected, and in JetStream mode a stream takes the subject.
    async fn probe(&self) -> Result<(), Failure> {
        let client = self.link.client()?;
        match &self.stream {
            Some(stream) => stream.probe(&self.link, client).await,
            None => Ok(()),
        }
    }

    async fn close(&self) {
        self.link.close().await;
    }
}

impl Drop for NatsSink {
    fn drop(&mut self) {
        self.keepers.iter().for_each(AbortHandle::abort);
    }
}

/// Lets go of what was handed over and has had no reply for so long.
async fn expire(replies: Arc<Replies>, ack_timeout: Duration) {
    loop {
        tokio::time::sleep(ack_timeout / 4).await;
        if let Some(before) = Instant::now().checked_sub(ack_timeout) {
            replies.expire(before);
        }
    }
}

/// Whether a reply says that the message is stored: it is a PubAck and tells stream and sequence. Of any other, [`acknowledged`] has to
/// say what it means.
fn confirms(reply: &async_nats::Message) -> bool {
    let Ok(text) = std::str::from_utf8(&reply.payload) else { return false };
    let (mut reader, mut stored) = (Reader::new(text, 4), [false; 2]);
    let read = reader.members(|reader, name| {
        let value = reader.value()?;
        match name.span.of(text.as_bytes()) {
            b"stream" => stored[0] = value.kind == Kind::String,
            b"seq" => stored[1] = value.kind == Kind::Number,
            b"error" => return Err(reader.error("no PubAck")),
            _ => {}
        }
        Ok(())
    });
    reply.status.is_none() && stored == [true; 2] && read.is_ok() && reader.peek().is_none()
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

/// Bytes on the wire, as the server counts them: `NATS/1.0␍␊`, a line for each header, an empty line.
fn size(headers: &HeaderMap) -> usize {
    let lines = headers.iter().flat_map(|(name, values)| values.iter().map(move |value| (name, value)));
    12 + lines.map(|(name, value)| AsRef::<str>::as_ref(name).len() + value.as_str().len() + 4).sum::<usize>()
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

/// Reads a PubAck; a duplicate is as good as stored. Of the errors, only those that no retry and no operator can mend on the
/// server's side are the message's own.
fn acknowledged(payload: &[u8]) -> Result<(), Failure> {
    match serde_json::from_slice::<Response<PublishAck>>(payload) {
        Ok(Response::Ok(_)) => Ok(()),
        Ok(Response::Err { error }) => match error.error_code() {
            ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM | ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM => {
                Err(Failure::rejected(format!("the stream refuses the message: {error}")))
            }
            _ => Err(Failure::unavailable(format!("the stream does not take messages: {error}"))),
        },
        Err(_) => Err(Failure::unavailable(
            "something other than JetStream answers on this subject; no stream confirmed the message",
        )),
    }
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

    #[test]
    fn an_empty_table_means_jetstream_on_this_machine() {
        let config = config("");
        assert_eq!(config.servers, Servers::default());
        assert_eq!((config.mode, config.ack_timeout), (Mode::Jetstream, Duration::from_secs(10)));
    }

    #[test]
    fn servers_are_a_text_or_a_list() {
        let both = Servers(vec!["nats://a:1".to_owned(), "b".to_owned()]);
        assert_eq!(config("servers = 'nats://a:1, b'").servers, both);
        assert_eq!(config("servers = ['nats://a:1', 'b']").servers, both);
        let error = Figment::from(Toml::string("servers = 1")).extract::<Config>().unwrap_err().to_string();
        assert!(error.contains("an address like"), "{error}");
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

    #[tokio::test]
    async fn no_header_can_break_out() {
        let sink = NatsSink::new("n", &config("servers = '127.0.0.1:1'"), None).unwrap();
        for (name, value) in [("ce-x", "a\r\nNats-Msg-Id: 1"), ("ce-x", "a\nb"), ("ce:x", "a"), ("ce\r\nx", "a")] {
            let message = message("a.b").with_header(name, value);
            assert!(matches!(sink.publish(&message).await, Err(Failure::Rejected { .. })), "{name}: {value}");
        }
    }

    #[test]
    fn a_subject_that_would_harm_the_connection_is_the_messages_fault() {
        assert_eq!(check_subject(&"a".repeat(MAX_SUBJECT)), Ok(()));
        for subject in ["", "a..b", "a.*.b", "a.>", "a b", "a\r\nPUB x 0", "a\tb", "a.", &"a".repeat(MAX_SUBJECT + 1)] {
            assert!(matches!(check_subject(subject), Err(Failure::Rejected { .. })), "{subject}");
        }
    }

    #[test]
    fn only_what_no_operator_can_mend_is_rejected() {
        let ack = |text: &str| acknowledged(text.as_bytes());
        assert_eq!(ack(r#"{"stream":"A","seq":7}"#), Ok(()));
        assert_eq!(ack(r#"{"stream":"A","seq":7,"duplicate":true,"domain":"hub"}"#), Ok(()));
        let error = |code: u64| {
            format!(r#"{{"error":{{"code":400,"err_code":{code},"description":"x"}},"stream":"A","seq":0}}"#)
        };
        for code in [10054, 10097] {
            assert!(matches!(ack(&error(code)), Err(Failure::Rejected { .. })), "{code}");
        }
        for code in [0, 10023, 10047, 10060, 10077, 99999] {
            assert!(matches!(ack(&error(code)), Err(Failure::Unavailable { .. })), "{code}");
        }
        for text in [r#"{"stream":"A","seq":7}"#, r#"{"stream":"A", "seq":7,"duplicate":true,"domain":"hub"}"#] {
            assert!(confirms(&reply(text, None)), "{text}");
            assert!(!confirms(&reply(text, Some(StatusCode::NO_RESPONDERS))), "{text}");
        }
        let refused =
            [error(10077), error(0), "+OK".into(), "{}".into(), String::new(), r#"{"stream":"A","seq":7"#.into()];
        for text in refused {
            assert!(!confirms(&reply(&text, None)), "{text}");
        }
        assert!(matches!(ack("+OK"), Err(Failure::Unavailable { .. })));
        assert!(matches!(ack("{}"), Err(Failure::Unavailable { .. })));
    }

    fn reply(payload: &str, status: Option<StatusCode>) -> async_nats::Message {
        let payload = Bytes::copy_from_slice(payload.as_bytes());
        let (reply, headers, description) = (None, None, None);
        async_nats::Message { subject: "a.1".into(), reply, payload, headers, status, description, length: 0 }
    }

    fn message(subject: &str) -> Message {
        Message::of(EventId([1; 16]), *b"{}", subject, "", "")
    }
}
