//! Performs the TLS handshake of an accepted connection.
//!
//! `tls-handshake-timeout` runs from the accept on: the heartbeat enforces it (see `http::timeouts`), and `HandshakeQueue` bounds
//! how many handshakes are in progress. A handshake that fails is counted by its reason and logged at level `debug`, as its
//! client causes it. The connection closes so that the alert arrives: a socket closed with unread bytes is reset, and the
//! reset destroys what the client has not read.

use std::future::{Future, poll_fn};
use std::io;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use rustls::{
    CipherSuite, HandshakeKind, InvalidMessage, PeerIncompatible, ProtocolVersion, ServerConfig,
    ServerConnection,
};
use tokio::io::{AsyncRead, ReadBuf};
use tokio_rustls::TlsAcceptor;

use super::tls_socket::TlsSocket;
use super::{ServerTlsStream, plain_http};
use crate::client::{ClientCertificate, ConnectionInfo, TlsFacts};
use crate::scoreboard::RequestRecorder;
use crate::status::TlsHandshakeResult;
use crate::tls::read_client_certificate;
use crate::worker::http::connection_state::{CloseRequest, ConnectionPhase};
use crate::worker::http::lingering_socket::close_with_linger;
use crate::worker::http::serve_context::{ConnectionHandle, ServeContext};
use crate::worker::lazy_stream::LazyStream;

/// The first byte of each connection that begins with a TLS handshake (RFC 8446, section 5.1).
pub(super) const HANDSHAKE_RECORD: u8 = 22;

/// How long a client may take to close its side after its handshake has failed.
const FAILURE_LINGER_TIME: Duration = Duration::from_secs(1);

/// How many bytes of the ClientHello to read at first.
const FIRST_READ_SIZE: usize = 4096;

/// A TLS connection whose handshake is complete.
pub(crate) struct TlsConnection {
    pub(crate) stream: Box<ServerTlsStream>,
    /// Whether client and server have agreed on HTTP/2.
    pub(crate) is_http2: bool,
    pub(crate) facts: TlsFacts,
}

/// Performs the handshake. Returns `None` if it has failed, and the connection is closed.
pub(crate) async fn accept<H: ServeContext, W: ConnectionHandle>(
    context: &H,
    handle: &W,
    mut stream: LazyStream,
    mut first: Bytes,
    info: Option<&ConnectionInfo>,
) -> Option<TlsConnection> {
    context.worker_page().tls_handshake_begun();
    let ended = |result| context.worker_page().tls_handshake_ended(result);
    let Some(config) = context.tls_config() else {
        log::error!("{} closed a connection: it has no certificate for TLS", context.tag());
        ended(TlsHandshakeResult::Protocol);
        return None;
    };
    if first.is_empty() {
        let read = until_close_request(handle, CloseRequest::WhenIdle, read_first(&mut stream));
        match read.await {
            Ok(Ok(read)) if !read.is_empty() => first = read,
            Ok(_) => {
                ended(TlsHandshakeResult::Silent);
                return None;
            }
            Err(CloseRequested) => {
                ended(closed_by_worker(handle));
                return None;
            }
        }
    }
    context.worker_page().byte_meter().add_bytes_in(first.len());
    handle.state().record_handshake_bytes();
    let first_byte = first[0];
    if plain_http::may_be_request(first_byte) {
        let result = plain_http::answer(context, handle, stream, first, info).await;
        ended(result);
        return None;
    }
    let socket = match stream.into_stream() {
        Ok(socket) => TlsSocket::new(socket, first),
        Err(e) => {
            log::warn!("{} closed a connection: cannot register it with epoll: {e}", context.tag());
            ended(TlsHandshakeResult::Protocol);
            return None;
        }
    };
    let accepting = TlsAcceptor::from(Arc::clone(config)).accept(socket);
    let accepting = until_close_request(handle, CloseRequest::Now, accepting.into_fallible());
    let result = match accepting.await {
        Ok(Ok(stream)) => {
            let conn = handle.state();
            conn.set_handshaking(false);
            conn.set_phase(ConnectionPhase::New, context.now_ms());
            let (facts, is_http2) = describe(stream.get_ref().1, config);
            ended(match facts.is_resumed {
                true => TlsHandshakeResult::Resumed,
                false => TlsHandshakeResult::Full,
            });
            return Some(TlsConnection { stream: Box::new(stream), is_http2, facts });
        }
        Ok(Err((error, socket))) => {
            let result = classify_error(&error, first_byte);
            log_failure(context, result, &error, info);
            linger(handle, LazyStream::from_socket(socket.into_socket())).await;
            result
        }
        Err(CloseRequested) => {
            let result = closed_by_worker(handle);
            log_failure(context, result, &"the worker has closed it", info);
            result
        }
    };
    ended(result);
    None
}

/// The worker wants the connection closed.
pub(super) struct CloseRequested;

