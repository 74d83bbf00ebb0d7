//! The comparison as text for a terminal: the verdict, how it was measured, then the data.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::time::Duration;

use super::parts::part_tables;
use super::request_outcomes::{busiest_note, busiest_share, due_line, failures_line};
use super::{CompareReport, ServerWorkloadReport, WorkloadReport, format_latency};
use crate::compare::baseline::write_baseline;
use crate::compare::server_configuration::write_configurations;
use crate::compare::size_in_words::{format_interval, format_ratio};
use crate::compare::{ComparedMetric, Comparison, MeasurementSample, VerdictLine};
use crate::load::MedianRange;
use crate::report_format::text_table::{format_count, write_left_table, write_rows};
use crate::scenario::format_percent;
use tokio_prefork::text::HumanDuration;

/// Titles of the verdict's columns.
pub(crate) const VERDICT_TITLES: [&str; 5] =
    ["LOAD", "BEST", "DIFFERENCE", "INTERVAL", "NOT TOLD APART FROM"];

/// Most differences by other metrics in the verdict.
const MAX_OTHER_DIFFERENCES: usize = 4;

/// One column of the table of a workload: its title, and the cell of a server.
struct WorkloadColumn {
    title: String,
    cell: CellOfServer,
}

/// Returns the text of a cell for a server, or `None` if the server has no value.
type CellOfServer = Box<dyn Fn(&ServerWorkloadReport) -> Option<String>>;

/// Returns the table of a workload: the titles, then a row for each server. Columns without a value are left out.
pub(crate) fn workload_table(
    workload: &WorkloadReport,
    reference: Option<&str>,
) -> Vec<Vec<String>> {
    let columns = workload_columns(workload, reference);
    let cells = |server: &ServerWorkloadReport| -> Vec<Option<String>> {
        let is_measured = !server.samples.is_empty();
        let measured = columns.iter().map(|column| (column.cell)(server).filter(|_| is_measured));
        measured.collect()
    };
    let rows: Vec<Vec<Option<String>>> = workload.servers.iter().map(cells).collect();
    let is_shown = |column: &usize| rows.iter().any(|row| row[*column].is_some());
    let shown: Vec<usize> = (0..columns.len()).filter(is_shown).collect();
    let titles = shown.iter().map(|column| columns[*column].title.clone());
    let mut table = vec![std::iter::once(String::new()).chain(titles).collect::<Vec<_>>()];
    for (server, row) in workload.servers.iter().zip(&rows) {
        let values = shown.iter().map(|column| row[*column].clone().unwrap_or("-".to_string()));
        table.push(std::iter::once(server.server.clone()).chain(values).collect());
    }
    table
}

/// Returns the columns: what the servers are compared by first, then everything else that was measured.
fn workload_columns(workload: &WorkloadReport, reference: Option<&str>) -> Vec<WorkloadColumn> {
    let column =
        |title: &str, cell: CellOfServer| WorkloadColumn { title: title.to_string(), cell };
    let metric = workload.metric;
    let median_of = |metric: ComparedMetric| {
        move |server: &ServerWorkloadReport| {
            Some(metric.format_value(server.measured_figure(metric)?.median))
        }
    };
    let show_range = move |server: &ServerWorkloadReport| {
        let MedianRange { min, max, .. } = server.measured_figure(metric)?;
        Some(format!("{}-{}", metric.format_value(min), metric.format_value(max)))
    };
    let name = reference.unwrap_or_default().to_string();
    let ratio = move |server: &ServerWorkloadReport| match server.server == name {
        true => Some("reference".to_string()),
        false => server.ratio.map(|ratio| format_ratio(ratio.median)),
    };
    let interval =
        |server: &ServerWorkloadReport| server.ratio.map(|ratio| format_interval(&ratio));
    let mut columns = vec![
        column(&column_title(metric), Box::new(median_of(metric))),
        column("MIN-MAX", Box::new(show_range)),
        column("RATIO", Box::new(ratio)),
        column("INTERVAL", Box::new(interval)),
    ];
    let has_latency = |server: &ServerWorkloadReport| {
        !server.samples.iter().all(MeasurementSample::has_no_latency)
    };
    let further = [
        ComparedMetric::RequestsPerSecond,
        ComparedMetric::P99Latency,
        ComparedMetric::CpuPerRequest,
        ComparedMetric::Memory,
    ];
    // Messages are the requests of a WebSocket load.
    let is_shown_already = |other: &ComparedMetric| {
        *other == metric
            || (*other == ComparedMetric::RequestsPerSecond
                && metric == ComparedMetric::RoundTripsPerSecond)
    };
    for other in further.into_iter().filter(|other| !is_shown_already(other)) {
        if other == ComparedMetric::P99Latency {
            let p50 = move |server: &ServerWorkloadReport| {
                has_latency(server).then(|| format_latency(server.p50.median))
            };
            columns.push(column("P50", Box::new(p50)));
        }
        let median = median_of(other);
        let is_of_requests =
            matches!(other, ComparedMetric::RequestsPerSecond | ComparedMetric::P99Latency);
        let shown = move |server: &ServerWorkloadReport| {
            median(server).filter(|_| !is_of_requests || has_latency(server))
        };
        columns.push(column(&column_title(other), Box::new(shown)));
    }
    columns.push(column("BUSIEST", Box::new(busiest_share)));
    let failed = |server: &ServerWorkloadReport| {
        (server.errors > 0).then(|| format_count(server.errors as f64))
    };
    columns.push(column("FAILED", Box::new(failed)));
    columns
}

