//! What a measured program is told, and what it prints: the same for this program and for the scripts in `peers/`.
//!
//! | measure | printed to standard output |
//! |---|---|
//! | `costs` | one line with a [`ProgramCosts`] in JSON |
//! | `crash` | the line `crash` before the job that aborts is submitted; if the program survives, a line with a [`CrashOutcome`] |
//! | `next` | the line `done` after one job has run |

use serde::{Deserialize, Serialize};

/// The line before the job that aborts its process.
pub(super) const CRASH_LINE: &str = "crash";
/// The line after the only job of [`Measure::Next`].
pub(super) const DONE_LINE: &str = "done";

/// What a program measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Measure {
    /// Empty jobs, and jobs that return their data.
    Costs,
    /// A job that aborts its process.
    Crash,
    /// Nothing: it runs one job.
    Next,
}

/// The last argument of a measured program, in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ProgramPlan {
    pub measure: Measure,
    /// Threads or processes of the pool.
    pub threads: usize,
    /// Number of empty jobs that are submitted at once.
    pub batch: usize,
    /// Samples of each figure at most.
    pub samples: usize,
    /// Time for the samples of a figure, in milliseconds; at least three are taken.
    pub budget_ms: u64,
    /// Size of the data in bytes.
    pub bytes: usize,
    /// Jobs that run or wait when one aborts.
    pub other_jobs: usize,
}

/// Times in microseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct ProgramCosts {
    /// From the submission of an empty job to its result, one job at a time.
    pub one_by_one_us: Vec<f64>,
    /// Time of a batch of empty jobs divided by their number.
    pub bulk_us: Vec<f64>,
    pub transfers: Vec<TransferSamples>,
}

/// Times from the submission of a job with data to its result, which has as much data, in microseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct TransferSamples {
    /// How the data travels.
    pub how: String,
    pub samples_us: Vec<f64>,
}

/// What a program that survives the crash of a job measured itself, in microseconds from the submission of that job.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct CrashOutcome {
    /// Until the caller of the job learned of the crash.
    pub verdict_us: f64,
    /// Until another job had its result, if necessary in a new pool.
    pub next_job_us: f64,
    /// Other jobs without a result.
    pub lost_jobs: usize,
}
