//! What an event costs, as bars: the bare server's share, and what the bridge adds to it.

use std::fmt::Write;

/// One bar.
pub struct Bar {
    pub name: &'static str,
    /// Processor time per event in µs: of the bare server, and of the bridge.
    pub floor: f64,
    pub bridge: f64,
}

/// In pixels.
const ROW: usize = 28;
const NAMES: usize = 250;
const BARS: usize = 430;
const NUMBERS: usize = 150;

/// The bars as SVG that can be read on light and on dark ground.
pub fn svg(bars: &[Bar]) -> String {
    let most = bars.iter().map(|bar| bar.bridge.max(bar.floor)).fold(0.0, f64::max);
    let (width, height) = (NAMES + BARS + NUMBERS, (bars.len() + 1) * ROW + 12);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"13\" \
         fill=\"#777\">\n"
    );
    let mut text = |x: usize, row: usize, anchor: &str, text: &str| {
        let y = row * ROW + 19;
        writeln!(svg, "<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\">{text}</text>").unwrap();
    };
    text(NAMES, 0, "start", "processor time per event: a bare HTTP server (dark), and all of the bridge");
    for (row, bar) in (1..).zip(bars) {
        let length = |micros: f64| (micros / most * BARS as f64) as usize;
        text(NAMES - 10, row, "end", bar.name);
        text(NAMES + length(bar.bridge) + 8, row, "start", &format!("{:.1} µs", bar.bridge));
    }
    for (row, bar) in (1..).zip(bars) {
        let length = |micros: f64| (micros / most * BARS as f64) as usize;
        for (micros, colour) in [(bar.bridge, "#5aa9a3"), (bar.floor, "#1f5f7a")] {
            let (y, width, height) = (row * ROW + 5, length(micros), ROW - 8);
            writeln!(svg, "<rect x=\"{NAMES}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" fill=\"{colour}\"/>")
                .unwrap();
        }
    }
    svg + "</svg>\n"
}
