//! Decides which connections and requests exceed their timeouts and rates.

pub(crate) mod http_exchange;
pub(crate) mod request_deadline;
pub(crate) mod transfer_clock;

use std::time::Duration;

use super::connection_state::{CloseRequest, ConnectionPhase, ConnectionState, UnsentCheck};
use crate::config::Config;
use crate::worker::drain::DrainOrder;
use http_exchange::RequestExpiry;
use transfer_clock::TransferLimits;

/// How long a silent client may take to close its side after the worker closed its own. nginx's `lingering_timeout`.
const LINGER_IDLE_MS: u64 = 5000;

/// The same for a draining worker.
const DRAIN_LINGER_IDLE_MS: u64 = 2000;

/// How long an HTTP/2 client without open streams may take to answer GOAWAY and the ping that hyper sends with it.
const GOAWAY_TIMEOUT_MS: u64 = 5000;

/// How long a connection's task may take to ask the kernel for the unacknowledged bytes.
///
/// The task is woken to ask, so one that does not is not polling its socket at all. Longer than a thread waits for
/// the CPU on a loaded machine: in the `threads` model the heartbeat runs on another thread, which the client must
/// not pay for.
const UNSENT_CHECK_TIMEOUT_MS: u64 = 10_000;

/// The timeouts and rates in force at one heartbeat.
pub(crate) struct ConnectionTimeouts {
    header_ms: u64,
    handshake_ms: u64,
    keep_alive_ms: u64,
    /// Idle timeout of connections that cannot be handed over.
    idle_ms: u64,
    /// Whether connections that can be handed over keep their full keep-alive time.
    keeps_transferable_open: bool,
    deadline_ms: Option<u64>,
    linger_ms: u64,
    body: TransferLimits,
    send: TransferLimits,
}

/// What to do about a request that exceeds a timeout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TimeoutAction {
    /// Wake the connection's task: it has to send an error response, or to ask the kernel.
    WakeTask,
    /// Close the connection now.
    Close,
}

impl ConnectionTimeouts {
    pub(crate) fn new(
        config: &Config,
        drain: Option<DrainOrder>,
        now_ms: u64,
    ) -> ConnectionTimeouts {
        let keep_alive = config.keep_alive_timeout.as_millis() as u64;
        ConnectionTimeouts {
            header_ms: config.header_timeout.as_millis() as u64,
            handshake_ms: config.tls_handshake_timeout.as_millis() as u64,
            keep_alive_ms: keep_alive,
            keeps_transferable_open: drain
                .is_some_and(|order| order.keeps_transferable_open(now_ms)),
            idle_ms: drain.map_or(keep_alive, |order| order.linger_ms.min(keep_alive)),
            deadline_ms: drain.map(|order| order.deadline_ms),
            linger_ms: if drain.is_some() { DRAIN_LINGER_IDLE_MS } else { LINGER_IDLE_MS },
            body: TransferLimits {
                idle_ms: to_millis(config.body_timeout),
                min_rate: config.min_body_rate,
            },
            send: TransferLimits {
                idle_ms: to_millis(config.send_timeout),
                min_rate: config.min_send_rate,
            },
        }
    }

    /// Whether a draining worker has to close all connections.
    pub(crate) fn has_deadline_passed(&self, now_ms: u64) -> bool {
        self.deadline_ms.is_some_and(|deadline| deadline <= now_ms)
    }

    /// Returns how long a connection may be idle, `is_transferable` if it can be handed over.
    pub(crate) fn idle_timeout_ms(&self, is_transferable: bool) -> u64 {
        match self.keeps_transferable_open && is_transferable {
            true => self.keep_alive_ms,
            false => self.idle_ms,
        }
    }

    /// Returns how long a client may take to close its side after the worker closed its own.
    pub(crate) fn linger_ms(&self) -> u64 {
        self.linger_ms
    }

