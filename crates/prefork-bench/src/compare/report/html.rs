//! The comparison as one HTML page: the verdict, plots, then the data.

use std::fmt::Write;

use super::plots::{server_legend, workload_figures};
use super::text::{
    VERDICT_TITLES, capacity_line, comparison_lines, confidence_line, failures_line, figures_lines,
    handshake_line, reading_notes, rounds_line, summary_line, upper_first, workload_table,
};
use super::{CompareReport, WorkloadReport};
use crate::compare::baseline::baseline_section;
use crate::compare::server_configuration::configuration_section;
use crate::report_format::html_page::{environment_list, escape_html, html_page};

/// Formats the report as a page.
pub(crate) fn render_html(report: &CompareReport) -> String {
    let mut main = "<h1>prefork compare</h1>\n".to_string();
    write_verdict(&mut main, report);
    if let Some(baseline) = &report.baseline {
        main.push_str(&baseline_section(baseline));
    }
    main.push_str(&server_legend(report));
    for workload in &report.workloads {
        let figures = workload_figures(report, workload);
        if figures.is_empty() {
            continue;
        }
        // Writing to a string cannot fail.
        let _ = writeln!(
            main,
            "<section><h2>{}</h2>\n<p class=\"how\">{}. {}.</p>\n<div class=\"plots\">\n{figures}</div></section>",
            workload.workload.name(),
            escape_html(&workload.about),
            escape_html(&rounds_line(report, workload))
        );
    }
    main.push_str("<h2>Data</h2>\n");
    for workload in &report.workloads {
        write_workload_table(&mut main, report, workload);
    }
    write_list(&mut main, "Notes", &reading_notes(report));
    main.push_str(&configuration_section(&report.servers, &report.left_out));
    main.push_str(&environment_list(&report.environment, &[("method", summary_line(report))]));
    html_page("prefork compare", &main, report.environment.version)
}

fn write_verdict(main: &mut String, report: &CompareReport) {
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
    let verdict = &report.verdict;
    let title = |name: &str| format!("<th scope=\"col\">{}</th>", name.to_lowercase());
    let mut rows = String::new();
    let has_winner = verdict.lines.iter().any(|line| line.winner.is_some());
    if has_winner {
        let _ = writeln!(rows, "<tr>{}</tr>", VERDICT_TITLES.map(title).concat());
    }
    for line in &verdict.lines {
        let (Some(workload), Some(winner)) = (&line.workload, &line.winner) else {
            let class = if verdict.is_too_noisy { " class=\"bad\"" } else { "" };
            let statement = escape_html(&upper_first(&line.statement));
            let _ = writeln!(rows, "<tr><td colspan=\"5\"{class}>{statement}</td></tr>");
            continue;
        };
        let equal = match line.not_told_apart_from.is_empty() {
            true => "-".to_string(),
            false => line.not_told_apart_from.join(", "),
        };
        let cells = [
            escape_html(workload),
            format!("<strong>{}</strong>", escape_html(winner)),
            escape_html(&line.statement),
            escape_html(line.interval.as_deref().unwrap_or("-")),
            escape_html(&equal),
        ];
        // A phone shows the titles before the cells.
        let titled = cells.iter().zip(VERDICT_TITLES).map(|(cell, title)| {
            format!("<td data-title=\"{}\">{cell}</td>", title.to_lowercase())
        });
        let _ = writeln!(rows, "<tr>{}</tr>", titled.collect::<String>());
    }
    let _ = writeln!(
        main,
        "<figure class=\"wide verdict\"><figcaption>Verdict</figcaption>\n<table>\n{rows}</table>\n\
         <p class=\"how{}\">Control: {}.</p>\n<p class=\"how\">{}</p>\n<p class=\"how{}\">{}</p>\n\
         <p class=\"how\">{}</p></figure>",
        if verdict.is_too_noisy { " bad" } else { "" },
        escape_html(&verdict.control),
        escape_html(&confidence_line(report)),
        if report.workloads.iter().flat_map(|one| &one.servers).any(|one| one.errors > 0) {
            " bad"
        } else {
            ""
        },
        escape_html(&failures_line(report)),
        escape_html(&report.environment.summary())
    );
}

fn write_list(main: &mut String, title: &str, lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    let lines: String =
        lines.iter().map(|line| format!("<li>{}</li>\n", escape_html(line))).collect();
    let _ = writeln!(main, "<h2>{title}</h2>\n<ul>\n{lines}</ul>");
}

fn write_workload_table(main: &mut String, report: &CompareReport, workload: &WorkloadReport) {
    let mut table = workload_table(workload, report.reference.as_deref()).into_iter();
    let head: String =
        table.next().unwrap_or_default().iter().map(|name| format!("<th>{name}</th>")).collect();
    let rows = workload.servers.iter().zip(table).map(|(cell, row)| {
        let cells: String =
            row.iter().map(|text| format!("<td>{}</td>", escape_html(text))).collect();
        let unable = match &cell.unable_reason {
            Some(why) => format!("<td>{}</td>", escape_html(why)),
            None => String::new(),
        };
        let class = if cell.errors > 0 { " class=\"bad\"" } else { "" };
        format!("<tr{class}>{cells}{unable}</tr>\n")
    });
    let handshakes = workload.servers.iter().filter_map(handshake_line);
    let capacities = workload.servers.iter().filter_map(capacity_line);
    let figures = workload.servers.iter().flat_map(|cell| figures_lines(workload.metric, cell));
    let lines = handshakes.chain(capacities).chain(figures).chain([rounds_line(report, workload)]);
    let lines = lines.map(|line| format!("<p class=\"how\">{}</p>", escape_html(&line)));
    let comparisons = comparison_lines(report, workload);
    let comparisons = comparisons.iter().map(|line| format!("<li>{}</li>\n", escape_html(line)));
    let _ = writeln!(
        main,
        "<figure class=\"wide\"><figcaption>{}</figcaption><p class=\"how\">{}</p>\n\
         <table>\n<tr>{head}</tr>\n{}</table>{}<ul>\n{}</ul></figure>",
        workload.workload.name(),
        escape_html(&workload.about),
        rows.collect::<String>(),
        lines.collect::<String>(),
        comparisons.collect::<String>()
    );
}
