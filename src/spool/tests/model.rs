//! Random sequences of everything that can happen to a spool, against a plain list of what was acknowledged.

use super::*;
use crate::spool::disk::simulated::Operation;
use std::collections::HashSet;

const SINKS: [&str; 3] = ["analytics", "billing", "quality"];
const FAULTS: [Operation; 8] = [
    Operation::Create,
    Operation::Remove,
    Operation::Rename,
    Operation::SyncDirectory,
    Operation::Write,
    Operation::Resize,
    Operation::Sync,
    Operation::Read,
];

/// What the spool has promised.
#[derive(Default)]
struct Promised {
    /// Everything acknowledged, by offset.
    log: Vec<Event>,
    /// What the spool has to recognise when it is sent again.
    known: HashSet<EventId>,
    /// Requests that were refused, by the offset they would have had; those of one group commit together.
    refused: Vec<(usize, Vec<Vec<Event>>)>,
}

/// One sink, as far as the dispatcher would know.
struct Consumer {
    reader: Reader,
    settled: u64,
    /// The most that was settled in any life: a cut of the power can bring back what was noted then.
    most: u64,
}

struct Run {
    random: fastrand::Rng,
    machine: Machine,
    config: Config,
    sinks: &'static [&'static str],
    promised: Promised,
    next_event: u64,
    /// Whether operations fail now.
    faulty: bool,
    /// Whether the disk has no room now.
    full: bool,
    /// Whether operations ever failed.
    scarred: bool,
    /// How many bytes were on disk when this life of the process began.
    held_at_start: u64,
    crashes: u64,
}

#[test]
fn what_was_acknowledged_comes_back_after_any_crash() {
    let (mut crashes, mut acknowledged, mut preallocated) = (0, 0, 0);
    for seed in seeds(1500) {
        let case = Case(seed);
        let (more_crashes, records, more_preallocated) = run(seed);
        (crashes, preallocated) = (crashes + more_crashes, preallocated + more_preallocated);
        acknowledged += records;
        drop(case);
    }
    println!(
        "{crashes} crashes, {acknowledged} records acknowledged, none lost; {preallocated} steps with a preallocated segment"
    );
}

fn run(seed: u64) -> (u64, u64, u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let segment_size = random.u64(4096..8192);
    let config = Config {
        max_size: ByteSize::b(segment_size * random.u64(4..12)),
        segment_size: Some(ByteSize::b(segment_size)),
        read_cache: ByteSize::b(random.choice([0, 2000, 100_000]).unwrap_or_default()),
        ..config()
    };
    let sinks = &SINKS[..random.usize(1..=SINKS.len())];
    let machine = Machine::new(random.u64(..));
    let mut run = Run {
        random,
        machine,
        config,
        sinks,
        promised: Promised::default(),
        next_event: 0,
        faulty: false,
        full: false,
        scarred: false,
        held_at_start: 0,
        crashes: 0,
    };
    let mut life = run.begin(&vec![0..=0; sinks.len()]);
    let mut preallocated = 0;
    for _ in 0..run.random.usize(20..80) {
        run.step(&mut life);
        if run.machine.is_dark() {
            life = run.restart(life, true);
        }
        run.holds_the_bound(&life.0);
        preallocated += u64::from(run.machine.files().contains_key("preallocated"));
    }
    run.machine.mend();
    run.machine.free();
    let power_cut = run.random.bool();
    let (mut life, mut consumers) = run.restart((life.0, life.1), power_cut);
    for consumer in &mut consumers {
        run.read_all(&life, consumer);
    }
    // Once all is drained there is room again.
    let end = life.end();
    life.settle(end);
    let last = run.fresh_event(100);
    match life.store(vec![last.clone()]) {
        Err(AppendError::Full { .. }) => life.settle(end),
        stored => assert_eq!(stored, Ok(Appended { stored: 1, duplicates: 0 })),
    }
    assert!(life.store(vec![last]).is_ok());
    assert_eq!(life.damaged_records(), 0, "nothing was damaged");
    assert!(run.machine.files().keys().all(|name| !name.starts_with("damaged")), "nothing was damaged");
    (run.crashes, run.promised.log.len() as u64, preallocated)
}

type Alive = (Life, Vec<Consumer>);

