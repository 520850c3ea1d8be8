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
use futures_util::StreamExt;
use hyper::body::Bytes;
use parking_lot::Mutex;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

/// The library replaces a connection that leaves three of these unanswered: after 20 s at the latest.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// The least time between two connections to a server that accepts and drops them: the library counts no failed attempt there.
const FLAPPING_PAUSE: Duration = Duration::from_secs(1);
/// How long the server may take to bring an empty message back.
const ECHO_TIMEOUT: Duration = Duration::from_secs(3);
/// The pauses between two reconnects while the inbox is not permitted.
const INBOX_PAUSE: Duration = Duration::from_secs(1);
const MAX_INBOX_PAUSE: Duration = Duration::from_secs(8);
/// How long [`Connection::close`] waits for the library to say good-bye.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the refusal of a message is a reason to ask whether all are refused.
const RECENT: Duration = Duration::from_secs(60);
/// How many messages may await an answer. The server reports a denied publish outside of the inbox, and the library drops such
/// reports beyond 128 that it has not passed on; a publish whose report is lost would wait for `ack_timeout`.
const MAX_UNANSWERED: usize = 100;

const DENIED_PUBLISH: &str = "Permissions Violation for Publish to \"";
const DENIED_SUBSCRIPTION: &str = "Permissions Violation for Subscription to \"";

/// A connection that may be up or down.
pub(super) struct Connection {
    sink: String,
    /// Host and port of the configured servers.
    servers: String,
    client: OnceLock<Client>,
    replies: Replies,
    unanswered: Semaphore,
    status: Mutex<Status>,
    /// Signalled when the status has changed.
    changed: Notify,
    closing: AtomicBool,
    closed: Notify,
    outages: LogThrottle,
    complaints: LogThrottle,
}

#[derive(Default)]
struct Status {
    inbox: Inbox,
    /// Why the connection is not ready.
    cause: Option<String>,
    connected_at: Option<Instant>,
    /// The last complaint that may announce the end of the connection.
    complaint: Option<(Instant, String)>,
    /// The last refusal of a message.
    denial: Option<(Instant, String)>,
}

/// Whether the reply inbox works on this connection.
#[derive(Clone, Copy, Default, PartialEq)]
enum Inbox {
    #[default]
    Unchecked,
    Works,
    Denied,
}

/// How the server confirms that it has processed a publish.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Confirm {
    /// The receiver of the message replies to it.
    Reply,
    /// An empty message to ourselves follows on the same connection.
    Echo,
}

impl Connection {
    /// Starts to connect in the background, by one of `tasks`. Fails on settings that can never work.
    pub(super) fn open(sink: &str, config: &Config, tasks: &mut JoinSet<()>) -> Result<Arc<Self>, SetupError> {
        let servers = parse_servers(&config.servers.0)?;
        let names: Vec<_> = servers.iter().map(|server| format!("{}:{}", server.host(), server.port())).collect();
        let connection = Arc::new(Self {
            sink: sink.to_owned(),
            servers: names.join(", "),
            client: OnceLock::new(),
            replies: Replies::below(config.inbox_prefix.as_deref().unwrap_or("_INBOX")),
            unanswered: Semaphore::new(MAX_UNANSWERED),
            status: Mutex::default(),
            changed: Notify::new(),
            closing: AtomicBool::new(false),
            closed: Notify::new(),
            outages: LogThrottle::default(),
            complaints: LogThrottle::default(),
        });
        let options = connection.watch(connect_options(config)?);
        tasks.spawn(connection.clone().run(options, servers));
        Ok(connection)
    }

    /// The client, if messages can be published and confirmed now.
    pub(super) fn client(&self) -> Result<&Client, Failure> {
        match self.connected() {
            _ if self.closing.load(Ordering::Relaxed) => Err(closed()),
            Some(client) if self.status.lock().inbox == Inbox::Works => Ok(client),
            _ => Err(Failure::unavailable(self.describe_outage())),
        }
    }

