//! The changes between two runs: each server under each workload by each metric, and what they say together.

use serde::Serialize;

use super::super::compared_metric::ComparedMetric;
use super::environment_differences::{EnvironmentDifferences, find_differences};
use super::saved_report::{SavedReport, SavedServer, SavedWorkload};
use super::unpaired_ratio::{UnpairedRatio, rounds_needed};
use crate::report_format::html_page::html_page;
use crate::report_format::statistics::median_min_max;
use tokio_prefork::exit;

/// How often a comparison with a baseline may be wrong in anything that it states: in one of 20.
const BASELINE_ERROR_RATE: f64 = 0.05;
/// Exit status if anything got worse since the baseline.
const EXIT_WORSE: u8 = 2;

/// What changed since an earlier run.
#[derive(Debug, Clone, Serialize)]
pub struct BaselineReport {
    /// File of the earlier report.
    pub file: String,
    /// When the earlier run ended, in UTC.
    pub date: String,
    /// Version of the program that made the earlier run, with its commit if known.
    pub version: String,
    /// Command line of the earlier run.
    pub command: String,
    /// The result in a few sentences: what got worse, what got better, and what is not shown.
    pub lines: Vec<String>,
    /// Whether anything got worse beyond its interval.
    pub is_worse: bool,
    /// Whether a control changed, or differed from its reference in one of the runs, so that no change is stated.
    pub is_too_noisy: bool,
    /// Whether the loads differ, so that no change is stated.
    pub has_other_load: bool,
    /// Reference server of both runs, by which values are divided. `None` if the runs have different ones.
    pub reference: Option<String>,
    /// Differences of machine, kernel, versions and plan.
    pub differences: Vec<String>,
    /// What only one of the runs has measured.
    pub missing: Vec<String>,
    /// How often all intervals contain the true ratios, at least.
    pub confidence_level: f64,
    /// Error rate of each interval.
    pub error_rate_of_interval: f64,
    /// Fewest rounds of each run from which a change can be stated.
    pub rounds_needed: usize,
    /// The changes.
    pub changes: Vec<BaselineChange>,
    /// The same for the control, which is the reference, measured once more.
    pub control: Vec<BaselineChange>,
}

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangeBasis {
    /// The values as they are.
    Value,
    /// The ratio to the reference in the same round.
    RatioToReference,
}

/// What a change means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangeResult {
    /// It got worse: the interval excludes 1.
    Worse,
    /// It got better: the interval excludes 1.
    Better,
    /// The interval contains 1.
    NotShown,
    /// There are too few rounds for an interval.
    TooFewRounds,
    /// The runs cannot be compared in this, for the reason that the lines state.
    NotJudged,
}

/// One server under one workload by one metric.
#[derive(Debug, Clone, Serialize)]
pub struct BaselineChange {
    /// Name of the workload.
    pub workload: String,
    /// Name of the server.
    pub server: String,
    /// What is compared.
    pub metric: ComparedMetric,
    /// Median of the earlier run.
    pub before: f64,
    /// Median of this run.
    pub now: f64,
    /// Ratio of the values of this run to those of the earlier one.
    pub value: UnpairedRatio,
    /// The same of the ratios to the reference; `None` for the reference, and without a common one.
    pub relative: Option<UnpairedRatio>,
    /// Which of the two decides.
    pub basis: ChangeBasis,
    /// What it means.
    pub result: ChangeResult,
    /// The change as a sentence.
    pub text: String,
}

impl BaselineChange {
    /// Returns the ratio that decides.
    pub(crate) fn deciding_ratio(&self) -> &UnpairedRatio {
        self.relative
            .as_ref()
            .filter(|_| self.basis == ChangeBasis::RatioToReference)
            .unwrap_or(&self.value)
    }

    /// Describes the deciding change, such as `14 % fewer`; and its interval, `-` without one.
    pub(crate) fn describe(&self) -> (String, String) {
        describe_ratio(self.metric, self.deciding_ratio())
    }
}

/// Describes size and interval of a change.
pub(crate) fn describe_ratio(metric: ComparedMetric, ratio: &UnpairedRatio) -> (String, String) {
    let interval = ratio.interval().map(|ends| metric.describe_ends(ratio.median, ends));
    let size = match ratio.interval().filter(|_| ratio.shows_change()) {
        Some(ends) => metric.describe_stated_size(ratio.median, ends),
        None => metric.describe_size(ratio.median),
    };
    (size, interval.unwrap_or("-".to_string()))
}

/// What is compared: a server under a workload in both runs.
struct ComparedPair<'a> {
    workload: &'a SavedWorkload,
    before_workload: &'a SavedWorkload,
    now: &'a SavedServer,
    before: &'a SavedServer,
    metric: ComparedMetric,
}

