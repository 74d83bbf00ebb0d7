//! The comparison as one HTML page.

use std::fmt::Write;

use super::text::{column_titles, handshake_line, reading_notes, server_row, summary_line};
use super::{CompareReport, ServerWorkloadReport, WorkloadReport};
use crate::report_format::html_page::{escape_html, html_page};
use crate::report_format::svg_plot::{self as plot, ChartBar};
use crate::report_format::text_table::{format_count, format_micros};

/// Formats the report as a page.
pub(crate) fn render_html(report: &CompareReport) -> String {
    let mut main = format!(
        "<h1>prefork compare</h1>\n<p class=\"how\">{}.</p>\n",
        escape_html(&summary_line(report))
    );
    // Writing to a string cannot fail.
    if let Some(partial) = &report.partial {
        let _ = writeln!(
            main,
            "<p class=\"bad\"><strong>Partial: {}.</strong></p>",
            escape_html(partial)
        );
    }
    for why in &report.broken {
        let _ = writeln!(main, "<p class=\"bad\">Not measured: {}</p>", escape_html(why));
    }
    main.push_str("<div class=\"plots\">\n");
    for workload in &report.workloads {
        if let Some(bars) = workload_bar_chart(workload) {
            let what = if workload.workload.is_latency_workload() {
                "p99 latency, lower is better"
            } else {
                "requests/s"
            };
            let name = workload.workload.name();
            let _ =
                writeln!(main, "<figure><figcaption>{name}: {what}</figcaption>{bars}</figure>");
        }
    }
    main.push_str("</div>\n");
    write_list(&mut main, "Differences", &report.findings);
    for workload in &report.workloads {
        write_workload_table(&mut main, workload);
    }
    write_list(&mut main, "Notes", &reading_notes(report));
    html_page("prefork compare", &main, report.version)
}

fn write_list(main: &mut String, title: &str, lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    let lines: String =
        lines.iter().map(|line| format!("<li>{}</li>\n", escape_html(line))).collect();
    let _ = writeln!(main, "<h2>{title}</h2>\n<ul>\n{lines}</ul>");
}

/// Draws a bar for each server, with the range of its rounds; `None` if none was measured.
fn workload_bar_chart(report: &WorkloadReport) -> Option<String> {
    let workload = report.workload;
    let measured: Vec<&ServerWorkloadReport> =
        report.contestants.iter().filter(|cell| !cell.samples.is_empty()).collect();
    let most = measured.iter().map(|cell| cell.main_metric(workload).max).fold(0.0, f64::max);
    let bar = |cell: &&ServerWorkloadReport| {
        let figure = cell.main_metric(workload);
        let show = if workload.is_latency_workload() { format_micros } else { format_count };
        ChartBar {
            label: cell.contestant.clone(),
            fraction: figure.median / most,
            range: Some((figure.min / most, figure.max / most)),
            value: show(figure.median),
        }
    };
    let about = format!("{}: {}", workload.name(), report.about);
    let rows: Vec<ChartBar> = measured.iter().map(bar).collect();
    (most > 0.0).then(|| plot::bar_chart(&about, &rows))
}

fn write_workload_table(main: &mut String, report: &WorkloadReport) {
    let head: String =
        column_titles(report).iter().map(|name| format!("<th>{name}</th>")).collect();
    let rows = report.contestants.iter().map(|cell| {
        let cells = server_row(report, cell)
            .map(|text| format!("<td>{}</td>", escape_html(&text)))
            .concat();
        let failed = match (cell.unable, cell.errors) {
            (true, _) => "<td>does not have this path</td>".to_string(),
            (false, 0) => String::new(),
            (false, n) => format!("<td class=\"bad\">{n} failed</td>"),
        };
        format!("<tr>{cells}{failed}</tr>\n")
    });
    let handshakes = report.contestants.iter().filter_map(handshake_line);
    let handshakes = handshakes.map(|line| format!("<p class=\"how\">{}</p>", escape_html(&line)));
    let _ = writeln!(
        main,
        "<figure class=\"wide\"><figcaption>{}</figcaption><p class=\"how\">{}</p>\n\
         <table>\n<tr>{head}</tr>\n{}</table>{}</figure>",
        report.workload.name(),
        escape_html(report.about),
        rows.collect::<String>(),
        handshakes.collect::<String>()
    );
}
