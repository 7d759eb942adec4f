//! Latencies as a picture: the percentile curve, and latency over time, all runs in one.
//!
//! The SVG is written by hand: a few lines, labels and polylines need no library, and the file stays
//! small enough to be mailed.

mod axis;

use super::saved::{Document, Run, duration};
use axis::{Axis, Ticks};
use std::fmt::{Display, Write};
use std::io;
use std::path::Path;

/// Sizes in pixels.
const WIDTH: f64 = 960.0;
const PLOT_HEIGHT: f64 = 320.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 24.0;
const TITLE_HEIGHT: f64 = 40.0;
const AXIS_HEIGHT: f64 = 56.0;
const LEGEND_LINE: f64 = 20.0;

/// Colours that can be told apart also by those who see fewer of them (Okabe and Ito).
const COLOURS: [&str; 7] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000",
];
/// When the colours are used up, lines are broken.
const DASHES: [&str; 3] = ["none", "8 4", "2 3"];

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// A picture.
    Svg,
    /// A page with the picture and its figures.
    Html,
}

impl Format {
    /// By the end of a file's name: `.svg`, `.html`, `.htm`.
    pub(super) fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "svg" => Some(Self::Svg),
            "html" | "htm" => Some(Self::Html),
            _ => None,
        }
    }
}

