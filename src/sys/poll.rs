//! Waiting for file descriptors until a deadline.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};

/// Waits until one of `fds` is readable or hung up, or `timeout` has passed (`None`: for ever). Returns one
/// flag for each descriptor. A signal that interrupts the wait is a normal return with no flag set.
pub(crate) fn wait(fds: &[BorrowedFd<'_>], timeout: Option<Duration>) -> io::Result<Vec<bool>> {
    let mut polled: Vec<PollFd<'_>> =
        fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    match nix::poll::poll(&mut polled, in_millis(timeout)) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(e) => return Err(e.into()),
    }
    Ok(polled.iter().map(|fd| fd.revents().is_some_and(|events| !events.is_empty())).collect())
}

/// Rounded up: a timer that fires a little early would make the loop spin until its deadline.
fn in_millis(timeout: Option<Duration>) -> PollTimeout {
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
        let flags = wait(&[quiet.as_fd(), ready.as_fd()], None).expect("poll");
        assert_eq!(flags, [false, true]);
    }

    #[test]
    fn a_timeout_is_rounded_up() {
        assert_eq!(in_millis(Some(Duration::from_micros(1))), PollTimeout::from(1u8));
        assert_eq!(in_millis(Some(Duration::ZERO)), PollTimeout::ZERO);
        assert_eq!(in_millis(Some(Duration::MAX)), PollTimeout::MAX);
    }
}
