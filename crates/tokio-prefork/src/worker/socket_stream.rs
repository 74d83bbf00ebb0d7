//! `SocketStream`: a TCP or Unix connection in the runtime.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use prefork_os::socket::write_before_shutdown;

/// A TCP or Unix connection that is registered with a runtime.
#[derive(Debug)]
pub(crate) enum SocketStream {
    /// A TCP connection, with TCP_NODELAY set.
    Tcp(TcpStream),
    /// A Unix socket connection.
    Unix(UnixStream),
}

impl SocketStream {
    /// Registers an accepted, non-blocking socket with the current runtime.
    pub(crate) fn new(fd: OwnedFd, unix: bool) -> io::Result<SocketStream> {
        Ok(if unix {
            SocketStream::Unix(UnixStream::from_std(fd.into())?)
        } else {
            SocketStream::Tcp(TcpStream::from_std(fd.into())?)
        })
    }

    /// Removes the socket from the runtime.
    pub(crate) fn into_fd(self) -> io::Result<OwnedFd> {
        Ok(match self {
            SocketStream::Tcp(stream) => stream.into_std()?.into(),
            SocketStream::Unix(stream) => stream.into_std()?.into(),
        })
    }

    /// Waits until there are bytes to read, or the client has closed the connection.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        match self {
            SocketStream::Tcp(s) => s.readable().await,
            SocketStream::Unix(s) => s.readable().await,
        }
    }

    /// Returns pending, and wakes the task later, if a read would block.
    pub(crate) fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            SocketStream::Tcp(s) => s.poll_read_ready(cx),
            SocketStream::Unix(s) => s.poll_read_ready(cx),
        }
    }

    /// Writes bytes that a shutdown follows at once: see [`write_before_shutdown`].
    pub(crate) fn poll_write_before_shutdown(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let SocketStream::Tcp(stream) = &*self else { return self.poll_write_vectored(cx, slices) };
        loop {
            ready!(stream.poll_write_ready(cx))?;
            match stream.try_io(Interest::WRITABLE, || write_before_shutdown(stream, slices)) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                outcome => return Poll::Ready(outcome),
            }
        }
    }
}

impl AsFd for SocketStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            SocketStream::Tcp(s) => s.as_fd(),
            SocketStream::Unix(s) => s.as_fd(),
        }
    }
}

macro_rules! delegate {
    ($self:ident, $s:ident => $call:expr) => {
        match $self.get_mut() {
            SocketStream::Tcp(stream) => {
                let $s = Pin::new(stream);
                $call
            }
            SocketStream::Unix(stream) => {
                let $s = Pin::new(stream);
                $call
            }
        }
    };
}

impl AsyncRead for SocketStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        delegate!(self, s => s.poll_read(cx, buf))
    }
}

impl AsyncWrite for SocketStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        delegate!(self, s => s.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        delegate!(self, s => s.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, s => s.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, s => s.poll_shutdown(cx))
    }
}
