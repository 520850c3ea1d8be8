//! The contract between the dispatcher and a destination.

pub mod kafka;
mod message;
pub mod nats;
pub(crate) mod pending;
pub mod stdout;

pub use message::{HeaderName, Message};
pub use pending::{Outcome, Outcomes, Pending};

use kafka::KafkaSink;
use nats::NatsSink;
use std::time::Duration;
use stdout::StdoutSink;

/// Publishes messages to one destination. Never retries on its own account, never drops.
pub trait Sink: Send + Sync + 'static {
    /// Resolves once the destination has durably acknowledged or refused the message. Called concurrently for messages
    /// of different conversations; never for two of the same one. May be dropped at shutdown: the message stays spooled.
    fn publish(&self, message: &Message) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Begins to publish the message, if nothing has to be waited for: for who has many, and need not know why one fails. Gives
    /// `pending` back if it cannot, and answers through it if it can. What is not delivered then is published.
    fn hand_over(&self, message: &Message, pending: Pending) -> Option<Pending> {
        let _ = message;
        Some(pending)
    }

    /// No more is handed over for now: nothing has to wait for company.
    fn flush(&self) {}

    /// Whether the destination can be reached now; feeds readiness.
    fn probe(&self) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Flushes and disconnects within the grace period.
    fn close(&self) -> impl Future<Output = ()> + Send;
}

/// A sink of any kind.
pub enum AnySink {
    /// `type = "stdout"`
    Stdout(StdoutSink),
    /// `type = "kafka"`
    Kafka(KafkaSink),
    /// `type = "nats"`
    Nats(NatsSink),
}

impl Sink for AnySink {
    async fn publish(&self, message: &Message) -> Result<(), Failure> {
        match self {
            Self::Stdout(sink) => sink.publish(message).await,
            Self::Kafka(sink) => sink.publish(message).await,
            Self::Nats(sink) => sink.publish(message).await,
        }
    }

    fn hand_over(&self, message: &Message, pending: Pending) -> Option<Pending> {
        match self {
            Self::Stdout(sink) => sink.hand_over(message, pending),
            Self::Kafka(sink) => sink.hand_over(message, pending),
            Self::Nats(sink) => sink.hand_over(message, pending),
        }
    }

    fn flush(&self) {
        match self {
            Self::Stdout(sink) => sink.flush(),
            Self::Kafka(sink) => sink.flush(),
            Self::Nats(sink) => sink.flush(),
        }
    }

    async fn probe(&self) -> Result<(), Failure> {
        match self {
            Self::Stdout(sink) => sink.probe().await,
            Self::Kafka(sink) => sink.probe().await,
            Self::Nats(sink) => sink.probe().await,
        }
    }

    async fn close(&self) {
        match self {
            Self::Stdout(sink) => sink.close().await,
            Self::Kafka(sink) => sink.close().await,
            Self::Nats(sink) => sink.close().await,
        }
    }
}

/// Why a message was not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The destination's fault, or unknown: keep the message, back off, retry for ever.
    #[error("{cause}")]
    Unavailable {
        /// What an operator should read.
        cause: String,
        /// How long the destination asked to be left alone, where it said so.
        retry_after: Option<Duration>,
    },
    /// This message's own fault (too large, refused content): dead-letter it and carry on.
    #[error("{cause}")]
    Rejected {
        /// What an operator should read.
        cause: String,
    },
}

impl Failure {
    /// An [`Failure::Unavailable`] with no advice on when to come back.
    pub fn unavailable(cause: impl std::fmt::Display) -> Self {
        Self::Unavailable { cause: cause.to_string(), retry_after: None }
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
