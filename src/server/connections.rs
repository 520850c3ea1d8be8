//! Which connections there are, and which one makes room for another.
//!
//! Without eviction, clients that send nothing could shut others out for as long as the timeouts are.

use super::http::{MAX_HEADER, SMALL_HEADER};
use super::{Limits, Settings};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep, sleep_until};

/// How often a connection that may be closed is looked for, while there is none.
const PAUSE: Duration = Duration::from_millis(20);

/// The connections of a listener.
#[derive(Debug)]
pub struct Connections {
    /// New connections are admitted within the present limits; those that are open stay.
    settings: watch::Receiver<Settings>,
    request_memory: Arc<Semaphore>,
    open: Mutex<Open>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    activities: HashMap<u64, Arc<Activity>>,
    by_peer: HashMap<IpAddr, usize>,
}

/// The right to one connection, given back when dropped.
#[derive(Debug)]
pub struct Slot {
    number: u64,
    activity: Arc<Activity>,
    peer: Option<IpAddr>,
    connections: Arc<Connections>,
}

/// Whose turn it is on a connection, and since when.
#[derive(Debug)]
pub struct Activity {
    request_memory: Arc<Semaphore>,
    state: Mutex<State>,
    evicted: Notify,
}

#[derive(Debug)]
struct State {
    /// When the connection was accepted, or its last request began or ended.
    since: Instant,
    /// When the header began that is not complete yet.
    header_since: Option<Instant>,
    /// Its bytes so far, and the memory reserved for it if they are many.
    header_bytes: usize,
    header_permit: Option<OwnedSemaphorePermit>,
    /// Requests without a response, and those of them whose body is awaited.
    requests: usize,
    /// Requests so far.
    begun: u64,
    awaiting_body: usize,
    /// Whether there was a response to any request.
    answered: bool,
    /// The last HTTP/1 request whose line was seen from its first byte on, and whether a `#` came since then that may be cut off.
    line_seen: Option<u64>,
    number_sign: bool,
    /// Whether bytes came that no response has accounted for.
    unread: bool,
    http2: bool,
}

/// A request without a response.
#[derive(Debug)]
pub struct OpenRequest {
    activity: Arc<Activity>,
    others: usize,
    cut_off: bool,
}

/// A body that is awaited.
#[derive(Debug)]
pub struct AwaitedBody(Arc<Activity>);

impl Connections {
    pub fn new(settings: watch::Receiver<Settings>, request_memory: Arc<Semaphore>) -> Self {
        Self { settings, request_memory, open: Mutex::default(), freed: Notify::new() }
    }

    fn max_per_peer(&self) -> usize {
        self.settings.borrow().limits.max_connections_per_peer.unwrap_or(usize::MAX)
    }

    /// Whether this address has all connections that it may have.
    pub fn is_full_for(&self, peer: IpAddr) -> bool {
        self.open.lock().by_peer.get(&peer).is_some_and(|count| *count >= self.max_per_peer())
    }

    /// Waits for a slot, and closes a connection for it if need be.
    pub async fn admit(self: &Arc<Self>) -> Slot {
        loop {
            let freed = self.freed.notified();
            if let Some(slot) = self.try_admit() {
                return slot;
            }
            if let Some(activity) = self.longest_waiting() {
                activity.evicted.notify_one();
                self.settings.borrow().limits.metrics.connections.inc();
            }
            tokio::select! {
                () = freed => {}
                () = sleep(PAUSE) => {}
            }
        }
    }

    fn try_admit(self: &Arc<Self>) -> Option<Slot> {
        let mut open = self.open.lock();
        if open.activities.len() >= self.settings.borrow().limits.max_connections {
            return None;
        }
        open.next += 1;
        let (number, activity) = (open.next, Arc::new(Activity::new(self.request_memory.clone())));
        open.activities.insert(number, activity.clone());
        Some(Slot { number, activity, peer: None, connections: self.clone() })
    }

    /// The connection that has waited for its client longest, and longer than every connection may. One that never had a response goes
    /// first: a client between two webhooks may come back.
    fn longest_waiting(&self) -> Option<Arc<Activity>> {
        let eviction_age = self.settings.borrow().limits.eviction_age;
        let open = self.open.lock();
        let waiting = open.activities.values().filter_map(|activity| Some((activity.waiting_since()?, activity)));
        let old = waiting.filter(|((_, since), _)| since.elapsed() >= eviction_age);
        old.min_by_key(|(key, _)| *key).map(|(_, activity)| activity.clone())
    }
}

impl Slot {
    /// The activity of the connection.
    pub fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }

    /// Counts the connection for this address. Returns false if the address has all connections that it may have.
    pub fn set_peer(&mut self, peer: IpAddr) -> bool {
        let mut open = self.connections.open.lock();
        let count = open.by_peer.entry(peer).or_default();
        if *count >= self.connections.max_per_peer() {
            return false;
        }
        *count += 1;
        self.peer = Some(peer);
        true
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut open = self.connections.open.lock();
        open.activities.remove(&self.number);
        if let Some(peer) = self.peer
            && let Some(count) = open.by_peer.get_mut(&peer)
        {
            *count -= 1;
            if *count == 0 {
                open.by_peer.remove(&peer);
            }
        }
        drop(open);
        self.connections.freed.notify_one();
    }
}

