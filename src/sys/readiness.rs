//! Descriptors in a tokio runtime. The one place of this room that knows tokio; only workers come here.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers `fd` with the current runtime, to wait until it is readable.
pub(crate) fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    register(fd, Interest::READABLE)
}

/// Registers `fd` with the current runtime, to wait until it is readable or writable.
pub(crate) fn both(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    register(fd, Interest::READABLE | Interest::WRITABLE)
}

fn register(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and stays the same open file until it is dropped, which `AsyncFd` does
    // only after it has deregistered the number.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}
