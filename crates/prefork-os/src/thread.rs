//! Threads: how many this process has, and the niceness and signal mask of the calling one.
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};

use super::{libc, syscall_result};
use crate::{OsError, Result};

/// Sets the niceness of the calling thread, from 0 (normal priority) to 19 (lowest). Other threads keep theirs.
pub fn set_thread_niceness(nice: u32) -> io::Result<()> {
    let nice = libc::c_int::try_from(nice.min(19)).unwrap_or(19);
    let this = libc::id_t::try_from(nix::unistd::gettid().as_raw()).unwrap_or(0);
    // SAFETY: setpriority takes three numbers and touches no memory.
    syscall_result(unsafe { libc::setpriority(libc::PRIO_PROCESS, this, nice) }).map(drop)
}

/// Lets the calling thread run only while no other one of its core wants to (`SCHED_IDLE`).
///
/// Unlike a thread of the lowest priority, it is interrupted at once by a thread that wakes up: since Linux 6.6, another thread may
/// use up its slice first.
pub fn set_thread_idle_policy() -> io::Result<()> {
    // The kernel's sched_param has this field alone; musl's has more, and its function always fails.
    let priority: libc::c_int = 0;
    // SAFETY: the kernel reads the number, which lives until the call returns. 0 is the calling thread.
    let result = unsafe {
        libc::syscall(libc::SYS_sched_setscheduler, 0, libc::SCHED_IDLE, &raw const priority)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Returns the niceness of the calling thread, -20 to 19.
#[cfg(any(test, feature = "testing"))]
pub fn thread_niceness() -> io::Result<i32> {
    // A result of -1 is also a valid niceness: only errno tells an error.
    nix::errno::Errno::clear();
    // SAFETY: getpriority takes two numbers and only reads. 0 is the calling thread.
    let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    match nix::errno::Errno::last_raw() {
        0 => Ok(nice),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Blocks signals in the calling thread, so that the kernel delivers them to other threads of the process.
///
/// Leaves unblocked those that a fault of this thread itself raises, such as SIGSEGV. Programs that the thread starts inherit the
/// mask, and could not be ended by SIGTERM: not for threads that run code of the application.
pub fn block_signals_in_thread() -> io::Result<()> {
    let mut blocked = SigSet::all();
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
        blocked.remove(fault);
    }
    Ok(pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&blocked), None)?)
}

/// How long a joined thread may remain in `/proc/self/task`: the kernel wakes the joiner before it unlinks the task.
const THREAD_EXIT_GRACE: Duration = Duration::from_millis(500);

/// Checks that this process has exactly one thread. Waits up to 500 ms for exiting threads to disappear.
///
/// # Errors
/// The process has more threads, which the error names, or `/proc/self/task` is not readable.
pub fn require_single_thread() -> Result<()> {
    let deadline = Instant::now() + THREAD_EXIT_GRACE;
    loop {
        let threads = thread_comm_paths(Path::new("/proc/self/task")).map_err(|e| {
            OsError::new("count the threads in /proc/self/task (is /proc mounted?)", e)
        })?;
        if threads.len() == 1 {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(OsError::new("fork", multiple_threads_error(&threads)));
        }
        std::thread::yield_now();
    }
}

/// Returns the path of the `comm` file of each thread in the directory `tasks`.
///
/// # Errors
/// The directory is not readable or does not list the calling thread, so it belongs to another process.
fn thread_comm_paths(tasks: &Path) -> io::Result<Vec<PathBuf>> {
    let own = nix::unistd::gettid().to_string();
    let mut lists_own = false;
    let mut threads = Vec::new();
    for task in std::fs::read_dir(tasks)? {
        let task = task?;
        lists_own |= task.file_name().to_str() == Some(&own);
        threads.push(task.path().join("comm"));
    }
    lists_own.then_some(threads).ok_or_else(|| {
        io::Error::other(format!(
            "{} does not list this thread ({own}); mount /proc for the pid namespace of this process",
            tasks.display()
        ))
    })
}

fn multiple_threads_error(threads: &[PathBuf]) -> io::Error {
    let own = nix::unistd::gettid().to_string();
    let names: Vec<String> = threads
        .iter()
        .filter(|comm| !comm.parent().is_some_and(|task| task.ends_with(&own)))
        .filter_map(|comm| std::fs::read_to_string(comm).ok())
        .map(|name| name.trim_end().to_string())
        .collect();
    io::Error::other(format!(
        "this process has {} threads, and only a process with one thread can be forked safely; beside the calling thread: \
         {}; start threads and async runtimes in the function given to serve, which runs in each worker, and join those \
         that `main` or `preload` start",
        threads.len(),
        names.join(", "),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn niceness_changes_in_the_calling_thread_only() {
        let before = thread_niceness().expect("read");
        let lowered =
            std::thread::spawn(|| set_thread_niceness(19).and_then(|()| thread_niceness()));
        assert_eq!(lowered.join().expect("thread").expect("lower"), 19);
        assert_eq!(thread_niceness().expect("read"), before);
    }

    #[test]
    fn the_idle_policy_is_that_of_the_calling_thread_only() {
        let policy = || {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").expect("read");
            // Field 41; the name in field 2 may have spaces.
            let after_name = stat.rsplit(')').next().expect("fields").to_string();
            after_name.split_whitespace().nth(38).map(str::to_string).expect("policy")
        };
        let changed = std::thread::spawn(move || set_thread_idle_policy().map(|()| policy()));
        let changed = changed.join().expect("thread").expect("set");
        assert_eq!(
            (changed, policy()),
            (libc::SCHED_IDLE.to_string(), libc::SCHED_OTHER.to_string())
        );
    }

    #[test]
    fn a_task_directory_without_the_calling_thread_is_an_error() {
        let dir = tempfile::tempdir().expect("directory");
        assert!(thread_comm_paths(&dir.path().join("missing")).is_err());
        let error = thread_comm_paths(dir.path()).expect_err("empty").to_string();
        assert!(error.contains("does not list this thread"), "{error}");
        std::fs::create_dir(dir.path().join("1")).expect("another's");
        assert!(thread_comm_paths(dir.path()).is_err());
        assert!(!thread_comm_paths(Path::new("/proc/self/task")).expect("ours").is_empty());
    }
}
