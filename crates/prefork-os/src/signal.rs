//! Signals as bytes in a pipe: the handler writes the number, the loop reads it when it gets there.

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

/// A self-pipe that receives each of a set of signals as one byte, in order of arrival.
pub struct SignalPipe {
    /// The reading end, and the writing end, whose number the handlers know. `None` once closed.
    ends: Option<(PipeReader, OwnedFd)>,
    registered: Vec<SigId>,
}

impl SignalPipe {
    /// Registers a handler for each of `signals`. Those of them that this process was started with ignored
    /// are handled all the same: who sends one means it.
    pub fn new(signals: &[Signal]) -> io::Result<SignalPipe> {
        let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        let number: RawFd = writer.as_raw_fd();
        let mut registered = Vec::with_capacity(signals.len());
        for signal in signals {
            let byte = *signal as i32 as u8;
            let wake = move || {
                // SAFETY: write is async-signal-safe; the descriptor outlives the registration (see Drop).
                // A full pipe drops the byte: 64 Ki signals are waiting already.
                unsafe { libc::write(number, (&raw const byte).cast(), 1) };
            };
            // SAFETY: the action makes one async-signal-safe call. errno is saved by signal-hook.
            registered.push(unsafe { register(*signal as i32, wake) }?);
        }
        Ok(SignalPipe { ends: Some((PipeReader::from(reader), writer)), registered })
    }

    /// Readable when a signal has arrived. `None` once closed.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.ends.as_ref().map(|(reader, _)| reader.as_fd())
    }

    /// Stops receiving. The handlers stay installed and do nothing from then on: this is how, in a forked
    /// worker, signals of the terminal and of operators that are meant for the primary are ignored.
    pub fn close(&mut self) {
        // Unregistered before the pipe is closed: no handler may write to a number that is somebody else's.
        for id in self.registered.drain(..) {
            unregister(id);
        }
        self.ends = None;
    }

    /// The signals that arrived since the last call, oldest first. Never blocks.
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

/// A flag that `signal` sets from now on.
pub fn register_signal_flag(signal: Signal) -> io::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let set = flag.clone();
    // SAFETY: the action stores to an atomic, nothing else.
    unsafe { register(signal as i32, move || set.store(true, Ordering::Relaxed)) }?;
    Ok(flag)
}

/// Makes writes that the kernel would punish by a signal fail with an error instead: to a pipe that nobody reads (SIGPIPE)
/// and beyond the limit on the size of files (SIGXFSZ, `ulimit -f`).
///
/// By a handler that does nothing: unlike an ignored signal, it is back to the default in every program that this
/// process or its children execute. A handler or SIG_IGN that is there already stays.
pub fn turn_write_signals_into_errors() -> io::Result<()> {
    extern "C" fn nothing(_: libc::c_int) {}
    let handled =
        SigAction::new(SigHandler::Handler(nothing), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGPIPE, Signal::SIGXFSZ] {
        // SAFETY: the handler does nothing, so it is async-signal-safe.
        let before = unsafe { sigaction(signal, &handled) }?;
        if !matches!(before.handler(), SigHandler::SigDfl) {
            // SAFETY: what was installed before this function was called is as safe as it was.
            unsafe { sigaction(signal, &before) }?;
        }
    }
    Ok(())
}

/// What ends a process by default, and not the first one of a container or a pid namespace.
const TERMINATING_SIGNALS: [Signal; 8] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGHUP,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGPWR,
];

/// While this lives, signals end the process as they end any other.
pub struct FirstProcessSignalExit(Arc<AtomicBool>);

/// Makes the first process of a pid namespace, for which signals without a handler mean nothing, end as any other
/// would: with a status that names the signal, as long as the result lives. Does nothing in other processes.
pub fn exit_on_signals_if_pid_1() -> io::Result<FirstProcessSignalExit> {
    let ends = Arc::new(AtomicBool::new(true));
    if std::process::id() == 1 {
        for signal in TERMINATING_SIGNALS {
            let number = signal as i32;
            signal_hook::flag::register_conditional_shutdown(number, 128 + number, ends.clone())?;
        }
    }
    Ok(FirstProcessSignalExit(ends))
}

impl Drop for FirstProcessSignalExit {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

/// Signals are held back while this lives: between fork and the child's own handlers none must be lost or
/// written into the parent's pipe.
pub struct BlockedSignals {
    before: SigSet,
}

impl BlockedSignals {
    /// Holds back every signal that can be.
    pub fn block_all() -> io::Result<BlockedSignals> {
        let mut before = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
        Ok(BlockedSignals { before })
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // Restoring a mask that the kernel gave us cannot fail.
        let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&self.before), None);
    }
}

/// Lets every signal in: a program that was started by exec inherits the mask of its predecessor.
pub fn unblock_all_signals() -> io::Result<()> {
    Ok(sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?)
}
