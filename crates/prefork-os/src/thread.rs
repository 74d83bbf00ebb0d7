//! The thread that calls: its priority, and which signals it takes.
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};

use super::{cvt, libc};
use crate::{OsError, Result};

/// Makes the calling thread give way to others: `nice` is 0 (no difference) to 19. On Linux the nice value
/// belongs to a thread, so the rest of the process keeps its own.
pub fn lower_thread_priority(nice: u32) -> io::Result<()> {
    let nice = libc::c_int::try_from(nice.min(19)).unwrap_or(19);
    let this = libc::id_t::try_from(nix::unistd::gettid().as_raw()).unwrap_or(0);
    // SAFETY: setpriority takes three numbers and touches no memory of ours.
    cvt(unsafe { libc::setpriority(libc::PRIO_PROCESS, this, nice) }).map(drop)
}

/// The nice value of the calling thread.
#[cfg(any(test, feature = "testing"))]
pub fn thread_niceness() -> io::Result<i32> {
    // SAFETY: getpriority only reads. 0 is the calling thread.
    nix::errno::Errno::clear();
    let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    match nix::errno::Errno::last_raw() {
        0 => Ok(nice),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Leaves all signals to the process's other threads, but for those that a fault of this thread causes, which
/// nobody else could take.
pub fn block_thread_signals() -> io::Result<()> {
    let mut held = SigSet::all();
    for fault in [
        Signal::SIGSEGV,
        Signal::SIGBUS,
        Signal::SIGFPE,
        Signal::SIGILL,
        Signal::SIGTRAP,
        Signal::SIGSYS,
        Signal::SIGABRT,
        Signal::SIGPROF,
    ] {
        held.remove(fault);
    }
    Ok(pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&held), None)?)
}

/// A joined thread may stand in `/proc/self/task` for a moment longer: the kernel wakes the joiner before
/// it unlinks the task. This is how long a second thread may still be "just leaving".
const THREAD_EXIT_GRACE: Duration = Duration::from_millis(500);

/// Whether this process has exactly one thread.
///
/// # Errors
/// It has more, or `/proc` does not say: a process that may have several is not treated as if it had one.
pub fn require_single_thread() -> Result<()> {
    let give_up = Instant::now() + THREAD_EXIT_GRACE;
    loop {
        let threads = thread_comm_paths(Path::new("/proc/self/task")).map_err(|e| {
            OsError::new("count the threads in /proc/self/task (is /proc mounted?)", e)
        })?;
        if threads.len() == 1 {
            return Ok(());
        }
        if Instant::now() >= give_up {
            return Err(multiple_threads_error(&threads));
        }
        std::thread::yield_now();
    }
}

/// Where each thread has its name, the calling one among them.
fn thread_comm_paths(tasks: &Path) -> io::Result<Vec<PathBuf>> {
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

fn multiple_threads_error(threads: &[PathBuf]) -> OsError {
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
    fn only_the_thread_that_asks_gives_way() {
        let before = thread_niceness().expect("read");
        let lowered =
            std::thread::spawn(|| lower_thread_priority(19).and_then(|()| thread_niceness()));
        assert_eq!(lowered.join().expect("thread").expect("lower"), 19);
        assert_eq!(thread_niceness().expect("read"), before);
    }

    #[test]
    fn a_proc_that_does_not_list_the_threads_is_an_error_and_not_one_thread() {
        let dir = tempfile::tempdir().expect("directory");
        assert!(thread_comm_paths(&dir.path().join("missing")).is_err());
        let error = thread_comm_paths(dir.path()).expect_err("empty").to_string();
        assert!(error.contains("does not list this thread"), "{error}");
        std::fs::create_dir(dir.path().join("1")).expect("another's");
        assert!(thread_comm_paths(dir.path()).is_err());
        assert!(!thread_comm_paths(Path::new("/proc/self/task")).expect("ours").is_empty());
    }
}
