//! The load report as text for a terminal.

use std::fmt::Write;
use std::time::Duration;

use super::part_reports::{write_ramp, write_request_kinds};
use super::{ChaosReport, FaultImpact, ProcessShare};
use super::{DueRequests, HandshakeSummary, LoadReport};
use crate::report_format::text_table::{format_bytes, format_count, format_micros, write_table};
use tokio_prefork::text::HumanDuration;

/// Most processes in the table.
const MAX_LISTED_PROCESSES: usize = 32;

/// Formats the report, a few lines for each question it answers.
pub(crate) fn render_text(report: &LoadReport) -> String {
    let mut text = String::new();
    write_head(&mut text, report);
    write_latency(&mut text, report);
    write_send_delay(&mut text, report);
    if let Some(due) = report.due_requests.filter(DueRequests::has_many_late) {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "due         {}", describe_due(&due, report.timeout_s));
    }
    write_connecting(&mut text, report);
    write_errors(&mut text, report);
    write_tls(&mut text, report);
    write_failure_notes(&mut text, report);
    write_request_kinds(&mut text, &report.request_kinds);
    write_ramp(&mut text, &report.ramp);
    write_faults(&mut text, report);
    write_processes(&mut text, report);
    write_costs(&mut text, report);
    write_environment(&mut text, report);
    text
}

fn write_head(text: &mut String, report: &LoadReport) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{} {}", report.method, report.target);
    if let Some(scenario) = &report.scenario {
        scenario.write_lines(text);
    }
    let _ = writeln!(
        text,
        "{} connections in {} threads, {}",
        report.connections, report.threads, report.manner
    );
    let rounds = match report.rounds.len() {
        1 => String::new(),
        n => format!(" in {n} rounds"),
    };
    let early = if report.ended_early { ", ended early by a signal" } else { "" };
    let span = HumanDuration(Duration::from_secs_f64(report.measured_s));
    let _ = writeln!(text, "measured for {span}{rounds}{early}\n");
    let rate = &report.per_second;
    let _ = write!(text, "requests/s  {}", format_count(rate.median));
    if report.rounds.len() > 1 {
        let _ = write!(text, " (median; {} to {})", format_count(rate.min), format_count(rate.max));
    }
    let _ = writeln!(
        text,
        "   responses {}   received {}/s",
        format_count(report.responses as f64),
        format_bytes(report.bytes_per_second)
    );
}

fn write_latency(text: &mut String, report: &LoadReport) {
    let latency = &report.latency;
    if report.responses == 0 {
        return;
    }
    let cells = [
        ("p50", latency.p50),
        ("p75", latency.p75),
        ("p90", latency.p90),
        ("p99", latency.p99),
        ("p99.9", latency.p999),
        ("max", latency.max),
        ("mean", latency.mean),
    ];
    let _ = writeln!(text, "latency     {}", join_latencies(&cells));
    if let Some(corrected) = &report.corrected {
        let cells = [
            ("p50", corrected.p50),
            ("p75", corrected.p75),
            ("p90", corrected.p90),
            ("p99", corrected.p99),
        ];
        let _ = writeln!(text, "  as wrk    {}", join_latencies(&cells));
    }
}

/// Says how late requests were sent, which is part of their latency.
fn write_send_delay(text: &mut String, report: &LoadReport) {
    let Some(delay) = &report.send_delay else { return };
    let cells = [("p50", delay.p50), ("p99", delay.p99), ("max", delay.max)];
    let _ = writeln!(text, "sent late   {} after their due times", join_latencies(&cells));
    // A generator that causes a tenth of what it measures does not measure the server.
    if delay.p99 > report.latency.p99 / 10.0 && delay.p99 > 100.0 {
        let _ = writeln!(
            text,
            "            a large part of the latency: use more connections or threads, or a lower rate"
        );
    }
}

