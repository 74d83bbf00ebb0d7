//! A stream that registers its socket with epoll only when a read or write would block.
//!
//! Most clients have sent their request by the time they are accepted, and a short response fits into the socket's
//! buffer. Such a connection never enters the epoll instance, which saves two system calls, wake-ups, and tokio's
//! bookkeeping.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::coop::poll_proceed;

use super::socket_stream::SocketStream;
#[cfg(feature = "tls")]
use super::tls::ServerTlsStream;

/// An accepted, non-blocking connection. Registers with the runtime of the task that first has to wait for it.
pub(crate) struct LazyStream {
    /// Whether it is a Unix socket, not TCP.
    is_unix: bool,
    /// `None` after a failed registration, which closes the socket.
    socket: Option<SocketState>,
}

enum SocketState {
    Plain(OwnedFd),
    Registered(SocketStream),
    /// TLS over a socket.
    #[cfg(feature = "tls")]
    Tls(Box<ServerTlsStream>),
    /// No socket of ours but a stream of the application.
    Other(Box<dyn ApplicationStream>),
}

/// A stream of the application that HTTP is served on.
pub(crate) trait ApplicationStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ApplicationStream for T {}

impl LazyStream {
    pub(crate) fn new(fd: OwnedFd, is_unix: bool) -> LazyStream {
        LazyStream { is_unix, socket: Some(SocketState::Plain(fd)) }
    }

    /// Wraps a socket that is registered with the runtime already.
    pub(crate) fn from_socket(socket: SocketStream) -> LazyStream {
        let is_unix = matches!(socket, SocketStream::Unix(_));
        LazyStream { is_unix, socket: Some(SocketState::Registered(socket)) }
    }

    /// Wraps a stream of the application.
    pub(crate) fn from_stream(stream: impl ApplicationStream + 'static) -> LazyStream {
        LazyStream { is_unix: false, socket: Some(SocketState::Other(Box::new(stream))) }
    }

    /// Wraps a TLS connection whose handshake is complete.
    #[cfg(feature = "tls")]
    pub(crate) fn from_tls(stream: Box<ServerTlsStream>) -> LazyStream {
        let is_unix = matches!(stream.get_ref().0.socket(), SocketStream::Unix(_));
        LazyStream { is_unix, socket: Some(SocketState::Tls(stream)) }
    }

    /// Returns a stream without a socket, whose calls fail.
    pub(crate) fn closed() -> LazyStream {
        LazyStream { is_unix: false, socket: None }
    }

    /// Removes the socket from this runtime, so that another one may use it. TLS and streams of the application stay where they
    /// are.
    pub(crate) fn detach(self) -> io::Result<LazyStream> {
        match self.socket {
            #[cfg(feature = "tls")]
            Some(SocketState::Tls(_)) => Ok(self),
            Some(SocketState::Other(_)) => Ok(self),
            _ => {
                let is_unix = self.is_unix;
                Ok(LazyStream::new(self.into_fd()?, is_unix))
            }
        }
    }

    pub(crate) fn is_unix(&self) -> bool {
        self.is_unix
    }

    /// Waits until there are bytes to read, or the client has closed the connection.
    pub(crate) async fn readable(&mut self) -> io::Result<()> {
        self.register()?.readable().await
    }

