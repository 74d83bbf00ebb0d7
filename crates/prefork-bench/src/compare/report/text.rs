//! The comparison as text for a terminal.

use std::fmt::Write;

use super::{CompareReport, ServerWorkloadReport, WorkloadReport};
use crate::load::MedianRange;
use crate::report_format::text_table::{format_count, format_micros, write_table};
use tokio_prefork::text::HumanDuration;

/// Returns the column titles of a workload.
pub(crate) fn column_titles(workload: &WorkloadReport) -> [&'static str; 9] {
    let range = if workload.workload.is_latency_workload() { "P99 MIN-MAX" } else { "MIN-MAX" };
    ["", "REQ/S", range, "RATIO", "P50", "P99", "CPU/REQ", "PSS", "BUSIEST"]
}

/// Formats the report.
pub(crate) fn render_text(report: &CompareReport) -> String {
    let mut text = format!("{}\n", summary_line(report));
    if let Some(partial) = &report.partial {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "PARTIAL: {partial}");
    }
    for why in &report.broken {
        let _ = writeln!(text, "not measured: {why}");
    }
    for workload in &report.workloads {
        let _ = writeln!(text, "\n{}: {}", workload.workload.name(), workload.about);
        let cells = workload.contestants.iter().map(|cell| server_row(workload, cell));
        let mut rows: Vec<[String; 9]> =
            std::iter::once(column_titles(workload).map(str::to_string)).chain(cells).collect();
        // The first column is left-aligned.
        let width = rows.iter().map(|row| row[0].chars().count()).max().unwrap_or(0);
        rows.iter_mut().for_each(|row| row[0] = format!("{:width$}", row[0]));
        write_table(&mut text, &rows);
        for cell in &workload.contestants {
            if cell.unable {
                let _ = writeln!(text, "{} does not have this path", cell.contestant);
            }
            if let Some(line) = handshake_line(cell) {
                let _ = writeln!(text, "{line}");
            }
            if cell.errors > 0 {
                let _ = writeln!(text, "{}: {} requests failed", cell.contestant, cell.errors);
            }
        }
    }
    let _ = writeln!(text, "\n{}", reading_notes(report).join("\n"));
    for finding in &report.findings {
        let _ = writeln!(text, "- {finding}");
    }
    text
}

/// Summarizes the comparison in a line.
pub(crate) fn summary_line(report: &CompareReport) -> String {
    let span = |seconds: f64| HumanDuration(std::time::Duration::from_secs_f64(seconds));
    let protocol = match (report.scheme, report.protocol) {
        ("http", "HTTP/1.1") => String::new(),
        ("http", protocol) => format!("{protocol}, "),
        (_, protocol) => format!("{protocol} over TLS, "),
    };
    format!(
        "{protocol}{} workers, {} cores shared with the generator, {} rounds of {} under each workload; {} in all",
        report.workers,
        report.cores,
        report.rounds,
        span(report.duration_s),
        span(report.took_s)
    )
}

/// Describes the handshakes of a server, under workloads of handshakes.
pub(crate) fn handshake_line(cell: &ServerWorkloadReport) -> Option<String> {
    let (resumed, p50, p99) = (cell.resumed?, cell.handshake_p50?, cell.handshake_p99?);
    Some(format!(
        "{}: {:.0} % of the handshakes resumed a session; a handshake took {} (median), {} (p99)",
        cell.contestant,
        resumed.median * 100.0,
        format_micros(p50.median),
        format_micros(p99.median)
    ))
}

/// Explains the columns.
pub(crate) fn reading_notes(report: &CompareReport) -> Vec<String> {
    let generator = report.workloads.iter().flat_map(|workload| &workload.contestants);
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
            "RATIO is to {reference}, median of the rounds: of requests/s, or of P99 under latency workloads (lower is better)."
        ));
    }
    notes.push(report.chance.description());
    notes
}

/// Returns the cells of one server.
pub(crate) fn server_row(workload: &WorkloadReport, cell: &ServerWorkloadReport) -> [String; 9] {
    let name = cell.contestant.clone();
    let mut row: [String; 9] = std::array::from_fn(|_| "-".to_string());
    row[0] = name;
    if cell.samples.is_empty() {
        return row;
    }
    let about_latency = workload.workload.is_latency_workload();
    row[1] = format_count(cell.per_second.median);
    let figure = cell.main_metric(workload.workload);
    let show = |value: f64| if about_latency { format_micros(value) } else { format_count(value) };
    row[2] = format!("{}-{}", show(figure.min), show(figure.max));
    row[4] = format_micros(cell.p50.median);
    row[5] = format_micros(cell.p99.median);
    let rest = [
        (3, cell.ratio.map(|ratio| format!("{:.2}", ratio.median))),
        (6, cell.cpu_us.map(|cpu| format!("{:.1} us", cpu.median))),
        (7, cell.memory_mib.map(|mib| format!("{:.1} MiB", mib.median))),
        (8, cell.busiest.map(|share| format!("{:.0} %", share.median * 100.0))),
    ];
    for (at, text) in rest {
        row[at] = text.unwrap_or("-".to_string());
    }
    row
}
