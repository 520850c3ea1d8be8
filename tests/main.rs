//! The promises cdrelay makes, each kept by one module, against real brokers. `tests/run` starts those and runs this.

mod brokers;
mod delivery;
mod independence;
mod kafka_sink;
mod nats_sink;
mod ordering;
mod outage;
mod recovery;
mod replay;
mod routing;
mod support;
