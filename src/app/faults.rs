//! Paths that break a worker on purpose (`--faults`): for tests, demonstrations and trials of one's alerts.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// What `/fault/` offers.
pub(super) const NAMES: [&str; 8] =
    ["exit", "panic", "segv", "hang", "leak", "random", "job-panic", "job-hang"];

/// So many of them break the process they are in; the others are about its pool.
pub(super) const IN_WORKER: usize = 6;

/// Does what `name` says; returns what to answer if the worker is still there to answer.
#[expect(clippy::panic, reason = "a panic is what was asked for")]
pub(super) fn commit(name: &str) -> Option<String> {
    match name {
        "exit" => std::process::exit(42),
        "panic" => panic!("asked for by /fault/panic"),
        "segv" => {
            // Sent, not caused: the effect on the process is the same, and no memory is touched. Twice: std
            // has a handler for stack overflows, which lets the first one pass and removes itself.
            let me = nix::unistd::Pid::this();
            let send = || nix::sys::signal::kill(me, nix::sys::signal::Signal::SIGSEGV);
            let outcome = send().and_then(|()| send());
            Some(format!("still alive: {outcome:?}\n"))
        }
        "hang" => {
            hang();
            Some("slept for an hour on the event loop\n".to_string())
        }
        "leak" => {
            // It is never read, so without the black box the compiler may leave out allocation and writes.
            std::mem::forget(std::hint::black_box(vec![1u8; 16 << 20]));
            Some("leaked 16 MiB\n".to_string())
        }
        // Not a fault, but proof that there is none: different in every worker.
        "random" => Some(format!("{:016x}\n", RandomState::new().hash_one(0))),
        _ => None,
    }
}

/// A job that panics.
#[expect(clippy::panic, reason = "a panic is what was asked for")]
pub(super) fn panic_in_job() {
    panic!("asked for by /fault/job-panic");
}

/// Blocks its thread, whatever happens, for an hour.
pub(super) fn hang() {
    std::thread::sleep(Duration::from_secs(3600));
}
