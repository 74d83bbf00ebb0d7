//! The changes since a baseline as sentences and as text for a terminal.

use std::fmt::Write;

use super::changes::{
    BaselineChange, BaselineReport, ChangeBasis, ChangeResult, ChangeSummary, describe_ratio,
};
use crate::report_format::text_table::write_left_table;

/// Most changes that a sentence lists.
const MAX_LISTED_CHANGES: usize = 4;
/// Titles of the columns of changes.
pub(super) const CHANGE_TITLES: [&str; 9] =
    ["LOAD", "SERVER", "METRIC", "BEFORE", "NOW", "CHANGE", "INTERVAL", "BY", "RESULT"];

/// Returns the name of a result in tables.
pub(super) fn result_name(result: ChangeResult) -> &'static str {
    match result {
        ChangeResult::Worse => "WORSE",
        ChangeResult::Better => "better",
        ChangeResult::NotShown => "no change shown",
        ChangeResult::TooFewRounds => "too few rounds",
        ChangeResult::NotJudged => "not judged",
    }
}

/// Returns the cells of a change.
pub(super) fn change_row(report: &BaselineReport, change: &BaselineChange) -> [String; 9] {
    let (size, interval) = change.describe();
    let by = match (change.basis, &report.reference) {
        (ChangeBasis::RatioToReference, Some(reference)) => format!("ratio to {reference}"),
        _ => "value".to_string(),
    };
    [
        change.workload.clone(),
        change.server.clone(),
        change.metric.name().to_string(),
        change.metric.format_value(change.before),
        change.metric.format_value(change.now),
        size,
        interval,
        by,
        result_name(change.result).to_string(),
    ]
}

/// Describes a change in a sentence: both the ratio to the reference and the value, and which of them decides.
pub(super) fn describe_change(change: &BaselineChange, reference: Option<&str>) -> String {
    let metric = change.metric;
    let [before, now] = [change.before, change.now].map(|value| metric.format_value(value));
    let described = |(size, interval): (String, String)| format!("{size} ({interval})");
    let value = described(describe_ratio(metric, &change.value));
    let name = format!("{} under {}: {}", change.server, change.workload, metric.name());
    match (&change.relative, reference) {
        (Some(relative), Some(reference)) => {
            let relative = described(describe_ratio(metric, relative));
            match change.basis {
                ChangeBasis::RatioToReference => format!(
                    "{name} {relative} by its ratio to {reference}; {before} became {now}, {value}"
                ),
                ChangeBasis::Value => format!(
                    "{name} {value}, {before} became {now}; {relative} by its ratio to {reference}"
                ),
            }
        }
        _ => format!("{name} {value}, {before} became {now}"),
    }
}

/// Returns the result in a few sentences.
pub(super) fn summarize(changes: &[BaselineChange], known: &ChangeSummary<'_>) -> Vec<String> {
    let of = |result| changes.iter().filter(move |change| change.result == result);
    let mut lines = Vec::new();
    if changes.is_empty() {
        lines.push("nothing was measured in both runs".to_string());
    } else if known.has_other_load {
        lines.push("no change is stated: the loads differ, see below".to_string());
    } else if known.is_noisy {
        let which = match (known.is_noisy_now, known.is_noisy_before) {
            (true, _) => "in this run the reference differs from itself",
            (_, true) => "in the baseline the reference differs from itself",
            _ => "the control has changed against the reference, which is the same server",
        };
        lines.push(format!("no change is stated: the machine is too noisy, {which}"));
    }
    for (result, name) in [(ChangeResult::Worse, "worse"), (ChangeResult::Better, "better")] {
        lines.extend(list_changes(name, of(result).collect()));
    }
    let (none, few) = (of(ChangeResult::NotShown).count(), of(ChangeResult::TooFewRounds).count());
    if none > 0 {
        lines.push(format!("no change is shown in {none} of {} comparisons", changes.len()));
    }
    if few > 0 {
        lines.push(format!(
            "{few} of {} comparisons have too few rounds: at least {} in each run are needed",
            changes.len(),
            known.rounds_needed
        ));
    }
    let is_of_reference = |change: &&BaselineChange| known.reference == Some(&change.server);
    let open = of(ChangeResult::NotJudged).filter(is_of_reference).count();
    lines.extend(describe_reference(changes, known));
    if let (Some(reference), true) =
        (known.reference, open > 0 && !known.is_noisy && !known.has_other_load)
    {
        lines.push(format!(
            "{open} of {} comparisons are not judged: they are values of {reference}, to which the others are compared",
            changes.len()
        ));
    }
    lines
}

