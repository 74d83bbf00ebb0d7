//! The load report as one HTML page with inline styles and plots, without scripts.

use std::fmt::Write;

use super::LoadReport;
use super::{FaultImpact, ProcessShare};
use crate::report_format::html_page::{escape_html, escape_html_lines, html_page};
use crate::report_format::svg_plot::{self as plot, ChartBar, PlotAxis, PlotLine};
use crate::report_format::text_table::{format_count, format_micros};

/// Most points of the timeline: more could not be told apart.
const MAX_TIMELINE_POINTS: usize = 200;
/// Most processes in the bar chart.
const MAX_DRAWN_PROCESSES: usize = 32;

/// Formats the report as a page.
pub(crate) fn render_html(report: &LoadReport) -> String {
    let title = escape_html(&format!("prefork bench: {} {}", report.method, report.target));
    let mut page = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(
        page,
        "<h1>{} {}</h1>\n<p class=\"how\">{} connections in {} threads, {}. Measured for {:.1} s{}{}.</p>",
        escape_html(&report.method),
        escape_html(&report.target),
        report.connections,
        report.threads,
        escape_html(&report.manner),
        report.measured_s,
        if report.rounds.len() > 1 {
            format!(" in {} rounds", report.rounds.len())
        } else {
            String::new()
        },
        if report.ended_early { ", ended early by a signal" } else { "" },
    );
    page.push_str(&summary_tiles(report));
    page.push_str(&faults_table(report));
    page.push_str("<div class=\"plots\">\n");
    let plots = [
        ("Latency by percentile", latency_plot(report)),
        ("Requests per second over time", throughput_plot(report)),
        ("Requests by process", process_bar_chart(report)),
    ];
    for (name, svg) in plots.into_iter().filter_map(|(name, svg)| Some((name, svg?))) {
        let _ = writeln!(page, "<figure><figcaption>{name}</figcaption>{svg}</figure>");
    }
    page.push_str("</div>\n");
    // The text report too: for copying, and for readers who do not see plots.
    let _ = writeln!(page, "<pre>{}</pre>", escape_html_lines(&report.to_table()));
    html_page(&title, &page, report.version)
}

fn summary_tiles(report: &LoadReport) -> String {
    let mut tiles = vec![
        ("requests/s", format_count(report.per_second.median)),
        ("p50", format_micros(report.latency.p50)),
        ("p99", format_micros(report.latency.p99)),
        ("slowest", format_micros(report.latency.max)),
        ("errors", format_count(report.error_count() as f64)),
    ];
    if let Some(tls) = &report.tls {
        tiles.push(("handshakes/s", format_count(tls.handshakes_per_second)));
        if let Some(negotiated) = &tls.negotiated {
            tiles.push(("TLS", negotiated.version.trim_start_matches("TLS ").to_string()));
        }
    }
    if let Some(balance) = &report.balance {
        tiles.push(("most/least by process", format!("{:.2}", balance.max_to_min)));
    }
    if let Some(server) = &report.server {
        let each = (server.user_s + server.system_s) * 1e6 / report.requests_served().max(1.0);
        tiles.push(("CPU per request", format!("{each:.1} us")));
    }
    let mut text = "<dl>\n".to_string();
    for (name, value) in tiles {
        let bad = if name == "errors" && report.error_count() > 0 { " class=\"bad\"" } else { "" };
        let _ = writeln!(text, "<div{bad}><dt>{name}</dt><dd>{value}</dd></div>");
    }
    text + "</dl>\n"
}

fn faults_table(report: &LoadReport) -> String {
    let Some(chaos) = &report.chaos else { return String::new() };
    let row = |fault: &FaultImpact| {
        let times = if fault.fault == "none" { "-".to_string() } else { fault.count.to_string() };
        let FaultImpact { fault, refused, lost, late, .. } = fault;
        format!(
            "<tr><th>{fault}</th><td>{times}</td><td>{refused}</td><td>{lost}</td><td>{late}</td></tr>\n"
        )
    };
    let rows: String = chaos.impacts_with_unexplained().map(row).collect();
    format!(
        "<figure class=\"wide\"><figcaption>Affected requests, by fault</figcaption><table>\n\
         <tr><th>fault</th><th>times</th><th>refused</th><th>lost</th><th>late</th></tr>\n{rows}</table>\n\
         <p class=\"how\">late: answered after more than {}; none: no fault at that time</p></figure>\n",
        format_micros(chaos.late_after_ms * 1000.0)
    )
}

