//! A report as people read it in a terminal. Pure.

use std::fmt::Write;

use super::Report;
use super::figures::{FaultReport, PidReport};
use tokio_prefork::text::HumanDuration;

/// Processes that are listed.
const LISTED: usize = 32;

/// The whole report, a few lines for each question it answers.
pub(crate) fn table(report: &Report) -> String {
    let mut text = String::new();
    head(&mut text, report);
    latency(&mut text, report);
    errors(&mut text, report);
    faults(&mut text, report);
    processes(&mut text, report);
    costs(&mut text, report);
    text
}

fn head(text: &mut String, report: &Report) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{} {}", report.method, report.target);
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
    let span = HumanDuration(std::time::Duration::from_secs_f64(report.measured_s));
    let _ = writeln!(text, "measured for {span}{rounds}{early}\n");
    let rate = &report.per_second;
    let _ = write!(text, "requests/s  {}", count(rate.median));
    if report.rounds.len() > 1 {
        let _ = write!(text, " (median; {} to {})", count(rate.min), count(rate.max));
    }
    let _ = writeln!(
        text,
        "   responses {}   received {}/s",
        count(report.responses as f64),
        bytes(report.bytes_per_second)
    );
}

fn latency(text: &mut String, report: &Report) {
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
    let _ = writeln!(text, "latency     {}", listed(&cells));
    if let Some(corrected) = &report.corrected {
        let cells = [
            ("p50", corrected.p50),
            ("p75", corrected.p75),
            ("p90", corrected.p90),
            ("p99", corrected.p99),
        ];
        let _ = writeln!(text, "  as wrk    {}", listed(&cells));
    }
}

fn listed(cells: &[(&str, f64)]) -> String {
    let cells = cells.iter().map(|(name, value)| format!("{name} {}", time(*value)));
    cells.collect::<Vec<_>>().join("   ")
}

fn errors(text: &mut String, report: &Report) {
    let statuses = [("status 4xx", report.statuses.wrong), ("status 5xx", report.statuses.broken)];
    let all = report.failures.named().into_iter().chain(statuses);
    let found: Vec<String> =
        all.filter(|(_, n)| *n > 0).map(|(name, n)| format!("{n} {name}")).collect();
    let found = if found.is_empty() { "none".to_string() } else { found.join(", ") };
    let _ = writeln!(text, "errors      {found}");
    if report.warm_up_failures > 0 {
        let _ = writeln!(text, "            and {} in the warm-up", report.warm_up_failures);
    }
    if report.abandoned > 0 {
        let _ = writeln!(text, "abandoned   {} requests were on the way", report.abandoned);
    }
}

fn faults(text: &mut String, report: &Report) {
    let Some(chaos) = &report.chaos else { return };
    let head = ["FAULT", "TIMES", "REFUSED", "LOST", "LATE"].map(str::to_string);
    let row = |fault: &FaultReport| {
        let times = match (fault.fault, fault.skipped) {
            ("none", _) => "-".to_string(),
            (_, 0) => fault.count.to_string(),
            (_, skipped) => format!("{} ({skipped} skipped)", fault.count),
        };
        let [refused, lost, late] = [fault.refused, fault.lost, fault.late].map(|n| n.to_string());
        [fault.fault.to_string(), times, refused, lost, late]
    };
    text.push('\n');
    grid(text, &std::iter::once(head).chain(chaos.rows().map(row)).collect::<Vec<_>>());
    let _ = writeln!(
        text,
        "late: answered after more than {}; none: no fault was near",
        time(chaos.late_after_ms * 1000.0)
    );
    if chaos.unnoted > 0 {
        let _ = writeln!(text, "and {} more requests, by no fault told apart", chaos.unnoted);
    }
}

fn processes(text: &mut String, report: &Report) {
    if report.pids.is_empty() {
        return;
    }
    const HEAD: [&str; 7] = ["PID", "REQUESTS", "SHARE", "CONN", "P50", "P99", "MAX"];
    let row = |p: &PidReport| {
        [
            p.pid.to_string(),
            p.requests.to_string(),
            format!("{:.1} %", p.share * 100.0),
            p.connections.to_string(),
            time(p.p50),
            time(p.p99),
            time(p.max),
        ]
    };
    let listed = report.pids.iter().take(LISTED).map(row);
    let rows: Vec<[String; 7]> = std::iter::once(HEAD.map(str::to_string)).chain(listed).collect();
    text.push('\n');
    grid(text, &rows);
    if report.pids.len() > LISTED || report.other_pids > 0 {
        let more = report.pids.len().saturating_sub(LISTED);
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

fn costs(text: &mut String, report: &Report) {
    let each = |seconds: f64| seconds * 1e6 / report.served().max(1.0);
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
            count(server.voluntary as f64),
            count(server.involuntary as f64)
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
    // Its warm-up costs, too, so the requests of that count here.
    let own = report.generator.user_s + report.generator.system_s;
    let asked = (report.responses + report.warm_up_responses).max(1) as f64;
    let _ = writeln!(text, "generator   CPU {:.1} us/request, not in the above", own * 1e6 / asked);
}

/// Rows of cells, each column as wide as need be.
pub fn grid<const N: usize>(text: &mut String, rows: &[[String; N]]) {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: [usize; N] = std::array::from_fn(|column| width(column).unwrap_or(0));
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:>width$}"));
        let _ = writeln!(text, "{}", cells.collect::<Vec<_>>().join("  "));
    }
}

/// Microseconds as people read them.
pub fn time(micros: f64) -> String {
    match micros {
        us if us < 1000.0 => format!("{us:.0} us"),
        us if us < 10_000.0 => format!("{:.2} ms", us / 1e3),
        us if us < 1_000_000.0 => format!("{:.0} ms", us / 1e3),
        us => format!("{:.2} s", us / 1e6),
    }
}

/// `1 234 567`.
pub fn count(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

fn bytes(number: f64) -> String {
    match number {
        n if n < 1e3 => format!("{n:.0} B"),
        n if n < 1e6 => format!("{:.1} kB", n / 1e3),
        n if n < 1e9 => format!("{:.1} MB", n / 1e6),
        n => format!("{:.2} GB", n / 1e9),
    }
}

#[cfg(test)]
#[path = "text_tests.rs"]
mod tests;
