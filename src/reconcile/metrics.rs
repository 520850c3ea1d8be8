//! `cdrelay_reconcile_*`

use super::config::List;
use super::report::Report;
use crate::event::Arrival;
use crate::metrics::{Label, catalogue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

/// The reconciliation, and the list.
type Labels = [(&'static str, String); 2];

catalogue! {
    /// Counts what runs find.
    Metrics {
        last_success: Family<Label<String>, Gauge> = "reconcile_last_success_timestamp_seconds",
            "When a run last read all of its lists completely; 0 if none has";
        listed: Family<Labels, Counter> = "reconcile_listed", "Calls that the platform listed, in each run anew";
        missing: Family<Labels, Counter> = "reconcile_missing", "Calls whose webhook never came";
        added: Family<Labels, Counter> = "reconcile_added", "Missing calls that were stored";
        errors: Family<Labels, Counter> = "reconcile_errors", "Lists that could not be compared completely";
    }
}

fn labels(reconcile: &str, list: List) -> Labels {
    [("reconcile", reconcile.to_owned()), ("list", list.name().to_owned())]
}

impl Metrics {
    /// Shows the metrics of a reconciliation before its first run.
    pub fn show(&self, name: &str, lists: &[List]) {
        drop(self.last_success.get_or_create(&[("reconcile", name.to_owned())]));
        for list in lists {
            for family in [&self.listed, &self.missing, &self.added, &self.errors] {
                drop(family.get_or_create(&labels(name, *list)));
            }
        }
    }

    /// Counts a run that was no dry run, of these lists.
    pub fn count(&self, report: &Report, lists: &[List]) {
        for list in &report.lists {
            let labels = labels(&report.reconcile, list.list);
            self.listed.get_or_create(&labels).inc_by(list.listed);
            self.missing.get_or_create(&labels).inc_by(list.missing);
            self.added.get_or_create(&labels).inc_by(list.added);
            self.errors.get_or_create(&labels).inc_by(u64::from(!list.errors.is_empty()));
        }
        if report.error.is_some() {
            for list in lists {
                self.errors.get_or_create(&labels(&report.reconcile, *list)).inc();
            }
        }
        if report.is_complete() {
            let name = [("reconcile", report.reconcile.clone())];
            self.last_success.get_or_create(&name).set((Arrival::now().0 / 1000) as i64);
        }
    }
}