impl Run {
    fn step(&mut self, (life, consumers): &mut Alive) {
        let at = self.random.usize(0..consumers.len());
        match self.random.u32(0..100) {
            0..35 => self.append(life),
            35..60 => self.read(life, &mut consumers[at]),
            60..72 => {
                let consumer = &mut consumers[at];
                consumer.settled = self.random.u64(consumer.settled..=consumer.reader.position().max(consumer.settled));
                consumer.most = consumer.most.max(consumer.settled);
                life.shared.cursors.read()[at].set(consumer.settled);
            }
            72..82 => life.maintenance.round(self.random.bool()),
            82..84 => life.writer.seal(),
            84 => {
                self.full = !self.full;
                self.scarred = true;
                if self.full { self.machine.fill() } else { self.machine.free() }
            }
            85..89 => {
                let operation = self.random.choice(FAULTS).unwrap();
                self.machine.fail_often(operation, self.random.u32(1..1000));
                (self.faulty, self.scarred) = (true, true);
            }
            89..92 => {
                self.machine.mend();
                self.faulty = false;
            }
            92..96 => self.machine.cut_power_after(self.random.u64(1..25)),
            96..98 => {
                // A clean stop, then a new start.
                life.writer.seal();
                life.maintenance.round(true);
                self.replace(life, consumers, false);
            }
            _ => {
                let power_cut = self.random.bool();
                self.replace(life, consumers, power_cut);
            }
        }
    }

    fn replace(&mut self, life: &mut Life, consumers: &mut Vec<Consumer>, power_cut: bool) {
        let bounds = bounds(life, consumers);
        self.end(power_cut);
        (*life, *consumers) = self.begin(&bounds);
    }

    fn restart(&mut self, (life, consumers): Alive, power_cut: bool) -> Alive {
        let bounds = bounds(&life, &consumers);
        self.end(power_cut);
        drop((life, consumers));
        self.begin(&bounds)
    }

    fn end(&mut self, power_cut: bool) {
        self.crashes += 1;
        if power_cut || self.machine.is_dark() { self.machine.crash() } else { self.machine.kill() }
    }

    /// Opens the spool, with cursors within these bounds, however often that takes while the disk fails and the power goes. That the
    /// disk is full is no reason not to open.
    fn begin(&mut self, cursors: &[std::ops::RangeInclusive<u64>]) -> Alive {
        if self.random.u32(0..4) == 0 {
            self.machine.cut_power_after(self.random.u64(1..12));
        }
        let life = loop {
            match Life::begin(&self.machine, &self.config, self.sinks) {
                Ok(life) if !self.faulty && !self.machine.is_dark() => break life,
                // An opening that failed, or did not see everything, is one more thing to recover from.
                opened => {
                    if let Err(error) = opened {
                        assert!(self.faulty || self.machine.is_dark(), "the spool has to open: {error}");
                    }
                    let power_cut = self.machine.is_dark() || self.random.bool();
                    self.end(power_cut);
                    self.machine.mend();
                    self.faulty = false;
                }
            }
        };
        self.machine.mend();
        self.held_at_start = life.shared.log.status().bytes;
        self.take_over(&life);
        let opened = life.shared.cursors.read().clone();
        let consumers = opened.iter().zip(cursors).map(|(cursor, bounds)| {
            let position = cursor.position();
            assert!(bounds.contains(&position), "the cursor at {position} has to be within {bounds:?}");
            assert!(life.start() <= position, "records that are not settled were removed");
            Consumer { reader: life.reader(position), settled: position, most: *bounds.end() }
        });
        let mut consumers: Vec<Consumer> = consumers.collect();
        if self.random.u32(0..4) == 0 {
            let mut consumer = Consumer { reader: life.reader(life.start()), settled: 0, most: 0 };
            self.read_all(&life, &mut consumer);
            consumers.iter_mut().for_each(|consumer| self.read_all(&life, consumer));
        }
        (life, consumers)
    }

    /// What is behind the acknowledged records are refused requests, whole and in order; from now on they count.
    fn take_over(&mut self, life: &Life) {
        let promised = &mut self.promised;
        let next = promised.log.len();
        assert!(life.end() >= next as u64, "acknowledged records are lost: {} < {next}", life.end());
        let extra = life.events_from(next as u64);
        assert_eq!(life.end(), (next + extra.len()) as u64);
        if !extra.is_empty() {
            let found = promised
                .refused
                .iter()
                .filter(|(base, _)| *base == next)
                .any(|(_, requests)| (0..=requests.len()).any(|whole| requests[..whole].concat() == extra));
            assert!(found, "{} records appeared that nobody sent like this", extra.len());
        }
        promised.log.extend(extra);
        promised.refused.retain(|(base, _)| *base == promised.log.len());
        // Of what was removed as much is recognised as its identities survived: all of it has been stored once.
        let index = life.shared.index.lock();
        promised.known =
            promised.log.iter().map(Event::id).filter(|id| index.offset(id, Arrival::now()).is_some()).collect();
        assert_eq!(promised.known.len(), index.ids.len(), "nothing is recognised that was not stored");
        let held = &promised.log[life.start() as usize..];
        assert!(held.iter().all(|event| promised.known.contains(&event.id())), "what is held is recognised");
    }

    fn fresh_event(&mut self, size: usize) -> Event {
        self.next_event += 1;
        event(self.next_event, size)
    }

