//! A disk for tests that keeps no more than it has to.
//!
//! What was synced survives a power cut. Of what was not, a seeded random part does: any subset of the sectors written, some of
//! them torn at any byte; any subset of the names made, removed and changed. Every operation can be told to fail, and the
//! power to go at any of them. A failed sync may leave pages that can still be read and will never reach the disk, as on Linux.

mod mount;

use super::Disk;
use mount::Mount;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

const SECTOR: usize = 512;

/// What can be told to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "they are the operations of the two traits")]
pub enum Operation {
    Create,
    Remove,
    Rename,
    SyncDirectory,
    Write,
    Resize,
    Sync,
    Read,
}

/// The hardware: outlives the processes that use it, each through a [`Mount`].
#[derive(Clone, Debug)]
pub struct Machine(Arc<(Mutex<World>, Condvar)>);

/// Ends the hanging of a disk: also when a test fails, whose threads could not end otherwise.
#[must_use]
pub struct Hanging(Machine);

impl Drop for Hanging {
    fn drop(&mut self) {
        self.0.world().hanging = false;
        self.0.0.1.notify_all();
    }
}

#[derive(Debug)]
struct World {
    random: fastrand::Rng,
    /// Handles of earlier lives are dead.
    life: u64,
    files: HashMap<u64, Content>,
    next_file: u64,
    names: BTreeMap<String, u64>,
    kept_names: BTreeMap<String, u64>,
    unsynced_names: Vec<Naming>,
    /// How often, of a thousand, an operation fails.
    unreliable: HashMap<Operation, u32>,
    /// How many of the next operations of this kind fail.
    failing: HashMap<Operation, u32>,
    /// Whether the disk is full. Space that is freed is used up by another process.
    full: bool,
    /// Whether somebody has deleted the directory with all files.
    deleted: bool,
    /// Whether syncs wait for ever.
    hanging: bool,
    /// How many more changes the power lasts for.
    power: Option<u64>,
    count: HashMap<Operation, u64>,
}

#[derive(Debug, Default)]
struct Content {
    /// What a running system reads.
    seen: Vec<u8>,
    /// What is on the disk for good.
    kept: Vec<u8>,
    unsynced: Vec<Change>,
}

#[derive(Clone, Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Size(usize),
}

#[derive(Clone, Debug)]
enum Naming {
    Add(String, u64),
    Remove(String),
    Move(String, String, u64),
}

impl Machine {
    /// A machine with an empty disk.
    pub fn new(seed: u64) -> Self {
        let world = World {
            random: fastrand::Rng::with_seed(seed),
            life: 0,
            files: HashMap::new(),
            next_file: 0,
            names: BTreeMap::new(),
            kept_names: BTreeMap::new(),
            unsynced_names: Vec::new(),
            unreliable: HashMap::new(),
            failing: HashMap::new(),
            full: false,
            deleted: false,
            hanging: false,
            power: None,
            count: HashMap::new(),
        };
        Self(Arc::new((Mutex::new(world), Condvar::new())))
    }

    /// The disk as a process sees it until it is killed or the power is cut.
    pub fn mount(&self) -> Box<dyn Disk> {
        Box::new(Mount { machine: self.clone(), life: self.world().life })
    }

    /// Ends the process; the system goes on and nothing that was written is lost.
    pub fn kill(&self) {
        let mut world = self.world();
        world.life += 1;
        world.power = None;
        drop(world);
        self.0.1.notify_all();
    }

    /// Cuts the power and restores it.
    pub fn crash(&self) {
        self.kill();
        self.world().lose();
    }

    /// Lets the power go in the middle of the `changes`-th change from now on.
    pub fn cut_power_after(&self, changes: u64) {
        self.world().power = Some(changes);
    }

    /// Whether the power is gone.
    pub fn is_dark(&self) -> bool {
        self.world().power == Some(0)
    }

    /// Lets the next `times` operations of this kind fail.
    pub fn fail(&self, operation: Operation, times: u32) {
        self.world().failing.insert(operation, times);
    }

    /// Lets so many of a thousand operations of this kind fail.
    pub fn fail_often(&self, operation: Operation, per_mille: u32) {
        self.world().unreliable.insert(operation, per_mille);
    }

    /// Lets every write outside reserved space fail from now on, as on a full disk.
    pub fn fill(&self) {
        self.world().full = true;
    }

    /// There is room again.
    pub fn free(&self) {
        self.world().full = false;
    }

    /// Deletes the directory with all its files under the running process.
    pub fn delete_directory(&self) {
        let mut world = self.world();
        world.deleted = true;
        world.names.clear();
        world.kept_names.clear();
    }

    /// Syncs of files do not return until the guard is dropped.
    pub fn hang(&self) -> Hanging {
        self.world().hanging = true;
        Hanging(self.clone())
    }

    /// Every operation works from now on, as far as there is room.
    pub fn mend(&self) {
        let mut world = self.world();
        world.failing.clear();
        world.unreliable.clear();
        world.power = None;
    }

    /// How often this was done, failures included.
    pub fn count(&self, operation: Operation) -> u64 {
        self.world().count.get(&operation).copied().unwrap_or_default()
    }

    /// The names of the files and their sizes.
    pub fn files(&self) -> BTreeMap<String, usize> {
        let world = self.world();
        world.names.iter().map(|(name, file)| (name.clone(), world.files[file].seen.len())).collect()
    }