/// What holds for all comparisons of two runs.
struct ChangeRules<'a> {
    reference: Option<&'a str>,
    error_rate: f64,
    differences: EnvironmentDifferences,
    is_noisy: bool,
    /// Whether the reference is the only server, so that its values are all that there is to judge.
    has_one_server: bool,
}

impl BaselineReport {
    /// Returns the exit status: 2 if anything got worse, 1 if nothing could be compared, else 0.
    pub fn exit_status(&self) -> u8 {
        match () {
            () if self.is_worse => EXIT_WORSE,
            () if !self.is_comparable() => exit::FAILURE,
            () => exit::OK,
        }
    }

    /// Returns whether the machine was quiet enough and the loads were the same.
    pub(crate) fn is_comparable(&self) -> bool {
        !self.is_too_noisy && !self.has_other_load && !self.changes.is_empty()
    }

    /// Formats the comparison as text for a terminal.
    pub fn to_table(&self) -> String {
        let mut text = String::new();
        super::text::write_baseline(&mut text, self);
        text.trim_start().to_string()
    }

    /// Formats the comparison as JSON.
    pub fn to_json(&self) -> String {
        // Strings, numbers and lists of them always have a JSON form.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// Formats the comparison as one self-contained HTML page.
    pub fn to_html(&self) -> String {
        let main = format!("<h1>prefork compare</h1>\n{}", super::html::baseline_section(self));
        html_page("prefork compare", &main, env!("CARGO_PKG_VERSION"))
    }

    /// Compares a run with an earlier one, which was read from `file`.
    pub fn compare(now: &SavedReport, before: &SavedReport, file: &str) -> BaselineReport {
        let pairs = common_pairs(now, before);
        let is_control = |pair: &&ComparedPair<'_>| pair.now.is_control;
        // Each pair has up to two intervals: of the values, and of the ratios.
        let looks = now.confidence.looks.max(1) * before.confidence.looks.max(1);
        let error_rate = BASELINE_ERROR_RATE / (2 * pairs.len().max(1) * looks) as f64;
        let reference =
            now.reference.as_deref().filter(|name| before.reference.as_deref() == Some(name));
        let mut rules = ChangeRules {
            reference,
            error_rate,
            differences: find_differences(now, before),
            is_noisy: now.verdict.is_too_noisy || before.verdict.is_too_noisy,
            has_one_server: pairs
                .iter()
                .all(|pair| pair.now.is_control || Some(pair.now.server.as_str()) == reference),
        };
        let control: Vec<BaselineChange> =
            pairs.iter().filter(is_control).filter_map(|pair| rules.compare_pair(pair)).collect();
        // The control is the reference: if their ratio has changed, so may any other by chance.
        rules.is_noisy |=
            control.iter().any(|change| change.relative.is_some_and(|r| r.shows_change()));
        let changes: Vec<BaselineChange> = pairs
            .iter()
            .filter(|pair| !pair.now.is_control)
            .filter_map(|pair| rules.compare_pair(pair))
            .collect();
        let commit =
            before.environment.commit.as_deref().map(|commit| format!(", commit {commit}"));
        BaselineReport {
            file: file.to_string(),
            date: before.environment.date.clone(),
            version: format!(
                "prefork {}{}",
                before.environment.version,
                commit.unwrap_or_default()
            ),
            command: before.environment.command.clone(),
            lines: super::text::summarize(&changes, &rules.summary(now, before)),
            is_worse: changes.iter().any(|change| change.result == ChangeResult::Worse),
            is_too_noisy: rules.is_noisy,
            has_other_load: rules.differences.has_other_load,
            reference: reference.map(str::to_string),
            differences: rules.differences.lines,
            missing: find_missing(now, before),
            confidence_level: 1.0 - BASELINE_ERROR_RATE,
            error_rate_of_interval: error_rate,
            rounds_needed: rounds_needed(error_rate),
            changes,
            control,
        }
    }
}

/// What the sentences need to know besides the changes.
pub(crate) struct ChangeSummary<'a> {
    pub(crate) reference: Option<&'a str>,
    pub(crate) is_noisy_now: bool,
    pub(crate) is_noisy_before: bool,
    pub(crate) is_noisy: bool,
    pub(crate) has_other_machine: bool,
    pub(crate) has_other_load: bool,
    pub(crate) rounds_needed: usize,
}

