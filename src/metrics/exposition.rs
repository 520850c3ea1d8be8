//! The text formats of metrics: Prometheus 0.0.4, and OpenMetrics 1.0.0 for clients that ask for it.
//!
//! The library writes OpenMetrics alone. The older format names a counter in HELP and TYPE as in its samples, with `_total`, and
//! has neither UNIT nor EOF (<https://prometheus.io/docs/instrumenting/exposition_formats/>).

use hyper::header::{ACCEPT, HeaderMap};

/// The media type of OpenMetrics, without parameters.
const OPEN_METRICS: &str = "application/openmetrics-text";

/// A text format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposition {
    /// Prometheus text format 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl Exposition {
    /// The format for a request with these header fields: OpenMetrics only if `Accept` names it.
    pub fn accepted_by(headers: &HeaderMap) -> Self {
        let ranges = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let mut ranges = ranges.flat_map(|value| value.split(','));
        if ranges.any(asks_for_open_metrics) { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// The media type.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// The metrics in this format.
    pub(super) fn of_open_metrics(self, text: String) -> String {
        match self {
            Self::OpenMetrics => text,
            Self::Prometheus => to_prometheus(&text),
        }
    }
}

/// Whether a media range is OpenMetrics and not excluded by `q=0`.
fn asks_for_open_metrics(range: &str) -> bool {
    let mut parts = range.split(';').map(str::trim);
    let named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case(OPEN_METRICS));
    let quality = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
    named && quality.is_none_or(|quality| quality.parse::<f32>().is_ok_and(|quality| quality > 0.0))
}

fn to_prometheus(open_metrics: &str) -> String {
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
    fn open_metrics_is_for_clients_that_name_it() {
        let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                          text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        for (accept, expected) in [
            (prometheus, Exposition::OpenMetrics),
            ("Application/OpenMetrics-Text", Exposition::OpenMetrics),
            ("text/plain, application/openmetrics-text; q=0.1", Exposition::OpenMetrics),
            ("application/openmetrics-text;version=1.0.0;q=0", Exposition::Prometheus),
            ("*/*", Exposition::Prometheus),
            ("application/openmetrics-text-x", Exposition::Prometheus),
            ("", Exposition::Prometheus),
        ] {
            let headers = [(ACCEPT, accept.parse().unwrap())].into_iter().collect();
            assert_eq!(Exposition::accepted_by(&headers), expected, "{accept}");
        }
        assert_eq!(Exposition::accepted_by(&HeaderMap::new()), Exposition::Prometheus);
    }

    #[test]
    fn a_counter_has_its_suffix_in_help_and_type() {
        let open_metrics = "# HELP a_b Counts.\n# TYPE a_b counter\na_b_total{x=\"1\"} 2\n# HELP g Is.\n# TYPE g gauge\n\
                            # UNIT g seconds\ng 1.5\n# EOF\n";
        let expected = "# HELP a_b_total Counts.\n# TYPE a_b_total counter\na_b_total{x=\"1\"} 2\n# HELP g Is.\n# TYPE g gauge\ng 1.5\n";
        assert_eq!(to_prometheus(open_metrics), expected);
    }
}
