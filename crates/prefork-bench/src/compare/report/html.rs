//! A comparison as one page that needs nothing else. Pure.

use std::fmt::Write;

use super::text::{columns, head, notes, row};
use super::{Cell, Report, WorkloadReport};
use crate::load::report::html::shell;
use crate::load::report::text::{count, time};
use crate::report_format::svg_plot::{self as plot, Bar, escape};

/// The whole page.
pub(crate) fn page(report: &Report) -> String {
    let mut main =
        format!("<h1>prefork compare</h1>\n<p class=\"how\">{}.</p>\n", escape(&head(report)));
    // Writing to a string cannot fail.
    if let Some(partial) = &report.partial {
        let _ =
            writeln!(main, "<p class=\"bad\"><strong>Partial: {}.</strong></p>", escape(partial));
    }
    for why in &report.broken {
        let _ = writeln!(main, "<p class=\"bad\">Not measured: {}</p>", escape(why));
    }
    main.push_str("<div class=\"plots\">\n");
    for workload in &report.workloads {
        if let Some(bars) = bars(workload) {
            let what = if workload.workload.is_about_latency() {
                "99th percentile, shorter is better"
            } else {
                "requests/s"
            };
            let name = workload.workload.name();
            let _ =
                writeln!(main, "<figure><figcaption>{name}: {what}</figcaption>{bars}</figure>");
        }
    }
    main.push_str("</div>\n");
    list(&mut main, "What differs, and what does not", &report.findings);
    for workload in &report.workloads {
        table(&mut main, workload);
    }
    list(&mut main, "How to read this", &notes(report));
    shell("prefork compare", &main, report.version)
}

fn list(main: &mut String, title: &str, lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    let lines: String = lines.iter().map(|line| format!("<li>{}</li>\n", escape(line))).collect();
    let _ = writeln!(main, "<h2>{title}</h2>\n<ul>\n{lines}</ul>");
}

/// A bar for each contestant, with the range of its rounds; `None` if there are none.
fn bars(report: &WorkloadReport) -> Option<String> {
    let workload = report.workload;
    let measured: Vec<&Cell> =
        report.contestants.iter().filter(|cell| !cell.samples.is_empty()).collect();
    let most = measured.iter().map(|cell| cell.figure(workload).max).fold(0.0, f64::max);
    let bar = |cell: &&Cell| {
        let figure = cell.figure(workload);
        let show = if workload.is_about_latency() { time } else { count };
        Bar {
            label: cell.contestant.clone(),
            part: figure.median / most,
            range: Some((figure.min / most, figure.max / most)),
            value: show(figure.median),
        }
    };
    let about = format!("{}: {}", workload.name(), report.about);
    let rows: Vec<Bar> = measured.iter().map(bar).collect();
    (most > 0.0).then(|| plot::bars(&about, &rows))
}

fn table(main: &mut String, report: &WorkloadReport) {
    let head: String = columns(report).iter().map(|name| format!("<th>{name}</th>")).collect();
    let rows = report.contestants.iter().map(|cell| {
        let cells = row(report, cell).map(|text| format!("<td>{}</td>", escape(&text))).concat();
        let failed = match (cell.unable, cell.errors) {
            (true, _) => "<td>has no such path</td>".to_string(),
            (false, 0) => String::new(),
            (false, n) => format!("<td class=\"bad\">{n} failed</td>"),
        };
        format!("<tr>{cells}{failed}</tr>\n")
    });
    let _ = writeln!(
        main,
        "<figure class=\"wide\"><figcaption>{}</figcaption><p class=\"how\">{}</p>\n\
         <table>\n<tr>{head}</tr>\n{}</table></figure>",
        report.workload.name(),
        escape(report.about),
        rows.collect::<String>()
    );
}
