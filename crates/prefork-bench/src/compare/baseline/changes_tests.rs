use super::*;
use crate::compare::random_order::RandomOrder;
use crate::compare::report::tests::{measured_outcome, run_plan, sample_plan};
use crate::compare::{ComparePlan, CompareReport};

/// Noise of a machine: its speed drifts from round to round, each measurement has 3 % of its own, and one in ten loses up
/// to half to another process. A virtual machine also loses two fifths of its speed at once, and has it back later.
struct Machine {
    speed: f64,
    seed: u64,
    has_steps: bool,
}

impl Machine {
    fn factor(&self, round: usize, server: usize, workload: usize) -> f64 {
        let mut drift = RandomOrder::from_seed(self.seed * 100_000 + round as u64);
        let at = (round * 8 + workload) * 8 + server;
        let mut own = RandomOrder::from_seed(self.seed * 100_000 + 50_000 + at as u64);
        let stolen = if own.unit() < 0.1 { own.unit() * 0.7 } else { 0.0 };
        let step = if self.has_steps && self.is_slow_at(at) { 0.6 } else { 1.0 };
        self.speed * step * (0.15 * drift.normal() + 0.03 * own.normal() - stolen).exp()
    }

    /// Returns whether the host has taken two fifths of the speed: it changes its mind in one measurement of ten.
    fn is_slow_at(&self, measurement: usize) -> bool {
        let mut steps = RandomOrder::from_seed(self.seed + 7);
        (0..=measurement).filter(|_| steps.unit() < 0.1).count() % 2 == 1
    }
}

/// Runs the plan on a machine; `factor` is the speed of each server.
fn run(plan: &ComparePlan, machine: &Machine, factor: impl Fn(&str) -> f64) -> CompareReport {
    run_plan(plan, usize::MAX, |server, id| {
        let base = server.trim_end_matches(" (control)");
        let speed = factor(base) * machine.factor(id.round, id.server, id.workload);
        let (per_second, p99) = match base {
            "prefork" => (2000.0, 540.0),
            "threads" => (1000.0, 2870.0),
            _ => (1000.0, 3000.0),
        };
        measured_outcome(per_second * speed, p99 / speed)
    })
}

fn saved(report: &CompareReport) -> SavedReport {
    SavedReport::parse(report.to_json().as_bytes()).expect("a report")
}

fn compare(now: &CompareReport, before: &CompareReport) -> BaselineReport {
    BaselineReport::compare(&saved(now), &saved(before), "main.json")
}

fn change<'a>(
    report: &'a BaselineReport,
    server: &str,
    metric: ComparedMetric,
) -> &'a BaselineChange {
    let found = report.changes.iter().find(|one| one.server == server && one.metric == metric);
    found.expect("compared")
}

const QUIET: Machine = Machine { speed: 1.0, seed: 1, has_steps: false };
const SLOW: Machine = Machine { speed: 0.7, seed: 2, has_steps: false };

#[test]
fn a_slower_machine_is_no_regression_and_is_mentioned() {
    let before = run(&sample_plan(20), &QUIET, |_| 1.0);
    let mut now = run(&sample_plan(20), &SLOW, |_| 1.0);
    let report = compare(&now, &before);
    assert_eq!((report.is_worse, report.exit_status()), (false, exit::OK), "{:#?}", report.lines);
    let prefork = change(&report, "prefork", ComparedMetric::RequestsPerSecond);
    assert_eq!(
        (prefork.basis, prefork.result),
        (ChangeBasis::RatioToReference, ChangeResult::NotShown)
    );
    assert!(prefork.value.median < 0.8, "the value is shown too: {prefork:#?}");
    let single = change(&report, "single", ComparedMetric::RequestsPerSecond);
    assert_eq!((single.basis, single.result), (ChangeBasis::Value, ChangeResult::NotJudged));
    let lines = report.lines.join("\n");
    assert!(lines.contains("single itself") && lines.contains("or the machine"), "{lines}");
    now.compare_with_baseline(&saved(&before), "main.json").expect("compared");
    assert_eq!(now.exit_status(), exit::OK);
}

