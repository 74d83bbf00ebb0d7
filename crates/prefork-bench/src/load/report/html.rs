//! A report as one page that needs nothing else: styles and plots are in it, and there is no script. Pure.

use std::fmt::Write;

use super::Report;
use super::figures::FaultReport;
use super::text::{count, time};
use crate::report_format::svg_plot::{self as plot, Axis, Bar, Line, escape};

/// Bars that the timeline has at most: what is finer cannot be seen.
const FINEST: usize = 200;
/// Processes that are drawn.
const DRAWN: usize = 32;

const STYLE: &str = include_str!("../../report_format/page.css");

/// The whole page.
pub(crate) fn page(report: &Report) -> String {
    let title = escape(&format!("prefork bench: {} {}", report.method, report.target));
    let mut page = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(
        page,
        "<h1>{} {}</h1>\n<p class=\"how\">{} connections in {} threads, {}. Measured for {:.1} s{}{}.</p>",
        escape(&report.method),
        escape(&report.target),
        report.connections,
        report.threads,
        escape(&report.manner),
        report.measured_s,
        if report.rounds.len() > 1 {
            format!(" in {} rounds", report.rounds.len())
        } else {
            String::new()
        },
        if report.ended_early { ", ended early by a signal" } else { "" },
    );
    page.push_str(&figures(report));
    page.push_str(&faults(report));
    page.push_str("<div class=\"plots\">\n");
    let plots = [
        ("Latency by percentile", latency(report)),
        ("Requests per second over time", throughput(report)),
        ("Requests by process", shares(report)),
    ];
    for (name, svg) in plots.into_iter().filter_map(|(name, svg)| Some((name, svg?))) {
        let _ = writeln!(page, "<figure><figcaption>{name}</figcaption>{svg}</figure>");
    }
    page.push_str("</div>\n");
    // The same figures as text: for copying, and for those who do not see plots.
    let _ = writeln!(page, "<pre>{}</pre>", escape_lines(&report.to_table()));
    shell(&title, &page, report.version)
}

/// A whole page around `main`, which is HTML, as is the title.
pub fn shell(title: &str, main: &str, version: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <link rel=\"icon\" href=\"data:,\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{main}\
         <footer>prefork {version}</footer>\n</main>\n</body>\n</html>\n"
    )
}

fn figures(report: &Report) -> String {
    let mut tiles = vec![
        ("requests/s", count(report.per_second.median)),
        ("p50", time(report.latency.p50)),
        ("p99", time(report.latency.p99)),
        ("slowest", time(report.latency.max)),
        ("errors", count(report.errors() as f64)),
    ];
    if let Some(balance) = &report.balance {
        tiles.push(("most/least by process", format!("{:.2}", balance.max_to_min)));
    }
    if let Some(server) = &report.server {
        let each = (server.user_s + server.system_s) * 1e6 / report.served().max(1.0);
        tiles.push(("CPU per request", format!("{each:.1} us")));
    }
    let mut text = "<dl>\n".to_string();
    for (name, value) in tiles {
        let bad = if name == "errors" && report.errors() > 0 { " class=\"bad\"" } else { "" };
        let _ = writeln!(text, "<div{bad}><dt>{name}</dt><dd>{value}</dd></div>");
    }
    text + "</dl>\n"
}

fn faults(report: &Report) -> String {
    let Some(chaos) = &report.chaos else { return String::new() };
    let row = |fault: &FaultReport| {
        let times = if fault.fault == "none" { "-".to_string() } else { fault.count.to_string() };
        let FaultReport { fault, refused, lost, late, .. } = fault;
        format!(
            "<tr><th>{fault}</th><td>{times}</td><td>{refused}</td><td>{lost}</td><td>{late}</td></tr>\n"
        )
    };
    let rows: String = chaos.rows().map(row).collect();
    format!(
        "<figure class=\"wide\"><figcaption>Requests that suffered, by fault</figcaption><table>\n\
         <tr><th>fault</th><th>times</th><th>refused</th><th>lost</th><th>late</th></tr>\n{rows}</table>\n\
         <p class=\"how\">late: answered after more than {}; none: no fault was near</p></figure>\n",
        time(chaos.late_after_ms * 1000.0)
    )
}

