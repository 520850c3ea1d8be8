//! The promises cdrelay makes, each kept by one module, against real brokers. `tests/run` starts those and runs this.

mod brokers;
mod command_line;
mod deploy;
mod examples;
mod kafka_sink;
mod nats_sink;
mod probes;
mod readme;
mod support;
