//! The end of a process whose parent has died.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU32, Ordering};

use nix::sys::signal::{SigSet, SigmaskHow};
use nix::unistd::getppid;

use super::{cvt, libc};
use crate::signal::Signal;

/// The signal the kernel sends to a worker whose primary died. SIGCONT alone makes a stopped process go on, so that it
/// runs the handler. The handler checks that the primary is really gone: any other SIGCONT means nothing.
const PARENT_DEATH_SIGNAL: Signal = Signal::SIGCONT;

static PRIMARY: AtomicI32 = AtomicI32::new(0);
/// The process that `kill_after_parent_death` was called in: a fork of it has the handlers, and not their purpose.
static WORKER: AtomicI32 = AtomicI32::new(0);
static GRACE_SECONDS: AtomicU32 = AtomicU32::new(0);
/// A timer of the kernel that sends SIGKILL, which ends a stopped process, too. Null: there is none.
static KILL_TIMER: AtomicPtr<libc::c_void> = AtomicPtr::new(std::ptr::null_mut());
/// Whether the timer could be made.
static HAS_KILL_TIMER: AtomicBool = AtomicBool::new(false);
/// Whether the grace time runs.
static IS_ORPHAN: AtomicBool = AtomicBool::new(false);

/// Makes the kernel end this process `grace_seconds` after its parent `primary` died, even if its event loop
/// is frozen or the process is stopped: PDEATHSIG, whose handler starts a timer that sends SIGKILL. Returns `false` if the
/// parent is already gone.
///
/// Where the kernel gives no timer, SIGALRM stands in for it, which does not reach a process that is stopped later.
/// Without a dead parent, SIGALRM means nothing.
///
/// Without a loop that is frozen this never strikes: the worker sees the end of its channel and leaves.
pub fn kill_after_parent_death(primary: u32, grace_seconds: u32) -> io::Result<bool> {
    PRIMARY.store(primary as i32, Ordering::Relaxed);
    GRACE_SECONDS.store(grace_seconds.max(1), Ordering::Relaxed);
    WORKER.store(std::process::id() as i32, Ordering::Relaxed);
    IS_ORPHAN.store(false, Ordering::Relaxed);
    match create_kill_timer() {
        Ok(timer) => {
            KILL_TIMER.store(timer, Ordering::Relaxed);
            HAS_KILL_TIMER.store(true, Ordering::Relaxed);
        }
        Err(_) => HAS_KILL_TIMER.store(false, Ordering::Relaxed),
    }
    // SIGPWR is what older images used; by default it would end the process.
    for signal in [PARENT_DEATH_SIGNAL as libc::c_int, libc::SIGPWR] {
        // SAFETY: `handle_parent_death` calls only async-signal-safe functions and touches only atomics.
        unsafe { install_handler(signal, handle_parent_death as *const () as libc::sighandler_t)? };
    }
    // SAFETY: `handle_grace_alarm` calls only async-signal-safe functions and touches only atomics.
    unsafe {
        install_handler(libc::SIGALRM, handle_grace_alarm as *const () as libc::sighandler_t)?
    };
    let mut open = SigSet::empty();
    for signal in [PARENT_DEATH_SIGNAL, Signal::SIGPWR, Signal::SIGALRM] {
        open.add(signal);
    }
    nix::sys::signal::sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&open), None)?;
    nix::sys::prctl::set_pdeathsig(Some(PARENT_DEATH_SIGNAL))?;
    // The parent may have died before prctl: then nobody will send the signal, and getppid tells.
    Ok(getppid().as_raw() == primary as i32)
}

/// Whether this process was forked as a worker.
pub fn is_worker_process() -> bool {
    PRIMARY.load(Ordering::Relaxed) != 0
}

/// Whether orphans become children of this process: as the first one of a pid namespace, or as a subreaper.
pub fn is_orphan_reaper() -> bool {
    std::process::id() == 1 || matches!(nix::sys::prctl::get_child_subreaper(), Ok(true))
}

/// Makes the kernel send `signal` to the process that `command` starts when the thread that starts it ends.
pub fn set_parent_death_signal(command: &mut Command, signal: Signal) {
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
pub fn kill_on_parent_death(parent: u32) -> io::Result<bool> {
    nix::sys::prctl::set_pdeathsig(Some(Signal::SIGKILL))?;
    Ok(getppid().as_raw() == parent as i32)
}

/// A timer that sends SIGKILL to this process. A fork of it does not have it.
fn create_kill_timer() -> io::Result<libc::timer_t> {
    // SAFETY: an all-zero sigevent is a valid one.
    let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
    event.sigev_notify = libc::SIGEV_SIGNAL;
    event.sigev_signo = libc::SIGKILL;
    let mut timer: libc::timer_t = std::ptr::null_mut();
    // SAFETY: both pointers are valid; the kernel writes the timer to the second.
    cvt(unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) })?;
    Ok(timer)
}

/// Starts the grace time, if the primary is gone and it does not run yet.
extern "C" fn handle_parent_death(_: libc::c_int) {
    // SAFETY: getpid and getppid are async-signal-safe and cannot fail.
    let (pid, parent) = unsafe { (libc::getpid(), libc::getppid()) };
    let orphan = parent != PRIMARY.load(Ordering::Relaxed) && pid == WORKER.load(Ordering::Relaxed);
    if !orphan || IS_ORPHAN.swap(true, Ordering::Relaxed) {
        return;
    }
    let seconds = GRACE_SECONDS.load(Ordering::Relaxed);
    if HAS_KILL_TIMER.load(Ordering::Relaxed) {
        // SAFETY: an all-zero itimerspec is a valid one.
        let mut when: libc::itimerspec = unsafe { std::mem::zeroed() };
        when.it_value.tv_sec = seconds.into();
        let timer = KILL_TIMER.load(Ordering::Relaxed);
        // SAFETY: timer_settime is async-signal-safe; the timer was made by `create_kill_timer` in this process.
        if unsafe { libc::timer_settime(timer, 0, &raw const when, std::ptr::null_mut()) } == 0 {
            return;
        }
        HAS_KILL_TIMER.store(false, Ordering::Relaxed);
    }
    // SAFETY: alarm is async-signal-safe and cannot fail.
    unsafe { libc::alarm(seconds) };
}

/// Ends the process if its grace time ran without a timer. A SIGALRM of anybody else does nothing.
extern "C" fn handle_grace_alarm(_: libc::c_int) {
    if IS_ORPHAN.load(Ordering::Relaxed) && !HAS_KILL_TIMER.load(Ordering::Relaxed) {
        // SAFETY: kill and getpid are async-signal-safe.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    }
}

/// # Safety
/// `handler` is `SIG_DFL`, `SIG_IGN` or a handler that is async-signal-safe.
unsafe fn install_handler(signal: libc::c_int, handler: libc::sighandler_t) -> io::Result<()> {
    // SAFETY: an all-zero sigaction is a valid one: no flags, empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: `action` is initialised, and the caller vouches for the handler.
    cvt(unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) })?;
    Ok(())
}
