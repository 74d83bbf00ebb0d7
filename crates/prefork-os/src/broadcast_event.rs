//! An event that wakes every process that waits for it, and waiting for several descriptors in one thread.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// How many ready descriptors one wait reports. Others are reported by the next one.
const MAX_READY: usize = 64;

/// Notifies all processes that inherited its descriptor. An eventfd that is never read.
#[derive(Debug)]
pub struct BroadcastEvent(OwnedFd);

impl BroadcastEvent {
    /// Creates an event that has not been signalled.
    ///
    /// # Errors
    /// The process or the system has no descriptors left.
    pub fn create() -> io::Result<BroadcastEvent> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(BroadcastEvent(EventFd::from_value_and_flags(0, flags)?.into()))
    }

    /// Takes over an event that the previous program of this process has created.
    pub fn from_inherited(fd: OwnedFd) -> BroadcastEvent {
        BroadcastEvent(fd)
    }

    /// Wakes all waiters that have added the event to an [`EdgePoller`]. Never blocks.
    ///
    /// # Errors
    /// The descriptor is not an event: it was passed wrongly.
    pub fn signal(&self) -> io::Result<()> {
        match nix::unistd::write(&self.0, &1u64.to_ne_bytes()) {
            // Full after 2^64 signals; then it has been signalled.
            Ok(_) | Err(Errno::EAGAIN) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

impl AsFd for BroadcastEvent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits for descriptors to become readable, each time that they do (edge-triggered epoll).
///
/// So several processes can wait for one event without reading it.
#[derive(Debug)]
pub struct EdgePoller(Epoll);

impl EdgePoller {
    /// Creates a poller without descriptors.
    ///
    /// # Errors
    /// The process or the system has no descriptors left.
    pub fn new() -> io::Result<EdgePoller> {
        Ok(EdgePoller(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?))
    }

    /// Watches `fd` under `key` until all descriptors of it are closed. Reports it at once if it is readable.
    ///
    /// # Errors
    /// The limit of watched descriptors is reached.
    pub fn add(&self, fd: impl AsFd, key: u64) -> io::Result<()> {
        let events = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        Ok(self.0.add(fd, EpollEvent::new(events, key))?)
    }

    /// Waits until a descriptor becomes readable or `timeout` has passed, and returns the keys of those that have.
    ///
    /// # Errors
    /// The kernel has no memory left.
    pub fn wait(&self, timeout: Duration) -> io::Result<Vec<u64>> {
        let mut events = [EpollEvent::empty(); MAX_READY];
        // Rounded up, so that the wait does not end before the timeout.
        let millis = timeout.as_nanos().div_ceil(1_000_000);
        let millis = i32::try_from(millis).unwrap_or(i32::MAX);
        let timeout = EpollTimeout::try_from(millis).unwrap_or(EpollTimeout::ZERO);
        match self.0.wait(&mut events, timeout) {
            Ok(count) => Ok(events[..count].iter().map(EpollEvent::data).collect()),
            Err(Errno::EINTR) => Ok(Vec::new()),
            Err(e) => Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn each_signal_wakes_every_poller_once() {
        let event = BroadcastEvent::create().expect("event");
        let pollers = [EdgePoller::new().expect("poller"), EdgePoller::new().expect("poller")];
        pollers.iter().for_each(|poller| poller.add(&event, 7).expect("added"));
        for _ in 0..3 {
            event.signal().expect("signalled");
            for poller in &pollers {
                assert_eq!(poller.wait(LONG).expect("wait"), [7]);
                assert_eq!(poller.wait(Duration::ZERO).expect("wait"), []);
            }
        }
        let late = EdgePoller::new().expect("poller");
        late.add(&event, 8).expect("added");
        assert_eq!(late.wait(LONG).expect("wait"), [8], "it was signalled before");
    }
}
