//! Measures how long a connection waited in the kernel's accept queue, and rejects it if that was too long.
//!
//! Each wait is counted. With `max-queue-wait`, a connection that waited longer is answered with 503 at once: most such
//! clients have given up, and serving them would make those behind them wait just as long.
//!
//! The kernel counts from the handshake, so it does not matter which process accepted the connection or how it came to
//! this worker. Unix sockets have no such time, and are never rejected. Nor are connections that a stop takes out of a
//! queue before it is closed.

use std::cell::Cell;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::dispatch::first_byte::NewConnection;
use crate::scoreboard::RequestRecorder;
use crate::text::{Count, HumanDuration};
use crate::worker::connection_registry::{ConnectionEntry, ConnectionGuard};
use crate::worker::http::connection_state::ConnectionPhase;
use crate::worker::http::lingering_socket::close_with_linger;
use crate::worker::http::serve_connection;
use crate::worker::lazy_stream::LazyStream;
use crate::worker::local_state::LocalWorkerState;

/// The response to a rejected connection. Has no body, as the request may be a HEAD.
pub(super) const REJECTION_RESPONSE: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n\
    Content-Length: 0\r\n\r\n";

/// The shortest time between two warnings.
const WARNING_INTERVAL_MS: u64 = 1000;

/// Rejected connections that were not logged yet.
#[derive(Default)]
pub(crate) struct RejectionLog {
    unlogged: Cell<u64>,
    longest: Cell<Duration>,
    /// When the last warning was logged.
    logged_ms: Cell<Option<u64>>,
}

impl RejectionLog {
    fn record(&self, waited: Duration) {
        self.unlogged.set(self.unlogged.get() + 1);
        self.longest.set(self.longest.get().max(waited));
    }

    /// Returns whether all rejections were reported.
    pub(crate) fn is_logged(&self) -> bool {
        self.unlogged.get() == 0
    }

    /// Returns how many connections to report at `now_ms`, and their longest wait; at most once a second.
    fn take_report(&self, now_ms: u64) -> Option<(u64, Duration)> {
        let is_due =
            self.logged_ms.get().is_none_or(|at| now_ms.saturating_sub(at) >= WARNING_INTERVAL_MS);
        if self.unlogged.get() == 0 || !is_due {
            return None;
        }
        self.logged_ms.set(Some(now_ms));
        Some((self.unlogged.take(), self.longest.take()))
    }
}

/// The resolution of the kernel's clock, at best (`CONFIG_HZ` is 1000 at most).
const KERNEL_TICK: Duration = Duration::from_millis(1);

/// Measures the waits of the connections of one queue, with as few system calls as possible.
///
/// A queue is in order: if one connection waited briefly, those accepted within the next tick waited at most a tick longer. The
/// kernel is not asked about them, as that costs as much as reading a request, and they count with the wait of that one.
#[derive(Default)]
pub(crate) struct QueueWaitSampler {
    /// The last short wait that the kernel reported, and when.
    short_wait: Cell<Option<(Instant, Duration)>>,
}

/// The longest wait that counts as short: 64 clients that connect anew for each request wait half of it for a busy worker.
const MAX_SHORT_WAIT: Duration = Duration::from_millis(5);

impl QueueWaitSampler {
    /// Returns how long `fd` waited, which was accepted at `now`; `None` if that is unknown. Exact enough to tell whether it waited
    /// longer than `limit`.
    pub(crate) fn measure(
        &self,
        fd: impl AsFd,
        is_unix: bool,
        now: Instant,
        limit: Option<Duration>,
    ) -> Option<Duration> {
        self.measure_with(now, limit, || measure_queue_wait(fd, is_unix))
    }

    fn measure_with(
        &self,
        now: Instant,
        limit: Option<Duration>,
        ask: impl FnOnce() -> Option<Duration>,
    ) -> Option<Duration> {
        if let Some((at, waited)) = self.short_wait.get()
            && now.duration_since(at) < KERNEL_TICK
            && !is_too_long(waited + KERNEL_TICK, limit.filter(|_| !waited.is_zero()))
        {
            return Some(waited);
        }
        let waited = ask();
        let short = waited.filter(|waited| *waited <= MAX_SHORT_WAIT);
        self.short_wait.set(short.map(|waited| (now, waited)));
        waited
    }
}

/// Returns how long `fd` waited, which was accepted just now; `None` if that is unknown.
pub(crate) fn measure_queue_wait(fd: impl AsFd, is_unix: bool) -> Option<Duration> {
    if is_unix { None } else { prefork_os::socket::connection_age(fd).ok() }
}

/// Returns whether a wait is over the limit, if there is one.
fn is_too_long(waited: Duration, limit: Option<Duration>) -> bool {
    limit.is_some_and(|limit| waited > limit)
}

