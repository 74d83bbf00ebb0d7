//! Measures the cost of a job by where it runs, with the functions of `prefork demo cpu`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use prefork_bench::job_costs::{
    JobCostPlan, JobWay, MEASURED_WAY_ARGS, measure_job_costs, run_measured_way,
};
use prefork_os::signal::{Signal, SignalPipe};

use super::{argument, fail, has_argument};

/// Measures one way if this process was started for that, and then ends. Call it first, before any thread exists.
pub fn run_measured_way_and_exit() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [demo, job_way, name, plan] = &words[..]
        && [demo, job_way] == MEASURED_WAY_ARGS
    {
        let done = run_measured_way(name, plan);
        std::process::exit(done.map_or_else(|e| fail(e), |()| 0));
    }
}

/// Measures these ways in rounds, and prints a table for each. Piscina comes from npm; without npm it is left out.
pub fn print_job_costs(ways: &[JobWay]) {
    let is_smoke_test = !has_argument("--bench");
    let rounds: usize = argument("--rounds", if is_smoke_test { 1 } else { 3 });
    let milliseconds: u64 = argument("--milliseconds", if is_smoke_test { 20 } else { 1000 });
    let mut plan = JobCostPlan::usual();
    plan.ways = ways.to_vec();
    plan.budget = Duration::from_millis(milliseconds);
    if is_smoke_test {
        plan.crashes = 1;
        // No smoke test needs another language.
        plan.ways.retain(|way| !matches!(way, JobWay::Piscina | JobWay::ProcessPoolExecutor));
    } else if plan.ways.contains(&JobWay::Piscina) {
        plan.piscina = install_piscina();
    }
    let mut signals = SignalPipe::new(&[Signal::SIGINT, Signal::SIGTERM])
        .unwrap_or_else(|e| fail(format_args!("signal handlers: {e}")));
    for round in 1..=rounds {
        let measured = measure_job_costs(&plan, &mut signals, |_| ());
        let (costs, complete) = measured.unwrap_or_else(|e| fail(e));
        println!("round {round} of {rounds}\n\n{}{}\n", costs.to_table(), costs.reading);
        if !complete {
            fail("a signal ended it early");
        }
    }
}

/// Returns the directory in which Piscina is installed, if npm can do that.
fn install_piscina() -> Option<PathBuf> {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("piscina-5");
    if !home.join("node_modules/piscina").exists() {
        let mut npm = Command::new("npm");
        npm.args(["install", "--silent", "--no-audit", "--no-fund", "--prefix"]).arg(&home);
        let installed = npm.arg("piscina@5").stdout(Stdio::null()).status();
        if !installed.is_ok_and(|status| status.success()) {
            eprintln!("bench: npm install piscina does not work here");
            return None;
        }
    }
    Some(home)
}
