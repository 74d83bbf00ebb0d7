//! The report of the CPU demo, as data and as text.

use serde::Serialize;

use super::CpuDemoPlan;
use super::compute_timing::ComputeTiming;
use super::creation_cost::CreationCost;
use super::latency_under_load::LatencyUnderLoad;
use crate::job_costs::JobCosts;
use crate::report_format::text_table::{format_micros, write_section};
use tokio_prefork::exit;

/// How the latencies were measured.
const HOW_LATENCY_IS_MEASURED: &str = "All cores are kept awake by threads that run only while nothing else does (SCHED_IDLE), as a core with nothing to do sleeps, and \
     waking it takes longer than taking it from a computation: an idle server would look slower than one that computes in the pool. \
     A ratio is told if the p99 was higher in all rounds than without computation; otherwise a difference is not shown, whatever the \
     figures of all rounds together look like.";

/// How many times its median the p99 of an idle server is at most, on a machine that does nothing else.
const NOISY_P99_RATIO: f64 = 20.0;

/// Report of the CPU demo. Parts that were not run are empty.
#[derive(Debug, Serialize)]
pub struct CpuDemoReport {
    version: &'static str,
    cores: usize,
    /// Fibonacci number of the timings, and of the requests.
    fib: u64,
    asked: u64,
    pub(super) computing: Vec<ComputeTiming>,
    pub(super) creating: Vec<CreationCost>,
    pub(super) jobs: Option<JobCosts>,
    pub(super) serving: Vec<LatencyUnderLoad>,
    /// Whether no signal ended it early.
    pub(super) complete: bool,
    reading: String,
}

impl CpuDemoReport {
    /// Creates a report without figures.
    pub(super) fn new(plan: &CpuDemoPlan, cores: usize) -> CpuDemoReport {
        CpuDemoReport {
            version: env!("CARGO_PKG_VERSION"),
            cores,
            fib: plan.computed_fib,
            asked: plan.requested_fib,
            computing: Vec::new(),
            creating: Vec::new(),
            jobs: None,
            serving: Vec::new(),
            complete: true,
            reading: String::new(),
        }
    }

    /// Describes the figures when all are there.
    pub(super) fn finish(mut self) -> CpuDemoReport {
        self.reading = self.describe_results();
        self
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
        let mut text = String::new();
        if !self.creating.is_empty() {
            self.write_computing(&mut text);
            self.write_creating(&mut text);
        }
        if let Some(jobs) = &self.jobs {
            text.push_str(&jobs.to_table());
        }
        if !self.serving.is_empty() {
            self.write_serving(&mut text);
        }
        for LatencyUnderLoad { how, failed, .. } in self.serving.iter().filter(|one| one.failed > 0)
        {
            text.push_str(&format!("FAILED: {failed} requests for / ({how})\n\n"));
        }
        if !self.complete {
            text.push_str("PARTIAL: a signal ended it early\n\n");
        }
        text + &self.reading + "\n"
    }

    fn write_computing(&self, text: &mut String) {
        let what = format!("fib({})", self.fib);
        let mut rows = vec![[&what, "TIME", "RATIO", "IDEAL"].map(|word| word.to_string())];
        rows.extend(self.computing.iter().map(|one| {
            let of = |ratio: f64| format!("{ratio:.2}");
            [one.how.clone(), format_micros(one.seconds * 1e6), of(one.ratio), of(one.ideal)]
        }));
        write_section(text, &mut rows);
    }

    fn write_creating(&self, text: &mut String) {
        let mut rows = vec![["", "NEW", "REUSED", "RATIO"].map(str::to_string)];
        rows.extend(self.creating.iter().map(|one| {
            let ratio = format!("{:.1}x", one.new_us / one.reused_us);
            [one.what.to_string(), format_micros(one.new_us), format_micros(one.reused_us), ratio]
        }));
        write_section(text, &mut rows);
    }

