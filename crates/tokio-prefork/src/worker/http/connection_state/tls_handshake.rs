//! The TLS handshake of a connection, and the records behind it.

use std::sync::atomic::Ordering::Relaxed;

use super::{CloseRequest, ConnectionPhase, ConnectionState};

impl ConnectionState {
    /// Whether the TLS handshake is in progress, or has failed.
    pub(crate) fn is_handshaking(&self) -> bool {
        self.is_handshaking.load(Relaxed)
    }

    pub(crate) fn set_handshaking(&self, is_handshaking: bool) {
        self.is_handshaking.store(is_handshaking, Relaxed);
    }

    /// Records that the client has begun its handshake, whose timeout has run since the connection was accepted.
    #[cfg(feature = "tls")]
    pub(crate) fn record_handshake_bytes(&self) {
        let (new, reading) = (ConnectionPhase::New as u8, ConnectionPhase::ReadingHead as u8);
        let _ = self.phase.compare_exchange(new, reading, Relaxed, Relaxed);
        self.cancel_idle_close();
    }

    /// Records that a part of a TLS record has arrived: the connection is not idle, as more must follow.
    pub(crate) fn record_partial_record(&self, now_ms: u64) {
        let is_idle = matches!(self.phase(), ConnectionPhase::New | ConnectionPhase::Idle);
        if is_idle && self.http2().is_none() {
            self.set_phase(ConnectionPhase::ReadingHead, now_ms);
            self.cancel_idle_close();
        }
    }

    /// Keeps a connection open that was to be closed as idle, because it no longer is.
    fn cancel_idle_close(&self) {
        let (idle, none) = (CloseRequest::WhenIdle as u8, CloseRequest::None as u8);
        let _ = self.close_request.compare_exchange(idle, none, Relaxed, Relaxed);
    }

    /// Whether the TLS handshake was ended in favour of a newer one.
    #[cfg(any(test, feature = "tls"))]
    pub(crate) fn is_evicted(&self) -> bool {
        self.is_evicted.load(Relaxed)
    }

    pub(crate) fn set_evicted(&self) {
        self.is_evicted.store(true, Relaxed);
    }
}
