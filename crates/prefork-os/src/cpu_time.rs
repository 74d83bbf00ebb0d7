//! A limit of the CPU time that this process may use from now on.
//!
//! The kernel's RLIMIT_CPU counts in whole seconds and from the start of the process; a POSIX timer on the clock of the
//! process has neither of these limits.

use std::io;
use std::time::Duration;

use super::{libc, syscall_result};

/// How much more CPU time a process gets that survives SIGXCPU, before SIGKILL ends it.
const KILL_DELAY: Duration = Duration::from_millis(500);

/// Two timers on the CPU clock of this process: SIGXCPU at the limit, SIGKILL soon after it.
///
/// The CPU time of all threads counts, that of programs which the process starts does not. Forks do not inherit the
/// timers.
pub struct CpuTimeLimit {
    signal_timer: libc::timer_t,
    kill_timer: libc::timer_t,
}

// SAFETY: a timer id is only a handle for the kernel, which accepts it from any thread of the process.
unsafe impl Send for CpuTimeLimit {}

impl CpuTimeLimit {
    /// Creates the timers, unarmed.
    ///
    /// # Errors
    /// The kernel has no room for more timers (RLIMIT_SIGPENDING).
    pub fn new() -> io::Result<CpuTimeLimit> {
        let signal_timer = create_cpu_timer(libc::SIGXCPU)?;
        match create_cpu_timer(libc::SIGKILL) {
            Ok(kill_timer) => Ok(CpuTimeLimit { signal_timer, kill_timer }),
            Err(e) => {
                delete_timer(signal_timer);
                Err(e)
            }
        }
    }

    /// Ends this process with SIGXCPU when it has used `limit` more CPU time.
    pub fn start(&self, limit: Duration) -> io::Result<()> {
        set_timer(self.kill_timer, limit.saturating_add(KILL_DELAY))?;
        // Zero would disarm the timer.
        set_timer(self.signal_timer, limit.max(Duration::from_nanos(1)))
    }

    /// Removes the limit until the next start.
    pub fn stop(&self) -> io::Result<()> {
        set_timer(self.signal_timer, Duration::ZERO)?;
        set_timer(self.kill_timer, Duration::ZERO)
    }
}

impl Drop for CpuTimeLimit {
    fn drop(&mut self) {
        delete_timer(self.signal_timer);
        delete_timer(self.kill_timer);
    }
}

fn create_cpu_timer(signal: libc::c_int) -> io::Result<libc::timer_t> {
    // SAFETY: an all-zero sigevent is valid.
    let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
    event.sigev_notify = libc::SIGEV_SIGNAL;
    event.sigev_signo = signal;
    let mut timer: libc::timer_t = std::ptr::null_mut();
    // SAFETY: both pointers are valid; the kernel writes the timer to the second.
    syscall_result(unsafe {
        libc::timer_create(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut event, &raw mut timer)
    })?;
    Ok(timer)
}

fn set_timer(timer: libc::timer_t, after: Duration) -> io::Result<()> {
    // SAFETY: an all-zero itimerspec is valid.
    let mut when: libc::itimerspec = unsafe { std::mem::zeroed() };
    when.it_value.tv_sec = after.as_secs().try_into().unwrap_or(libc::time_t::MAX);
    when.it_value.tv_nsec = after.subsec_nanos().into();
    // SAFETY: `timer` was created in this process and not deleted yet, and `when` is initialised.
    let set = unsafe { libc::timer_settime(timer, 0, &raw const when, std::ptr::null_mut()) };
    syscall_result(set).map(drop)
}

fn delete_timer(timer: libc::timer_t) {
    // SAFETY: `timer` was created in this process; each is deleted once.
    unsafe { libc::timer_delete(timer) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_is_removed_in_time_does_no_harm() {
        let limit = CpuTimeLimit::new().expect("timers");
        limit.start(Duration::from_secs(3600)).expect("started");
        limit.start(Duration::MAX).expect("started again");
        limit.stop().expect("stopped");
    }
}
