//! One connection to the servers, looked after for ever.
//!
//! The client library reconnects by itself. While it does, nothing is handed to it: its command channel would buffer messages
//! that the spool keeps anyway. So a publish asks [`Link::client`] first and learns at once why there is no connection.

use crate::sink::nats::auth::Identity;
use crate::sink::nats::replies::Replies;
use crate::sink::nats::{Config, TlsConfig};
use crate::sink::{Failure, SetupError};
use async_nats::connection::State;
use async_nats::rustls::pki_types::pem::PemObject;
use async_nats::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use async_nats::{AuthError, Client, ClientError, ConnectOptions, Event, Server, ServerAddr, ServerError};
use futures_util::StreamExt;
use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tracing::{info, warn};

/// Commands the library may hold for a connection that has stopped taking them; a publish beyond that waits, then times out.
const COMMAND_CAPACITY: usize = 256;
/// Three of these unanswered, and a connection that died without a word is replaced: after 20 s at the latest.
const PING_INTERVAL: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Soon enough for a server that comes back, seldom enough for one that is down for hours.
const MAX_RECONNECT_DELAY: Duration = Duration::from_secs(2);
const FLAPPING_PAUSE: Duration = Duration::from_secs(1);
/// At most one line of log in this time says why there is no connection.
const LOG_PAUSE: Duration = Duration::from_secs(30);
/// As many as the library reports at once.
const KEPT_COMPLAINTS: usize = 128;
/// How the server begins a complaint that leaves the connection up.
const DENIED: &str = "Permissions Violation";
const DENIED_PUBLISH: &str = "Permissions Violation for Publish";
/// How long one denied publish puts those after it in doubt, where nothing else confirms them.
const DENIAL_LASTS: Duration = Duration::from_secs(1);
/// How long [`Link::close`] waits for the library to say good-bye.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection that may be up or down.
pub(super) struct Link {
    sink: String,
    /// The servers as configured: host and port only.
    servers: String,
    client: OnceLock<Client>,
    pub(super) replies: Arc<Replies>,
    status: Mutex<Status>,
    /// Signalled at every connect, and by whoever finds the stream missing.
    pub(super) stream_wanted: Arc<Notify>,
    closed: Notify,
    closing: AtomicBool,
    receiver: OnceLock<AbortHandle>,
}

#[derive(Default)]
struct Status {
    /// Why there is no connection.
    cause: Option<String>,
    /// When the last connection was made.
    connected: Option<Instant>,
    /// What the server complained about, the newest last; a few, because denied publishes come in crowds.
    complaints: VecDeque<(Instant, String)>,
    /// When the last publish was denied.
    denied: Option<Instant>,
    /// When an outage was last explained in the log.
    outage_logged: Option<Instant>,
    /// When a complaint was last logged.
    complaint_logged: Option<Instant>,
}

impl Link {
    /// Starts to connect in the background. Fails on settings that can never work.
    pub(super) fn open(sink: &str, config: &Config) -> Result<Arc<Self>, SetupError> {
        let servers = parse_servers(&config.servers.0)?;
        let identity = Identity::from_config(config)?;
        let prefix = config.inbox_prefix.as_deref().unwrap_or("_INBOX");
        if !async_nats::Subject::from(prefix).is_valid() || prefix.contains(['*', '>']) {
            return Err(SetupError(format!("`inbox_prefix`: `{prefix}` is not a literal subject")));
        }
        let link = Arc::new(Self {
            sink: sink.to_owned(),
            servers: servers
                .iter()
                .map(|server| format!("{}:{}", server.host(), server.port()))
                .collect::<Vec<_>>()
                .join(", "),
            client: OnceLock::new(),
            replies: Arc::new(Replies::below(prefix)),
            status: Mutex::default(),
            stream_wanted: Arc::default(),
            closed: Notify::new(),
            closing: AtomicBool::new(false),
            receiver: OnceLock::new(),
        });
        let options = link.options(config, identity, prefix)?;
        let receive = tokio::spawn(receive(Arc::downgrade(&link), link.replies.clone(), options, servers));
        let _ = link.receiver.set(receive.abort_handle());
        Ok(link)
    }

    /// The client, if it is connected now.
    pub(super) fn client(&self) -> Result<&Client, Failure> {
        if self.closing.load(Ordering::Relaxed) {
            return Err(Failure::unavailable("the connection to nats is closed"));
        }
        match self.client.get() {
            Some(client) if client.connection_state() == State::Connected => Ok(client),
            _ => Err(Failure::unavailable(self.describe_outage())),
        }
    }

