//! TLS of one connection: encrypts requests and decrypts responses, with buffers but without a socket.
//!
//! Uses the unbuffered API of rustls: requests are encrypted into the buffer that is written to the socket,
//! and records are decrypted in the buffer that was read from it.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use rustls::client::UnbufferedClientConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use rustls::{HandshakeKind, ProtocolVersion};
use socket2::Socket;

use super::{TlsClient, failures, options};
use crate::load::connection::io_error_kind;
use crate::load::request_failure::RequestFailure;

/// Most plaintext of one record.
const MAX_RECORD_SIZE: usize = 16 * 1024;
/// Room for what a record adds to its plaintext.
const RECORD_OVERHEAD: usize = 256;
/// No further request is encrypted while more bytes than these wait for the socket.
const MAX_UNSENT_SIZE: usize = 256 * 1024;
/// How a response begins that is not TLS.
const PLAIN_HTTP_PREFIX: &[u8] = b"HTTP/";

/// The TLS side of a connection.
pub(crate) struct TlsStream {
    session: UnbufferedClientConnection,
    /// Records for the socket, of which the first `sent` bytes are written.
    outgoing: Vec<u8>,
    sent: usize,
    /// Received bytes of a record or handshake message that is not complete.
    incomplete: Vec<u8>,
    /// When the first byte of the handshake was written.
    started: Option<Instant>,
    is_established: bool,
    has_received: bool,
    /// Whether the server has sent close_notify.
    is_closed_by_peer: bool,
    error: Option<String>,
}

/// How a handshake ended well.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CompletedHandshake {
    pub(crate) is_resumed: bool,
    /// Time from the first byte sent to the last one received.
    pub(crate) duration: Duration,
}

/// What client and server agreed on.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct NegotiatedTls {
    /// `TLS 1.3` or `TLS 1.2`.
    pub version: &'static str,
    /// Name of the cipher suite in the registry of IANA.
    pub cipher_suite: String,
    /// Group of the key exchange; `None` if a session without one was resumed.
    pub group: Option<String>,
    /// Application protocol chosen by ALPN.
    pub alpn: Option<String>,
}

/// Whether more can be done with the buffered bytes.
#[derive(PartialEq, Eq)]
enum Progress {
    Continue,
    NeedsInput,
}

impl TlsStream {
    /// Starts a handshake; its first bytes wait in the buffer.
    pub(crate) fn start(client: &TlsClient) -> Result<TlsStream, RequestFailure> {
        let session =
            UnbufferedClientConnection::new(client.config.clone(), client.server_name.clone());
        let mut stream = TlsStream {
            session: session.map_err(|_| RequestFailure::TlsError)?,
            outgoing: Vec::new(),
            sent: 0,
            incomplete: Vec::new(),
            started: None,
            is_established: false,
            has_received: false,
            is_closed_by_peer: false,
            error: None,
        };
        stream.process(&mut [], 0, &mut |_| Ok(()))?;
        Ok(stream)
    }

    /// Returns whether the first byte of the handshake has been written.
    pub(crate) fn has_started(&self) -> bool {
        self.started.is_some()
    }

    pub(crate) fn is_established(&self) -> bool {
        self.is_established
    }

    /// Returns whether the handshake has begun and is not complete.
    pub(crate) fn is_handshaking(&self) -> bool {
        self.started.is_some() && !self.is_established
    }

    pub(crate) fn is_closed_by_peer(&self) -> bool {
        self.is_closed_by_peer
    }

