//! A listening socket that several processes share, with a choice of which of them a connection wakes.

use std::cell::Cell;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

use super::{cvt, libc, poll, socket};
use crate::async_fd::register_readable;

/// When a connection wakes this process, of several that wait for the same listening socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WakeMode {
    /// Every connection wakes it.
    Always,
    /// A connection wakes the first process of this mode that sleeps in its event loop, and no other of this mode
    /// (EPOLLEXCLUSIVE). One that is busy or stopped is passed over, and sees the connection when it polls again.
    Exclusive,
    /// No connection wakes it.
    Never,
}

/// A listening socket in the runtime's epoll instance, shared with other processes.
///
/// tokio registers descriptors so that every connection wakes every process. Here the registration is exchanged for one
/// with EPOLLEXCLUSIVE and the same token, so tokio notices no difference. tokio does not expose its epoll instance:
/// `/proc/self/fdinfo` shows it, and the token. Where that cannot be read, the mode stays [`WakeMode::Always`].
///
/// Measured in turns with and without (`cargo bench --bench dispatch -- wakeups cost`): 1.0 wake-ups per connection
/// instead of 4.9, 8.9 and 16 with 4, 8 and 16 idle workers; with 8 workers 31 instead of 46 us of CPU time per
/// connection. An epoll instance of our own inside tokio's would not help: EPOLLEXCLUSIVE does not reach through it.
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
    /// Registers `fd` with the current runtime, in mode [`WakeMode::Always`].
    pub fn new(fd: OwnedFd) -> io::Result<SharedListener> {
        let socket = register_readable(fd)?;
        let registration = find_epoll_registration(socket.as_raw_fd());
        Ok(SharedListener { socket, registration, wake_mode: Cell::new(WakeMode::Always) })
    }

    /// Returns the listening socket.
    pub fn socket(&self) -> &OwnedFd {
        self.socket.get_ref()
    }

    /// Resolves when there may be a connection.
    pub async fn readable(&self) -> io::Result<AsyncFdReadyGuard<'_, OwnedFd>> {
        self.socket.readable().await
    }

    /// Whether the wake mode can be changed.
    pub fn can_wake_exclusively(&self) -> bool {
        self.registration.is_some()
    }

    /// Takes one connection out of the queue; `None` if there is none, which ends what `ready` announced.
    pub fn accept(
        &self,
        ready: Option<AsyncFdReadyGuard<'_, OwnedFd>>,
    ) -> io::Result<Option<OwnedFd>> {
        match socket::accept_connection(self.socket()) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                if let Some(mut ready) = ready {
                    ready.clear_ready();
                }
                Ok(None)
            }
            outcome => outcome.map(Some),
        }
    }

    /// Whether a connection waits, announced or not.
    pub fn has_connection(&self) -> bool {
        let watch = poll::WatchedFd::readable(self.socket().as_fd());
        poll::poll_fds(&[watch], Some(Duration::ZERO)).is_ok_and(|ready| ready == [true])
    }

    /// Returns the current wake mode.
    pub fn wake_mode(&self) -> WakeMode {
        self.wake_mode.get()
    }

    /// Changes the wake mode. With [`WakeMode::Exclusive`] this process becomes the last one to be woken. A connection that
    /// waits already is then announced.
    pub fn set_wake_mode(&self, wake_mode: WakeMode) -> io::Result<()> {
        let Some(registration) = self.registration else { return Ok(()) };
        if self.wake_mode.get() == wake_mode && wake_mode != WakeMode::Exclusive {
            return Ok(());
        }
        if self.wake_mode.get() != WakeMode::Never {
            self.control(registration, libc::EPOLL_CTL_DEL, 0)?;
            self.wake_mode.set(WakeMode::Never);
        }
        let flag = match wake_mode {
            WakeMode::Never => return Ok(()),
            WakeMode::Exclusive => libc::EPOLLEXCLUSIVE,
            WakeMode::Always => libc::EPOLLRDHUP,
        };
        self.control(registration, libc::EPOLL_CTL_ADD, libc::EPOLLIN | libc::EPOLLET | flag)?;
        self.wake_mode.set(wake_mode);
        Ok(())
    }

    fn control(
        &self,
        registration: EpollRegistration,
        operation: libc::c_int,
        events: libc::c_int,
    ) -> io::Result<()> {
        let mut event = libc::epoll_event { events: events as u32, u64: registration.token };
        // SAFETY: the event is ours and alive. The descriptor is registered under the token that tokio gave it
        // and tokio forgets a token only after it has taken the descriptor out again.
        cvt(unsafe {
            libc::epoll_ctl(registration.epoll, operation, self.socket.as_raw_fd(), &raw mut event)
        })?;
        Ok(())
    }
}

impl Drop for SharedListener {
    /// tokio deregisters what it has registered: it has to be there.
    fn drop(&mut self) {
        if self.wake_mode.get() == WakeMode::Never {
            // If the kernel refuses, tokio keeps a few bytes for ever; the descriptor is closed all the same.
            let _ = self.set_wake_mode(WakeMode::Always);
        }
    }
}

/// The epoll instance in which `fd` is registered. `None` if there is not exactly one token for it.
fn find_epoll_registration(fd: RawFd) -> Option<EpollRegistration> {
    let mut found: Option<EpollRegistration> = None;
    for entry in fs::read_dir("/proc/self/fd").ok()?.flatten() {
        let is_epoll = fs::read_link(entry.path())
            .is_ok_and(|target| target.as_os_str() == "anon_inode:[eventpoll]");
        let number = entry.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok());
        let Some(epoll) = number.filter(|_| is_epoll) else { continue };
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{epoll}")).ok()?;
        let Some(token) = info.lines().find_map(|line| parse_epoll_token(line, fd)) else {
            continue;
        };
        match found {
            // tokio has two descriptors for one instance.
            Some(registration) if registration.token != token => return None,
            _ => found = Some(EpollRegistration { epoll, token }),
        }
    }
    found
}

/// The token in a line like `tfd:        8 events: 80002001 data:     7f3a12345678  pos:0 ino:c12 sdev:8`.
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
    fn the_token_of_a_descriptor_is_read() {
        let line = "tfd:       18 events: 80002001 data:     7f3a12345678  pos:0 ino:c12 sdev:8";
        assert_eq!(parse_epoll_token(line, 18), Some(0x7f3a_1234_5678));
        assert_eq!(parse_epoll_token(line, 8), None);
        assert_eq!(parse_epoll_token("pos:\t0", 0), None);
    }

    #[test]
    fn a_connection_is_announced_in_every_wake_mode_but_never() {
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
                super::super::socket::accept_connection(listener.socket()).expect("accept");
                ready.clear_ready();
            }
            listener.set_wake_mode(WakeMode::Never).expect("never");
            let _client = TcpStream::connect(address).expect("connect");
            let soon = Duration::from_millis(20);
            assert!(tokio::time::timeout(soon, listener.readable()).await.is_err(), "announced");
            // Waiting since before: announced now.
            listener.set_wake_mode(WakeMode::Exclusive).expect("exclusive");
            drop(listener.readable().await.expect("readable"));
            listener.set_wake_mode(WakeMode::Never).expect("never");
            drop(listener);
        });
    }
}
