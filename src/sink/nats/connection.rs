//! One connection to the servers. async-nats makes it and makes it again for ever; this module knows whether it can carry messages.
//!
//! A publish asks [`Connection::client`] first and learns at once why there is no connection: the client library would only buffer
//! messages that the spool keeps anyway. A connection is ready once an empty message to its own reply inbox has come back, or the
//! server has denied that publish alone. A user who may not subscribe to the inbox could never learn of an acknowledgement, and
//! every retry could be stored again: nothing is published then, and the connection is made anew until the server permits it.

use super::config::TlsConfig;
use super::replies::{Answer, Replies};
use super::{Config, auth};
use crate::log_throttle::LogThrottle;
use crate::sink::{Failure, SetupError};
use async_nats::client::PublishErrorKind;
use async_nats::connection::State;
use async_nats::rustls::pki_types::pem::PemObject;
use async_nats::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use async_nats::{
    AuthError, Client, ClientError, ConnectOptions, Event, HeaderMap, Server, ServerAddr, ServerError, Subject,
};
use bytes::Bytes;
use futures_util::StreamExt;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

/// Commands the library may hold for a connection that has stopped taking them; a publish beyond that waits, then times out.
const COMMAND_CAPACITY: usize = 256;
/// The library replaces a connection that leaves three of these unanswered: after 20 s at the latest.
const PING_INTERVAL: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Soon enough for a server that comes back, seldom enough for one that is down for hours.
const MAX_RECONNECT_DELAY: Duration = Duration::from_secs(2);
/// The least time between two connections to a server that accepts and drops them: the library counts no failed attempt there.
const FLAPPING_PAUSE: Duration = Duration::from_secs(1);
/// How long the server may take to bring an empty message back.
const ECHO_TIMEOUT: Duration = Duration::from_secs(3);
/// The pauses between two reconnects while the inbox is not permitted.
const INBOX_PAUSE: Duration = Duration::from_secs(1);
const MAX_INBOX_PAUSE: Duration = Duration::from_secs(8);
/// How long [`Connection::close`] waits for the library to say good-bye.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a subject counts as denied after the server said so.
const DENIED_FOR: Duration = Duration::from_secs(1);
/// How many denied subjects are remembered.
const MAX_DENIED: usize = 4096;
/// The library reports at most 128 refusals at a time and drops the others. While refusals come, and at the start of a connection,
/// so many publishes may await an answer, so that no refusal is dropped and none costs an acknowledgement timeout.
const DOUBTFUL_PUBLISHES: usize = 100;
const DOUBT_AFTER_DENIAL: Duration = Duration::from_secs(10);
const DOUBT_AFTER_CONNECT: Duration = Duration::from_secs(1);
/// A second after the first refusal of a crowd, older publishes without an answer count as refused.
const REPORT_DELAY: Duration = Duration::from_secs(1);

const DENIED_PUBLISH: &str = "Permissions Violation for Publish to \"";
const DENIED_SUBSCRIPTION: &str = "Permissions Violation for Subscription to \"";

/// A connection that may be up or down.
pub(super) struct Connection {
    sink: String,
    /// Host and port of the configured servers.
    servers: String,
    client: OnceLock<Client>,
    replies: Replies,
    status: Mutex<Status>,
    /// Signalled when the status has changed.
    changed: Notify,
    doubtful: Semaphore,
    closed: Notify,
    closing: AtomicBool,
    outages: LogThrottle,
    complaints: LogThrottle,
}

/// Whether the reply inbox works on this connection.
#[derive(Clone, Copy, Default, PartialEq)]
enum Inbox {
    #[default]
    Unchecked,
    Works,
    Denied,
}

#[derive(Default)]
struct Status {
    inbox: Inbox,
    /// Why the connection is not ready.
    cause: Option<String>,
    connected_at: Option<Instant>,
    /// Why the server will close the connection, as it said last.
    last_error: Option<(Instant, String)>,
    denied: HashMap<String, (Instant, String)>,
    in_doubt_until: Option<Instant>,
    /// Refusals since the doubt began.
    refusals: usize,
}

