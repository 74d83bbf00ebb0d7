//! The report of the CPU demo, as data and as text.

use std::fmt::Write;

use serde::Serialize;

use super::CpuDemoPlan;
use super::compute_timing::ComputeTiming;
use super::creation_cost::CreationCost;
use super::latency_under_load::LatencyUnderLoad;
use crate::report_format::text_table::{format_micros, write_table};
use tokio_prefork::exit;

/// Report of the CPU demo.
#[derive(Debug, Serialize)]
pub struct CpuDemoReport {
    version: &'static str,
    cores: usize,
    /// Fibonacci number of the timings, and of the requests.
    fib: u64,
    asked: u64,
    computing: Vec<ComputeTiming>,
    creating: Vec<CreationCost>,
    serving: Vec<LatencyUnderLoad>,
    /// Whether no signal ended it early.
    complete: bool,
    reading: String,
}

impl CpuDemoReport {
    pub(crate) fn from_measurements(
        plan: &CpuDemoPlan,
        cores: usize,
        computing: Vec<ComputeTiming>,
        creating: Vec<CreationCost>,
        serving: Vec<LatencyUnderLoad>,
        complete: bool,
    ) -> CpuDemoReport {
        let version = env!("CARGO_PKG_VERSION");
        let (fib, asked, reading) = (plan.computed_fib, plan.requested_fib, String::new());
        let mut report = CpuDemoReport {
            version,
            cores,
            fib,
            asked,
            computing,
            creating,
            serving,
            complete,
            reading,
        };
        report.reading = report.describe_results();
        report
    }