/// Says what became of the requests that were due, as requests/s and failures alone do not.
pub(crate) fn describe_due(due: &DueRequests, timeout_s: f64) -> String {
    let count = |number: u64| format_count(number as f64);
    let never_sent = match due.never_sent {
        0 => String::new(),
        number => {
            format!("; {} of these were never sent, as no connection was free", count(number))
        }
    };
    format!(
        "{} requests: {} answered in the measured time, {} after its end, {} without a response (timeout {}){never_sent}",
        count(due.due),
        count(due.answered_in_time),
        count(due.answered_after_end),
        count(due.unanswered),
        HumanDuration(Duration::from_secs_f64(timeout_s))
    )
}

/// Says how long it took to connect, and whether some connections were served less than others.
fn write_connecting(text: &mut String, report: &LoadReport) {
    let Some(connecting) = &report.connecting else { return };
    let cells = [
        ("p50", connecting.connect_p50),
        ("p99", connecting.connect_p99),
        ("max", connecting.connect_max),
    ];
    let (fewest, most) = (connecting.fewest_responses, connecting.most_responses);
    let after = match connecting.all_answered_s {
        Some(seconds) => format!(", on all after {}", format_micros(seconds * 1e6)),
        None => String::new(),
    };
    let _ = writeln!(
        text,
        "connect     {}   responses on each connection {} to {}{after}",
        join_latencies(&cells),
        format_count(fewest as f64),
        format_count(most as f64)
    );
}

fn join_latencies(cells: &[(&str, f64)]) -> String {
    let cells = cells.iter().map(|(name, value)| format!("{name} {}", format_micros(*value)));
    cells.collect::<Vec<_>>().join("   ")
}

/// Lists the failed requests by reason; `none` without any.
pub(super) fn failure_list(report: &LoadReport) -> String {
    let statuses = [
        ("status 4xx", report.statuses.client_error),
        ("status 5xx", report.statuses.server_error),
    ];
    let failures = report.failures.occurred().map(|(kind, count)| (kind.phrase(), count));
    let all = failures.chain(statuses);
    let found: Vec<String> =
        all.filter(|(_, n)| *n > 0).map(|(name, n)| format!("{n} {name}")).collect();
    if found.is_empty() { "none".to_string() } else { found.join(", ") }
}

fn write_errors(text: &mut String, report: &LoadReport) {
    let _ = writeln!(text, "errors      {}", failure_list(report));
    if report.warm_up_failures > 0 {
        let _ = writeln!(text, "            and {} in the warm-up", report.warm_up_failures);
    }
    if report.retried > 0 {
        let _ = writeln!(
            text,
            "retried     {} requests that the server had not processed (GOAWAY or REFUSED_STREAM)",
            report.retried
        );
    }
    if report.abandoned > 0 {
        let _ = writeln!(text, "abandoned   {} requests were in flight", report.abandoned);
    }
}

fn write_tls(text: &mut String, report: &LoadReport) {
    let Some(tls) = &report.tls else { return };
    let _ = writeln!(text, "TLS         {}; {}", tls.describe_negotiated(), tls.verification);
    let counted = |name: &str, summary: &HandshakeSummary| match summary.count {
        0 => format!("{name} 0"),
        count => format!(
            "{name} {} (p50 {}, p99 {})",
            format_count(count as f64),
            format_micros(summary.p50),
            format_micros(summary.p99)
        ),
    };
    let _ = writeln!(
        text,
        "handshakes  {}/s   {}   {}   failed {}",
        format_count(tls.handshakes_per_second),
        counted("full", &tls.full),
        counted("resumed", &tls.resumed),
        tls.failed.total_failures()
    );
    for (kind, count) in tls.failed.occurred() {
        let _ = writeln!(text, "  {count} {}", kind.phrase());
    }
}

fn write_failure_notes(text: &mut String, report: &LoadReport) {
    for note in &report.failure_notes {
        let _ = writeln!(text, "  {}", note.describe());
    }
}

