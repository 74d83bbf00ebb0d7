//! Descriptors in a tokio runtime: waiting until they are ready, and reading without blocking.

use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::task::Poll;
use std::time::Instant;

use socket2::SockRef;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};
use tokio::io::{Interest, ReadBuf};

use super::libc;

/// Registers `fd` with the current tokio runtime for read readiness.
///
/// # Errors
/// epoll rejects `fd`, such as a regular file.
///
/// # Panics
/// The call is outside of a runtime with I/O enabled.
pub fn register_readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    register(fd, Interest::READABLE)
}

/// Registers `fd` like [`register_readable`], for read and write readiness.
pub fn register_readable_and_writable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    register(fd, Interest::READABLE | Interest::WRITABLE)
}

/// Waits until `fd` is readable. Until `busy_poll_until` the event loop polls without sleeping, while other tasks run.
pub async fn wait_readable_busy_polling(
    fd: &AsyncFd<OwnedFd>,
    busy_poll_until: Option<Instant>,
) -> io::Result<AsyncFdReadyGuard<'_, OwnedFd>> {
    let mut readable = pin!(fd.readable());
    while busy_poll_until.is_some_and(|until| Instant::now() < until) {
        let polled = poll_fn(|cx| Poll::Ready(readable.as_mut().poll(cx))).await;
        if let Poll::Ready(ready) = polled {
            return ready;
        }
        tokio::task::yield_now().await;
    }
    readable.await
}

/// Receives once from a socket into the unfilled part of `buf`, without blocking.
///
/// # Errors
/// `WouldBlock` if there is no data.
pub fn read_into_buf(fd: impl AsFd, buf: &mut ReadBuf<'_>) -> io::Result<()> {
    let flags = libc::MSG_DONTWAIT;
    // SAFETY: only the kernel writes to this memory, and it writes initialised bytes.
    let unfilled = unsafe { buf.unfilled_mut() };
    let length = SockRef::from(&fd).recv_with_flags(unfilled, flags)?;
    // SAFETY: the kernel has written `length` bytes to the beginning of the unfilled part.
    unsafe { buf.assume_init(length) };
    buf.advance(length);
    Ok(())
}

fn register(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` refers to the same open file until it is dropped, which `AsyncFd` does only after it has
    // deregistered the number.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket;
    use std::time::Duration;

    #[test]
    fn busy_polling_sees_data_that_arrives_during_it_and_after_it() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("runtime").block_on(async {
            let (near, far) = std::os::unix::net::UnixStream::pair().expect("pair");
            near.set_nonblocking(true).expect("non-blocking");
            let channel = register_readable(near.into()).expect("registered");
            for duration in [None, Some(Duration::from_micros(10)), Some(Duration::from_secs(60))] {
                let until = duration.map(|duration| Instant::now() + duration);
                let write = async {
                    tokio::task::yield_now().await;
                    socket::write_nonblocking(&far, b"x").expect("write");
                };
                let (ready, ()) = tokio::join!(wait_readable_busy_polling(&channel, until), write);
                let read = socket::read_nonblocking(channel.get_ref(), &mut [0; 2]);
                assert_eq!(read.expect("read"), 1, "{duration:?}");
                ready.expect("readable").clear_ready();
            }
        });
    }
}
