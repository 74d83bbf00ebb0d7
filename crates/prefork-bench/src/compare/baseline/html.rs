//! The changes since a baseline as HTML.

use std::fmt::Write;

use super::changes::{BaselineChange, BaselineReport, ChangeResult};
use super::text::{CHANGE_TITLES, change_row, heading, notes, upper_first};
use crate::report_format::html_page::escape_html;

/// Returns the section about the baseline.
pub(crate) fn baseline_section(report: &BaselineReport) -> String {
    let lines = report.lines.iter().map(|line| {
        let class =
            if report.is_worse && line.starts_with("worse") { " class=\"bad\"" } else { "" };
        format!("<p{class}>{}</p>\n", escape_html(&upper_first(line)))
    });
    let titles =
        CHANGE_TITLES.map(|name| format!("<th scope=\"col\">{}</th>", name.to_lowercase()));
    let rows: String = report.changes.iter().map(|change| table_row(report, change)).collect();
    let notes = notes(report);
    let notes = notes.iter().map(|note| {
        format!("<li>{}</li>\n", escape_html(&upper_first(note.trim_end_matches('.'))))
    });
    let mut section = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(
        section,
        "<figure class=\"wide since\"><figcaption>Since the baseline<small>{}</small></figcaption>\n{}\
         <table>\n<tr>{}</tr>\n{rows}</table>\n<ul>\n{}</ul></figure>",
        escape_html(&heading(report)),
        lines.collect::<String>(),
        titles.concat(),
        notes.collect::<String>()
    );
    section
}

fn table_row(report: &BaselineReport, change: &BaselineChange) -> String {
    let cells = change_row(report, change).map(|text| format!("<td>{}</td>", escape_html(&text)));
    let class = match change.result {
        ChangeResult::Worse => " class=\"worse\"",
        ChangeResult::Better => " class=\"better\"",
        _ => "",
    };
    format!("<tr{class}>{}</tr>\n", cells.concat())
}
