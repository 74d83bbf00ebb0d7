use super::*;
use crate::compare::ComparedServer;
use crate::compare::measurement::FaultTimeline;
use crate::compare::plan::MeasurementId;
use crate::load::counters::new_histogram;
use crate::load::{DueRequests, FaultEvent, FaultImpact, RampStep, RequestKindReport};
use tokio_prefork::{ConcurrencyModel, Dispatch};

/// Returns a measurement with these figures.
pub(crate) fn measured_outcome(per_second: f64, p99: f64) -> MeasurementOutcome {
    let mut latency = new_histogram(3);
    for part in 1..=100u64 {
        latency.record((p99 * 10.0) as u64 * part).expect("grows");
    }
    MeasurementOutcome::Measured(Box::new(MeasurementSample {
        round: 0,
        at_s: 0.0,
        per_second,
        p50: p99 / 2.0,
        p99,
        max: p99 * 2.0,
        latency,
        cpu_us: Some(1e6 / per_second),
        memory_mib: Some(8.0),
        busiest: Some(0.6),
        process_shares: vec![0.6, 0.4],
        resumed: None,
        handshake_p50: None,
        handshake_p99: None,
        errors: 0,
        due_requests: None,
        generator_us: 4.0,
        capacity: None,
        request_kinds: Vec::new(),
        ramp: Vec::new(),
        faults: Vec::new(),
        timeline: None,
        background: Vec::new(),
        figures: Default::default(),
        warnings: Vec::new(),
    }))
}

/// Returns the figures of a server: `prefork` has twice the requests of `single`, `threads` the same, and both a much
/// shorter p99.
fn figures(server: &str, round: usize) -> (f64, f64) {
    // Noise that is the same for all servers on average.
    let period = if server == "threads" { 2 } else { 1 };
    let noise = if (round / period).is_multiple_of(2) { 1.01 } else { 0.99 };
    match server {
        "prefork" => (2000.0 * noise, 540.0 * noise),
        "threads" => (1000.0 * noise, 2870.0 * noise),
        _ => (1000.0 * noise, 354_000.0 * noise),
    }
}

pub(crate) fn sample_plan(rounds: usize) -> ComparePlan {
    let models = [ConcurrencyModel::Prefork, ConcurrencyModel::Single, ConcurrencyModel::Threads];
    let servers = models.map(|model| ComparedServer::built_in(model, None, 2)).to_vec();
    let workloads = ["keep-alive", "noisy-neighbour"]
        .map(|name| Workload::built_in(name).expect("built in"))
        .to_vec();
    ComparePlan { rounds: Some(rounds), ..ComparePlan::new(servers, workloads, 2) }
}

/// Runs a plan on invented servers; at most `limit` measurements before a signal.
pub(crate) fn run_plan(
    plan: &ComparePlan,
    limit: usize,
    outcome: impl Fn(&str, MeasurementId) -> MeasurementOutcome,
) -> CompareReport {
    let servers = plan.measured_servers();
    let mut run = RoundsRun::new(plan, 1);
    let mut made = 0;
    while let Some(round) = run.begin_round() {
        for workload in 0..plan.workloads.len() {
            for (at, server) in servers.iter().enumerate() {
                let Some(id) = run.next_measurement(round, workload, at) else { continue };
                if made == limit {
                    run.stop(RoundsEnd::Signal);
                    continue;
                }
                made += 1;
                run.add(id, outcome(&server.name, id), Duration::from_secs(made as u64));
            }
            run.end_workload_round(round, workload);
        }
    }
    CompareReport::from_run(plan, &run, Duration::from_secs(9))
}

/// Returns a report of the invented servers.
pub(crate) fn sample_report(rounds: usize) -> CompareReport {
    run_plan(&sample_plan(rounds), usize::MAX, |server, id| {
        let (per_second, p99) = figures(server, id.round);
        measured_outcome(per_second, p99)
    })
}

