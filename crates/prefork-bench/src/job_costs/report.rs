//! The rows of the report on the cost of a job, and its text.

use serde::Serialize;

use super::program_plan::ProgramCosts;
use super::{BATCH, CrashCost, JobWay, MissingPeer, OTHER_JOBS, THREADS, TRANSFER_BYTES};
use crate::report_format::text_table::{format_micros, write_section};

/// Cost of an empty job, from its submission to its result.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EmptyJobCost {
    /// Where the job ran.
    pub how: String,
    /// Median of jobs one at a time, in microseconds.
    pub p50_us: f64,
    /// 99th percentile of jobs one at a time, in microseconds.
    pub p99_us: f64,
    /// Median divided by that of the pool.
    pub p50_ratio: f64,
    /// Microseconds for each of many jobs that are submitted at once, median.
    pub bulk_us: f64,
    /// That divided by the pool's.
    pub bulk_ratio: f64,
}

/// Cost of a job that receives 10 MiB and returns them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TransferCost {
    /// Where the job ran, and how the data travelled.
    pub how: String,
    /// Median in microseconds.
    pub p50_us: f64,
    /// 99th percentile in microseconds.
    pub p99_us: f64,
    /// Median divided by that of `Vec<u8>` to and from an isolated process.
    pub ratio: f64,
}

/// The cost of a job by where it runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JobCosts {
    /// Threads or processes of each pool.
    pub threads: usize,
    /// Jobs in a batch.
    pub batch: usize,
    /// Bytes that a job receives and returns.
    pub bytes: usize,
    /// Empty jobs.
    pub empty: Vec<EmptyJobCost>,
    /// Jobs with data.
    pub transfer: Vec<TransferCost>,
    /// Jobs that abort their process.
    pub crash: Vec<CrashCost>,
    /// Peers without figures.
    pub missing: Vec<MissingPeer>,
    /// The result in words.
    pub reading: String,
}

/// Name of the transfer in memory that the processes share.
pub(super) const ISOLATED_MAPPED: &str = "isolated process, MappedBytes";

/// Name of the transfer that is the reference for data.
pub(super) const ISOLATED_VEC: &str = "isolated process, Vec<u8>";

impl JobCosts {
    pub(super) fn new() -> JobCosts {
        JobCosts {
            threads: THREADS,
            batch: BATCH,
            bytes: TRANSFER_BYTES,
            empty: Vec::new(),
            transfer: Vec::new(),
            crash: Vec::new(),
            missing: Vec::new(),
            reading: String::new(),
        }
    }

    /// Adds the rows of one way, without ratios.
    pub(super) fn add_way(&mut self, name: &str, costs: &ProgramCosts) {
        self.empty.push(EmptyJobCost {
            how: name.to_string(),
            p50_us: quantile(&costs.one_by_one_us, 0.5),
            p99_us: quantile(&costs.one_by_one_us, 0.99),
            p50_ratio: 1.0,
            bulk_us: quantile(&costs.bulk_us, 0.5),
            bulk_ratio: 1.0,
        });
        self.transfer.extend(costs.transfers.iter().map(|transfer| TransferCost {
            how: transfer.how.clone(),
            p50_us: quantile(&transfer.samples_us, 0.5),
            p99_us: quantile(&transfer.samples_us, 0.99),
            ratio: 1.0,
        }));
    }

    /// Computes the ratios and describes the result.
    pub(super) fn finish(mut self) -> JobCosts {
        if let Some(pool) = self.empty.iter().find(|row| row.how == JobWay::Pool.name()).cloned() {
            for row in &mut self.empty {
                row.p50_ratio = row.p50_us / pool.p50_us;
                row.bulk_ratio = row.bulk_us / pool.bulk_us;
            }
        }
        if let Some(reference) = self.transfer.iter().find(|row| row.how == ISOLATED_VEC).cloned() {
            self.transfer.iter_mut().for_each(|row| row.ratio = row.p50_us / reference.p50_us);
        }
        self.reading = self.describe_results();
        self
    }

