//! The comparison as text for a terminal: the verdict, how it was measured, then the data.

use std::fmt::Write;
use std::time::Duration;

use super::{CompareReport, ServerWorkloadReport, WorkloadReport};
use crate::compare::ComparedMetric;
use crate::compare::baseline::write_baseline;
use crate::compare::server_configuration::write_configurations;
use crate::compare::size_in_words::{format_interval, format_ratio};
use crate::load::MedianRange;
use crate::report_format::text_table::{
    format_count, format_micros, write_left_table, write_table,
};
use crate::scenario::format_percent;
use tokio_prefork::text::HumanDuration;

/// Titles of the verdict's columns.
pub(crate) const VERDICT_TITLES: [&str; 5] =
    ["LOAD", "BEST", "DIFFERENCE", "INTERVAL", "NOT TOLD APART FROM"];

/// Returns the column titles of a workload.
pub(crate) fn column_titles(workload: &WorkloadReport) -> [&'static str; 10] {
    let range = match workload.metric {
        ComparedMetric::RequestsPerSecond => "MIN-MAX",
        ComparedMetric::P99Latency => "P99 MIN-MAX",
        ComparedMetric::CpuPerRequest => "CPU MIN-MAX",
        ComparedMetric::Memory => "PSS MIN-MAX",
    };
    ["", "REQ/S", range, "RATIO", "INTERVAL", "P50", "P99", "CPU/REQ", "PSS", "BUSIEST"]
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
    for (name, value) in report.environment.lines() {
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
    let _ = writeln!(text, "Control: {}.", verdict.control);
    let _ = writeln!(text, "{}", confidence_line(report));
}

fn write_workload(text: &mut String, report: &CompareReport, workload: &WorkloadReport) {
    let _ = writeln!(text, "\n{}: {}", workload.workload.name(), workload.about);
    let reference = report.reference.as_deref();
    let cells = workload.servers.iter().map(|cell| server_row(workload, cell, reference));
    let mut rows: Vec<[String; 10]> =
        std::iter::once(column_titles(workload).map(str::to_string)).chain(cells).collect();
    // The first column is left-aligned.
    let width = rows.iter().map(|row| row[0].chars().count()).max().unwrap_or(0);
    rows.iter_mut().for_each(|row| row[0] = format!("{:width$}", row[0]));
    write_table(text, &rows);
    for cell in &workload.servers {
        if cell.unable {
            let _ = writeln!(text, "{} does not have this path", cell.server);
        }
        if let Some(line) = handshake_line(cell) {
            let _ = writeln!(text, "{line}");
        }
        if let Some(line) = capacity_line(cell) {
            let _ = writeln!(text, "{line}");
        }
        if cell.errors > 0 {
            let _ = writeln!(text, "{}: {} requests failed", cell.server, cell.errors);
        }
    }
    let _ = writeln!(text, "{}", rounds_line(report, workload));
    for line in comparison_lines(report, workload) {
        let _ = writeln!(text, "- {line}");
    }
}

/// Returns a sentence for each comparison; the control only if it differs. None if the machine was too noisy.
pub(crate) fn comparison_lines(report: &CompareReport, workload: &WorkloadReport) -> Vec<String> {
    let control = workload.control.iter().filter(|one| one.is_shown());
    let control = control.map(|one| one.text.clone());
    match report.verdict.is_too_noisy {
        true => control.collect(),
        false => workload.comparisons.iter().map(|one| one.text.clone()).collect(),
    }
}

/// Says how many rounds a workload had, and why no more.
pub(crate) fn rounds_line(report: &CompareReport, workload: &WorkloadReport) -> String {
    let rounds = workload.complete_rounds();
    match workload.ended {
        Some(ended) => format!("{rounds} rounds: {}", ended.description(report.precision)),
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

/// Says how sure the report is.
pub(crate) fn confidence_line(report: &CompareReport) -> String {
    let confidence = &report.confidence;
    let looks = match confidence.looks {
        1 => String::new(),
        looks => format!(", and up to {looks} looks at each"),
    };
    format!(
        "Confidence: {:.0} % that all intervals of this report contain the true ratios, with {} comparisons{looks}; a \
         difference is stated if its interval excludes 1, which takes at least {} rounds.",
        confidence.level * 100.0,
        confidence.comparisons,
        report.rounds_needed
    )
}

/// Summarizes the comparison in a line.
pub(crate) fn summary_line(report: &CompareReport) -> String {
    let span = |seconds: f64| HumanDuration(Duration::from_secs_f64(seconds));
    let protocol = match (report.scheme, report.protocol) {
        ("http", "HTTP/1.1") => String::new(),
        ("http", protocol) => format!("{protocol}, "),
        (_, protocol) => format!("{protocol} over TLS, "),
    };
    format!(
        "{protocol}{} workers, {} cores shared with the generator, {} measurements of {} after a warm-up of {}, in \
         random order (seed {}); {} in all",
        report.workers,
        report.environment.cores,
        report.measured,
        span(report.duration_s),
        span(report.warm_up_s),
        report.seed,
        span(report.took_s)
    )
}

/// Describes the handshakes of a server, under workloads of handshakes.
pub(crate) fn handshake_line(cell: &ServerWorkloadReport) -> Option<String> {
    let (resumed, p50, p99) = (cell.resumed?, cell.handshake_p50?, cell.handshake_p99?);
    Some(format!(
        "{}: {:.0} % of the handshakes resumed a session; a handshake took {} (median), {} (p99)",
        cell.server,
        resumed.median * 100.0,
        format_micros(p50.median),
        format_micros(p99.median)
    ))
}

/// Says what a server answered in a closed loop, and what part of it was due.
pub(crate) fn capacity_line(cell: &ServerWorkloadReport) -> Option<String> {
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

/// Explains the columns.
pub(crate) fn reading_notes(report: &CompareReport) -> Vec<String> {
    let generator = report.workloads.iter().flat_map(|workload| &workload.servers);
    let generator: Vec<f64> = generator
        .filter(|cell| !cell.samples.is_empty())
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
    notes
}

/// Returns the cells of one server; `reference` is the name of the baseline.
pub(crate) fn server_row(
    workload: &WorkloadReport,
    cell: &ServerWorkloadReport,
    reference: Option<&str>,
) -> [String; 10] {
    let mut row: [String; 10] = std::array::from_fn(|_| "-".to_string());
    row[0] = cell.server.clone();
    if cell.samples.is_empty() {
        return row;
    }
    row[1] = format_count(cell.per_second.median);
    let figure = cell.figure(workload.metric);
    let show = |value: f64| workload.metric.format_value(value);
    row[2] = format!("{}-{}", show(figure.min), show(figure.max));
    row[5] = format_micros(cell.p50.median);
    row[6] = format_micros(cell.p99.median);
    let rest = [
        (3, cell.ratio.map(|ratio| format_ratio(ratio.median))),
        (4, cell.ratio.map(|ratio| format_interval(&ratio))),
        (7, cell.cpu_us.map(|cpu| format!("{:.1} us", cpu.median))),
        (8, cell.memory_mib.map(|mib| format!("{:.1} MiB", mib.median))),
        (9, cell.busiest.map(|share| format!("{:.0} %", share.median * 100.0))),
    ];
    if reference == Some(cell.server.as_str()) {
        row[3] = "baseline".to_string();
    }
    for (at, text) in rest.into_iter().filter_map(|(at, text)| Some((at, text?))) {
        row[at] = text;
    }
    row
}
