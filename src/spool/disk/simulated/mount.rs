//! The disk as one life of a process sees it.

use super::{Change, Content, Machine, Naming, Operation, World, apply, apply_naming, no_space, refused};
use crate::spool::disk::{Disk, DiskFile};
use std::io;
use std::sync::Arc;

/// The disk in one life of the process.
#[derive(Debug)]
pub(super) struct Mount {
    pub(super) machine: Machine,
    pub(super) life: u64,
}

#[derive(Debug)]
struct Handle {
    machine: Machine,
    life: u64,
    file: u64,
}

impl Mount {
    fn name(&self, world: &mut World, naming: Naming) {
        apply_naming(&mut world.names, naming.clone());
        world.unsynced_names.push(naming);
    }

    fn handle(&self, file: u64) -> Arc<dyn DiskFile> {
        Arc::new(Handle { machine: self.machine.clone(), life: self.life, file })
    }
}

fn missing() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Disk for Mount {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut world = self.machine.world();
        if !world.enter(Operation::Read, self.life)? {
            return Err(refused());
        }
        Ok(world.names.keys().cloned().collect())
    }

    fn create(&self, name: &str, size: u64) -> io::Result<Arc<dyn DiskFile>> {
        let mut world = self.machine.world();
        let works = world.enter(Operation::Create, self.life)? && !(world.full && size > 0);
        if world.deleted {
            return Err(missing());
        }
        if world.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if !works && world.random.bool() {
            return Err(no_space());
        }
        let file = world.add(Vec::new());
        self.name(&mut world, Naming::Add(name.to_owned(), file));
        if !works {
            return Err(no_space());
        }
        if let Some(content) = world.files.get_mut(&file) {
            content.seen = vec![0; size as usize];
            content.unsynced.push(Change::Size(size as usize));
        }
        Ok(self.handle(file))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut world = self.machine.world();
        if !world.enter(Operation::Read, self.life)? {
            return Err(refused());
        }
        world.names.get(name).map(|file| self.handle(*file)).ok_or_else(missing)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut world = self.machine.world();
        if !world.enter(Operation::Remove, self.life)? {
            return Err(refused());
        }
        if !world.names.contains_key(name) {
            return Err(missing());
        }
        self.name(&mut world, Naming::Remove(name.to_owned()));
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut world = self.machine.world();
        if !world.enter(Operation::Rename, self.life)? {
            return Err(refused());
        }
        let file = *world.names.get(from).ok_or_else(missing)?;
        self.name(&mut world, Naming::Move(from.to_owned(), to.to_owned(), file));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut world = self.machine.world();
        if !world.enter(Operation::SyncDirectory, self.life)? {
            return Err(refused());
        }
        let mut kept = std::mem::take(&mut world.kept_names);
        world.unsynced_names.drain(..).for_each(|naming| apply_naming(&mut kept, naming));
        world.kept_names = kept;
        Ok(())
    }

    fn exists(&self) -> bool {
        !self.machine.world().deleted
    }
}

impl Handle {
    /// Waits for as long as the disk hangs.
    fn hang(&self) {
        let mut world = self.machine.world();
        while world.hanging && world.life == self.life {
            world = self.machine.0.1.wait(world).unwrap();
        }
    }

    /// Changes the file, which has to have `room` bytes for that.
    fn change(
        &self,
        operation: Operation,
        room: usize,
        act: impl FnOnce(&mut Content, bool, &mut fastrand::Rng),
    ) -> io::Result<()> {
        let mut world = self.machine.world();
        let works = world.enter(operation, self.life)?;
        let World { files, random, full, .. } = &mut *world;
        // An open file lives on after its name is gone; what it holds does not survive a crash.
        let content = files.entry(self.file).or_default();
        let works = works && !(*full && room > content.seen.len());
        act(content, works, random);
        match works {
            true => Ok(()),
            false if operation == Operation::Sync => Err(refused()),
            false => Err(no_space()),
        }
    }
}

impl DiskFile for Handle {
    fn size(&self) -> io::Result<u64> {
        let mut world = self.machine.world();
        if !world.enter(Operation::Read, self.life)? {
            return Err(refused());
        }
        Ok(world.files.get(&self.file).map_or(0, |content| content.seen.len() as u64))
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let mut world = self.machine.world();
        if !world.enter(Operation::Read, self.life)? {
            return Err(refused());
        }
        let Some(held) = world.files.get(&self.file).and_then(|content| content.seen.get(at as usize..)) else {
            return Ok(0);
        };
        let count = held.len().min(buffer.len());
        buffer[..count].copy_from_slice(&held[..count]);
        Ok(count)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.change(Operation::Write, at as usize + bytes.len(), |content, works, random| {
            let count = if works { bytes.len() } else { random.usize(0..=bytes.len()) };
            let change = Change::Write(at as usize, bytes[..count].to_vec());
            apply(&mut content.seen, change.clone());
            content.unsynced.push(change);
        })
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        self.change(Operation::Resize, size as usize, |content, works, _| {
            if works {
                apply(&mut content.seen, Change::Size(size as usize));
                content.unsynced.push(Change::Size(size as usize));
            }
        })
    }

    fn has_name(&self) -> io::Result<bool> {
        let world = self.machine.world();
        Ok(world.names.values().any(|file| *file == self.file))
    }

    fn sync(&self) -> io::Result<()> {
        self.hang();
        self.change(Operation::Sync, 0, |content, works, random| {
            if works {
                std::mem::take(&mut content.unsynced).into_iter().for_each(|change| content.keep(change));
            } else {
                content.sync_badly(random);
            }
        })
    }
}