#[test]
fn a_server_that_got_slower_is_worse_also_on_a_faster_machine() {
    let before = run(&sample_plan(20), &SLOW, |_| 1.0);
    let slower = |server: &str| if server == "prefork" { 0.8 } else { 1.0 };
    let mut now = run(&sample_plan(20), &QUIET, slower);
    now.compare_with_baseline(&saved(&before), "main.json").expect("compared");
    assert_eq!(now.exit_status(), 2);
    let report = now.baseline.as_ref().expect("compared");
    let prefork = change(report, "prefork", ComparedMetric::RequestsPerSecond);
    assert_eq!(prefork.result, ChangeResult::Worse);
    assert_eq!(
        change(report, "threads", ComparedMetric::RequestsPerSecond).result,
        ChangeResult::NotShown
    );
    let (text, page) = (now.to_table(), now.to_html());
    assert!(text.contains("Worse: prefork under ") && text.contains("ratio to single"), "{text}");
    assert!(page.contains("Since the baseline") && page.contains("<tr class=\"worse\">"), "{page}");
    let json = serde_json::json!(now);
    assert_eq!(json["baseline"]["changes"][0]["result"], "worse");
}

#[test]
fn a_faster_server_is_better() {
    let before = run(&sample_plan(20), &QUIET, |_| 1.0);
    let faster = |server: &str| if server == "prefork" { 1.5 } else { 1.0 };
    let report = compare(&run(&sample_plan(20), &SLOW, faster), &before);
    assert_eq!(report.exit_status(), exit::OK);
    let latency = change(&report, "prefork", ComparedMetric::P99Latency);
    assert_eq!(latency.result, ChangeResult::Better, "{latency:#?}");
    assert!(report.lines[0].starts_with("better: prefork under"), "{:?}", report.lines);
}

#[test]
fn one_server_alone_is_judged_by_its_values() {
    let mut plan = sample_plan(20);
    plan.servers.truncate(1);
    let before = run(&plan, &QUIET, |_| 1.0);
    let report = compare(&run(&plan, &QUIET, |_| 0.5), &before);
    let prefork = change(&report, "prefork", ComparedMetric::RequestsPerSecond);
    assert_eq!((prefork.basis, prefork.result), (ChangeBasis::Value, ChangeResult::Worse));
    let mut other = saved(&before);
    other.environment.cores += 2;
    let moved = BaselineReport::compare(&saved(&run(&plan, &SLOW, |_| 1.0)), &other, "main.json");
    let prefork = change(&moved, "prefork", ComparedMetric::RequestsPerSecond);
    assert_eq!(prefork.result, ChangeResult::NotJudged, "another machine has another speed");
    let memory = change(&moved, "prefork", ComparedMetric::Memory);
    assert_eq!(memory.result, ChangeResult::NotShown, "memory does not depend on speed");
}

#[test]
fn differences_of_the_environment_are_warnings() {
    let report = run(&sample_plan(8), &QUIET, |_| 1.0);
    let mut before = saved(&report);
    before.environment.kernel = "Linux 5.10.0".to_string();
    before.environment.governor = Some("powersave".to_string());
    before.settings.duration_s = 3.0;
    before.workloads.remove(1);
    let found = BaselineReport::compare(&saved(&report), &before, "main.json");
    let differences = found.differences.join("\n");
    for piece in [
        "kernel: ",
        "in the baseline Linux 5.10.0",
        "in the baseline powersave",
        "in the baseline 3 s",
    ] {
        assert!(differences.contains(piece), "{piece} is not in {differences}");
    }
    assert_eq!(found.missing, ["only this run has the load noisy-neighbour"]);
    let text = found.to_table();
    assert!(text.contains("WARNING: kernel: Linux"), "{text}");
    assert!(found.to_html().ends_with("</html>\n"));
}

