//! The load report as one HTML page with inline styles and plots, without scripts.

use std::fmt::Write;

use super::LoadReport;
use super::text::{describe_due, failure_list, fault_note};
use super::{DueRequests, FaultEvent, FaultImpact, ProcessShare, TimelineLatency};
use crate::report_format::bar_chart::{BarAxis, ChartBar, bar_chart};
use crate::report_format::html_page::{
    environment_list, escape_html, escape_html_lines, html_page,
};
use crate::report_format::latency_plot::{self, LatencyCurve};
use crate::report_format::plot_scale::{PlotScale, round_ticks};
use crate::report_format::svg_plot::{
    PlotAxis, PlotLine, PlotMark, line_legend, line_plot, mark_legend, series_class, time_axis,
};
use crate::report_format::text_table::{
    compact_number, format_count, format_micros, format_tick_micros,
};

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
    let class = if report.error_count() > 0 { " bad" } else { "" };
    let due = report.due_requests.filter(DueRequests::has_many_late);
    let due = due.map(|due| format!(" Due were {}.", describe_due(&due, report.timeout_s)));
    let _ = writeln!(
        page,
        "<p class=\"how{class}\">Failed requests: {}.{}</p>\n<p class=\"how\">Measured on {}.</p>\n\
         <p class=\"how\">Command: {}</p>",
        escape_html(&failure_list(report)),
        due.unwrap_or_default(),
        escape_html(&report.environment.summary()),
        escape_html(&report.environment.command)
    );
    page.push_str(&faults_table(report));
    page.push_str(&load_plots(report, true));
    page.push_str(&environment_list(&report.environment, &[]));
    // Repeats the text report: it can be copied, and screen readers read it.
    let _ = writeln!(page, "<pre>{}</pre>", escape_html_lines(&report.to_table()));
    html_page(&title, &page, &report.environment.version)
}

/// Returns the plots of a load; with the balance of the processes if `are_processes_kept`.
pub(crate) fn load_plots(report: &LoadReport, are_processes_kept: bool) -> String {
    let plots = [
        ("Latency by percentile: lower is better", latency_plot(report)),
        ("Requests per second over time: higher is better", throughput_plot(report)),
        ("Latency over time: lower is better", latency_timeline(report)),
        (
            "Requests by process: even is better",
            process_bar_chart(report).filter(|_| are_processes_kept),
        ),
    ];
    let plots = plots.into_iter().filter_map(|(name, svg)| {
        Some(format!("<figure><figcaption>{name}</figcaption>{}</figure>\n", svg?))
    });
    format!("<div class=\"plots\">\n{}</div>\n", plots.collect::<String>())
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
        let times = if fault.is_of_one_kind() { fault.count.to_string() } else { "-".to_string() };
        let FaultImpact { fault, refused, lost, late, .. } = fault;
        format!(
            "<tr><th>{fault}</th><td>{times}</td><td>{refused}</td><td>{lost}</td><td>{late}</td></tr>\n"
        )
    };
    let rows: String = chaos.impacts_with_unexplained().map(row).collect();
    format!(
        "<figure class=\"wide\"><figcaption>Affected requests, by fault</figcaption><table>\n\
         <tr><th>fault</th><th>times</th><th>refused</th><th>lost</th><th>late</th></tr>\n{rows}</table>\n\
         <p class=\"how\">{}</p></figure>\n",
        escape_html(&fault_note(chaos))
    )
}

fn latency_plot(report: &LoadReport) -> Option<String> {
    let about = format!(
        "Latency: half of the requests took up to {}, 99 of 100 up to {}, the slowest {}",
        format_micros(report.latency.p50),
        format_micros(report.latency.p99),
        format_micros(report.latency.max)
    );
    let curve = LatencyCurve { class: series_class(0), latency: &report.histogram };
    latency_plot::latency_plot(&about, &[curve])
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
        round_ticks(good.iter().chain(&bad).copied().fold(0.0, f64::max), compact_number);
    let place = |values: &[f64]| -> Vec<(f64, f64)> {
        let last = (values.len() - 1).max(1) as f64;
        values.iter().enumerate().map(|(n, value)| (n as f64 / last, value / top)).collect()
    };
    let (good, bad) = (place(&good), place(&bad));
    let whole = length as f64 * bin_s;
    let x = time_axis(whole);
    let y = PlotAxis { name: "requests/s".to_string(), ticks };
    let mut lines = vec![PlotLine { class: "s0", points: &good, filled: true, dotted: false }];
    let mut legend = String::new();
    if line.failures.iter().any(|n| *n > 0) {
        let names = [("s0", "answered"), ("bad", "failed")];
        legend = line_legend(&names.map(|(class, name)| (class.to_string(), name.to_string())));
        lines.push(PlotLine { class: "bad", points: &bad, filled: false, dotted: false });
    }
    let marks = fault_marks(report, whole);
    let about =
        format!("Throughput: {} requests per second", format_count(report.per_second.median));
    Some(line_plot(&about, &x, &y, &lines, &marks) + &legend + &fault_legend(report))
}

