//! The thread that calls: its priority, and which signals it takes.

use std::io;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};

use super::{cvt, libc};

/// Makes the calling thread give way to others: `nice` is 0 (no difference) to 19. On Linux the nice value
/// belongs to a thread, so the rest of the process keeps its own.
pub fn give_way(nice: u32) -> io::Result<()> {
    let nice = libc::c_int::try_from(nice.min(19)).unwrap_or(19);
    let this = libc::id_t::try_from(nix::unistd::gettid().as_raw()).unwrap_or(0);
    // SAFETY: setpriority takes three numbers and touches no memory of ours.
    cvt(unsafe { libc::setpriority(libc::PRIO_PROCESS, this, nice) }).map(drop)
}

/// The nice value of the calling thread.
#[cfg(any(test, feature = "testing"))]
pub fn niceness() -> io::Result<i32> {
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
pub fn leave_signals_to_others() -> io::Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_thread_that_asks_gives_way() {
        let before = niceness().expect("read");
        let lowered = std::thread::spawn(|| give_way(19).and_then(|()| niceness()));
        assert_eq!(lowered.join().expect("thread").expect("lower"), 19);
        assert_eq!(niceness().expect("read"), before);
    }
}