    /// What the server complained about since `start`, if it names `what`. The server reports a denied publish this way, and
    /// never in a reply.
    pub(super) fn complaint_about(&self, what: &str, start: Instant) -> Option<String> {
        let status = self.status();
        let complaint = status.complaints.iter().rev().find(|(at, text)| *at >= start && text.contains(what));
        complaint.map(|(_, text)| format!("nats refused: {text}"))
    }

    /// Whether the server has denied any publish since shortly before `start`. It does not say which one in a way that could be
    /// relied on: the library drops such reports when they come in a crowd, and passes them on late.
    pub(super) fn denied_since(&self, start: Instant) -> bool {
        let denied = self.status().denied;
        denied.is_some_and(|at| at + DENIAL_LASTS >= start)
    }

    /// Says good-bye. A connection that is down is simply not tried again.
    pub(super) async fn close(&self) {
        let connected = self.client().ok();
        self.closing.store(true, Ordering::Relaxed);
        let Some(client) = connected else { return };
        let good_bye = async {
            if client.drain().await.is_ok() {
                self.closed.notified().await;
            }
        };
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, good_bye).await;
    }

    fn options(
        self: &Arc<Self>,
        config: &Config,
        identity: Identity,
        inbox: &str,
    ) -> Result<ConnectOptions, SetupError> {
        let (on_event, on_attempt) = (Arc::downgrade(self), Arc::downgrade(self));
        let options = ConnectOptions::with_auth_callback(move |nonce| {
            let answer = identity.answer(&nonce).map_err(AuthError::new);
            async move { answer }
        })
        .name(config.client_name.as_deref().unwrap_or("cdrelay"))
        .custom_inbox_prefix(inbox)
        .retry_on_initial_connect()
        .max_reconnects(None)
        .connection_timeout(CONNECT_TIMEOUT)
        .ping_interval(PING_INTERVAL)
        .client_capacity(COMMAND_CAPACITY)
        .reconnect_delay_callback(reconnect_delay)
        .event_callback(move |event| {
            let link = on_event.upgrade();
            async move {
                if let Some(link) = link {
                    link.observe(event);
                }
            }
        })
        // The one place where the library tells why an attempt failed; the choice of server stays with it.
        .reconnect_to_server_callback(move |servers, _| {
            let link = on_attempt.upgrade();
            async move {
                match link {
                    Some(link) if !link.closing.load(Ordering::Relaxed) => {
                        link.note_failed_attempts(&servers);
                        let pause = link.flapping();
                        drop(link);
                        tokio::time::sleep(pause).await;
                    }
                    // Nobody wants this connection any more, and the library has no other way to stop trying.
                    _ => std::future::pending().await,
                }
                None
            }
        });
        config.tls.iter().try_fold(options, add_tls)
    }

    fn observe(&self, event: Event) {
        match event {
            Event::Connected => {
                let mut status = self.status();
                (status.cause, status.connected) = (None, Some(Instant::now()));
                drop(status);
                info!(sink = self.sink, servers = self.servers, "connected to nats");
                self.stream_wanted.notify_one();
            }
            Event::Disconnected => {
                let complaint = self.status().complaints.back().cloned();
                let fatal =
                    |at: Instant, text: &str| at.elapsed() < Duration::from_secs(1) && !text.starts_with(DENIED);
                let recent = complaint.filter(|(at, text)| fatal(*at, text));
                let cause = recent.map_or_else(|| "connection lost".to_owned(), |(_, text)| text);
                self.replies.abandon();
                if !self.closing.load(Ordering::Relaxed) {
                    warn!(sink = self.sink, cause = without_names(&cause), "disconnected from nats");
                    self.status().cause = Some(cause);
                }
            }
            Event::ServerError(error) => {
                let text = complaint_text(&error);
                if self.may_log(|status| &mut status.complaint_logged) {
                    warn!(sink = self.sink, complaint = without_names(&text), "the nats server complains");
                }
                let mut status = self.status();
                if status.complaints.len() >= KEPT_COMPLAINTS {
                    status.complaints.pop_front();
                }
                if text.starts_with(DENIED_PUBLISH) {
                    status.denied = Some(Instant::now());
                }
                status.complaints.push_back((Instant::now(), text));
            }
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

    fn note_failed_attempts(&self, servers: &[Server]) {
        let errors = servers.iter().filter_map(|server| Some((server, attempt_error(server.last_error.as_deref()?))));
        let text = match servers {
            [_] => errors.map(|(_, error)| error).collect::<Vec<_>>(),
            _ => errors
                .map(|(server, error)| format!("{}:{}: {error}", server.addr.host(), server.addr.port()))
                .collect(),
        };
        if !text.is_empty() {
            self.explain_outage(text.join("; "));
        }
    }

    fn explain_outage(&self, cause: String) {
        self.status().cause = Some(cause);
        if self.may_log(|status| &mut status.outage_logged) {
            warn!(sink = self.sink, cause = self.describe_outage(), "nats cannot be reached, trying for ever");
        }
    }

    /// How long to leave a server alone that has just taken a connection and dropped it again: the library counts no failed
    /// attempt there, and would knock without pause.
    fn flapping(&self) -> Duration {
        let connected = self.status().connected;
        connected.map_or(Duration::ZERO, |at| FLAPPING_PAUSE.saturating_sub(at.elapsed()))
    }

    /// Whether the pause since the last line of this kind is over, and if so, starts the next.
    fn may_log(&self, last: impl Fn(&mut Status) -> &mut Option<Instant>) -> bool {
        let mut status = self.status();
        let last = last(&mut status);
        let may = last.is_none_or(|at| at.elapsed() >= LOG_PAUSE);
        if may {
            *last = Some(Instant::now());
        }
        may
    }

    fn describe_outage(&self) -> String {
        let cause = self.status().cause.clone();
        format!("not connected to nats at {}: {}", self.servers, cause.as_deref().unwrap_or("still connecting"))
    }

    fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(receiver) = self.receiver.get() {
            receiver.abort();
        }
    }
}