    /// Waits until few enough messages await an answer, this one included for as long as the permit is held.
    pub(super) async fn permit(&self) -> Option<SemaphorePermit<'_>> {
        self.unanswered.acquire().await.ok()
    }

    /// Publishes and waits for the answer; `None` if none came in time.
    pub(super) async fn publish(
        &self,
        subject: &str,
        headers: HeaderMap,
        payload: Bytes,
        confirm: Confirm,
        within: Duration,
    ) -> Result<Option<Answer>, Failure> {
        let client = self.client()?;
        let answer = async {
            let awaited = self.replies.expect(Some(subject));
            let (subject, inbox) = (subject.to_owned(), awaited.inbox());
            let sent = match confirm {
                Confirm::Reply => client.publish_with_reply_and_headers(subject, inbox, headers, payload).await,
                Confirm::Echo => match client.publish_with_headers(subject, headers, payload).await {
                    Ok(()) => client.publish(inbox, Bytes::new()).await,
                    refused => refused,
                },
            };
            // The library refuses on its own a message over the server's `max_payload`; the server would drop the connection.
            sent.map_err(|error| match error.kind() {
                PublishErrorKind::MaxPayloadExceeded | PublishErrorKind::InvalidSubject => Failure::rejected(error),
                PublishErrorKind::Send => closed(),
            })?;
            Ok(awaited.answer().await)
        };
        match timeout(within, answer).await {
            Ok(Ok(Answer::Lost)) => Err(self
                .client()
                .err()
                .unwrap_or_else(|| Failure::unavailable("the connection to nats was lost before the acknowledgement"))),
            Ok(answer) => answer.map(Some),
            Err(_) => Ok(None),
        }
    }

    /// The server's refusal of a message a short time ago.
    pub(super) fn recent_denial(&self) -> Option<String> {
        let status = self.status.lock();
        let recent = status.denial.as_ref().filter(|(at, _)| at.elapsed() < RECENT);
        recent.map(|(_, text)| text.clone())
    }

    /// Disconnects. A connection that is down is simply not tried again.
    pub(super) async fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
        let drained = async {
            if let Some(client) = self.connected()
                && client.drain().await.is_ok()
            {
                self.closed.notified().await;
            }
        };
        let _ = timeout(CLOSE_TIMEOUT, drained).await;
    }

    fn connected(&self) -> Option<&Client> {
        self.client.get().filter(|client| client.connection_state() == State::Connected)
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
                let connection = on_attempt.upgrade().filter(|connection| !connection.closing.load(Ordering::Relaxed));
                async move {
                    // The sink is closed, and the library has no other way to stop trying.
                    let Some(connection) = connection else { return std::future::pending().await };
                    connection.note_failed_attempts(&servers);
                    let connected_at = connection.status.lock().connected_at;
                    drop(connection);
                    sleep(connected_at.map_or(Duration::ZERO, |at| FLAPPING_PAUSE.saturating_sub(at.elapsed()))).await;
                    None
                }
            })
    }

    fn observe(&self, event: Event) {
        match event {
            Event::Connected => {
                info!(sink = self.sink, servers = self.servers, "connected to nats");
                let mut status = self.status.lock();
                (status.inbox, status.connected_at) = (Inbox::Unchecked, Some(Instant::now()));
                // A denied inbox is the cause until it is known to be permitted.
                if !status.cause.as_ref().is_some_and(|cause| cause.starts_with(DENIED_SUBSCRIPTION)) {
                    status.cause = Some("the reply inbox is being checked".to_owned());
                }
                self.changed.notify_one();
            }
            Event::Disconnected => {
                let mut status = self.status.lock();
                let recent = status.complaint.take().filter(|(at, _)| at.elapsed() < Duration::from_secs(1));
                let cause = recent.map_or_else(|| "connection lost".to_owned(), |(_, text)| text);
                if !self.closing.load(Ordering::Relaxed) && status.inbox != Inbox::Denied {
                    warn!(sink = self.sink, cause, "disconnected from nats");
                    status.cause = Some(cause);
                }
                status.inbox = Inbox::Unchecked;
                self.replies.lost();
            }
            Event::ServerError(error) => self.take_complaint(error),
            // Every other failed attempt is told in more words to `note_failed_attempts`.
            Event::ClientError(ClientError::Other(kind)) if kind == "DNS error" => {
                self.explain_outage("cannot resolve the host name".to_owned());
            }
            Event::Closed => self.closed.notify_one(),
            Event::LameDuckMode | Event::SlowConsumer(_) => warn!(sink = self.sink, %event, "the nats server warns"),
            Event::Draining | Event::ClientError(_) => {}
        }
    }

    fn take_complaint(&self, error: ServerError) {
        let text = match error {
            ServerError::Other(text) => text.trim_matches('\'').to_owned(),
            other => other.to_string(),
        };
        let quoted = |begin| text.strip_prefix(begin)?.split('"').next();
        if let Some(subject) = quoted(DENIED_PUBLISH) {
            self.replies.deny(subject, &text);
            // Some users may not look at streams or publish to an inbox, which hinders nothing.
            if subject.starts_with("$JS.") || subject.starts_with("$SYS.") || self.replies.are_at(subject) {
                return;
            }
            self.status.lock().denial = Some((Instant::now(), text.clone()));
        }
        if let Some(times) = self.complaints.should_log() {
            warn!(sink = self.sink, complaint = without_subjects(&text), times, "the nats server complains");
        }
        let mut status = self.status.lock();
        if quoted(DENIED_SUBSCRIPTION).is_some_and(|subject| subject == self.replies.subject()) {
            (status.inbox, status.cause) = (Inbox::Denied, Some(text));
            self.replies.lost();
            self.changed.notify_one();
        } else if !text.starts_with("Permissions Violation") {
            status.complaint = Some((Instant::now(), text));
        }
    }

    /// Connects, then takes replies and looks after the inbox until the task is aborted.
    async fn run(self: Arc<Self>, options: ConnectOptions, servers: Vec<ServerAddr>) {
        // Only an unusable address fails here, and those were refused at load.
        let connected = options.connect(servers).await.inspect_err(|error| self.explain_outage(error.to_string()));
        let Ok(client) = connected else { return };
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

    /// Sends an empty message to the inbox. The server has processed the subscription by the time it brings the message back, or
    /// denies it, and has reported a denied subscription before.
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
            let error = server.last_error.as_deref()?;
            Some(format!("{}:{}: {error}", server.addr.host(), server.addr.port()))
        });
        let errors: Vec<_> = errors.collect();
        if !errors.is_empty() {
            self.explain_outage(errors.join("; "));
        }
    }

    fn explain_outage(&self, cause: String) {
        self.status.lock().cause = Some(cause);
        if let Some(times) = self.outages.should_log() {
            let cause = self.describe_outage();
            warn!(sink = self.sink, cause, times, "nats cannot be reached, trying for ever");
        }
    }

    fn describe_outage(&self) -> String {
        let status = self.status.lock();
        let unexplained = if status.connected_at.is_some() { "connection lost" } else { "still connecting" };
        let cause = status.cause.as_deref().unwrap_or(unexplained);
        match cause.starts_with(DENIED_SUBSCRIPTION) {
            true => format!("nats at {} permits no subscription to the reply inbox: {cause}", self.servers),
            false => format!("not connected to nats at {}: {cause}", self.servers),
        }
    }
}

fn closed() -> Failure {
    Failure::unavailable("the connection to nats is closed")
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
    .ping_interval(PING_INTERVAL);
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
