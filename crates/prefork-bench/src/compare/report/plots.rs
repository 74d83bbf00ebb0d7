//! The plots of a workload: values, ratios to the reference, latency distributions, rounds over time, and balance.

use super::parts::{kind_median, kind_names, ramp_axis, ramp_values};
use super::request_outcomes::{busiest_note, busiest_share};
use super::{CompareReport, ServerWorkloadReport, WorkloadReport};
use crate::compare::measurement::FaultTimeline;
use crate::compare::paired_ratio::median_interval;
use crate::compare::size_in_words::{format_interval, format_ratio};
use crate::compare::{ComparedMetric, Comparison};
use crate::load::counters::new_histogram;
use crate::load::{FaultEvent, RampStep};
use crate::report_format::bar_chart::{BarAxis, ChartBar, ShareBar, bar_chart, share_chart};
use crate::report_format::html_page::escape_html;
use crate::report_format::latency_plot::{LatencyCurve, latency_plot};
use crate::report_format::plot_scale::PlotScale;
use crate::report_format::svg_plot::{
    PlotAxis, PlotLine, PlotMark, line_legend, line_plot, mark_legend, series_class, time_axis,
};

/// Error rate of the interval of a single server's median: 95 % confidence for this bar alone.
const BAR_ERROR_RATE: f64 = 0.05;
/// Most points of the timeline of a measurement.
const MAX_TIMELINE_POINTS: usize = 60;
/// Longest name of a metric beside an axis.
const MAX_AXIS_NAME: usize = 20;
/// Most points of a line that has a dot at each.
const MAX_DOTTED_POINTS: usize = 60;

/// A measured server and its style class.
struct PlottedServer<'a> {
    report: &'a ServerWorkloadReport,
    class: String,
}

