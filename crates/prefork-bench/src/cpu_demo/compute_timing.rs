//! Times the same CPU-bound work in sequence, on threads, in the pool, and in processes.

use std::hint::black_box;
use std::time::Instant;

use serde::Serialize;

use super::JOB_COUNT;
use super::compute_process::ComputeProcess;
use tokio_prefork::pool::{Pool, PoolConfig};
use tokio_prefork::{Error, Result};

/// Time of the work done in one way.
#[derive(Debug, Clone, Serialize)]
pub struct ComputeTiming {
    /// How the work was done.
    pub how: String,
    /// Time of all jobs in seconds.
    pub seconds: f64,
    /// Time divided by the time in sequence.
    pub ratio: f64,
    /// Lowest possible ratio with this number of cores.
    pub ideal: f64,
}

/// Times all ways in order.
pub(crate) fn measure_compute_timings(
    n: u64,
    fib: fn(u64) -> u64,
    cores: usize,
    report_step: &mut impl FnMut(&str),
) -> Result<Vec<ComputeTiming>> {
    let mut all: Vec<ComputeTiming> = Vec::new();
    let mut time = |how: String, ideal: f64, work: &mut dyn FnMut() -> Result<()>| {
        report_step(&format!("fib({n}) {how}"));
        let begun = Instant::now();
        work()?;
        let seconds = begun.elapsed().as_secs_f64();
        let whole = all.first().map_or(seconds, |first| first.seconds);
        all.push(ComputeTiming { how, seconds, ratio: seconds / whole, ideal });
        Ok::<(), Error>(())
    };
    let jobs = f64::from(JOB_COUNT);
    let shared = 1.0 / jobs.min(cores as f64);
    let batches = (jobs / cores as f64).ceil() / jobs;
    time(format!("{JOB_COUNT} times in sequence"), 1.0, &mut || {
        (0..JOB_COUNT).map(|_| fib(black_box(n))).for_each(|number| _ = black_box(number));
        Ok(())
    })?;
    time(format!("on {JOB_COUNT} threads"), shared, &mut || {
        std::thread::scope(|scope| (0..JOB_COUNT).for_each(|_| drop(scope.spawn(move || fib(n)))));
        Ok(())
    })?;
    time(format!("{JOB_COUNT} times in a pool of {cores}"), batches, &mut || {
        compute_in_pool(n, fib, cores)
    })?;
    time(format!("in {JOB_COUNT} processes"), shared, &mut || {
        let mut processes =
            (0..JOB_COUNT).map(|_| ComputeProcess::start()).collect::<Result<Vec<_>>>()?;
        processes.iter_mut().try_for_each(|process| process.send_number(n))?;
        processes.iter_mut().try_for_each(|process| process.read_result().map(drop))
    })?;
    Ok(all)
}

/// Computes all jobs in a CPU pool.
fn compute_in_pool(n: u64, fib: fn(u64) -> u64, threads: usize) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.map_err(|e| Error::system("build a runtime", e))?;
    let mut config = PoolConfig::default();
    config.threads = threads;
    let pool = Pool::new(config);
    let jobs: Vec<_> = (0..JOB_COUNT).map(|_| pool.run(move || fib(n))).collect();
    runtime.block_on(async {
        for job in jobs {
            job.await.map_err(|e| Error::system("run a job", std::io::Error::other(e)))?;
        }
        Ok(())
    })
}