    /// Returns the socket, of a TLS connection the one below it: to ask the kernel about it. Fails if it is closed.
    pub(crate) fn socket_fd(&self) -> io::Result<BorrowedFd<'_>> {
        match &self.socket {
            #[cfg(feature = "tls")]
            Some(SocketState::Tls(stream)) => Ok(stream.get_ref().0.socket().as_fd()),
            Some(SocketState::Plain(fd)) => Ok(fd.as_fd()),
            Some(SocketState::Registered(stream)) => Ok(stream.as_fd()),
            Some(SocketState::Other(_)) | None => Err(not_connected()),
        }
    }

    /// Returns the socket, removed from the runtime if it was registered.
    pub(crate) fn into_fd(self) -> io::Result<OwnedFd> {
        match self.socket.ok_or_else(not_connected)? {
            SocketState::Plain(fd) => Ok(fd),
            SocketState::Registered(stream) => stream.into_fd(),
            #[cfg(feature = "tls")]
            SocketState::Tls(_) => Err(bound_by_keys()),
            SocketState::Other(_) => Err(not_connected()),
        }
    }

    /// Registers the socket with the runtime, and returns it.
    pub(crate) fn into_stream(self) -> io::Result<SocketStream> {
        match self.socket.ok_or_else(not_connected)? {
            SocketState::Plain(fd) => SocketStream::new(fd, self.is_unix),
            SocketState::Registered(stream) => Ok(stream),
            #[cfg(feature = "tls")]
            SocketState::Tls(_) => Err(bound_by_keys()),
            SocketState::Other(_) => Err(not_connected()),
        }
    }

    fn register(&mut self) -> io::Result<&mut SocketStream> {
        if let Some(SocketState::Plain(_)) = self.socket
            && let Some(SocketState::Plain(fd)) = self.socket.take()
        {
            let stream = SocketStream::new(fd, self.is_unix).inspect_err(|e| {
                log::warn!("closed a connection: cannot register it with epoll: {e}");
            })?;
            self.socket = Some(SocketState::Registered(stream));
        }
        match &mut self.socket {
            Some(SocketState::Registered(stream)) => Ok(stream),
            _ => Err(not_connected()),
        }
    }

    fn other(&mut self) -> Option<Pin<&mut dyn ApplicationStream>> {
        match &mut self.socket {
            None | Some(SocketState::Plain(_) | SocketState::Registered(_)) => None,
            #[cfg(feature = "tls")]
            Some(SocketState::Tls(stream)) => Some(Pin::new(&mut **stream)),
            Some(SocketState::Other(stream)) => Some(Pin::new(&mut **stream)),
        }
    }

    /// Whether it is a TLS connection.
    pub(crate) fn is_tls(&self) -> bool {
        match &self.socket {
            #[cfg(feature = "tls")]
            Some(SocketState::Tls(_)) => true,
            _ => false,
        }
    }

    /// Whether a part of a TLS record has arrived, so that more of it must follow.
    pub(crate) fn is_within_tls_record(&self) -> bool {
        match &self.socket {
            #[cfg(feature = "tls")]
            Some(SocketState::Tls(stream)) => stream.get_ref().0.is_within_record(),
            _ => false,
        }
    }

    /// Returns how many bytes the client has acknowledged if `written` bytes were written to this stream; of a TLS connection
    /// those on the wire.
    pub(crate) fn acknowledged_bytes(&self, written: u64) -> u64 {
        let unsent = self.socket_fd().and_then(prefork_os::socket::unsent_bytes).unwrap_or(0);
        let sent = match &self.socket {
            #[cfg(feature = "tls")]
            Some(SocketState::Tls(stream)) => stream.get_ref().0.sent_bytes(),
            _ => written,
        };
        sent.saturating_sub(unsent)
    }

    /// Whether a read of a socket that is registered with the runtime would block. If so, the task is woken once it no longer would.
    ///
    /// Cheaper than a read. `false` means that only a read can tell.
    pub(crate) fn is_read_blocked(&self, cx: &mut Context<'_>) -> bool {
        match &self.socket {
            Some(SocketState::Registered(stream)) => stream.poll_read_ready(cx).is_pending(),
            _ => false,
        }
    }

    /// Writes a few bytes if that is possible without waiting.
    pub(crate) fn write_now(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> io::Result<usize> {
        if self.is_tls() {
            return match Pin::new(self).poll_write(cx, bytes) {
                Poll::Ready(written) => written,
                Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
            };
        }
        prefork_os::socket::write_nonblocking(self.socket_fd()?, bytes)
    }

    /// Writes bytes that a shutdown follows at once: see [`prefork_os::socket::write_before_shutdown`].
    pub(crate) fn poll_write_before_shutdown(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let is_tcp = !self.is_unix && self.other().is_none();
        if !is_tcp {
            return self.poll_write_vectored(cx, slices);
        }
        self.poll(
            cx,
            |fd| prefork_os::socket::write_before_shutdown(fd, slices),
            |stream, cx| stream.poll_write_before_shutdown(cx, slices),
        )
    }

    /// Tries `call` on a plain socket. Registers the socket if `call` would block, and uses `later` from then on.
    fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        call: impl FnOnce(&OwnedFd) -> io::Result<T>,
        later: impl FnOnce(Pin<&mut SocketStream>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if let Some(SocketState::Plain(fd)) = &self.socket {
            // As in tokio's streams, so that a socket that is always ready does not starve other tasks.
            let budget = ready!(poll_proceed(cx));
            match call(fd) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                outcome => {
                    budget.made_progress();
                    return Poll::Ready(outcome);
                }
            }
        }
        later(Pin::new(self.register()?), cx)
    }
}

