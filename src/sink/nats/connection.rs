//! One connection to the servers. async-nats makes it and makes it again for ever; this module knows whether it can carry messages.
//!
//! A publish asks [`Connection::client`] first and learns at once why there is no connection: the client library would only buffer
//! messages that the spool keeps anyway. A connection is ready once an empty message to its own reply inbox has come back, or the
//! server has denied that publish alone. A user who may not subscribe to the inbox could never learn of an acknowledgement, and
//! every retry could be stored again: nothing is published then, and the connection is made anew until the server permits it.

use super::Config;
use super::options::{connect_options, parse_servers};
use super::replies::{Answer, Replies};
use crate::log_throttle::LogThrottle;
use crate::sink::{Failure, SetupError};
use async_nats::client::PublishErrorKind;
use async_nats::connection::State;
use async_nats::{Client, ClientError, ConnectOptions, Event, HeaderMap, Server, ServerAddr, ServerError};
use futures_util::StreamExt;
use hyper::body::Bytes;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

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

    /// Publishes and waits for the answer. An error means that nothing was published.
    pub(super) async fn publish(
        &self,
        subject: &str,
        headers: HeaderMap,
        payload: Bytes,
        confirm: Confirm,
        within: Duration,
    ) -> Result<Answer, Failure> {
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
        timeout(within, answer).await.unwrap_or(Ok(Answer::TimedOut))
    }

    /// Why an answer was [`Answer::Lost`].
    pub(super) fn lost(&self) -> Failure {
        let cause = || Failure::unavailable("the connection to nats was lost before the acknowledgement");
        self.client().err().unwrap_or_else(cause)
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
                if !self.closing.load(Ordering::Relaxed) && status.inbox != Inbox::Denied {
                    warn!(sink = self.sink, "disconnected from nats");
                    status.cause = None;
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
        if quoted(DENIED_SUBSCRIPTION).is_some_and(|subject| subject == self.replies.subject()) {
            let mut status = self.status.lock();
            (status.inbox, status.cause) = (Inbox::Denied, Some(text));
            self.replies.lost();
            self.changed.notify_one();
        }
    }

    /// Connects, then takes replies and checks the inbox until the task is aborted.
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
        let maintain_inbox = async {
            let mut pause = INBOX_PAUSE;
            loop {
                // The library drops events in a crowd, so the status is also checked without one.
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
        tokio::join!(receive, maintain_inbox);
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

/// A complaint without the subjects it quotes: they carry names from events, which do not belong in a log.
fn without_subjects(text: &str) -> String {
    text.split('"').step_by(2).collect::<Vec<_>>().join("…")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logged_complaint_names_no_subject() {
        let complaint = "Permissions Violation for Publish to \"telecmi.cdr.Sales.42\"";
        assert_eq!(without_subjects(complaint), "Permissions Violation for Publish to …");
    }
}