/// Returns the title of the column of a metric.
fn column_title(metric: ComparedMetric) -> String {
    match metric {
        ComparedMetric::RequestsPerSecond => "REQ/S".to_string(),
        ComparedMetric::CpuPerRequest => "CPU/REQ".to_string(),
        other => other.column().to_string(),
    }
}

/// Formats the report.
pub(crate) fn render_text(report: &CompareReport) -> String {
    let mut text = String::new();
    write_verdict(&mut text, report);
    if let Some(baseline) = &report.baseline {
        write_baseline(&mut text, baseline);
    }
    // Writing to a string cannot fail.
    let _ = writeln!(text, "\n{}", summary_line(report));
    let repeat = ("repeat", report.repeat_command.clone());
    for (name, value) in report.environment.lines().into_iter().chain([repeat]) {
        let _ = writeln!(text, "{name:8} {value}");
    }
    for workload in &report.workloads {
        write_workload(&mut text, report, workload);
    }
    write_configurations(&mut text, &report.servers, &report.left_out);
    let _ = writeln!(text, "\n{}", reading_notes(report).join("\n"));
    text
}

fn write_verdict(text: &mut String, report: &CompareReport) {
    if let Some(partial) = &report.partial {
        let _ = writeln!(text, "PARTIAL: {partial}");
    }
    for why in &report.broken {
        let _ = writeln!(text, "not measured: {why}");
    }
    let verdict = &report.verdict;
    let winners: Vec<[String; 5]> = verdict
        .lines
        .iter()
        .filter_map(|line| {
            Some([
                line.workload.clone()?,
                line.winner.clone()?,
                line.statement.clone(),
                line.interval.clone().unwrap_or("-".to_string()),
                match line.not_told_apart_from.is_empty() {
                    true => "-".to_string(),
                    false => line.not_told_apart_from.join(", "),
                },
            ])
        })
        .collect();
    if !winners.is_empty() {
        let titles = VERDICT_TITLES.map(str::to_string);
        write_left_table(text, &[vec![titles], winners].concat());
    }
    for line in verdict.lines.iter().filter(|line| line.winner.is_none()) {
        let _ = writeln!(text, "{}", upper_first(&line.statement));
    }
    let _ = writeln!(text, "{}", other_differences_line(report));
    let _ = writeln!(text, "Control: {}.", verdict.control);
    let _ = writeln!(text, "{}", confidence_line(report));
    let _ = writeln!(text, "{}", failures_line(report));
}

fn write_workload(text: &mut String, report: &CompareReport, workload: &WorkloadReport) {
    let _ = writeln!(text, "\n{}: {}", workload.workload.name(), workload.about);
    if let Some(line) = load_verdict(report, workload) {
        let _ = writeln!(text, "{}", upper_first(&line.sentence()));
    }
    write_rows(text, &workload_table(workload, report.reference.as_deref()));
    for cell in &workload.servers {
        if let Some(why) = &cell.unable_reason {
            let _ = writeln!(text, "{}: {why}", cell.server);
        }
        for line in server_lines(workload, cell) {
            let _ = writeln!(text, "{line}");
        }
    }
    if let Some(note) = busiest_note(workload) {
        let _ = writeln!(text, "{note}");
    }
    for table in part_tables(workload) {
        let _ = writeln!(text, "{}:", table.title);
        write_rows(text, &table.rows);
    }
    let _ = writeln!(text, "{}", rounds_line(report, workload));
    if listed_comparisons(report, workload).next().is_some() {
        let _ = writeln!(text, "{}:", comparisons_title(report, workload));
    }
    for line in comparison_lines(report, workload) {
        let _ = writeln!(text, "- {line}");
    }
}

