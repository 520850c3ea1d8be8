//! The report of a run, as a table and as JSON.

use super::Plan;
use super::latency::Percentiles;
use super::load::{Counts, Sent};
use super::observer::SinkReport;
use serde::Serialize;
use std::fmt;
use std::time::Duration;

/// A rate that is missed by less than this was reached.
const RATE_TOLERANCE: f64 = 0.02;

/// The outcome. Written out as a table, or as JSON.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether everything that was acknowledged is at every sink, in order and unchanged, and there was something to judge by.
    pub clean: bool,
    /// The seed of the events.
    pub seed: u64,
    /// How the ids of this run's conversations begin.
    pub run: String,
    /// For how long events were sent.
    pub seconds: f64,
    /// Sent events.
    #[serde(flatten)]
    pub counts: Counts,
    /// Why the last attempt was not acknowledged, if nothing was acknowledged after it.
    pub last_error: Option<String>,
    /// Events a second that should have been sent.
    pub rate_wanted: f64,
    /// Events a second that were.
    pub rate: f64,
    /// Of the moments at which an event was due, the part at which all conversations waited for an acknowledgement.
    pub rate_missed: f64,
    /// How long missing events are awaited after the last one was sent.
    pub settle_seconds: f64,
    /// From the first attempt to send an event to its acknowledgement.
    pub acknowledgement: Percentiles,
    /// The sinks.
    pub sinks: Vec<SinkReport>,
}

impl Report {
    /// Puts everything together.
    pub fn new(plan: &Plan, run: &str, duration: Duration, sent: &Sent, sinks: Vec<SinkReport>) -> Self {
        let counts = sent.counts;
        let delivered = |sink: &SinkReport| sink.delivered > 0;
        Self {
            clean: counts.accepted > 0 && sinks.iter().all(SinkReport::is_clean) && sinks.iter().any(delivered),
            seed: plan.seed,
            run: run.trim_end_matches('-').to_owned(),
            seconds: duration.as_secs_f64(),
            counts,
            last_error: sent.last_error.clone(),
            rate_wanted: plan.load.rate,
            rate: (counts.due - counts.missed) as f64 / duration.as_secs_f64().max(0.001),
            rate_missed: counts.missed as f64 / counts.due.max(1) as f64,
            settle_seconds: plan.settle.as_secs_f64(),
            acknowledgement: sent.latency.percentiles(),
            sinks,
        }
    }

    fn table(&self) -> Vec<[String; 10]> {
        let head = ["", "events", "lost", "duplicated", "reordered", "p50", "p90", "p99", "p99.9", "max"];
        let row = |name: &str, events: u64, counts: [String; 3], latency: &Percentiles| {
            let [lost, duplicated, reordered] = counts;
            let [p50, p90, p99, p99_9, max] = match events {
                0 => [const { String::new() }; 5],
                _ => [latency.p50, latency.p90, latency.p99, latency.p99_9, latency.max].map(period),
            };
            [name.to_owned(), events.to_string(), lost, duplicated, reordered, p50, p90, p99, p99_9, max]
        };
        let mut rows = vec![head.map(str::to_owned)];
        rows.push(row("accepted", self.counts.accepted, [const { String::new() }; 3], &self.acknowledgement));
        rows.extend(self.sinks.iter().map(|sink| {
            let counts = [sink.lost, sink.duplicated, sink.reordered].map(|count| count.to_string());
            row(&sink.name, sink.delivered, counts, &sink.latency)
        }));
        rows
    }

