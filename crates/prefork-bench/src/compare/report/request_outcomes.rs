//! What became of the requests of a comparison: which failed, which were late, and which process answered.

use std::collections::BTreeSet;
use std::time::Duration;

use super::parts::fault_losses;
use super::{CompareReport, ServerWorkloadReport, WorkloadReport};
use crate::load::{DueRequests, describe_due};
use crate::report_format::text_table::format_count;
use tokio_prefork::text::HumanDuration;

/// Says which requests failed or were late: a server that loses requests may look fast.
pub(crate) fn failures_line(report: &CompareReport) -> String {
    let cells = report.workloads.iter().flat_map(|workload| {
        let servers = workload.servers.iter();
        servers.map(move |server| (workload, server))
    });
    let cells: Vec<(&WorkloadReport, &ServerWorkloadReport)> = cells.collect();
    let failed = cells.iter().filter(|(_, server)| server.errors > 0).map(|(workload, server)| {
        let name = workload.workload.name();
        format!("{} of {} under {name}{}", server.errors, server.server, fault_losses(server))
    });
    let failed: Vec<String> = failed.collect();
    let compared = cells.iter().filter(|(_, server)| !server.is_control);
    let late = compared.filter_map(|(workload, server)| {
        let due = due_requests(server).filter(DueRequests::has_many_late)?;
        let [late, due] = [due.answered_after_end, due.due].map(|count| format_count(count as f64));
        let name = workload.workload.name();
        (late != "0").then(|| format!("{} under {name} {late} of {due}", server.server))
    });
    let late: Vec<String> = late.collect();
    let failed = match failed.is_empty() {
        _ if report.measured == 0 => return "Failed requests: nothing was measured.".to_string(),
        true => "none".to_string(),
        false => failed.join(", "),
    };
    let late = match late.is_empty() {
        true => String::new(),
        false => format!(
            " Late, but not failed, are those answered after the measured time: {}. Their whole wait counts in the latency; \
             requests/s counts responses in the measured time.",
            late.join(", ")
        ),
    };
    format!(
        "Failed requests: {failed}. A request fails without a response within {}, or with a status of 400 or more.{late}",
        timeouts(report)
    )
}

/// Returns the timeouts of the loads, such as `3 s` or `3 s or 10 s`.
fn timeouts(report: &CompareReport) -> String {
    let all: BTreeSet<Duration> =
        report.workloads.iter().map(|one| one.workload.measured_timeout()).collect();
    let all: Vec<String> =
        all.into_iter().map(|timeout| HumanDuration(timeout).to_string()).collect();
    all.join(" or ")
}

/// Returns what became of the requests of a server that were due, in all rounds; `None` in a closed loop.
fn due_requests(server: &ServerWorkloadReport) -> Option<DueRequests> {
    let all = || server.samples.iter().filter_map(|sample| sample.due_requests.as_ref());
    all().next()?;
    Some(DueRequests::sum(all()))
}

/// Says what became of the requests that were due, for a server that has not answered almost all of them in time.
pub(crate) fn due_line(workload: &WorkloadReport, server: &ServerWorkloadReport) -> Option<String> {
    let due = due_requests(server).filter(DueRequests::has_many_late)?;
    let timeout_s = workload.workload.measured_timeout().as_secs_f64();
    Some(format!("{}: due in all rounds were {}", server.server, describe_due(&due, timeout_s)))
}

/// Returns the share of the busiest process in the requests of a server, such as `52 %`: the median of the rounds.
pub(crate) fn busiest_share(server: &ServerWorkloadReport) -> Option<String> {
    server.busiest.map(|share| format!("{:.0} %", share.median * 100.0))
}

/// Says why the shares of the processes are uneven beside other loads; `None` without these.
pub(crate) fn busiest_note(workload: &WorkloadReport) -> Option<String> {
    let measured = workload.workload.measured_load();
    let beside = workload.workload.loads.iter().filter(|load| !load.measured);
    let beside: Vec<&str> = beside.map(|load| load.name.as_str()).collect();
    let has_shares = workload.servers.iter().any(|server| server.busiest.is_some());
    (has_shares && !beside.is_empty()).then(|| {
        format!(
            "BUSIEST counts the requests of the load {:?} only. A process that the load {:?} occupies leaves them to the others, so \
             an uneven share, up to 100 %, is no fault here",
            measured.name,
            beside.join(", ")
        )
    })
}