impl Connection {
    /// Starts to connect in the background, by one of `tasks`. Fails on settings that can never work.
    pub(super) fn open(sink: &str, config: &Config, tasks: &mut JoinSet<()>) -> Result<Arc<Self>, SetupError> {
        let servers = parse_servers(&config.servers.0)?;
        let names = servers.iter().map(|server| format!("{}:{}", server.host(), server.port()));
        let connection = Arc::new(Self {
            sink: sink.to_owned(),
            servers: names.collect::<Vec<_>>().join(", "),
            client: OnceLock::new(),
            replies: Replies::below(config.inbox_prefix.as_deref().unwrap_or("_INBOX")),
            status: Mutex::default(),
            changed: Notify::new(),
            doubtful: Semaphore::new(DOUBTFUL_PUBLISHES),
            closed: Notify::new(),
            closing: AtomicBool::new(false),
            outages: LogThrottle::default(),
            complaints: LogThrottle::default(),
        });
        let options = connection.watch(connect_options(config)?);
        tasks.spawn(connection.clone().run(options, servers));
        Ok(connection)
    }

    /// The client, if messages can be published and acknowledged now.
    pub(super) fn client(&self) -> Result<&Client, Failure> {
        if self.closing.load(Ordering::Relaxed) {
            return Err(Failure::unavailable("the connection to nats is closed"));
        }
        match self.connected() {
            Some(client) if self.status.lock().inbox == Inbox::Works => Ok(client),
            _ => Err(Failure::unavailable(self.describe_outage())),
        }
    }

    /// Publishes with a reply inbox; `None` when there was no answer in time.
    pub(super) async fn request(
        &self,
        subject: &str,
        headers: HeaderMap,
        payload: Bytes,
        within: Duration,
    ) -> Result<Option<Answer>, Failure> {
        let client = self.client()?;
        let answer = async {
            let _permit = self.admit().await;
            let awaited = self.replies.expect(Some(subject));
            let sent = client.publish_with_reply_and_headers(subject.to_owned(), awaited.inbox(), headers, payload);
            sent.await.map_err(send_failure)?;
            Ok(awaited.answer().await)
        };
        match timeout(within, answer).await {
            Ok(Ok(Answer::Lost)) => Err(Failure::unavailable(match self.client() {
                Ok(_) => "the connection to nats was lost before the acknowledgement".to_owned(),
                Err(failure) => failure.to_string(),
            })),
            Ok(answer) => answer.map(Some),
            Err(_) => Ok(None),
        }
    }

    /// Publishes without a reply inbox, and an empty message to our own behind it. Once that is back, the server has processed both.
    pub(super) async fn publish_and_flush(
        &self,
        subject: &str,
        headers: HeaderMap,
        payload: Bytes,
        within: Duration,
    ) -> Result<Option<Answer>, Failure> {
        let client = self.client()?;
        let answer = async {
            let _permit = self.admit().await;
            let awaited = self.replies.expect(Some(subject));
            client.publish_with_headers(subject.to_owned(), headers, payload).await.map_err(send_failure)?;
            client.publish(awaited.inbox(), Bytes::new()).await.map_err(send_failure)?;
            Ok(awaited.answer().await)
        };
        timeout(within, answer).await.map_or(Ok(None), |answer| answer.map(Some))
    }

    /// Why the server denies publishes on `subject`, if it did so a moment ago.
    pub(super) fn denied(&self, subject: &str) -> Option<String> {
        let status = self.status.lock();
        let (at, text) = status.denied.get(subject)?;
        (at.elapsed() < DENIED_FOR).then(|| text.clone())
    }

    /// Disconnects. A connection that is down is simply not tried again.
    pub(super) async fn close(&self) {
        let connected = self.connected();
        self.closing.store(true, Ordering::Relaxed);
        let Some(client) = connected else { return };
        let drained = async {
            if client.drain().await.is_ok() {
                self.closed.notified().await;
            }
        };
        let _ = timeout(CLOSE_TIMEOUT, drained).await;
    }

    fn connected(&self) -> Option<&Client> {
        self.client.get().filter(|client| client.connection_state() == State::Connected)
    }