    /// Notes below the table.
    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let mut note = |wanted: bool, text: &dyn Fn() -> String| {
            if wanted {
                notes.push(text());
            }
        };
        note(self.counts.refused > 0, &|| {
            format!(
                "{} attempts were refused or not answered, and tried again; {} of these events had been stored all the same",
                self.counts.refused, self.counts.known
            )
        });
        note(self.counts.unacknowledged > 0, &|| {
            let why = self.last_error.as_deref().unwrap_or("no answer");
            format!("{} events were never acknowledged, and may be there or not: {why}", self.counts.unacknowledged)
        });
        note(self.rate_missed > RATE_TOLERANCE, &|| {
            format!(
                "the rate was not reached: {:.1} of {} events a second. {:.0} % of the time all conversations waited for an acknowledgement: the bridge was away or is at its limit, or --conversations is too small",
                self.rate,
                self.rate_wanted,
                100.0 * self.rate_missed
            )
        });
        for sink in &self.sinks {
            let name = &sink.name;
            note(sink.filtered > 0, &|| format!("{name}: `when` keeps {} events from it", sink.filtered));
            note(sink.dead_lettered > 0, &|| {
                let reason = sink.dead_letter_reason.as_deref().unwrap_or("no reason");
                format!("{name}: {} events are dead letters, not delivered: {reason}", sink.dead_lettered)
            });
            note(sink.altered > 0, &|| format!("{name}: {} events are not what was sent", sink.altered));
            note(sink.unexpected > 0, &|| format!("{name}: {} events should not be there", sink.unexpected));
            note(sink.lost > 0, &|| match &sink.last_error {
                Some(last_error) => {
                    format!("{name}: cannot be read, so what counts as lost may be there: {last_error}")
                }
                None => {
                    format!("{name}: what is lost had not come {} s after the last event was sent", self.settle_seconds)
                }
            });
            sink.findings.iter().for_each(|finding| note(true, &|| format!("{name}: {finding}")));
        }
        notes
    }

    fn verdict(&self) -> String {
        let sum = |count: fn(&SinkReport) -> u64| self.sinks.iter().map(count).sum::<u64>();
        if self.clean {
            return "clean: everything accepted is at every sink, in order".to_owned();
        }
        let faults = [
            (sum(|sink| sink.lost), "lost"),
            (sum(|sink| sink.dead_lettered), "dead letters"),
            (sum(|sink| sink.reordered), "out of order"),
            (sum(|sink| sink.altered), "altered"),
            (sum(|sink| sink.unexpected), "unexpected"),
        ];
        let faults: Vec<_> =
            faults.iter().filter(|(count, _)| *count > 0).map(|(n, what)| format!("{n} {what}")).collect();
        match (faults.is_empty(), self.counts.accepted) {
            (false, _) => format!("FAILED: {}", faults.join(", ")),
            (true, 0) => match &self.last_error {
                Some(last_error) => format!("FAILED: nothing was accepted: {last_error}"),
                None => "FAILED: nothing was accepted".to_owned(),
            },
            (true, _) => "FAILED: no sink was to get any event, so nothing was put to the test; see `when`".to_owned(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:.1} s, {:.1} events a second, {} conversations {}-…, seed {}\n",
            self.seconds, self.rate, self.counts.conversations, self.run, self.seed
        )?;
        let table = self.table();
        let mut widths = [0; 10];
        for row in &table {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        for row in &table {
            let cells = row.iter().zip(widths).enumerate().map(|(column, (cell, width))| match column {
                0 => format!("{cell:width$}"),
                _ => format!("{cell:>width$}"),
            });
            writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        writeln!(f)?;
        self.notes().iter().try_for_each(|note| writeln!(f, "{note}"))?;
        write!(f, "{}", self.verdict())
    }
}

fn period(millis: f64) -> String {
    match millis {
        _ if millis < 10.0 => format!("{millis:.2} ms"),
        _ if millis < 1000.0 => format!("{millis:.0} ms"),
        _ => format!("{:.2} s", millis / 1000.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sink(name: &str, delivered: u64, lost: u64) -> SinkReport {
        SinkReport {
            name: name.to_owned(),
            delivered,
            lost,
            duplicated: 12,
            reordered: 0,
            altered: 0,
            unexpected: 0,
            dead_lettered: 0,
            dead_letter_reason: None,
            filtered: 0,
            latency: Percentiles { p50: 1.234, p90: 56.7, p99: 890.1, p99_9: 2345.6, max: 61_000.0 },
            findings: (0..lost).map(|number| format!("lost: number {number}")).collect(),
            last_error: None,
        }
    }

    fn report(sinks: Vec<SinkReport>) -> Report {
        Report {
            clean: sinks.iter().all(SinkReport::is_clean),
            seed: 7,
            run: "run".to_owned(),
            seconds: 10.0,
            counts: Counts { conversations: 5, accepted: 100, ..Counts::default() },
            last_error: None,
            rate_wanted: 10.0,
            rate: 10.0,
            rate_missed: 0.0,
            settle_seconds: 60.0,
            acknowledgement: Percentiles::default(),
            sinks,
        }
    }

    #[test]
    fn the_table_is_aligned_and_the_verdict_comes_last() {
        let text = report(vec![sink("a", 100, 0), sink("a-longer-name", 99, 1)]).to_string();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[2],
            "               events  lost  duplicated  reordered      p50      p90      p99    p99.9      max"
        );
        assert_eq!(
            lines[4],
            "a                 100     0          12          0  1.23 ms    57 ms   890 ms   2.35 s  61.00 s"
        );
        assert_eq!(
            lines[5],
            "a-longer-name      99     1          12          0  1.23 ms    57 ms   890 ms   2.35 s  61.00 s"
        );
        assert_eq!(
            lines[6..],
            [
                "",
                "a-longer-name: what is lost had not come 60 s after the last event was sent",
                "a-longer-name: lost: number 0",
                "FAILED: 1 lost"
            ]
        );
    }

    #[test]
    fn what_was_not_put_to_the_test_is_not_clean() {
        let mut nothing = Report { clean: false, counts: Counts::default(), ..report(vec![sink("a", 0, 0)]) };
        assert!(nothing.to_string().ends_with("FAILED: nothing was accepted"));
        nothing.counts.accepted = 5;
        assert!(nothing.to_string().contains("put to the test; see `when`"));
        assert!(
            report(vec![sink("a", 100, 0)])
                .to_string()
                .ends_with("clean: everything accepted is at every sink, in order")
        );
    }
}
