//! The socket of `h2`: two buffers in memory, so that the load thread does all I/O.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Both ends of the pipe; never waits for the other end.
#[derive(Debug, Clone, Default)]
pub(crate) struct MemoryPipe(Arc<Mutex<PipeBuffers>>);

#[derive(Debug, Default)]
pub(crate) struct PipeBuffers {
    incoming: Vec<u8>,
    read: usize,
    outgoing: Vec<u8>,
    written: usize,
}

impl MemoryPipe {
    fn buffers(&self) -> MutexGuard<'_, PipeBuffers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds bytes from the server.
    pub(crate) fn receive(&self, bytes: &[u8]) {
        self.buffers().incoming.extend_from_slice(bytes);
    }

    /// Passes the bytes for the server to `write`, which returns how many it took.
    ///
    /// Returns whether some remain.
    pub(crate) fn send<E>(
        &self,
        mut write: impl FnMut(&[u8]) -> Result<usize, E>,
    ) -> Result<bool, E> {
        let mut buffers = self.buffers();
        while buffers.written < buffers.outgoing.len() {
            match write(&buffers.outgoing[buffers.written..])? {
                0 => return Ok(true),
                taken => buffers.written += taken,
            }
        }
        buffers.outgoing.clear();
        buffers.written = 0;
        Ok(false)
    }
}

impl AsyncRead for MemoryPipe {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut buffers = self.buffers();
        let unread = &buffers.incoming[buffers.read..];
        if unread.is_empty() {
            // No waker: the load thread polls again when it has received bytes.
            return Poll::Pending;
        }
        let taken = unread.len().min(into.remaining());
        into.put_slice(&unread[..taken]);
        buffers.read += taken;
        if buffers.read == buffers.incoming.len() {
            buffers.incoming.clear();
            buffers.read = 0;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for MemoryPipe {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.buffers().outgoing.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
