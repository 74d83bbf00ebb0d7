//! The TLS side of a [`Client`](super::Client): reads and writes what it sends and receives.

use std::io::{self, Read, Write};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use socket2::Socket;

use super::Failure;

/// The TLS session of a client.
pub struct TlsSession(Box<ClientConnection>);

impl TlsSession {
    /// Completes a handshake over `socket`.
    ///
    /// # Errors
    /// The server has ended it; with an alert, its name is in [`Failure::Other`].
    pub fn connect(
        mut socket: &Socket,
        config: Arc<ClientConfig>,
        name: &str,
    ) -> Result<TlsSession, Failure> {
        let name = ServerName::try_from(name.to_string()).expect("a server name");
        let mut session = ClientConnection::new(config, name).expect("a client");
        while session.is_handshaking() {
            let (read, _) = session.complete_io(&mut socket).map_err(tls_failure)?;
            if read == 0 && session.is_handshaking() {
                return Err(Failure::Closed);
            }
        }
        Ok(TlsSession(Box::new(session)))
    }

    /// Returns what the handshake has agreed on.
    pub fn session(&self) -> &ClientConnection {
        &self.0
    }

    /// Returns the server's own certificate in DER.
    pub fn server_certificate(&self) -> &[u8] {
        self.0.peer_certificates().and_then(<[_]>::first).expect("a certificate")
    }

    pub fn session_mut(&mut self) -> &mut ClientConnection {
        &mut self.0
    }

    /// Returns the records of these bytes without sending them.
    pub fn encrypt(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.0.writer().write_all(bytes).expect("room");
        let mut records = Vec::new();
        while self.0.wants_write() {
            self.0.write_tls(&mut records).expect("a vector");
        }
        records
    }

    pub fn send(&mut self, mut socket: &Socket, bytes: &[u8]) -> Result<(), Failure> {
        for piece in bytes.chunks(16 * 1024) {
            self.0.writer().write_all(piece)?;
            self.flush(&mut socket)?;
        }
        Ok(())
    }

    /// Reads once; returns 0 after `close_notify`. Without it, the end of the connection is a failure.
    pub fn read(&mut self, mut socket: &Socket, buffer: &mut [u8]) -> Result<usize, Failure> {
        loop {
            match self.0.reader().read(buffer) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                read => return read.map_err(tls_failure),
            }
            self.0.read_tls(&mut socket)?;
            let processed = self.0.process_new_packets();
            self.flush(&mut socket)?;
            processed.map_err(|e| Failure::Other(e.to_string()))?;
        }
    }

    /// Sends `close_notify`; responses can still be read.
    pub fn send_close_notify(&mut self, mut socket: &Socket) {
        self.0.send_close_notify();
        self.flush(&mut socket).expect("send");
    }

    fn flush(&mut self, socket: &mut &Socket) -> Result<(), Failure> {
        while self.0.wants_write() {
            self.0.write_tls(socket)?;
        }
        Ok(())
    }
}

fn tls_failure(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Failure::Other("closed without close_notify".into()),
        io::ErrorKind::InvalidData => Failure::Other(error.to_string()),
        _ => error.into(),
    }
}
