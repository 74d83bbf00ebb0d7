//! The bytes of a connection: a nonblocking socket, with TLS for `https://`.

use std::io::{self, Read, Write};

use socket2::Socket;

use super::connection::io_error_kind;
use super::request_failure::RequestFailure;
use super::tls::{CompletedHandshake, TlsStream};

/// A socket, and TLS above it.
pub(crate) struct Transport {
    pub(crate) socket: Socket,
    pub(crate) tls: Option<Box<TlsStream>>,
    has_written: bool,
}

/// What a read from the socket gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReadOutcome {
    /// The socket had nothing.
    Blocked,
    /// The socket had less than fits into the buffer.
    Drained,
    /// The buffer was filled, so that there may be more.
    Filled,
    /// The connection has ended; whether the server said that all was sent.
    Ended { is_complete: bool },
}

impl Transport {
    pub(crate) fn new(socket: Socket, tls: Option<Box<TlsStream>>) -> Transport {
        Transport { socket, tls, has_written: false }
    }

    /// Returns whether the socket has taken bytes, which it does once it is connected.
    pub(crate) fn is_connected(&self) -> bool {
        self.tls.as_ref().map_or(self.has_written, |tls| tls.has_started())
    }

    /// Returns the local TCP port; `None` for Unix sockets.
    pub(crate) fn local_port(&self) -> Option<u16> {
        Some(self.socket.local_addr().ok()?.as_socket()?.port())
    }

    /// Writes the beginning of `bytes` and returns its length; 0 if it must wait.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<usize, RequestFailure> {
        if let Some(tls) = &mut self.tls {
            return tls.write(bytes);
        }
        loop {
            match (&self.socket).write(bytes) {
                Ok(n) => {
                    self.has_written = true;
                    return Ok(n);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(0),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(io_error_kind(&e)),
            }
        }
    }

    /// Writes encrypted bytes that wait; returns whether some still wait.
    pub(crate) fn flush(&mut self) -> Result<bool, RequestFailure> {
        let Some(tls) = &mut self.tls else { return Ok(false) };
        tls.flush(&self.socket)?;
        Ok(tls.has_unsent())
    }

    /// Reads once from the socket, and passes what the server sent to `sink`.
    pub(crate) fn read(
        &mut self,
        buffer: &mut [u8],
        mut sink: impl FnMut(&[u8]) -> Result<(), RequestFailure>,
    ) -> Result<(ReadOutcome, Option<CompletedHandshake>), RequestFailure> {
        let kept = self.tls.as_ref().map_or(0, |tls| tls.incomplete_len());
        if kept >= buffer.len() {
            return Err(RequestFailure::TlsError);
        }
        let n = match (&self.socket).read(&mut buffer[kept..]) {
            Ok(0) => return Ok((ReadOutcome::Ended { is_complete: self.tls.is_none() }, None)),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                return Ok((ReadOutcome::Blocked, None));
            }
            // The caller reads again.
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {
                return Ok((ReadOutcome::Filled, None));
            }
            Err(e) => return Err(io_error_kind(&e)),
        };
        let outcome =
            if kept + n < buffer.len() { ReadOutcome::Drained } else { ReadOutcome::Filled };
        let Some(tls) = &mut self.tls else { return sink(&buffer[..n]).map(|()| (outcome, None)) };
        tls.restore_incomplete(buffer);
        let handshake = tls.receive(buffer, kept + n, &mut sink)?;
        match tls.is_closed_by_peer() {
            true => Ok((ReadOutcome::Ended { is_complete: true }, handshake)),
            false => Ok((outcome, handshake)),
        }
    }

    /// Tells the server that no further request comes, as far as the socket takes it at once.
    pub(crate) fn close(mut self) {
        if let Some(tls) = &mut self.tls {
            tls.queue_close_notify();
            // What does not fit now is not sent: the connection ends.
            let _ = tls.flush(&self.socket);
        }
    }

    /// Sends the alert that explains an error, and returns its description.
    pub(crate) fn abort(mut self) -> Option<String> {
        let tls = self.tls.as_mut()?;
        // The connection ends anyway.
        let _ = tls.flush(&self.socket);
        tls.take_error()
    }

    /// Returns whether bytes can be written as TLS records.
    pub(crate) fn has_tls_session(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_established())
    }

    /// Returns whether a TLS handshake has begun and is not complete.
    pub(crate) fn is_handshaking(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_handshaking())
    }
}
