//! The verdict: at most four lines that a reader can quote, before all data.

use serde::{Deserialize, Serialize};

use super::compared_metric::ComparedMetric;
use super::comparisons::Comparison;
use super::report::{ServerWorkloadReport, WorkloadReport};
use super::size_in_words::near_and_far;

/// Most lines with a winner; one more names the rest.
const MAX_WINNER_LINES: usize = 3;

/// What a comparison has shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The lines, at most four. The largest differences come first, and the last line names what is not shown.
    pub lines: Vec<VerdictLine>,
    /// The result under each load, in their order; empty if the machine was too noisy.
    pub loads: Vec<VerdictLine>,
    /// Differences from the reference by other metrics than those that the loads are about, the largest first; empty if the machine
    /// was too noisy.
    #[serde(default)]
    pub other_differences: Vec<String>,
    /// Whether the control differs from the reference, so that no difference is stated.
    pub is_too_noisy: bool,
    /// What the control shows, as a sentence.
    pub control: String,
    /// Upper end of the widest interval of the control by the metric of a load, divided by its lower end; `None` without an interval.
    #[serde(default)]
    pub control_width: Option<f64>,
}

/// One line of the verdict.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VerdictLine {
    /// Name of the workload; `None` if the line is about several.
    pub workload: Option<String>,
    /// The best server; `None` if the line names what is not shown.
    pub winner: Option<String>,
    /// The difference in words, such as `31 % more requests/s than single`.
    pub statement: String,
    /// Its confidence interval in words, such as `18 % to 45 %`.
    pub interval: Option<String>,
    /// Servers from which the winner is not told apart.
    pub not_told_apart_from: Vec<String>,
}

impl VerdictLine {
    /// Returns the result under its load as a sentence.
    pub(crate) fn sentence(&self) -> String {
        let interval = self.interval.as_ref().map(|interval| format!(" ({interval})"));
        let equal = match self.not_told_apart_from.is_empty() {
            true => String::new(),
            false => format!("; not told apart from {}", self.not_told_apart_from.join(", ")),
        };
        match &self.winner {
            Some(winner) => format!(
                "{winner} is best: {}{}{equal}",
                self.statement,
                interval.unwrap_or_default()
            ),
            None => self.statement.clone(),
        }
    }

    fn note(statement: String) -> VerdictLine {
        VerdictLine {
            workload: None,
            winner: None,
            statement,
            interval: None,
            not_told_apart_from: Vec::new(),
        }
    }
}

/// The best server of a workload, and the size of its lead on a log scale: that of the end of the interval nearer to 1.
struct Winner {
    line: VerdictLine,
    lead: f64,
}

impl Verdict {
    /// Judges the workloads; `rounds_needed` is the fewest rounds for a statement.
    pub(crate) fn of_workloads(
        workloads: &[WorkloadReport],
        reference: Option<&str>,
        rounds_needed: usize,
    ) -> Verdict {
        let controls = || workloads.iter().flat_map(|w| w.control.iter().map(move |c| (w, c)));
        let control = describe_control(controls(), reference, rounds_needed);
        let is_too_noisy = controls().any(|(_, one)| one.is_shown());
        if is_too_noisy {
            let why = "no difference is stated: this machine was too noisy, see the control";
            let lines = vec![VerdictLine::note(why.to_string())];
            let (loads, other_differences) = (Vec::new(), Vec::new());
            let control_width = None;
            return Verdict {
                lines,
                loads,
                other_differences,
                is_too_noisy,
                control,
                control_width,
            };
        }
        let winners: Vec<Winner> =
            workloads.iter().filter_map(|workload| find_winner(workload, reference?)).collect();
        let load = |workload: &WorkloadReport| {
            let name = Some(workload.workload.name());
            let won = winners.iter().find(|winner| winner.line.workload.as_deref() == name);
            let open = || VerdictLine {
                workload: name.map(str::to_string),
                ..VerdictLine::note(describe_open(workload, rounds_needed))
            };
            won.map_or_else(open, |winner| winner.line.clone())
        };
        let compared = workloads.iter().filter(|workload| !workload.comparisons.is_empty());
        let loads = compared.map(load).collect();
        let lines = choose_lines(workloads, winners, rounds_needed);
        let other_differences =
            reference.map(|name| other_differences(workloads, name)).unwrap_or_default();
        let control_width =
            widest_control(&controls().collect::<Vec<_>>()).map(|(width, ..)| width.exp());
        Verdict { lines, loads, other_differences, is_too_noisy, control, control_width }
    }
}

