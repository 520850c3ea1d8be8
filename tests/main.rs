//! The promises cdrelay makes, each kept by one module, against real brokers. `tests/run` starts those and runs this.

mod bounds;
mod brokers;
mod clusters;
mod command_line;
mod dead_letters;
mod delivery;
mod deploy;
mod examples;
mod faults;
mod full_disk;
mod independence;
mod ingress;
mod kafka_faults;
mod kafka_sink;
mod nats_faults;
mod nats_sink;
mod ordering;
mod outage;
mod probes;
mod readme;
mod recovery;
mod replay;
mod routing;
mod soak;
mod stopping;
mod support;