/// Writes the picture of `document` to `path`, in the format that its name says.
///
/// # Errors
/// `InvalidInput` for a name that says none; what the system says.
pub(super) fn write(document: &Document, path: &Path) -> io::Result<()> {
    let Some(format) = Format::of(path) else {
        let text = format!("{} ends neither with .svg nor with .html", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    };
    std::fs::write(path, render(document, format))
}

/// The picture as text.
pub(super) fn render(document: &Document, format: Format) -> String {
    match format {
        Format::Svg => svg(&document.runs),
        Format::Html => html(&document.runs),
    }
}

/// `text` as it may stand in XML and HTML, between tags and in attributes.
#[derive(Clone, Copy, Debug)]
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                // XML has no way of saying these.
                c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => {
                    f.write_char('\u{fffd}')?;
                }
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// A line of a run: its points, and how it is drawn.
struct Line {
    class: &'static str,
    run: usize,
    faint: bool,
    points: Vec<(f64, f64)>,
}

/// Where a picture stands and what it shows.
struct Panel {
    title: &'static str,
    top: f64,
    x: Axis,
    y: Axis,
    x_label: &'static str,
    lines: Vec<Line>,
}

fn is_drawable(point: &(f64, f64)) -> bool {
    point.0.is_finite() && point.1.is_finite() && point.1 > 0.0
}

/// The share of slower requests is 1 in x: the quantile 1, of which there is none slower, goes to the
/// end of the axis.
fn curve_points(run: &Run, end: f64) -> Vec<(f64, f64)> {
    let place = |(quantile, ns): &(f64, f64)| {
        let slower = (1.0 - quantile).max(0.0);
        ((1.0 / slower).clamp(1.0, end), *ns)
    };
    run.curve.iter().map(place).filter(is_drawable).collect()
}

fn curve_panel(runs: &[Run], top: f64) -> Panel {
    let below_one = runs
        .iter()
        .flat_map(|run| &run.curve)
        .map(|(quantile, _)| 1.0 / (1.0 - quantile))
        .filter(|x| x.is_finite() && *x >= 1.0);
    let end = below_one.fold(100.0, f64::max);
    let line = |(run, what): (usize, &Run)| Line {
        class: "curve",
        run,
        faint: false,
        points: curve_points(what, end),
    };
    let lines: Vec<Line> = runs.iter().enumerate().map(line).collect();
    Panel {
        title: "Latency by percentile",
        top,
        x: Axis::log((1.0, end), (LEFT, WIDTH - RIGHT), Ticks::Percentiles),
        y: y_axis(&lines, top),
        x_label: "percentile (logarithmic in the share of slower requests)",
        lines,
    }
}

fn time_panel(runs: &[Run], top: f64) -> Panel {
    let mut lines = Vec::new();
    for (run, what) in runs.iter().enumerate() {
        let points = |of: fn(&super::saved::Moment) -> f64| {
            let moments = what.series.iter();
            moments
                .map(|moment| (moment.at_ms / 1000.0, of(moment)))
                .filter(is_drawable)
                .collect()
        };
        for (class, faint, points) in [
            ("series-p50", false, points(|m| m.p50)),
            ("series-p99", false, points(|m| m.p99)),
            ("series-max", true, points(|m| m.max)),
        ] {
            lines.push(Line {
                class,
                run,
                faint,
                points,
            });
        }
    }
    let all = lines.iter().flat_map(|line| &line.points);
    let end = all.map(|point| point.0).fold(0.0, f64::max);
    let end = if end > 0.0 { end } else { 1.0 };
    Panel {
        title: "Latency over time: p50 (thin), p99 (thick), maximum (faint)",
        top,
        x: Axis::linear((0.0, end), (LEFT, WIDTH - RIGHT), Ticks::Seconds),
        y: y_axis(&lines, top),
        x_label: "seconds from the start of the run",
        lines,
    }
}

fn y_axis(lines: &[Line], top: f64) -> Axis {
    let all = || lines.iter().flat_map(|line| &line.points).map(|p| p.1);
    let (low, high) = (
        all().fold(f64::INFINITY, f64::min),
        all().fold(0.0, f64::max),
    );
    let range = if low <= high { (low, high) } else { (1e3, 1e6) };
    let bottom = top + TITLE_HEIGHT + PLOT_HEIGHT;
    Axis::log(range, (bottom, bottom - PLOT_HEIGHT), Ticks::Durations)
}

impl Panel {
    fn height() -> f64 {
        TITLE_HEIGHT + PLOT_HEIGHT + AXIS_HEIGHT
    }

    fn draw(&self, out: &mut String, runs: &[Run]) {
        let (left, right) = (LEFT, WIDTH - RIGHT);
        let (top, bottom) = (
            self.top + TITLE_HEIGHT,
            self.top + TITLE_HEIGHT + PLOT_HEIGHT,
        );
        let title_y = top - 14.0;
        put(
            out,
            format_args!(
                "<text class=\"title\" x=\"{left:.1}\" y=\"{title_y:.1}\">{}</text>",
                Escaped(self.title)
            ),
        );
        for (at, label) in self.x.ticks() {
            let text_y = bottom + 18.0;
            put(
                out,
                format_args!(
                    "<line class=\"grid\" x1=\"{at:.1}\" y1=\"{top:.1}\" x2=\"{at:.1}\" y2=\"{bottom:.1}\"/>\
                 <text x=\"{at:.1}\" y=\"{text_y:.1}\" text-anchor=\"middle\">{}</text>",
                    Escaped(&label)
                ),
            );
        }
        for (at, label) in self.y.ticks() {
            let (text_x, text_y) = (left - 8.0, at + 4.0);
            put(
                out,
                format_args!(
                    "<line class=\"grid\" x1=\"{left:.1}\" y1=\"{at:.1}\" x2=\"{right:.1}\" y2=\"{at:.1}\"/>\
                 <text x=\"{text_x:.1}\" y=\"{text_y:.1}\" text-anchor=\"end\">{}</text>",
                    Escaped(&label)
                ),
            );
        }
        let height = PLOT_HEIGHT;
        let width = right - left;
        put(
            out,
            format_args!(
                "<rect class=\"frame\" x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"/>"
            ),
        );
        let (middle, label_y) = (f64::midpoint(left, right), bottom + 40.0);
        put(
            out,
            format_args!(
                "<text x=\"{middle:.1}\" y=\"{label_y:.1}\" text-anchor=\"middle\">{}</text>",
                Escaped(self.x_label)
            ),
        );
        let (x, y) = (16.0, f64::midpoint(top, bottom));
        put(
            out,
            format_args!(
                "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\" \
             transform=\"rotate(-90 {x:.1} {y:.1})\">latency (logarithmic)</text>"
            ),
        );
        for line in &self.lines {
            self.draw_line(out, line, runs);
        }
    }

    fn draw_line(&self, out: &mut String, line: &Line, runs: &[Run]) {
        let mut points = String::new();
        for (x, y) in &line.points {
            let (x, y) = (self.x.place(*x), self.y.place(*y));
            let _ = write!(points, "{x:.1},{y:.1} ");
        }
        let (colour, dash) = style(line.run);
        let opacity = if line.faint { 0.35 } else { 1.0 };
        let name = runs.get(line.run).map_or("", |run| run.name.as_str());
        put(
            out,
            format_args!(
                "<polyline class=\"{}\" stroke=\"{colour}\" stroke-dasharray=\"{dash}\" \
             opacity=\"{opacity}\" points=\"{}\"><title>{}</title></polyline>",
                line.class,
                points.trim_end(),
                Escaped(name)
            ),
        );
    }
}

fn put(out: &mut String, what: std::fmt::Arguments<'_>) {
    let _ = out.write_fmt(what);
    out.push('\n');
}

fn style(run: usize) -> (&'static str, &'static str) {
    let colour = COLOURS.iter().cycle().nth(run % COLOURS.len());
    let dash = DASHES.get(run / COLOURS.len() % DASHES.len());
    (
        colour.copied().unwrap_or("#000000"),
        dash.copied().unwrap_or("none"),
    )
}

fn legend(out: &mut String, runs: &[Run], top: f64) {
    let mut y = top + LEGEND_LINE;
    for (index, run) in runs.iter().enumerate() {
        let (colour, dash) = style(index);
        let (x1, x2, text_x, line_y) = (LEFT, LEFT + 32.0, LEFT + 42.0, y - 4.0);
        put(
            out,
            format_args!(
                "<line class=\"key\" x1=\"{x1:.1}\" y1=\"{line_y:.1}\" x2=\"{x2:.1}\" y2=\"{line_y:.1}\" \
             stroke=\"{colour}\" stroke-dasharray=\"{dash}\"/>\
             <text x=\"{text_x:.1}\" y=\"{y:.1}\">{}</text>",
                Escaped(&run.name)
            ),
        );
        y += LEGEND_LINE;
    }
}

const STYLE: &str = "text{font:12px sans-serif;fill:#222}\
    .title{font-size:15px;font-weight:bold}\
    .grid{stroke:#ddd;stroke-width:1}\
    .frame{fill:none;stroke:#888;stroke-width:1}\
    .key{stroke-width:2.5}\
    polyline{fill:none;stroke-width:1.5;stroke-linejoin:round}\
    .series-p99{stroke-width:2.5}";

fn svg(runs: &[Run]) -> String {
    let has_series = runs.iter().any(|run| !run.series.is_empty());
    let mut panels = vec![curve_panel(runs, 0.0)];
    if has_series {
        panels.push(time_panel(runs, Panel::height()));
    }
    let legend_top = panels.iter().map(|_| Panel::height()).sum::<f64>();
    let entries = runs.iter().map(|_| LEGEND_LINE).sum::<f64>();
    let height = legend_top + entries + LEGEND_LINE;
    let mut out = String::new();
    put(
        &mut out,
        format_args!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\">\n<style>{STYLE}</style>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>"
        ),
    );
    for panel in &panels {
        panel.draw(&mut out, runs);
    }
    legend(&mut out, runs, legend_top);
    out.push_str("</svg>\n");
    out
}

fn html(runs: &[Run]) -> String {
    let mut out = String::from(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/>\
         <title>pmcache bench</title><style>body{font:14px sans-serif;margin:24px}\
         td,th{padding:2px 14px;text-align:right}td:first-child,th:first-child{text-align:left}\
         </style></head><body>\n<h1>pmcache bench</h1>\n",
    );
    out.push_str(&svg(runs));
    out.push_str(
        "<table><tr><th>run</th><th>IOPS</th><th>p50</th><th>p99</th><th>p99.9</th></tr>\n",
    );
    for run in runs {
        let ns = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), duration);
        let iops = run
            .iops
            .map_or_else(|| "–".to_owned(), |iops| format!("{iops:.0}"));
        let latency = run.latency_ns;
        let name = Escaped(&run.name);
        let (p50, p99, p999) = (ns(latency.p50), ns(latency.p99), ns(latency.p999));
        put(
            &mut out,
            format_args!(
                "<tr><td>{name}</td><td>{iops}</td><td>{p50}</td><td>{p99}</td><td>{p999}</td></tr>"
            ),
        );
    }
    out.push_str("</table>\n</body></html>\n");
    out
}

#[cfg(test)]
mod tests;