/// Returns the result under a workload; `None` if there is nothing to compare, or the machine was too noisy.
pub(crate) fn load_verdict<'a>(
    report: &'a CompareReport,
    workload: &WorkloadReport,
) -> Option<&'a VerdictLine> {
    let name = Some(workload.workload.name());
    report.verdict.loads.iter().find(|line| line.workload.as_deref() == name)
}

/// Returns the comparisons of a workload that the report lists: all, the control last, or if the machine was too noisy only that.
pub(crate) fn listed_comparisons<'a>(
    report: &CompareReport,
    workload: &'a WorkloadReport,
) -> impl Iterator<Item = &'a Comparison> {
    let is_stated = !report.verdict.is_too_noisy;
    workload.comparisons.iter().filter(move |_| is_stated).chain(&workload.control)
}

/// Returns the title of the list of comparisons, which says how many of those of the report it has.
pub(crate) fn comparisons_title(report: &CompareReport, workload: &WorkloadReport) -> String {
    let listed = listed_comparisons(report, workload).count();
    let without = match report.verdict.is_too_noisy {
        true => ", with the control only: the machine was too noisy for the others",
        false => "",
    };
    format!("{listed} of the {} comparisons of this report{without}", report.confidence.comparisons)
}

/// Returns a sentence for each comparison that the report lists.
fn comparison_lines(report: &CompareReport, workload: &WorkloadReport) -> Vec<String> {
    listed_comparisons(report, workload).map(|one| one.text.clone()).collect()
}

/// Returns what the report says about a server under a workload besides its row in the table.
pub(crate) fn server_lines(
    workload: &WorkloadReport,
    server: &ServerWorkloadReport,
) -> impl Iterator<Item = String> {
    let lines = [handshake_line(server), capacity_line(server), due_line(workload, server)];
    figures_lines(workload.metric, server).into_iter().chain(lines.into_iter().flatten())
}

/// Says how many rounds a workload had, and why no more.
pub(crate) fn rounds_line(report: &CompareReport, workload: &WorkloadReport) -> String {
    let rounds = workload.complete_rounds();
    match workload.ended {
        Some(ended) => format!("{rounds} rounds: {}", ended.description(report.settings.precision)),
        None => format!("{rounds} rounds"),
    }
}

/// Makes the first letter of a sentence a capital, and ends it with a full stop.
pub(crate) fn upper_first(text: &str) -> String {
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => format!("{}{}.", first.to_uppercase(), letters.as_str()),
        None => String::new(),
    }
}

/// Says what is shown by other metrics than those that the loads are about, and which metrics these are.
pub(crate) fn other_differences_line(report: &CompareReport) -> String {
    let all = &report.verdict.other_differences;
    let mut metrics: Vec<&str> = Vec::new();
    for workload in &report.workloads {
        let others = workload.comparisons.iter().filter(|one| one.metric != workload.metric);
        for name in others.map(|one| one.metric.name()) {
            if !metrics.contains(&name) {
                metrics.push(name);
            }
        }
    }
    let compared = match metrics.is_empty() {
        true => "no other metric was compared".to_string(),
        false => format!("{} were compared too", metrics.join(", ")),
    };
    let shown = match all.len() {
        _ if report.verdict.is_too_noisy => "not stated".to_string(),
        0 => "none is shown".to_string(),
        _ => {
            let more = match all.len().saturating_sub(MAX_OTHER_DIFFERENCES) {
                0 => String::new(),
                more => format!("; and {more} more, listed under their loads"),
            };
            let first: Vec<&str> =
                all.iter().take(MAX_OTHER_DIFFERENCES).map(String::as_str).collect();
            format!("{}{more}", first.join("; "))
        }
    };
    format!("Other differences: {shown} ({compared}).")
}

/// Says how sure the report is.
pub(crate) fn confidence_line(report: &CompareReport) -> String {
    let confidence = &report.confidence;
    let looks = match confidence.looks {
        1 => String::new(),
        looks => format!(", and up to {looks} looks at each"),
    };
    format!(
        "Confidence: {:.0} % that all intervals of this report contain the true ratios, with {} comparisons, listed under their \
         loads{looks}; a difference is stated if its interval excludes 1, which takes at least {} rounds.",
        confidence.level * 100.0,
        confidence.comparisons,
        report.rounds_needed
    )
}

