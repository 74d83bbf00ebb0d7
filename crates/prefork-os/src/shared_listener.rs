//! A listening socket that several processes share, with a choice of which of them a connection wakes.

use std::cell::Cell;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

use super::{libc, poll, syscall_result};
use crate::async_fd::register_readable;
use crate::socket_name::{SocketName, accept_named_connection};

/// Whether a new connection wakes this process, one of several that wait for the same listening socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WakeMode {
    /// Every connection wakes it.
    Always,
    /// A connection wakes the first process of this mode that sleeps in its event loop, and no other (EPOLLEXCLUSIVE).
    ///
    /// A busy or stopped process is skipped and notices the connection when it polls next.
    Exclusive,
    /// No connection wakes it.
    Never,
}

/// A listening socket in the tokio runtime that other processes share.
///
/// tokio registers a listener so that every connection wakes every process. This type replaces the registration by one with
/// EPOLLEXCLUSIVE and the same token, which tokio does not notice. It finds tokio's epoll instance and the token in
/// `/proc/self/fdinfo`. If that is not readable, the mode stays [`WakeMode::Always`].
///
/// Measured in turns with and without (`cargo bench --bench dispatch -- wakeups cost`): 1.0 wake-ups per connection
/// instead of 4.9, 8.9 and 16 with 4, 8 and 16 idle workers; with 8 workers 31 instead of 46 us of CPU time per
/// connection. A second epoll instance nested in tokio's would not help: EPOLLEXCLUSIVE has no effect through it.
pub struct SharedListener {
    socket: AsyncFd<OwnedFd>,
    registration: Option<EpollRegistration>,
    wake_mode: Cell<WakeMode>,
}

/// tokio's epoll instance, and the token under which it has registered a descriptor there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct EpollRegistration {
    epoll: RawFd,
    token: u64,
}

impl SharedListener {
    /// Registers `fd` with the current tokio runtime, in mode [`WakeMode::Always`].
    ///
    /// # Panics
    /// The call is outside of a runtime with I/O enabled.
    pub fn new(fd: OwnedFd) -> io::Result<SharedListener> {
        let socket = register_readable(fd)?;
        let registration = find_epoll_registration(socket.as_raw_fd());
        Ok(SharedListener { socket, registration, wake_mode: Cell::new(WakeMode::Always) })
    }

    /// Returns the listening socket.
    pub fn socket(&self) -> &OwnedFd {
        self.socket.get_ref()
    }

    /// Waits until there may be a connection to accept.
    pub async fn readable(&self) -> io::Result<AsyncFdReadyGuard<'_, OwnedFd>> {
        self.socket.readable().await
    }

    /// Returns whether the wake mode can be changed.
    pub fn can_wake_exclusively(&self) -> bool {
        self.registration.is_some()
    }

    /// Accepts one connection, with the name of its client. If there is none, returns `None` and clears the readiness
    /// `ready`.
    pub fn accept(
        &self,
        ready: Option<AsyncFdReadyGuard<'_, OwnedFd>>,
    ) -> io::Result<Option<(OwnedFd, SocketName)>> {
        match accept_named_connection(self.socket()) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                if let Some(mut ready) = ready {
                    ready.clear_ready();
                }
                Ok(None)
            }
            outcome => outcome.map(Some),
        }
    }

    /// Returns whether a connection waits in the queue, even if this process was not woken for it.
    pub fn has_connection(&self) -> bool {
        let watch = poll::WatchedFd::readable(self.socket().as_fd());
        poll::poll_fds(&[watch], Some(Duration::ZERO)).is_ok_and(|ready| ready == [true])
    }

    /// Returns the current wake mode.
    pub fn wake_mode(&self) -> WakeMode {
        self.wake_mode.get()
    }

    /// Changes the wake mode. With [`WakeMode::Exclusive`] this process becomes the last one in the order of wake-ups.
    ///
    /// A connection that already waits wakes this process, unless the mode is [`WakeMode::Never`]. Does nothing if the mode
    /// cannot be changed (see [`can_wake_exclusively`](Self::can_wake_exclusively)).
    pub fn set_wake_mode(&self, wake_mode: WakeMode) -> io::Result<()> {
        let Some(registration) = self.registration else { return Ok(()) };
        if self.wake_mode.get() == wake_mode && wake_mode != WakeMode::Exclusive {
            return Ok(());
        }
        if self.wake_mode.get() != WakeMode::Never {
            self.epoll_ctl(registration, libc::EPOLL_CTL_DEL, 0)?;
            self.wake_mode.set(WakeMode::Never);
        }
        let flag = match wake_mode {
            WakeMode::Never => return Ok(()),
            WakeMode::Exclusive => libc::EPOLLEXCLUSIVE,
            WakeMode::Always => libc::EPOLLRDHUP,
        };
        self.epoll_ctl(registration, libc::EPOLL_CTL_ADD, libc::EPOLLIN | libc::EPOLLET | flag)?;
        self.wake_mode.set(wake_mode);
        Ok(())
    }

    fn epoll_ctl(
        &self,
        registration: EpollRegistration,
        operation: libc::c_int,
        events: libc::c_int,
    ) -> io::Result<()> {
        let mut event = libc::epoll_event { events: events as u32, u64: registration.token };
        // SAFETY: `event` outlives the call. The token is the one that tokio chose for this descriptor, and tokio frees a
        // token only after it has deregistered the descriptor.
        syscall_result(unsafe {
            libc::epoll_ctl(registration.epoll, operation, self.socket.as_raw_fd(), &raw mut event)
        })?;
        Ok(())
    }
}

