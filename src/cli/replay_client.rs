//! Puts events back into the spool: through the running bridge, or directly if none runs.

use super::{CommandError, Site};
use crate::config::ConfigError;
use crate::control::{self, Outcome, ReplayEvent};
use crate::metrics::Metrics;
use crate::spool::inspect::Inspection;
use crate::spool::{OpenError, Retain, Spool};
use std::io;
use std::time::Duration;
use tokio::runtime::Runtime;

/// Bounds of what is sent together.
const BATCH: usize = 100;
const BATCH_BYTES: usize = 1 << 20;

/// Notes that the entries with these numbers were replayed.
pub type Mark<'a> = Box<dyn Fn(&[u64]) -> io::Result<()> + 'a>;

/// Sends entries batch by batch, and marks each batch: an entry without a mark was not replayed.
pub struct ReplayClient<'a> {
    site: &'a Site,
    /// The only sink that publishes the events.
    target: Option<&'a str>,
    mark: Mark<'a>,
    runtime: Runtime,
    /// The spool, if no bridge runs on it. It is locked until this is dropped.
    spool: Option<Spool>,
    batch: Vec<ReplayEvent>,
    bytes: usize,
    /// The entries of the batch: number, and how many events there are up to its end.
    entries: Vec<(u64, usize)>,
    /// Entries added.
    pub total: usize,
    /// Entries whose events are stored.
    pub replayed: usize,
    /// Events stored, duplicates included.
    pub stored: usize,
    /// Events that had been stored before.
    pub duplicates: usize,
}

impl<'a> ReplayClient<'a> {
    /// For events that `target`, or all sinks, will publish.
    pub fn new(site: &'a Site, target: Option<&'a str>, mark: Mark<'a>) -> io::Result<Self> {
        Ok(Self {
            site,
            target,
            mark,
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build()?,
            spool: None,
            batch: Vec::new(),
            bytes: 0,
            entries: Vec::new(),
            total: 0,
            replayed: 0,
            stored: 0,
            duplicates: 0,
        })
    }

    /// Adds the events of one entry.
    pub fn add(&mut self, number: u64, events: impl IntoIterator<Item = ReplayEvent>) -> Result<(), CommandError> {
        self.total += 1;
        for event in events {
            self.bytes += event.payload.len();
            self.batch.push(event);
        }
        self.entries.push((number, self.batch.len()));
        if self.batch.len() < BATCH && self.bytes < BATCH_BYTES { Ok(()) } else { self.flush() }
    }

    /// Sends what was added.
    pub fn flush(&mut self) -> Result<(), CommandError> {
        if self.entries.is_empty() {
            return Ok(());
        }
        let batch = std::mem::take(&mut self.batch);
        let entries = std::mem::take(&mut self.entries);
        self.bytes = 0;
        let outcome = self.store(batch)?;
        let stored = entries.iter().take_while(|(_, end)| *end <= outcome.stored);
        let numbers: Vec<u64> = stored.map(|(number, _)| *number).collect();
        if !numbers.is_empty() {
            (self.mark)(&numbers)?;
        }
        self.replayed += numbers.len();
        self.stored += outcome.stored;
        self.duplicates += outcome.duplicates;
        outcome.error.map_or(Ok(()), |error| Err(CommandError::Io(io::Error::other(error))))
    }

    fn store(&mut self, events: Vec<ReplayEvent>) -> Result<Outcome, CommandError> {
        let spool = match &self.spool {
            Some(spool) => spool,
            None => {
                if let Some(outcome) = self.runtime.block_on(control::send(&self.site.spool, self.target, &events))? {
                    return Ok(outcome);
                }
                self.spool.insert(open(self.site, self.target)?)
            }
        };
        let stored = events.len();
        Ok(match self.runtime.block_on(control::store(spool, self.target, events)) {
            Ok(duplicates) => Outcome { stored, duplicates, error: None },
            Err(error) => Outcome { error: Some(error.to_string()), ..Outcome::default() },
        })
    }
}

/// Opens the spool of a bridge that does not run so that nothing is given up which waits in it, even if the configuration at
/// hand is not quite that bridge's own: every sink with a cursor keeps its records, and what is retained stays.
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
    fn records_that_wait_for_other_sinks_outlive_a_replay_with_a_configuration_that_lacks_these() {
        let dir = tempfile::tempdir().unwrap();
        let config = spool::Config {
            path: dir.path().join("spool"),
            segment_size: Some(bytesize::ByteSize::kib(4)),
            ..Default::default()
        };
        let open = || Spool::open(&config, &["behind", "stdout"], Metrics::default().spool).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
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
        for (target, number, duplicates) in
            [(Some("stdout"), 300, 0), (None, 301, 0), (None, 301, 1), (Some("stdout"), 300, 0)]
        {
            let mut client = ReplayClient::new(&site, target, Box::new(|_| Ok(()))).unwrap();
            client.add(7, [ReplayEvent::of(&event(number))]).unwrap();
            client.flush().unwrap();
            assert_eq!((client.replayed, client.stored, client.duplicates), (1, 1, duplicates));
        }
        let mut client = ReplayClient::new(&site, Some("behind"), Box::new(|_| panic!("marked"))).unwrap();
        client.add(7, [ReplayEvent::of(&event(1))]).unwrap();
        let unknown = client.flush().unwrap_err();
        assert!(unknown.to_string().contains("--config"), "{unknown}");

        let records = runtime.block_on(open().reader("behind").unwrap().read(usize::MAX)).unwrap();
        assert_eq!(records.first().map(|record| record.offset), Some(0));
        assert_eq!(records.len(), 303);
    }
}
