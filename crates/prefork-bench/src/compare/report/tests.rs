use super::*;
use crate::compare::ComparedServer;
use tokio_prefork::{ConcurrencyModel, Dispatch};

fn measured_outcome(per_second: f64, p99: f64) -> MeasurementOutcome {
    MeasurementOutcome::Measured(Box::new(MeasurementSample {
        round: 0,
        per_second,
        p50: p99 / 2.0,
        p99,
        max: p99 * 2.0,
        cpu_us: Some(1e6 / per_second),
        memory_mib: Some(8.0),
        busiest: Some(0.5),
        resumed: None,
        handshake_p50: None,
        handshake_p99: None,
        errors: 0,
        generator_us: 4.0,
    }))
}

/// Outcomes in which `prefork` is twice as fast as `single`, and `threads` about the same.
fn sample_outcomes(plan: &ComparePlan) -> Vec<(PlannedMeasurement, MeasurementOutcome)> {
    let outcome = |measurement: PlannedMeasurement| {
        let drift = measurement.round as f64;
        let (rate, p99) = match plan.servers[measurement.server].name.as_str() {
            "prefork" => (2000.0 + drift, 100.0 + drift),
            "single" => (1000.0 + drift, 900.0 + drift),
            _ => (999.0 + 2.0 * drift, 899.0 + 2.0 * drift),
        };
        (measurement, measured_outcome(rate, p99))
    };
    plan.list_measurements().into_iter().map(outcome).collect()
}

fn sample_plan() -> ComparePlan {
    let models = [ConcurrencyModel::Prefork, ConcurrencyModel::Single, ConcurrencyModel::Threads];
    let contestants = models.map(|model| ComparedServer::built_in(model, None, 2)).to_vec();
    let workloads = vec![Workload::KeepAlive, Workload::NoisyNeighbour];
    ComparePlan { rounds: 3, ..ComparePlan::new(contestants, workloads, 2) }
}

fn complete_report() -> CompareReport {
    let plan = sample_plan();
    CompareReport::from_outcomes(&plan, sample_outcomes(&plan), None, Duration::from_secs(9))
}

#[test]
fn differences_are_separated_from_noise() {
    let report = complete_report();
    assert_eq!((report.exit_status(), report.measured), (exit::OK, 18));
    assert_eq!(report.chance, FalseDifferenceRate { rounds: 3, one_in: Some(10.0) });
    let findings = report.findings.join("\n");
    for piece in [
        "keep-alive, requests/s: more than single: prefork (2.00x); no difference larger than the noise: threads (1.00x).",
        "keep-alive, CPU per request: less than single: prefork (0.50x)",
        "noisy-neighbour, p99 latency of the measured requests: shorter than single: prefork (0.11x)",
        "memory: no difference larger than the noise: prefork (1.00x), threads (1.00x).",
    ] {
        assert!(findings.contains(piece), "{piece} is not in\n{findings}");
    }
    assert!(!findings.contains("noisy-neighbour, requests/s"), "{findings}");
}

#[test]
fn one_round_reports_no_differences() {
    let plan = ComparePlan { rounds: 1, ..sample_plan() };
    let report = CompareReport::from_outcomes(&plan, sample_outcomes(&plan), None, Duration::ZERO);
    assert_eq!((report.chance.one_in, report.findings.len()), (None, 0));
    assert!(report.to_table().contains("One round does not show the noise"));
}

#[test]
fn incomplete_comparisons_say_so_in_every_format() {
    let plan = sample_plan();
    let mut some = sample_outcomes(&plan);
    some.truncate(5);
    let report =
        CompareReport::from_outcomes(&plan, some, Some(EarlyStop::Signal), Duration::from_secs(1));
    assert_eq!(report.exit_status(), exit::FAILURE);
    let said = "5 of 18 measurements were made, then a signal ended it";
    assert!(report.to_table().contains(&format!("PARTIAL: {said}")), "{}", report.to_table());
    assert!(report.to_html().contains(&format!("Partial: {said}")));
    assert_eq!(serde_json::json!(report)["partial"], said);
    let nothing =
        CompareReport::from_outcomes(&plan, Vec::new(), Some(EarlyStop::TimeLimit), Duration::ZERO);
    assert_eq!((nothing.reference.as_ref(), nothing.exit_status()), (None, exit::FAILURE));
    let mut round = sample_outcomes(&plan);
    round.truncate(6);
    let enough =
        CompareReport::from_outcomes(&plan, round, Some(EarlyStop::TimeLimit), Duration::ZERO);
    assert_eq!((enough.exit_status(), enough.partial.is_some()), (exit::OK, true));
    assert!(nothing.to_table().contains("0 of 18") && nothing.to_html().ends_with("</html>\n"));
}

#[test]
fn failed_servers_are_named_and_are_not_the_reference() {
    let mut plan = sample_plan();
    plan.servers.remove(1);
    plan.servers.push(ComparedServer::built_in(
        ConcurrencyModel::Prefork,
        Some(Dispatch::LeastConn),
        2,
    ));
    let outcome = |measurement: PlannedMeasurement| match (measurement.server, measurement.workload)
    {
        (0, _) => (
            measurement,
            MeasurementOutcome::ServerFailed("prefork did not start: <b>".to_string()),
        ),
        (1, 1) => (measurement, MeasurementOutcome::PathMissing),
        _ => (measurement, measured_outcome(10.0, 10.0)),
    };
    let outcomes = plan.list_measurements().into_iter().map(outcome).collect();
    let report = CompareReport::from_outcomes(&plan, outcomes, None, Duration::ZERO);
    assert_eq!((report.exit_status(), report.reference.as_deref()), (exit::FAILURE, None));
    let (table, page) = (report.to_table(), report.to_html());
    assert!(table.contains("not measured: prefork did not start"), "{table}");
    assert!(table.contains("does not have this path"), "{table}");
    assert!(page.contains("&lt;b&gt;") && !page.contains("<b>"), "{page}");
}

#[test]
fn the_page_loads_no_external_resources_and_closes_its_tags() {
    let page = complete_report().to_html();
    for piece in ["<script", "src=", "url(", "@import", "http://", "https://"] {
        assert!(!page.contains(piece), "{piece}");
    }
    for tag in ["figure", "table", "tr", "td", "th", "ul", "li", "svg", "p", "div", "h2"] {
        let opened =
            page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
        assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
    }
    assert_eq!(page.matches("<svg").count(), 2);
}
