//! The report of a run, as text and as JSON.

use super::config::List;
use crate::event::Arrival;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Missing calls that a report names; further ones are counted.
pub const NAMED_CALLS: usize = 1000;

/// A run of one reconciliation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The reconciliation's name.
    pub reconcile: String,
    /// The calls began since then: RFC 3339.
    pub since: String,
    /// The calls ended before that: RFC 3339.
    pub until: String,
    /// Why no list could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Each list.
    pub lists: Vec<ListReport>,
}

/// One list in a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ListReport {
    /// The list.
    pub list: List,
    /// Calls on it, each counted once.
    pub listed: u64,
    /// Those whose webhook came, or that were added before.
    pub known: u64,
    /// Those whose webhook never came.
    pub missing: u64,
    /// Missing calls that were stored; none in a dry run.
    pub added: u64,
    /// Why the list was not read to its end, or elements that could not be read.
    pub errors: Vec<String>,
    /// The first missing calls, newest first.
    pub calls: Vec<MissingCall>,
}

/// A call whose webhook never came.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MissingCall {
    /// The `ce_id` of its event.
    pub id: String,
    /// When it began: RFC 3339.
    pub time: String,
    /// How long ago that was, in seconds.
    pub age_seconds: u64,
    /// The caller, masked.
    pub from: String,
    /// The called number, masked.
    pub to: String,
}

impl Report {
    /// A report on calls of this time, in milliseconds since 1970.
    pub fn new(reconcile: &str, since: u64, until: u64) -> Self {
        let [since, until] = [since, until].map(|time| Arrival(time).to_string());
        Self { reconcile: reconcile.into(), since, until, error: None, lists: Vec::new() }
    }

    /// Calls whose webhook never came.
    pub fn missing(&self) -> u64 {
        self.lists.iter().map(|list| list.missing).sum()
    }

    /// Whether every list was read completely.
    pub fn is_complete(&self) -> bool {
        self.error.is_none() && self.lists.iter().all(|list| list.errors.is_empty())
    }
}

impl ListReport {
    /// A list of which nothing is read yet.
    pub fn new(list: List) -> Self {
        Self { list, listed: 0, known: 0, missing: 0, added: 0, errors: Vec::new(), calls: Vec::new() }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: calls from {} to {}\n", self.reconcile, self.since, self.until)?;
        writeln!(f, "{:<12}  {:>7}  {:>7}  {:>7}  {:>7}", "list", "listed", "known", "missing", "added")?;
        for ListReport { list, listed, known, missing, added, .. } in &self.lists {
            writeln!(f, "{list:<12}  {listed:>7}  {known:>7}  {missing:>7}  {added:>7}")?;
        }
        if self.missing() > 0 {
            let header = ("missing from", "time", "from", "to", "ce_id");
            writeln!(f, "\n{:<12}  {:<24}  {:<16}  {:<16}  {}", header.0, header.1, header.2, header.3, header.4)?;
        }
        for list in &self.lists {
            for MissingCall { id, time, from, to, .. } in &list.calls {
                writeln!(f, "{:<12}  {time:<24}  {from:<16}  {to:<16}  {id}", list.list)?;
            }
            let unnamed = list.missing.saturating_sub(list.calls.len() as u64);
            if unnamed > 0 {
                writeln!(f, "{:<12}  and {unnamed} more", list.list)?;
            }
        }
        if !self.is_complete() {
            writeln!(f)?;
        }
        if let Some(error) = &self.error {
            writeln!(f, "error: {error}")?;
        }
        for list in &self.lists {
            for error in &list.errors {
                writeln!(f, "error: {}: {error}", list.list)?;
            }
        }
        Ok(())
    }
}
