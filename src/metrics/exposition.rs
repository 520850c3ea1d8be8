//! The text format of metrics: Prometheus 0.0.4, which every scraper reads.
//!
//! The library writes OpenMetrics alone. The older format names a counter in HELP and TYPE as in its samples, with `_total`, and
//! has neither UNIT nor EOF (<https://prometheus.io/docs/instrumenting/exposition_formats/>).

/// The media type.
pub const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The same metrics in the older format.
pub(super) fn to_prometheus(open_metrics: &str) -> String {
    let mut out = String::with_capacity(open_metrics.len());
    let mut help = "";
    for line in open_metrics.lines() {
        if let Some(text) = line.strip_prefix("# HELP ") {
            // Its name depends on the type, which comes next.
            help = text.split_once(' ').map_or("", |(_, help)| help);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|text| text.split_once(' ')) {
            let suffix = if kind == "counter" { "_total" } else { "" };
            out.extend(["# HELP ", name, suffix, " ", help, "\n# TYPE ", name, suffix, " ", kind, "\n"]);
        } else if !line.starts_with('#') {
            out.extend([line, "\n"]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_has_its_suffix_in_help_and_type() {
        let open_metrics = "# HELP a_b Counts.\n# TYPE a_b counter\na_b_total{x=\"1\"} 2\n# HELP g Is.\n# TYPE g gauge\n\
                            # UNIT g seconds\ng 1.5\n# EOF\n";
        let expected = "# HELP a_b_total Counts.\n# TYPE a_b_total counter\na_b_total{x=\"1\"} 2\n# HELP g Is.\n# TYPE g gauge\ng 1.5\n";
        assert_eq!(to_prometheus(open_metrics), expected);
    }
}