    /// Expires the requests of a connection whose deadline, body or response exceeds a limit.
    ///
    /// Resets HTTP/2 streams one by one; returns what to do about the connection as a whole.
    pub(crate) fn expire_requests(
        &self,
        conn: &ConnectionState,
        now_ms: u64,
    ) -> Option<TimeoutAction> {
        if conn.is_upgraded() || conn.phase() == ConnectionPhase::Lingering {
            return None;
        }
        let mut found = self.expire_exchanges(conn, now_ms);
        if conn.receiving.is_stalled(self.body, now_ms) {
            conn.receiving.stop(now_ms);
            if !conn.has_response_started() {
                conn.expire_request(RequestExpiry::Body);
                found = found.max(Some(TimeoutAction::WakeTask));
            } else if conn.is_response_body_pending() {
                found = Some(TimeoutAction::Close);
            }
            // Otherwise the response is under way and does not wait for the rest of the request.
        }
        found.max(self.check_sending(conn, now_ms))
    }

    /// Checks whether the client takes the response fast enough.
    ///
    /// Only the kernel knows how much the client has acknowledged, so the connection's task has to ask it first.
    fn check_sending(&self, conn: &ConnectionState, now_ms: u64) -> Option<TimeoutAction> {
        match conn.unsent_check() {
            UnsentCheck::None if conn.sending.may_be_stalled(self.send, now_ms) => {
                conn.set_unsent_check(UnsentCheck::Requested, now_ms);
                Some(TimeoutAction::WakeTask)
            }
            UnsentCheck::None => None,
            UnsentCheck::Requested if !conn.sending.is_waiting() => {
                conn.set_unsent_check(UnsentCheck::None, now_ms);
                None
            }
            UnsentCheck::Requested => (conn.unsent_check_age_ms(now_ms) >= UNSENT_CHECK_TIMEOUT_MS)
                .then_some(TimeoutAction::Close),
            UnsentCheck::Measured => {
                conn.set_unsent_check(UnsentCheck::None, now_ms);
                conn.sending.is_stalled(self.send, now_ms).then_some(TimeoutAction::Close)
            }
        }
    }

    /// Expires the requests that have timeouts of their own.
    fn expire_exchanges(&self, conn: &ConnectionState, now_ms: u64) -> Option<TimeoutAction> {
        let is_http2 = conn.http2().is_some();
        let mut found = None;
        conn.exchanges.for_each(|exchange| {
            if exchange.is_reset() {
                return;
            }
            let deadline = exchange.deadline.as_ref();
            let expiry = if exchange.expiry().is_some() {
                // The error response is under way; the client may still not take it.
                None
            } else if deadline.is_some_and(|deadline| deadline.has_passed(now_ms)) {
                Some(RequestExpiry::Deadline)
            } else if exchange.receiving.is_stalled(self.body, now_ms) {
                // A response that is under way does not wait for the rest of the request.
                let is_body_needed = !exchange.has_response_started() || exchange.is_body_pending();
                if !is_body_needed {
                    exchange.receiving.stop(now_ms);
                }
                is_body_needed.then_some(RequestExpiry::Body)
            } else {
                None
            };
            let is_send_stalled = exchange.sending.is_stalled(self.send, now_ms);
            if expiry.is_none() && !is_send_stalled {
                return;
            }
            if let Some(expiry) = expiry {
                exchange.expire(expiry);
            }
            match is_http2 {
                true => {
                    if exchange.has_response_started() {
                        exchange.reset_stream();
                    }
                    exchange.wake();
                }
                false if exchange.has_response_started() => found = Some(TimeoutAction::Close),
                false => found = found.max(Some(TimeoutAction::WakeTask)),
            }
        });
        found
    }

