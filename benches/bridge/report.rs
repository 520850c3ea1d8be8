//! Medians, as a table to read and as JSON to keep.

use crate::case::Figures;
use crate::figure::{Bar, svg};
use std::collections::BTreeMap;
use std::fs::{create_dir_all, write};
use std::path::Path;

/// The figures of every round, by case in the order of measurement.
#[derive(Default)]
pub struct Report {
    cases: Vec<(&'static str, BTreeMap<&'static str, Vec<f64>>)>,
}

const COLUMNS: [&str; 10] = [
    "x hyper",
    "cpu µs",
    "hyper, cpu µs",
    "events/s",
    "hyper, events/s",
    "p50, ms",
    "p99, ms",
    "syncs/event",
    "RSS idle, MiB",
    "RSS peak, MiB",
];

impl Report {
    pub fn add(&mut self, case: &'static str, figures: Figures) {
        let place = self.cases.iter().position(|(name, _)| *name == case).unwrap_or_else(|| {
            self.cases.push((case, BTreeMap::new()));
            self.cases.len() - 1
        });
        for (name, value) in figures {
            self.cases[place].1.entry(name).or_default().push(value);
        }
    }

    pub fn print(&self) {
        print!("{:32}", "");
        COLUMNS.iter().for_each(|column| print!(" {column:>15}"));
        println!();
        for (case, figures) in &self.cases {
            print!("{case:32}");
            for column in COLUMNS {
                print!(" {:>15}", figures.get(column).map_or(String::new(), |values| rounded(median(values))));
            }
            println!();
            let others = figures.iter().filter(|(name, _)| !COLUMNS.contains(name));
            let others: Vec<_> = others.map(|(name, values)| format!("{name}: {}", rounded(median(values)))).collect();
            println!("    {}", others.join("; "));
        }
    }

    /// A figure of what was measured beside the bare server.
    pub fn draw(&self, path: &Path) {
        let bars = self.cases.iter().filter_map(|(name, figures)| {
            let cost = |name: &str| figures.get(name).map(|values| median(values));
            Some(Bar { name, floor: cost("hyper, cpu µs")?, bridge: cost("cpu µs")? })
        });
        write(path, svg(&bars.collect::<Vec<_>>())).unwrap();
        println!("figure: {}", path.display());
    }

    /// Every round of every figure, and the median.
    pub fn write(&self, path: &Path) {
        let figures = |figures: &BTreeMap<&str, Vec<f64>>| {
            let figure = |(name, values): (&&str, &Vec<f64>)| {
                (name.to_string(), serde_json::json!({ "median": median(values), "rounds": values }))
            };
            serde_json::Value::Object(figures.iter().map(figure).collect())
        };
        let cases = self.cases.iter().map(|(case, all)| ((*case).to_owned(), figures(all)));
        let json = serde_json::Value::Object(cases.collect());
        if let Some(directory) = path.parent() {
            create_dir_all(directory).unwrap();
        }
        write(path, format!("{json:#}\n")).unwrap();
        println!("all rounds: {}", path.display());
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

fn rounded(value: f64) -> String {
    match value.abs() {
        large if large >= 1000.0 => format!("{value:.0}"),
        large if large >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}
