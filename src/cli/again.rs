//! Handing events back to the spool: through the running bridge, or directly if none runs.

use super::{CommandError, Site};
use crate::config::ConfigError;
use crate::control::{self, Again, Outcome};
use crate::metrics::Metrics;
use crate::spool::inspect::Inspection;
use crate::spool::{OpenError, Retain, Spool};
use std::io;
use std::time::Duration;
use tokio::runtime::Runtime;

/// Hands events over, however often.
pub struct Publisher<'a> {
    site: &'a Site,
    runtime: Runtime,
    /// The spool, once it was found without a bridge; it is locked until this is dropped.
    spool: Option<Spool>,
}

impl<'a> Publisher<'a> {
    pub fn new(site: &'a Site) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { site, runtime, spool: None })
    }

    /// Stores `events` for the sink called `target`, or for all sinks, and tells how far that went.
    pub fn publish(&mut self, target: Option<&str>, events: &[Again]) -> Result<Outcome, CommandError> {
        let spool = match &self.spool {
            Some(spool) => spool,
            None => {
                if let Some(outcome) = self.runtime.block_on(control::send(&self.site.spool, target, events))? {
                    return Ok(outcome);
                }
                self.spool.insert(open(self.site, target)?)
            }
        };
        Ok(match self.runtime.block_on(control::store(spool, target, events.to_vec())) {
            Ok(duplicates) => Outcome { stored: events.len(), duplicates, error: None },
            Err(error) => Outcome { error: Some(error.to_string()), ..Outcome::default() },
        })
    }
}

/// Opens the spool of a bridge that does not run so that nothing which waits in it is given up, even if the configuration at
/// hand is not quite that bridge's own: whatever sink has a cursor keeps its records, and what is retained stays.
fn open(site: &Site, target: Option<&str>) -> Result<Spool, CommandError> {
    if let Some(target) = target.filter(|target| !site.config.sinks.contains_key(*target)) {
        let problem = format!("no sink is called `{target}` in the configuration; name the bridge's own with --config");
        return Err(ConfigError::new(problem).into());
    }
    let cursors = Inspection::of(&site.spool)?.cursors;
    let mut sinks: Vec<&str> = cursors.iter().map(|(sink, _)| sink.as_str()).collect();
    sinks.extend(target.filter(|target| !cursors.iter().any(|(sink, _)| sink == target)));
    let mut spool = site.config.spool.clone();
    spool.path = site.spool.clone();
    spool.retain = Some(Retain { age: Duration::from_secs(u64::MAX / 1000), size: None });
    Spool::open(&spool, &sinks, Metrics::default().spool)
        .map_err(|error: OpenError| CommandError::Io(io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    use super::super::{Location, Settings};
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
            let events: Vec<_> = (0..30).map(|number| event(30 * request + number)).collect();
            runtime.block_on(spool.append(events)).unwrap();
        }
        spool.settle(&spool.cursor("stdout").unwrap(), 300);
        spool.close();
        drop(spool);

        let settings = Settings { config: Vec::new(), set: Vec::new() };
        let location = Location { settings, spool: Some(config.path.clone()) };
        let site = location.site().unwrap();
        let again = [Again { arrival: 1, payload: "{}".into(), ingress: None }];
        let mut publisher = Publisher::new(&site).unwrap();
        for (target, duplicates) in [(Some("stdout"), 0), (None, 0), (None, 1), (Some("stdout"), 0)] {
            let outcome = publisher.publish(target, &again).unwrap();
            assert_eq!(outcome, Outcome { stored: 1, duplicates, error: None });
        }
        drop(publisher);
        let unknown = Publisher::new(&site).unwrap().publish(Some("behind"), &again).unwrap_err();
        assert!(unknown.to_string().contains("--config"), "{unknown}");

        let records = runtime.block_on(open().reader("behind").unwrap().read(usize::MAX)).unwrap();
        assert_eq!(records.first().map(|record| record.offset), Some(0));
        assert_eq!(records.len(), 303);
    }
}
