//! The TLS side of a [`Client`](super::Client): reads and writes what it sends and receives.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use nix::sys::socket::{MsgFlags, recv};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use socket2::Socket;

use super::Failure;

/// Why a connection is over that has ended without `close_notify`.
pub const TRUNCATED: &str = "closed without close_notify";

/// The TLS session of a client.
pub struct TlsSession {
    session: Box<ClientConnection>,
    /// Whether the end of the connection without `close_notify` is one like any other.
    pub accepts_truncation: bool,
}

impl TlsSession {
    /// Completes a handshake over `socket`.
    ///
    /// # Errors
    /// The server has ended it; with an alert, its name is in [`Failure::Other`].
    pub fn connect(
        socket: &Socket,
        config: Arc<ClientConfig>,
        name: &str,
    ) -> Result<TlsSession, Failure> {
        TlsSession::connect_in_pieces(socket, config, name, usize::MAX)
    }

    /// As [`TlsSession::connect`], in segments of at most so many bytes.
    pub fn connect_in_pieces(
        mut socket: &Socket,
        config: Arc<ClientConfig>,
        name: &str,
        segment: usize,
    ) -> Result<TlsSession, Failure> {
        let name = ServerName::try_from(name.to_string()).expect("a server name");
        let mut session = ClientConnection::new(config, name).expect("a client");
        loop {
            let mut records = Vec::new();
            while session.wants_write() {
                session.write_tls(&mut records)?;
            }
            records.chunks(segment).try_for_each(|piece| socket.write_all(piece))?;
            if !session.is_handshaking() {
                return Ok(TlsSession { session: Box::new(session), accepts_truncation: false });
            }
            if session.read_tls(&mut socket)? == 0 {
                return Err(Failure::Closed);
            }
            if let Err(e) = session.process_new_packets() {
                // The alert that says so.
                let _ = session.write_tls(&mut socket);
                return Err(Failure::Other(e.to_string()));
            }
        }
    }

    /// Returns what the handshake has agreed on.
    pub fn session(&self) -> &ClientConnection {
        &self.session
    }

    /// Returns the server's own certificate in DER.
    pub fn server_certificate(&self) -> &[u8] {
        self.session.peer_certificates().and_then(<[_]>::first).expect("a certificate")
    }

    pub fn session_mut(&mut self) -> &mut ClientConnection {
        &mut self.session
    }

    /// Returns the records of these bytes without sending them.
    pub fn encrypt(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.session.writer().write_all(bytes).expect("room");
        let mut records = Vec::new();
        while self.session.wants_write() {
            self.session.write_tls(&mut records).expect("a vector");
        }
        records
    }

    pub fn send(&mut self, mut socket: &Socket, bytes: &[u8]) -> Result<(), Failure> {
        for piece in bytes.chunks(16 * 1024) {
            self.session.writer().write_all(piece)?;
            self.flush(&mut socket)?;
        }
        Ok(())
    }

    /// Reads once; returns 0 after `close_notify`. Without it, the end of the connection is a failure.
    pub fn read(&mut self, mut socket: &Socket, buffer: &mut [u8]) -> Result<usize, Failure> {
        loop {
            match self.session.reader().read(buffer) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof && self.accepts_truncation => {
                    return Ok(0);
                }
                read => return read.map_err(tls_failure),
            }
            self.session.read_tls(&mut socket)?;
            let processed = self.session.process_new_packets();
            self.flush(&mut socket)?;
            processed.map_err(|e| Failure::Other(e.to_string()))?;
        }
    }

    /// Takes what the kernel has received, without waiting. Returns whether the server has sent anything that was not read.
    pub fn receive_queued(&mut self, mut socket: &Socket) -> bool {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        while matches!(recv(socket.as_raw_fd(), &mut [0], flags), Ok(1..)) {
            if self.session.read_tls(&mut socket).is_err()
                || self.session.process_new_packets().is_err()
            {
                break;
            }
        }
        // Without new packets, this is the state after the last ones.
        self.session.process_new_packets().is_ok_and(|state| state.plaintext_bytes_to_read() > 0)
    }

    /// Whether `close_notify` has arrived.
    pub fn has_peer_closed(&mut self) -> bool {
        self.session.process_new_packets().is_ok_and(|state| state.peer_has_closed())
    }

    /// Sends `close_notify`; responses can still be read.
    pub fn send_close_notify(&mut self, mut socket: &Socket) {
        self.session.send_close_notify();
        self.flush(&mut socket).expect("send");
    }

    fn flush(&mut self, socket: &mut &Socket) -> Result<(), Failure> {
        while self.session.wants_write() {
            self.session.write_tls(socket)?;
        }
        Ok(())
    }
}

fn tls_failure(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Failure::Other(TRUNCATED.into()),
        io::ErrorKind::InvalidData => Failure::Other(error.to_string()),
        _ => error.into(),
    }
}
