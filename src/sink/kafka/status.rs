//! The state of the cluster as librdkafka reports it: for readiness, for the causes of failures, and for the log.

use crate::log_throttle::LogThrottle;
use crate::sink::Failure;
use parking_lot::Mutex;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use serde::Deserialize;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// The cluster is up if it answered anything within this time.
const UP: Duration = Duration::from_secs(3);
/// How often librdkafka reports its statistics.
pub(super) const STATISTICS: Duration = Duration::from_secs(2);
/// Brokers whose last complaint is kept.
const COMPLAINTS: usize = 256;

/// Shared by all producers of a sink.
pub(super) struct Status {
    pub(super) sink: String,
    /// The bootstrap servers.
    pub(super) brokers: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// All brokers are down, and this was logged.
    down: bool,
    /// When the cluster answered last.
    answered: Option<Instant>,
    /// Until when the brokers delay answers because of a quota.
    throttled_until: Option<Instant>,
    /// librdkafka's last complaint since the cluster answered.
    complaint: Option<String>,
    /// The last complaint of each connection, by librdkafka's name of the broker: `sasl_ssl://host:9093/1`.
    complaints: HashMap<String, String>,
    /// By kind of log line. librdkafka has a fixed set of them.
    warned: HashMap<String, LogThrottle>,
}

impl Status {
    pub(super) fn new(sink: &str, brokers: String) -> Self {
        Self { sink: sink.to_owned(), brokers, state: Mutex::default() }
    }

    /// The cluster answered a request, or acknowledged a message.
    pub(super) fn answered(&self) {
        let mut state = self.state.lock();
        state.answered = Some(Instant::now());
        state.complaint = None;
        if std::mem::take(&mut state.down) {
            tracing::info!(sink = self.sink, brokers = self.brokers, "kafka is reachable again");
        }
    }

    /// Whether the cluster answers.
    pub(super) fn is_up(&self) -> bool {
        self.state.lock().answered.is_some_and(|answered| answered.elapsed() < UP)
    }

    /// Whether brokers delay their answers because of a quota.
    pub(super) fn is_throttled(&self) -> bool {
        self.state.lock().throttled_until.is_some_and(|until| Instant::now() < until)
    }

    /// librdkafka's last complaint about the broker with this host and port.
    pub(super) fn complaint_of(&self, address: Option<&str>) -> String {
        let state = self.state.lock();
        let about = |(broker, _): &(&String, &String)| address.is_some_and(|address| broker.contains(address));
        state.complaints.iter().find(about).map(|(_, complaint)| complaint.clone()).unwrap_or_default()
    }

    /// A request was not answered.
    pub(super) fn unreachable(&self, error: &KafkaError) -> Failure {
        let cause = self.state.lock().complaint.clone();
        let cause = cause.unwrap_or_else(|| match super::producer::code(error) {
            RDKafkaErrorCode::BrokerTransportFailure => "no connection to a broker yet".to_owned(),
            code => code.to_string(),
        });
        Failure::unavailable(format!("kafka at {} does not answer: {cause}", self.brokers))
    }

    /// A connection failed, or something else that librdkafka mends by itself.
    pub(super) fn complain(&self, complaint: &str) {
        tracing::debug!(sink = self.sink, complaint, "kafka error");
        let mut state = self.state.lock();
        state.complaint = Some(complaint.to_owned());
        if let Some((broker, text)) = complaint.split_once(": ").filter(|(broker, _)| broker.contains('/')) {
            if state.complaints.len() >= COMPLAINTS {
                state.complaints.clear();
            }
            state.complaints.insert(broker.to_owned(), text.to_owned());
        }
    }

    /// No broker is connected. This complaint says no more than that, so an earlier one is kept.
    pub(super) fn all_brokers_down(&self, complaint: &str) {
        let mut state = self.state.lock();
        let cause = state.complaint.get_or_insert_with(|| complaint.to_owned()).clone();
        if !std::mem::replace(&mut state.down, true) {
            let (sink, brokers) = (&self.sink, &self.brokers);
            tracing::warn!(sink, brokers, cause, "kafka is not reachable, events wait in the spool");
        }
    }

    /// A log line of librdkafka: `[thrd:…]: BROKER: …` with facility `FAIL` where a connection failed.
    pub(super) fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        if facility == "FAIL" {
            // A connection that the broker closes is an error to librdkafka only in its log.
            self.complain(line.split_once("]: ").map_or(line, |(_, complaint)| complaint));
        }
        if (level as i32) <= (RDKafkaLogLevel::Warning as i32) && self.may_warn(facility) {
            tracing::warn!(sink = self.sink, facility, "{line}");
        } else {
            tracing::debug!(sink = self.sink, facility, "{line}");
        }
    }

    /// Reads librdkafka's statistics: <https://github.com/confluentinc/librdkafka/blob/v2.12.1/STATISTICS.md>.
    pub(super) fn statistics(&self, json: &[u8]) {
        let brokers = match serde_json::from_slice::<Statistics>(json) {
            Ok(statistics) => statistics.brokers,
            Err(error) => return tracing::debug!(sink = self.sink, %error, "librdkafka's statistics cannot be read"),
        };
        let longest = brokers.into_iter().max_by_key(|(_, broker)| broker.throttle.max);
        let Some((broker, Broker { throttle: Throttle { max } })) = longest.filter(|(_, found)| found.throttle.max > 0)
        else {
            return;
        };
        let throttle = Duration::from_millis(max.unsigned_abs());
        self.state.lock().throttled_until = Some(Instant::now() + throttle + 2 * STATISTICS);
        if self.may_warn("throttle") {
            let throttle_ms = max;
            tracing::warn!(sink = self.sink, broker, throttle_ms, "kafka throttles this client: a quota is exceeded");
        }
    }

    /// Whether a line of this kind is shown as a warning; the others are for `debug`.
    fn may_warn(&self, facility: &str) -> bool {
        self.state.lock().warned.entry(facility.to_owned()).or_default().should_log().is_some()
    }
}

/// The part of the statistics that is read.
#[derive(Deserialize)]
struct Statistics {
    brokers: HashMap<String, Broker>,
}

#[derive(Deserialize)]
struct Broker {
    throttle: Throttle,
}

/// Milliseconds since the last report.
#[derive(Deserialize)]
struct Throttle {
    max: i64,
}