#[test]
fn other_loads_are_not_judged() {
    let report = run(&sample_plan(8), &QUIET, |_| 1.0);
    let slower = saved(&run(&sample_plan(8), &QUIET, |_| 0.5));
    let mut before = saved(&report);
    before.settings.workers = 16;
    let found = BaselineReport::compare(&slower, &before, "main.json");
    assert!(found.changes.iter().all(|change| change.result == ChangeResult::NotJudged));
    assert_eq!((found.exit_status(), found.is_worse), (exit::FAILURE, false));
    assert!(found.lines[0].contains("the loads differ"), "{:?}", found.lines);
}

#[test]
fn a_noisy_run_states_no_change() {
    let before = run(&sample_plan(12), &QUIET, |_| 1.0);
    let mut noisy =
        saved(&run(&sample_plan(12), &QUIET, |server| if server == "prefork" { 0.5 } else { 1.0 }));
    noisy.verdict.is_too_noisy = true;
    let found = BaselineReport::compare(&noisy, &saved(&before), "main.json");
    assert_eq!((found.exit_status(), found.is_worse), (exit::FAILURE, false));
    assert!(found.lines[0].contains("too noisy"), "{:?}", found.lines);
}

#[test]
fn too_few_rounds_state_nothing() {
    let before = run(&sample_plan(3), &QUIET, |_| 1.0);
    let found = compare(&run(&sample_plan(3), &QUIET, |_| 0.5), &before);
    assert!(found.changes.iter().all(|change| change.result != ChangeResult::Worse));
    assert!(found.lines.iter().any(|line| line.contains("too few rounds")), "{:?}", found.lines);
}

/// Returns in how many of 20 pairs of runs a server is worse or better, when `prefork` has become faster by `factor`.
fn pairs_with_findings(factor: f64, has_steps: bool) -> usize {
    let finds = |seed: &u64| {
        let speed = 1.0 + 0.02 * (*seed % 10) as f64;
        let machine = |speed: f64, seed: u64| Machine { speed, seed, has_steps };
        let before = run(&sample_plan(10), &machine(1.0, 100 + seed), |_| 1.0);
        let own = |server: &str| if server == "prefork" { factor } else { 1.0 };
        let now = run(&sample_plan(10), &machine(speed, 200 + seed), own);
        let report = compare(&now, &before);
        report.is_too_noisy
            || report
                .changes
                .iter()
                .any(|change| matches!(change.result, ChangeResult::Worse | ChangeResult::Better))
    };
    (0..20).filter(finds).count()
}

#[test]
fn equal_servers_have_no_finding_in_19_of_20_pairs_of_runs() {
    for has_steps in [false, true] {
        let found = pairs_with_findings(1.0, has_steps);
        assert!(
            found <= 1,
            "{found} of 20 pairs of runs of equal servers have a finding ({has_steps})"
        );
    }
}

#[test]
fn a_change_of_many_times_is_found_in_19_of_20_pairs_of_runs() {
    let found = pairs_with_findings(1.0 / 500.0, true);
    assert!(found >= 19, "{found} of 20 changes are found");
}

#[test]
fn every_metric_of_another_kind_of_load_is_compared() {
    use crate::compare::report::tests::{kind_outcome, kind_plan};
    let run = |gap: f64| {
        run_plan(&kind_plan("reloads"), usize::MAX, |_, _| {
            kind_outcome(ComparedMetric::LongestGap, Some(gap))
        })
    };
    let report = compare(&run(1000.0), &run(900.0));
    let metrics: Vec<ComparedMetric> =
        report.changes.iter().filter(|one| one.server == "prefork").map(|one| one.metric).collect();
    assert_eq!(metrics, [ComparedMetric::LongestGap, ComparedMetric::P99Latency]);
    let lost = run_plan(&kind_plan("reloads"), usize::MAX, |_, _| {
        kind_outcome(ComparedMetric::RequestsLost, Some(0.0))
    });
    let report = compare(&lost, &lost);
    let lost = change(&report, "prefork", ComparedMetric::RequestsLost);
    assert_eq!(lost.describe().0, "no difference", "{lost:?}");
}