    /// Formats the report as JSON.
    pub fn to_json(&self) -> String {
        // Numbers and texts only: this cannot fail.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// Returns the exit status: 0, or 1 if a signal ended it early.
    pub fn exit_status(&self) -> u8 {
        if self.complete { exit::OK } else { exit::FAILURE }
    }

    /// Formats the report as text for a terminal.
    pub fn to_table(&self) -> String {
        let head = |words: [&str; 4]| words.map(str::to_string);
        let mut text = String::new();
        let what = format!("fib({})", self.fib);
        let mut rows = vec![head([&what, "TIME", "RATIO", "IDEAL"])];
        rows.extend(self.computing.iter().map(|one| {
            let of = |ratio: f64| format!("{ratio:.2}");
            [one.how.clone(), format_micros(one.seconds * 1e6), of(one.ratio), of(one.ideal)]
        }));
        write_section(&mut text, &mut rows);
        let mut rows = vec![head(["", "NEW", "REUSED", "RATIO"])];
        rows.extend(self.creating.iter().map(|one| {
            let ratio = format!("{:.1}x", one.new_us / one.reused_us);
            [one.what.to_string(), format_micros(one.new_us), format_micros(one.reused_us), ratio]
        }));
        write_section(&mut text, &mut rows);
        let title = format!("LATENCY OF / DURING /fib/{}", self.asked);
        let mut rows =
            vec![[&title, "P50", "P99", "MAX", "P99 RATIO"].map(|word| word.to_string())];
        rows.extend(self.serving.iter().map(|one| {
            let ratio = format!("{:.1}x", one.ratio);
            [
                one.how.clone(),
                format_micros(one.p50),
                format_micros(one.p99),
                format_micros(one.max),
                ratio,
            ]
        }));
        write_section(&mut text, &mut rows);
        for LatencyUnderLoad { how, failed, .. } in self.serving.iter().filter(|one| one.failed > 0)
        {
            text.push_str(&format!("FAILED: {failed} requests for / ({how})\n\n"));
        }
        if !self.complete {
            text.push_str("PARTIAL: a signal ended it early\n\n");
        }
        text + &self.reading + "\n"
    }

    /// Describes what the figures show on this machine.
    fn describe_results(&self) -> String {
        let mut said = Vec::new();
        if let [_, threads, pool, processes] = &self.computing[..] {
            said.push(format!(
                "On {} cores the same work took {:.2} of its time on threads, {:.2} in the pool (at best {:.2}, with \
                 whole batches) and {:.2} in processes: {}.",
                self.cores,
                threads.ratio,
                pool.ratio,
                pool.ideal,
                processes.ratio,
                match threads.ratio.min(processes.ratio) {
                    best if best > 0.8 => "nothing was gained, so the cores were busy with something else",
                    _ if (threads.ratio - processes.ratio).abs() < 0.1 =>
                        "threads and processes compute equally well",
                    _ if threads.ratio < processes.ratio => "threads did better here",
                    _ => "processes did better here",
                }
            ));
        }
        if let [thread, forked, fresh] = &self.creating[..] {
            said.push(format!(
                "A new thread costs {}, a forked process {}, a fresh program {}; a waiting one answers after \
                 {} or {}, so create what you need often only once.",
                format_micros(thread.new_us).trim(),
                format_micros(forked.new_us).trim(),
                format_micros(fresh.new_us).trim(),
                format_micros(thread.reused_us).trim(),
                format_micros(forked.reused_us).trim(),
            ));
        }
        if let [idle, on_loop, pool, processes] = &self.serving[..] {
            let freezes = on_loop.ratio > 10.0 && on_loop.ratio > 3.0 * pool.ratio;
            said.push(format!(
                "While two clients requested numbers, the p99 of / went from {} to {} with the work on the event loop, to {} \
                 in the pool and to {} over processes: {}.",
                format_micros(idle.p99).trim(),
                format_micros(on_loop.p99).trim(),
                format_micros(pool.p99).trim(),
                format_micros(processes.p99).trim(),
                match freezes {
                    true => "one request that computes blocks its event loop for all others, and a pool does not",
                    false => "too little work to block the event loop, or too busy a machine",
                }
            ));
        }
        said.join(" ")
    }
}

/// Writes a table whose first column is left-aligned, and an empty line.
fn write_section<const N: usize>(text: &mut String, rows: &mut [[String; N]]) {
    let width = rows.iter().map(|row| row[0].chars().count()).max().unwrap_or(0);
    rows.iter_mut().for_each(|row| row[0] = format!("{:width$}", row[0]));
    write_table(text, rows);
    // Writing to a string cannot fail.
    let _ = writeln!(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample_report(on_loop: f64) -> CpuDemoReport {
        let computed =
            |ratio| ComputeTiming { how: "so".into(), seconds: 4.0 * ratio, ratio, ideal: 0.5 };
        let created = |what, new_us| CreationCost { what, new_us, reused_us: 5.0 };
        let served = |ratio| LatencyUnderLoad {
            how: "so".into(),
            p50: 90.0,
            p99: 100.0 * ratio,
            max: 1e5,
            ratio,
            failed: 0,
        };
        CpuDemoReport::from_measurements(
            &CpuDemoPlan::FULL,
            2,
            [1.0, 0.51, 0.61, 0.52].map(computed).to_vec(),
            vec![
                created("thread", 20.0),
                created("forked process", 300.0),
                created("fresh", 2000.0),
            ],
            [1.0, on_loop, 3.0, 4.0].map(served).to_vec(),
            true,
        )
    }

    #[test]
    fn the_description_matches_the_figures() {
        let usual = sample_report(5_000.0);
        for words in
            ["equally well", "p99 of / went from 100 us to 500 ms", "blocks its event loop"]
        {
            assert!(usual.reading.contains(words), "{words}: {}", usual.reading);
        }
        assert!(
            sample_report(2.0).reading.contains("too little work"),
            "{}",
            sample_report(2.0).reading
        );
        let table = usual.to_table();
        assert!(table.contains("0.61") && table.contains("60.0x"), "{table}");
        assert!(usual.to_json().contains("\"complete\": true"));
    }

    #[test]
    fn an_incomplete_report_says_so() {
        let mut cut = sample_report(5_000.0);
        cut.complete = false;
        assert!(cut.to_table().contains("PARTIAL"));
        assert_eq!(cut.exit_status(), 1);
    }

    #[test]
    fn failed_requests_are_reported() {
        let mut report = sample_report(5_000.0);
        assert!(!report.to_table().contains("FAILED"));
        report.serving[1].failed = 17;
        assert!(report.to_table().contains("FAILED: 17 requests for / (so)"));
    }
}
