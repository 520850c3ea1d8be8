//! Judges one destination: acknowledged events that are missing, duplicated or out of order there.
//!
//! Every conversation numbers its events from 0 and sends one only after the one before was acknowledged. A destination may get
//! events again, from any one on that it had: delivery is at least once. It never gets one before its predecessor.
//!
//! | verdict | means |
//! |---|---|
//! | lost | acknowledged, meant for this destination, and not there |
//! | duplicated | there once more |
//! | reordered | there for the first time behind a later one; or there again, with one left out that is between; or in another partition than the one before |
//!
//! Per conversation it keeps the numbers of its events and where the last one was, and nothing else.

use std::collections::BTreeSet;

/// How many faults are kept with their details; all are counted.
const FINDINGS: usize = 10;

/// Judges one destination. Conversations and events are numbered from 0.
#[derive(Debug, Default)]
pub struct Oracle {
    conversations: Vec<Conversation>,
    missing: u64,
    verdict: Verdict,
}

/// An event at the destination.
#[derive(Clone, Copy, Debug)]
pub struct Delivery {
    /// Its conversation.
    pub conversation: usize,
    /// Its number in the conversation.
    pub number: usize,
    /// Events of a conversation are in order, and in one place, if they have the same sequence: a template can send some to one topic
    /// and some to another, and no consumer could tell which came first.
    pub sequence: u64,
    /// Where it lies.
    pub at: Position,
}

/// Where an event lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// A partition, or a stream: a place that keeps an order.
    pub place: u32,
    /// Its offset, sequence or line there.
    pub offset: u64,
}

/// The verdict on one destination.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Events that arrived, each counted once.
    pub delivered: u64,
    /// Acknowledged events that did not.
    pub lost: Vec<(usize, usize)>,
    /// Arrivals of events that were there already.
    pub duplicated: u64,
    /// Arrivals out of order.
    pub reordered: u64,
    /// Arrivals with other content than was sent.
    pub altered: u64,
    /// Arrivals of events that were never sent, or not meant for this destination.
    pub unexpected: u64,
    /// The first faults.
    pub findings: Vec<Finding>,
}

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Which.
    pub fault: Fault,
    /// The event's conversation.
    pub conversation: usize,
    /// The event's number.
    pub number: usize,
    /// Where it lies; if it is lost, where the last one of its conversation lies.
    pub at: Option<Position>,
}

/// A fault of an event at the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is not there.
    Lost,
    /// It came for the first time after `later` had come.
    Overtaken {
        /// The number of the latest one.
        later: usize,
    },
    /// It came after `last`, and the events between these, which had come before, were left out.
    Skipped {
        /// The number of the one before.
        last: usize,
    },
    /// It is not where the one before it is.
    Elsewhere {
        /// Where that one is.
        before: Position,
    },
    /// Its content differs from the sent event.
    Altered,
    /// It was never sent, or not meant for this destination.
    Unexpected,
}

#[derive(Debug, Default)]
struct Conversation {
    sent: u32,
    acknowledged: u32,
    /// How many events the destination may have lost again, see [`Oracle::emptied`].
    gone: u32,
    unwanted: BTreeSet<u32>,
    /// One, unless a template spreads the conversation.
    sequences: Vec<Sequence>,
}

#[derive(Debug)]
struct Sequence {
    sequence: u64,
    seen: BTreeSet<u32>,
    /// The one after which the next is to come.
    last: u32,
    at: Position,
}

impl Verdict {
    /// Nothing is lost, out of order or altered. Duplicates are no fault: delivery is at least once.
    pub fn is_clean(&self) -> bool {
        self.lost.is_empty() && self.reordered + self.altered + self.unexpected == 0
    }

    fn find(&mut self, finding: Finding) {
        if self.findings.len() < FINDINGS {
            self.findings.push(finding);
        }
    }
}

impl Oracle {
    /// The next event of `conversation` is about to be sent. `wanted` is false if the destination is not to get it.
    pub fn sent(&mut self, conversation: usize, wanted: bool) {
        let conversation = self.conversation(conversation);
        if !wanted {
            conversation.unwanted.insert(conversation.sent);
        }
        conversation.sent += 1;
    }

    /// The first event of `conversation` that was not yet, is acknowledged.
    pub fn acknowledged(&mut self, conversation: usize) {
        let conversation = self.conversation(conversation);
        let number = conversation.acknowledged;
        conversation.acknowledged += 1;
        let missing = !conversation.unwanted.contains(&number) && !conversation.has(number);
        self.missing += u64::from(missing);
    }