    fn write_serving(&self, text: &mut String) {
        let title = format!("LATENCY OF / DURING /fib/{}", self.asked);
        let mut rows =
            vec![[&title, "P50", "P99", "MAX", "P99 RATIO"].map(|word| word.to_string())];
        rows.extend(self.serving.iter().enumerate().map(|(at, one)| {
            let ratio = match one.is_higher {
                _ if at == 0 => "baseline".to_string(),
                true => format!("{:.1}x", one.ratio),
                false => "not shown".to_string(),
            };
            [
                one.how.clone(),
                format_micros(one.p50),
                format_micros(one.p99),
                format_micros(one.max),
                ratio,
            ]
        }));
        write_section(text, &mut rows);
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
        said.extend(self.jobs.iter().map(|jobs| jobs.reading.clone()));
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
            said.extend(describe_impossible(idle, &self.serving[1..]));
            if idle.p99 > NOISY_P99_RATIO * idle.p50 {
                said.push(
                    "Without any computation the p99 is far above the median, so other programs use these cores: compare the \
                     medians."
                        .to_string(),
                );
            }
            said.push(HOW_LATENCY_IS_MEASURED.to_string());
        }
        said.join(" ")
    }
}

/// Explains figures that computing cannot have improved; `None` if there are none.
fn describe_impossible(idle: &LatencyUnderLoad, computing: &[LatencyUnderLoad]) -> Option<String> {
    let better = |value: fn(&LatencyUnderLoad) -> f64, name: &str| {
        let is_lower = |one: &&LatencyUnderLoad| {
            value(one) < value(idle) && format_micros(value(one)) != format_micros(value(idle))
        };
        let cases = computing.iter().filter(is_lower);
        let cases =
            cases.map(|one| format!("{name} {} ({})", format_micros(value(one)).trim(), one.how));
        cases.collect::<Vec<_>>()
    };
    let lower = [better(|one| one.p50, "p50"), better(|one| one.p99, "p99")].concat();
    (!lower.is_empty()).then(|| {
        format!(
            "Lower than without computation: {}. Computing cannot make other requests faster, so take these as equal: rounds differ by \
             what else runs on the machine, and the p99 of all rounds together is that of the few worst moments.",
            lower.join(", ")
        )
    })
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
            is_higher: ratio > 1.0,
            failed: 0,
        };
        let mut report = CpuDemoReport::new(&CpuDemoPlan::full(), 2);
        report.computing = [1.0, 0.51, 0.61, 0.52].map(computed).to_vec();
        report.creating = vec![
            created("thread", 20.0),
            created("forked process", 300.0),
            created("fresh", 2000.0),
        ];
        report.serving = [1.0, on_loop, 3.0, 4.0].map(served).to_vec();
        report.finish()
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
        assert!(usual.reading.contains("All cores are kept awake"), "{}", usual.reading);
        let mut usual = usual;
        usual.serving[2].is_higher = false;
        let table = usual.to_table();
        assert!(table.contains("  not shown\n"), "{table}");
        for words in ["0.61", "60.0x", "baseline", "5000.0x"] {
            assert!(table.contains(words), "{words}: {table}");
        }
        assert!(usual.to_json().contains("\"complete\": true"));
    }

    #[test]
    fn a_machine_that_others_use_is_named() {
        let mut report = sample_report(5_000.0);
        assert!(!report.describe_results().contains("other programs"));
        report.serving[0].p99 = 50.0 * report.serving[0].p50;
        assert!(report.describe_results().contains("other programs use these cores"));
    }

    #[test]
    fn a_figure_that_computing_cannot_have_improved_is_explained() {
        let explained = |change: fn(&mut LatencyUnderLoad)| {
            let mut report = sample_report(5_000.0);
            change(&mut report.serving[2]);
            report.describe_results()
        };
        assert!(!explained(|_| ()).contains("Lower than without computation"));
        let text = explained(|pool| pool.p99 = 70.0);
        assert!(text.contains("Lower than without computation: p99 70 us (so)."), "{text}");
        let text = explained(|pool| (pool.p50, pool.p99) = (60.0, 99.0));
        assert!(text.contains("computation: p50 60 us (so), p99 99 us (so)."), "{text}");
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
