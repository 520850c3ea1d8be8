//! Handing events back to the spool: through the running bridge, or directly if none runs.

use super::{CommandError, Location};
use crate::config::{Config, ConfigError};
use crate::control::{self, Again, Outcome};
use crate::metrics::Metrics;
use crate::spool::inspect::Inspection;
use crate::spool::{OpenError, Retain, Spool};
use std::io;
use std::path::Path;
use std::time::Duration;

/// Stores `events` for the sink called `target` and tells how far that went.
pub fn publish_again(location: &Location, target: &str, events: &[Again]) -> Result<Outcome, CommandError> {
    let path = location.spool()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        if let Some(outcome) = control::send(&path, target, events).await? {
            return Ok(outcome);
        }
        let spool = open(&path, location.config()?, target)?;
        let stored = control::store(&spool, target, events.to_vec()).await;
        spool.close();
        Ok(match stored {
            Ok(()) => Outcome { stored: events.len(), error: None },
            Err(error) => Outcome { stored: 0, error: Some(error.to_string()) },
        })
    })
}

/// Opens the spool of a bridge that does not run so that nothing which waits in it is given up, even if the configuration at
/// hand is not quite that bridge's own: whatever sink has a cursor keeps its records, and what is retained stays.
fn open(path: &Path, config: Config, target: &str) -> Result<Spool, CommandError> {
    if !config.sinks.contains_key(target) {
        let problem = format!("no sink is called `{target}` in the configuration; name the bridge's own with --config");
        return Err(ConfigError::new(problem).into());
    }
    let cursors = Inspection::of(path)?.cursors;
    let mut sinks: Vec<&str> = cursors.iter().map(|(sink, _)| sink.as_str()).collect();
    if !sinks.contains(&target) {
        sinks.push(target);
    }
    let mut spool = config.spool;
    spool.path = path.to_owned();
    spool.retain = Some(Retain { age: Duration::from_secs(u64::MAX / 1000), size: None });
    Spool::open(&spool, &sinks, Metrics::default().spool)
        .map_err(|error: OpenError| CommandError::Io(io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    use super::super::Settings;
    use super::*;
    use crate::event::{Arrival, Event, MAX_DEPTH};
    use crate::spool;

    fn event(number: usize) -> Event {
        Event::parse(&format!("{{\"n\":{number}}}"), MAX_DEPTH, Arrival::now()).unwrap()
    }

    #[test]
    fn what_waits_for_other_sinks_outlives_a_replay_with_a_configuration_that_lacks_them() {
        let dir = tempfile::tempdir().unwrap();
        let config = spool::Config {
            path: dir.path().join("spool"),
            segment_size: Some(bytesize::ByteSize::kib(4)),
            ..Default::default()
        };
        let open = || Spool::open(&config, &["behind", "stdout"], Metrics::default().spool).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let spool = open();
        for request in 0..10 {
            let events = (0..30).map(|number| event(30 * request + number)).collect();
            runtime.block_on(spool.append(events)).unwrap();
        }
        spool.settle(&spool.cursor("stdout").unwrap(), 300);
        spool.close();
        drop(spool);

        let settings = Settings { config: Vec::new(), set: Vec::new() };
        let location = Location { settings, spool: Some(config.path.clone()) };
        let again = [Again { arrival: 1, payload: "{}".into() }];
        let outcome = publish_again(&location, "stdout", &again).unwrap();
        assert_eq!(outcome, Outcome { stored: 1, error: None });
        let unknown = publish_again(&location, "behind", &again).unwrap_err();
        assert!(unknown.to_string().contains("--config"), "{unknown}");

        let records = runtime.block_on(open().reader("behind").unwrap().read(usize::MAX)).unwrap();
        assert_eq!(records.first().map(|record| record.offset), Some(0));
        assert_eq!(records.len(), 301);
    }
}
