//! Measures isolated jobs beside the event loop, the pool, `spawn_blocking`, Node's Piscina and Python's
//! `ProcessPoolExecutor`: an empty job, a job that returns the 10 MiB it received, and a job that aborts its process while
//! others run and wait.
//!
//! ```text
//! cargo bench --bench isolated
//! cargo bench --bench isolated -- --rounds 5 --milliseconds 3000     the time for the samples of one figure
//! ```
//!
//! `prefork demo cpu` measures the same in less time. Each way has a process of its own, one after the other.

mod support;

use prefork_bench::job_costs::JobWay;

fn main() {
    support::job_costs::run_measured_way_and_exit();
    support::job_costs::print_job_costs(&JobWay::ALL);
}