#[test]
fn differences_are_stated_with_their_size_and_the_largest_first() {
    let mut report = sample_report(12);
    report.environment.load_average = None;
    assert_eq!((report.exit_status(), report.measured), (exit::OK, 96));
    assert_eq!(report.reference.as_deref(), Some("single"));
    let lines = &report.verdict.lines;
    assert_eq!(lines.len(), 2, "{lines:#?}");
    assert_eq!(lines[0].workload.as_deref(), Some("noisy-neighbour"));
    assert_eq!(lines[0].winner.as_deref(), Some("prefork"));
    assert_eq!(lines[0].statement, "p99 latency 656 times shorter than single");
    assert_eq!(lines[0].not_told_apart_from, Vec::<String>::new());
    assert_eq!(lines[1].statement, "2.0 times as many requests/s as single");
    let text = report.to_table();
    assert!(text.starts_with("LOAD "), "the verdict is first: {text}");
    for piece in [
        "noisy-neighbour  prefork  p99 latency 656 times shorter than single",
        "- threads: no difference in requests/s from single is shown",
        "- prefork: 2.0 times less CPU per request than single",
        "- prefork: p99 latency 5.3 times shorter than threads",
        "1/656",
        "Control: single was measured twice, and does not differ from itself.\n",
    ] {
        assert!(text.contains(piece), "{piece} is not in\n{text}");
    }
    assert!(!text.contains(" 0.00"), "{text}");
}

#[test]
fn every_comparison_that_the_confidence_counts_is_listed() {
    let report = sample_report(12);
    let (table, page) = (report.to_table(), report.to_html());
    assert_eq!(report.confidence.comparisons, 16);
    assert_eq!(table.lines().filter(|line| line.starts_with("- ")).count(), 16, "{table}");
    let rows = page.split("comparisons\">").skip(1).map(|figure| {
        let table = figure.split("</table>").next().unwrap_or_default();
        table.matches("<tr>").count() - 1
    });
    assert_eq!(rows.collect::<Vec<_>>(), [12, 4], "{page}");
    for piece in [
        "12 of the 16 comparisons of this report:",
        "- single (control): no difference in p99 latency from single is shown",
        "- threads: p99 latency 123 times shorter than single",
    ] {
        assert!(table.contains(piece), "{piece} is not in\n{table}");
    }
    let shown = "Compared with single by CPU per request: prefork 2.0 times less (2.00 to 2.00 times); no difference is shown \
                 for threads.";
    assert!(page.contains(shown), "{page}");
}

#[test]
fn a_share_of_a_process_is_the_same_number_in_table_and_plot() {
    // The mean of the rounds is 53 %, their median 52 %.
    let report = run_plan(&sample_plan(3), usize::MAX, |_, id| {
        let MeasurementOutcome::Measured(mut sample) = measured_outcome(1000.0, 900.0) else {
            unreachable!("it was measured");
        };
        let busiest = [0.51, 0.52, 0.56][id.round];
        (sample.busiest, sample.process_shares) = (Some(busiest), vec![busiest, 1.0 - busiest]);
        MeasurementOutcome::Measured(sample)
    });
    let (table, page) = (report.to_table(), report.to_html());
    assert!(table.contains("52 %") && !table.contains("53 %"), "{table}");
    assert!(page.contains("<td>52 %</td>") && page.contains(">52 % of 2<"), "{page}");
    assert!(!page.contains("53 %"), "{page}");
    // Another load occupies a process under noisy-neighbour: uneven is no fault there.
    assert_eq!(page.matches("in the requests: even is better").count(), 1, "{page}");
    assert!(table.contains("BUSIEST counts the requests of the load \"light\" only"), "{table}");
}

#[test]
fn requests_that_were_answered_late_are_told_apart_from_failed_ones() {
    let report = run_plan(&sample_plan(12), usize::MAX, |server, id| {
        let (per_second, p99) = figures(server, id.round);
        let MeasurementOutcome::Measured(mut sample) = measured_outcome(per_second, p99) else {
            unreachable!("it was measured");
        };
        let is_late = id.workload == 1 && server.starts_with("single");
        let late = if is_late { 123 } else { 0 };
        sample.due_requests = (id.workload == 1).then_some(DueRequests {
            due: 250,
            answered_in_time: 250 - late,
            answered_after_end: late,
            unanswered: 0,
            never_sent: 0,
        });
        MeasurementOutcome::Measured(sample)
    });
    let (table, page) = (report.to_table(), report.to_html());
    for piece in [
        "A request fails without a response within 3 s, or with a status of 400 or more.",
        "after the measured time: single under noisy-neighbour 1 476 of 3 000. Their whole wait",
        "single: due in all rounds were 3 000 requests: 1 524 answered in the measured time, 1 476 after its end, 0 without a \
         response (timeout 3 s)",
    ] {
        assert!(table.contains(piece), "{piece} is not in\n{table}");
        assert!(page.contains(piece), "{piece} is not in\n{page}");
    }
    assert!(!table.contains("prefork: due in all rounds"), "almost all were in time: {table}");
}