#[cold]
fn not_connected() -> io::Error {
    io::ErrorKind::NotConnected.into()
}

/// Returns the error of a TLS connection that shall leave the process.
#[cold]
pub(crate) fn bound_by_keys() -> io::Error {
    let reason = "a TLS connection cannot leave this process, which has its keys";
    io::Error::new(io::ErrorKind::Unsupported, reason)
}

impl AsyncRead for LazyStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(SocketState::Registered(stream)) = &mut this.socket {
            return Pin::new(stream).poll_read(cx, buf);
        }
        if let Some(stream) = this.other() {
            return stream.poll_read(cx, buf);
        }
        // A RefCell, because both closures need the buffer; only one runs at a time.
        let buf = RefCell::new(buf);
        this.poll(
            cx,
            |fd| prefork_os::async_fd::read_into_buf(fd, &mut buf.borrow_mut()),
            |stream, cx| stream.poll_read(cx, &mut buf.borrow_mut()),
        )
    }
}

impl AsyncWrite for LazyStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let Some(SocketState::Registered(stream)) = &mut this.socket {
            return Pin::new(stream).poll_write(cx, buf);
        }
        if let Some(stream) = this.other() {
            return stream.poll_write(cx, buf);
        }
        this.poll(
            cx,
            |fd| prefork_os::socket::write_nonblocking(fd, buf),
            |stream, cx| stream.poll_write(cx, buf),
        )
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let Some(SocketState::Registered(stream)) = &mut this.socket {
            return Pin::new(stream).poll_write_vectored(cx, bufs);
        }
        if let Some(stream) = this.other() {
            return stream.poll_write_vectored(cx, bufs);
        }
        this.poll(
            cx,
            |fd| prefork_os::socket::write_vectored_nonblocking(fd, bufs),
            |stream, cx| stream.poll_write_vectored(cx, bufs),
        )
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// A socket has nothing to flush; TLS and streams of the application may have.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.socket {
            Some(SocketState::Registered(_)) => Poll::Ready(Ok(())),
            _ => self.get_mut().other().map_or(Poll::Ready(Ok(())), |stream| stream.poll_flush(cx)),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(stream) = this.other() {
            return stream.poll_shutdown(cx);
        }
        // Never blocks, so it needs no registration.
        Poll::Ready(this.socket_fd().and_then(prefork_os::socket::shutdown_write))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    impl LazyStream {
        fn is_plain(&self) -> bool {
            matches!(self.socket, Some(SocketState::Plain(_)))
        }
    }

    #[test]
    fn stream_registers_only_when_it_has_to_wait() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("runtime").block_on(async {
            let (near, mut far) = UnixStream::pair().expect("pair");
            near.set_nonblocking(true).expect("non-blocking");
            let mut stream = LazyStream::new(near.into(), true);
            far.write_all(b"ask").expect("ask");
            let mut buffer = [0; 8];
            assert_eq!(stream.read(&mut buffer).await.expect("read"), 3);
            let slices = [IoSlice::new(b"an"), IoSlice::new(b"swer")];
            assert_eq!(stream.write_vectored(&slices).await.expect("write"), 6);
            assert!(stream.is_plain(), "nothing had to be waited for");
            let mut got = [0; 6];
            far.read_exact(&mut got).expect("answer");
            assert_eq!(&got, b"answer");
            let asking = std::thread::spawn(move || {
                far.write_all(b"again").expect("ask");
                far
            });
            let mut again = [0; 5];
            stream.read_exact(&mut again).await.expect("read");
            assert_eq!(&again, b"again");
            let mut far = asking.join().expect("client");
            stream.shutdown().await.expect("shut down");
            assert_eq!(far.read(&mut got).expect("the end"), 0);
            drop(far);
            assert_eq!(stream.read(&mut buffer).await.expect("the end"), 0);
        });
    }

    #[test]
    fn write_waits_for_room_in_the_socket_buffer() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("runtime").block_on(async {
            let (near, mut far) = UnixStream::pair().expect("pair");
            near.set_nonblocking(true).expect("non-blocking");
            let mut stream = LazyStream::new(near.into(), true);
            let much = vec![7; 4 << 20];
            let reading = std::thread::spawn(move || {
                let mut all = Vec::new();
                far.read_to_end(&mut all).expect("read");
                all
            });
            stream.write_all(&much).await.expect("write");
            stream.shutdown().await.expect("shut down");
            assert_eq!(reading.join().expect("reader"), much);
        });
    }
}
