//! How long a connection may take for what it is doing.

use super::conn::{Conn, Phase, Told};
use super::drain::Order;
use crate::config::Config;

/// How long we read on after we closed our side, at most.
const LINGER_MS: u64 = 2000;

/// The limits in force, in milliseconds.
pub(super) struct Limits {
    header_ms: u64,
    keep_alive_ms: u64,
    /// For connections that stay with this worker to their end.
    idle_ms: u64,
    /// Others are kept for as long as if nothing had happened, until somebody can take them.
    patient: bool,
    deadline_ms: Option<u64>,
}

impl Limits {
    pub(super) fn new(config: &Config, drain: Option<Order>, now_ms: u64) -> Limits {
        let keep_alive = config.keep_alive_timeout.as_millis() as u64;
        Limits {
            header_ms: config.header_timeout.as_millis() as u64,
            keep_alive_ms: keep_alive,
            patient: drain.is_some_and(|order| order.patient(now_ms)),
            idle_ms: drain.map_or(keep_alive, |order| order.linger_ms.min(keep_alive)),
            deadline_ms: drain.map(|order| order.deadline_ms),
        }
    }

    /// What the connection has to be told at `now_ms`, if anything.
    pub(super) fn judge(&self, conn: &Conn, now_ms: u64) -> Option<Told> {
        let age = conn.age_ms(now_ms);
        if self.deadline_ms.is_some_and(|deadline| deadline <= now_ms) {
            return Some(Told::Cut);
        }
        let idle_ms = match self.patient && conn.can_travel() {
            true => self.keep_alive_ms,
            false => self.idle_ms,
        };
        match conn.phase() {
            Phase::Head if age >= self.header_ms => Some(Told::Finish),
            Phase::Fresh if age >= self.header_ms.min(idle_ms) => Some(Told::Finish),
            Phase::Idle if age >= idle_ms && !conn.blocked() => Some(Told::Finish),
            Phase::Closing if age >= LINGER_MS => Some(Told::Cut),
            Phase::Fresh | Phase::Head | Phase::Busy | Phase::Idle | Phase::Closing => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipc::HandOver;

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