    /// Returns the close request that the phase of a connection calls for at `now_ms`, if any.
    pub(crate) fn close_request_for(
        &self,
        conn: &ConnectionState,
        now_ms: u64,
    ) -> Option<CloseRequest> {
        let age = conn.phase_age_ms(now_ms);
        if self.has_deadline_passed(now_ms) {
            return Some(CloseRequest::Now);
        }
        if let Some(streams) = conn.http2()
            && conn.phase() != ConnectionPhase::Lingering
        {
            let is_idle = conn.phase() == ConnectionPhase::Idle;
            if is_idle
                && conn.close_request() != CloseRequest::None
                && conn.close_request_age_ms(now_ms) >= GOAWAY_TIMEOUT_MS
            {
                return Some(CloseRequest::Now);
            }
            let head_age =
                streams.incomplete_header_since().map(|since| now_ms.saturating_sub(since));
            if head_age.is_some_and(|age| age >= self.header_ms) || streams.is_order_lost() {
                // hyper sends GOAWAY and closes the connection after the open streams.
                return Some(CloseRequest::WhenIdle);
            }
        }
        let idle_ms =
            self.idle_timeout_ms(self.keeps_transferable_open && conn.can_be_handed_over());
        let header_ms = match conn.is_handshaking() {
            true if conn.phase() != ConnectionPhase::New && age >= self.handshake_ms => {
                return Some(CloseRequest::Now);
            }
            true => self.handshake_ms,
            false => self.header_ms,
        };
        match conn.phase() {
            ConnectionPhase::ReadingHead if age >= header_ms => Some(CloseRequest::WhenIdle),
            ConnectionPhase::New if age >= header_ms.min(idle_ms) => Some(CloseRequest::WhenIdle),
            ConnectionPhase::Idle if age >= idle_ms && !conn.is_write_blocked() => {
                Some(CloseRequest::WhenIdle)
            }
            ConnectionPhase::Lingering if age >= self.linger_ms => Some(CloseRequest::Now),
            ConnectionPhase::New
            | ConnectionPhase::ReadingHead
            | ConnectionPhase::Responding
            | ConnectionPhase::Idle
            | ConnectionPhase::Lingering => None,
        }
    }
}

fn to_millis(limit: Option<Duration>) -> Option<u64> {
    limit.map(|limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::HandoverMode;

    fn limits(drain: Option<DrainOrder>) -> ConnectionTimeouts {
        ConnectionTimeouts::new(&Config::default(), drain, 0)
    }

    #[test]
    fn each_phase_has_its_own_timeout() {
        let conn = ConnectionState::new(0);
        assert_eq!(limits(None).close_request_for(&conn, 9_999), None);
        assert_eq!(limits(None).close_request_for(&conn, 10_000), Some(CloseRequest::WhenIdle));
        conn.record_received(10_000);
        assert_eq!(limits(None).close_request_for(&conn, 19_999), None);
        assert_eq!(limits(None).close_request_for(&conn, 20_000), Some(CloseRequest::WhenIdle));
        conn.begin_request(20_000);
        assert_eq!(limits(None).close_request_for(&conn, 1_000_000), None);
        conn.end_request(20_000);
        assert_eq!(limits(None).close_request_for(&conn, 84_999), None);
        assert_eq!(limits(None).close_request_for(&conn, 85_000), Some(CloseRequest::WhenIdle));
    }

    #[test]
    fn draining_shortens_the_idle_timeout_and_ends_at_its_deadline() {
        let order = DrainOrder {
            deadline_ms: 30_000,
            linger_ms: 1000,
            closing: false,
            hand_over: HandoverMode::Never,
        };
        let conn = ConnectionState::new(0);
        conn.begin_request(0);
        assert_eq!(limits(Some(order)).close_request_for(&conn, 29_999), None);
        assert_eq!(limits(Some(order)).close_request_for(&conn, 30_000), Some(CloseRequest::Now));
        conn.end_request(5_000);
        assert_eq!(limits(Some(order)).close_request_for(&conn, 5_999), None);
        assert_eq!(
            limits(Some(order)).close_request_for(&conn, 6_000),
            Some(CloseRequest::WhenIdle)
        );
    }

    #[test]
    fn transferable_connections_keep_their_keep_alive_time_while_draining() {
        let order = DrainOrder {
            deadline_ms: 90_000,
            linger_ms: 1000,
            closing: false,
            hand_over: HandoverMode::Immediately,
        };
        let conn = ConnectionState::new(0);
        conn.begin_request(0);
        assert!(!conn.is_ready_for_handover());
        conn.end_request(0);
        conn.set_request_read();
        assert!(!conn.is_ready_for_handover(), "the response is not written yet");
        conn.set_flushed();
        assert!(conn.is_ready_for_handover());
        assert_eq!(limits(Some(order)).close_request_for(&conn, 64_999), None);
        assert_eq!(
            limits(Some(order)).close_request_for(&conn, 65_000),
            Some(CloseRequest::WhenIdle)
        );
        conn.pin_to_worker();
        assert!(!conn.is_ready_for_handover());
        assert_eq!(
            limits(Some(order)).close_request_for(&conn, 1_000),
            Some(CloseRequest::WhenIdle)
        );
        assert!(
            !order.keeps_transferable_open(89_000),
            "just before the deadline, connections that no worker took close"
        );
    }
}