    /// An event to send: mostly a new one, sometimes one that was sent before.
    fn any_event(&mut self, sent: &[Event]) -> Event {
        let before = match self.random.u32(0..16) {
            0 | 1 => self.random.choice(&self.promised.log),
            2 => self.random.choice(sent),
            _ => None,
        };
        before.cloned().unwrap_or_else(|| {
            let most = [20, 20, 20, 300, 300, 1200, 1200, 9000][self.random.usize(0..8)];
            let size = self.random.usize(0..most);
            self.fresh_event(size)
        })
    }

    fn append(&mut self, life: &mut Life) {
        let mut sent = Vec::new();
        let mut requests: Vec<Vec<Event>> = Vec::new();
        for _ in 0..self.random.usize(1..5) {
            let mut events = Vec::new();
            for _ in 0..self.random.usize(1..5) {
                let event = self.any_event(&sent);
                sent.push(event.clone());
                events.push(event);
            }
            requests.push(events);
        }
        let mut waiting = requests.clone().into_iter();
        for group in life.append(requests) {
            let next = self.promised.log.len();
            let mut in_group = HashSet::new();
            let fresh: Vec<Vec<Event>> = waiting
                .by_ref()
                .take(group.len())
                .map(|mut events| {
                    events.retain(|event| !self.promised.known.contains(&event.id()) && in_group.insert(event.id()));
                    events
                })
                .collect();
            if group.iter().all(Result::is_ok) {
                for (fresh, appended) in fresh.into_iter().zip(group) {
                    assert_eq!(appended.unwrap().stored, fresh.len(), "of {next}");
                    self.promised.known.extend(fresh.iter().map(Event::id));
                    self.promised.log.extend(fresh);
                }
                self.promised.refused.retain(|(base, _)| *base == self.promised.log.len());
            } else {
                for refused in &group {
                    match refused {
                        Err(AppendError::Failed { cause }) => {
                            assert!(
                                self.faulty || self.full || self.machine.is_dark(),
                                "the disk has to work: {cause}"
                            );
                        }
                        Err(AppendError::Full { .. }) => {
                            let room = self.config.max_size.as_u64().saturating_sub(life.shared.log.status().bytes);
                            assert!(room < self.config.segment_size().max(4 * 10_000), "{room} bytes are room enough");
                        }
                        Err(AppendError::TooLarge { .. }) => {}
                        other => panic!("{other:?} in one group commit with a refused request"),
                    }
                }
                self.promised.refused.push((next, fresh));
            }
        }
        assert_eq!(life.end(), self.promised.log.len() as u64, "readers see what was acknowledged, no more");
    }

    fn read(&mut self, life: &Life, consumer: &mut Consumer) {
        if consumer.reader.position() >= life.end() {
            return;
        }
        let from = consumer.reader.position();
        match read(&mut consumer.reader, self.random.usize(1..4000)) {
            Ok(records) => {
                assert!(!records.is_empty(), "there is something to read at {from} of {}", life.end());
                self.compare(from, consumer.reader.position(), &records);
            }
            Err(error) => {
                assert!(self.faulty || self.machine.is_dark(), "the spool has to be readable: {error}");
                assert_eq!(consumer.reader.position(), from, "a failed read skips nothing");
            }
        }
    }

    fn read_all(&self, life: &Life, consumer: &mut Consumer) {
        while consumer.reader.position() < life.end() {
            let from = consumer.reader.position();
            let records = read(&mut consumer.reader, 2500).unwrap();
            self.compare(from, consumer.reader.position(), &records);
        }
    }

    fn compare(&self, from: u64, until: u64, records: &[Arc<Record>]) {
        assert_eq!(from + records.len() as u64, until, "no record is skipped");
        for (offset, record) in (from..).zip(records) {
            assert_eq!(record.offset, offset);
            assert_eq!(Some(&record.event), self.promised.log.get(offset as usize), "at {offset}");
        }
    }

    fn holds_the_bound(&self, life: &Life) {
        let max_size = self.config.max_size.as_u64();
        assert!(life.shared.log.status().bytes <= max_size.max(self.held_at_start));
        let files = self.machine.files();
        let held: usize = files.iter().filter(|(name, _)| name.starts_with("segment")).map(|(_, size)| size).sum();
        // A file that could not be removed, or not cut durably, may take more room than the spool knows of.
        assert!(held as u64 <= max_size || self.scarred, "{held} bytes on disk: {files:?}");
    }
}

/// The positions that each cursor may have after a restart: from its durable position up to the highest one that was ever settled.
fn bounds(life: &Life, consumers: &[Consumer]) -> Vec<std::ops::RangeInclusive<u64>> {
    let cursors = life.shared.cursors.read();
    let durable = cursors.iter().map(|cursor| cursor.durable());
    durable.zip(consumers).map(|(durable, consumer)| durable..=consumer.most).collect()
}