/// Plots latency by percentile on a log scale: each further nine takes the same width.
fn latency_plot(report: &LoadReport) -> Option<String> {
    // Not more nines than the number of requests can resolve.
    let nines = (report.responses as f64).log10().clamp(1.0, 5.0);
    let latency_x = |percent: f64| {
        let left = (1.0 - percent / 100.0).max(10f64.powf(-nines));
        -left.log10() / nines
    };
    let (ticks, top) = plot::round_ticks(report.latency.max, format_micros);
    let curve = report.latency.curve.iter();
    let points: Vec<(f64, f64)> = curve.map(|(p, us)| (latency_x(*p), us / top)).collect();
    let named = [("0", 0.0), ("90 %", 90.0), ("99 %", 99.0), ("99.9 %", 99.9), ("99.99 %", 99.99)];
    let named = named.iter().filter(|(_, percent)| latency_x(*percent) < 1.0);
    let x = PlotAxis {
        name: "percentile",
        ticks: named.map(|(label, percent)| (latency_x(*percent), label.to_string())).collect(),
    };
    let about = format!(
        "Latency: half of the requests took up to {}, 99 of 100 up to {}, the slowest {}",
        format_micros(report.latency.p50),
        format_micros(report.latency.p99),
        format_micros(report.latency.max)
    );
    let y = PlotAxis { name: "latency", ticks };
    let line = PlotLine { class: "main", points: &points, filled: true };
    (!points.is_empty()).then(|| plot::line_plot(&about, &x, &y, &[line]))
}

fn throughput_plot(report: &LoadReport) -> Option<String> {
    let line = &report.timeline;
    let length = line.responses.len();
    if length < 2 {
        return None;
    }
    // Bins are grouped until there are few enough; each point is their mean rate.
    let group = length.div_ceil(MAX_TIMELINE_POINTS);
    let bin_s = line.bin_ms as f64 / 1000.0;
    let by_second = |bins: &[u64]| -> Vec<f64> {
        let mean = |bins: &[u64]| bins.iter().sum::<u64>() as f64 / (bins.len() as f64 * bin_s);
        bins.chunks(group).map(mean).collect()
    };
    let (good, bad) = (by_second(&line.responses), by_second(&line.failures));
    let (ticks, top) =
        plot::round_ticks(good.iter().chain(&bad).copied().fold(0.0, f64::max), compact_number);
    let place = |values: &[f64]| -> Vec<(f64, f64)> {
        let last = (values.len() - 1).max(1) as f64;
        values.iter().enumerate().map(|(n, value)| (n as f64 / last, value / top)).collect()
    };
    let (good, bad) = (place(&good), place(&bad));
    let whole = length as f64 * bin_s;
    let (marks, end) = plot::round_ticks(whole, |s| format!("{s} s"));
    let fits = marks.into_iter().map(|(at, label)| (at * end / whole, label));
    let x = PlotAxis { name: "time measured", ticks: fits.filter(|(at, _)| *at <= 1.0).collect() };
    let y = PlotAxis { name: "requests/s", ticks };
    let mut lines = vec![PlotLine { class: "main", points: &good, filled: true }];
    if line.failures.iter().any(|n| *n > 0) {
        lines.push(PlotLine { class: "bad", points: &bad, filled: false });
    }
    let about =
        format!("Throughput: {} requests per second", format_count(report.per_second.median));
    Some(plot::line_plot(&about, &x, &y, &lines))
}

fn process_bar_chart(report: &LoadReport) -> Option<String> {
    let most = report.pids.first()?.requests.max(1) as f64;
    let row = |p: &ProcessShare| {
        let value = format!("{:.1} %, p99 {}", p.share * 100.0, format_micros(p.p99));
        ChartBar {
            label: p.pid.to_string(),
            fraction: p.requests as f64 / most,
            range: None,
            value,
        }
    };
    let rows: Vec<_> = report.pids.iter().take(MAX_DRAWN_PROCESSES).map(row).collect();
    let about = format!("Requests by process: {} processes answered", report.pids.len());
    Some(plot::bar_chart(&about, &rows))
}

/// Formats a number for an axis label.
fn compact_number(number: f64) -> String {
    match number {
        n if n < 10_000.0 => format!("{n}"),
        n if n < 1e6 => format!("{}k", n / 1e3),
        n => format!("{}M", n / 1e6),
    }
}

#[cfg(test)]
#[path = "html_tests.rs"]
mod tests;