    /// Waits for a permit while publishes may be denied in a crowd.
    async fn admit(&self) -> Option<SemaphorePermit<'_>> {
        let in_doubt = self.status.lock().in_doubt_until.is_some_and(|until| Instant::now() < until);
        if in_doubt { self.doubtful.acquire().await.ok() } else { None }
    }

    /// Has the library report what happens to the connection.
    fn watch(self: &Arc<Self>, options: ConnectOptions) -> ConnectOptions {
        let (on_event, on_attempt) = (Arc::downgrade(self), Arc::downgrade(self));
        options
            .event_callback(move |event| {
                if let Some(connection) = on_event.upgrade() {
                    connection.observe(event);
                }
                std::future::ready(())
            })
            // The one place where the library tells why an attempt failed; the choice of server stays with it.
            .reconnect_to_server_callback(move |servers, _| {
                let connection = on_attempt.upgrade();
                async move {
                    match connection {
                        Some(connection) if !connection.closing.load(Ordering::Relaxed) => {
                            connection.note_failed_attempts(&servers);
                            let since = connection.status.lock().connected_at.map(|at| at.elapsed());
                            drop(connection);
                            sleep(since.map_or(Duration::ZERO, |since| FLAPPING_PAUSE.saturating_sub(since))).await;
                        }
                        // The sink is closed, and the library has no other way to stop trying.
                        _ => std::future::pending().await,
                    }
                    None
                }
            })
    }

    fn observe(self: &Arc<Self>, event: Event) {
        match event {
            Event::Connected => {
                let now = Instant::now();
                let mut status = self.status.lock();
                (status.inbox, status.connected_at) = (Inbox::Unchecked, Some(now));
                // A refusal is told until it is known to be over.
                if !status.cause.as_ref().is_some_and(|cause| cause.starts_with(DENIED_SUBSCRIPTION)) {
                    status.cause = Some("the reply inbox is being checked".to_owned());
                }
                status.in_doubt_until = status.in_doubt_until.max(Some(now + DOUBT_AFTER_CONNECT));
                info!(sink = self.sink, servers = self.servers, "connected to nats");
                self.changed.notify_one();
            }
            Event::Disconnected => {
                let mut status = self.status.lock();
                let recent = status.last_error.take().filter(|(at, _)| at.elapsed() < Duration::from_secs(1));
                let cause = recent.map_or_else(|| "connection lost".to_owned(), |(_, text)| text);
                if !self.closing.load(Ordering::Relaxed) && status.inbox != Inbox::Denied {
                    warn!(sink = self.sink, cause, "disconnected from nats");
                    status.cause = Some(cause);
                }
                status.inbox = Inbox::Unchecked;
                drop(status);
                self.replies.lost();
            }
            Event::ServerError(error) => self.take_complaint(&error),
            // Every other failed attempt is told in more words to `note_failed_attempts`.
            Event::ClientError(ClientError::Other(kind)) if kind == "DNS error" => {
                self.explain_outage("cannot resolve the host name".to_owned());
            }
            Event::LameDuckMode => {
                info!(sink = self.sink, "the nats server is about to stop, another one will be used")
            }
            Event::SlowConsumer(_) => {
                warn!(sink = self.sink, "acknowledgements from nats arrive faster than they are read")
            }
            Event::Closed => self.closed.notify_one(),
            Event::Draining | Event::ClientError(_) => {}
        }
    }

    fn take_complaint(self: &Arc<Self>, error: &ServerError) {
        let text = match error {
            ServerError::Other(text) => text.trim_matches('\'').to_owned(),
            other => other.to_string(),
        };
        let quoted = |begin| text.strip_prefix(begin)?.split('"').next();
        let denied = quoted(DENIED_PUBLISH);
        // Some users may not look at streams or publish to an inbox, which hinders nothing.
        if let Some(subject) = denied.filter(|subject| subject.starts_with(".") || self.replies.are_at(subject)) {
            return self.replies.deny(subject, &text);
        }
        if let Some(times) = self.complaints.should_log() {
            warn!(sink = self.sink, complaint = without_subjects(&text), times, "the nats server complains");
        }
        if let Some(subject) = denied {
            self.deny(subject, &text);
        } else if let Some(subject) = quoted(DENIED_SUBSCRIPTION) {
            if subject == self.replies.subject() {
                let mut status = self.status.lock();
                (status.inbox, status.cause) = (Inbox::Denied, Some(text));
                drop(status);
                self.replies.lost();
                self.changed.notify_one();
            }
        } else {
            self.status.lock().last_error = Some((Instant::now(), text));
        }
    }

    fn deny(self: &Arc<Self>, subject: &str, text: &str) {
        let now = Instant::now();
        let mut status = self.status.lock();
        if status.denied.len() >= MAX_DENIED {
            status.denied.retain(|_, (at, _)| at.elapsed() < DENIED_FOR);
        }
        if status.denied.len() < MAX_DENIED {
            status.denied.insert(subject.to_owned(), (now, text.to_owned()));
        }
        status.refusals += 1;
        let known = status.in_doubt_until.replace(now + DOUBT_AFTER_DENIAL).is_some_and(|until| now < until);
        if !known {
            status.refusals = 1;
            let connection = self.clone();
            tokio::spawn(async move {
                sleep(REPORT_DELAY).await;
                if connection.status.lock().refusals >= DOUBTFUL_PUBLISHES {
                    connection.replies.unreported(now);
                }
            });
        }
        drop(status);
        self.replies.deny(subject, text);
    }

    /// Connects, then takes replies and looks after the inbox until the task is aborted.
    async fn run(self: Arc<Self>, options: ConnectOptions, servers: Vec<ServerAddr>) {
        // Only an unusable address fails here, and those were refused at load.
        let Ok(client) = options.connect(servers).await.inspect_err(|error| self.explain_outage(error.to_string()))
        else {
            return;
        };
        let Ok(mut inbox) = client.subscribe(self.replies.subject()).await else { return };
        let client = self.client.get_or_init(|| client);
        let receive = async {
            while let Some(reply) = inbox.next().await {
                self.replies.deliver(reply);
            }
        };
        let look_after_inbox = async {
            let mut pause = INBOX_PAUSE;
            loop {
                // The library drops events in a crowd, so the status is looked at now and then without one.
                let _ = timeout(Duration::from_secs(1), self.changed.notified()).await;
                let inbox = self.status.lock().inbox;
                match inbox {
                    _ if self.connected().is_none() => {}
                    Inbox::Works => pause = INBOX_PAUSE,
                    Inbox::Unchecked => self.check_inbox(client).await,
                    Inbox::Denied => {
                        sleep(pause).await;
                        pause = (pause * 2).min(MAX_INBOX_PAUSE);
                        let _ = client.force_reconnect().await;
                    }
                }
            }
        };
        tokio::join!(receive, look_after_inbox);
    }

    /// Whether the inbox works, found out with an empty message to it. The server processes the subscription first, so once it has
    /// brought the message back, or denied it, the subscription was denied before or not at all.
    async fn check_inbox(&self, client: &Client) {
        let awaited = self.replies.expect(None);
        let echo = async {
            client.publish(awaited.inbox(), Bytes::new()).await.ok()?;
            Some(awaited.answer().await)
        };
        let answer = timeout(ECHO_TIMEOUT, echo).await;
        let mut status = self.status.lock();
        match answer {
            _ if status.inbox == Inbox::Denied => {}
            Ok(Some(Answer::Reply(_) | Answer::Denied(_))) => (status.inbox, status.cause) = (Inbox::Works, None),
            Ok(Some(Answer::Lost)) => {}
            _ => status.cause = Some("the server brings no reply to the inbox".to_owned()),
        }
    }

    fn note_failed_attempts(&self, servers: &[Server]) {
        let errors = servers.iter().filter_map(|server| {
            let error = attempt_error(server.last_error.as_deref()?);
            Some(if servers.len() == 1 {
                error
            } else {
                format!("{}:{}: {error}", server.addr.host(), server.addr.port())
            })
        });
        let text = errors.collect::<Vec<_>>().join("; ");
        if !text.is_empty() {
            self.explain_outage(text);
        }
    }

    fn explain_outage(&self, cause: String) {
        self.status.lock().cause = Some(cause);
        if let Some(attempts) = self.outages.should_log() {
            warn!(
                sink = self.sink,
                cause = self.describe_outage(),
                attempts,
                "nats cannot be reached, trying for ever"
            );
        }
    }

    fn describe_outage(&self) -> String {
        let status = self.status.lock();
        let cause = status.cause.as_deref().unwrap_or("still connecting");
        match cause.starts_with(DENIED_SUBSCRIPTION) {
            true => format!("nats at {} permits no subscription to the reply inbox: {cause}", self.servers),
            false => format!("not connected to nats at {}: {cause}", self.servers),
        }
    }
}

