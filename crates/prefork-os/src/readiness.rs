//! Descriptors in a tokio runtime. With `beats`, the one place of this room that knows tokio; only workers come here.

use std::cell::Cell;
use std::fs;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};
use tokio::io::{Interest, ReadBuf};

use super::{cvt, libc, poll, socket};

/// Registers `fd` with the current runtime, to wait until it is readable.
pub fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    register(fd, Interest::READABLE)
}

/// Registers `fd` with the current runtime, to wait until it is readable or writable.
pub fn both(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    register(fd, Interest::READABLE | Interest::WRITABLE)
}

/// Waits until `fd` is readable, and does not let the loop sleep before `awake`. All else goes on meanwhile.
pub async fn readable_awake(
    fd: &AsyncFd<OwnedFd>,
    awake: Option<Instant>,
) -> io::Result<AsyncFdReadyGuard<'_, OwnedFd>> {
    let mut readable = pin!(fd.readable());
    while awake.is_some_and(|until| Instant::now() < until) {
        let polled = poll_fn(|cx| Poll::Ready(readable.as_mut().poll(cx))).await;
        if let Poll::Ready(ready) = polled {
            return ready;
        }
        tokio::task::yield_now().await;
    }
    readable.await
}

/// Reads once into the rest of `buf`, without waiting.
pub fn read_into(fd: impl AsFd, buf: &mut ReadBuf<'_>) -> io::Result<()> {
    let flags = libc::MSG_DONTWAIT;
    // SAFETY: bytes are only ever written to this memory, by the kernel.
    let room = unsafe { buf.unfilled_mut() };
    let length = SockRef::from(&fd).recv_with_flags(room, flags)?;
    // SAFETY: the kernel has written so many bytes to the beginning of the unfilled part.
    unsafe { buf.assume_init(length) };
    buf.advance(length);
    Ok(())
}

fn register(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and stays the same open file until it is dropped, which `AsyncFd` does
    // only after it has deregistered the number.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

/// How a process stands at a listening socket that others stand at, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stance {
    /// It is woken for every connection.
    Front,
    /// A connection wakes the first process in the line that sleeps in its event loop, and no other of the line. One
    /// that is busy or stopped is passed over, and sees the connection when it looks again.
    InLine,
    /// It is not woken.
    Away,
}

/// A listening socket in the runtime's epoll instance, shared with other processes.
///
/// tokio registers what it waits for so that every connection wakes every process. Here the registration is
/// exchanged for one with EPOLLEXCLUSIVE and the same token, so tokio notices no difference. tokio does not tell its
/// epoll instance: `/proc/self/fdinfo` shows it, and the token. Where that cannot be read all remain in the front.
pub struct Door {
    socket: AsyncFd<OwnedFd>,
    place: Option<Place>,
    stance: Cell<Stance>,
}

/// Where tokio registered a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    epoll: RawFd,
    token: u64,
}

impl Door {
    /// Registers `fd` in the front.
    pub fn new(fd: OwnedFd) -> io::Result<Door> {
        let socket = readable(fd)?;
        let place = find_place(socket.as_raw_fd());
        Ok(Door { socket, place, stance: Cell::new(Stance::Front) })
    }

    pub fn socket(&self) -> &OwnedFd {
        self.socket.get_ref()
    }

    /// Resolves when there may be a connection.
    pub async fn readable(&self) -> io::Result<AsyncFdReadyGuard<'_, OwnedFd>> {
        self.socket.readable().await
    }

    /// Whether it can be stood in line at it.
    pub fn lines_up(&self) -> bool {
        self.place.is_some()
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

    pub fn stance(&self) -> Stance {
        self.stance.get()
    }

    /// Takes this stance, in line the last place. A connection that waits already is then announced.
    pub fn take(&self, stance: Stance) -> io::Result<()> {
        let Some(place) = self.place else { return Ok(()) };
        if self.stance.get() == stance && stance != Stance::InLine {
            return Ok(());
        }
        if self.stance.get() != Stance::Away {
            self.control(place, libc::EPOLL_CTL_DEL, 0)?;
            self.stance.set(Stance::Away);
        }
        let alone = match stance {
            Stance::Away => return Ok(()),
            Stance::InLine => libc::EPOLLEXCLUSIVE,
            Stance::Front => libc::EPOLLRDHUP,
        };
        self.control(place, libc::EPOLL_CTL_ADD, libc::EPOLLIN | libc::EPOLLET | alone)?;
        self.stance.set(stance);
        Ok(())
    }

    fn control(&self, place: Place, operation: libc::c_int, events: libc::c_int) -> io::Result<()> {
        let mut event = libc::epoll_event { events: events as u32, u64: place.token };
        // SAFETY: the event is ours and alive. The descriptor is registered under the token that tokio gave it
        // and tokio forgets a token only after it has taken the descriptor out again.
        cvt(unsafe {
            libc::epoll_ctl(place.epoll, operation, self.socket.as_raw_fd(), &raw mut event)
        })?;
        Ok(())
    }
}

