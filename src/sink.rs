//! The contract between the dispatcher and a destination. To add a type of sink, implement [`Sink`] and [`SinkConfig`] in one file,
//! and add one line to [`Registry`]; from outside the crate as in `examples/custom_sink.rs`.

pub mod kafka;
mod message;
pub mod nats;
mod registry;
pub mod stdout;

pub use message::Message;
pub use registry::{Destination, Registry, SinkConfig};

use futures_util::future::BoxFuture;

/// Publishes messages to one destination. Never retries on its own account, never drops.
pub trait Sink: Send + Sync {
    /// Resolves once the destination has durably acknowledged or refused the message. Called concurrently for messages
    /// of different conversations; never for two of the same one. May be dropped at shutdown: the message stays spooled.
    fn publish<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Result<(), Failure>>;

    /// Whether the destination can be reached now and one of its places takes messages; feeds readiness. Called about every
    /// ten seconds, and within a second after a failed publish. [`Failure::Place`] where every place that the sink publishes to is away.
    fn probe(&self) -> BoxFuture<'_, Result<(), Failure>>;

    /// Flushes and disconnects within the grace period.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// Why a message was not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The destination's fault, or unknown: nothing of the sink moves; back off and retry for ever.
    #[error("{cause}")]
    Unavailable {
        /// The cause, for an operator.
        cause: String,
    },
    /// The fault of one place (topic, partition, subject, stream) while the destination is up: messages for that place wait,
    /// the others go on. A sink answers so fast: it remembers for a second or so that a place is away.
    #[error("{place}: {cause}")]
    Place {
        /// The place in words of an operator: `topic cdr.sales`, `topic cdr partition 3`, `subject cdr.sales.missed`.
        place: String,
        /// Why the place does not take messages.
        cause: String,
        /// Whether messages become dead letters after `retry.max_age`: so where the place is missing or not permitted; a
        /// partition that is away is waited for.
        expires: bool,
    },
    /// This message's own fault (too large, refused content): dead letter at once.
    #[error("{cause}")]
    Rejected {
        /// The cause, for an operator.
        cause: String,
    },
}

impl Failure {
    /// A [`Failure::Unavailable`].
    pub fn unavailable(cause: impl std::fmt::Display) -> Self {
        Self::Unavailable { cause: cause.to_string() }
    }

    /// A [`Failure::Rejected`].
    pub fn rejected(cause: impl std::fmt::Display) -> Self {
        Self::Rejected { cause: cause.to_string() }
    }
}

/// A sink's settings contradict each other, or name something that is not there.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SetupError(pub String);

impl From<crate::setting::SecretError> for SetupError {
    fn from(error: crate::setting::SecretError) -> Self {
        Self(error.to_string())
    }
}