/// Summarizes the comparison in a line.
pub(crate) fn summary_line(report: &CompareReport) -> String {
    let span = |seconds: f64| HumanDuration(Duration::from_secs_f64(seconds));
    let protocol = match (report.settings.scheme.as_str(), report.settings.protocol.as_str()) {
        ("http", "HTTP/1.1") => String::new(),
        ("http", protocol) => format!("{protocol}, "),
        (_, protocol) => format!("{protocol} over TLS, "),
    };
    format!(
        "{protocol}{} workers, {} cores shared with the generator, {} measurements of {} after a warm-up of {}, in \
         random order (seed {}); {} in all",
        report.settings.workers,
        report.environment.cores,
        report.measured,
        span(report.settings.duration_s),
        span(report.settings.warm_up_s),
        report.seed,
        span(report.took_s)
    )
}

/// Describes the handshakes of a server, under workloads of handshakes.
fn handshake_line(cell: &ServerWorkloadReport) -> Option<String> {
    let (resumed, p50, p99) = (cell.resumed?, cell.handshake_p50?, cell.handshake_p99?);
    Some(format!(
        "{}: {:.0} % of the handshakes resumed a session; a handshake took {} (median), {} (p99)",
        cell.server,
        resumed.median * 100.0,
        format_latency(p50.median),
        format_latency(p99.median)
    ))
}

/// Says what a server answered in a closed loop, and what part of it was due.
fn capacity_line(cell: &ServerWorkloadReport) -> Option<String> {
    let measured = || cell.samples.iter().filter_map(|sample| sample.capacity);
    let part = measured().find_map(|capacity| capacity.part)?;
    let median = |values: Vec<f64>| MedianRange::from_values(&values).median;
    let capacity = median(measured().map(|capacity| capacity.per_second).collect());
    let rate = median(measured().filter_map(|capacity| capacity.rate.map(f64::from)).collect());
    Some(format!(
        "{}: {} requests/s in a closed loop; {} of it, {} requests/s, were due",
        cell.server,
        format_count(capacity),
        format_percent(part),
        format_count(rate)
    ))
}

/// Returns a line with the figures that only some kinds of load have, and what limits their value.
fn figures_lines(main: ComparedMetric, cell: &ServerWorkloadReport) -> Vec<String> {
    let metrics: BTreeSet<ComparedMetric> =
        cell.samples.iter().flat_map(|sample| sample.figures.keys().copied()).collect();
    // The metric of the workload has columns of its own.
    let figures = metrics.into_iter().filter(|metric| *metric != main).map(|metric| {
        let figure = cell.figure(metric);
        let [median, min, max] =
            [figure.median, figure.min, figure.max].map(|value| metric.format_value(value));
        format!("{} {median} ({min} to {max})", metric.name())
    });
    let figures = figures.collect::<Vec<_>>().join(", ");
    let mut lines = Vec::new();
    if !figures.is_empty() {
        lines.push(format!("{}: {figures}", cell.server));
    }
    let mut warnings: Vec<&String> =
        cell.samples.iter().flat_map(|sample| &sample.warnings).collect();
    warnings.sort();
    warnings.dedup();
    lines.extend(warnings.into_iter().map(|why| format!("{}: {why}", cell.server)));
    lines
}

/// Explains the columns.
pub(crate) fn reading_notes(report: &CompareReport) -> Vec<String> {
    let generator = report.workloads.iter().flat_map(|workload| &workload.servers);
    let generator: Vec<f64> = generator
        .filter(|cell| !cell.samples.iter().all(MeasurementSample::has_no_latency))
        .map(|cell| cell.generator_us.median)
        .collect();
    let generator = MedianRange::from_values(&generator);
    let mut notes = vec![format!(
        "Medians of the rounds. CPU/REQ is the server's CPU time alone; the load generator used {:.0} to {:.0} us/request \
         more on the same cores. PSS is the memory of all processes of the server. BUSIEST is the share of the \
         requests that the busiest process answered.",
        generator.min, generator.max
    )];
    if let Some(reference) = &report.reference {
        notes.push(format!(
            "RATIO is to {reference}: the median of the rounds' ratios of what the loads are compared by. INTERVAL is its confidence interval, from the ranks of these ratios. A request without \
             a response counts in P50 and P99 as one that took as long as the timeout."
        ));
    }
    let has_control = report.workloads.iter().any(|workload| !workload.control.is_empty());
    if let Some(reference) = report.reference.as_ref().filter(|_| has_control) {
        notes.push(format!(
            "The control is {reference}, measured a second time as if it were another server. A difference of the two is \
             noise, and the width of their interval shows how large a difference must be to be seen."
        ));
    }
    notes
}