/// The options of a connection as `config` describes it. TLS files are tried now, so that a mistake shows at load, and read again by
/// the library at each connect.
pub(crate) fn connect_options(config: &Config) -> Result<ConnectOptions, SetupError> {
    auth::check(config)?;
    let prefix = config.inbox_prefix.as_deref().unwrap_or("_INBOX");
    if !Subject::from(prefix).is_valid() || prefix.contains(['*', '>']) {
        return Err(SetupError(format!("`inbox_prefix`: `{prefix}` is not a literal subject")));
    }
    let own = config.clone();
    let options = ConnectOptions::with_auth_callback(move |nonce| {
        std::future::ready(auth::answer(&own, &nonce).map_err(AuthError::new))
    })
    .name(config.client_name.as_deref().unwrap_or("cdrelay"))
    .custom_inbox_prefix(prefix)
    .retry_on_initial_connect()
    .max_reconnects(None)
    .connection_timeout(CONNECT_TIMEOUT)
    .ping_interval(PING_INTERVAL)
    .client_capacity(COMMAND_CAPACITY)
    .reconnect_delay_callback(reconnect_delay);
    config.tls.iter().try_fold(options, add_tls)
}

/// Host and port of each server. Credentials in a URL are refused: the library would ignore them.
pub(crate) fn parse_servers(servers: &[String]) -> Result<Vec<ServerAddr>, SetupError> {
    let refused = |url: &str, why: &str| SetupError(format!("`servers`: `{url}` {why}"));
    let parse = |url: &str| {
        if url.contains('@') {
            return Err(SetupError(
                "`servers`: a URL must not hold credentials; use `user` and `password`, or `token`".to_owned(),
            ));
        }
        let server: ServerAddr = url.parse().map_err(|_| refused(url, "is not an address like nats://host:4222"))?;
        match server.scheme() {
            _ if server.host().is_empty() => Err(refused(url, "names no host")),
            "nats" | "tls" => Ok(server),
            _ => Err(refused(url, "is neither nats:// nor tls://")),
        }
    };
    match servers {
        [] => Err(SetupError("`servers`: is empty; name at least one, like nats://127.0.0.1:4222".to_owned())),
        servers => servers.iter().flat_map(|text| text.split(',')).map(|url| parse(url.trim())).collect(),
    }
}