/// Plots median and 99th percentile of the latency over time.
fn latency_timeline(report: &LoadReport) -> Option<String> {
    let line = &report.timeline;
    let whole = line.responses.len() as f64 * line.bin_ms as f64 / 1000.0;
    if line.latency.len() < 2 {
        return None;
    }
    // The slowest of a group: what a reader looks for must not vanish.
    let group = line.latency.len().div_ceil(MAX_TIMELINE_POINTS);
    let points = |value: fn(&TimelineLatency) -> f64| -> Vec<(f64, f64)> {
        let group = line.latency.chunks(group).map(|group| {
            let (from, until) = (group[0].from_s, group[group.len() - 1].until_s);
            ((from + until) / 2.0 / whole, group.iter().map(value).fold(0.0, f64::max))
        });
        group.collect()
    };
    let curves = [("s0", "p50", points(|one| one.p50)), ("s4", "p99", points(|one| one.p99))];
    let values = curves.iter().flat_map(|(_, _, points)| points.iter().map(|(_, micros)| *micros));
    let scale = PlotScale::for_values(values);
    let placed = curves.each_ref().map(|(_, _, points)| -> Vec<(f64, f64)> {
        points.iter().map(|(x, micros)| (*x, scale.place(*micros))).collect()
    });
    let lines: Vec<PlotLine<'_>> = curves
        .iter()
        .zip(&placed)
        .map(|((class, _, _), points)| PlotLine { class, points, filled: false, dotted: false })
        .collect();
    let log = if scale.is_log() { ", log scale" } else { "" };
    let y = PlotAxis { name: format!("latency{log}"), ticks: scale.ticks(format_tick_micros) };
    let about = format!(
        "Latency over time; over all p50 {} and p99 {}",
        format_micros(report.latency.p50),
        format_micros(report.latency.p99)
    );
    let marks = fault_marks(report, whole);
    let names = curves.each_ref().map(|(class, name, _)| (class.to_string(), name.to_string()));
    let plot = line_plot(&about, &time_axis(whole), &y, &lines, &marks);
    Some(plot + &line_legend(&names) + &fault_legend(report))
}

/// Returns the injected faults as marks of a plot over `whole_s` seconds.
fn fault_marks(report: &LoadReport, whole_s: f64) -> Vec<PlotMark> {
    let injected = report.chaos.iter().flat_map(|chaos| &chaos.injected);
    let mark = |fault: &FaultEvent| PlotMark {
        class: fault.fault,
        from: fault.at_s / whole_s,
        until: fault.until_s / whole_s,
    };
    injected.map(mark).collect()
}

fn fault_legend(report: &LoadReport) -> String {
    let Some(chaos) = &report.chaos else { return String::new() };
    let injected: Vec<(&str, String)> = chaos
        .faults
        .iter()
        .filter(|fault| fault.count > 0)
        .map(|fault| (fault.fault.as_str(), format!("{} ({})", fault.fault, fault.count)))
        .collect();
    if injected.is_empty() { String::new() } else { mark_legend(&injected) }
}

fn process_bar_chart(report: &LoadReport) -> Option<String> {
    let shown = report.pids.get(..report.pids.len().min(MAX_DRAWN_PROCESSES))?;
    let most = shown.first()?.requests;
    let row = |p: &ProcessShare| ChartBar {
        label: p.pid.to_string(),
        class: series_class(0),
        value: p.requests as f64,
        interval: None,
        text: format!("{:.1} %, p99 {}", p.share * 100.0, format_micros(p.p99)),
    };
    let rows: Vec<_> = shown.iter().map(row).collect();
    let all: u64 = report.pids.iter().map(|p| p.requests).sum();
    let axis = BarAxis {
        scale: PlotScale::linear(most as f64),
        label: &compact_number,
        // With faults the processes of the run did not all live equally long.
        baseline: report.chaos.is_none().then(|| all as f64 / report.pids.len() as f64),
        has_dots: false,
    };
    let about = format!("Requests by process: {} processes answered", report.pids.len());
    Some(bar_chart(&about, &axis, &rows))
}

#[cfg(test)]
#[path = "html_tests.rs"]
mod tests;