/// Waits for `step`, or until the worker wants the connection closed at least as urgently as `urgency` says.
pub(super) async fn until_close_request<T>(
    handle: &impl ConnectionHandle,
    urgency: CloseRequest,
    step: impl Future<Output = T>,
) -> Result<T, CloseRequested> {
    let mut step = pin!(step);
    poll_fn(|cx| {
        handle.register_waker(cx.waker());
        match step.as_mut().poll(cx) {
            Poll::Ready(value) => Poll::Ready(Ok(value)),
            Poll::Pending if handle.state().close_request() as u8 >= urgency as u8 => {
                Poll::Ready(Err(CloseRequested))
            }
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Reads the first bytes. Silent clients are many, so a buffer is on the heap only for what has arrived.
pub(super) async fn read_first(stream: &mut LazyStream) -> io::Result<Bytes> {
    poll_fn(|cx| {
        let mut buffer = [MaybeUninit::uninit(); FIRST_READ_SIZE];
        let mut buffer = ReadBuf::uninit(&mut buffer);
        let polled = Pin::new(&mut *stream).poll_read(cx, &mut buffer);
        polled.map_ok(|()| Bytes::copy_from_slice(buffer.filled()))
    })
    .await
}

/// Closes the socket of a handshake that has failed.
pub(super) async fn linger(handle: &impl ConnectionHandle, socket: LazyStream) {
    let closing = close_with_linger(socket, || true);
    let closing = tokio::time::timeout(FAILURE_LINGER_TIME, closing);
    let _ = until_close_request(handle, CloseRequest::Now, closing).await;
}

/// Returns why the worker has closed a connection in the middle of its handshake.
pub(super) fn closed_by_worker(handle: &impl ConnectionHandle) -> TlsHandshakeResult {
    match handle.state().is_evicted() {
        true => TlsHandshakeResult::Evicted,
        false => TlsHandshakeResult::Timeout,
    }
}

/// Logs a handshake that has failed.
pub(super) fn log_failure(
    context: &impl ServeContext,
    result: TlsHandshakeResult,
    reason: &dyn std::fmt::Display,
    info: Option<&ConnectionInfo>,
) {
    if log::log_enabled!(log::Level::Debug) {
        let peer = info.map(|info| info.peer().to_string()).unwrap_or_default();
        let (tag, result) = (context.tag(), result.name());
        log::debug!("{tag} TLS handshake failed: {reason} result={result} peer={peer}");
    }
}

/// Returns what a handshake has agreed on, and whether that is HTTP/2.
fn describe(session: &ServerConnection, config: &ServerConfig) -> (TlsFacts, bool) {
    let version = match session.protocol_version() {
        Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
        _ => "TLSv1.3",
    };
    let cipher_suite = match session.negotiated_cipher_suite().map(|suite| suite.suite()) {
        Some(CipherSuite::TLS13_AES_128_GCM_SHA256) => "TLS_AES_128_GCM_SHA256",
        Some(CipherSuite::TLS13_AES_256_GCM_SHA384) => "TLS_AES_256_GCM_SHA384",
        Some(CipherSuite::TLS13_CHACHA20_POLY1305_SHA256) => "TLS_CHACHA20_POLY1305_SHA256",
        // Only those of TLS 1.3 have names of their own in rustls.
        other => other.and_then(|suite| suite.as_str()).unwrap_or(""),
    };
    let chosen = session.alpn_protocol();
    let is_http2 = chosen == Some(b"h2") && config.alpn_protocols.iter().any(|one| one == b"h2");
    let alpn = match chosen {
        Some(b"h2") => Some("h2"),
        Some(b"http/1.1") => Some("http/1.1"),
        Some(_) | None => None,
    };
    let facts = TlsFacts {
        version,
        cipher_suite,
        alpn,
        server_name: session.server_name().map(Into::into),
        is_resumed: session.handshake_kind() == Some(HandshakeKind::Resumed),
        client_certificate: client_certificate(session),
    };
    (facts, is_http2)
}

/// Returns the certificate of the client, which the handshake has verified.
fn client_certificate(session: &ServerConnection) -> Option<Box<ClientCertificate>> {
    let certificate = session.peer_certificates()?.first()?;
    // The verification has read it before.
    read_client_certificate(certificate).ok().map(Box::new)
}

/// Returns why a handshake has failed.
fn classify_error(error: &io::Error, first_byte: u8) -> TlsHandshakeResult {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    let Some(cause) = cause else { return TlsHandshakeResult::ClientClosed };
    match cause {
        rustls::Error::AlertReceived(_) => TlsHandshakeResult::ClientAlert,
        rustls::Error::NoApplicationProtocol => TlsHandshakeResult::Alpn,
        rustls::Error::NoCertificatesPresented | rustls::Error::InvalidCertificate(_) => {
            TlsHandshakeResult::ClientCertificate
        }
        rustls::Error::PeerIncompatible(
            PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::SupportedVersionsExtensionRequired,
        ) => TlsHandshakeResult::Version,
        rustls::Error::PeerIncompatible(_) => TlsHandshakeResult::CipherSuite,
        // What rustls says if `ResolvesServerCert` has returned none.
        rustls::Error::General(text) if text.contains("no server certificate") => {
            TlsHandshakeResult::ServerName
        }
        rustls::Error::InvalidMessage(
            InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
        ) if first_byte != HANDSHAKE_RECORD => TlsHandshakeResult::NotTls,
        _ => TlsHandshakeResult::Protocol,
    }
}