/// Returns the size of a shown difference on a log scale; 0 without an interval.
fn shown_size(comparison: &Comparison) -> f64 {
    comparison.ratio.interval().map_or(0.0, |ends| near_and_far(ends).0.ln().abs())
}

/// Returns what is shown by other metrics than those that the loads are about, the largest difference first.
fn other_differences(workloads: &[WorkloadReport], reference: &str) -> Vec<String> {
    let mut shown: Vec<(f64, String)> = Vec::new();
    for workload in workloads {
        let name = workload.workload.name();
        let others = workload.comparisons.iter().filter(|one| {
            one.metric != workload.metric && one.other == reference && one.is_shown()
        });
        shown.extend(others.map(|one| (shown_size(one), format!("under {name}, {}", one.text))));
    }
    shown.sort_by(|a, b| b.0.total_cmp(&a.0));
    shown.into_iter().map(|(_, text)| text).collect()
}

/// Says why no winner is stated under a load.
fn describe_open(workload: &WorkloadReport, rounds_needed: usize) -> String {
    match has_too_few_rounds(workload, rounds_needed) {
        true => format!(
            "{} rounds are too few to state a difference: {rounds_needed} are needed",
            workload.complete_rounds()
        ),
        false => format!("no difference in {} is shown", workload.metric.name()),
    }
}

fn has_too_few_rounds(workload: &WorkloadReport, rounds_needed: usize) -> bool {
    workload.comparisons.iter().all(|one| one.ratio.rounds < rounds_needed)
}

/// Returns at most four lines: the largest differences, then the rest in one line.
fn choose_lines(
    workloads: &[WorkloadReport],
    mut winners: Vec<Winner>,
    rounds_needed: usize,
) -> Vec<VerdictLine> {
    winners.sort_by(|a, b| b.lead.total_cmp(&a.lead));
    let has_winner = |workload: &WorkloadReport| {
        let name = workload.workload.name();
        winners.iter().any(|winner| winner.line.workload.as_deref() == Some(name))
    };
    let compared: Vec<&WorkloadReport> =
        workloads.iter().filter(|workload| !workload.comparisons.is_empty()).collect();
    let open: Vec<&WorkloadReport> =
        compared.iter().filter(|workload| !has_winner(workload)).copied().collect();
    let further: Vec<String> = winners.iter().skip(MAX_WINNER_LINES).map(short_line).collect();
    let mut rest = Vec::new();
    if !further.is_empty() {
        rest.push(format!("also: {}", further.join(", ")));
    }
    let is_short = |workload: &&&WorkloadReport| has_too_few_rounds(workload, rounds_needed);
    let names = |some: Vec<&&WorkloadReport>| {
        some.iter().map(|workload| workload.workload.name()).collect::<Vec<_>>().join(", ")
    };
    let (short, equal): (Vec<&&WorkloadReport>, Vec<&&WorkloadReport>) =
        open.iter().partition(is_short);
    if !equal.is_empty() {
        let names: Vec<String> = equal
            .iter()
            .map(|workload| format!("{} ({})", workload.workload.name(), workload.metric.name()))
            .collect();
        rest.push(format!("no difference is shown under {}", names.join(", ")));
    }
    if !short.is_empty() {
        let most = short.iter().map(|workload| workload.complete_rounds()).max().unwrap_or(0);
        rest.push(format!(
            "{most} rounds are too few to state a difference under {}: {rounds_needed} are needed",
            names(short)
        ));
    }
    if compared.is_empty() {
        rest.push("there is nothing to compare".to_string());
    }
    let mut lines: Vec<VerdictLine> =
        winners.into_iter().take(MAX_WINNER_LINES).map(|winner| winner.line).collect();
    if !rest.is_empty() {
        lines.push(VerdictLine::note(rest.join("; ")));
    }
    lines
}

fn short_line(winner: &Winner) -> String {
    let line = &winner.line;
    let (workload, name) = (line.workload.as_deref(), line.winner.as_deref());
    format!("{} {} ({})", workload.unwrap_or_default(), name.unwrap_or_default(), line.statement)
}

