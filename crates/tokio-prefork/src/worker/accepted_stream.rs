//! `AcceptedStream`: an accepted TCP or Unix connection.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::lazy_stream::LazyStream;
#[cfg(feature = "tls")]
use super::lazy_stream::bound_by_keys;
use super::socket_stream::SocketStream;
#[cfg(feature = "tls")]
use super::tls::ServerTlsStream;
use crate::client::ConnectionInfo;

/// An accepted connection, as [`Cluster::serve_connections`](crate::Cluster::serve_connections) passes it to the
/// application: TCP, with TCP_NODELAY set, or a Unix socket. On a listener with TLS, the handshake is complete, and what is read and
/// written is the decrypted stream.
///
/// A TLS client that closes the connection without saying so makes a read fail with [`io::ErrorKind::UnexpectedEof`].
#[derive(Debug)]
pub struct AcceptedStream {
    socket: AcceptedSocket,
    /// Bytes that were read from the socket before: they come first.
    unread: Bytes,
    info: ConnectionInfo,
}

#[derive(Debug)]
enum AcceptedSocket {
    Plain(SocketStream),
    #[cfg(feature = "tls")]
    Tls(Box<ServerTlsStream>),
}

impl AcceptedStream {
    pub(crate) fn new(socket: SocketStream, unread: Bytes, info: ConnectionInfo) -> AcceptedStream {
        AcceptedStream { socket: AcceptedSocket::Plain(socket), unread, info }
    }

    /// Wraps a TLS connection whose handshake is complete.
    #[cfg(feature = "tls")]
    pub(crate) fn from_tls(stream: Box<ServerTlsStream>, info: ConnectionInfo) -> AcceptedStream {
        AcceptedStream { socket: AcceptedSocket::Tls(stream), unread: Bytes::new(), info }
    }

    /// Returns the address of the client, and by which listener it came.
    pub fn connection_info(&self) -> &ConnectionInfo {
        &self.info
    }

    /// Returns the TCP connection, to set socket options; `None` for a Unix socket. With TLS, it is the encrypted one.
    pub fn as_tcp(&self) -> Option<&TcpStream> {
        match self.socket.encrypted() {
            SocketStream::Tcp(stream) => Some(stream),
            SocketStream::Unix(_) => None,
        }
    }

    /// Returns the Unix socket; `None` for a TCP connection. With TLS, it is the encrypted one.
    pub fn as_unix(&self) -> Option<&UnixStream> {
        match self.socket.encrypted() {
            SocketStream::Tcp(_) => None,
            SocketStream::Unix(stream) => Some(stream),
        }
    }

    /// Unwraps the TCP connection.
    ///
    /// # Errors
    /// The stream itself, if it is a Unix socket or speaks TLS, or if [`AcceptedStream::unread_bytes`] has bytes that the TCP stream
    /// would lose.
    pub fn into_tcp(self) -> Result<TcpStream, AcceptedStream> {
        match self {
            AcceptedStream {
                socket: AcceptedSocket::Plain(SocketStream::Tcp(stream)),
                unread,
                ..
            } if unread.is_empty() => Ok(stream),
            other => Err(other),
        }
    }

    /// Unwraps the Unix socket.
    ///
    /// # Errors
    /// As [`AcceptedStream::into_tcp`], for a TCP connection.
    pub fn into_unix(self) -> Result<UnixStream, AcceptedStream> {
        match self {
            AcceptedStream {
                socket: AcceptedSocket::Plain(SocketStream::Unix(stream)),
                unread,
                ..
            } if unread.is_empty() => Ok(stream),
            other => Err(other),
        }
    }

    /// Returns the bytes that were read from the socket before this stream was made, and that reading it returns first.
    /// Empty for an accepted connection; see [`PassedConnection`](crate::PassedConnection).
    pub fn unread_bytes(&self) -> &[u8] {
        &self.unread
    }

    /// Returns the stream, the unread bytes, and where the connection comes from.
    pub(crate) fn into_stream(self) -> (LazyStream, Bytes, ConnectionInfo) {
        let stream = match self.socket {
            AcceptedSocket::Plain(socket) => LazyStream::from_socket(socket),
            #[cfg(feature = "tls")]
            AcceptedSocket::Tls(stream) => LazyStream::from_tls(stream),
        };
        (stream, self.unread, self.info)
    }

    /// Removes the socket from the runtime, and returns it with the unread bytes. Fails for a TLS connection.
    pub(crate) fn into_parts(self) -> io::Result<(OwnedFd, Bytes)> {
        match self.socket {
            AcceptedSocket::Plain(socket) => Ok((socket.into_fd()?, self.unread)),
            #[cfg(feature = "tls")]
            AcceptedSocket::Tls(_) => Err(bound_by_keys()),
        }
    }
}

impl AcceptedSocket {
    /// Returns the socket that the kernel knows.
    fn encrypted(&self) -> &SocketStream {
        match self {
            AcceptedSocket::Plain(socket) => socket,
            #[cfg(feature = "tls")]
            AcceptedSocket::Tls(stream) => stream.get_ref().0.socket(),
        }
    }
}

/// Calls a method of the stream that the application reads and writes.
macro_rules! delegate {
    ($self:ident, $s:ident => $call:expr) => {
        match &mut $self.get_mut().socket {
            AcceptedSocket::Plain(stream) => {
                let $s = Pin::new(stream);
                $call
            }
            #[cfg(feature = "tls")]
            AcceptedSocket::Tls(stream) => {
                let $s = Pin::new(&mut **stream);
                $call
            }
        }
    };
}

impl AsFd for AcceptedStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.encrypted().as_fd()
    }
}

impl AsyncRead for AcceptedStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.unread.is_empty() {
            return delegate!(self, stream => stream.poll_read(cx, buf));
        }
        let this = self.get_mut();
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
        delegate!(self, stream => stream.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        delegate!(self, stream => stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, stream => stream.poll_shutdown(cx))
    }
}
