//! Matches the server's replies to the publishes that wait for them, over one inbox subscription.
//!
//! The client library can do this too, but keeps an entry for ever when a reply never comes: a stream without a quorum would
//! grow the process with every retry. Here an entry lives no longer than the publish that waits for it.

use crate::sink::Pending;
use async_nats::Message;
use foldhash::fast::RandomState;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::oneshot;

/// Replies under way, by the number at the end of their inbox.
pub(super) struct Replies {
    inbox: String,
    /// Whether a reply says that the message is stored.
    confirms: fn(&Message) -> bool,
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, Waiting, RandomState>>,
}

/// Who waits for a reply.
enum Waiting {
    /// A publish, which reads it.
    Publish(oneshot::Sender<Message>),
    /// A message that was handed over at this moment.
    Handed(Pending, Instant),
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
    pub(super) fn below(prefix: &str, confirms: fn(&Message) -> bool) -> Self {
        let unique: String = std::iter::repeat_with(fastrand::alphanumeric).take(16).collect();
        Self { inbox: format!("{prefix}.{unique}"), confirms, next: AtomicU64::new(0), waiting: Mutex::default() }
    }

    /// The subject to subscribe to.
    pub(super) fn subject(&self) -> String {
        format!("{}.*", self.inbox)
    }

    pub(super) fn ticket(&self) -> Ticket<'_> {
        let (sender, reply) = oneshot::channel();
        Ticket { replies: self, number: self.add(Waiting::Publish(sender)), reply }
    }

    /// Keeps `pending` for its reply. Returns its number, and where the reply has to be sent.
    pub(super) fn hold(&self, pending: Pending) -> (u64, String) {
        let number = self.add(Waiting::Handed(pending, Instant::now()));
        (number, self.inbox(number))
    }

    /// Gives back what was kept under this number; `None` if that has been let go of meanwhile.
    pub(super) fn give_back(&self, number: u64) -> Option<Pending> {
        match self.waiting().remove(&number)? {
            Waiting::Handed(pending, _) => Some(pending),
            Waiting::Publish(_) => None,
        }
    }

    /// Lets go of what was handed over before this moment.
    pub(super) fn expire(&self, before: Instant) {
        self.waiting().retain(|_, waiting| !matches!(waiting, Waiting::Handed(_, since) if *since < before));
    }

    /// Hands a reply to whoever still waits for it.
    pub(super) fn deliver(&self, message: Message) {
        let number = message.subject.rsplit('.').next().and_then(|number| number.parse().ok());
        let waiting = number.and_then(|number: u64| self.waiting().remove(&number));
        match waiting {
            Some(Waiting::Publish(waiter)) => drop(waiter.send(message)),
            Some(Waiting::Handed(pending, _)) if (self.confirms)(&message) => pending.delivered(),
            // It is published, and then told why it cannot be.
            Some(Waiting::Handed(pending, _)) => drop(pending),
            None => {}
        }
    }

    /// Tells everyone who waits that the connection is gone.
    pub(super) fn abandon(&self) {
        self.waiting().clear();
    }

    fn add(&self, waiting: Waiting) -> u64 {
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

    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, Waiting, RandomState>> {
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
    use crate::sink::Outcomes;
    use futures_util::FutureExt;
    use std::sync::Arc;
    use std::task::{Context, Waker};
    use std::time::Duration;

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
        let replies = Replies::below("_INBOX", |reply| reply.payload == "stored");
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
        let replies = Replies::below("_INBOX", |reply| reply.payload == "stored");
        let ticket = replies.ticket();
        let outcomes = Arc::<Outcomes>::default();
        replies.hold(Pending::new(1, outcomes.clone()));
        replies.abandon();
        assert!(ticket.reply().now_or_never().unwrap().is_err());
        assert_eq!(told(&outcomes), [(1, false)]);
    }

    #[test]
    fn what_was_handed_over_is_delivered_by_a_reply_that_says_so_and_by_nothing_else() {
        let replies = Replies::below("_INBOX", |reply| reply.payload == "stored");
        let outcomes = Arc::<Outcomes>::default();
        let hold = |number| replies.hold(Pending::new(number, outcomes.clone()));
        let reply = |inbox: &str, text: &'static str| {
            replies.deliver(Message { payload: text.into(), ..reply_to(inbox) });
        };
        let [stored, refused, given_back] = [1, 2, 3].map(hold);
        reply(&stored.1, "stored");
        reply(&stored.1, "stored");
        reply(&refused.1, "refused");
        replies.give_back(given_back.0).unwrap().withdraw();
        assert!(replies.give_back(given_back.0).is_none());
        assert_eq!(told(&outcomes), [(1, true), (2, false)]);

        let ticket = replies.ticket();
        let early = hold(4);
        let between = Instant::now();
        while Instant::now() == between {}
        let late = hold(5);
        replies.expire(between + Duration::from_nanos(1));
        reply(&early.1, "stored");
        reply(&late.1, "stored");
        assert_eq!(told(&outcomes), [(4, false), (5, true)]);
        replies.deliver(reply_to(&ticket.inbox()));
        assert!(ticket.reply().now_or_never().unwrap().is_ok());
        assert!(replies.waiting().is_empty());
    }

    fn told(outcomes: &Outcomes) -> Vec<(usize, bool)> {
        let mut told = Vec::new();
        let _ = outcomes.poll_told(&mut Context::from_waker(Waker::noop()), &mut told);
        told.iter().map(|outcome| (outcome.number, outcome.delivered)).collect()
    }
}
