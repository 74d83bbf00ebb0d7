//! Ending a process whose parent has died, even if it is frozen or stopped.

use std::io;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU32, Ordering};

use nix::sys::signal::{SigSet, SigmaskHow};
use nix::unistd::getppid;

use super::{libc, syscall_result};
use crate::signal::Signal;

/// The signal that the kernel sends to a worker whose primary died. Only SIGCONT also runs the handler of a stopped
/// process.
///
/// The handler ignores a SIGCONT that arrives while the primary lives.
const PARENT_DEATH_SIGNAL: Signal = Signal::SIGCONT;

static PRIMARY_PID: AtomicI32 = AtomicI32::new(0);
/// The process that called [`kill_after_parent_death`]. Forks of it inherit the handlers, which must do nothing there.
static WORKER_PID: AtomicI32 = AtomicI32::new(0);
static KILL_GRACE_SECONDS: AtomicU32 = AtomicU32::new(0);
/// The POSIX timer that sends SIGKILL to this process. Valid if `HAS_KILL_TIMER` is set.
static KILL_TIMER: AtomicPtr<libc::c_void> = AtomicPtr::new(std::ptr::null_mut());
/// Whether the kernel created the timer.
static HAS_KILL_TIMER: AtomicBool = AtomicBool::new(false);
/// Whether the primary has died and the grace time runs.
static IS_ORPHAN: AtomicBool = AtomicBool::new(false);
/// Whether the process group of this process dies with it.
static KILLS_GROUP: AtomicBool = AtomicBool::new(false);
/// The descriptor that replaces standard output and error when the primary has died; -1 for none. It is never closed.
static OUTPUT_AFTER_PARENT_DEATH: AtomicI32 = AtomicI32::new(-1);

/// Makes the kernel kill this process `grace_seconds` (at least 1) after its parent `primary` has died.
///
/// Works also if the event loop of the process is frozen or the process is stopped: the handler of PDEATHSIG starts a
/// timer that sends SIGKILL. A healthy worker notices the end of its channel and exits earlier. If the kernel cannot
/// create a timer, SIGALRM replaces it, which does not reach a process that is stopped later.
///
/// Returns `false` if the parent is already gone; the process should then exit.
pub fn kill_after_parent_death(primary: u32, grace_seconds: u32) -> io::Result<bool> {
    PRIMARY_PID.store(primary as i32, Ordering::Relaxed);
    KILL_GRACE_SECONDS.store(grace_seconds.max(1), Ordering::Relaxed);
    WORKER_PID.store(std::process::id() as i32, Ordering::Relaxed);
    IS_ORPHAN.store(false, Ordering::Relaxed);
    match create_kill_timer() {
        Ok(timer) => {
            KILL_TIMER.store(timer, Ordering::Relaxed);
            HAS_KILL_TIMER.store(true, Ordering::Relaxed);
        }
        Err(_) => HAS_KILL_TIMER.store(false, Ordering::Relaxed),
    }
    // Primaries of earlier versions sent SIGPWR, whose default action would end the process.
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
    // If the parent died before prctl, the kernel sends no signal, but getppid has changed.
    Ok(getppid().as_raw() == primary as i32)
}

/// Redirects standard output and error to `file` as soon as the parent has died. Call it with
/// [`kill_after_parent_death`].
///
/// For a process whose output the parent reads: a write that waits for the parent continues with `file`.
pub fn redirect_output_on_parent_death(file: OwnedFd) {
    OUTPUT_AFTER_PARENT_DEATH.store(file.into_raw_fd(), Ordering::Relaxed);
}

/// Kills the process group that this process leads at the end of the grace time. Call it after
/// [`kill_after_parent_death`].
///
/// If the process is stopped at that moment, only the process itself dies, one second later.
pub fn kill_group_after_parent_death() {
    KILLS_GROUP.store(true, Ordering::Relaxed);
}

/// Returns whether this process is a worker, or a fork of one: [`kill_after_parent_death`] was called.
pub fn is_worker_process() -> bool {
    PRIMARY_PID.load(Ordering::Relaxed) != 0
}

/// Returns whether orphaned processes become children of this one: it is process 1 or a subreaper.
pub fn is_orphan_reaper() -> bool {
    std::process::id() == 1 || matches!(nix::sys::prctl::get_child_subreaper(), Ok(true))
}

/// Makes the kernel send `signal` to the child that `command` starts when the thread that starts it exits.
///
/// The child fails to start (ESRCH) if the parent dies first.
pub fn set_parent_death_signal(command: &mut Command, signal: Signal) {
    let parent = std::process::id();
    let prepare_child = move || {
        nix::sys::prctl::set_pdeathsig(Some(signal))?;
        // If the parent died before prctl, the kernel sends no signal, so the child must not start.
        let lives = getppid().as_raw() == parent as i32;
        lives.then_some(()).ok_or(io::Error::from_raw_os_error(libc::ESRCH))
    };
    // SAFETY: between fork and exec the closure makes two system calls, takes no lock and allocates no memory.
    unsafe { command.pre_exec(prepare_child) };
}