fn add_tls(options: ConnectOptions, tls: &TlsConfig) -> Result<ConnectOptions, SetupError> {
    let unusable = |key: &str, path: &Path, error: &dyn std::fmt::Display| {
        SetupError(format!("`tls.{key}`: cannot use {}: {error}", path.display()))
    };
    let certificates = |key: &str, path: &Path| {
        let all = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        match all {
            Ok(found) if found.is_empty() => Err(unusable(key, path, &"it holds no certificate")),
            Ok(_) => Ok(()),
            Err(error) => Err(unusable(key, path, &error)),
        }
    };
    let mut options = options.require_tls(tls.required);
    if tls.handshake_first {
        options = options.tls_first();
    }
    if let Some(path) = &tls.ca_file {
        certificates("ca_file", path)?;
        options = options.add_root_certificates(path.clone());
    }
    match (&tls.cert_file, &tls.key_file) {
        (Some(cert), Some(key)) => {
            certificates("cert_file", cert)?;
            PrivateKeyDer::from_pem_file(key).map_err(|error| unusable("key_file", key, &error))?;
            Ok(options.add_client_certificate(cert.clone(), key.clone()))
        }
        (None, None) => Ok(options),
        _ => Err(SetupError("`tls.cert_file` and `tls.key_file` belong together; set both or neither".to_owned())),
    }
}

