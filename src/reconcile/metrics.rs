//! `cdrelay_reconcile_*`

use super::config::List;
use super::report::Report;
use crate::event::Arrival;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Counts what runs find.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    last_success: Family<NameLabel, Gauge>,
    listed: Family<ListLabel, Counter>,
    missing: Family<ListLabel, Counter>,
    added: Family<ListLabel, Counter>,
    errors: Family<ListLabel, Counter>,
}

/// `reconcile="name"`
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NameLabel {
    reconcile: String,
}

/// `reconcile="name",list="missed"`
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ListLabel {
    reconcile: String,
    list: &'static str,
}

impl Metrics {
    /// Adds them to the part of the catalogue called `reconcile`.
    pub fn register(&self, at: &mut Registry) {
        let success = "When a run last read all of its lists completely; 0 if none has";
        at.register("last_success_timestamp_seconds", success, self.last_success.clone());
        at.register("listed", "Calls that the platform listed, in each run anew", self.listed.clone());
        at.register("missing", "Calls whose webhook never came", self.missing.clone());
        at.register("added", "Missing calls that were stored", self.added.clone());
        at.register("errors", "Lists that could not be compared completely", self.errors.clone());
    }

    /// Shows the metrics of a reconciliation before its first run.
    pub fn show(&self, name: &str, lists: &[List]) {
        drop(self.last_success.get_or_create(&NameLabel { reconcile: name.into() }));
        for list in lists {
            for family in [&self.listed, &self.missing, &self.added, &self.errors] {
                drop(family.get_or_create(&ListLabel { reconcile: name.into(), list: list.name() }));
            }
        }
    }

    /// Counts a run that was no dry run, of these lists.
    pub fn count(&self, report: &Report, lists: &[List]) {
        let label = |list: List| ListLabel { reconcile: report.reconcile.clone(), list: list.name() };
        for list in &report.lists {
            let label = label(list.list);
            self.listed.get_or_create(&label).inc_by(list.listed);
            self.missing.get_or_create(&label).inc_by(list.missing);
            self.added.get_or_create(&label).inc_by(list.added);
            self.errors.get_or_create(&label).inc_by(u64::from(!list.errors.is_empty()));
        }
        if report.error.is_some() {
            for list in lists {
                self.errors.get_or_create(&label(*list)).inc();
            }
        }
        if report.is_complete() {
            let name = NameLabel { reconcile: report.reconcile.clone() };
            self.last_success.get_or_create(&name).set((Arrival::now().0 / 1000) as i64);
        }
    }
}
