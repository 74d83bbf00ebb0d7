//! Descriptors that a forked child has only because its parent has them: closed together, with few system calls.
//!
//! A primary has some descriptors for each worker, so each worker is forked with thousands of them where there are many.
//! Dropping their owners one by one takes a system call each, and frees memory, which copies the pages that parent and
//! child would go on to share.

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use super::libc;

/// Descriptors that are to be closed. Their owners are forgotten already.
#[derive(Debug, Default)]
pub struct ForkedFds {
    numbers: Vec<RawFd>,
}

impl ForkedFds {
    /// Forgets `owner` without dropping it, and takes over the descriptors that `list` names.
    ///
    /// `list` names descriptors that `owner`, and nobody else in this process, would close when it is dropped. What else
    /// `owner` holds stays in memory until the process ends.
    pub fn take_from<T>(
        &mut self,
        owner: T,
        list: impl for<'a> FnOnce(&'a T, &mut dyn FnMut(BorrowedFd<'a>)),
    ) {
        list(&owner, &mut |fd| self.numbers.push(fd.as_raw_fd()));
        std::mem::forget(owner);
    }

    /// Closes all of them.
    pub fn close(self) {
        let ForkedFds { mut numbers } = self;
        numbers.sort_unstable();
        for run in numbers.chunk_by(|one, next| one + 1 == *next) {
            close_run(run);
        }
    }
}

/// Closes descriptors whose numbers follow each other.
fn close_run(run: &[RawFd]) {
    let (Some(first), Some(last)) = (run.first(), run.last()) else { return };
    // Not every C library has a function for this call.
    // SAFETY: by the contract of `take_from` the owners of these descriptors are forgotten, so nothing in this process
    // uses or closes them.
    if unsafe { libc::syscall(libc::SYS_close_range, *first, *last, 0) } == 0 {
        return;
    }
    // Before Linux 5.9, or under a seccomp filter.
    for number in run {
        // SAFETY: as above. A descriptor that does not close is none that could be closed in another way.
        unsafe { libc::close(*number) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{ErrorKind, Read};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    #[test]
    fn what_is_taken_is_closed_and_nothing_else() {
        let is_kept = |at: usize| at == 4 || at == 8;
        let (mut kept, mut given, mut peers) = (Vec::new(), Vec::new(), Vec::new());
        for at in 0..9 {
            let (own, peer) = UnixStream::pair().expect("pair");
            peers.push(peer);
            if is_kept(at) { kept.push(own) } else { given.push(own) }
        }
        let mut fds = ForkedFds::default();
        fds.take_from(given, |given, take| given.iter().map(UnixStream::as_fd).for_each(take));
        let is_quiet = |mut peer: &UnixStream| {
            peer.set_nonblocking(true).expect("non-blocking");
            peer.read(&mut [0]).is_err_and(|e| e.kind() == ErrorKind::WouldBlock)
        };
        assert!(peers.iter().all(is_quiet), "nothing is closed early");
        fds.close();
        for (at, mut peer) in peers.iter().enumerate() {
            if is_kept(at) {
                assert!(is_quiet(peer), "{at}");
                continue;
            }
            // A program that another test starts has copies of all descriptors for a moment.
            peer.set_nonblocking(false).expect("blocking");
            peer.set_read_timeout(Some(Duration::from_secs(10))).expect("timeout");
            assert_eq!(peer.read(&mut [0]).expect("end"), 0, "{at}");
        }
        drop(kept);
        ForkedFds::default().close();
    }
}
