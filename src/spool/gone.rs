//! Which records turned out to be unreadable.

use std::collections::BTreeMap;
use std::ops::Range;

/// A disk that has more gaps than this is past mending.
const GAPS: usize = 10_000;

/// Gaps between the records that can be read, the latest [`GAPS`] of them: for each the first offset and the one behind it.
#[derive(Clone, Debug, Default)]
pub struct Gone(BTreeMap<u64, u64>);

impl Gone {
    /// Adds a gap.
    pub fn insert(&mut self, gap: Range<u64>) {
        self.0.insert(gap.start, gap.end);
        if self.0.len() > GAPS {
            self.0.pop_first();
        }
    }

    /// Whether the record at this offset is in one of them.
    pub fn contains(&self, offset: u64) -> bool {
        self.0.range(..=offset).next_back().is_some_and(|(_, end)| offset < *end)
    }

    /// Those that begin below `offset`: what matters to whoever asks for what lies there.
    pub fn below(&self, offset: u64) -> Self {
        Self(self.0.range(..offset).map(|(start, end)| (*start, *end)).collect())
    }
}
