//! Waiting for file descriptors with poll(2), with a timeout.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};

/// The event to wait for on a descriptor. Errors and hang-ups are always reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PollInterest {
    /// Data to read or a connection to accept.
    Readable,
    /// Space in the send buffer.
    Writable,
    /// Only errors and hang-ups.
    HangUp,
}

/// A descriptor with the event to wait for.
#[derive(Debug, Clone, Copy)]
pub struct WatchedFd<'fd> {
    fd: BorrowedFd<'fd>,
    interest: PollInterest,
}

impl<'fd> WatchedFd<'fd> {
    /// Watches `fd` for `interest`.
    pub fn new(fd: BorrowedFd<'fd>, interest: PollInterest) -> WatchedFd<'fd> {
        WatchedFd { fd, interest }
    }

    /// Watches `fd` for [`PollInterest::Readable`].
    pub fn readable(fd: BorrowedFd<'fd>) -> WatchedFd<'fd> {
        WatchedFd::new(fd, PollInterest::Readable)
    }
}

/// A set of descriptors for repeated polling. Each has an index, in the order of insertion.
pub struct PollSet<'fd> {
    polled: Vec<PollFd<'fd>>,
    ready: usize,
}

impl<'fd> PollSet<'fd> {
    /// Creates a set of `watched`.
    pub fn new(watched: impl Iterator<Item = WatchedFd<'fd>>) -> PollSet<'fd> {
        let polled =
            watched.map(|watch| PollFd::new(watch.fd, poll_flags(watch.interest))).collect();
        PollSet { polled, ready: 0 }
    }

    /// Returns the number of descriptors.
    pub fn len(&self) -> usize {
        self.polled.len()
    }

    /// Returns whether the set has no descriptors.
    pub fn is_empty(&self) -> bool {
        self.polled.is_empty()
    }

    /// Replaces all descriptors after the first `kept` with `watched`.
    pub fn replace_fds_after(
        &mut self,
        kept: usize,
        watched: impl IntoIterator<Item = WatchedFd<'fd>>,
    ) {
        self.polled.truncate(kept);
        let new =
            watched.into_iter().map(|watch| PollFd::new(watch.fd, poll_flags(watch.interest)));
        self.polled.extend(new);
    }

    /// Waits until a descriptor is ready, or `timeout` has passed (`None`: no timeout). Returns how many are ready.
    ///
    /// Returns 0 if a signal interrupts the wait.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<usize> {
        self.ready = 0;
        self.ready = match nix::poll::poll(&mut self.polled, timeout_millis(timeout)) {
            Ok(ready) => usize::try_from(ready).unwrap_or(0),
            Err(Errno::EINTR) => 0,
            Err(e) => return Err(e.into()),
        };
        Ok(self.ready)
    }

    /// Waits like [`wait`](Self::wait), but busy-polls without sleeping until `busy_until`, because waking up takes
    /// long.
    pub fn wait_busy_polling(
        &mut self,
        busy_until: Option<Instant>,
        timeout: Option<Duration>,
    ) -> io::Result<usize> {
        let may_sleep = timeout.is_none_or(|timeout| !timeout.is_zero());
        while may_sleep && busy_until.is_some_and(|until| Instant::now() < until) {
            if self.wait(Some(Duration::ZERO))? > 0 {
                return Ok(self.ready);
            }
        }
        self.wait(timeout)
    }

    /// Resets the result of the last wait: no descriptor counts as ready.
    pub fn clear_ready(&mut self) {
        self.ready = 0;
    }

    /// Returns whether the descriptor at `index` was ready after the last wait.
    pub fn is_ready(&self, index: usize) -> bool {
        let polled = self.polled.get(index).filter(|_| self.ready > 0);
        polled.and_then(PollFd::revents).is_some_and(|events| !events.is_empty())
    }

    /// Returns for each descriptor whether it was ready after the last wait.
    pub fn ready_flags(&self) -> Vec<bool> {
        (0..self.polled.len()).map(|index| self.is_ready(index)).collect()
    }
}

/// Waits until one of `watched` is ready, or `timeout` has passed (`None`: no timeout). Returns for each whether it is
/// ready.
///
/// Returns only `false` if a signal interrupts the wait.
pub fn poll_fds(watched: &[WatchedFd<'_>], timeout: Option<Duration>) -> io::Result<Vec<bool>> {
    let mut set = PollSet::new(watched.iter().copied());
    set.wait(timeout)?;
    Ok(set.ready_flags())
}

fn poll_flags(interest: PollInterest) -> PollFlags {
    match interest {
        PollInterest::Readable => PollFlags::POLLIN,
        PollInterest::Writable => PollFlags::POLLOUT,
        PollInterest::HangUp => PollFlags::empty(),
    }
}

/// Converts `timeout` to milliseconds, rounded up: a wait that ends too early would make an event loop spin.
fn timeout_millis(timeout: Option<Duration>) -> PollTimeout {
    let Some(timeout) = timeout else { return PollTimeout::NONE };
    let millis = timeout.as_micros().div_ceil(1000);
    i32::try_from(millis)
        .ok()
        .and_then(|ms| PollTimeout::try_from(ms).ok())
        .unwrap_or(PollTimeout::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn only_ready_descriptors_are_reported() {
        let (quiet, _keep) = UnixStream::pair().expect("pair");
        let (ready, mut peer) = UnixStream::pair().expect("pair");
        peer.write_all(b"x").expect("write");
        let watched = [WatchedFd::readable(quiet.as_fd()), WatchedFd::readable(ready.as_fd())];
        assert_eq!(poll_fds(&watched, None).expect("poll"), [false, true]);
    }

    #[test]
    fn a_hang_up_is_reported_for_every_interest() {
        let (socket, mut peer) = UnixStream::pair().expect("pair");
        peer.write_all(b"x").expect("write");
        let now = Some(Duration::ZERO);
        let all = [PollInterest::Readable, PollInterest::Writable, PollInterest::HangUp];
        let watched = all.map(|interest| WatchedFd::new(socket.as_fd(), interest));
        assert_eq!(poll_fds(&watched, now).expect("poll"), [true, true, false]);
        drop(peer);
        assert_eq!(poll_fds(&watched, now).expect("poll"), [true, true, true]);
    }

    #[test]
    fn busy_polling_ends_when_a_descriptor_is_ready_or_time_is_up() {
        let (socket, mut peer) = UnixStream::pair().expect("pair");
        let mut set = PollSet::new([WatchedFd::readable(socket.as_fd())].into_iter());
        let long = Instant::now() + Duration::from_secs(60);
        let now = Some(Duration::ZERO);
        let soon = Instant::now() + Duration::from_micros(10);
        assert_eq!(set.wait_busy_polling(Some(long), now).expect("poll"), 0);
        assert_eq!(
            set.wait_busy_polling(Some(soon), Some(Duration::from_millis(1))).expect("poll"),
            0
        );
        peer.write_all(b"x").expect("write");
        assert_eq!(set.wait_busy_polling(Some(long), None).expect("poll"), 1);
        assert_eq!(set.wait_busy_polling(None, None).expect("poll"), 1);
        assert!(set.is_ready(0));
    }

    #[test]
    fn a_timeout_is_rounded_up() {
        assert_eq!(timeout_millis(Some(Duration::from_micros(1))), PollTimeout::from(1u8));
        assert_eq!(timeout_millis(Some(Duration::ZERO)), PollTimeout::ZERO);
        assert_eq!(timeout_millis(Some(Duration::MAX)), PollTimeout::MAX);
    }
}