#[test]
fn the_ratio_is_the_same_number_everywhere() {
    let report = sample_report(12);
    let json = serde_json::json!(report);
    let row = &json["workloads"][0]["servers"][0];
    let comparison = &json["workloads"][0]["comparisons"][0];
    assert_eq!((&row["server"], &comparison["server"]), (&"prefork".into(), &"prefork".into()));
    assert_eq!(row["ratio"], comparison["ratio"]);
    let ratios = (0..12).map(|round| figures("prefork", round).0 / figures("single", round).0);
    let mut ratios: Vec<f64> = ratios.collect();
    ratios.sort_by(f64::total_cmp);
    let median = (ratios[5] * ratios[6]).sqrt();
    assert_eq!(row["ratio"]["median"].as_f64(), Some(median));
    let keys: Vec<&String> = json.as_object().expect("an object").keys().collect();
    assert!(keys.contains(&&"verdict".to_string()), "{keys:?}");
    assert!(report.to_json().starts_with("{\n  \"verdict\""), "the verdict is first");
}

#[test]
fn few_rounds_say_what_cannot_be_stated() {
    let report = sample_report(4);
    let lines = &report.verdict.lines;
    assert_eq!(lines.len(), 1, "{lines:#?}");
    let expected = "4 rounds are too few to state a difference under keep-alive, noisy-neighbour: \
                    10 are needed";
    assert_eq!((lines[0].statement.as_str(), &lines[0].winner), (expected, &None));
    let text = report.to_table();
    assert!(text.contains("4 rounds are too few to state a difference in p99 latency"), "{text}");
}

#[test]
fn a_control_that_differs_withdraws_every_statement() {
    let report = run_plan(&sample_plan(12), usize::MAX, |server, id| {
        let (per_second, p99) = figures(server, id.round);
        let faster = if server.ends_with("(control)") { 1.2 } else { 1.0 };
        measured_outcome(per_second * faster, p99)
    });
    assert!(report.verdict.is_too_noisy);
    assert_eq!(report.verdict.lines.len(), 1);
    assert!(report.verdict.control.contains("20 % more requests/s than single"), "{report:#?}");
    let text = report.to_table();
    assert!(text.contains("too noisy") && !text.contains("656 times"), "{text}");
    assert!(report.to_html().contains("too noisy"));
}

/// Returns in how many of 20 reports on equal servers anything differs.
fn reports_with_findings(plan: &ComparePlan, noise: f64) -> usize {
    use crate::compare::random_order::RandomOrder;
    let has_finding = |seed: usize| {
        let report = run_plan(plan, usize::MAX, |_, id| {
            let at = ((seed * 1000 + id.round) * 10 + id.workload) * 10 + id.server;
            let mut random = RandomOrder::from_seed(at as u64);
            let mut noisy = |value: f64| value * (noise * random.normal()).exp();
            measured_outcome(noisy(1000.0), noisy(900.0))
        });
        let shown = |workload: &WorkloadReport| {
            workload.comparisons.iter().chain(&workload.control).any(Comparison::is_shown)
        };
        report.workloads.iter().any(shown)
    };
    (0..20).filter(|seed| has_finding(*seed)).count()
}

#[test]
fn equal_servers_give_a_report_without_findings() {
    let with_finding = reports_with_findings(&sample_plan(14), 0.2);
    assert!(with_finding <= 1, "{with_finding} of 20 reports on equal servers have a finding");
}

