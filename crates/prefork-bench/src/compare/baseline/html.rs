//! The changes since a baseline as HTML.

use std::fmt::Write;

use super::super::compared_metric::ComparedMetric;
use super::super::report::plots::format_tick_ratio;
use super::super::size_in_words::format_ratio;
use super::changes::{BaselineChange, BaselineReport, ChangeResult};
use super::text::{CHANGE_TITLES, change_row, heading, notes, upper_first};
use crate::report_format::bar_chart::{BarAxis, ChartBar, bar_chart};
use crate::report_format::html_page::escape_html;
use crate::report_format::plot_scale::PlotScale;

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
         <table>\n<tr>{}</tr>\n{rows}</table>\n<ul>\n{}</ul></figure>\n<div class=\"plots\">\n{}</div>",
        escape_html(&heading(report)),
        lines.collect::<String>(),
        titles.concat(),
        notes.collect::<String>(),
        change_charts(report)
    );
    section
}

/// Plots the changes by metric: the deciding ratio of this run to the baseline, with its interval.
fn change_charts(report: &BaselineReport) -> String {
    let mut metrics: Vec<ComparedMetric> = Vec::new();
    for change in &report.changes {
        if !metrics.contains(&change.metric) {
            metrics.push(change.metric);
        }
    }
    metrics.into_iter().filter_map(|metric| change_chart(report, metric)).collect()
}

fn change_chart(report: &BaselineReport, metric: ComparedMetric) -> Option<String> {
    let bar = |change: &BaselineChange| {
        let ratio = change.deciding_ratio();
        let class = match change.result {
            ChangeResult::Worse => "worse",
            ChangeResult::Better => "better",
            _ => "same",
        };
        ChartBar {
            label: format!("{}, {}", change.workload, change.server),
            class: class.to_string(),
            value: ratio.median,
            interval: ratio.interval(),
            text: match change.result {
                ChangeResult::Worse => format!("{} worse", format_ratio(ratio.median)),
                ChangeResult::Better => format!("{} better", format_ratio(ratio.median)),
                _ => format_ratio(ratio.median),
            },
        }
    };
    let bars: Vec<ChartBar> =
        report.changes.iter().filter(|change| change.metric == metric).map(bar).collect();
    let ends = bars.iter().flat_map(|bar| {
        let (low, high) = bar.interval.unwrap_or((bar.value, bar.value));
        [low, high, bar.value]
    });
    let axis = BarAxis {
        scale: PlotScale::ratios(ends),
        label: &format_tick_ratio,
        baseline: Some(1.0),
        has_dots: true,
    };
    let name = metric.name();
    let about = format!("Ratio of {name} in this run to that in the baseline");
    let caption = format!(
        "{name}, this run to the baseline: {}<small>dashed: no change; ratios to the reference where the table says so</small>",
        metric.direction()
    );
    (!bars.is_empty()).then(|| {
        format!(
            "<figure><figcaption>{caption}</figcaption>{}</figure>\n",
            bar_chart(&about, &axis, &bars)
        )
    })
}

fn table_row(report: &BaselineReport, change: &BaselineChange) -> String {
    // A phone shows the titles before the cells.
    let cells = change_row(report, change).into_iter().zip(CHANGE_TITLES).map(|(text, title)| {
        format!("<td data-title=\"{}\">{}</td>", title.to_lowercase(), escape_html(&text))
    });
    let class = match change.result {
        ChangeResult::Worse => " class=\"worse\"",
        ChangeResult::Better => " class=\"better\"",
        _ => "",
    };
    format!("<tr{class}>{}</tr>\n", cells.collect::<String>())
}
