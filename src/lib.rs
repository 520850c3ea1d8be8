//! cdrelay
#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

pub mod ingress;
pub mod spool;
pub mod dispatch;
pub mod route;
pub mod config;
pub mod event;
pub mod metrics;
pub mod sink;
pub mod setting;