impl Drop for SharedListener {
    /// Restores the registration, which tokio expects to find when it deregisters the socket.
    fn drop(&mut self) {
        if self.wake_mode.get() == WakeMode::Never {
            // On failure tokio leaks a few bytes, but the descriptor is closed nevertheless.
            let _ = self.set_wake_mode(WakeMode::Always);
        }
    }
}

/// How many descriptors are looked at in their order before `/proc/self/fd` is listed. tokio's epoll instance has a low number, as a
/// worker creates it right after the fork.
const FIRST_DESCRIPTORS: RawFd = 32;

/// Returns the epoll instance in which `fd` is registered, or `None` if `/proc` does not show it.
fn find_epoll_registration(fd: RawFd) -> Option<EpollRegistration> {
    let first = (0..FIRST_DESCRIPTORS).find_map(|epoll| read_epoll_registration(epoll, fd));
    first.or_else(|| {
        fs::read_dir("/proc/self/fd").ok()?.flatten().find_map(|entry| {
            let number = entry.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok());
            number.and_then(|epoll| read_epoll_registration(epoll, fd))
        })
    })
}

/// Returns the registration of `fd` in `epoll`, or `None` if `epoll` is no epoll instance or `fd` is not registered there.
fn read_epoll_registration(epoll: RawFd, fd: RawFd) -> Option<EpollRegistration> {
    let target = fs::read_link(format!("/proc/self/fd/{epoll}")).ok()?;
    if target.as_os_str() != "anon_inode:[eventpoll]" {
        return None;
    }
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{epoll}")).ok()?;
    let token = info.lines().find_map(|line| parse_epoll_token(line, fd))?;
    Some(EpollRegistration { epoll, token })
}

/// Parses the token of `fd` from a line like `tfd:        8 events: 80002001 data:     7f3a12345678  pos:0 ino:c12 sdev:8`.
fn parse_epoll_token(line: &str, fd: RawFd) -> Option<u64> {
    let mut words = line.strip_prefix("tfd:")?.split_whitespace();
    let is_ours = words.next()?.parse::<RawFd>().ok()? == fd;
    let data = words.skip_while(|word| *word != "data:").nth(1)?;
    is_ours.then(|| u64::from_str_radix(data, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn the_token_of_a_descriptor_is_parsed_from_fdinfo() {
        let line = "tfd:       18 events: 80002001 data:     7f3a12345678  pos:0 ino:c12 sdev:8";
        assert_eq!(parse_epoll_token(line, 18), Some(0x7f3a_1234_5678));
        assert_eq!(parse_epoll_token(line, 8), None);
        assert_eq!(parse_epoll_token("pos:\t0", 0), None);
    }

    #[test]
    fn a_connection_wakes_in_every_mode_except_never() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("runtime").block_on(async {
            let tcp = TcpListener::bind("127.0.0.1:0").expect("bind");
            tcp.set_nonblocking(true).expect("non-blocking");
            let address = tcp.local_addr().expect("address");
            let listener = SharedListener::new(tcp.into()).expect("registered");
            assert!(listener.registration.is_some(), "fdinfo shows the epoll instance");
            for wake_mode in
                [WakeMode::Exclusive, WakeMode::Always, WakeMode::Exclusive, WakeMode::Exclusive]
            {
                listener.set_wake_mode(wake_mode).expect("wake mode");
                let _client = TcpStream::connect(address).expect("connect");
                let mut ready = listener.readable().await.expect("readable");
                crate::socket::accept_connection(listener.socket()).expect("accept");
                ready.clear_ready();
            }
            listener.set_wake_mode(WakeMode::Never).expect("never");
            let _client = TcpStream::connect(address).expect("connect");
            let soon = Duration::from_millis(20);
            assert!(
                tokio::time::timeout(soon, listener.readable()).await.is_err(),
                "woken in mode never"
            );
            // The connection that already waits wakes the process after the change of mode.
            listener.set_wake_mode(WakeMode::Exclusive).expect("exclusive");
            drop(listener.readable().await.expect("readable"));
            listener.set_wake_mode(WakeMode::Never).expect("never");
            drop(listener);
        });
    }
}