/// Makes the kernel kill this process as soon as its parent `parent` dies, without cleanup. Also holds after an exec.
///
/// Returns `false` if the parent is already gone; the process should then exit.
pub fn kill_on_parent_death(parent: u32) -> io::Result<bool> {
    nix::sys::prctl::set_pdeathsig(Some(Signal::SIGKILL))?;
    Ok(getppid().as_raw() == parent as i32)
}

/// Creates an unarmed timer that sends SIGKILL to this process. Forks do not inherit it.
fn create_kill_timer() -> io::Result<libc::timer_t> {
    // SAFETY: an all-zero sigevent is valid.
    let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
    event.sigev_notify = libc::SIGEV_SIGNAL;
    event.sigev_signo = libc::SIGKILL;
    let mut timer: libc::timer_t = std::ptr::null_mut();
    // SAFETY: both pointers are valid; the kernel writes the timer to the second.
    syscall_result(unsafe {
        libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer)
    })?;
    Ok(timer)
}

/// Handles the parent death signal: starts the grace time, unless it runs already or the primary still lives.
extern "C" fn handle_parent_death(_: libc::c_int) {
    // SAFETY: getpid and getppid are async-signal-safe and cannot fail.
    let (pid, parent) = unsafe { (libc::getpid(), libc::getppid()) };
    let is_orphan =
        parent != PRIMARY_PID.load(Ordering::Relaxed) && pid == WORKER_PID.load(Ordering::Relaxed);
    if !is_orphan || IS_ORPHAN.swap(true, Ordering::Relaxed) {
        return;
    }
    let output = OUTPUT_AFTER_PARENT_DEATH.load(Ordering::Relaxed);
    if output >= 0 {
        for stream in [1, 2] {
            // SAFETY: dup2 is async-signal-safe, and no `OwnedFd` owns the numbers 1 and 2.
            unsafe { libc::dup2(output, stream) };
        }
    }
    let mut seconds = KILL_GRACE_SECONDS.load(Ordering::Relaxed);
    if KILLS_GROUP.load(Ordering::Relaxed) {
        // A timer of the kernel can kill this process only; the handler of SIGALRM kills the group.
        // SAFETY: alarm is async-signal-safe and cannot fail.
        unsafe { libc::alarm(seconds) };
        seconds = seconds.saturating_add(1);
    }
    if HAS_KILL_TIMER.load(Ordering::Relaxed) {
        // SAFETY: an all-zero itimerspec is valid.
        let mut when: libc::itimerspec = unsafe { std::mem::zeroed() };
        when.it_value.tv_sec = seconds.into();
        let timer = KILL_TIMER.load(Ordering::Relaxed);
        // SAFETY: timer_settime is async-signal-safe, and `create_kill_timer` created the timer in this process.
        if unsafe { libc::timer_settime(timer, 0, &raw const when, std::ptr::null_mut()) } == 0 {
            return;
        }
        HAS_KILL_TIMER.store(false, Ordering::Relaxed);
    }
    if !KILLS_GROUP.load(Ordering::Relaxed) {
        // SAFETY: alarm is async-signal-safe and cannot fail.
        unsafe { libc::alarm(seconds) };
    }
}

/// Handles SIGALRM: kills the process, or its group, if its grace time ran without a timer. Otherwise does nothing.
extern "C" fn handle_grace_alarm(_: libc::c_int) {
    // SAFETY: getpid and getpgrp are async-signal-safe and cannot fail.
    let (pid, group) = unsafe { (libc::getpid(), libc::getpgrp()) };
    let is_leader = KILLS_GROUP.load(Ordering::Relaxed) && pid == group && pid > 1;
    if IS_ORPHAN.load(Ordering::Relaxed) && is_leader && pid == WORKER_PID.load(Ordering::Relaxed) {
        // SAFETY: kill is async-signal-safe. The group is this process and what it has started.
        unsafe { libc::kill(-pid, libc::SIGKILL) };
    }
    if IS_ORPHAN.load(Ordering::Relaxed) && !HAS_KILL_TIMER.load(Ordering::Relaxed) {
        // SAFETY: kill and getpid are async-signal-safe.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    }
}

/// Installs `handler` for `signal`, with SA_RESTART.
///
/// # Safety
/// `handler` is `SIG_DFL`, `SIG_IGN` or a handler that is async-signal-safe.
unsafe fn install_handler(signal: libc::c_int, handler: libc::sighandler_t) -> io::Result<()> {
    // SAFETY: an all-zero sigaction is valid: no flags, empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: `action` is initialised, and the caller answers for the handler.
    syscall_result(unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) })?;
    Ok(())
}