    /// Formats the three tables, and the peers that are missing.
    pub fn to_table(&self) -> String {
        let mut text = String::new();
        if !self.empty.is_empty() {
            self.write_empty_jobs(&mut text);
            self.write_transfers(&mut text);
            self.write_crashes(&mut text);
        }
        for MissingPeer { peer, why } in &self.missing {
            text.push_str(&format!("Without {peer}: {why}\n\n"));
        }
        text
    }

    fn write_empty_jobs(&self, text: &mut String) {
        let title = format!("AN EMPTY JOB, {} THREADS OR PROCESSES", self.threads);
        let mut rows =
            vec![[&title, "P50", "P99", "RATIO", "IN BULK", "RATIO"].map(|word| word.to_string())];
        rows.extend(self.empty.iter().map(|row| {
            [
                row.how.clone(),
                format_job_micros(row.p50_us),
                format_job_micros(row.p99_us),
                format_ratio(row.p50_ratio),
                format_job_micros(row.bulk_us),
                format_ratio(row.bulk_ratio),
            ]
        }));
        write_section(text, &mut rows);
    }

    fn write_transfers(&self, text: &mut String) {
        let title = format!("{} MIB THERE AND BACK", self.bytes >> 20);
        let mut rows = vec![[&title, "P50", "P99", "RATIO"].map(|word| word.to_string())];
        rows.extend(self.transfer.iter().map(|row| {
            [
                row.how.clone(),
                format_job_micros(row.p50_us),
                format_job_micros(row.p99_us),
                format_ratio(row.ratio),
            ]
        }));
        write_section(text, &mut rows);
    }

    fn write_crashes(&self, text: &mut String) {
        let title = "A JOB ABORTS ITS PROCESS".to_string();
        let mut rows = vec![
            [&title, "VERDICT", "AT", "NEXT JOB DONE", "OTHERS LOST"].map(|word| word.to_string()),
        ];
        rows.extend(self.crash.iter().map(|row| {
            [
                row.how.clone(),
                format_micros(row.verdict_us),
                if row.survived { "caller" } else { "exit" }.to_string(),
                format_micros(row.next_job_us),
                format!("{} of {}", row.lost_jobs, row.other_jobs),
            ]
        }));
        write_section(text, &mut rows);
    }

    /// Describes what the figures show on this machine.
    fn describe_results(&self) -> String {
        let empty = |way: JobWay| self.empty.iter().find(|row| row.how.starts_with(way.name()));
        let transfer = |name: &str| self.transfer.iter().find(|row| row.how.starts_with(name));
        let crash = |way: JobWay| self.crash.iter().find(|row| row.how.starts_with(way.name()));
        let mut said = Vec::new();
        if let (Some(pool), Some(isolated)) = (empty(JobWay::Pool), empty(JobWay::Isolated)) {
            said.push(format!(
                "A job costs {} in the pool ({} of {BATCH} at once), and {} in an isolated process.",
                format_job_micros(pool.p50_us),
                format_job_micros(pool.bulk_us),
                format_job_micros(isolated.p50_us),
            ));
        }
        if let Some(piscina) = empty(JobWay::Piscina) {
            said.push(format!(
                "Piscina takes {} times as long as the pool, in bulk {} times.",
                format_factor(piscina.p50_ratio),
                format_factor(piscina.bulk_ratio)
            ));
        }
        if let (Some(isolated), Some(piscina)) =
            (transfer(ISOLATED_VEC), transfer("Piscina, Buffer"))
        {
            said.push(format!(
                "{} MiB to an isolated process and back take {}, copied by Piscina {}.",
                self.bytes >> 20,
                format_micros(isolated.p50_us),
                format_micros(piscina.p50_us)
            ));
        }
        if let (Some(pool), Some(isolated)) = (crash(JobWay::Pool), crash(JobWay::Isolated)) {
            said.push(format!(
                "A job that aborts in a thread takes its whole process along, and {} of {OTHER_JOBS} other jobs; in an \
                 isolated process its caller knows after {}, and {} of {OTHER_JOBS} are lost.",
                pool.lost_jobs,
                format_micros(isolated.verdict_us),
                if isolated.lost_jobs == 0 { "none".to_string() } else { isolated.lost_jobs.to_string() },
            ));
        }
        said.join(" ")
    }
}

