//! Fault injection (`--faults`): crashes, hangs and leaks of a worker, for tests and demonstrations.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// Names of the faults below `/fault/`.
pub(super) const FAULT_NAMES: [&str; 8] =
    ["exit", "panic", "segv", "hang", "leak", "random", "job-panic", "job-hang"];

/// Number of leading [`FAULT_NAMES`] that affect the whole process; the rest run as jobs in its CPU pool.
pub(super) const PROCESS_FAULT_COUNT: usize = 6;

/// Injects the fault `name`. Returns the response text if the process survives, `None` for an unknown name.
#[expect(clippy::panic, reason = "the fault is a panic")]
pub(super) fn inject_fault(name: &str) -> Option<String> {
    match name {
        "exit" => std::process::exit(42),
        "panic" => panic!("requested by /fault/panic"),
        "segv" => {
            // A sent signal has the same effect as an invalid access. Sent twice, because the stack overflow handler of
            // std swallows the first one and removes itself.
            let own_pid = nix::unistd::Pid::this();
            let send = || nix::sys::signal::kill(own_pid, nix::sys::signal::Signal::SIGSEGV);
            let outcome = send().and_then(|()| send());
            Some(format!("still alive: {outcome:?}\n"))
        }
        "hang" => {
            block_thread();
            Some("slept for an hour on the event loop\n".to_string())
        }
        "leak" => {
            // Without the black box the compiler may remove the unused allocation.
            std::mem::forget(std::hint::black_box(vec![1u8; 16 << 20]));
            Some("leaked 16 MiB\n".to_string())
        }
        // Not a fault: shows that the hash seeds differ between workers.
        "random" => Some(format!("{:016x}\n", RandomState::new().hash_one(0))),
        _ => None,
    }
}

/// Panics, as a job of the CPU pool.
#[expect(clippy::panic, reason = "the fault is a panic")]
pub(super) fn panic_in_job() {
    panic!("requested by /fault/job-panic");
}

/// Blocks the calling thread for an hour.
pub(super) fn block_thread() {
    std::thread::sleep(Duration::from_secs(3600));
}
