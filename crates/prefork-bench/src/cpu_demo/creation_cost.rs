//! Measures the cost of a new thread or process, and of a job for a waiting one.

use std::sync::mpsc;
use std::time::Instant;

use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use serde::Serialize;

use super::compute_process::ComputeProcess;
use prefork_os::child::{ForkResult, exit_without_cleanup, fork_process};
use tokio_prefork::{Error, Result};

/// Median cost of one kind of thread or process.
#[derive(Debug, Clone, Serialize)]
pub struct CreationCost {
    /// What was created.
    pub what: &'static str,
    /// Microseconds to create one, run an empty job, and see its end.
    pub new_us: f64,
    /// Microseconds to send a job to a waiting one and receive the result.
    pub reused_us: f64,
}

/// Measures threads, forked processes and fresh programs.
pub(crate) fn measure_creation_costs(times: u32, fib: fn(u64) -> u64) -> Result<Vec<CreationCost>> {
    // Before any thread exists: only a single-threaded process may fork.
    let forked = median_micros(times, || match fork_process()? {
        ForkResult::Child => exit_without_cleanup(0),
        ForkResult::Parent(pid) => {
            let ended = waitpid(Pid::from_raw(pid as i32), None);
            ended.map(drop).map_err(|e| Error::system("wait for a process", e))
        }
    })?;
    let fresh = median_micros(times, || {
        let mut process = ComputeProcess::start()?;
        process.send_number(1)?;
        process.read_result().map(drop)
    })?;
    let mut process = ComputeProcess::start()?;
    let waiting = median_micros(times, || {
        process.send_number(1)?;
        process.read_result().map(drop)
    })?;
    let thread = median_micros(times, || {
        let thread = std::thread::Builder::new().spawn(move || fib(1));
        let thread = thread.map_err(|e| Error::system("start a thread", e))?;
        // The closure cannot panic.
        let _ = thread.join();
        Ok(())
    })?;
    let (ask, asked) = mpsc::channel::<u64>();
    let (answer, answered) = mpsc::channel();
    std::thread::spawn(move || {
        for n in asked {
            if answer.send(fib(n)).is_err() {
                break;
            }
        }
    });
    let handed = median_micros(times, || {
        let gone = |_| Error::system("send a job to a thread", std::io::ErrorKind::BrokenPipe);
        ask.send(1).map_err(|_| gone(()))?;
        answered.recv().map(drop).map_err(|_| gone(()))
    })?;
    Ok(vec![
        CreationCost { what: "thread", new_us: thread, reused_us: handed },
        CreationCost { what: "forked process", new_us: forked, reused_us: waiting },
        CreationCost { what: "fresh program", new_us: fresh, reused_us: waiting },
    ])
}

/// Returns the median time of `what` in microseconds.
fn median_micros(times: u32, mut what: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut all = Vec::new();
    for _ in 0..times.max(1) {
        let begun = Instant::now();
        what()?;
        all.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    all.sort_by(f64::total_cmp);
    Ok(all[all.len() / 2])
}
