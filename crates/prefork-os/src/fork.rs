//! fork, and leaving a forked child.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{cvt, libc};
use crate::{OsError, Result};

/// Which side of the fork this is.
pub enum Fork {
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
pub fn fork() -> Result<Fork> {
    require_one_thread()?;
    // A buffered line would otherwise be written by both processes. A closed stdout is not our trouble.
    let _ = io::stdout().flush();
    // SAFETY: the process has one thread (checked above), so the child's copy of every lock is unlocked or
    // owned by the child's only thread, and it may allocate and run any code.
    let pid = cvt(unsafe { libc::fork() }).map_err(|e| OsError::new("fork a worker", e))?;
    Ok(match u32::try_from(pid) {
        Ok(pid) if pid > 0 => Fork::Parent(pid),
        _ => Fork::Child,
    })
}

/// Ends this process at once: no destructors, no exit handlers. They belong to the parent, whose memory this
/// is a copy of; running them here would remove the parent's files.
pub fn exit_now(status: u8) -> ! {
    let _ = io::stdout().flush();
    // SAFETY: _exit takes any status and does not return.
    unsafe { libc::_exit(status.into()) }
}

/// Whether this process has exactly one thread.
///
/// # Errors
/// It has more, or `/proc` does not say: a process that may have several is not treated as if it had one.
pub fn require_one_thread() -> Result<()> {
    let give_up = Instant::now() + LEAVING;
    loop {
        let threads = threads(Path::new("/proc/self/task")).map_err(|e| {
            OsError::new("count the threads in /proc/self/task (is /proc mounted?)", e)
        })?;
        if threads.len() == 1 {
            return Ok(());
        }
        if Instant::now() >= give_up {
            return Err(too_many(&threads));
        }
        std::thread::yield_now();
    }
}

/// Where each thread has its name, the calling one among them.
fn threads(tasks: &Path) -> io::Result<Vec<PathBuf>> {
    let own = nix::unistd::gettid().to_string();
    let mut knows_own = false;
    let mut threads = Vec::new();
    for task in std::fs::read_dir(tasks)? {
        let task = task?;
        knows_own |= task.file_name().to_str() == Some(&own);
        threads.push(task.path().join("comm"));
    }
    // What stands there is not about this process, or not all of it.
    knows_own.then_some(threads).ok_or_else(|| {
        io::Error::other(format!("{} does not list this thread ({own})", tasks.display()))
    })
}

fn too_many(threads: &[PathBuf]) -> OsError {
    let names: Vec<String> = threads
        .iter()
        .filter_map(|comm| std::fs::read_to_string(comm).ok())
        .map(|name| name.trim_end().to_string())
        .collect();
    let why = format!(
        "this process has {} threads ({}) and only a process with one thread can be forked safely; \
         start threads and async runtimes in the worker function, and join those that preload starts",
        threads.len(),
        names.join(", "),
    );
    OsError::new("fork", io::Error::other(why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proc_that_does_not_list_the_threads_is_an_error_and_not_one_thread() {
        let dir = tempfile::tempdir().expect("directory");
        assert!(threads(&dir.path().join("missing")).is_err());
        let error = threads(dir.path()).expect_err("empty").to_string();
        assert!(error.contains("does not list this thread"), "{error}");
        std::fs::create_dir(dir.path().join("1")).expect("another's");
        assert!(threads(dir.path()).is_err());
        assert!(!threads(Path::new("/proc/self/task")).expect("ours").is_empty());
    }

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
