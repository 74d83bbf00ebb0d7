//! The cost of a job, by where it runs: on the event loop, in the pool, on tokio's blocking threads, in an isolated process,
//! and in the pools of other languages.
//!
//! For each way: an empty job, one at a time and many at once; a job that returns the 10 MiB it received; and a job that
//! aborts its process while another runs and more wait. Each way is measured in a process of its own
//! (`measured_program`), one after the other, so that a crash ends that process only and nothing else runs meanwhile. Ours
//! is this program with other arguments (`own_ways`); Node's Piscina and Python's `ProcessPoolExecutor` are scripts
//! (`way_programs`). All print the same lines (`program_plan`), and all figures are computed here.

mod crash;
mod isolated_way;
mod measured_program;
mod own_ways;
mod program_plan;
mod report;
mod way_programs;

use std::path::PathBuf;
use std::time::Duration;

pub use crash::CrashCost;
pub use own_ways::{MEASURED_WAY_ARGS, run_measured_way};
pub use report::{EmptyJobCost, JobCosts, TransferCost};
pub use way_programs::MissingPeer;

use measured_program::{ProgramError, run_for_costs};
use prefork_os::signal::SignalPipe;
use program_plan::{Measure, ProgramPlan};
use tokio_prefork::{Error, Result};
use way_programs::WayProgram;

/// Size of the data that a job receives and returns, in bytes: 10 MiB.
const TRANSFER_BYTES: usize = 10 << 20;
/// Number of jobs that are submitted at once.
const BATCH: usize = 256;
/// Threads or processes of each pool.
const THREADS: usize = 2;
/// Jobs that run or wait when one aborts its process.
const OTHER_JOBS: usize = 8;

/// Where a job runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobWay {
    /// On the event loop itself.
    EventLoop,
    /// In a [`Pool`](tokio_prefork::pool::Pool) of threads.
    Pool,
    /// On tokio's threads for blocking calls.
    SpawnBlocking,
    /// In an isolated process.
    Isolated,
    /// In a thread of Node's Piscina.
    Piscina,
    /// In a process of Python's `ProcessPoolExecutor`.
    ProcessPoolExecutor,
}

impl JobWay {
    /// All ways, in the order of the report.
    pub const ALL: [JobWay; 6] = [
        JobWay::EventLoop,
        JobWay::Pool,
        JobWay::SpawnBlocking,
        JobWay::Isolated,
        JobWay::Piscina,
        JobWay::ProcessPoolExecutor,
    ];

    /// Returns its name, with which its rows in the report begin.
    pub fn name(self) -> &'static str {
        match self {
            JobWay::EventLoop => "event loop",
            JobWay::Pool => "pool",
            JobWay::SpawnBlocking => "spawn_blocking",
            JobWay::Isolated => "isolated process",
            JobWay::Piscina => "Piscina",
            JobWay::ProcessPoolExecutor => "ProcessPoolExecutor",
        }
    }

    /// Returns its name on the command line.
    pub fn flag_value(self) -> &'static str {
        match self {
            JobWay::EventLoop => "event-loop",
            JobWay::Pool => "pool",
            JobWay::SpawnBlocking => "spawn-blocking",
            JobWay::Isolated => "isolated",
            JobWay::Piscina => "piscina",
            JobWay::ProcessPoolExecutor => "process-pool-executor",
        }
    }

    fn is_peer(self) -> bool {
        matches!(self, JobWay::Piscina | JobWay::ProcessPoolExecutor)
    }
}

/// What is measured and how long, and where the peers are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobCostPlan {
    /// The ways to measure.
    pub ways: Vec<JobWay>,
    /// Samples of each figure at most.
    pub samples: usize,
    /// Time for the samples of one figure.
    pub budget: Duration,
    /// Crashes of each way.
    pub crashes: usize,
    /// Directory in which Piscina is installed; by default `npm root -g` and the directories that Node searches.
    pub piscina: Option<PathBuf>,
}

impl JobCostPlan {
    /// Returns the plan of all ways that takes about seven seconds with both peers.
    pub fn usual() -> JobCostPlan {
        JobCostPlan {
            ways: JobWay::ALL.to_vec(),
            samples: 5_000,
            budget: Duration::from_millis(300),
            crashes: 3,
            piscina: None,
        }
    }

    /// Returns the plan of all ways that takes about a minute with both peers.
    pub fn full() -> JobCostPlan {
        let budget = Duration::from_secs(2);
        JobCostPlan { samples: 20_000, budget, crashes: 10, ..JobCostPlan::usual() }
    }

    fn program_plan(&self, measure: Measure) -> ProgramPlan {
        ProgramPlan {
            measure,
            threads: THREADS,
            batch: BATCH,
            samples: self.samples,
            budget_ms: self.budget.as_millis() as u64,
            bytes: TRANSFER_BYTES,
            other_jobs: OTHER_JOBS,
        }
    }
}

/// Measures all ways; `false` if a signal ended it early. A peer that is not installed is named in the report.
///
/// # Errors
/// This program cannot be started again, or one of its own ways fails.
pub fn measure_job_costs(
    plan: &JobCostPlan,
    signals: &mut SignalPipe,
    mut report_step: impl FnMut(&str),
) -> Result<(JobCosts, bool)> {
    let scripts = way_programs::write_scripts()?;
    let mut costs = JobCosts::new();
    for way in &plan.ways {
        let program =
            match way_programs::find_program(*way, plan.piscina.as_deref(), scripts.path()) {
                Ok(program) => program,
                Err(missing) => {
                    costs.missing.push(missing);
                    continue;
                }
            };
        report_step(&format!("cost of a job: {}", program.name));
        match measure_way(plan, &program, signals, &mut costs) {
            Ok(()) => {}
            Err(ProgramError::Interrupted) => return Ok((costs.finish(), false)),
            Err(ProgramError::Failed(why)) if way.is_peer() => {
                costs.missing.push(MissingPeer { peer: program.name, why });
            }
            Err(ProgramError::Failed(why)) => {
                let error = std::io::Error::other(why);
                return Err(Error::system(format!("measure jobs ({})", program.name), error));
            }
        }
    }
    Ok((costs.finish(), true))
}

/// Measures one way. Its rows are added only when all of them are known.
fn measure_way(
    plan: &JobCostPlan,
    program: &WayProgram,
    signals: &mut SignalPipe,
    costs: &mut JobCosts,
) -> std::result::Result<(), ProgramError> {
    let measured = run_for_costs(program, &plan.program_plan(Measure::Costs), signals)?;
    let crash = crash::measure_crash(plan, program, signals)?;
    costs.add_way(&program.name, &measured);
    costs.crash.push(crash);
    Ok(())
}
