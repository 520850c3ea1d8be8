//! Matches the server's replies to the publishes that wait for them, over one inbox subscription.
//!
//! The client library can do this too, but keeps an entry for ever when a reply never comes: a stream without a quorum would
//! grow the process with every retry. Here an entry lives no longer than the publish that waits for it.

use async_nats::Message;
use foldhash::fast::RandomState;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// Replies under way, by the number at the end of their inbox.
pub(super) struct Replies {
    inbox: String,
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Message>, RandomState>>,
}

/// A claim to one reply. Dropping it gives up the claim.
pub(super) struct Ticket<'a> {
    replies: &'a Replies,
    number: u64,
    reply: oneshot::Receiver<Message>,
}

/// The connection went away before the reply came.
#[derive(Debug)]
pub(super) struct ConnectionLost;

impl Replies {
    /// Replies that arrive below `prefix`, at an address no other client uses.
    pub(super) fn below(prefix: &str) -> Self {
        let unique: String = std::iter::repeat_with(fastrand::alphanumeric).take(16).collect();
        Self { inbox: format!("{prefix}.{unique}"), next: AtomicU64::new(0), waiting: Mutex::default() }
    }

    /// The subject to subscribe to.
    pub(super) fn subject(&self) -> String {
        format!("{}.*", self.inbox)
    }

    pub(super) fn ticket(&self) -> Ticket<'_> {
        let (sender, reply) = oneshot::channel();
        Ticket { replies: self, number: self.add(sender), reply }
    }

    /// Hands a reply to whoever still waits for it.
    pub(super) fn deliver(&self, message: Message) {
        let number = message.subject.rsplit('.').next().and_then(|number| number.parse().ok());
        let waiting = number.and_then(|number: u64| self.waiting().remove(&number));
        if let Some(waiting) = waiting {
            // The publish may have been given up.
            let _ = waiting.send(message);
        }
    }

    /// Tells everyone who waits that the connection is gone.
    pub(super) fn abandon(&self) {
        self.waiting().clear();
    }

    fn add(&self, waiting: oneshot::Sender<Message>) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.waiting().insert(number, waiting);
        number
    }

    fn inbox(&self, number: u64) -> String {
        let mut inbox = String::with_capacity(self.inbox.len() + 21);
        inbox.push_str(&self.inbox);
        let _ = write!(inbox, ".{number}");
        inbox
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Message>, RandomState>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket<'_> {
    /// Where the reply has to be sent.
    pub(super) fn inbox(&self) -> String {
        self.replies.inbox(self.number)
    }

    pub(super) async fn reply(mut self) -> Result<Message, ConnectionLost> {
        (&mut self.reply).await.map_err(|_| ConnectionLost)
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.replies.waiting().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn reply_to(inbox: &str) -> Message {
        Message {
            subject: inbox.into(),
            reply: None,
            payload: Default::default(),
            headers: None,
            status: None,
            description: None,
            length: 0,
        }
    }

    #[test]
    fn a_reply_reaches_its_own_ticket_and_leaves_nothing_behind() {
        let replies = Replies::below("_INBOX");
        let (first, second) = (replies.ticket(), replies.ticket());
        let (first_inbox, second_inbox) = (first.inbox(), second.inbox());
        replies.deliver(reply_to(&second_inbox));
        assert_eq!(second.reply().now_or_never().unwrap().unwrap().subject.as_str(), second_inbox);
        assert_eq!(replies.waiting().len(), 1);
        drop(first);
        assert!(replies.waiting().is_empty());
        replies.deliver(reply_to(&first_inbox));
        replies.deliver(reply_to("_INBOX.other.x"));
    }

    #[test]
    fn a_lost_connection_releases_every_ticket() {
        let replies = Replies::below("_INBOX");
        let ticket = replies.ticket();
        replies.abandon();
        assert!(ticket.reply().now_or_never().unwrap().is_err());
    }
}
