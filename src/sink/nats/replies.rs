//! Matches answers to the publishes that await them, over one inbox subscription.
//!
//! async-nats has such a table too, but keeps the entry of a publish that is never answered for as long as the client lives
//! (<https://github.com/nats-io/nats.rs/issues/1617>, open in 0.51): a stream without a quorum would grow the process with every
//! retry. Here an entry lives no longer than the publish.

use async_nats::Message;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::oneshot;

/// The publishes that await an answer, by the number at the end of their reply inbox.
pub(super) struct Replies {
    inbox: String,
    next: AtomicU64,
    pending: Mutex<HashMap<u64, Pending>>,
}

struct Pending {
    subject: String,
    answer: oneshot::Sender<Answer>,
}

/// The outcome of a publish.
#[derive(Debug)]
pub(super) enum Answer {
    /// A message came to its reply inbox.
    Reply(Message),
    /// The server refused it, with this text.
    Denied(String),
    /// The connection was lost first: the destination may have it.
    Lost,
    /// None came in time: the destination may have it.
    TimedOut,
}

/// An answer that is awaited. Dropping it gives it up.
pub(super) struct Awaited<'a> {
    replies: &'a Replies,
    number: u64,
    answer: oneshot::Receiver<Answer>,
}

impl Replies {
    /// A table for replies below `prefix`, at an inbox that no other client uses.
    pub(super) fn below(prefix: &str) -> Self {
        let unique: String = std::iter::repeat_with(fastrand::alphanumeric).take(16).collect();
        Self { inbox: format!("{prefix}.{unique}"), next: AtomicU64::new(0), pending: Mutex::default() }
    }

    /// The subject to subscribe to.
    pub(super) fn subject(&self) -> String {
        format!("{}.*", self.inbox)
    }

    /// Whether replies arrive at this subject.
    pub(super) fn are_at(&self, subject: &str) -> bool {
        subject.strip_prefix(&self.inbox).is_some_and(|number| number.starts_with('.'))
    }

    /// Awaits the answer to a publish on `subject`, or on the reply inbox itself.
    pub(super) fn expect(&self, subject: Option<&str>) -> Awaited<'_> {
        let (sender, answer) = oneshot::channel();
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let subject = subject.map_or_else(|| format!("{}.{number}", self.inbox), str::to_owned);
        self.pending.lock().insert(number, Pending { subject, answer: sender });
        Awaited { replies: self, number, answer }
    }

    /// Takes a message that came to the inbox.
    pub(super) fn deliver(&self, message: Message) {
        let number = message.subject.rsplit('.').next().and_then(|number| number.parse::<u64>().ok());
        if let Some(pending) = number.and_then(|number| self.pending.lock().remove(&number)) {
            let _ = pending.answer.send(Answer::Reply(message));
        }
    }

    /// The server denied publishes on `subject`.
    pub(super) fn deny(&self, subject: &str, text: &str) {
        for (_, pending) in self.pending.lock().extract_if(|_, pending| pending.subject == subject) {
            let _ = pending.answer.send(Answer::Denied(text.to_owned()));
        }
    }

    /// The connection is gone, or cannot bring replies.
    pub(super) fn lost(&self) {
        self.pending.lock().clear();
    }
}

impl Awaited<'_> {
    /// The reply inbox of the publish.
    pub(super) fn inbox(&self) -> String {
        format!("{}.{}", self.replies.inbox, self.number)
    }

    pub(super) async fn answer(mut self) -> Answer {
        (&mut self.answer).await.unwrap_or(Answer::Lost)
    }
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        self.replies.pending.lock().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn reply_to(inbox: &str) -> Message {
        let (reply, headers, status, description, payload) = (None, None, None, None, Default::default());
        Message { subject: inbox.into(), reply, payload, headers, status, description, length: 0 }
    }

    fn answer(awaited: Awaited<'_>) -> Option<Answer> {
        awaited.answer().now_or_never()
    }

    #[test]
    fn a_reply_answers_its_own_publish_and_leaves_nothing_behind() {
        let replies = Replies::below("_INBOX");
        let (first, second) = (replies.expect(Some("a")), replies.expect(Some("a")));
        let (first_inbox, second_inbox) = (first.inbox(), second.inbox());
        replies.deliver(reply_to(&second_inbox));
        assert!(matches!(answer(second), Some(Answer::Reply(reply)) if reply.subject.as_str() == second_inbox));
        assert_eq!(replies.pending.lock().len(), 1);
        drop(first);
        assert!(replies.pending.lock().is_empty());
        replies.deliver(reply_to(&first_inbox));
        replies.deliver(reply_to("_INBOX.other.x"));
    }

    #[test]
    fn a_refusal_answers_the_publishes_of_its_subject_alone() {
        let replies = Replies::below("_INBOX");
        let (denied, other) = (replies.expect(Some("a")), replies.expect(Some("a.b")));
        replies.deny("a", "no");
        assert!(matches!(answer(denied), Some(Answer::Denied(text)) if text == "no"));
        assert_eq!(replies.pending.lock().len(), 1);
        replies.lost();
        assert!(matches!(answer(other), Some(Answer::Lost)));
        assert!(replies.pending.lock().is_empty());
    }
}