impl Drop for Door {
    /// tokio takes out what it put in: it has to be there.
    fn drop(&mut self) {
        if self.stance.get() == Stance::Away {
            // If the kernel refuses, tokio keeps a few bytes for ever; the descriptor is closed all the same.
            let _ = self.take(Stance::Front);
        }
    }
}

/// The epoll instance in which `fd` is registered. `None` if there is not exactly one token for it.
fn find_place(fd: RawFd) -> Option<Place> {
    let mut found: Option<Place> = None;
    for entry in fs::read_dir("/proc/self/fd").ok()?.flatten() {
        let is_epoll = fs::read_link(entry.path())
            .is_ok_and(|target| target.as_os_str() == "anon_inode:[eventpoll]");
        let number = entry.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok());
        let Some(epoll) = number.filter(|_| is_epoll) else { continue };
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{epoll}")).ok()?;
        let Some(token) = info.lines().find_map(|line| token_in(line, fd)) else { continue };
        match found {
            // tokio has two descriptors for one instance.
            Some(place) if place.token != token => return None,
            _ => found = Some(Place { epoll, token }),
        }
    }
    found
}

/// The token in a line like `tfd:        8 events: 80002001 data:     7f3a12345678  pos:0 ino:c12 sdev:8`.
fn token_in(line: &str, fd: RawFd) -> Option<u64> {
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
        assert_eq!(token_in(line, 18), Some(0x7f3a_1234_5678));
        assert_eq!(token_in(line, 8), None);
        assert_eq!(token_in("pos:\t0", 0), None);
    }

    #[test]
    fn who_stays_awake_reads_what_comes_meanwhile_and_what_comes_later() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("runtime").block_on(async {
            let (near, far) = std::os::unix::net::UnixStream::pair().expect("pair");
            near.set_nonblocking(true).expect("non-blocking");
            let channel = readable(near.into()).expect("registered");
            for awake in [None, Some(Duration::from_micros(10)), Some(Duration::from_secs(60))] {
                let until = awake.map(|span| Instant::now() + span);
                let speaks = async {
                    tokio::task::yield_now().await;
                    socket::write_nonblocking(&far, b"x").expect("write");
                };
                let (ready, ()) = tokio::join!(readable_awake(&channel, until), speaks);
                let read = socket::read_nonblocking(channel.get_ref(), &mut [0; 2]);
                assert_eq!(read.expect("read"), 1, "{awake:?}");
                ready.expect("readable").clear_ready();
            }
        });
    }

    #[test]
    fn a_connection_is_announced_in_every_stance_but_away() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("runtime").block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
            listener.set_nonblocking(true).expect("non-blocking");
            let address = listener.local_addr().expect("address");
            let door = Door::new(listener.into()).expect("door");
            assert!(door.place.is_some(), "fdinfo shows the epoll instance");
            for stance in [Stance::InLine, Stance::Front, Stance::InLine, Stance::InLine] {
                door.take(stance).expect("stance");
                let _client = TcpStream::connect(address).expect("connect");
                let mut ready = door.readable().await.expect("readable");
                super::super::socket::accept_connection(door.socket()).expect("accept");
                ready.clear_ready();
            }
            door.take(Stance::Away).expect("away");
            let _client = TcpStream::connect(address).expect("connect");
            let soon = Duration::from_millis(20);
            assert!(tokio::time::timeout(soon, door.readable()).await.is_err(), "announced");
            // Waiting since before: announced now.
            door.take(Stance::InLine).expect("in line");
            drop(door.readable().await.expect("readable"));
            door.take(Stance::Away).expect("away");
            drop(door);
        });
    }
}