    pub(crate) fn has_unsent(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Returns the description of the error that ended the connection.
    pub(crate) fn take_error(&mut self) -> Option<String> {
        self.error.take()
    }

    /// Encrypts the beginning of `plaintext` and returns its length; 0 in the handshake and while the socket is
    /// full.
    pub(crate) fn write(&mut self, plaintext: &[u8]) -> Result<usize, RequestFailure> {
        if !self.is_established || self.outgoing.len() > MAX_UNSENT_SIZE {
            return Ok(0);
        }
        let plaintext = &plaintext[..plaintext.len().min(MAX_RECORD_SIZE)];
        // The session must see an incomplete message again with each call.
        let mut incoming = std::mem::take(&mut self.incomplete);
        loop {
            let UnbufferedStatus { discard, state } =
                self.session.process_tls_records(&mut incoming);
            match state {
                Ok(ConnectionState::WriteTraffic(mut writer)) => {
                    let before = self.outgoing.len();
                    self.outgoing.resize(before + plaintext.len() + RECORD_OVERHEAD, 0);
                    let written = writer.encrypt(plaintext, &mut self.outgoing[before..]);
                    self.outgoing.truncate(before + written.as_ref().map_or(0, |n| *n));
                    incoming.drain(..discard);
                    self.incomplete = incoming;
                    return match written {
                        Ok(_) => Ok(plaintext.len()),
                        Err(EncryptError::InsufficientSize(_) | EncryptError::EncryptExhausted) => {
                            Err(RequestFailure::TlsError)
                        }
                    };
                }
                Ok(ConnectionState::EncodeTlsData(mut encoder)) => {
                    encode(&mut self.outgoing, |room| encoder.encode(room));
                }
                Ok(ConnectionState::TransmitTlsData(transmit)) => transmit.done(),
                Ok(_) => return Err(RequestFailure::ClosedEarly),
                Err(error) => return Err(self.end_with_error(&error)),
            }
            incoming.drain(..discard);
        }
    }

    /// Writes waiting records until the socket is full.
    pub(crate) fn flush(&mut self, mut socket: &Socket) -> Result<(), RequestFailure> {
        while self.sent < self.outgoing.len() {
            match socket.write(&self.outgoing[self.sent..]) {
                Ok(n) => {
                    self.sent += n;
                    self.started.get_or_insert_with(Instant::now);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(io_error_kind(&e)),
            }
        }
        self.outgoing.clear();
        self.sent = 0;
        Ok(())
    }

    /// Moves bytes of an incomplete record to the start of `buffer`, and returns their number.
    ///
    /// [`receive`](Self::receive) expects them there, followed by the bytes that were read.
    pub(crate) fn restore_incomplete(&self, buffer: &mut [u8]) -> usize {
        buffer[..self.incomplete.len()].copy_from_slice(&self.incomplete);
        self.incomplete.len()
    }

    /// Returns the number of bytes of an incomplete record.
    pub(crate) fn incomplete_len(&self) -> usize {
        self.incomplete.len()
    }

    /// Processes the first `filled` bytes of `buffer`, and passes decrypted bytes to `sink`.
    ///
    /// Returns the handshake if these bytes completed it.
    pub(crate) fn receive(
        &mut self,
        buffer: &mut [u8],
        filled: usize,
        sink: &mut impl FnMut(&[u8]) -> Result<(), RequestFailure>,
    ) -> Result<Option<CompletedHandshake>, RequestFailure> {
        self.incomplete.clear();
        if !self.has_received {
            let compared = filled.min(PLAIN_HTTP_PREFIX.len());
            let is_plain = buffer[..compared] == PLAIN_HTTP_PREFIX[..compared];
            if is_plain && compared == PLAIN_HTTP_PREFIX.len() {
                return Err(RequestFailure::PlainHttpAnswer);
            }
            if is_plain {
                self.incomplete.extend_from_slice(&buffer[..filled]);
                return Ok(None);
            }
            self.has_received = true;
        }
        let was_established = self.is_established;
        self.process(buffer, filled, sink)?;
        if was_established || !self.is_established {
            return Ok(None);
        }
        let kind = self.session.handshake_kind();
        let duration = self.started.map_or(Duration::ZERO, |started| started.elapsed());
        Ok(Some(CompletedHandshake { is_resumed: kind == Some(HandshakeKind::Resumed), duration }))
    }

    /// Processes records until more input is needed; keeps what remains.
    fn process(
        &mut self,
        buffer: &mut [u8],
        filled: usize,
        sink: &mut impl FnMut(&[u8]) -> Result<(), RequestFailure>,
    ) -> Result<(), RequestFailure> {
        let mut used = 0;
        loop {
            let UnbufferedStatus { mut discard, state } =
                self.session.process_tls_records(&mut buffer[used..filled]);
            let progress = match state {
                Ok(ConnectionState::ReadTraffic(mut reader)) => {
                    while let Some(record) = reader.next_record() {
                        let record = record.map_err(|_| RequestFailure::TlsError)?;
                        discard += record.discard;
                        sink(record.payload)?;
                    }
                    Progress::Continue
                }
                Ok(ConnectionState::EncodeTlsData(mut encoder)) => {
                    encode(&mut self.outgoing, |room| encoder.encode(room));
                    Progress::Continue
                }
                Ok(ConnectionState::TransmitTlsData(transmit)) => {
                    transmit.done();
                    Progress::Continue
                }
                Ok(ConnectionState::PeerClosed) => {
                    self.is_closed_by_peer = true;
                    Progress::Continue
                }
                Ok(_) => Progress::NeedsInput,
                Err(error) => return Err(self.end_with_error(&error)),
            };
            used += discard;
            if progress == Progress::NeedsInput {
                break;
            }
        }
        self.incomplete.extend_from_slice(&buffer[used..filled]);
        self.is_established = !self.session.is_handshaking();
        Ok(())
    }

    /// Keeps the error, and the alert that tells the server of it.
    fn end_with_error(&mut self, error: &rustls::Error) -> RequestFailure {
        self.error = Some(failures::describe_tls_error(error));
        // Only while an alert waits, because the session would read the buffer it was given before.
        while self.session.wants_write() {
            match self.session.process_tls_records(&mut []).state {
                Ok(ConnectionState::EncodeTlsData(mut encoder)) => {
                    encode(&mut self.outgoing, |room| encoder.encode(room));
                }
                _ => break,
            }
        }
        failures::classify_tls_error(error)
    }

    /// Appends close_notify to the records for the socket.
    pub(crate) fn queue_close_notify(&mut self) {
        let mut incoming = std::mem::take(&mut self.incomplete);
        if let Ok(ConnectionState::WriteTraffic(mut writer)) =
            self.session.process_tls_records(&mut incoming).state
        {
            let before = self.outgoing.len();
            self.outgoing.resize(before + RECORD_OVERHEAD, 0);
            let written = writer.queue_close_notify(&mut self.outgoing[before..]);
            self.outgoing.truncate(before + written.unwrap_or(0));
        }
    }

    /// Returns the application protocol that the server chose.
    pub(crate) fn alpn_protocol(&self) -> Option<&[u8]> {
        self.session.alpn_protocol()
    }

    /// Returns what was agreed on; `None` before the handshake is complete.
    pub(crate) fn negotiated(&self) -> Option<NegotiatedTls> {
        let suite = self.session.negotiated_cipher_suite()?;
        let version = match self.session.protocol_version()? {
            ProtocolVersion::TLSv1_3 => "TLS 1.3",
            _ => "TLS 1.2",
        };
        let group = self.session.negotiated_key_exchange_group();
        let alpn = self.session.alpn_protocol();
        Some(NegotiatedTls {
            version,
            cipher_suite: options::cipher_suite_name(suite.suite()),
            group: group.map(|group| format!("{:?}", group.name())),
            alpn: alpn.map(|name| String::from_utf8_lossy(name).into_owned()),
        })
    }
}

/// Appends a handshake message to `outgoing`.
fn encode(
    outgoing: &mut Vec<u8>,
    mut encode_into: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>,
) {
    // The first call tells the size.
    let Err(EncodeError::InsufficientSize(size)) = encode_into(&mut []) else { return };
    let before = outgoing.len();
    outgoing.resize(before + size.required_size, 0);
    let written = encode_into(&mut outgoing[before..]).unwrap_or(0);
    outgoing.truncate(before + written);
}

#[cfg(test)]
#[path = "tls_stream_tests.rs"]
mod tests;
