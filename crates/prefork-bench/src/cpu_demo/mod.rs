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

pub use compute_process::work;
pub use report::Report;

use tokio_prefork::Result;

/// How often the work is done.
const JOBS: u32 = 5;

/// How much is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The number that is computed five times.
    pub fib: u64,
    /// The number that clients ask a server for.
    pub asked: u64,
    /// How long each server is measured.
    pub duration: Duration,
    /// How often a thread and a process are made.
    pub times: u32,
}

impl Plan {
    /// About three minutes.
    pub const FULL: Plan =
        Plan { fib: 45, asked: 40, duration: Duration::from_secs(10), times: 300 };
    /// About 20 seconds.
    pub const QUICK: Plan =
        Plan { fib: 38, asked: 36, duration: Duration::from_secs(3), times: 100 };
}

/// Does it all. `fib` is what computes, here and in the server; `say` is told what begins.
///
/// # Errors
/// The system refuses a process, a thread or a server.
pub fn run(plan: &Plan, fib: fn(u64) -> u64, mut say: impl FnMut(&str)) -> Result<Report> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // Forks come first: a process that forks has one thread.
    say("what a thread and a process cost");
    let creating = creation_cost::measure(plan.times, fib)?;
    let computing = compute_timing::measure(plan.fib, fib, cores, &mut say)?;
    let (serving, complete) = latency_under_load::measure(plan, cores, &mut say)?;
    Ok(Report::of(plan, cores, computing, creating, serving, complete))
}