/// 50 ms, doubled at each attempt up to the maximum, each shortened by up to a quarter so that bridges do not reconnect in step.
fn reconnect_delay(attempts: usize) -> Duration {
    let doublings = u32::try_from(attempts.saturating_sub(1)).unwrap_or(u32::MAX).min(10);
    let delay = Duration::from_millis(50).saturating_mul(1 << doublings).min(MAX_RECONNECT_DELAY);
    delay.mul_f64(1.0 - 0.25 * fastrand::f64())
}

/// The library refuses on its own a message over the server's `max_payload`; the server would drop the connection.
fn send_failure(error: async_nats::PublishError) -> Failure {
    match error.kind() {
        PublishErrorKind::MaxPayloadExceeded | PublishErrorKind::InvalidSubject => Failure::rejected(error),
        PublishErrorKind::Send => Failure::unavailable("the connection to nats is closed"),
    }
}

/// The library's error of one attempt without its layers of prefixes.
fn attempt_error(text: &str) -> String {
    match text {
        _ if text.contains("authorization violation") => {
            "the server refuses the credentials (authorization violation)".to_owned()
        }
        "timed out" => "connecting timed out".to_owned(),
        _ => text.trim_start_matches("IO error: ").trim_start_matches("nats: ").to_owned(),
    }
}

/// A complaint without the subjects it quotes: they carry names from events, which do not belong in a log.
fn without_subjects(text: &str) -> String {
    text.split('"').step_by(2).collect::<Vec<_>>().join("…")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_checked_at_load() {
        let parse = |url: &str| parse_servers(&[url.to_owned()]).map_err(|error| error.to_string());
        assert_eq!(parse("nats.example").unwrap().first().map(ServerAddr::port), Some(4222));
        assert_eq!(parse("nats://a:1, tls://b:2").unwrap().len(), 2);
        assert!(parse("ws://a:1").unwrap_err().contains("neither nats:// nor tls://"));
        assert!(parse("nats://").is_err());
        assert!(parse("a b").is_err());
        assert!(parse_servers(&[]).is_err());
        let error = parse("nats://user:hunter2@a").unwrap_err();
        assert!(error.contains("credentials") && !error.contains("hunter2"));
    }

    #[test]
    fn a_logged_complaint_names_no_subject() {
        let complaint = "Permissions Violation for Publish to \"telecmi.cdr.Sales.42\"";
        assert_eq!(without_subjects(complaint), "Permissions Violation for Publish to …");
    }

    #[test]
    fn reconnecting_slows_down_to_two_seconds() {
        assert!(reconnect_delay(1) <= Duration::from_millis(50));
        for attempts in [10, 1000, usize::MAX] {
            let delay = reconnect_delay(attempts);
            assert!(delay <= MAX_RECONNECT_DELAY && delay >= MAX_RECONNECT_DELAY.mul_f64(0.75), "{delay:?}");
        }
    }

    #[test]
    fn tls_files_are_checked_at_load() {
        let tls = |toml: &str| {
            use figment::providers::{Format, Toml};
            let tls: TlsConfig = figment::Figment::from(Toml::string(toml)).extract().unwrap();
            add_tls(ConnectOptions::new(), &tls).map(drop).map_err(|error| error.to_string())
        };
        assert!(tls("").is_ok());
        assert!(tls("ca_file = '/nowhere.pem'").unwrap_err().contains("`tls.ca_file`: cannot use /nowhere.pem"));
        assert!(tls("cert_file = '/nowhere.pem'").unwrap_err().contains("belong together"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("empty.pem");
        std::fs::write(&path, "").unwrap();
        assert!(tls(&format!("ca_file = '{}'", path.display())).unwrap_err().contains("no certificate"));
    }
}
