//! fork, and leaving a forked child.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use super::{cvt, libc};
use crate::error::{Error, Kind, Result};

/// Which side of the fork this is.
pub(crate) enum Fork {
    /// The child, with its own copy of everything.
    Child,
    /// The parent, told the child's pid.
    Parent(u32),
}

/// A joined thread may stand in `/proc/self/task` for a moment longer: the kernel wakes the joiner before
/// it unlinks the task. This is how long a second thread may still be "just leaving".
const LEAVING: Duration = Duration::from_millis(500);

/// Forks this process, if it has exactly one thread.
///
/// A child of a process with more threads would inherit locks (malloc's, stdio's, tokio's) that nobody is
/// left to unlock, so that is refused with an error that says what to do.
pub(crate) fn fork() -> Result<Fork> {
    require_one_thread()?;
    // A buffered line would otherwise be written by both processes. A closed stdout is not our trouble.
    let _ = io::stdout().flush();
    // SAFETY: the process has one thread (checked above), so the child's copy of every lock is unlocked or
    // owned by the child's only thread, and it may allocate and run any code.
    let pid = cvt(unsafe { libc::fork() }).map_err(|e| Error::system("fork a worker", e))?;
    Ok(match u32::try_from(pid) {
        Ok(pid) if pid > 0 => Fork::Parent(pid),
        _ => Fork::Child,
    })
}

/// Ends this process at once: no destructors, no exit handlers. They belong to the parent, whose memory this
/// is a copy of; running them here would remove the parent's files.
pub(crate) fn exit_now(status: u8) -> ! {
    let _ = io::stdout().flush();
    // SAFETY: _exit takes any status and does not return.
    unsafe { libc::_exit(status.into()) }
}

fn require_one_thread() -> Result<()> {
    let give_up = Instant::now() + LEAVING;
    loop {
        let threads = std::fs::read_dir("/proc/self/task")
            .map_err(|e| {
                Error::system("count the threads in /proc/self/task (is /proc mounted?)", e)
            })?
            .filter_map(std::result::Result::ok)
            .map(|task| task.path().join("comm"))
            .collect::<Vec<_>>();
        if threads.len() <= 1 {
            return Ok(());
        }
        if Instant::now() >= give_up {
            return Err(too_many(&threads));
        }
        std::thread::yield_now();
    }
}

fn too_many(threads: &[std::path::PathBuf]) -> Error {
    let names: Vec<String> = threads
        .iter()
        .filter_map(|comm| std::fs::read_to_string(comm).ok())
        .map(|name| name.trim_end().to_string())
        .collect();
    Kind::Fork(format!(
        "this process has {} threads ({}) and only a process with one thread can be forked safely; \
         start threads and async runtimes in the worker function, and join those that preload starts",
        threads.len(),
        names.join(", "),
    ))
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_is_not_forked_and_told_what_to_do() {
        // The test runner itself has more than one thread.
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let other = std::thread::Builder::new().name("busy".into()).spawn(move || held.recv());
        let error = fork().err().expect("refused").to_string();
        assert!(error.contains("threads (") && error.contains("busy"), "{error}");
        assert!(
            error.contains("start threads and async runtimes in the worker function"),
            "{error}"
        );
        drop(hold);
        let _ = other.expect("thread").join();
    }
}
