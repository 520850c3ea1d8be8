//! What is sent.

use super::client::Over;
use super::event;
use hyper::body::Bytes;
use std::cell::Cell;

/// What requests are like, who sends them, and over which connections.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// How many send at the same time, each its next request when the last one was answered.
    pub clients: usize,
    pub over: Over,
    /// About how many bytes an event has.
    pub bytes: usize,
    /// Events in one request; more than one are sent as an array.
    pub events: usize,
    /// All in one conversation, or each in its own.
    pub one_conversation: bool,
    /// With a signature over the body, as GitHub makes it.
    pub signed: bool,
}

/// What signs.
pub const SECRET: &str = "a secret of the usual length, in 32+";

impl Default for Shape {
    fn default() -> Self {
        Self { clients: 64, over: Over::Own, bytes: 480, events: 1, one_conversation: false, signed: false }
    }
}

/// Bodies that were never sent before, in this run or an earlier one.
pub struct Bodies {
    shape: Shape,
    run: u64,
    next: Cell<u64>,
}

impl Bodies {
    pub fn new(shape: Shape) -> Self {
        Self { shape, run: fastrand::u64(..), next: Cell::new(0) }
    }

    pub fn next(&self) -> Bytes {
        let Shape { events, .. } = self.shape;
        let event = || self.event(self.next.replace(self.next.get() + 1));
        if events == 1 {
            return event().into();
        }
        format!("[{}]", (0..events).map(|_| event()).collect::<Vec<_>>().join(",")).into()
    }

    /// The event of this number, which is a call of its own.
    pub fn event(&self, number: u64) -> String {
        let call = format!("{:016x}-{number:08x}", self.run);
        event::text(&call, if self.shape.one_conversation { "one" } else { &call }, self.shape.bytes)
    }
}
