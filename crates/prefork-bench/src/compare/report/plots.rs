//! The plots of a workload: values, ratios to the baseline, latency distributions, rounds over time, and balance.

use super::{CompareReport, ServerWorkloadReport, WorkloadReport};
use crate::compare::ComparedMetric;
use crate::compare::paired_ratio::median_interval;
use crate::compare::size_in_words::{format_interval, format_ratio};
use crate::load::MedianRange;
use crate::load::counters::new_histogram;
use crate::report_format::bar_chart::{BarAxis, ChartBar, ShareBar, bar_chart, share_chart};
use crate::report_format::html_page::escape_html;
use crate::report_format::latency_plot::{LatencyCurve, latency_plot};
use crate::report_format::plot_scale::PlotScale;
use crate::report_format::svg_plot::{PlotAxis, PlotLine, line_legend, line_plot, series_class};

/// Error rate of the interval of a single server's median: 95 % confidence for this bar alone.
const BAR_ERROR_RATE: f64 = 0.05;

/// A measured server and its style class.
struct PlottedServer<'a> {
    report: &'a ServerWorkloadReport,
    class: String,
}

/// Returns the legend of all servers: their colors and dashes in all plots.
pub(crate) fn server_legend(report: &CompareReport) -> String {
    let Some(first) = report.workloads.first() else { return String::new() };
    let names: Vec<(String, String)> = first
        .servers
        .iter()
        .enumerate()
        .map(|(at, server)| {
            let baseline = Some(&server.server) == report.reference.as_ref();
            let mark = if baseline { " (baseline)" } else { "" };
            (series_class(at), format!("{}{mark}", server.server))
        })
        .collect();
    line_legend(&names)
}

/// Returns the figures of a workload; empty if no server was measured.
pub(crate) fn workload_figures(report: &CompareReport, workload: &WorkloadReport) -> String {
    let servers: Vec<PlottedServer<'_>> = workload
        .servers
        .iter()
        .enumerate()
        .filter(|(_, server)| main_values(workload, server).next().is_some())
        .map(|(at, report)| PlottedServer { report, class: series_class(at) })
        .collect();
    if servers.is_empty() {
        return String::new();
    }
    let direction = workload.metric.direction();
    let metric = workload.metric.name();
    let values = value_chart(report, workload, &servers);
    let ratios = ratio_chart(report, workload, &servers);
    let plots = [
        (format!("{metric}: {direction}"), interval_note(&servers), Some(values)),
        (
            format!("{metric}, ratio to the baseline: {direction}"),
            ratio_note(&servers).to_string(),
            ratios,
        ),
        (
            "Latency by percentile: lower is better".to_string(),
            "all rounds together; responses only".to_string(),
            latency_curves(workload, &servers),
        ),
        (
            format!("{metric} over the run: {direction}"),
            "one point for each measurement".to_string(),
            timeline(workload, &servers, workload.metric),
        ),
        (
            "p99 latency over the run: lower is better".to_string(),
            "one point for each measurement".to_string(),
            timeline(workload, &servers, ComparedMetric::P99Latency)
                .filter(|_| workload.metric != ComparedMetric::P99Latency),
        ),
        (
            "Share of each process in the requests: even is better".to_string(),
            "busiest first, mean of the rounds".to_string(),
            balance_chart(&servers),
        ),
    ];
    let figure = |(title, note, svg): (String, String, Option<String>)| {
        Some(format!(
            "<figure><figcaption>{}<small>{}</small></figcaption>{}</figure>\n",
            escape_html(&title),
            escape_html(&note),
            svg?
        ))
    };
    plots.into_iter().filter_map(figure).collect()
}

/// Returns each measurement of a server: when it ended, in seconds, and its value of the metric of the workload.
fn main_values<'a>(
    workload: &'a WorkloadReport,
    server: &'a ServerWorkloadReport,
) -> impl Iterator<Item = (f64, f64)> + 'a {
    server.samples.iter().filter_map(|sample| Some((sample.at_s, sample.value(workload.metric)?)))
}