#[test]
fn equal_servers_are_reported_with_what_they_were_compared_by() {
    let report = run_plan(&sample_plan(12), usize::MAX, |server, id| {
        let is_noisy = server.ends_with("(control)") && id.workload == 0;
        let noise = [1.0, 1.1, 0.9][if is_noisy { id.round % 3 } else { 0 }];
        measured_outcome(1000.0 * noise, 900.0)
    });
    let control = "single was measured twice, and does not differ from itself; the widest of its intervals is requests/s 10 % \
                   fewer to 10 % more under keep-alive, and no smaller difference can be seen there";
    assert_eq!(report.verdict.control, control);
    assert!(report.to_html().contains("<dt>noise</dt><dd>Quiet enough: single was measured twice"));
    let noisy = run_plan(&sample_plan(12), usize::MAX, |server, id| {
        let factor = if server.ends_with("(control)") { [0.6, 1.6][id.round % 2] } else { 1.0 };
        measured_outcome(1000.0 * factor, 900.0)
    });
    assert!(noisy.to_html().contains("<dd>Noisy, so that only large differences are seen: single"));
    let statement = &report.verdict.lines[0].statement;
    assert!(statement.contains("keep-alive (requests/s)"), "{statement}");
    assert!(statement.contains("noisy-neighbour (p99 latency)"), "{statement}");
    assert!(report.to_html().contains("The control is single"), "the control is explained");
}

#[test]
fn to_end_when_the_intervals_are_narrow_causes_no_findings() {
    // Some of these runs end at the first look, some at a later one.
    let plan =
        ComparePlan { rounds: None, precision: Some(0.12), time_limit: None, ..sample_plan(1) };
    let with_finding = reports_with_findings(&plan, 0.04);
    assert!(with_finding <= 1, "{with_finding} of 20 reports on equal servers have a finding");
}

#[test]
fn rounds_end_when_the_intervals_are_narrow() {
    let plan = ComparePlan { rounds: None, time_limit: None, ..sample_plan(1) };
    let report = run_plan(&plan, usize::MAX, |server, id| {
        let (per_second, p99) = figures(server, id.round);
        measured_outcome(per_second, p99)
    });
    for workload in &report.workloads {
        assert_eq!(workload.ended, Some(RoundsEnd::Precise));
        assert_eq!(workload.complete_rounds(), report.rounds_needed);
    }
    assert!(report.to_table().contains("narrow enough (--precision 5%)"), "{}", report.to_table());
}

#[test]
fn incomplete_comparisons_say_so_in_every_format() {
    let outcome = |_: &str, _: MeasurementId| measured_outcome(10.0, 10.0);
    let report = run_plan(&sample_plan(3), 5, outcome);
    assert_eq!(report.exit_status(), exit::FAILURE);
    let said = "5 of 24 measurements were made, then a signal ended the run";
    assert!(report.to_table().starts_with(&format!("PARTIAL: {said}")), "{}", report.to_table());
    assert!(report.to_html().contains(&format!("Partial: {said}")));
    assert_eq!(serde_json::json!(report)["partial"], said);
    let nothing = run_plan(&sample_plan(3), 0, outcome);
    assert_eq!((nothing.reference.as_ref(), nothing.exit_status()), (None, exit::FAILURE));
    assert!(nothing.to_table().contains("0 of 24") && nothing.to_html().ends_with("</html>\n"));
}

#[test]
fn failed_servers_are_named_and_are_not_the_reference() {
    let mut plan = sample_plan(3);
    plan.servers.remove(1);
    let least_conn =
        ComparedServer::built_in(ConcurrencyModel::Prefork, Some(Dispatch::LeastConn), 2);
    plan.servers.push(least_conn);
    let report = run_plan(&plan, usize::MAX, |server, id| match (server, id.workload) {
        ("prefork" | "prefork (control)", _) => {
            MeasurementOutcome::ServerFailed("prefork did not start: <b>".to_string())
        }
        ("threads", 1) => MeasurementOutcome::Unable("does not have this path".to_string()),
        _ => measured_outcome(10.0, 10.0),
    });
    assert_eq!((report.exit_status(), report.reference.as_deref()), (exit::FAILURE, None));
    assert_eq!(report.broken.len(), 2, "each failed once: {:?}", report.broken);
    let (table, page) = (report.to_table(), report.to_html());
    assert!(table.contains("not measured: prefork did not start"), "{table}");
    assert!(table.contains("does not have this path"), "{table}");
    assert!(page.contains("&lt;b&gt;") && !page.contains("<b>"), "{page}");
}

