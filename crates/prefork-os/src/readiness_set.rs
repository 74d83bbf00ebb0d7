//! Sockets that are watched for their next byte without a registration of their own in the tokio runtime.
//!
//! tokio keeps several hundred bytes for each registered descriptor, and a task that waits for it far more. A `ReadinessSet` is an
//! epoll instance that tokio watches as one descriptor; for each socket in it, only the kernel keeps something.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use tokio::io::unix::AsyncFd;

use super::{libc, syscall_result};
use crate::async_fd::register_readable;

/// Sockets of which each is reported once, when it becomes readable, is closed by its peer, or fails.
///
/// A socket must be removed before it is used in another epoll instance or leaves the process: the kernel removes it by itself only when
/// the last descriptor of it is closed, in whatever process.
#[derive(Debug)]
pub struct ReadinessSet {
    epoll: AsyncFd<OwnedFd>,
}

/// What [`ReadinessSet::take_ready`] fills. Kept between calls.
pub struct ReadyTokens {
    events: Box<[libc::epoll_event]>,
    length: usize,
}

impl ReadinessSet {
    /// Creates an empty set, which is registered with the current tokio runtime.
    ///
    /// # Errors
    /// The process is out of descriptors.
    ///
    /// # Panics
    /// The call is outside of a runtime with I/O enabled.
    pub fn new() -> io::Result<ReadinessSet> {
        // SAFETY: the call takes no pointer.
        let fd = syscall_result(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: the kernel has just returned this descriptor, which nothing else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(ReadinessSet { epoll: register_readable(fd)? })
    }

    /// Adds a socket, which is reported as `token` once. One that is readable already is reported as well.
    ///
    /// # Errors
    /// The system has no memory for it, the user watches too many descriptors (`fs.epoll.max_user_watches`), or the socket is in the set.
    pub fn add(&self, socket: impl AsFd, token: u64) -> io::Result<()> {
        let events = libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLONESHOT;
        self.control(&socket, libc::EPOLL_CTL_ADD, events, token)
    }

    /// Reports a socket once more, as `token`. Call it for one that was reported and stays in the set.
    ///
    /// # Errors
    /// The socket is not in the set.
    pub fn rearm(&self, socket: impl AsFd, token: u64) -> io::Result<()> {
        let events = libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLONESHOT;
        self.control(&socket, libc::EPOLL_CTL_MOD, events, token)
    }

    /// Removes a socket.
    ///
    /// # Errors
    /// The socket is not in the set.
    pub fn remove(&self, socket: impl AsFd) -> io::Result<()> {
        self.control(&socket, libc::EPOLL_CTL_DEL, 0, 0)
    }

    /// Waits until a socket may be ready that [`ReadinessSet::take_ready`] has not returned.
    ///
    /// # Errors
    /// The runtime shuts down.
    pub async fn wait(&self) -> io::Result<()> {
        // tokio forgets the readiness here. A socket that becomes ready from now on is a new event, one that has become ready
        // before is returned by the next `take_ready`.
        self.epoll.readable().await?.clear_ready();
        Ok(())
    }

    /// Takes the ready sockets without waiting, at most as many as `ready` has room for. If it returns that many there may be more,
    /// which [`ReadinessSet::wait`] does not report again.
    pub fn take_ready(&self, ready: &mut ReadyTokens) -> usize {
        let max = libc::c_int::try_from(ready.events.len()).unwrap_or(libc::c_int::MAX);
        // SAFETY: the kernel writes at most `max` events to the buffer, which has room for them and outlives the call.
        let taken =
            unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), ready.events.as_mut_ptr(), max, 0) };
        // Without a timeout no signal interrupts the call, and it has no other errors for this descriptor.
        ready.length = usize::try_from(taken).unwrap_or(0).min(ready.events.len());
        ready.length
    }

    fn control(
        &self,
        socket: &impl AsFd,
        operation: libc::c_int,
        events: libc::c_int,
        token: u64,
    ) -> io::Result<()> {
        let mut event = libc::epoll_event { events: events as u32, u64: token };
        let socket = socket.as_fd().as_raw_fd();
        // SAFETY: `event` outlives the call, and both descriptors are open during it.
        syscall_result(unsafe {
            libc::epoll_ctl(self.epoll.as_raw_fd(), operation, socket, &raw mut event)
        })?;
        Ok(())
    }
}

impl ReadyTokens {
    /// Makes room for `max` tokens.
    pub fn with_capacity(max: usize) -> ReadyTokens {
        let events = vec![libc::epoll_event { events: 0, u64: 0 }; max].into_boxed_slice();
        ReadyTokens { events, length: 0 }
    }

    /// Returns the tokens of the last call.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.events[..self.length].iter().map(|event| event.u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    fn in_runtime<F: Future<Output = ()>>(test: F) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("runtime").block_on(test);
    }

    fn take(set: &ReadinessSet, ready: &mut ReadyTokens) -> Vec<u64> {
        set.take_ready(ready);
        let mut tokens: Vec<u64> = ready.iter().collect();
        tokens.sort_unstable();
        tokens
    }

    async fn is_woken(set: &ReadinessSet) -> bool {
        tokio::time::timeout(Duration::from_millis(50), set.wait()).await.is_ok()
    }

    #[test]
    fn each_socket_is_reported_once_for_bytes_end_and_reset() {
        in_runtime(async {
            let set = ReadinessSet::new().expect("set");
            let mut ready = ReadyTokens::with_capacity(8);
            let (quiet, _quiet_peer) = UnixStream::pair().expect("pair");
            let (spoken, mut speaker) = UnixStream::pair().expect("pair");
            let (ended, end_peer) = UnixStream::pair().expect("pair");
            // Bytes that are there already are reported.
            speaker.write_all(b"x").expect("write");
            set.add(&quiet, 1).expect("add");
            set.add(&spoken, 2).expect("add");
            set.add(&ended, 3).expect("add");
            drop(end_peer);
            set.wait().await.expect("woken");
            assert_eq!(take(&set, &mut ready), [2, 3]);
            assert_eq!(take(&set, &mut ready), [0; 0], "once");
            assert!(!is_woken(&set).await);
            set.rearm(&spoken, 4).expect("rearm");
            assert!(is_woken(&set).await, "it is still readable");
            assert_eq!(take(&set, &mut ready), [4]);
        });
    }

    #[test]
    fn what_does_not_fit_is_returned_by_the_next_calls() {
        in_runtime(async {
            let set = ReadinessSet::new().expect("set");
            let mut ready = ReadyTokens::with_capacity(2);
            let pairs: Vec<_> = (0..5).map(|_| UnixStream::pair().expect("pair")).collect();
            for (token, (near, far)) in pairs.iter().enumerate() {
                set.add(near, token as u64).expect("add");
                (&*far).write_all(b"x").expect("write");
            }
            set.wait().await.expect("woken");
            let mut all = Vec::new();
            while set.take_ready(&mut ready) > 0 {
                all.extend(ready.iter());
            }
            all.sort_unstable();
            assert_eq!(all, [0, 1, 2, 3, 4]);
        });
    }

    #[test]
    fn a_removed_socket_is_not_reported() {
        in_runtime(async {
            let set = ReadinessSet::new().expect("set");
            let (near, mut far) = UnixStream::pair().expect("pair");
            set.add(&near, 1).expect("add");
            assert!(set.add(&near, 1).is_err(), "it is in the set");
            set.remove(&near).expect("remove");
            far.write_all(b"x").expect("write");
            assert!(!is_woken(&set).await);
            assert_eq!(take(&set, &mut ReadyTokens::with_capacity(1)), [0; 0]);
        });
    }
}
