//! `AcceptedStream`: an accepted TCP or Unix connection.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::socket_stream::SocketStream;
use crate::client::ConnectionInfo;

/// An accepted connection, as [`Cluster::serve_connections`](crate::Cluster::serve_connections) passes it to the
/// application: TCP, with TCP_NODELAY set, or a Unix socket.
#[derive(Debug)]
pub struct AcceptedStream {
    socket: SocketStream,
    /// Bytes that were read from the socket before: they come first.
    unread: Bytes,
    info: ConnectionInfo,
}

impl AcceptedStream {
    pub(crate) fn new(socket: SocketStream, unread: Bytes, info: ConnectionInfo) -> AcceptedStream {
        AcceptedStream { socket, unread, info }
    }

    /// Returns the address of the client, and by which listener it came.
    pub fn connection_info(&self) -> &ConnectionInfo {
        &self.info
    }

    /// Returns the TCP connection, to set socket options; `None` for a Unix socket.
    pub fn as_tcp(&self) -> Option<&TcpStream> {
        match &self.socket {
            SocketStream::Tcp(stream) => Some(stream),
            SocketStream::Unix(_) => None,
        }
    }

    /// Returns the Unix socket; `None` for a TCP connection.
    pub fn as_unix(&self) -> Option<&UnixStream> {
        match &self.socket {
            SocketStream::Tcp(_) => None,
            SocketStream::Unix(stream) => Some(stream),
        }
    }

    /// Unwraps the TCP connection.
    ///
    /// # Errors
    /// The stream itself, if it is a Unix socket, or if [`AcceptedStream::unread_bytes`] has bytes that the TCP stream
    /// would lose.
    pub fn into_tcp(self) -> Result<TcpStream, AcceptedStream> {
        match self {
            AcceptedStream { socket: SocketStream::Tcp(stream), unread, .. }
                if unread.is_empty() =>
            {
                Ok(stream)
            }
            other => Err(other),
        }
    }

    /// Unwraps the Unix socket.
    ///
    /// # Errors
    /// As [`AcceptedStream::into_tcp`], for a TCP connection.
    pub fn into_unix(self) -> Result<UnixStream, AcceptedStream> {
        match self {
            AcceptedStream { socket: SocketStream::Unix(stream), unread, .. }
                if unread.is_empty() =>
            {
                Ok(stream)
            }
            other => Err(other),
        }
    }

    /// Returns the bytes that were read from the socket before this stream was made, and that reading it returns first.
    /// Empty for an accepted connection; see [`PassedConnection`](crate::PassedConnection).
    pub fn unread_bytes(&self) -> &[u8] {
        &self.unread
    }

    /// Returns the registered socket, the unread bytes, and where the connection comes from.
    pub(crate) fn into_socket(self) -> (SocketStream, Bytes, ConnectionInfo) {
        (self.socket, self.unread, self.info)
    }

    /// Removes the socket from the runtime, and returns it with the unread bytes.
    pub(crate) fn into_parts(self) -> io::Result<(OwnedFd, Bytes)> {
        Ok((self.socket.into_fd()?, self.unread))
    }
}

impl AsFd for AcceptedStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsyncRead for AcceptedStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.unread.is_empty() {
            return Pin::new(&mut this.socket).poll_read(cx, buf);
        }
        let length = this.unread.len().min(buf.remaining());
        buf.put_slice(&this.unread[..length]);
        this.unread.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for AcceptedStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}