impl<'a> ChangeRules<'a> {
    fn summary(&self, now: &SavedReport, before: &SavedReport) -> ChangeSummary<'a> {
        ChangeSummary {
            reference: self.reference,
            is_noisy_now: now.verdict.is_too_noisy,
            is_noisy_before: before.verdict.is_too_noisy,
            is_noisy: self.is_noisy,
            has_other_machine: self.differences.has_other_machine,
            has_other_load: self.differences.has_other_load,
            rounds_needed: rounds_needed(self.error_rate),
        }
    }

    fn compare_pair(&self, pair: &ComparedPair<'_>) -> Option<BaselineChange> {
        let metric = pair.metric;
        let (now, before) = (values(pair.now, metric), values(pair.before, metric));
        let value = UnpairedRatio::from_values(&now, &before, self.error_rate)?;
        let relative = self.relative(pair);
        let basis = match relative {
            Some(_) if metric.depends_on_speed() => ChangeBasis::RatioToReference,
            _ => ChangeBasis::Value,
        };
        let [before, now] = [before, now].map(|values| median_min_max(&values)[0]);
        let mut change = BaselineChange {
            workload: pair.workload.name().to_string(),
            server: pair.now.server.clone(),
            metric,
            before,
            now,
            value,
            relative,
            basis,
            result: ChangeResult::NotJudged,
            text: String::new(),
        };
        change.result = self.judge(&change);
        change.text = super::text::describe_change(&change, self.reference);
        Some(change)
    }

    /// Compares the ratios to the reference in the same round.
    fn relative(&self, pair: &ComparedPair<'_>) -> Option<UnpairedRatio> {
        let name = self.reference.filter(|name| *name != pair.now.server)?;
        let now = ratios(pair.now, pair.workload.server(name)?, pair.metric);
        let before = ratios(pair.before, pair.before_workload.server(name)?, pair.metric);
        UnpairedRatio::from_values(&now, &before, self.error_rate)
    }

    fn judge(&self, change: &BaselineChange) -> ChangeResult {
        let is_of_reference = self.reference == Some(change.server.as_str());
        let is_value_of_machine =
            change.basis == ChangeBasis::Value && change.metric.depends_on_speed();
        let ratio = change.deciding_ratio();
        match ratio.interval() {
            _ if self.differences.has_other_load || self.is_noisy => ChangeResult::NotJudged,
            _ if is_value_of_machine && self.differences.has_other_machine => {
                ChangeResult::NotJudged
            }
            // The machine may have changed, and not the server.
            _ if is_value_of_machine && is_of_reference && !self.has_one_server => {
                ChangeResult::NotJudged
            }
            None => ChangeResult::TooFewRounds,
            Some(_) if !ratio.shows_change() => ChangeResult::NotShown,
            Some(_) if change.metric.is_better(ratio.median) => ChangeResult::Better,
            Some(_) => ChangeResult::Worse,
        }
    }
}

/// Returns each server under each workload by each metric that both runs have.
fn common_pairs<'a>(now: &'a SavedReport, before: &'a SavedReport) -> Vec<ComparedPair<'a>> {
    let mut pairs = Vec::new();
    for (at, workload) in now.workloads.iter().enumerate() {
        let Some(before_workload) = before.workload(workload.name()) else { continue };
        for own in &workload.servers {
            let other = match own.is_control {
                true => before_workload.control().filter(|other| other.server == own.server),
                false => before_workload.server(&own.server),
            };
            let Some(other) = other else { continue };
            let metrics = workload.compared_metrics().into_iter().filter(|metric| {
                // Memory hardly depends on the workload.
                *metric != ComparedMetric::Memory || *metric == workload.metric || at == 0
            });
            for metric in metrics {
                pairs.push(ComparedPair {
                    workload,
                    before_workload,
                    now: own,
                    before: other,
                    metric,
                });
            }
        }
    }
    pairs.retain(|pair| {
        !values(pair.now, pair.metric).is_empty() && !values(pair.before, pair.metric).is_empty()
    });
    pairs
}

fn values(server: &SavedServer, metric: ComparedMetric) -> Vec<f64> {
    server.samples.iter().filter_map(|sample| sample.value(metric)).collect()
}

/// Returns the ratios of a server to the reference, of the rounds in which both were measured.
fn ratios(server: &SavedServer, reference: &SavedServer, metric: ComparedMetric) -> Vec<f64> {
    let paired = server.samples.iter().filter_map(|sample| {
        let other = reference.samples.iter().find(|other| other.round == sample.round)?;
        let (own, other) = metric.paired_values(sample.value(metric)?, other.value(metric)?);
        Some(own / other)
    });
    paired.filter(|ratio| !ratio.is_nan()).collect()
}

/// Names the servers and workloads that only one of the runs has measured.
fn find_missing(now: &SavedReport, before: &SavedReport) -> Vec<String> {
    let only = |what: &str, own: Vec<&str>, other: Vec<&str>, whose: &str| {
        let missing: Vec<&str> = own.into_iter().filter(|name| !other.contains(name)).collect();
        (!missing.is_empty()).then(|| format!("only {whose} has {what} {}", missing.join(", ")))
    };
    [
        only("the server", before.server_names(), now.server_names(), "the baseline"),
        only("the server", now.server_names(), before.server_names(), "this run"),
        only("the load", before.workload_names(), now.workload_names(), "the baseline"),
        only("the load", now.workload_names(), before.workload_names(), "this run"),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[cfg(test)]
#[path = "changes_tests.rs"]
mod tests;