/// Formats microseconds, with a decimal where the pool needs it.
fn format_job_micros(micros: f64) -> String {
    if micros < 100.0 { format!("{micros:.1} us") } else { format_micros(micros) }
}

fn format_ratio(ratio: f64) -> String {
    format!("{}x", format_factor(ratio))
}

fn format_factor(ratio: f64) -> String {
    match ratio {
        ratio if ratio < 0.1 => format!("{ratio:.3}"),
        ratio if ratio < 10.0 => format!("{ratio:.2}"),
        ratio => format!("{ratio:.0}"),
    }
}

/// Returns the value at `quantile` (0 to 1); 0 if there are none.
fn quantile(values: &[f64], quantile: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    sorted.get((quantile * last as f64).round() as usize).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::super::program_plan::TransferSamples;
    use super::*;

    fn sample_costs() -> JobCosts {
        let mut costs = JobCosts::new();
        let ways = [
            ("pool", 10.0, "pool, Vec<u8> moved", 12.0, (false, 8)),
            ("isolated process", 150.0, ISOLATED_VEC, 4000.0, (true, 0)),
            ("Piscina 5.3.2 (node 20.20.2)", 25.0, "Piscina, Buffer copied", 8000.0, (false, 8)),
        ];
        for (how, empty_us, transfer, transfer_us, (survived, lost_jobs)) in ways {
            let measured = ProgramCosts {
                one_by_one_us: vec![empty_us, 2.0 * empty_us, 0.5 * empty_us],
                bulk_us: vec![empty_us / 4.0],
                transfers: vec![TransferSamples {
                    how: transfer.to_string(),
                    samples_us: vec![transfer_us],
                }],
            };
            costs.add_way(how, &measured);
            costs.crash.push(CrashCost {
                how: how.to_string(),
                survived,
                verdict_us: 700.0,
                next_job_us: 2500.0,
                lost_jobs,
                other_jobs: OTHER_JOBS,
            });
        }
        let why = "node is not installed".to_string();
        costs.missing.push(MissingPeer { peer: "ProcessPoolExecutor".to_string(), why });
        costs.finish()
    }

    #[test]
    fn figures_are_compared_with_the_pool_and_the_isolated_process() {
        let costs = sample_costs();
        let piscina = &costs.empty[2];
        assert_eq!((piscina.p50_us, piscina.p99_us, piscina.p50_ratio), (25.0, 50.0, 2.5));
        assert_eq!((piscina.bulk_us, piscina.bulk_ratio), (6.25, 2.5));
        let ratios: Vec<f64> = costs.transfer.iter().map(|row| row.ratio).collect();
        assert_eq!(ratios, [0.003, 1.0, 2.0]);
        for words in ["2.50 times as long as the pool", "none of 8 are lost", "8 of 8 other jobs"] {
            assert!(costs.reading.contains(words), "{words}: {}", costs.reading);
        }
    }

    #[test]
    fn tables_fit_into_100_columns_and_name_missing_peers() {
        let text = sample_costs().to_table();
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
        assert!(text.contains("0 of 8") && text.contains("caller"), "{text}");
        assert!(text.contains("Without ProcessPoolExecutor: node is not installed"), "{text}");
    }

    #[test]
    fn without_figures_only_missing_peers_are_told() {
        let costs = JobCosts::new().finish();
        assert_eq!((costs.to_table(), costs.reading.as_str()), (String::new(), ""));
    }
}