fn list_changes(name: &str, mut changes: Vec<&BaselineChange>) -> Option<String> {
    // The largest first.
    changes.sort_by(|a, b| {
        let size = |change: &BaselineChange| change.deciding_ratio().median.ln().abs();
        size(b).total_cmp(&size(a))
    });
    let listed: Vec<String> = changes
        .iter()
        .take(MAX_LISTED_CHANGES)
        .map(|change| {
            let (size, interval) = change.describe();
            let metric = change.metric.name();
            format!("{} under {}: {metric} {size} ({interval})", change.server, change.workload)
        })
        .collect();
    let more = changes.len().saturating_sub(MAX_LISTED_CHANGES);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    (!listed.is_empty()).then(|| format!("{name}: {}{more}", listed.join("; ")))
}

/// Says what the values of the reference show: a change of the machine or of the reference, which cannot be told apart.
fn describe_reference(changes: &[BaselineChange], known: &ChangeSummary<'_>) -> Option<String> {
    let reference = known.reference?;
    if known.has_other_load || known.is_noisy {
        return None;
    }
    if known.has_other_machine {
        return Some(
            "values that depend on the speed of the machine are not judged: it is another one, see below".to_string(),
        );
    }
    let changed: Vec<String> = changes
        .iter()
        .filter(|change| change.server == reference && change.result == ChangeResult::NotJudged)
        .filter(|change| change.value.shows_change())
        .map(|change| {
            let (size, interval) = describe_ratio(change.metric, &change.value);
            format!("{} {size} under {} ({interval})", change.metric.name(), change.workload)
        })
        .take(MAX_LISTED_CHANGES)
        .collect();
    (!changed.is_empty()).then(|| {
        format!(
            "{reference} itself, to which the others are compared: {}. Either it has changed or the machine; \
             to know which, compare with a server that has not (--reference)",
            changed.join("; ")
        )
    })
}

/// Returns the sentences before the table: which runs are compared.
pub(super) fn heading(report: &BaselineReport) -> String {
    format!("{} of {}, {}", report.file, report.date, report.version)
}

/// Returns notes about what differs besides the servers, and how sure the intervals are.
pub(super) fn notes(report: &BaselineReport) -> Vec<String> {
    let differences = report.differences.iter().map(|line| format!("WARNING: {line}"));
    let missing = report.missing.iter().cloned();
    let confidence = format!(
        "{:.0} % confidence that all intervals of this comparison contain the true ratios; a change is stated if its \
         interval excludes 1, which takes at least {} rounds in each run. The intervals know the noise within the two \
         runs only.",
        report.confidence_level * 100.0,
        report.rounds_needed
    );
    differences.chain(missing).chain([confidence]).collect()
}

/// Writes the comparison with a baseline.
pub(crate) fn write_baseline(text: &mut String, report: &BaselineReport) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "\nSince the baseline, {}", heading(report));
    for line in &report.lines {
        let _ = writeln!(text, "{}", upper_first(line));
    }
    let titles = CHANGE_TITLES.map(str::to_string);
    let rows = report.changes.iter().map(|change| change_row(report, change));
    let rows: Vec<[String; 9]> = std::iter::once(titles).chain(rows).collect();
    if rows.len() > 1 {
        write_left_table(text, &rows);
    }
    for note in notes(report) {
        let _ = writeln!(text, "{}", upper_first(note.trim_end_matches('.')));
    }
}

pub(super) use super::super::report::text::upper_first;
