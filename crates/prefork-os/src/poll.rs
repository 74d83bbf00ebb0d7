//! Waiting for file descriptors until a deadline.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};

/// What is waited for. The end of the connection is always noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PollInterest {
    /// Something to read, or somebody to accept.
    Readable,
    /// Room to write.
    Writable,
    /// Nothing but the end.
    HangUp,
}

/// A descriptor and what is waited for on it.
#[derive(Debug, Clone, Copy)]
pub struct WatchedFd<'fd> {
    fd: BorrowedFd<'fd>,
    interest: PollInterest,
}

impl<'fd> WatchedFd<'fd> {
    /// Waits for `interest` on `fd`.
    pub fn new(fd: BorrowedFd<'fd>, interest: PollInterest) -> WatchedFd<'fd> {
        WatchedFd { fd, interest }
    }

    /// Waits for something to read on `fd`.
    pub fn readable(fd: BorrowedFd<'fd>) -> WatchedFd<'fd> {
        WatchedFd::new(fd, PollInterest::Readable)
    }
}

/// Descriptors that are waited for again and again.
pub struct PollSet<'fd> {
    polled: Vec<PollFd<'fd>>,
    ready: usize,
}

impl<'fd> PollSet<'fd> {
    pub fn new(watched: impl Iterator<Item = WatchedFd<'fd>>) -> PollSet<'fd> {
        let polled =
            watched.map(|watch| PollFd::new(watch.fd, poll_flags(watch.interest))).collect();
        PollSet { polled, ready: 0 }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.polled.len()
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.polled.is_empty()
    }

    /// Puts `watched` into the places after the first `kept`.
    pub fn replace_after(
        &mut self,
        kept: usize,
        watched: impl IntoIterator<Item = WatchedFd<'fd>>,
    ) {
        self.polled.truncate(kept);
        let new =
            watched.into_iter().map(|watch| PollFd::new(watch.fd, poll_flags(watch.interest)));
        self.polled.extend(new);
    }

    /// Waits until some are ready or hung up, or `timeout` has passed (`None`: for ever). Returns how many. A signal that
    /// interrupts the wait is a normal return with none.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<usize> {
        self.ready = 0;
        self.ready = match nix::poll::poll(&mut self.polled, timeout_millis(timeout)) {
            Ok(ready) => usize::try_from(ready).unwrap_or(0),
            Err(Errno::EINTR) => 0,
            Err(e) => return Err(e.into()),
        };
        Ok(self.ready)
    }

    /// The same, without sleeping before `awake`: whoever is asleep takes long to be woken.
    pub fn wait_busy_polling(
        &mut self,
        awake: Option<Instant>,
        timeout: Option<Duration>,
    ) -> io::Result<usize> {
        // Who has no time to sleep has none to look out either.
        let sleeps = timeout.is_none_or(|timeout| !timeout.is_zero());
        while sleeps && awake.is_some_and(|until| Instant::now() < until) {
            if self.wait(Some(Duration::ZERO))? > 0 {
                return Ok(self.ready);
            }
        }
        self.wait(timeout)
    }

    /// What came of waiting is dealt with.
    pub fn clear_ready(&mut self) {
        self.ready = 0;
    }

    /// Whether the one at this place was ready after the last wait.
    pub fn is_ready(&self, at: usize) -> bool {
        let polled = self.polled.get(at).filter(|_| self.ready > 0);
        polled.and_then(PollFd::revents).is_some_and(|events| !events.is_empty())
    }

    /// The same for all.
    pub fn ready_flags(&self) -> Vec<bool> {
        (0..self.polled.len()).map(|at| self.is_ready(at)).collect()
    }
}

/// Waits until one of `watched` is ready or hung up, or `timeout` has passed (`None`: for ever). Returns one
/// flag for each descriptor. A signal that interrupts the wait is a normal return with no flag set.
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

/// Rounded up: a timer that fires a little early would make the loop spin until its deadline.
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
    fn says_which_descriptor_is_ready() {
        let (quiet, _keep) = UnixStream::pair().expect("pair");
        let (ready, mut peer) = UnixStream::pair().expect("pair");
        peer.write_all(b"x").expect("write");
        let watched = [WatchedFd::readable(quiet.as_fd()), WatchedFd::readable(ready.as_fd())];
        assert_eq!(poll_fds(&watched, None).expect("poll"), [false, true]);
    }

    #[test]
    fn each_interest_is_its_own_and_the_end_is_always_seen() {
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
    fn who_stays_awake_sees_what_comes_meanwhile_and_what_comes_later() {
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
