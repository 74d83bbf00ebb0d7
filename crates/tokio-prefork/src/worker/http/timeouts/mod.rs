//! How long a connection may take for what it is doing.

pub(crate) mod http_exchange;
pub(crate) mod request_deadline;
pub(crate) mod transfer_clock;

use std::time::Duration;

use super::connection_state::{Conn, Phase, SendCheck, Told};
use crate::config::Config;
use crate::worker::drain::Order;
use http_exchange::Expiry;
use transfer_clock::TransferLimit;

/// How long a client that sends nothing may take to close its side after we closed ours. nginx's `lingering_timeout`.
const LINGER_IDLE_MS: u64 = 5000;

/// The same in a worker that drains.
const DRAIN_LINGER_IDLE_MS: u64 = 2000;

/// How long an HTTP/2 client without an open stream may take to answer GOAWAY and the ping that hyper sends with it.
const GOAWAY_MS: u64 = 5000;

/// How long the task of a connection may take to ask what the client has taken. It is woken for it, so a task that does
/// not is not polling its socket at all. Longer than a thread of ours waits for the CPU on a loaded machine: under
/// `threads` the heartbeat is on another one, and the client is not to blame for ours.
const SEND_CHECK_MS: u64 = 10_000;

/// The limits in force, in milliseconds.
pub(crate) struct Limits {
    header_ms: u64,
    keep_alive_ms: u64,
    /// For connections that stay with this worker to their end.
    idle_ms: u64,
    /// Others are kept for as long as if nothing had happened, until somebody can take them.
    patient: bool,
    deadline_ms: Option<u64>,
    linger_ms: u64,
    body: TransferLimit,
    send: TransferLimit,
}

/// What the heartbeat has found out about the exchanges of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Overdue {
    /// The task of the connection has something to do: send an answer of ours, or ask the kernel.
    Wake,
    /// The connection is to be closed.
    Cut,
}

impl Limits {
    pub(crate) fn new(config: &Config, drain: Option<Order>, now_ms: u64) -> Limits {
        let keep_alive = config.keep_alive_timeout.as_millis() as u64;
        Limits {
            header_ms: config.header_timeout.as_millis() as u64,
            keep_alive_ms: keep_alive,
            patient: drain.is_some_and(|order| order.patient(now_ms)),
            idle_ms: drain.map_or(keep_alive, |order| order.linger_ms.min(keep_alive)),
            deadline_ms: drain.map(|order| order.deadline_ms),
            linger_ms: if drain.is_some() { DRAIN_LINGER_IDLE_MS } else { LINGER_IDLE_MS },
            body: TransferLimit {
                idle_ms: millis(config.body_timeout),
                min_rate: config.min_body_rate,
            },
            send: TransferLimit {
                idle_ms: millis(config.send_timeout),
                min_rate: config.min_send_rate,
            },
        }
    }

    /// Ends what takes too long: requests beyond their deadlines, bodies that do not come, and responses that nobody
    /// takes. HTTP/2 streams are dealt with one by one; what is returned is for the connection.
    pub(crate) fn overdue(&self, conn: &Conn, now_ms: u64) -> Option<Overdue> {
        if conn.upgraded() || conn.phase() == Phase::Closing {
            return None;
        }
        let mut found = self.streams_overdue(conn, now_ms);
        if conn.receiving.is_stalled(self.body, now_ms) {
            conn.receiving.stop(now_ms);
            if !conn.response_has_begun() {
                conn.expire(Expiry::Body);
                found = found.max(Some(Overdue::Wake));
            } else if conn.is_response_pending() {
                found = Some(Overdue::Cut);
            }
            // Else the response is on its way, and does not wait for the rest of the request.
        }
        found.max(self.sending_overdue(conn, now_ms))
    }

    /// Nothing is known of what the client has taken until the kernel is asked, which the task of the connection does.
    fn sending_overdue(&self, conn: &Conn, now_ms: u64) -> Option<Overdue> {
        match conn.send_check() {
            SendCheck::None if conn.sending.is_due(self.send, now_ms) => {
                conn.set_send_check(SendCheck::Asked, now_ms);
                Some(Overdue::Wake)
            }
            SendCheck::None => None,
            SendCheck::Asked if !conn.sending.is_waiting() => {
                conn.set_send_check(SendCheck::None, now_ms);
                None
            }
            SendCheck::Asked => {
                (conn.send_check_age_ms(now_ms) >= SEND_CHECK_MS).then_some(Overdue::Cut)
            }
            SendCheck::Measured => {
                conn.set_send_check(SendCheck::None, now_ms);
                conn.sending.is_stalled(self.send, now_ms).then_some(Overdue::Cut)
            }
        }
    }

