//! The comparison as one HTML page: the verdict, plots, then the data.

use std::fmt::Write;

use super::parts::part_tables;
use super::plots::{server_legend, workload_figures};
use super::request_outcomes::{busiest_note, failures_line};
use super::text::{
    VERDICT_TITLES, comparisons_title, confidence_line, listed_comparisons, load_verdict,
    other_differences_line, reading_notes, rounds_line, server_lines, summary_line, upper_first,
    workload_table,
};
use super::{CompareReport, WorkloadReport};
use crate::compare::baseline::baseline_section;
use crate::compare::server_configuration::configuration_section;
use crate::compare::{Comparison, ComparisonResult, Verdict};
use crate::report_format::html_page::{environment_list, escape_html, html_page};

/// How many times its lower end the upper end of the control's interval is on a noisy machine: 2.
const NOISY_CONTROL_WIDTH: f64 = 2.0;

/// Formats the report as a page.
pub(crate) fn render_html(report: &CompareReport) -> String {
    let mut main = "<h1>prefork compare</h1>\n".to_string();
    write_verdict(&mut main, report);
    main.push_str(&page_links(report));
    if let Some(baseline) = &report.baseline {
        main.push_str(&baseline_section(baseline));
    }
    for workload in &report.workloads {
        write_workload(&mut main, report, workload);
    }
    main.push_str("<section id=\"notes\">");
    write_list(&mut main, "How to read the figures", &reading_notes(report));
    main.push_str("</section>\n<section id=\"servers\">");
    main.push_str(&configuration_section(&report.servers, &report.left_out));
    main.push_str("</section>\n<section id=\"method\">");
    let more = [("method", summary_line(report)), ("repeat", report.repeat_command.clone())];
    main.push_str(&environment_list(&report.environment, &more));
    main.push_str("</section>\n");
    html_page("prefork compare", &main, &report.environment.version)
}

/// Returns links to the parts of the page.
fn page_links(report: &CompareReport) -> String {
    // The description of a load says which part of the capacity is due, for example.
    let loads = report.workloads.iter().map(|workload| {
        let (name, about) = (workload.workload.name(), escape_html(&workload.about));
        format!("<a href=\"#{}\" title=\"{about}\">{name}</a>\n", load_anchor(name))
    });
    let rest = [
        ("notes", "how to read the figures"),
        ("servers", "servers and their configuration"),
        ("method", "how to repeat it"),
    ];
    let rest = rest.map(|(anchor, name)| format!("<a href=\"#{anchor}\">{name}</a>\n"));
    format!("<nav>{}</nav>\n", loads.chain(rest).collect::<String>())
}

fn load_anchor(name: &str) -> String {
    format!("load-{name}")
}

/// Writes the section of a workload: the result, the plots, then the data.
fn write_workload(main: &mut String, report: &CompareReport, workload: &WorkloadReport) {
    let name = workload.workload.name();
    // Writing to a string cannot fail.
    let _ = writeln!(
        main,
        "<section id=\"{}\"><h2>{name}</h2>\n<p class=\"how\">{}. {}.</p>",
        load_anchor(name),
        escape_html(&workload.about),
        escape_html(upper_first(&rounds_line(report, workload)).trim_end_matches('.'))
    );
    if let Some(line) = load_verdict(report, workload) {
        let _ = writeln!(
            main,
            "<p class=\"result\">{}</p>",
            escape_html(&upper_first(&line.sentence()))
        );
    }
    let also = other_metric_lines(report, workload);
    if !also.is_empty() {
        let _ = writeln!(main, "<p class=\"also\">{}</p>", escape_html(&also.join(" ")));
    }
    let figures = workload_figures(report, workload);
    if !figures.is_empty() {
        let legend = server_legend(report, workload);
        let _ = writeln!(main, "{legend}<div class=\"plots\">\n{figures}</div>");
    }
    write_workload_table(main, report, workload);
    write_comparisons(main, report, workload);
    main.push_str("</section>\n");
}

/// Returns a sentence for each further metric: what is shown, and for which servers nothing is.
fn other_metric_lines(report: &CompareReport, workload: &WorkloadReport) -> Vec<String> {
    let mut lines = Vec::new();
    let Some(reference) = report.reference.as_ref().filter(|_| !report.verdict.is_too_noisy) else {
        return lines;
    };
    for metric in workload.workload.compared_metrics() {
        let all = workload.comparisons.iter().filter(|one| {
            one.metric == metric && metric != workload.metric && one.other == *reference
        });
        let (shown, equal): (Vec<&Comparison>, Vec<&Comparison>) =
            all.partition(|one| one.is_shown());
        if equal.iter().any(|one| one.result == ComparisonResult::TooFewRounds) {
            continue;
        }
        let describe = |one: &Comparison| {
            let interval = metric.describe_interval(&one.ratio).unwrap_or_default();
            format!("{} {} ({interval})", one.server, one.describe_result())
        };
        let mut parts: Vec<String> = shown.into_iter().map(describe).collect();
        let equal: Vec<&str> = equal.iter().map(|one| one.server.as_str()).collect();
        if !equal.is_empty() {
            parts.push(format!("no difference is shown for {}", equal.join(", ")));
        }
        if !parts.is_empty() {
            let name = metric.name();
            lines.push(format!("Compared with {reference} by {name}: {}.", parts.join("; ")));
        }
    }
    lines
}

