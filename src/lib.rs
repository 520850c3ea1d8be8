//! cdrelay receives telephony call-detail-record (CDR) webhooks over HTTP and publishes them to Kafka, NATS or stdout, keyed
//! by `team` and `conversation_uuid`.
//!
//! One promise rules every decision: **a 2xx means the event is on disk and will reach every sink, in order within its
//! conversation, at least once.**
//!
//! ```text
//! HTTP ─ ingress ─ decode ─▶ Event ─ spool (append, group-commit fsync) ─▶ 200
//!                                      │ one log, one durable cursor per sink
//!                                      ▼
//!                dispatch (one per sink) ─ route ─▶ Message ─ Sink::publish ─▶ Kafka | NATS | stdout
//!                  order, retry, dead letters
//! ```
//!
//! [`soak`] is a test for users: it sends events, consumes the sinks, and tells whether the promise is kept.
//!
//! The modules below stand in the order of the flow, callers first; each uses only what stands below it.
//!
//! | term | meaning |
//! |---|---|
//! | [`event::Event`] | one webhook notification, byte for byte as received where it came as JSON |
//! | [`spool::Record`] | an event at an offset in the spool |
//! | [`sink::Message`] | a record rendered for one sink |
//! | [`spool::Spool`] | the durable log on local disk, the only queue in the process |
//! | [`spool::Cursor`] | the durable position of one sink: everything below it is settled |
//! | settled | acknowledged by the destination, filtered out by the sink's `when`, or durably dead-lettered |
//! | dead letter | a message that a sink refused for good, or a request body that could not be decoded, kept with its reason |
#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

pub mod cli;

pub mod soak;

pub mod bridge;

pub mod config;

pub mod admin;
pub mod ingress;
pub mod server;

pub mod control;
pub mod reconcile;

pub mod dead_letter;
pub mod dispatch;
pub mod route;
pub mod sink;
pub mod spool;

pub mod event;
pub mod http_client;
pub mod log_throttle;
pub mod logging;
pub mod metrics;
pub mod redact;
pub mod reloaded;
pub mod setting;