    /// The destination lost what it had. Of `conversation` the first `events` may be gone, but nothing after the first one that is
    /// there.
    pub fn emptied(&mut self, conversation: usize, events: usize) {
        self.conversation(conversation).gone = narrow(events);
    }

    /// An event is there.
    pub fn arrived(&mut self, delivery: Delivery) {
        let Delivery { conversation, number, sequence, at } = delivery;
        let finding = |fault| Finding { fault, conversation, number, at: Some(at) };
        let number = narrow(number);
        let known = self.conversations.get_mut(conversation);
        let Some(known) = known.filter(|known| number < known.sent && !known.unwanted.contains(&number)) else {
            self.verdict.unexpected += 1;
            self.verdict.find(finding(Fault::Unexpected));
            return;
        };
        let again = known.has(number);
        let fault = known.sequence(sequence).and_then(|sequence| sequence.fault(number, again, known.gone, at));
        if let Some(fault) = fault {
            self.verdict.reordered += 1;
            self.verdict.find(finding(fault));
        }
        if again {
            self.verdict.duplicated += 1;
        } else {
            self.verdict.delivered += 1;
            self.missing -= u64::from(number < known.acknowledged);
        }
        known.note(sequence, number, at, matches!(fault, Some(Fault::Overtaken { .. })));
    }

    /// An event arrived with other content than was sent. Report its arrival as well.
    pub fn altered(&mut self, conversation: usize, number: usize, at: Position) {
        self.verdict.altered += 1;
        self.verdict.find(Finding { fault: Fault::Altered, conversation, number, at: Some(at) });
    }

    /// How many acknowledged events are not there yet.
    pub fn missing(&self) -> u64 {
        self.missing
    }

    /// How many events are there, each counted once.
    pub fn delivered(&self) -> u64 {
        self.verdict.delivered
    }

    /// The final verdict: nothing more arrives.
    pub fn verdict(&self) -> Verdict {
        let mut verdict = self.verdict.clone();
        for (index, conversation) in self.conversations.iter().enumerate() {
            let first = conversation
                .sequences
                .iter()
                .filter_map(|sequence| sequence.seen.first())
                .min()
                .copied()
                .unwrap_or(u32::MAX);
            let lost = conversation.gone.min(first)..conversation.acknowledged;
            let lost = lost.filter(|number| !conversation.unwanted.contains(number) && !conversation.has(*number));
            for number in lost.map(|number| number as usize) {
                let at = conversation.sequences.last().map(|sequence| sequence.at);
                verdict.find(Finding { fault: Fault::Lost, conversation: index, number, at });
                verdict.lost.push((index, number));
            }
        }
        verdict
    }

    fn conversation(&mut self, index: usize) -> &mut Conversation {
        if self.conversations.len() <= index {
            self.conversations.resize_with(index + 1, Conversation::default);
        }
        #[expect(clippy::indexing_slicing, reason = "made above")]
        &mut self.conversations[index]
    }
}

impl Conversation {
    fn has(&self, number: u32) -> bool {
        self.sequences.iter().any(|sequence| sequence.seen.contains(&number))
    }

    fn sequence(&self, sequence: u64) -> Option<&Sequence> {
        self.sequences.iter().find(|known| known.sequence == sequence)
    }

    fn note(&mut self, sequence: u64, number: u32, at: Position, overtaken: bool) {
        match self.sequences.iter_mut().find(|known| known.sequence == sequence) {
            Some(known) => {
                known.seen.insert(number);
                known.at = at;
                // The events behind an overtaken one follow those that overtook it.
                if !overtaken {
                    known.last = number;
                }
            }
            None => {
                self.sequences.push(Sequence { sequence, seen: [number].into(), last: number, at });
            }
        }
    }
}

impl Sequence {
    /// The fault, if any, of `number` arriving next; `again` if it has arrived before.
    fn fault(&self, number: u32, again: bool, gone: u32, at: Position) -> Option<Fault> {
        // It may have been there before the destination was emptied.
        let may_be_again = number < gone && self.seen.first().is_some_and(|first| number < *first);
        let later = self.seen.last().filter(|later| **later > number && !again && !may_be_again);
        if self.at.place != at.place {
            Some(Fault::Elsewhere { before: self.at })
        } else if let Some(later) = later {
            Some(Fault::Overtaken { later: *later as usize })
        } else if self.seen.range(..number).next_back().is_some_and(|before| *before > self.last) {
            Some(Fault::Skipped { last: self.last as usize })
        } else {
            None
        }
    }
}

fn narrow(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
