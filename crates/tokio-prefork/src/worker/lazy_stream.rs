//! A connection that is served: a plain socket until it has to wait for something.
//!
//! Most clients have sent their request when they are accepted, and a short answer fits into the buffer of a new
//! socket: such a connection ends without ever having been in the epoll instance, which saves two system calls, the
//! wake-ups between them, and tokio's bookkeeping.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::coop::poll_proceed;

use super::accepted_stream::AcceptedStream;

/// An accepted, non-blocking connection. It joins the runtime of the task that first has to wait for it.
pub(crate) struct LazyStream {
    /// Over a Unix socket, not TCP.
    unix: bool,
    /// `None` after it could not be registered: the socket is closed then.
    socket: Option<Socket>,
}

enum Socket {
    Plain(OwnedFd),
    Registered(AcceptedStream),
}

impl LazyStream {
    pub(crate) fn new(fd: OwnedFd, unix: bool) -> LazyStream {
        LazyStream { unix, socket: Some(Socket::Plain(fd)) }
    }

    pub(crate) fn is_unix(&self) -> bool {
        self.unix
    }

    /// Resolves when there is something to read, or the peer is gone.
    pub(crate) async fn readable(&mut self) -> io::Result<()> {
        self.register()?.readable().await
    }

    /// The socket; an error if it is closed.
    pub(crate) fn fd(&self) -> io::Result<BorrowedFd<'_>> {
        match &self.socket {
            Some(Socket::Plain(fd)) => Ok(fd.as_fd()),
            Some(Socket::Registered(stream)) => Ok(stream.as_fd()),
            None => Err(gone()),
        }
    }

    /// The socket, out of the runtime if it was in there.
    pub(crate) fn into_fd(self) -> io::Result<OwnedFd> {
        match self.socket.ok_or_else(gone)? {
            Socket::Plain(fd) => Ok(fd),
            Socket::Registered(stream) => stream.into_fd(),
        }
    }

    /// The connection as applications know it.
    pub(crate) fn into_stream(self) -> io::Result<AcceptedStream> {
        match self.socket.ok_or_else(gone)? {
            Socket::Plain(fd) => AcceptedStream::new(fd, self.unix),
            Socket::Registered(stream) => Ok(stream),
        }
    }

    fn register(&mut self) -> io::Result<&mut AcceptedStream> {
        if let Some(Socket::Plain(_)) = self.socket
            && let Some(Socket::Plain(fd)) = self.socket.take()
        {
            let stream = AcceptedStream::new(fd, self.unix).inspect_err(|e| {
                log::warn!("a connection is closed, as it cannot be registered with epoll: {e}");
            })?;
            self.socket = Some(Socket::Registered(stream));
        }
        match &mut self.socket {
            Some(Socket::Registered(stream)) => Ok(stream),
            _ => Err(gone()),
        }
    }

    /// Tries `call` on a plain socket, and `later` on one that is registered, which it is from the time on when it
    /// has to wait.
    fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        call: impl FnOnce(&OwnedFd) -> io::Result<T>,
        later: impl FnOnce(Pin<&mut AcceptedStream>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if let Some(Socket::Plain(fd)) = &self.socket {
            // As for tokio's own: a peer that is always ready does not keep the loop.
            let turn = ready!(poll_proceed(cx));
            match call(fd) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                outcome => {
                    turn.made_progress();
                    return Poll::Ready(outcome);
                }
            }
        }
        later(Pin::new(self.register()?), cx)
    }
}

#[cold]
fn gone() -> io::Error {
    io::ErrorKind::NotConnected.into()
}

impl AsyncRead for LazyStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // One after the other: both want the buffer.
        let buf = RefCell::new(buf);
        self.get_mut().poll(
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
        self.get_mut().poll(
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
        self.get_mut().poll(
            cx,
            |fd| prefork_os::socket::write_vectored_nonblocking(fd, bufs),
            |stream, cx| stream.poll_write_vectored(cx, bufs),
        )
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// A socket has nothing to flush.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The same for both: the kernel does not let it wait.
        Poll::Ready(self.fd().and_then(prefork_os::socket::shutdown_write))
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
            matches!(self.socket, Some(Socket::Plain(_)))
        }
    }

    #[test]
    fn a_link_is_registered_only_when_it_has_to_wait() {
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
    fn a_link_waits_for_room_to_write() {
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
