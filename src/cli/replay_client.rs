//! Puts events back into the spool: through the running bridge, or directly if none runs.

pub(super) use super::send::options::period;

use super::{CommandError, Site};
use crate::config::ConfigError;
use crate::control::{self, Outcome, ReplayEvent, Request};
use crate::dispatch::replay::ReplayCounts;
use crate::metrics::Metrics;
use crate::spool::inspect::Inspection;
use crate::spool::{OpenError, Retain, Spool};
use clap::Args;
use std::io;
use std::time::Duration;
use tokio::runtime::Runtime;

/// Bounds of one batch.
const BATCH: usize = 100;
const BATCH_BYTES: usize = 1 << 20;

/// How messages are published once more.
#[derive(Debug, Args)]
pub struct Manner {
    /// Have the destination store messages again that it has stored lately: they get a message id of their own, with the same
    /// `ce_id`.
    #[arg(long)]
    force: bool,
    /// How long to wait for the outcomes of messages at their destination.
    #[arg(long, value_name = "PERIOD", default_value = "10s", value_parser = period)]
    wait: Duration,
}

impl Manner {
    /// A request for messages of `sink`.
    pub fn request(&self, sink: &str) -> Request {
        let wait_ms = self.wait.as_millis().try_into().unwrap_or(u64::MAX);
        Request { target: Some(sink.into()), force: self.force, wait_ms }
    }
}

/// Notes that the entries with these numbers were replayed.
pub type Mark<'a> = Box<dyn Fn(&[u64]) -> io::Result<()> + 'a>;

/// Sends entries batch by batch, and marks each batch: an entry without a mark was not replayed.
pub struct ReplayClient<'a> {
    site: &'a Site,
    request: Request,
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
    /// Outcomes at the destination.
    counts: ReplayCounts,
}

impl<'a> ReplayClient<'a> {
    /// For events that the request's target, or all sinks, will publish.
    pub fn new(site: &'a Site, request: Request, mark: Mark<'a>) -> io::Result<Self> {
        Ok(Self {
            site,
            request,
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
            counts: ReplayCounts::default(),
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

    /// Sends the batch.
    pub fn flush(&mut self) -> Result<(), CommandError> {
        if self.entries.is_empty() {
            return Ok(());
        }
        let batch = std::mem::take(&mut self.batch);
        let entries = std::mem::take(&mut self.entries);
        self.bytes = 0;
        let (outcome, sent) = self.store(batch)?;
        let stored = entries.iter().take_while(|(_, end)| *end <= outcome.stored);
        let numbers: Vec<u64> = stored.map(|(number, _)| *number).collect();
        if !numbers.is_empty() {
            (self.mark)(&numbers)?;
        }
        self.replayed += numbers.len();
        self.stored += outcome.stored;
        self.duplicates += outcome.duplicates;
        if let Some(error) = outcome.error {
            return Err(CommandError::Io(io::Error::other(error)));
        }
        if let Some(sent) = sent {
            let counts = self.runtime.block_on(sent.counts())?.unwrap_or_default();
            self.counts.add(counts);
            if counts.total() < outcome.stored {
                // The destination is away or behind: the rest is not waited for.
                self.request.wait_ms = 0;
            }
        }
        Ok(())
    }

    /// Sends events, and returns the bridge's answer, if one runs.
    fn store(&mut self, events: Vec<ReplayEvent>) -> Result<(Outcome, Option<control::Sent>), CommandError> {
        let spool = match &self.spool {
            Some(spool) => spool,
            None => {
                if let Some(sent) = self.runtime.block_on(control::send(&self.site.spool, &self.request, &events))? {
                    return Ok((sent.outcome.clone(), Some(sent)));
                }
                self.spool.insert(open(self.site, self.request.target.as_deref())?)
            }
        };
        let stored = events.len();
        let outcome = match self.runtime.block_on(control::store(spool, &self.request, events)) {
            Ok(duplicates) => Outcome { stored, duplicates, error: None },
            Err(error) => Outcome { error: Some(error.to_string()), ..Outcome::default() },
        };
        Ok((outcome, None))
    }

    /// The outcomes at the destination in words, as far as they are known.
    pub fn outcomes(&self) -> String {
        if self.spool.is_some() {
            return "published when the bridge starts".into();
        }
        let ReplayCounts { delivered, duplicates, filtered, dead_lettered } = self.counts;
        let waiting = self.stored - self.counts.total().min(self.stored);
        let mut words = format!("{delivered} delivered");
        for (count, outcome) in [
            (duplicates, "not stored by the destination, which has stored them lately (--force has them stored again)"),
            (filtered, "filtered out"),
            (dead_lettered, "dead letters again"),
            (waiting, "waiting"),
        ] {
            if count > 0 {
                words += &format!(", {count} {outcome}");
            }
        }
        words
    }
}

/// Opens the spool of a bridge that does not run so that nothing is given up which waits in it, even if the configuration at
/// hand is not quite that bridge's own: every sink with a cursor keeps its records, and retained records stay.
pub fn open(site: &Site, target: Option<&str>) -> Result<Spool, CommandError> {
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
            let request = Request { target: target.map(Into::into), ..Request::default() };
            let mut client = ReplayClient::new(&site, request, Box::new(|_| Ok(()))).unwrap();
            client.add(7, [ReplayEvent::of(&event(number))]).unwrap();
            client.flush().unwrap();
            assert_eq!((client.replayed, client.stored, client.duplicates), (1, 1, duplicates));
        }
        let request = Request { target: Some("behind".into()), ..Request::default() };
        let mut client = ReplayClient::new(&site, request, Box::new(|_| panic!("marked"))).unwrap();
        client.add(7, [ReplayEvent::of(&event(1))]).unwrap();
        let unknown = client.flush().unwrap_err();
        assert!(unknown.to_string().contains("--config"), "{unknown}");

        let records = runtime.block_on(open().reader("behind").unwrap().read(usize::MAX)).unwrap();
        assert_eq!(records.first().map(|record| record.offset), Some(0));
        assert_eq!(records.len(), 303);
    }
}