    fn streams_overdue(&self, conn: &Conn, now_ms: u64) -> Option<Overdue> {
        let is_http2 = conn.http2().is_some();
        let mut found = None;
        conn.exchanges.for_each(|exchange| {
            if exchange.is_cut() {
                return;
            }
            let deadline = exchange.deadline.as_ref();
            let why = if exchange.expiry().is_some() {
                // Our own answer is on its way; the client may still not take it.
                None
            } else if deadline.is_some_and(|deadline| deadline.has_passed(now_ms)) {
                Some(Expiry::Deadline)
            } else if exchange.receiving.is_stalled(self.body, now_ms) {
                // A response that is on its way does not wait for the rest of the request.
                let is_waited_for = !exchange.has_begun() || exchange.is_body_pending();
                if !is_waited_for {
                    exchange.receiving.stop(now_ms);
                }
                is_waited_for.then_some(Expiry::Body)
            } else {
                None
            };
            let is_untaken = exchange.sending.is_stalled(self.send, now_ms);
            if why.is_none() && !is_untaken {
                return;
            }
            if let Some(why) = why {
                exchange.expire(why);
            }
            match is_http2 {
                true => {
                    if exchange.has_begun() {
                        exchange.cut();
                    }
                    exchange.wake();
                }
                false if exchange.has_begun() => found = Some(Overdue::Cut),
                false => found = found.max(Some(Overdue::Wake)),
            }
        });
        found
    }

    /// What the connection has to be told at `now_ms`, if anything.
    pub(crate) fn judge(&self, conn: &Conn, now_ms: u64) -> Option<Told> {
        let age = conn.age_ms(now_ms);
        if self.deadline_ms.is_some_and(|deadline| deadline <= now_ms) {
            return Some(Told::Cut);
        }
        if let Some(streams) = conn.http2()
            && conn.phase() != Phase::Closing
        {
            let is_idle = conn.phase() == Phase::Idle;
            if is_idle && conn.told() != Told::Nothing && conn.told_age_ms(now_ms) >= GOAWAY_MS {
                return Some(Told::Cut);
            }
            let head_age = streams.header_since().map(|since| now_ms.saturating_sub(since));
            if head_age.is_some_and(|age| age >= self.header_ms) || streams.is_order_lost() {
                // hyper sends GOAWAY and ends the connection after the streams that are open.
                return Some(Told::Finish);
            }
        }
        let idle_ms = match self.patient && conn.can_travel() {
            true => self.keep_alive_ms,
            false => self.idle_ms,
        };
        match conn.phase() {
            Phase::Head if age >= self.header_ms => Some(Told::Finish),
            Phase::Fresh if age >= self.header_ms.min(idle_ms) => Some(Told::Finish),
            Phase::Idle if age >= idle_ms && !conn.blocked() => Some(Told::Finish),
            Phase::Closing if age >= self.linger_ms => Some(Told::Cut),
            Phase::Fresh | Phase::Head | Phase::Busy | Phase::Idle | Phase::Closing => None,
        }
    }
}

fn millis(limit: Option<Duration>) -> Option<u64> {
    limit.map(|limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::HandOver;

    fn limits(drain: Option<Order>) -> Limits {
        Limits::new(&Config::default(), drain, 0)
    }

    #[test]
    fn each_phase_has_its_limit() {
        let conn = Conn::new(0);
        assert_eq!(limits(None).judge(&conn, 9_999), None);
        assert_eq!(limits(None).judge(&conn, 10_000), Some(Told::Finish));
        conn.received(10_000);
        assert_eq!(limits(None).judge(&conn, 19_999), None);
        assert_eq!(limits(None).judge(&conn, 20_000), Some(Told::Finish));
        conn.request_begun(20_000);
        assert_eq!(limits(None).judge(&conn, 1_000_000), None);
        conn.request_over(20_000);
        assert_eq!(limits(None).judge(&conn, 84_999), None);
        assert_eq!(limits(None).judge(&conn, 85_000), Some(Told::Finish));
    }

    #[test]
    fn draining_shortens_idleness_and_has_an_end() {
        let order = Order {
            deadline_ms: 30_000,
            linger_ms: 1000,
            closing: false,
            hand_over: HandOver::Never,
        };
        let conn = Conn::new(0);
        conn.request_begun(0);
        assert_eq!(limits(Some(order)).judge(&conn, 29_999), None);
        assert_eq!(limits(Some(order)).judge(&conn, 30_000), Some(Told::Cut));
        conn.request_over(5_000);
        assert_eq!(limits(Some(order)).judge(&conn, 5_999), None);
        assert_eq!(limits(Some(order)).judge(&conn, 6_000), Some(Told::Finish));
    }

    #[test]
    fn what_can_travel_is_kept_until_it_can() {
        let order = Order {
            deadline_ms: 90_000,
            linger_ms: 1000,
            closing: false,
            hand_over: HandOver::Now,
        };
        let conn = Conn::new(0);
        conn.request_begun(0);
        assert!(!conn.may_travel());
        conn.request_over(0);
        assert!(!conn.may_travel(), "the response is not written yet");
        conn.flushed();
        assert!(conn.may_travel());
        assert_eq!(limits(Some(order)).judge(&conn, 64_999), None);
        assert_eq!(limits(Some(order)).judge(&conn, 65_000), Some(Told::Finish));
        conn.root();
        assert!(!conn.may_travel());
        assert_eq!(limits(Some(order)).judge(&conn, 1_000), Some(Told::Finish));
        assert!(!order.patient(89_000), "the last moment is for those that nobody took");
    }
}