/// Returns the interval of the median of a server's rounds; from the lowest to the highest with too few rounds.
fn value_interval(workload: &WorkloadReport, server: &ServerWorkloadReport) -> (f64, f64) {
    let mut values: Vec<f64> = main_values(workload, server).map(|(_, value)| value).collect();
    values.sort_by(f64::total_cmp);
    let (low, high) =
        median_interval(values.len(), BAR_ERROR_RATE).unwrap_or((0, values.len() - 1));
    (values[low], values[high])
}

fn interval_note(servers: &[PlottedServer<'_>]) -> String {
    let rounds = servers.iter().map(|server| server.report.samples.len()).min().unwrap_or(0);
    match median_interval(rounds, BAR_ERROR_RATE) {
        Some(_) => "median of the rounds and its 95 % interval; dashed: the baseline".to_string(),
        None => "median of the rounds, lowest and highest; dashed: the baseline".to_string(),
    }
}

fn ratio_note(servers: &[PlottedServer<'_>]) -> &'static str {
    match servers.iter().filter_map(|one| one.report.ratio).any(|ratio| ratio.interval().is_some())
    {
        true => "intervals as in the verdict; those that touch the dashed line show no difference",
        false => "median of the rounds, which are too few for intervals and for any statement",
    }
}

fn value_chart(
    report: &CompareReport,
    workload: &WorkloadReport,
    servers: &[PlottedServer<'_>],
) -> String {
    let main = |server: &ServerWorkloadReport| -> MedianRange { server.figure(workload.metric) };
    let row = |server: &PlottedServer<'_>| ChartBar {
        label: server.report.server.clone(),
        class: server.class.clone(),
        value: main(server.report).median,
        interval: Some(value_interval(workload, server.report)),
        text: workload.metric.format_value(main(server.report).median),
    };
    let rows: Vec<ChartBar> = servers.iter().map(row).collect();
    let ends = rows.iter().flat_map(|row| {
        let (low, high) = row.interval.unwrap_or((row.value, row.value));
        [row.value, low, high]
    });
    let baseline = report.reference.as_deref().and_then(|name| workload.server_report(name));
    let axis = BarAxis {
        scale: PlotScale::for_values(ends),
        label: &|value| workload.metric.format_tick(value),
        baseline: baseline.filter(|one| !one.samples.is_empty()).map(|one| main(one).median),
        has_dots: false,
    };
    let about = format!("{} under {}", workload.metric.name(), workload.workload.name());
    bar_chart(&about, &axis, &rows)
}

fn ratio_chart(
    report: &CompareReport,
    workload: &WorkloadReport,
    servers: &[PlottedServer<'_>],
) -> Option<String> {
    let reference = report.reference.as_deref()?;
    let row = |server: &PlottedServer<'_>| {
        let ratio = server.report.ratio?;
        Some(ChartBar {
            label: server.report.server.clone(),
            class: server.class.clone(),
            value: ratio.median,
            interval: ratio.interval(),
            text: match ratio.interval() {
                Some(_) => format_interval(&ratio),
                None => format_ratio(ratio.median),
            },
        })
    };
    let rows: Vec<ChartBar> = servers.iter().filter_map(row).collect();
    let ends = rows.iter().flat_map(|row| {
        let (low, high) = row.interval.unwrap_or((row.value, row.value));
        [row.value, low, high]
    });
    let about = format!(
        "Ratio of {} to {reference} under {}",
        workload.metric.name(),
        workload.workload.name()
    );
    let axis = BarAxis {
        // Ratios are compared on a log scale: half as much is as far from 1 as twice as much.
        scale: PlotScale::ratios(ends),
        label: &format_tick_ratio,
        baseline: Some(1.0),
        has_dots: true,
    };
    (!rows.is_empty()).then(|| bar_chart(&about, &axis, &rows))
}

/// Formats a ratio for an axis.
pub(crate) fn format_tick_ratio(ratio: f64) -> String {
    match ratio {
        r if r >= 0.1 => format!("{}", (r * 100.0).round() / 100.0),
        r => format_ratio(r),
    }
}

fn latency_curves(workload: &WorkloadReport, servers: &[PlottedServer<'_>]) -> Option<String> {
    let sums: Vec<_> = servers
        .iter()
        .map(|server| {
            let mut sum = new_histogram(3);
            for sample in &server.report.samples {
                // The sum grows as needed.
                let _ = sum.add(&sample.latency);
            }
            sum
        })
        .collect();
    let curves: Vec<LatencyCurve<'_>> = servers
        .iter()
        .zip(&sums)
        .map(|(server, latency)| LatencyCurve { class: server.class.clone(), latency })
        .collect();
    let about = format!("Latency by percentile under {}", workload.workload.name());
    latency_plot(&about, &curves)
}

/// Plots a metric of the measurements over the time of the run, so that a change of the machine is seen.
fn timeline(
    workload: &WorkloadReport,
    servers: &[PlottedServer<'_>],
    metric: ComparedMetric,
) -> Option<String> {
    let points = |server: &PlottedServer<'_>| -> Vec<(f64, f64)> {
        let samples = server.report.samples.iter();
        samples.filter_map(|sample| Some((sample.at_s, sample.value(metric)?))).collect()
    };
    let all: Vec<Vec<(f64, f64)>> = servers.iter().map(points).collect();
    if all.iter().all(|points| points.len() < 2) {
        return None;
    }
    let last = all.iter().flatten().map(|(at, _)| *at).fold(0.0, f64::max);
    let time = PlotScale::linear(last);
    let scale = PlotScale::for_values(all.iter().flatten().map(|(_, value)| *value));
    let placed: Vec<Vec<(f64, f64)>> = all
        .iter()
        .map(|points| points.iter().map(|(x, y)| (time.place(*x), scale.place(*y))).collect())
        .collect();
    let lines: Vec<PlotLine<'_>> = servers
        .iter()
        .zip(&placed)
        .map(|(server, points)| PlotLine {
            class: &server.class,
            points,
            filled: false,
            dotted: true,
        })
        .collect();
    let log = if scale.is_log() { ", log scale" } else { "" };
    let x = PlotAxis {
        name: "time since the start".to_string(),
        ticks: time.ticks(|seconds| format!("{seconds} s")),
    };
    let y = PlotAxis {
        name: format!("{}{log}", metric.name()),
        ticks: scale.ticks(|value| metric.format_tick(value)),
    };
    let name = metric.name();
    let about = format!("{name} of each measurement under {} over time", workload.workload.name());
    Some(line_plot(&about, &x, &y, &lines, &[]))
}

fn balance_chart(servers: &[PlottedServer<'_>]) -> Option<String> {
    let row = |server: &PlottedServer<'_>| {
        let shares = mean_shares(server.report);
        let busiest = *shares.first()?;
        Some(ShareBar {
            label: server.report.server.clone(),
            class: server.class.clone(),
            text: format!("{:.0} % of {}", busiest * 100.0, shares.len()),
            shares,
        })
    };
    let rows: Vec<ShareBar> = servers.iter().filter_map(row).collect();
    (!rows.is_empty()).then(|| share_chart("Share of each process in the requests", &rows))
}

/// Returns the mean share of the busiest process of each round, of the second busiest, and so on.
fn mean_shares(server: &ServerWorkloadReport) -> Vec<f64> {
    let rounds: Vec<&Vec<f64>> =
        server.samples.iter().map(|s| &s.process_shares).filter(|s| !s.is_empty()).collect();
    let processes = rounds.iter().map(|shares| shares.len()).max().unwrap_or(0);
    let mean = |at: usize| {
        let sum: f64 = rounds.iter().filter_map(|shares| shares.get(at)).sum();
        sum / rounds.len() as f64
    };
    (0..processes).map(mean).collect()
}