fn write_faults(text: &mut String, report: &LoadReport) {
    let Some(chaos) = &report.chaos else { return };
    let head = ["FAULT", "TIMES", "REFUSED", "LOST", "LATE"].map(str::to_string);
    let row = |fault: &FaultImpact| {
        let times = match (fault.is_of_one_kind(), fault.skipped) {
            (false, _) => "-".to_string(),
            (_, 0) => fault.count.to_string(),
            (_, skipped) => format!("{} ({skipped} skipped)", fault.count),
        };
        let [refused, lost, late] = [fault.refused, fault.lost, fault.late].map(|n| n.to_string());
        [fault.fault.clone(), times, refused, lost, late]
    };
    text.push('\n');
    write_table(
        text,
        &std::iter::once(head).chain(chaos.impacts_with_unexplained().map(row)).collect::<Vec<_>>(),
    );
    let _ = writeln!(text, "{}", fault_note(chaos));
    if chaos.unnoted > 0 {
        let _ =
            writeln!(text, "and {} more affected requests, not assigned to a fault", chaos.unnoted);
    }
}

/// Explains the table of faults.
pub(crate) fn fault_note(chaos: &ChaosReport) -> String {
    format!(
        "late: answered after more than {}; none: no fault at that time; several kinds: which of them cannot be known",
        format_micros(chaos.late_after_ms * 1000.0)
    )
}

fn write_processes(text: &mut String, report: &LoadReport) {
    if report.pids.is_empty() {
        return;
    }
    const COLUMN_TITLES: [&str; 7] = ["PID", "REQUESTS", "SHARE", "CONN", "P50", "P99", "MAX"];
    let row = |p: &ProcessShare| {
        [
            p.pid.to_string(),
            p.requests.to_string(),
            format!("{:.1} %", p.share * 100.0),
            p.connections.to_string(),
            format_micros(p.p50),
            format_micros(p.p99),
            format_micros(p.max),
        ]
    };
    let listed = report.pids.iter().take(MAX_LISTED_PROCESSES).map(row);
    let rows: Vec<[String; 7]> =
        std::iter::once(COLUMN_TITLES.map(str::to_string)).chain(listed).collect();
    text.push('\n');
    write_table(text, &rows);
    if report.pids.len() > MAX_LISTED_PROCESSES || report.other_pids > 0 {
        let more = report.pids.len().saturating_sub(MAX_LISTED_PROCESSES);
        let _ = writeln!(text, "... {more} more processes (--json lists a thousand)");
    }
    if let Some(balance) = &report.balance {
        let _ = writeln!(
            text,
            "balance     most/least {:.2}, coefficient of variation {:.1} %",
            balance.max_to_min,
            balance.variation * 100.0
        );
    }
}

fn write_costs(text: &mut String, report: &LoadReport) {
    let each = |seconds: f64| seconds * 1e6 / report.requests_served().max(1.0);
    text.push('\n');
    if let Some(server) = &report.server {
        let _ = writeln!(
            text,
            "server      pid {} ({}), {} processes",
            server.pid, server.name, server.processes
        );
        let _ = writeln!(
            text,
            "  CPU       {:.1} us/request (user {:.1}, system {:.1})",
            each(server.user_s + server.system_s),
            each(server.user_s),
            each(server.system_s)
        );
        let _ = writeln!(
            text,
            "  switches  {} voluntary, {} involuntary",
            format_count(server.voluntary as f64),
            format_count(server.involuntary as f64)
        );
        if let (Some(before), Some(after)) = (server.pss_before_kib, server.pss_after_kib) {
            let mib = |kib: u64| kib as f64 / 1024.0;
            let _ = writeln!(
                text,
                "  memory    {:.1} MiB PSS before, {:.1} after",
                mib(before),
                mib(after)
            );
        }
    }
    // The CPU time includes the warm-up, so its responses count here.
    let own = report.generator.user_s + report.generator.system_s;
    let asked = (report.responses + report.warm_up_responses).max(1) as f64;
    let _ = writeln!(text, "generator   CPU {:.1} us/request, not in the above", own * 1e6 / asked);
}

fn write_environment(text: &mut String, report: &LoadReport) {
    text.push('\n');
    for (name, value) in report.environment.lines() {
        let _ = writeln!(text, "{name:11} {value}");
    }
}

#[cfg(test)]
#[path = "text_tests.rs"]
mod tests;