/// Percentiles from left to right, each nine as wide as the one before it.
fn latency(report: &Report) -> Option<String> {
    // No more nines than there are requests to tell them apart.
    let nines = (report.responses as f64).log10().clamp(1.0, 5.0);
    let across = |percent: f64| {
        let left = (1.0 - percent / 100.0).max(10f64.powf(-nines));
        -left.log10() / nines
    };
    let (ticks, top) = plot::ticks(report.latency.max, time);
    let curve = report.latency.curve.iter();
    let points: Vec<(f64, f64)> = curve.map(|(p, us)| (across(*p), us / top)).collect();
    let named = [("0", 0.0), ("90 %", 90.0), ("99 %", 99.0), ("99.9 %", 99.9), ("99.99 %", 99.99)];
    let named = named.iter().filter(|(_, percent)| across(*percent) < 1.0);
    let x = Axis {
        name: "percentile",
        ticks: named.map(|(label, percent)| (across(*percent), label.to_string())).collect(),
    };
    let about = format!(
        "Latency: half of the requests took up to {}, 99 of 100 up to {}, the slowest {}",
        time(report.latency.p50),
        time(report.latency.p99),
        time(report.latency.max)
    );
    let y = Axis { name: "latency", ticks };
    let line = Line { class: "main", points: &points, filled: true };
    (!points.is_empty()).then(|| plot::lines(&about, &x, &y, &[line]))
}

fn throughput(report: &Report) -> Option<String> {
    let line = &report.timeline;
    let length = line.responses.len();
    if length < 2 {
        return None;
    }
    // Bars put together until they can be told apart; each point is their mean, by second.
    let group = length.div_ceil(FINEST);
    let bin_s = line.bin_ms as f64 / 1000.0;
    let by_second = |bins: &[u64]| -> Vec<f64> {
        let mean = |bins: &[u64]| bins.iter().sum::<u64>() as f64 / (bins.len() as f64 * bin_s);
        bins.chunks(group).map(mean).collect()
    };
    let (good, bad) = (by_second(&line.responses), by_second(&line.failures));
    let (ticks, top) = plot::ticks(good.iter().chain(&bad).copied().fold(0.0, f64::max), short);
    let place = |values: &[f64]| -> Vec<(f64, f64)> {
        let last = (values.len() - 1).max(1) as f64;
        values.iter().enumerate().map(|(n, value)| (n as f64 / last, value / top)).collect()
    };
    let (good, bad) = (place(&good), place(&bad));
    let whole = length as f64 * bin_s;
    let (marks, end) = plot::ticks(whole, |s| format!("{s} s"));
    let fits = marks.into_iter().map(|(at, label)| (at * end / whole, label));
    let x = Axis { name: "time measured", ticks: fits.filter(|(at, _)| *at <= 1.0).collect() };
    let y = Axis { name: "requests/s", ticks };
    let mut lines = vec![Line { class: "main", points: &good, filled: true }];
    if line.failures.iter().any(|n| *n > 0) {
        lines.push(Line { class: "bad", points: &bad, filled: false });
    }
    let about = format!("Throughput: {} requests per second", count(report.per_second.median));
    Some(plot::lines(&about, &x, &y, &lines))
}

fn shares(report: &Report) -> Option<String> {
    let most = report.pids.first()?.requests.max(1) as f64;
    let row = |p: &super::figures::PidReport| {
        let value = format!("{:.1} %, p99 {}", p.share * 100.0, time(p.p99));
        Bar { label: p.pid.to_string(), part: p.requests as f64 / most, range: None, value }
    };
    let rows: Vec<_> = report.pids.iter().take(DRAWN).map(row).collect();
    let about = format!("Requests by process: {} processes answered", report.pids.len());
    Some(plot::bars(&about, &rows))
}

/// A number for a narrow margin.
fn short(number: f64) -> String {
    match number {
        n if n < 10_000.0 => format!("{n}"),
        n if n < 1e6 => format!("{}k", n / 1e3),
        n => format!("{}M", n / 1e6),
    }
}

/// As [`escape`], with the ends of lines kept.
pub fn escape_lines(text: &str) -> String {
    text.lines().map(escape).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
#[path = "html_tests.rs"]
mod tests;