/// Returns the best server if it is shown to be better than the reference, or than another one.
fn find_winner(report: &WorkloadReport, reference: &str) -> Option<Winner> {
    let metric = report.metric;
    let has_value =
        |one: &ServerWorkloadReport| one.samples.iter().any(|s| s.value(metric).is_some());
    let measured = report.servers.iter().filter(|one| !one.is_control && has_value(one));
    let key = |value: f64| if metric.is_higher_better() { value } else { -value };
    let best = measured.max_by(|a, b| {
        let [a, b] = [a, b].map(|one| key(one.figure(metric).median));
        a.total_cmp(&b)
    })?;
    // Comparisons with the best one, seen from it: name of the other, ratio and result.
    let with_best: Vec<(&str, Comparison)> = report
        .comparisons
        .iter()
        .filter(|one| one.metric == metric)
        .filter_map(|one| {
            let other = match &best.server {
                name if *name == one.server => &one.other,
                name if *name == one.other => &one.server,
                _ => return None,
            };
            let is_behind = report.server_report(other)?;
            let error_rate = report.error_rate_of_interval;
            let seen = Comparison::of_servers(metric, best, is_behind, error_rate)?;
            Some((other.as_str(), seen))
        })
        .collect();
    let is_ahead = |seen: &Comparison| seen.is_shown() && metric.is_better(seen.ratio.median);
    let ahead = || with_best.iter().filter(|(_, seen)| is_ahead(seen));
    let (other, seen) =
        ahead().find(|(other, _)| *other == reference).or_else(|| ahead().next())?;
    Some(Winner {
        lead: shown_size(seen),
        line: winner_line(report, metric, &best.server, other, seen, &with_best),
    })
}

fn winner_line(
    report: &WorkloadReport,
    metric: ComparedMetric,
    winner: &str,
    other: &str,
    seen: &Comparison,
    with_best: &[(&str, Comparison)],
) -> VerdictLine {
    let equal = with_best.iter().filter(|(_, seen)| !seen.is_shown());
    VerdictLine {
        workload: Some(report.workload.name().to_string()),
        winner: Some(winner.to_string()),
        statement: metric.describe_stated(&seen.ratio, other),
        interval: metric.describe_interval(&seen.ratio),
        not_told_apart_from: equal.map(|(name, _)| name.to_string()).collect(),
    }
}

fn describe_control<'a>(
    controls: impl Iterator<Item = (&'a WorkloadReport, &'a Comparison)>,
    reference: Option<&str>,
    rounds_needed: usize,
) -> String {
    let Some(reference) = reference else { return "there is no control".to_string() };
    let controls: Vec<(&WorkloadReport, &Comparison)> = controls.collect();
    let different: Vec<String> = controls
        .iter()
        .filter(|(_, one)| one.is_shown())
        .map(|(workload, one)| format!("under {}: {}", workload.workload.name(), one.text))
        .collect();
    if !different.is_empty() {
        return format!(
            "{reference} differs from itself when it is measured twice, so any other difference may be noise too; {}. \
             Stop what else runs on this machine, or use longer measurements",
            different.join("; ")
        );
    }
    if !controls.iter().any(|(_, one)| one.ratio.interval().is_some()) {
        return format!(
            "{reference} was measured twice, in fewer than the {rounds_needed} rounds that can show a difference"
        );
    }
    format!(
        "{reference} was measured twice, and does not differ from itself{}",
        describe_widest(&controls).unwrap_or_default()
    )
}

/// Returns the control with the widest interval by the metric of a load, and this width on a log scale.
fn widest_control<'a>(
    controls: &[(&'a WorkloadReport, &'a Comparison)],
) -> Option<(f64, &'a WorkloadReport, &'a Comparison)> {
    let main = controls.iter().filter(|(workload, one)| one.metric == workload.metric);
    let with_width = main.filter_map(|(workload, one)| {
        let (low, high) = one.ratio.interval()?;
        Some(((high / low).ln(), *workload, *one))
    });
    with_width.max_by(|a, b| a.0.total_cmp(&b.0))
}

/// Says how wide the interval of the control is where it is widest: a smaller difference could not be seen there.
fn describe_widest(controls: &[(&WorkloadReport, &Comparison)]) -> Option<String> {
    let (_, workload, widest) = widest_control(controls).filter(|(width, ..)| *width > 0.0)?;
    Some(format!(
        "; the widest of its intervals is {} {} under {}, and no smaller difference can be seen there",
        widest.metric.name(),
        widest.metric.describe_interval(&widest.ratio)?,
        workload.workload.name()
    ))
}
