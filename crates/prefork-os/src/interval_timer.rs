//! A periodic timer of the kernel (timerfd) in a tokio runtime.
//!
//! Each tick is one wake-up. tokio's timer takes two for a delay of more than 64 ms, because its wheel first moves the
//! timer to a finer level. That counts with many idle workers.

use std::future::pending;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};
use tokio::io::unix::AsyncFd;

use super::{libc, syscall_result};
use crate::async_fd::register_readable;

/// A periodic timer. Ticks that nothing waited for count as one.
pub struct IntervalTimer {
    timer: AsyncFd<OwnedFd>,
    started: Instant,
    period: Duration,
    /// Number of expirations so far.
    count: u64,
}

impl IntervalTimer {
    /// Creates a timer in the current tokio runtime. It ticks every `period`, first after one `period`.
    ///
    /// # Errors
    /// The process is out of descriptors.
    ///
    /// # Panics
    /// The call is outside of a runtime with I/O enabled.
    pub fn new(period: Duration) -> io::Result<IntervalTimer> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        let started = Instant::now();
        let timer = register_readable(OwnedFd::from(timer))?;
        let mut timer = IntervalTimer { timer, started, period, count: 0 };
        timer.set_period(period)?;
        Ok(timer)
    }

    /// Changes the period. The next tick comes one `period` from now.
    ///
    /// # Errors
    /// The kernel refuses the period; the old one stays.
    pub fn set_period(&mut self, period: Duration) -> io::Result<()> {
        let span = libc::timespec {
            tv_sec: libc::time_t::try_from(period.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: period.subsec_nanos().into(),
        };
        let setting = libc::itimerspec { it_interval: span, it_value: span };
        // SAFETY: the kernel only reads `setting`, which outlives the call; the null pointer asks for no old value.
        syscall_result(unsafe {
            libc::timerfd_settime(
                self.timer.as_raw_fd(),
                0,
                &raw const setting,
                std::ptr::null_mut(),
            )
        })?;
        (self.started, self.period, self.count) = (Instant::now(), period, 0);
        Ok(())
    }

    /// Waits for the next tick and returns how late it is noticed.
    pub async fn tick(&mut self) -> Duration {
        loop {
            // If the timer fails, no heartbeat follows and the primary replaces this worker.
            let Ok(mut ready) = self.timer.readable().await else { return pending().await };
            let mut expirations = [0; 8];
            let read = nix::unistd::read(ready.get_inner().as_fd(), &mut expirations);
            // The kernel reports the next expiration as a new event.
            ready.clear_ready();
            match read {
                Ok(_) => self.count = self.count.wrapping_add(u64::from_ne_bytes(expirations)),
                Err(Errno::EAGAIN | Errno::EINTR) => continue,
                Err(_) => return pending().await,
            }
            let due = self.period.saturating_mul(u32::try_from(self.count).unwrap_or(u32::MAX));
            return self.started.elapsed().saturating_sub(due);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_periodic_and_missed_ticks_count_as_one() {
        const TICK_PERIOD: Duration = Duration::from_millis(5);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("runtime").block_on(async {
            let mut timer = IntervalTimer::new(TICK_PERIOD).expect("a timer");
            let started = timer.started;
            for n in 1..4 {
                let delay = timer.tick().await;
                assert!(started.elapsed() >= TICK_PERIOD * n && delay <= started.elapsed());
            }
            let seen = timer.count;
            while started.elapsed() < TICK_PERIOD * (seen as u32 + 10) {
                std::hint::spin_loop();
            }
            let delay = timer.tick().await;
            assert!(timer.count >= seen + 10, "{} after {seen}", timer.count);
            assert!(delay < started.elapsed() - TICK_PERIOD * (timer.count as u32 - 1));
        });
    }

    #[test]
    fn a_new_period_begins_at_once() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("runtime").block_on(async {
            let mut timer = IntervalTimer::new(Duration::from_secs(3600)).expect("a timer");
            let period = Duration::from_millis(3);
            timer.set_period(period).expect("set");
            let started = Instant::now();
            timer.tick().await;
            timer.tick().await;
            assert!(started.elapsed() >= period && timer.count >= 2);
        });
    }
}