/// Writes the table of all comparisons of a workload.
fn write_comparisons(main: &mut String, report: &CompareReport, workload: &WorkloadReport) {
    let titles = ["server", "compared with", "by", "result", "interval", "rounds"];
    let row = |one: &Comparison| {
        let cells = [
            one.server.clone(),
            one.other.clone(),
            one.metric.name().to_string(),
            one.describe_result(),
            one.metric.describe_interval(&one.ratio).unwrap_or("-".to_string()),
            one.ratio.rounds.to_string(),
        ];
        let cells = cells
            .iter()
            .zip(titles)
            .map(|(cell, title)| format!("<td data-title=\"{title}\">{}</td>", escape_html(cell)));
        format!("<tr>{}</tr>\n", cells.collect::<String>())
    };
    let rows: String = listed_comparisons(report, workload).map(row).collect();
    if rows.is_empty() {
        return;
    }
    let titles = titles.map(|title| format!("<th scope=\"col\">{title}</th>")).concat();
    let _ = writeln!(
        main,
        "<figure class=\"wide comparisons\"><figcaption>Comparisons under {}<small>{}</small></figcaption>\n<table>\n\
         <tr>{titles}</tr>\n{rows}</table></figure>",
        workload.workload.name(),
        escape_html(&comparisons_title(report, workload))
    );
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
    let _ = writeln!(
        main,
        "<figure class=\"wide verdict\"><figcaption>Verdict</figcaption>\n<table>\n{}</table>\n{}</figure>",
        verdict_rows(&report.verdict),
        verdict_facts(report)
    );
}

fn verdict_rows(verdict: &Verdict) -> String {
    let title = |name: &str| format!("<th scope=\"col\">{}</th>", name.to_lowercase());
    let mut rows = String::new();
    if verdict.lines.iter().any(|line| line.winner.is_some()) {
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
            format!("<a href=\"#{}\">{}</a>", load_anchor(workload), escape_html(workload)),
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
    rows
}

/// Returns what a reader asks about a verdict: how sure it is, whether the machine was quiet, what failed, and how to repeat it.
fn verdict_facts(report: &CompareReport) -> String {
    let verdict = &report.verdict;
    let errors = report.workloads.iter().flat_map(|one| &one.servers).any(|one| one.errors > 0);
    let versions = report
        .servers
        .iter()
        .filter_map(|server| Some(format!("{}: {}", server.server, server.version.as_deref()?)));
    let versions: Vec<String> =
        std::iter::once(report.environment.build_summary()).chain(versions).collect();
    // The name of a fact stands before it.
    let without_name = |line: String| {
        let (_, rest) = line.split_once(": ").unwrap_or(("", &line));
        upper_first(rest.trim_end_matches('.'))
    };
    let quiet = match verdict.control_width {
        _ if verdict.is_too_noisy => "too noisy",
        Some(width) if width > NOISY_CONTROL_WIDTH => {
            "noisy, so that only large differences are seen"
        }
        Some(_) => "quiet enough",
        None => "not known",
    };
    let noise = format!("{quiet}: {}. {}", verdict.control, report.environment.load_summary());
    let facts = [
        ("other differences", without_name(other_differences_line(report)), false),
        ("confidence", without_name(confidence_line(report)), false),
        ("noise", upper_first(noise.trim_end_matches('.')), verdict.is_too_noisy),
        ("failed requests", without_name(failures_line(report)), errors),
        ("version, commit", versions.join("; "), report.environment.is_debug_build),
        ("machine, date", report.environment.machine_summary(), false),
        ("repeat with", report.repeat_command.clone(), false),
    ];
    let facts = facts.iter().map(|(name, value, is_bad)| {
        let class = if *is_bad { " class=\"bad\"" } else { "" };
        format!("<dt>{name}</dt><dd{class}>{}</dd>\n", escape_html(value))
    });
    format!("<dl class=\"environment\">\n{}</dl>\n", facts.collect::<String>())
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
        let class = if cell.errors > 0 { " class=\"bad\"" } else { "" };
        let cells: String = match &cell.unable_reason {
            Some(why) => format!(
                "<td>{}</td><td class=\"why\" colspan=\"{}\">{}</td>",
                escape_html(&cell.server),
                row.len().saturating_sub(1),
                escape_html(why)
            ),
            None => row.iter().map(|text| format!("<td>{}</td>", escape_html(text))).collect(),
        };
        format!("<tr{class}>{cells}</tr>\n")
    });
    let lines = workload.servers.iter().flat_map(|server| server_lines(workload, server));
    let lines = lines.chain(busiest_note(workload));
    let lines = lines.map(|line| format!("<p class=\"how\">{}</p>", escape_html(&line)));
    let parts = part_tables(workload).into_iter().map(|table| {
        let rows = table.rows.iter().enumerate().map(|(at, row)| {
            let cell = if at == 0 { "th" } else { "td" };
            let cells = row.iter().map(|text| format!("<{cell}>{}</{cell}>", escape_html(text)));
            format!("<tr>{}</tr>\n", cells.collect::<String>())
        });
        let title = escape_html(&upper_first(&table.title));
        format!("<p class=\"how\">{title}</p>\n<table>\n{}</table>", rows.collect::<String>())
    });
    let _ = writeln!(
        main,
        "<figure class=\"wide\"><figcaption>Data of {}</figcaption>\n<table>\n<tr>{head}</tr>\n{}</table>{}{}</figure>",
        workload.workload.name(),
        rows.collect::<String>(),
        parts.collect::<String>(),
        lines.collect::<String>()
    );
}
