//! A steady beat from the kernel.
//!
//! Each is one wake-up, where tokio's timer takes two for whatever is more than 64 ms away: its wheel first moves it to
//! a finer one. That counts where many workers are idle.

use std::future::pending;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::unix::AsyncFd;

use super::readiness;

/// Beats, one after the other. Those that nobody waited for are one.
pub struct Beats {
    timer: AsyncFd<OwnedFd>,
    begun: Instant,
    every: Duration,
    /// Beats so far.
    count: u64,
}

impl Beats {
    /// In the current runtime; the first comes when `every` has passed.
    pub fn new(every: Duration) -> io::Result<Beats> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        let begun = Instant::now();
        let steady = Expiration::Interval(TimeSpec::from_duration(every));
        timer.set(steady, TimerSetTimeFlags::empty())?;
        let timer = readiness::readable(OwnedFd::from(timer))?;
        Ok(Beats { timer, begun, every, count: 0 })
    }

    /// Waits for the next; says how late it is heard.
    pub async fn next(&mut self) -> Duration {
        loop {
            // Without a timer there is no beat, and the primary replaces this worker.
            let Ok(mut ready) = self.timer.readable().await else { return pending().await };
            let mut number = [0; 8];
            let read = nix::unistd::read(ready.get_inner().as_fd(), &mut number);
            // The next beat is an event of its own.
            ready.clear_ready();
            match read {
                Ok(_) => self.count = self.count.wrapping_add(u64::from_ne_bytes(number)),
                Err(Errno::EAGAIN | Errno::EINTR) => continue,
                Err(_) => return pending().await,
            }
            let due = self.every.saturating_mul(u32::try_from(self.count).unwrap_or(u32::MAX));
            return self.begun.elapsed().saturating_sub(due);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beats_are_steady_and_missed_ones_are_one() {
        const EVERY: Duration = Duration::from_millis(5);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("runtime").block_on(async {
            let mut beats = Beats::new(EVERY).expect("a timer");
            let begun = beats.begun;
            for n in 1..4 {
                let late = beats.next().await;
                assert!(begun.elapsed() >= EVERY * n && late <= begun.elapsed());
            }
            let seen = beats.count;
            while begun.elapsed() < EVERY * (seen as u32 + 10) {
                std::hint::spin_loop();
            }
            let late = beats.next().await;
            assert!(beats.count >= seen + 10, "{} after {seen}", beats.count);
            assert!(late < begun.elapsed() - EVERY * (beats.count as u32 - 1));
        });
    }
}