#[test]
fn the_page_loads_no_external_resources_and_closes_its_tags() {
    let page = sample_report(12).to_html();
    for piece in ["<script", "src=", "url(", "@import", "http://", "https://"] {
        assert!(!page.contains(piece), "{piece}");
    }
    for tag in ["figure", "table", "tr", "td", "th", "ul", "li", "svg", "p", "div", "h2", "dl"] {
        let opened =
            page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
        assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
    }
    assert!(page.matches("<svg").count() >= 2);
}

/// Returns a measurement of reloads, or of idle connections, without a figure for `None`.
pub(crate) fn kind_outcome(metric: ComparedMetric, value: Option<f64>) -> MeasurementOutcome {
    let MeasurementOutcome::Measured(sample) = measured_outcome(1000.0, 500.0) else {
        unreachable!("it was measured");
    };
    let figures = value.map(|value| (metric, value)).into_iter().collect();
    let warnings = vec!["the server was not <quiet>".to_string()];
    MeasurementOutcome::Measured(Box::new(MeasurementSample { figures, warnings, ..*sample }))
}

pub(crate) fn kind_plan(workload: &str) -> ComparePlan {
    let workloads = vec![Workload::built_in(workload).expect("built in")];
    ComparePlan { workloads, ..sample_plan(12) }
}

#[test]
fn figures_of_other_kinds_of_load_are_compared_and_shown() {
    let metric = ComparedMetric::IdleMemory;
    let report = run_plan(&kind_plan("idle-memory"), usize::MAX, |server, _| {
        kind_outcome(metric, Some(if server == "prefork" { 541.0 } else { 12_000.0 }))
    });
    let (table, page) = (report.to_table(), report.to_html());
    let statement = "22 times less memory per idle connection than single";
    assert!(table.contains(statement) && page.contains(statement), "{table}");
    let cells_of = |first: &str| -> Vec<&str> {
        let row = table.lines().find(|line| line.split_whitespace().next() == Some(first));
        row.expect(first).split_whitespace().collect()
    };
    assert_eq!(cells_of("IDLE")[..2], ["IDLE", "MIN-MAX"], "{table}");
    assert_eq!(cells_of("prefork")[1..5], ["541", "B", "541", "B-541"], "{table}");
    assert!(table.contains("12.0 kB-12.0 kB"), "{table}");
    assert!(table.contains("single: the server was not <quiet>") && page.contains("&lt;quiet&gt;"));
    let sample = &serde_json::json!(report)["workloads"][0]["servers"][0]["samples"][0];
    assert_eq!(sample["idle_bytes"], 541.0);
}

#[test]
fn servers_that_lose_no_request_are_equal_and_better_than_one_that_does() {
    let metric = ComparedMetric::RequestsLost;
    let report = run_plan(&kind_plan("reloads"), usize::MAX, |server, _| {
        kind_outcome(metric, Some(if server == "threads" { 3.5 } else { 0.0 }))
    });
    let table = report.to_table();
    assert!(table.contains("threads: requests lost, unlike single"), "{table}");
    assert!(
        table.contains("prefork: no difference in requests lost from single is shown"),
        "{table}"
    );
    assert!(!report.verdict.is_too_noisy, "{table}");
    assert!(report.to_html().ends_with("</html>\n"));
}

#[test]
fn a_server_without_the_figure_is_neither_the_best_nor_in_the_plots() {
    let metric = ComparedMetric::TimeToServe;
    let report = run_plan(&kind_plan("worker-kills"), usize::MAX, |server, _| {
        let value = match server {
            "threads" => None,
            "prefork" => Some(20_000.0),
            _ => Some(90_000.0),
        };
        kind_outcome(metric, value)
    });
    let best = &report.verdict.lines[0];
    assert_eq!(best.winner.as_deref(), Some("prefork"), "{}", report.to_table());
    assert!(best.statement.contains("time to serve after a kill 4.5 times shorter"), "{best:?}");
    assert!(report.to_html().ends_with("</html>\n"));
}