impl Activity {
    fn new(request_memory: Arc<Semaphore>) -> Self {
        let now = Instant::now();
        let state = State {
            since: now,
            header_since: Some(now),
            header_bytes: 0,
            header_permit: None,
            requests: 0,
            begun: 0,
            awaiting_body: 0,
            answered: false,
            line_seen: None,
            number_sign: false,
            unread: false,
            http2: false,
        };
        Self { request_memory, state: Mutex::new(state), evicted: Notify::new() }
    }

    /// The header of a request is complete.
    pub fn begin_request(self: &Arc<Self>, http2: bool) -> OpenRequest {
        let mut state = self.state.lock();
        let others = state.requests;
        let cut_off = !http2 && state.number_sign && state.line_seen != Some(state.begun);
        state.requests += 1;
        state.begun += 1;
        state.http2 = http2;
        state.header_since = None;
        state.header_bytes = 0;
        state.header_permit = None;
        state.since = Instant::now();
        OpenRequest { activity: self.clone(), others, cut_off }
    }

    /// More of a body is awaited until the guard is dropped.
    pub fn await_body(self: &Arc<Self>) -> AwaitedBody {
        self.state.lock().awaiting_body += 1;
        AwaitedBody(self.clone())
    }

    /// So many bytes came from the client. Fails if they are of a large header, and there is no memory for it.
    pub fn receive(&self, count: usize) -> io::Result<()> {
        let mut state = self.state.lock();
        state.unread = true;
        if state.requests > 0 || state.http2 {
            return Ok(());
        }
        state.header_since.get_or_insert_with(Instant::now);
        state.header_bytes += count;
        if state.header_bytes > SMALL_HEADER && state.header_permit.is_none() {
            // A buffer that grows is there twice for a moment.
            let permit = self.request_memory.clone().try_acquire_many_owned(2 * MAX_HEADER as u32);
            state.header_permit =
                Some(permit.map_err(|_| io::Error::other("too many large headers are being received"))?);
        }
        Ok(())
    }

    /// A part of the preamble is complete, and the next part or the header of a request begins; `unread` if bytes of that came along.
    pub fn pass_preamble(&self, unread: bool) {
        let mut state = self.state.lock();
        state.unread = unread;
        state.since = Instant::now();
        state.header_since = Some(state.since);
        state.header_bytes = 0;
        state.header_permit = None;
    }

    /// The number of the HTTP/1 request whose header comes next; `None` while there is a request, and over HTTP/2.
    pub fn next_http1_request(&self) -> Option<u64> {
        let state = self.state.lock();
        (state.requests == 0 && !state.http2).then_some(state.begun)
    }

    /// The line of the HTTP/1 request with this number begins.
    pub fn see_request_line(&self, request: u64) {
        let mut state = self.state.lock();
        state.line_seen = Some(request);
        state.number_sign = false;
    }

    /// A `#` came outside of a query that is known to be one.
    pub fn see_number_sign(&self) {
        self.state.lock().number_sign = true;
    }

    /// Whether the client may still be sending bytes that will not be read.
    pub fn has_unread(&self) -> bool {
        let state = self.state.lock();
        state.unread && !state.http2
    }

    /// Whether there is a request without a response, and nothing of it is awaited.
    pub fn owes_response(&self) -> bool {
        let state = self.state.lock();
        state.requests > state.awaiting_body
    }

    /// Resolves when the client has taken too long to send a header or to come back.
    pub async fn timed_out(&self, limits: &Limits) {
        loop {
            let now = Instant::now();
            let deadline = self.state.lock().deadline(limits);
            if deadline.is_some_and(|deadline| deadline <= now) {
                return;
            }
            // A header that begins meanwhile has an earlier deadline.
            let next = now + limits.header_timeout.min(limits.idle_timeout);
            sleep_until(deadline.map_or(next, |deadline| deadline.min(next))).await;
        }
    }

    /// Resolves when the connection has to make room, unless a request has come meanwhile.
    pub async fn evicted(&self) {
        loop {
            self.evicted.notified().await;
            if self.waiting_since().is_some() {
                return;
            }
        }
    }

    /// If it is the client's turn: whether it had a response already, and since when it is.
    fn waiting_since(&self) -> Option<(bool, Instant)> {
        let state = self.state.lock();
        (state.requests == state.awaiting_body).then_some((state.answered, state.since))
    }
}

impl State {
    /// Until when the next header has to be complete; `None` while there is a request.
    fn deadline(&self, limits: &Limits) -> Option<Instant> {
        if self.requests > 0 {
            return None;
        }
        let idle = self.since + limits.idle_timeout;
        Some(self.header_since.map_or(idle, |since| idle.min(since + limits.header_timeout)))
    }
}

impl OpenRequest {
    /// The requests of the connection that were open when this one began.
    pub fn others(&self) -> usize {
        self.others
    }

    /// Whether the target of the request may be cut off at a `#`.
    pub fn is_cut_off(&self) -> bool {
        self.cut_off
    }

    /// The activity of the connection.
    pub fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }

    /// The request has its response; `complete` if all of its body was read.
    pub fn end(self, complete: bool) {
        let mut state = self.activity.state.lock();
        state.answered = true;
        state.unread = !complete;
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        let mut state = self.activity.state.lock();
        state.requests -= 1;
        state.since = Instant::now();
    }
}

impl Drop for AwaitedBody {
    fn drop(&mut self) {
        self.0.state.lock().awaiting_body -= 1;
    }
}
