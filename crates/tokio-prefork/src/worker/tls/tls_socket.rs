//! The encrypted side of a TLS connection: hands bytes that were read before to rustls, and follows the record layer.
//!
//! rustls does not tell whether a part of a record has arrived. A connection must not be closed as idle then: its client
//! has begun to send a request.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::worker::socket_stream::SocketStream;

/// The socket under a TLS connection.
#[derive(Debug)]
pub(crate) struct TlsSocket {
    socket: SocketStream,
    /// Bytes that were read from the socket before: they come first.
    unread: Bytes,
    received: RecordPosition,
    /// How many bytes the kernel took.
    sent: u64,
}

impl TlsSocket {
    pub(crate) fn new(socket: SocketStream, unread: Bytes) -> TlsSocket {
        TlsSocket { socket, unread, received: RecordPosition::default(), sent: 0 }
    }

    pub(crate) fn socket(&self) -> &SocketStream {
        &self.socket
    }

    pub(crate) fn into_socket(self) -> SocketStream {
        self.socket
    }

    /// Whether the last record received is incomplete.
    pub(crate) fn is_within_record(&self) -> bool {
        self.received.is_within_record()
    }

    /// Returns how many bytes the kernel took, those of the handshake included.
    pub(crate) fn sent_bytes(&self) -> u64 {
        self.sent
    }

    fn count_sent(&mut self, outcome: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(length)) = outcome {
            self.sent = self.sent.wrapping_add(*length as u64);
        }
    }
}

impl AsyncRead for TlsSocket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        if this.unread.is_empty() {
            ready!(Pin::new(&mut this.socket).poll_read(cx, buf))?;
        } else {
            let length = this.unread.len().min(buf.remaining());
            buf.put_slice(&this.unread[..length]);
            this.unread.advance(length);
        }
        this.received.advance(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TlsSocket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = prefork_os::socket::write_nonblocking(&this.socket, buf);
        let outcome = match is_blocked(&written) {
            true => Pin::new(&mut this.socket).poll_write(cx, buf),
            false => Poll::Ready(written),
        };
        this.count_sent(&outcome);
        outcome
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = prefork_os::socket::write_vectored_nonblocking(&this.socket, bufs);
        let outcome = match is_blocked(&written) {
            true => Pin::new(&mut this.socket).poll_write_vectored(cx, bufs),
            false => Poll::Ready(written),
        };
        this.count_sent(&outcome);
        outcome
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}

/// Whether the runtime has to wait for the socket.
///
/// It is not asked before, because it does not know yet that a new socket is writable, and an alert is written only once.
fn is_blocked(written: &io::Result<usize>) -> bool {
    written.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock)
}

/// How many bytes stand before the fragment of a record: type, version and length (RFC 8446, section 5.1).
const RECORD_HEADER_BYTES: u8 = 5;

/// The position within a stream of TLS records.
#[derive(Debug, Default)]
struct RecordPosition {
    /// How many bytes of the record's header have passed.
    header_bytes: u8,
    /// The length of the record's fragment, as far as its header has passed.
    length: u16,
    /// How many bytes of the fragment are missing.
    missing: u16,
}

impl RecordPosition {
    fn advance(&mut self, mut bytes: &[u8]) {
        while let [first, rest @ ..] = bytes {
            if self.missing > 0 {
                let length = bytes.len().min(usize::from(self.missing));
                self.missing -= length as u16;
                bytes = &bytes[length..];
                continue;
            }
            self.header_bytes += 1;
            if self.header_bytes > RECORD_HEADER_BYTES - 2 {
                self.length = self.length << 8 | u16::from(*first);
            }
            if self.header_bytes == RECORD_HEADER_BYTES {
                (self.header_bytes, self.missing) = (0, std::mem::take(&mut self.length));
            }
            bytes = rest;
        }
    }

    fn is_within_record(&self) -> bool {
        self.header_bytes > 0 || self.missing > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_followed_in_pieces_of_any_size() {
        // One with a fragment of 259 bytes, one without, and one with a single byte.
        let mut stream = vec![23, 3, 3, 1, 3];
        stream.extend_from_slice(&[7; 259]);
        stream.extend_from_slice(&[23, 3, 3, 0, 0, 21, 3, 3, 0, 1, 9]);
        let ends = [264, 269, 275];
        assert_eq!(stream.len(), 275);
        for size in [1, 2, 3, 5, 7, 264, 275] {
            let (mut position, mut passed) = (RecordPosition::default(), 0);
            for piece in stream.chunks(size) {
                position.advance(piece);
                passed += piece.len();
                let is_within = !ends.contains(&passed);
                assert_eq!(position.is_within_record(), is_within, "{passed} bytes by {size}");
            }
        }
    }
}