/// Returns the legend of all servers: their colors and dashes in all plots.
pub(crate) fn server_legend(report: &CompareReport, workload: &WorkloadReport) -> String {
    let names: Vec<(String, String)> = workload
        .servers
        .iter()
        .enumerate()
        .map(|(at, server)| {
            let is_reference = Some(&server.server) == report.reference.as_ref();
            let mark = if is_reference { " (reference)" } else { "" };
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
        .filter(|(_, server)| timed_values(server, workload.metric).next().is_some())
        .map(|(at, report)| PlottedServer { report, class: series_class(at) })
        .collect();
    if servers.is_empty() {
        return String::new();
    }
    let parts = part_figures(workload, &servers);
    let figures = value_figures(report, workload, &servers).into_iter().chain(parts);
    figures.chain(run_figures(workload, &servers)).filter_map(Figure::into_html).collect()
}

/// A plot with its title and a note; without a plot it is not shown.
struct Figure {
    title: String,
    note: String,
    svg: Option<String>,
}

impl Figure {
    fn new(title: impl Into<String>, note: impl Into<String>, svg: Option<String>) -> Figure {
        Figure { title: title.into(), note: note.into(), svg }
    }

    fn into_html(self) -> Option<String> {
        let (title, note) = (escape_html(&self.title), escape_html(&self.note));
        let svg = self.svg?;
        Some(format!(
            "<figure><figcaption>{title}<small>{note}</small></figcaption>{svg}</figure>\n"
        ))
    }
}

/// Returns whether p99 has plots of its own: it was measured, and servers are compared by another metric.
fn has_p99_plots(workload: &WorkloadReport, servers: &[PlottedServer<'_>]) -> bool {
    let mut samples = servers.iter().flat_map(|server| &server.report.samples);
    workload.metric != ComparedMetric::P99Latency && samples.any(|one| !one.has_no_latency())
}

/// Returns the plots of what servers are compared by, and of p99.
fn value_figures(
    report: &CompareReport,
    workload: &WorkloadReport,
    servers: &[PlottedServer<'_>],
) -> Vec<Figure> {
    let (metric, direction) = (workload.metric.name(), workload.metric.direction());
    let reference = report.reference.as_deref();
    let values = |metric| value_chart(report, workload, servers, metric);
    let p99 = has_p99_plots(workload, servers).then(|| values(ComparedMetric::P99Latency));
    let p99_ratio = has_p99_plots(workload, servers)
        .then(|| ratio_chart(report, workload, servers, ComparedMetric::P99Latency))
        .flatten();
    let note = interval_note(servers, reference);
    vec![
        Figure::new(format!("{metric}: {direction}"), note.clone(), values(workload.metric)),
        Figure::new(
            format!("{metric}, ratio to {}: {direction}", reference.unwrap_or_default()),
            ratio_note(servers),
            ratio_chart(report, workload, servers, workload.metric),
        ),
        Figure::new("p99 latency: lower is better", note, p99.flatten()),
        Figure::new(
            format!("p99 latency, ratio to {}: lower is better", reference.unwrap_or_default()),
            ratio_note(servers),
            p99_ratio,
        ),
    ]
}

/// Returns the plots of kinds of requests, of ramps, and of faults.
fn part_figures(workload: &WorkloadReport, servers: &[PlottedServer<'_>]) -> Vec<Figure> {
    let p99 = ramp_plot(workload, servers, ComparedMetric::P99Latency, |step| step.p99);
    let rate =
        ramp_plot(workload, servers, ComparedMetric::RequestsPerSecond, |step| step.per_second);
    vec![
        Figure::new(
            "p99 latency of each kind of request: lower is better",
            "median of the rounds; responses only",
            kind_chart(workload, servers),
        ),
        Figure::new(
            "p99 latency over the ramp: lower is better",
            "median of the rounds; responses only",
            p99,
        ),
        Figure::new("Requests/s over the ramp: higher is better", "median of the rounds", rate),
        Figure::new(
            "Requests/s while faults are injected: higher is better",
            "mean of the rounds; the faults of the first round are marked",
            fault_timeline(workload, servers),
        ),
    ]
}

/// Returns the plots of all measurements: latency distributions, the course of the run, and the balance of processes.
fn run_figures(workload: &WorkloadReport, servers: &[PlottedServer<'_>]) -> Vec<Figure> {
    let (metric, direction) = (workload.metric.name(), workload.metric.direction());
    let p99 = has_p99_plots(workload, servers)
        .then(|| timeline(workload, servers, ComparedMetric::P99Latency));
    vec![
        Figure::new(
            "Latency by percentile: lower is better",
            "all rounds together; responses only",
            latency_curves(workload, servers),
        ),
        Figure::new(
            format!("{metric} over the run: {direction}"),
            "one point for each measurement",
            timeline(workload, servers, workload.metric),
        ),
        Figure::new(
            "p99 latency over the run: lower is better",
            "one point for each measurement",
            p99.flatten(),
        ),
        balance_figure(workload, servers),
    ]
}

/// Returns the plot of the shares of the processes. Beside other loads even is not better: a process that they occupy answers fewer.
fn balance_figure(workload: &WorkloadReport, servers: &[PlottedServer<'_>]) -> Figure {
    let (title, beside) = match busiest_note(workload) {
        Some(note) => ("Share of each process in the measured requests".to_string(), note),
        None => {
            ("Share of each process in the requests: even is better".to_string(), String::new())
        }
    };
    let note =
        "busiest process first, with its share (BUSIEST) and the number of processes that answered";
    let beside = if beside.is_empty() { beside } else { format!(". {beside}") };
    Figure::new(title, format!("{note}{beside}"), balance_chart(servers))
}

/// Returns each measurement of a server: when it ended, in seconds, and its value of a metric.
fn timed_values(
    server: &ServerWorkloadReport,
    metric: ComparedMetric,
) -> impl Iterator<Item = (f64, f64)> + '_ {
    server.samples.iter().filter_map(move |sample| Some((sample.at_s, sample.value(metric)?)))
}

/// Returns the interval of the median of a server's rounds; from the lowest to the highest with too few rounds. `None` without
/// a value.
fn value_interval(server: &ServerWorkloadReport, metric: ComparedMetric) -> Option<(f64, f64)> {
    let mut values: Vec<f64> = timed_values(server, metric).map(|(_, value)| value).collect();
    values.sort_by(f64::total_cmp);
    let all = (0, values.len().checked_sub(1)?);
    let (low, high) = median_interval(values.len(), BAR_ERROR_RATE).unwrap_or(all);
    Some((values[low], values[high]))
}

fn interval_note(servers: &[PlottedServer<'_>], reference: Option<&str>) -> String {
    let rounds = servers.iter().map(|server| server.report.samples.len()).min().unwrap_or(0);
    let bars = match median_interval(rounds, BAR_ERROR_RATE) {
        Some(_) => "median of the rounds and its 95 % interval",
        None => "median of the rounds, lowest and highest",
    };
    let dashed = reference.map(|name| format!("; dashed: {name}"));
    format!("{bars}{}", dashed.unwrap_or_default())
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
    metric: ComparedMetric,
) -> Option<String> {
    let median = |server: &ServerWorkloadReport| server.figure(metric).median;
    let row = |server: &PlottedServer<'_>| {
        Some(ChartBar {
            label: server.report.server.clone(),
            class: server.class.clone(),
            value: median(server.report),
            interval: Some(value_interval(server.report, metric)?),
            text: metric.format_value(median(server.report)),
        })
    };
    let rows: Vec<ChartBar> = servers.iter().filter_map(row).collect();
    let baseline = report.reference.as_deref().and_then(|name| workload.server_report(name));
    let axis = BarAxis {
        scale: PlotScale::for_values(bar_ends(&rows)),
        label: &|value| metric.format_tick(value),
        baseline: baseline.filter(|one| !one.samples.is_empty()).map(median),
        has_dots: false,
    };
    let about = format!("{} under {}", metric.name(), workload.workload.name());
    (!rows.is_empty()).then(|| bar_chart(&about, &axis, &rows))
}

/// Returns all values that an axis must have room for.
fn bar_ends(rows: &[ChartBar]) -> impl Iterator<Item = f64> + '_ {
    rows.iter().flat_map(|row| {
        let (low, high) = row.interval.unwrap_or((row.value, row.value));
        [row.value, low, high]
    })
}

/// Plots the p99 latency of each kind of request, with the servers side by side; `None` if there is one kind.
fn kind_chart(workload: &WorkloadReport, servers: &[PlottedServer<'_>]) -> Option<String> {
    let metric = ComparedMetric::P99Latency;
    let row = |(kind, name): (usize, &str), server: &PlottedServer<'_>| {
        let value = kind_median(server.report, kind, |kind| kind.p99);
        ChartBar {
            label: format!("{name}, {}", server.report.server),
            class: server.class.clone(),
            value,
            interval: None,
            text: metric.format_value(value),
        }
    };
    let kinds = kind_names(workload).into_iter().enumerate();
    let shown = || servers.iter().filter(|server| !server.report.is_control);
    let rows: Vec<ChartBar> =
        kinds.flat_map(|kind| shown().map(move |server| row(kind, server))).collect();
    let axis = BarAxis {
        scale: PlotScale::for_values(bar_ends(&rows)),
        label: &|value| metric.format_tick(value),
        baseline: None,
        has_dots: false,
    };
    let about = format!("p99 latency of each kind of request under {}", workload.workload.name());
    (!rows.is_empty()).then(|| bar_chart(&about, &axis, &rows))
}

fn ratio_chart(
    report: &CompareReport,
    workload: &WorkloadReport,
    servers: &[PlottedServer<'_>],
    metric: ComparedMetric,
) -> Option<String> {
    let reference = report.reference.as_deref()?;
    let ratio_of = |server: &str| {
        let mut all = workload.comparisons.iter().chain(&workload.control);
        let is_its = |one: &&Comparison| {
            (one.metric, one.other.as_str()) == (metric, reference) && one.server == server
        };
        all.find(is_its).map(|one| one.ratio)
    };
    let row = |server: &PlottedServer<'_>| {
        let ratio = ratio_of(&server.report.server)?;
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
    let about =
        format!("Ratio of {} to {reference} under {}", metric.name(), workload.workload.name());
    let axis = BarAxis {
        // Ratios are compared on a log scale: half as much is as far from 1 as twice as much.
        scale: PlotScale::ratios(bar_ends(&rows)),
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
    let all: Vec<Vec<(f64, f64)>> =
        servers.iter().map(|server| timed_values(server.report, metric).collect()).collect();
    let last = all.iter().flatten().map(|(at, _)| *at).fold(0.0, f64::max);
    let time = PlotScale::linear(last);
    let x = PlotAxis {
        name: "time since the start".to_string(),
        ticks: time.ticks(|seconds| format!("{seconds} s")),
    };
    let about = format!(
        "{} of each measurement under {} over time",
        metric.name(),
        workload.workload.name()
    );
    let points = all
        .into_iter()
        .map(|points| points.into_iter().map(|(at, value)| (time.place(at), value)).collect());
    metric_lines(&about, &x, metric, servers, points.collect(), &[])
}

/// Plots a metric in each tenth of a ramp; `None` without a ramp.
fn ramp_plot(
    workload: &WorkloadReport,
    servers: &[PlottedServer<'_>],
    metric: ComparedMetric,
    value: fn(&RampStep) -> f64,
) -> Option<String> {
    let axis = ramp_axis(workload)?;
    let middle = |step: usize| (step as f64 + 0.5) / axis.labels.len() as f64;
    let labels = axis.labels.iter().enumerate().map(|(step, label)| (middle(step), label.clone()));
    let x = PlotAxis { name: axis.name.to_string(), ticks: labels.step_by(2).collect() };
    let points = servers.iter().map(|server| {
        let values = ramp_values(server.report, value).into_iter().enumerate();
        values.map(|(step, value)| (middle(step), value)).collect()
    });
    let about = format!("{} over the ramp of {}", metric.name(), workload.workload.name());
    metric_lines(&about, &x, metric, servers, points.collect(), &[])
}

/// Plots responses per second over the time of a measurement in which faults are injected; `None` without faults.
fn fault_timeline(workload: &WorkloadReport, servers: &[PlottedServer<'_>]) -> Option<String> {
    let timelines = |server: &PlottedServer<'_>| -> Vec<FaultTimeline> {
        server.report.samples.iter().filter_map(|sample| sample.timeline.clone()).collect()
    };
    let all: Vec<Vec<FaultTimeline>> = servers.iter().map(timelines).collect();
    let first = all.iter().flatten().next()?;
    let bins =
        all.iter().flatten().map(|one| one.responses.len()).max().filter(|bins| *bins > 1)?;
    let length_s = bins as f64 * first.bin_s;
    // Bins are grouped until there are few enough.
    let group = bins.div_ceil(MAX_TIMELINE_POINTS);
    let mean = |timelines: &[FaultTimeline], from: usize| {
        let counts = timelines.iter().flat_map(|one| one.responses.iter().skip(from).take(group));
        let counted = timelines.len() * group.min(bins - from);
        counts.sum::<u64>() as f64 / (counted as f64 * first.bin_s)
    };
    let points = all.iter().map(|timelines| {
        let starts = (0..bins).step_by(group).filter(|_| !timelines.is_empty());
        let middle =
            |from: usize| (from as f64 + group.min(bins - from) as f64 / 2.0) / bins as f64;
        starts.map(|from| (middle(from), mean(timelines, from))).collect()
    });
    let mark = |fault: &FaultEvent| PlotMark {
        class: fault.fault,
        from: fault.at_s / length_s,
        until: fault.until_s / length_s,
    };
    let marks: Vec<PlotMark> = first.injected.iter().map(mark).collect();
    let mut names: Vec<(&str, String)> =
        first.injected.iter().map(|fault| (fault.fault, fault.fault.to_string())).collect();
    names.sort();
    names.dedup();
    let about = format!("Responses per second under {} with faults", workload.workload.name());
    let x = time_axis(length_s);
    let metric = ComparedMetric::RequestsPerSecond;
    metric_lines(&about, &x, metric, servers, points.collect(), &marks)
        .map(|plot| plot + &mark_legend(&names))
}

/// Plots a line of values of a metric for each server; `None` if no line has two points. The points are placed from 0 to 1 on the
/// x axis.
fn metric_lines(
    about: &str,
    x: &PlotAxis,
    metric: ComparedMetric,
    servers: &[PlottedServer<'_>],
    points: Vec<Vec<(f64, f64)>>,
    marks: &[PlotMark],
) -> Option<String> {
    if points.iter().all(|points| points.len() < 2) {
        return None;
    }
    let scale = PlotScale::for_values(points.iter().flatten().map(|(_, value)| *value));
    let placed: Vec<Vec<(f64, f64)>> = points
        .into_iter()
        .map(|points| points.into_iter().map(|(x, value)| (x, scale.place(value))).collect())
        .collect();
    let lines: Vec<PlotLine<'_>> = servers
        .iter()
        .zip(&placed)
        .map(|(server, points)| PlotLine {
            class: &server.class,
            points,
            filled: false,
            dotted: points.len() <= MAX_DOTTED_POINTS,
        })
        .collect();
    let log = if scale.is_log() { ", log scale" } else { "" };
    // A long name is in the title only.
    let name = match metric.name() {
        name if name.len() <= MAX_AXIS_NAME => format!("{name}{log}"),
        _ => log.trim_start_matches(", ").to_string(),
    };
    let y = PlotAxis { name, ticks: scale.ticks(|value| metric.format_tick(value)) };
    Some(line_plot(about, x, &y, &lines, marks))
}

fn balance_chart(servers: &[PlottedServer<'_>]) -> Option<String> {
    let row = |server: &PlottedServer<'_>| {
        let shares = typical_shares(server.report)?;
        Some(ShareBar {
            label: server.report.server.clone(),
            class: server.class.clone(),
            text: format!("{} of {}", busiest_share(server.report)?, shares.len()),
            shares,
        })
    };
    let rows: Vec<ShareBar> = servers.iter().filter_map(row).collect();
    (!rows.is_empty()).then(|| share_chart("Share of each process in the requests", &rows))
}

/// Returns the share of the busiest process as in the table, the median of the rounds; then the mean of the second busiest, and so on,
/// scaled to what is left.
fn typical_shares(server: &ServerWorkloadReport) -> Option<Vec<f64>> {
    let busiest = server.busiest?.median;
    let rounds: Vec<&Vec<f64>> =
        server.samples.iter().map(|s| &s.process_shares).filter(|s| !s.is_empty()).collect();
    let processes = rounds.iter().map(|shares| shares.len()).max()?;
    let mean = |at: usize| {
        let sum: f64 = rounds.iter().filter_map(|shares| shares.get(at)).sum();
        sum / rounds.len() as f64
    };
    let (first, rest) = (mean(0), (1..processes).map(mean));
    let others: f64 = rest.clone().sum();
    let scale = if others > 0.0 { (first + others - busiest) / others } else { 0.0 };
    Some(std::iter::once(busiest).chain(rest.map(|share| share * scale)).collect())
}
