//! The demonstration of CPU-bound work: `prefork demo cpu`.
//!
//! One event loop serves thousands of waiting connections, but one request that computes blocks them all. The
//! demo measures the ways out: the same work in sequence, on threads, in a pool and in processes
//! (`compute_timing`); the cost of a new thread or process (`creation_cost`); and the latency that other
//! clients see (`latency_under_load`).
//!
//! The last part starts servers, and stops them even if a signal ends it.

mod compute_process;
mod compute_timing;
mod creation_cost;
mod latency_under_load;
mod report;

use std::time::Duration;

pub use compute_process::run_compute_process;
pub use report::CpuDemoReport;

use tokio_prefork::Result;

/// Number of jobs in each timing.
const JOB_COUNT: u32 = 5;

/// How much work the demo does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuDemoPlan {
    /// Fibonacci number that is computed five times.
    pub computed_fib: u64,
    /// Fibonacci number that clients request from a server.
    pub requested_fib: u64,
    /// Length of the measurement of each server.
    pub duration: Duration,
    /// How many threads and processes are created to measure their cost.
    pub creation_samples: u32,
}

impl CpuDemoPlan {
    /// The plan of about three minutes.
    pub const FULL: CpuDemoPlan = CpuDemoPlan {
        computed_fib: 45,
        requested_fib: 40,
        duration: Duration::from_secs(10),
        creation_samples: 300,
    };
    /// The plan of about 20 seconds.
    pub const QUICK: CpuDemoPlan = CpuDemoPlan {
        computed_fib: 38,
        requested_fib: 36,
        duration: Duration::from_secs(3),
        creation_samples: 100,
    };
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
    // Before any thread exists: only a single-threaded process may fork.
    report_step("cost of a new thread and a new process");
    let creating = creation_cost::measure_creation_costs(plan.creation_samples, fib)?;
    let computing =
        compute_timing::measure_compute_timings(plan.computed_fib, fib, cores, &mut report_step)?;
    let (serving, complete) = latency_under_load::measure_latencies(plan, cores, &mut report_step)?;
    Ok(CpuDemoReport::from_measurements(plan, cores, computing, creating, serving, complete))
}