/// Counts the wait of a new connection, and rejects it if that was too long. Returns it if it is to be served.
///
/// Only HTTP connections are rejected; with TLS without a response, as there was no handshake yet. Nothing may have been sent on the connection.
pub(crate) fn check_queue_wait(
    state: &Rc<LocalWorkerState>,
    connection: NewConnection,
    waited: Option<Duration>,
    is_http: bool,
) -> Option<NewConnection> {
    let Some(waited) = waited else { return Some(connection) };
    state.worker_page.record_queue_wait(waited);
    if !is_http || !is_too_long(waited, state.config.max_queue_wait) {
        return Some(connection);
    }
    state.worker_page.connection_shed();
    state.queue_wait_rejections.record(waited);
    reject(state, connection);
    None
}

/// Sends the 503 and closes so that it arrives, even if the client is still sending. With TLS, closes only.
fn reject(state: &Rc<LocalWorkerState>, connection: NewConnection) {
    // Not the time of the last heartbeat: after a long freeze that is so old that the connection would be cut at once.
    let now = LocalWorkerState::monotonic_ms();
    let entry = ConnectionEntry::new(now);
    entry.conn.set_phase(ConnectionPhase::Lingering, now);
    // A rejected connection counts as open until it is closed, so `worker-connections` bounds these as well.
    state.worker_page.connection_accepted();
    let guard = ConnectionGuard::new(state, &entry);
    let NewConnection { fd, is_tls: false, .. } = connection else { return };
    // The send buffer of a new socket is empty: an error means that the client is gone.
    let Ok(sent) = prefork_os::socket::write_nonblocking(&fd, REJECTION_RESPONSE) else {
        return;
    };
    state.worker_page.byte_meter().add_bytes_out(sent);
    let closing = tokio::task::spawn_local(close_with_linger(LazyStream::new(fd, false), || true));
    tokio::task::spawn_local(serve_connection::wait_or_abort_task(entry, guard, closing));
}

/// Logs how many connections were rejected, at most once a second. Called at each heartbeat.
pub(crate) fn report_queue_wait_rejections(state: &LocalWorkerState, now_ms: u64) {
    if let Some((count, longest)) = state.queue_wait_rejections.take_report(now_ms) {
        log::warn!(
            "{} answered 503 to {} that had waited longer than max-queue-wait (up to {}): \
             the workers do not keep up",
            state.tag,
            Count(count, "connection"),
            HumanDuration(longest)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_wait_is_too_long_over_the_limit_and_never_without_one() {
        assert!(!is_too_long(100 * MS, Some(100 * MS)));
        assert!(is_too_long(101 * MS, Some(100 * MS)));
        assert!(!is_too_long(3_600_000 * MS, None));
    }

    #[test]
    fn the_kernel_is_queried_after_a_tick_or_a_long_wait() {
        let (waits, begun) = (QueueWaitSampler::default(), Instant::now());
        let asked = Cell::new(0);
        let wait = |after: Duration, says: Option<u64>| {
            waits.measure_with(begun + after, Some(5 * MS), || {
                asked.set(asked.get() + 1);
                says.map(Duration::from_millis)
            })
        };
        // Time in tenths of a tick; the wait the kernel would report; the result; how often the kernel was asked.
        let steps = [
            (0, Some(8), Some(8), 1),
            (1, Some(4), Some(4), 2),
            (2, Some(700), Some(4), 2),
            (11, Some(5), Some(5), 3),
            // Together with a tick, this would be over the limit.
            (12, Some(0), Some(0), 4),
            (13, Some(700), Some(0), 4),
            (21, Some(700), Some(0), 4),
            (22, Some(700), Some(700), 5),
            (23, Some(0), Some(0), 6),
            (33, None, None, 7),
            (34, Some(0), Some(0), 8),
        ];
        for (tenths, says, said, times) in steps {
            let got = wait(tenths * KERNEL_TICK / 10, says);
            assert_eq!((got, asked.get()), (said.map(Duration::from_millis), times), "{tenths}");
        }
    }

    #[test]
    fn rejections_are_reported_once_a_second() {
        let rejections = RejectionLog::default();
        assert_eq!(rejections.take_report(5000), None);
        rejections.record(300 * MS);
        rejections.record(200 * MS);
        assert_eq!(rejections.take_report(5000), Some((2, 300 * MS)));
        rejections.record(150 * MS);
        assert_eq!(rejections.take_report(5999), None);
        rejections.record(400 * MS);
        assert_eq!(rejections.take_report(6000), Some((2, 400 * MS)));
        assert_eq!(rejections.take_report(7000), None);
    }
}
