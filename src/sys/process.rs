//! One process: its limits, its environment, its parent, and signals to it.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::unistd::{Pid, getppid};

use super::fork::require_one_thread;
use super::{cvt, libc};
use crate::error::Result;
use crate::printable::printable_bytes;
use crate::sys::signal::Signal;

/// The signal the kernel sends to a worker whose primary died. Nothing else uses it in a service, and its
/// handler checks that the primary is really gone.
const ORPHANED: libc::c_int = libc::SIGPWR;

static PRIMARY: AtomicI32 = AtomicI32::new(0);
static GRACE_SECONDS: AtomicU32 = AtomicU32::new(0);

/// Sends `signal` to a child that has not been reaped yet, so that its pid is its own.
pub(crate) fn kill(pid: u32, signal: Signal) -> io::Result<()> {
    Ok(nix::sys::signal::kill(Pid::from_raw(one_process(pid)?), signal)?)
}

/// `pid` as the kernel takes it. 0 and negative numbers would mean groups of processes, or all of them.
pub(super) fn one_process(pid: u32) -> io::Result<i32> {
    i32::try_from(pid).ok().filter(|pid| *pid > 0).ok_or(io::ErrorKind::InvalidInput.into())
}

/// Makes the kernel end this process `grace_seconds` after its parent `primary` died, even if its event loop
/// is frozen: PDEATHSIG, whose handler only arms `alarm(2)`. Returns `false` if the parent is already gone.
///
/// Without a loop that is frozen this never strikes: the worker sees the end of its channel and leaves.
pub(crate) fn die_with(primary: u32, grace_seconds: u32) -> io::Result<bool> {
    PRIMARY.store(primary as i32, Ordering::Relaxed);
    GRACE_SECONDS.store(grace_seconds.max(1), Ordering::Relaxed);
    // SAFETY: `arm_alarm` calls only async-signal-safe functions and touches only atomics.
    unsafe { handle(ORPHANED, arm_alarm as *const () as libc::sighandler_t)? };
    // SAFETY: `ignore` does nothing. Unlike SIG_IGN it is not inherited by what the worker executes.
    unsafe { handle(libc::SIGALRM, ignore as *const () as libc::sighandler_t)? };
    let mut open = SigSet::empty();
    open.add(Signal::SIGPWR);
    open.add(Signal::SIGALRM);
    nix::sys::signal::sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&open), None)?;
    nix::sys::prctl::set_pdeathsig(Some(Signal::SIGPWR))?;
    // The parent may have died before prctl: then nobody will send the signal, and getppid tells.
    Ok(getppid().as_raw() == primary as i32)
}

/// Whether this process was forked as a worker.
pub(crate) fn is_worker() -> bool {
    PRIMARY.load(Ordering::Relaxed) != 0
}

/// Whether orphans become children of this process: as the first one of a pid namespace, or as a subreaper.
pub(crate) fn adopts_orphans() -> bool {
    std::process::id() == 1 || matches!(nix::sys::prctl::get_child_subreaper(), Ok(true))
}

/// Makes the kernel send `signal` to the process that `command` starts when the thread that starts it ends.
pub(crate) fn tie(command: &mut Command, signal: Signal) {
    let parent = std::process::id();
    let tied = move || {
        nix::sys::prctl::set_pdeathsig(Some(signal))?;
        // The parent may have died before that: then nobody will send the signal, and the child must not begin.
        let lives = getppid().as_raw() == parent as i32;
        lives.then_some(()).ok_or(io::Error::from_raw_os_error(libc::ESRCH))
    };
    // SAFETY: between fork and exec the closure makes two system calls; it takes no lock and no memory.
    unsafe { command.pre_exec(tied) };
}

/// Makes the kernel kill this process at once when its parent `parent` dies; it stays so over an exec. Returns
/// `false` if the parent is already gone. For processes that hold nothing of anybody.
pub(crate) fn killed_with(parent: u32) -> io::Result<bool> {
    nix::sys::prctl::set_pdeathsig(Some(Signal::SIGKILL))?;
    Ok(getppid().as_raw() == parent as i32)
}

extern "C" fn ignore(_: libc::c_int) {}

