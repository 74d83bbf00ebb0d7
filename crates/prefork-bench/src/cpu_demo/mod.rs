//! The demonstration of CPU-bound work: `prefork demo cpu`.
//!
//! One event loop serves thousands of waiting connections, but one request that computes blocks them all. The
//! demo measures the ways out: the same work in sequence, on threads, in a pool and in processes
//! (`compute_timing`); the cost of a new thread or process (`creation_cost`); the cost of a job by where it runs, beside
//! the pools of other languages ([`crate::job_costs`]); and the latency that other clients see (`latency_under_load`).
//!
//! The last two start programs, and end them even if a signal ends the demo.

mod awake_cores;
mod compute_process;
mod compute_timing;
mod creation_cost;
mod latency_under_load;
mod report;

use std::time::Duration;

pub use compute_process::run_compute_process;
pub use report::CpuDemoReport;

use crate::job_costs::{JobCostPlan, measure_job_costs};
use prefork_os::signal::{Signal, SignalPipe};
use tokio_prefork::{Error, Result};

/// Number of jobs in each timing.
const JOB_COUNT: u32 = 5;

/// A part of the demo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DemoPart {
    /// The same work in sequence, on threads, in the pool and in processes, and what a thread or process costs.
    Compute,
    /// The cost of a job by where it runs.
    Jobs,
    /// The latency of a server while requests compute.
    Latency,
}

impl DemoPart {
    /// All parts, in the order in which they run.
    pub const ALL: [DemoPart; 3] = [DemoPart::Compute, DemoPart::Jobs, DemoPart::Latency];

    /// Returns its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            DemoPart::Compute => "compute",
            DemoPart::Jobs => "jobs",
            DemoPart::Latency => "latency",
        }
    }
}

/// How much work the demo does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuDemoPlan {
    /// The parts to run.
    pub parts: Vec<DemoPart>,
    /// Fibonacci number that is computed five times.
    pub computed_fib: u64,
    /// Fibonacci number that clients request from a server.
    pub requested_fib: u64,
    /// Length of the measurements of each server together.
    pub duration: Duration,
    /// How many threads and processes are created to measure their cost.
    pub creation_samples: u32,
    /// How much is measured of jobs.
    pub jobs: JobCostPlan,
}

impl CpuDemoPlan {
    /// Returns the plan of about 30 seconds.
    pub fn usual() -> CpuDemoPlan {
        CpuDemoPlan {
            parts: DemoPart::ALL.to_vec(),
            computed_fib: 38,
            requested_fib: 36,
            duration: Duration::from_secs(3),
            creation_samples: 100,
            jobs: JobCostPlan::usual(),
        }
    }

    /// Returns the plan of about 15 seconds.
    pub fn quick() -> CpuDemoPlan {
        let jobs =
            JobCostPlan { budget: Duration::from_millis(100), crashes: 1, ..JobCostPlan::usual() };
        CpuDemoPlan {
            computed_fib: 34,
            requested_fib: 34,
            duration: Duration::from_secs(1),
            jobs,
            ..CpuDemoPlan::usual()
        }
    }

    /// Returns the plan of about four minutes.
    pub fn full() -> CpuDemoPlan {
        CpuDemoPlan {
            computed_fib: 45,
            requested_fib: 40,
            duration: Duration::from_secs(20),
            creation_samples: 300,
            jobs: JobCostPlan::full(),
            ..CpuDemoPlan::usual()
        }
    }
}

/// Runs the demo. `fib` computes, here and in the server; `report_step` is called when a step begins.
///
/// # Errors
/// The system refuses a process, a thread or a server.
pub fn run_cpu_demo(
    plan: &CpuDemoPlan,
    fib: fn(u64) -> u64,
    mut report_step: impl FnMut(&str),
) -> Result<CpuDemoReport> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut report = CpuDemoReport::new(plan, cores);
    if plan.parts.contains(&DemoPart::Compute) {
        // Before any thread exists: only a single-threaded process may fork.
        report_step("cost of a new thread and a new process");
        report.creating = creation_cost::measure_creation_costs(plan.creation_samples, fib)?;
        report.computing = compute_timing::measure_compute_timings(
            plan.computed_fib,
            fib,
            cores,
            &mut report_step,
        )?;
    }
    // Until here, a signal ends this process at once.
    let mut signals = SignalPipe::new(&[Signal::SIGINT, Signal::SIGTERM])
        .map_err(|e| Error::system("install signal handlers", e))?;
    if plan.parts.contains(&DemoPart::Jobs) {
        let (jobs, complete) = measure_job_costs(&plan.jobs, &mut signals, &mut report_step)?;
        report.jobs = Some(jobs);
        report.complete &= complete;
    }
    if report.complete && plan.parts.contains(&DemoPart::Latency) {
        let (serving, complete) =
            latency_under_load::measure_latencies(plan, cores, &mut signals, &mut report_step)?;
        report.serving = serving;
        report.complete &= complete;
    }
    Ok(report.finish())
}
