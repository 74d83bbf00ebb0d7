//! The lesson as an experiment: `prefork demo cpu`.
//!
//! One event loop serves thousands of connections that wait, and one request that computes freezes them all. Threads in a
//! bounded pool take that work off the loop; processes spread the serving. Here all of it is done on this machine: the
//! same work in sequence, on threads, in a pool and in processes ([`compute_timing`]); what making a thread or a process costs
//! beside using one that waits ([`creation_cost`]); and what other clients notice of it ([`latency_under_load`]).
//!
//! What can be killed by Ctrl-C without a trace comes first; the servers of the last part end with their part.

mod compute_process;
mod compute_timing;
mod creation_cost;
mod latency_under_load;
mod report;

use std::time::Duration;

pub use compute_process::run_compute_process;
pub use report::CpuDemoReport;

use tokio_prefork::Result;

/// How often the work is done.
const JOB_COUNT: u32 = 5;

/// How much is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuDemoPlan {
    /// The number that is computed five times.
    pub computed_fib: u64,
    /// The number that clients ask a server for.
    pub requested_fib: u64,
    /// How long each server is measured.
    pub duration: Duration,
    /// How often a thread and a process are made.
    pub creation_samples: u32,
}

impl CpuDemoPlan {
    /// About three minutes.
    pub const FULL: CpuDemoPlan = CpuDemoPlan {
        computed_fib: 45,
        requested_fib: 40,
        duration: Duration::from_secs(10),
        creation_samples: 300,
    };
    /// About 20 seconds.
    pub const QUICK: CpuDemoPlan = CpuDemoPlan {
        computed_fib: 38,
        requested_fib: 36,
        duration: Duration::from_secs(3),
        creation_samples: 100,
    };
}

/// Does it all. `fib` is what computes, here and in the server; `report_step` is told what begins.
///
/// # Errors
/// The system refuses a process, a thread or a server.
pub fn run_cpu_demo(
    plan: &CpuDemoPlan,
    fib: fn(u64) -> u64,
    mut report_step: impl FnMut(&str),
) -> Result<CpuDemoReport> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // Forks come first: a process that forks has one thread.
    report_step("what a thread and a process cost");
    let creating = creation_cost::measure_creation_costs(plan.creation_samples, fib)?;
    let computing =
        compute_timing::measure_compute_timings(plan.computed_fib, fib, cores, &mut report_step)?;
    let (serving, complete) = latency_under_load::measure_latencies(plan, cores, &mut report_step)?;
    Ok(CpuDemoReport::from_measurements(plan, cores, computing, creating, serving, complete))
}