/// Connects, then hands every reply to the publish that waits for it.
async fn receive(link: Weak<Link>, replies: Arc<Replies>, options: ConnectOptions, servers: Vec<ServerAddr>) {
    let client = match options.connect(servers).await {
        Ok(client) => client,
        // Only an unusable address gets here, and those were refused at load.
        Err(error) => return link.upgrade().into_iter().for_each(|link| link.explain_outage(error.to_string())),
    };
    let Ok(mut incoming) = client.subscribe(replies.subject()).await else { return };
    if let Some(link) = link.upgrade() {
        let _ = link.client.set(client);
    }
    while let Some(reply) = incoming.next().await {
        replies.deliver(reply);
    }
}

/// Host and port of each server. Credentials in a URL are refused: the library would ignore them.
fn parse_servers(urls: &[String]) -> Result<Vec<ServerAddr>, SetupError> {
    let refused = |url: &str, why: &str| SetupError(format!("`servers`: `{url}` {why}"));
    let parse = |url: &String| {
        if url.contains('@') {
            return Err(SetupError(
                "`servers`: a URL must not hold credentials; use `user` and `password`, or `token`".to_owned(),
            ));
        }
        let server: ServerAddr =
            url.trim().parse().map_err(|_| refused(url, "is not an address like nats://host:4222"))?;
        match server.scheme() {
            _ if server.host().is_empty() => Err(refused(url, "names no host")),
            "nats" | "tls" => Ok(server),
            _ => Err(refused(url, "is neither nats:// nor tls://")),
        }
    };
    match urls {
        [] => Err(SetupError("`servers`: is empty; name at least one, like nats://127.0.0.1:4222".to_owned())),
        urls => urls.iter().map(parse).collect(),
    }
}

/// The files are tried now, so that a mistake shows at load, and read again by the library at each connect.
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

/// 50 ms, doubled at each attempt up to the maximum, each shortened by up to a quarter so that many bridges do not knock at once.
fn reconnect_delay(attempts: usize) -> Duration {
    let doublings = u32::try_from(attempts.saturating_sub(1)).unwrap_or(u32::MAX).min(10);
    let delay = Duration::from_millis(50).saturating_mul(1 << doublings).min(MAX_RECONNECT_DELAY);
    delay.mul_f64(1.0 - 0.25 * fastrand::f64())
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

fn complaint_text(error: &ServerError) -> String {
    match error {
        ServerError::Other(text) => text.trim_matches('\'').to_owned(),
        other => other.to_string(),
    }
}

/// A complaint without the subjects it quotes: they carry names from events, which do not belong in a log.
fn without_names(text: &str) -> String {
    text.split('"').step_by(2).collect::<Vec<_>>().join("…")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_checked_at_load() {
        let parse = |url: &str| parse_servers(&[url.to_owned()]).map_err(|error| error.to_string());
        assert_eq!(parse("nats.example").unwrap().first().map(ServerAddr::port), Some(4222));
        assert!(parse("tls://a:1").is_ok());
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
        assert_eq!(without_names(complaint), "Permissions Violation for Publish to …");
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