    /// What a file holds; `None` if there is none of this name.
    pub fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        let world = self.world();
        world.names.get(name).map(|file| world.files[file].seen.clone())
    }

    /// Puts a file on the disk, or replaces what it holds, for good.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        let mut world = self.world();
        let file = world.add(bytes.to_vec());
        if let Some(content) = world.files.get_mut(&file) {
            content.kept = bytes.to_vec();
        }
        world.names.insert(name.to_owned(), file);
        world.kept_names.insert(name.to_owned(), file);
    }

    /// Removes a file for good.
    pub fn take(&self, name: &str) {
        let mut world = self.world();
        world.names.remove(name);
        world.kept_names.remove(name);
    }

    /// Changes bits of one byte, on the disk and in memory.
    pub fn flip(&self, name: &str, at: usize, mask: u8) {
        let mut world = self.world();
        let file = world.names[name];
        let content = world.files.get_mut(&file).unwrap();
        for side in [&mut content.seen, &mut content.kept] {
            if let Some(byte) = side.get_mut(at) {
                *byte ^= mask;
            }
        }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.0.0.lock().unwrap()
    }
}

fn refused() -> io::Error {
    io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error())
}

fn no_space() -> io::Error {
    io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error())
}

impl World {
    fn add(&mut self, seen: Vec<u8>) -> u64 {
        self.next_file += 1;
        self.files.insert(self.next_file, Content { seen, ..Content::default() });
        self.next_file
    }

    /// Whether the operation is to succeed; no operation of a process that has ended does.
    fn enter(&mut self, operation: Operation, life: u64) -> io::Result<bool> {
        *self.count.entry(operation).or_default() += 1;
        if life != self.life || self.power == Some(0) {
            return Err(refused());
        }
        if operation != Operation::Read
            && let Some(left) = &mut self.power
        {
            *left -= 1;
            if *left == 0 {
                return Ok(false);
            }
        }
        if let Some(times) = self.failing.get_mut(&operation).filter(|times| **times > 0) {
            *times -= 1;
            return Ok(false);
        }
        let often = self.unreliable.get(&operation).copied().unwrap_or_default();
        Ok(often == 0 || self.random.u32(0..1000) >= often)
    }

    /// Keeps a random part of what was not synced.
    fn lose(&mut self) {
        // Whole disks that lose all or nothing are as likely as those in between.
        let share = [0, 100, 500, 900, 1000][self.random.usize(0..5)];
        let random = &mut self.random;
        for naming in std::mem::take(&mut self.unsynced_names) {
            if random.u32(0..1000) < share {
                apply_naming(&mut self.kept_names, naming);
            }
        }
        self.names = self.kept_names.clone();
        let names = &self.names;
        self.files.retain(|file, _| names.values().any(|named| named == file));
        let mut files: Vec<_> = self.files.iter_mut().collect();
        files.sort_by_key(|(file, _)| **file);
        for (_, content) in files {
            for piece in sectors(std::mem::take(&mut content.unsynced)) {
                if random.u32(0..1000) < share {
                    let torn = random.u32(0..8) == 0;
                    content.keep(if torn { tear(piece, random) } else { piece });
                }
            }
            content.seen = content.kept.clone();
        }
    }
}

impl Content {
    fn keep(&mut self, change: Change) {
        apply(&mut self.kept, change);
    }

    /// A failed sync: of the unsynced sectors some reach the disk, some stay unsynced, and some are lost although reads still return them.
    fn sync_badly(&mut self, random: &mut fastrand::Rng) {
        let lost = random.u32(0..3);
        for piece in sectors(std::mem::take(&mut self.unsynced)) {
            match random.u32(0..3) {
                0 => self.keep(piece),
                1 if lost > 0 => {}
                _ => self.unsynced.push(piece),
            }
        }
    }
}

/// Cuts writes into the parts that a disk writes one by one.
fn sectors(changes: Vec<Change>) -> Vec<Change> {
    let mut pieces = Vec::new();
    for change in changes {
        match change {
            Change::Write(mut at, bytes) => {
                let mut rest = bytes.as_slice();
                while !rest.is_empty() {
                    let (piece, more) = rest.split_at(rest.len().min(SECTOR - at % SECTOR));
                    pieces.push(Change::Write(at, piece.to_vec()));
                    at += piece.len();
                    rest = more;
                }
            }
            Change::Size(_) => pieces.push(change),
        }
    }
    pieces
}

fn tear(piece: Change, random: &mut fastrand::Rng) -> Change {
    match piece {
        Change::Write(at, bytes) => {
            let cut = random.usize(0..=bytes.len());
            if random.bool() {
                Change::Write(at, bytes[..cut].to_vec())
            } else {
                Change::Write(at + cut, bytes[cut..].to_vec())
            }
        }
        other => other,
    }
}

fn apply(bytes: &mut Vec<u8>, change: Change) {
    match change {
        Change::Write(at, data) if !data.is_empty() => {
            bytes.resize(bytes.len().max(at + data.len()), 0);
            bytes[at..at + data.len()].copy_from_slice(&data);
        }
        Change::Write(..) => {}
        Change::Size(size) => bytes.resize(size, 0),
    }
}

fn apply_naming(names: &mut BTreeMap<String, u64>, naming: Naming) {
    match naming {
        Naming::Add(name, file) => drop(names.insert(name, file)),
        Naming::Remove(name) => drop(names.remove(&name)),
        Naming::Move(from, to, file) => {
            names.remove(&from);
            names.insert(to, file);
        }
    }
}
