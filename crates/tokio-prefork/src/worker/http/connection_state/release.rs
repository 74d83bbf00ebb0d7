//! When the task of a connection may release its socket: to hand the connection over to another worker, or to park it.

use std::sync::atomic::Ordering::Relaxed;

use super::{CloseRequest, ConnectionPhase, ConnectionState};
use crate::worker::parked::PARK_AFTER;

/// [`PARK_AFTER`] in milliseconds.
const PARK_AFTER_MS: u64 = PARK_AFTER.as_millis() as u64;

impl ConnectionState {
    /// Excludes the connection from hand-over: it stays with this worker until it closes.
    pub(crate) fn pin_to_worker(&self) {
        self.is_pinned.store(true, Relaxed);
    }

    pub(crate) fn is_pinned(&self) -> bool {
        self.is_pinned.load(Relaxed)
    }

    /// HTTP/1: records that hyper has read the last request to its end, so that it is idle once it has flushed the response.
    pub(crate) fn set_request_read(&self) {
        self.is_request_read.store(true, Relaxed);
    }

    /// Whether the connection may be handed over, now or after the request in progress.
    pub(crate) fn can_be_handed_over(&self) -> bool {
        !self.is_pinned() && self.can_go_on_elsewhere()
    }

    /// Whether its socket alone is enough to go on with the connection, now or after the request in progress.
    fn can_go_on_elsewhere(&self) -> bool {
        let is_bound = self.is_upgraded() || self.is_peer_done();
        !is_bound && self.is_request_complete() && !self.is_rejected()
    }

    /// Whether the connection may be handed over now: it is between two requests and has nothing to write.
    pub(crate) fn is_ready_for_handover(&self) -> bool {
        matches!(self.phase(), ConnectionPhase::New | ConnectionPhase::Idle)
            && self.close_request() == CloseRequest::None
            && self.is_flushed.load(Relaxed)
            && self.is_request_read.load(Relaxed)
            && self.can_be_handed_over()
    }

    /// Excludes the connection from parking: its state is more than a socket, or somebody waits for its task.
    pub(crate) fn forbid_parking(&self) {
        self.never_parks.store(true, Relaxed);
    }

    /// Whether the connection may be parked now: it has been idle for a while, and has nothing to write.
    pub(crate) fn is_ready_for_parking(&self, now_ms: u64) -> bool {
        self.phase() == ConnectionPhase::Idle
            && self.phase_age_ms(now_ms) >= PARK_AFTER_MS
            && self.close_request() == CloseRequest::None
            && self.http2().is_none()
            && self.is_flushed.load(Relaxed)
            && self.is_request_read.load(Relaxed)
            && !self.never_parks.load(Relaxed)
            && self.can_go_on_elsewhere()
    }

    /// Asks the task to release the socket to be parked.
    pub(crate) fn request_parking(&self) {
        self.is_parking_requested.store(true, Relaxed);
    }

    /// Takes the request to park. Returns whether there is one and the connection still is idle.
    pub(crate) fn take_parking_request(&self, now_ms: impl FnOnce() -> u64) -> bool {
        self.is_parking_requested.load(Relaxed) && {
            self.is_parking_requested.store(false, Relaxed);
            self.is_ready_for_parking(now_ms())
        }
    }
}
