//! Signal handling: a self-pipe for event loops, flags, blocking, and replacing default actions.

use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::OFlag;
use nix::sys::signal::{
    SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, sigaction, sigprocmask,
};
use signal_hook::SigId;
use signal_hook::low_level::{register, unregister};

use super::libc;

pub use nix::sys::signal::Signal;

/// A self-pipe: handlers write each signal received as one byte, and an event loop reads them in order.
pub struct SignalPipe {
    /// The read end, and the write end, whose number the handlers hold. `None` once closed.
    ends: Option<(PipeReader, OwnedFd)>,
    registered: Vec<SigId>,
}

impl SignalPipe {
    /// Registers a handler for each of `signals`, also for those that this process was started with ignored.
    pub fn new(signals: &[Signal]) -> io::Result<SignalPipe> {
        let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        let number: RawFd = writer.as_raw_fd();
        let mut registered = Vec::with_capacity(signals.len());
        for signal in signals {
            let byte = *signal as i32 as u8;
            let wake = move || {
                // SAFETY: write is async-signal-safe; the descriptor outlives the registration (see `close`).
                // A full pipe drops the byte, but then 65536 signals are pending already.
                unsafe { libc::write(number, (&raw const byte).cast(), 1) };
            };
            // SAFETY: the action makes one async-signal-safe call, and signal-hook saves errno.
            registered.push(unsafe { register(*signal as i32, wake) }?);
        }
        Ok(SignalPipe { ends: Some((PipeReader::from(reader), writer)), registered })
    }

    /// Returns the read end, which is readable when a signal is pending. `None` once closed.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.ends.as_ref().map(|(reader, _)| reader.as_fd())
    }

    /// Stops receiving signals. The handlers stay installed and do nothing.
    ///
    /// So a forked worker ignores signals that a terminal or an operator sends to the primary.
    pub fn close(&mut self) {
        // Unregisters first: no handler may write to the number after it was reused for another descriptor.
        for id in self.registered.drain(..) {
            unregister(id);
        }
        self.ends = None;
    }

    /// Returns the signals received since the last call, oldest first. Never blocks.
    pub fn read_pending(&mut self) -> io::Result<Vec<Signal>> {
        let Some((reader, _)) = &mut self.ends else { return Ok(Vec::new()) };
        let mut bytes = [0u8; 256];
        match reader.read(&mut bytes) {
            Ok(n) => {
                Ok(bytes[..n].iter().filter_map(|b| Signal::try_from(i32::from(*b)).ok()).collect())
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(Vec::new()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(Vec::new()),
            Err(e) => Err(e),
        }
    }
}

impl Drop for SignalPipe {
    fn drop(&mut self) {
        self.close();
    }
}

/// Registers a handler for `signal` and returns the flag that it sets.
pub fn register_signal_flag(signal: Signal) -> io::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let set = flag.clone();
    // SAFETY: the action only stores to an atomic.
    unsafe { register(signal as i32, move || set.store(true, Ordering::Relaxed)) }?;
    Ok(flag)
}

/// Makes writes fail with an error instead of raising SIGPIPE (pipe without a reader) or SIGXFSZ (`ulimit -f`
/// exceeded).
///
/// Installs a handler that does nothing. Unlike SIG_IGN, it is reset to the default in every executed program. An
/// existing handler or SIG_IGN stays.
pub fn ignore_sigpipe_and_sigxfsz() -> io::Result<()> {
    extern "C" fn ignore_signal(_: libc::c_int) {}
    let handled =
        SigAction::new(SigHandler::Handler(ignore_signal), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGPIPE, Signal::SIGXFSZ] {
        // SAFETY: the handler does nothing, so it is async-signal-safe.
        let before = unsafe { sigaction(signal, &handled) }?;
        if !matches!(before.handler(), SigHandler::SigDfl) {
            // SAFETY: restores the previous action, which is as safe as before.
            unsafe { sigaction(signal, &before) }?;
        }
    }
    Ok(())
}

/// Signals that terminate a process by default, but not process 1 of a pid namespace.
const PID_1_EXIT_SIGNALS: [Signal; 8] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGHUP,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGPWR,
];

/// While this value exists, terminating signals end process 1. See [`exit_on_signals_if_pid_1`].
pub struct Pid1SignalExit(Arc<AtomicBool>);

/// Makes terminating signals end this process with status 128 + signal while the result exists, if it is process 1.
///
/// The kernel ignores signals without a handler for process 1 of a pid namespace, such as the main process of a
/// container. Does nothing in other processes.
pub fn exit_on_signals_if_pid_1() -> io::Result<Pid1SignalExit> {
    let ends = Arc::new(AtomicBool::new(true));
    if std::process::id() == 1 {
        for signal in PID_1_EXIT_SIGNALS {
            let number = signal as i32;
            signal_hook::flag::register_conditional_shutdown(number, 128 + number, ends.clone())?;
        }
    }
    Ok(Pid1SignalExit(ends))
}

impl Drop for Pid1SignalExit {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

/// Blocks signals while this value exists and then restores the previous mask.
///
/// Held across a fork, it keeps the child from losing a signal, or writing one to the parent's [`SignalPipe`], before
/// it has installed its own handlers.
pub struct BlockedSignals {
    before: SigSet,
}

impl BlockedSignals {
    /// Blocks every signal that can be blocked.
    pub fn block_all() -> io::Result<BlockedSignals> {
        let mut before = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
        Ok(BlockedSignals { before })
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // Restoring a mask that the kernel returned cannot fail.
        let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&self.before), None);
    }
}

/// Resets all signals that this process handles to their default actions, and unblocks all. For a forked child that is
/// about to execute another program, which would inherit the mask and could not be ended by the blocked signals.
///
/// A signal that was blocked until now has its default action, not the handler of the parent. Ignored signals stay
/// ignored.
pub fn reset_handlers_and_unblock() -> io::Result<()> {
    for signal in Signal::iterator() {
        // SAFETY: an all-zero sigaction is valid; the kernel writes the current action to it.
        let mut current: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: both pointers are valid or null. SIGKILL and SIGSTOP are readable too.
        let read =
            unsafe { libc::sigaction(signal as libc::c_int, std::ptr::null(), &raw mut current) };
        let is_handled = ![libc::SIG_DFL, libc::SIG_IGN].contains(&current.sa_sigaction);
        if read == 0 && is_handled {
            let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
            // SAFETY: the default action runs no code of this process.
            unsafe { sigaction(signal, &default) }?;
        }
    }
    unblock_all_signals()
}

/// Unblocks all signals: a program inherits the signal mask across exec.
pub fn unblock_all_signals() -> io::Result<()> {
    Ok(sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?)
}