extern "C" fn arm_alarm(_: libc::c_int) {
    // SAFETY: getppid, sigaction and alarm are async-signal-safe. The default action of SIGALRM ends the process, which only
    // the alarm that is armed here is to do.
    unsafe {
        if libc::getppid() != PRIMARY.load(Ordering::Relaxed)
            && handle(libc::SIGALRM, libc::SIG_DFL).is_ok()
        {
            libc::alarm(GRACE_SECONDS.load(Ordering::Relaxed));
        }
    }
}

/// # Safety
/// `handler` is `SIG_DFL`, `SIG_IGN` or a handler that is async-signal-safe.
unsafe fn handle(signal: libc::c_int, handler: libc::sighandler_t) -> io::Result<()> {
    // SAFETY: an all-zero sigaction is a valid one: no flags, empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: `action` is initialised, and the caller vouches for the handler.
    cvt(unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) })?;
    Ok(())
}

/// Removes variables that speak to this process alone (the service manager's, above all) from the
/// environment of a worker and of everything it starts.
///
/// # Errors
/// The process has more than one thread, so that another one might read the environment meanwhile.
pub(crate) fn forget_env(mut unwanted: impl FnMut(&str) -> bool) -> Result<()> {
    let mut names: Vec<_> = std::env::vars_os().map(|(name, _)| name).collect();
    names.retain(|name| name.to_str().is_some_and(&mut unwanted));
    if names.is_empty() {
        return Ok(());
    }
    require_one_thread()?;
    for name in &names {
        // SAFETY: the process has one thread (checked above), so nobody reads the environment meanwhile.
        unsafe { std::env::remove_var(name) };
    }
    Ok(())
}

/// Adds variables to the environment, or replaces those with the same names. Names are not empty and have no `=`;
/// nothing has a NUL in it.
///
/// # Errors
/// The process has more than one thread, so that another one might read the environment meanwhile.
pub(crate) fn add_env(variables: &[(String, String)]) -> Result<()> {
    if variables.is_empty() {
        return Ok(());
    }
    require_one_thread()?;
    for (name, value) in variables {
        // SAFETY: the process has one thread (checked above), so nobody reads the environment meanwhile.
        unsafe { std::env::set_var(name, value) };
    }
    Ok(())
}

/// Raises the soft limit on open files to the hard one and returns it. Descriptors are connections here, and
/// the usual soft limit of 1024 exists for programs that use `select`.
pub(crate) fn raise_open_files() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

/// How many files this process may have open.
pub(crate) fn open_files() -> io::Result<u64> {
    Ok(getrlimit(Resource::RLIMIT_NOFILE)?.0)
}

/// Bytes of a page of memory.
pub(crate) fn page_size() -> u64 {
    // SAFETY: sysconf only reads.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// How a process stands in a message, if it exists: `pid 812, nginx`.
pub(crate) fn describe(pid: u32) -> Option<String> {
    let name = std::fs::read(format!("/proc/{pid}/comm")).ok()?;
    // A name is whatever its process chose: nothing of it may reach a terminal raw.
    Some(format!("pid {pid}, {}", printable_bytes(name.trim_ascii_end(), name.len())))
}

/// Milliseconds on the monotonic clock, the same for every process of this machine.
pub(crate) fn monotonic_ms() -> u64 {
    match nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC) {
        Ok(now) => now.tv_sec() as u64 * 1000 + now.tv_nsec() as u64 / 1_000_000,
        Err(_) => 0,
    }
}

/// Nanoseconds on the monotonic clock, the same for every process of this machine.
pub(crate) fn monotonic_ns() -> u64 {
    match nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC) {
        Ok(now) => now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64,
        Err(_) => 0,
    }
}

/// Eight bytes that no other process got: from the kernel, never from a generator that fork copied.
pub(crate) fn random_u64() -> io::Result<u64> {
    let mut bytes = [0u8; 8];
    // SAFETY: the buffer is valid for its eight bytes; for up to 256 bytes getrandom is all or nothing.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if got == 8 { Ok(u64::from_ne_bytes(bytes)) } else { Err(io::Error::last_os_error()) }
}
