//! One run: reads each list page by page, and stores the calls that are not known.

use super::call::Call;
use super::config::{Config, List};
use super::platform::{Client, PAGE_CALLS};
use super::report::{ListReport, MissingCall, NAMED_CALLS, Report};
use crate::event::{Arrival, Event};
use crate::redact::{mask, number};
use crate::spool::Spool;
use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// Pages of one list; 100,000 calls.
const MAX_PAGES: usize = 5000;
/// Calls beyond the platform's own count before paging counts as endless. New calls that end meanwhile shift the pages.
const BEYOND_COUNT: u64 = 10 * PAGE_CALLS as u64;
/// Elements of one list that cannot be read and are reported; further ones are only counted.
const NAMED_ELEMENTS: usize = 3;

/// A run of one reconciliation.
pub struct Run<'a> {
    pub name: &'a Arc<str>,
    pub config: &'a Config,
    pub spool: &'a Spool,
    /// How far back it looks.
    pub window: Duration,
    /// Whether missing calls are only reported.
    pub dry_run: bool,
    pub now: Arrival,
}

impl Run<'_> {
    /// Reads every list. A list that fails does not hold up the others, and what was found before stays.
    pub async fn execute(&self) -> Report {
        let before =
            |period: Duration| self.now.0.saturating_sub(u64::try_from(period.as_millis()).unwrap_or(u64::MAX));
        let wanted = before(self.window);
        let known = self.spool.legs_since().map(|since| since.0);
        // Both ends stay the same on all pages.
        let time = known.map_or(wanted, |since| since.max(wanted))..before(self.config.settle);
        let mut report = Report::new(self.name, time.start, time.end);
        if known.is_none() {
            report.error = Some("`spool.legs_window` or `spool.legs_capacity` is 0: no call is known".into());
            return report;
        }
        if time.start > wanted {
            report.error = Some(format!(
                "calls before {} are not compared: the spool does not know all CDRs of that time (`spool.legs_window`, `spool.legs_capacity`)",
                report.since
            ));
        }
        let client = match Client::open(self.config) {
            Ok(client) => client,
            Err(error) => {
                report.error = Some(error);
                return report;
            }
        };
        for list in &self.config.lists {
            let mut compared = ListReport::new(*list);
            if let Err(error) = self.compare(&client, *list, &time, &mut compared).await {
                compared.errors.push(error);
            }
            report.lists.push(compared);
        }
        report
    }

    async fn compare(
        &self,
        client: &Client<'_>,
        list: List,
        time: &Range<u64>,
        report: &mut ListReport,
    ) -> Result<(), String> {
        let mut seen = HashSet::new();
        let (mut received, mut unreadable, mut repeated) = (0, 0, 0);
        for number in 1..=MAX_PAGES {
            let on_page = |problem: String| format!("page {number}: {problem}");
            let page = client.page(list, time, number).await.map_err(|error| on_page(error.to_string()))?;
            let received_before = received;
            received += page.elements.len() as u64;
            let seen_before = seen.len();
            let mut missing = Vec::new();
            for (index, element) in page.elements.iter().enumerate() {
                let call = Call::read(element, self.config.platform, list, self.config.appid, self.now);
                let key = call.as_ref().map_or(element, |call| &call.key);
                if !seen.insert(key.clone()) {
                    continue;
                }
                match call {
                    Ok(call) if call.time < time.start || call.end > time.end => {}
                    Ok(call) => {
                        report.listed += 1;
                        if self.knows(&call.event) {
                            report.known += 1;
                        } else {
                            missing.push(call);
                        }
                    }
                    Err(problem) => {
                        unreadable += 1;
                        if unreadable <= NAMED_ELEMENTS {
                            report.errors.push(on_page(format!("element {} {problem}", index + 1)));
                        }
                    }
                }
            }
            self.take(missing, report).await.map_err(on_page)?;
            let is_short = page.elements.len() < PAGE_CALLS;
            let all_received = page.count.is_none_or(|count| received >= count);
            if (is_short && all_received) || (page.elements.is_empty() && page.count.is_none()) {
                return unnamed(unreadable);
            }
            if page.elements.is_empty() {
                let count = page.count.unwrap_or_default();
                return Err(on_page(format!(
                    "is empty, but the platform counts {count} calls and has listed {received}"
                )));
            }
            if page.count.is_some_and(|count| received > count.saturating_add(BEYOND_COUNT)) {
                let count = page.count.unwrap_or_default();
                return Err(on_page(format!(
                    "the platform counts {count} calls, has listed {received}, and does not end"
                )));
            }
            repeated = if seen.len() == seen_before { repeated + 1 } else { 0 };
            if repeated > 0 && page.count.is_some_and(|count| received_before >= count) {
                // Beyond the end the platform shows the last page again.
                return unnamed(unreadable);
            }
            if repeated > 1 {
                return Err(on_page(
                    "holds nothing new, like the page before; does the platform ignore `page`?".into(),
                ));
            }
        }
        Err(format!("more than {MAX_PAGES} pages; narrow the time"))
    }

    fn knows(&self, event: &Event) -> bool {
        event.leg().is_some_and(|leg| self.spool.has_leg(&leg))
    }

    /// Notes the missing calls of one page, and stores them, oldest first.
    async fn take(&self, missing: Vec<Call>, report: &mut ListReport) -> Result<(), String> {
        if missing.is_empty() {
            return Ok(());
        }
        report.missing += missing.len() as u64;
        for call in &missing {
            if report.calls.len() < NAMED_CALLS {
                report.calls.push(self.describe(call));
            }
        }
        if self.dry_run {
            return Ok(());
        }
        let events: Vec<Event> = missing.into_iter().rev().map(|call| call.event.by(Some(self.name.clone()))).collect();
        let appended = self.spool.append_missing(events).await.map_err(|error| error.to_string())?;
        report.added += appended.stored as u64;
        Ok(())
    }

    fn describe(&self, call: &Call) -> MissingCall {
        let fields = call.event.fields();
        let party = |name: &str| fields.member(name).map(|value| mask(&number(value).unwrap_or_default()));
        MissingCall {
            id: call.event.id().to_string(),
            time: Arrival(call.time).to_string(),
            age_seconds: self.now.0.saturating_sub(call.time) / 1000,
            from: party("from").unwrap_or_default(),
            to: party("to").unwrap_or_default(),
        }
    }
}

/// The error about elements that could not be read and that no error names.
fn unnamed(unreadable: usize) -> Result<(), String> {
    let unnamed = unreadable.saturating_sub(NAMED_ELEMENTS);
    if unnamed > 0 { Err(format!("{unnamed} more elements cannot be read")) } else { Ok(()) }
}