/// Returns a measurement with figures of two kinds of requests, of a ramp, and of faults.
fn outcome_with_parts() -> MeasurementOutcome {
    let MeasurementOutcome::Measured(mut sample) = measured_outcome(1000.0, 500.0) else {
        unreachable!("it was measured");
    };
    sample.request_kinds = [("small", 400.0), ("large", 9000.0)]
        .map(|(name, p99)| RequestKindReport {
            name: name.to_string(),
            weight: 1,
            responses: 500,
            share: 0.5,
            per_second: 500.0,
            bytes_per_second: 1e6,
            errors: 2,
            p50: p99 / 2.0,
            p99,
            max: p99,
        })
        .into();
    let step = |step: usize| RampStep {
        from_s: step as f64,
        until_s: step as f64 + 1.0,
        rate: Some(100.0),
        connections: 256,
        per_second: 100.0,
        errors: 0,
        p50: 100.0,
        p99: 1000.0 + step as f64,
        max: 3000.0,
    };
    sample.ramp = (0..10).map(step).collect();
    let impact = |fault: &str, count, lost| FaultImpact {
        fault: fault.to_string(),
        count,
        skipped: 0,
        refused: 0,
        lost,
        late: 1,
    };
    sample.faults =
        vec![impact("kill", 2, 3), impact("kill or reload", 0, 1), impact("none", 0, 0)];
    (sample.errors, sample.timeline) = (
        4,
        Some(FaultTimeline {
            bin_s: 0.1,
            responses: vec![10; 20],
            injected: vec![FaultEvent { fault: "kill", at_s: 1.0, until_s: 1.0, pids: vec![7] }],
        }),
    );
    MeasurementOutcome::Measured(sample)
}

#[test]
fn kinds_of_requests_steps_of_a_ramp_and_faults_are_shown() {
    let report = run_plan(&kind_plan("ramp"), usize::MAX, |_, _| outcome_with_parts());
    let (table, page) = (report.to_table(), report.to_html());
    let cells = |first: &str| -> Vec<&str> {
        let row = table.lines().find(|line| line.starts_with(first));
        row.unwrap_or_else(|| panic!("{first}: {table}")).split_whitespace().collect()
    };
    assert_eq!(cells("large ")[..6], ["large", "prefork", "500", "4.50", "ms", "9.00"], "{table}");
    assert!(
        table.contains("15%") && table.contains("105%") && table.contains("1.01 ms"),
        "{table}"
    );
    // In 12 rounds.
    assert_eq!(cells("kill ")[1..], ["prefork", "24", "0", "36", "12"], "{table}");
    assert!(table.contains("48 of prefork under ramp (kill 36, kill or reload 12)"), "{table}");
    for piece in [
        "p99 latency of each kind of request",
        "p99 latency over the ramp",
        "while faults are injected",
        "class=\"kill sign\"",
        "part of the capacity that is due",
        "<td>kill or reload</td>",
    ] {
        assert!(page.contains(piece), "{piece}");
    }
}

#[test]
fn the_page_answers_first_what_a_reader_asks() {
    let mut report = sample_report(12);
    report.repeat_command = "prefork compare --rounds 12 --seed 1".to_string();
    report.environment.set_build(Some("1f0c2ab7d0ce"), None);
    let page = report.to_html();
    let at = |piece: &str| page.find(piece).unwrap_or_else(|| panic!("{piece} is not in {page}"));
    let order = [
        "p99 latency 656 times shorter than single",
        "<dt>other differences</dt><dd>Under keep-alive, prefork: p99 latency 656 times shorter than single",
        "(p99 latency, CPU per request, memory were compared too)",
        "95 % that all intervals",
        "does not differ from itself",
        "<dt>failed requests</dt><dd>None. A request fails without a response within 3 s",
        "commit 1f0c2ab7d0ce",
        "prefork compare --rounds 12 --seed 1",
        "<nav>",
        "Prefork is best: 2.0 times as many requests/s as single",
    ];
    let found = order.map(at);
    assert!(found.is_sorted(), "{found:?}");
    assert_eq!(report.verdict.loads.len(), 2);
    assert_eq!(
        report.verdict.loads[0].sentence(),
        "prefork is best: 2.0 times as many requests/s as single (2.00 to 2.00 times)"
    );
}
