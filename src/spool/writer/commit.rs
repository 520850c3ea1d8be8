//! What is stored with one write and one sync.

use crate::event::EventId;
use crate::spool::Record;
use crate::spool::queue::{AppendError, Placed};
use foldhash::quality::RandomState;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// One group commit.
#[derive(Default)]
pub(super) struct Commit {
    pub(super) records: Vec<Arc<Record>>,
    /// The offsets of its events.
    pub(super) ids: HashMap<EventId, u64, RandomState>,
    pub(super) waiting: Vec<(oneshot::Sender<Result<Placed, AppendError>>, Placed)>,
    /// The memory of the requests, accounted for until all that is left of them is what the readers hold.
    pub(super) held: Vec<OwnedSemaphorePermit>,
    /// Of what was not asked for again by a command.
    pub(super) accepted: usize,
    pub(super) duplicates: usize,
}

impl Commit {
    /// With room for so many requests.
    pub(super) fn of(requests: usize) -> Self {
        Self {
            records: Vec::with_capacity(requests),
            ids: HashMap::with_capacity_and_hasher(requests, RandomState::default()),
            waiting: Vec::with_capacity(requests),
            held: Vec::with_capacity(requests),
            ..Self::default()
        }
    }
}
