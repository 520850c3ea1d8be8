//! Who may have a connection.
//!
//! When there is no place left, whoever has kept us waiting longest loses its own: else clients that send nothing, or next to nothing,
//! could keep everybody else out for as long as they are given for a header or a body.

use super::socket::Watcher;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::sleep;

/// For so long a client may keep us waiting in any case: a handshake or a slow network takes some time.
const GRACE: Duration = Duration::from_secs(1);
/// How often somebody is looked for who has passed it.
const PAUSE: Duration = Duration::from_millis(50);

/// With so many connections taken it matters what each of them holds.
const CROWD: usize = 1024;

/// The places of a listener.
#[derive(Debug)]
pub struct Places {
    max: usize,
    max_per_peer: Option<usize>,
    taken: Mutex<Taken>,
    /// How many those are.
    count: AtomicUsize,
    freed: Notify,
}

#[derive(Debug, Default)]
struct Taken {
    next: u64,
    /// Whose they are, as far as that is known.
    connections: HashMap<u64, (Option<IpAddr>, Arc<Watcher>)>,
}

/// A place, free again when dropped.
#[derive(Debug)]
pub struct Place {
    number: u64,
    places: Arc<Places>,
}

impl Places {
    /// So many in all, and for one address.
    pub fn new(max: usize, max_per_peer: Option<usize>) -> Arc<Self> {
        Arc::new(Self { max, max_per_peer, taken: Mutex::default(), count: AtomicUsize::new(0), freed: Notify::new() })
    }

    /// Whether this address has all that it may have.
    pub fn are_taken_by(&self, peer: IpAddr) -> bool {
        self.max_per_peer.is_some_and(|max| self.taken().count(peer) >= max)
    }

    /// Waits for a place, for somebody who may only be known later. Tells `evicted` of every connection that has to end for it.
    pub async fn take(self: &Arc<Self>, peer: Option<IpAddr>, watcher: &Arc<Watcher>, evicted: impl Fn()) -> Place {
        loop {
            let freed = self.freed.notified();
            let idlest = {
                let mut taken = self.taken();
                if taken.connections.len() < self.max {
                    taken.next += 1;
                    let number = taken.next;
                    taken.connections.insert(number, (peer, watcher.clone()));
                    self.count.store(taken.connections.len(), Ordering::Relaxed);
                    return Place { number, places: self.clone() };
                }
                taken.idlest()
            };
            if idlest.is_some_and(|idlest| idlest.evict()) {
                evicted();
            }
            tokio::select! {
                () = freed => {}
                () = sleep(PAUSE) => {}
            }
        }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Whether very many others have one.
    pub fn is_in_a_crowd(&self) -> bool {
        self.places.count.load(Ordering::Relaxed) > CROWD
    }

    /// Whose it is turns out to be this address. Says whether that may have it.
    pub fn is_of(&self, peer: IpAddr) -> bool {
        let mut taken = self.places.taken();
        let granted = self.places.max_per_peer.is_none_or(|max| taken.count(peer) < max);
        if let Some((owner, _)) = taken.connections.get_mut(&self.number).filter(|_| granted) {
            *owner = Some(peer);
        }
        granted
    }
}

impl Taken {
    fn count(&self, peer: IpAddr) -> usize {
        self.connections.values().filter(|(owner, _)| *owner == Some(peer)).count()
    }

    /// Of those who have had their time, who has never had an answer goes first: a client between two webhooks may well come back.
    fn idlest(&self) -> Option<Arc<Watcher>> {
        let waited = |watcher: &Arc<Watcher>| watcher.keeps_waiting().filter(|waited| *waited >= GRACE);
        let idle = self.connections.values().filter_map(|(_, watcher)| Some((waited(watcher)?, watcher)));
        idle.max_by_key(|(waited, watcher)| (!watcher.was_answered(), *waited)).map(|(_, watcher)| watcher.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        taken.connections.remove(&self.number);
        self.places.count.store(taken.connections.len(), Ordering::Relaxed);
        drop(taken);
        self.places.freed.notify_one();
    }
}
