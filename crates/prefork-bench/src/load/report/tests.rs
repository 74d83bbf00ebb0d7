use std::time::Duration;

use super::*;
use crate::chaos::InjectedFaults;
use crate::load::request_failure::RequestFailure;
use crate::load::target_url::TargetUrl;
use tokio_prefork::ListenAddr;

/// Report of one second with 1000 responses, each 1 us slower than the last; two resets and one status 500.
pub(crate) fn sample_report() -> LoadReport {
    let mut counters = LoadCounters::new();
    let mut known = [None; 2];
    for n in 1..=1000u64 {
        let (status, side) = (if n == 9 { 500 } else { 200 }, usize::from(n > 250));
        let pid = Some(7 + side as u32);
        known[side] = counters.record_response(status, n * 1000, pid, known[side]);
        counters.record_timeline(n * 999_000, Some(n * 1000));
        counters.completed_in_time += 1;
        counters.bytes += 69;
    }
    counters.record_failure(RequestFailure::Reset);
    counters.record_failure(RequestFailure::Reset);
    counters.record_timeline(TIMELINE_BIN_NANOS, None);
    let usage = ProcessTreeUsage {
        pid: 6,
        name: "prefork".to_string(),
        processes: 3,
        user_s: 0.02,
        system_s: 0.01,
        voluntary: 1234,
        involuntary: 5,
        pss_before_kib: Some(2048),
        pss_after_kib: Some(3072),
    };
    let round = RoundResult {
        counters,
        measured: Duration::from_secs(1),
        usage: Some(usage),
        injected: InjectedFaults::default(),
    };
    report_from_rounds(vec![round])
}

fn report_from_rounds(rounds: Vec<RoundResult>) -> LoadReport {
    let plan = LoadPlan::new(TargetUrl::parse("http://127.0.0.1:3000/").expect("url"));
    let listener: ListenAddr = "127.0.0.1:3000".parse().expect("address");
    LoadReport::from_rounds(&plan, &listener, rounds, CpuTime { user: 0.01, system: 0.005 }, false)
}

#[test]
fn json_has_the_counts_by_name() {
    let json: serde_json::Value = serde_json::from_str(&sample_report().to_json()).expect("JSON");
    assert_eq!(json["statuses"]["5xx"], 1);
    assert_eq!(json["failures"]["reset"], 2);
    assert_eq!(json["pids"][0]["pid"], 8);
    assert_eq!(json["timeline"]["responses"].as_array().map(Vec::len), Some(10));
    assert_eq!(json["timeline"]["failures"][1], 1);
}

#[test]
fn the_exit_status_depends_on_failures() {
    let mut report = sample_report();
    assert_eq!(report.exit_status(), exit::FAILURE);
    report.failures = FailureCounts::default();
    (report.statuses.server_error, report.responses) = (0, 5);
    assert_eq!(report.exit_status(), exit::OK);
    report.warm_up_failures = 1;
    assert_eq!(report.exit_status(), exit::FAILURE);
    report.responses = 0;
    assert_eq!(report.exit_status(), exit::UNAVAILABLE);
}

#[test]
fn rounds_are_summarized_together() {
    let round = |answers: u64, millis: u64| {
        let mut counters = LoadCounters::new();
        counters.completed_in_time = answers;
        counters.status_classes[2] = answers;
        RoundResult {
            counters,
            measured: Duration::from_millis(millis),
            usage: None,
            injected: InjectedFaults::default(),
        }
    };
    let report = report_from_rounds(vec![round(10, 1000), round(40, 1000), round(10, 500)]);
    let rate = &report.per_second;
    assert_eq!((rate.median, rate.min, rate.max), (20.0, 10.0, 40.0));
    assert_eq!((report.responses, report.measured_s), (60, 2.5));
    assert_eq!(report.timeline.round_starts, [10, 20]);
    assert_eq!(report.timeline.responses.len(), 25);
    assert!(report.balance.is_none() && report.server.is_none() && report.pids.is_empty());
}

#[test]
fn a_stall_counts_for_the_requests_a_closed_loop_did_not_send() {
    let mut counters = LoadCounters::new();
    for millis in std::iter::repeat_n(10, 50).chain([500]) {
        counters.record_response(200, millis * 1_000_000, None, None);
    }
    let corrected = LatencySummary::with_omission_corrected(&counters, 1, 1.0);
    // One request each 19.6 ms: 24 more would have been due in those 500 ms.
    let ten_ms = 10_000.0..10_010.0;
    assert!(
        ten_ms.contains(&LatencySummary::from_histogram(&counters.latency).p90),
        "as it was measured"
    );
    assert!(ten_ms.contains(&corrected.p50), "{}", corrected.p50);
    assert!((330_000.0..370_000.0).contains(&corrected.p90), "{}", corrected.p90);
    let closed = LoadPlan::new(TargetUrl::parse("http://127.0.0.1:3000/").expect("url"));
    assert!(closed.is_closed_loop());
    assert!(!LoadPlan { rate: Some(5), ..closed.clone() }.is_closed_loop());
    assert!(!LoadPlan { pipeline_depth: 2, ..closed }.is_closed_loop());
}

#[test]
fn an_empty_run_has_a_report() {
    let round = RoundResult {
        counters: LoadCounters::new(),
        measured: Duration::ZERO,
        usage: None,
        injected: InjectedFaults::default(),
    };
    let report = report_from_rounds(vec![round]);
    assert_eq!((report.per_second.median, report.bytes_per_second), (0.0, 0.0));
    assert!(report.to_table().contains("requests/s  0") && report.to_html().ends_with("</html>\n"));
}
