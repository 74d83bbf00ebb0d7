//! How long a connection waited in the kernel's queue: each wait is counted, and with `max-queue-wait` one that
//! was too long is answered with 503 at once. Whoever waited for that long has mostly given up, and work for
//! them would make those behind them wait just as long.
//!
//! The kernel counts from the handshake, so it does not matter who took the connection out of the queue, nor by
//! which way it came to this worker. Unix sockets do not tell, and are never refused. Nor are those that a stop
//! takes out of the queue before it is closed.

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::scoreboard::Row;
use crate::text::HumanDuration;
use crate::worker::connection_registry::{ConnectionEntry, ConnectionGuard};
use crate::worker::http::connection_state::ConnectionPhase;
use crate::worker::http::hyper_io::close_with_linger;
use crate::worker::http::serve_connection;
use crate::worker::lazy_stream::LazyStream;
use crate::worker::local_state::LocalWorkerState;

/// Without a body, as this may be the answer to a HEAD.
const REFUSAL: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n\
    Content-Length: 0\r\n\r\n";

/// At least so long is between two lines of the log.
const QUIET_MS: u64 = 1000;

/// Connections that were refused since the log last said so.
#[derive(Default)]
pub(crate) struct Shedding {
    unsaid: Cell<u64>,
    longest: Cell<Duration>,
    /// When it was last said.
    said_ms: Cell<Option<u64>>,
}

impl Shedding {
    fn note(&self, waited: Duration) {
        self.unsaid.set(self.unsaid.get() + 1);
        self.longest.set(self.longest.get().max(waited));
    }

    /// What is to be said at `now_ms`: how many, and how long the longest wait was.
    fn due(&self, now_ms: u64) -> Option<(u64, Duration)> {
        let quiet = self.said_ms.get().is_none_or(|said| now_ms.saturating_sub(said) >= QUIET_MS);
        if self.unsaid.get() == 0 || !quiet {
            return None;
        }
        self.said_ms.set(Some(now_ms));
        Some((self.unsaid.take(), self.longest.take()))
    }
}

/// The shortest tick of the kernel's clock: its steps are not finer (`CONFIG_HZ` is 1000 at most).
const TICK: Duration = Duration::from_millis(1);

/// How long the connections of one queue waited, as they are taken from it.
///
/// A queue is in order: if the kernel said that one waited for less than a tick, those that are taken within the next
/// tick cannot have waited for longer than that and a tick. They are not asked for, as asking costs as much as reading
/// a request.
#[derive(Default)]
pub(crate) struct Waits {
    /// When the kernel said so last.
    short_at: Cell<Option<Instant>>,
}

impl Waits {
    /// How long `fd` waited, which was taken `now`; `None` if nobody can tell.
    pub(crate) fn of(&self, fd: impl AsFd, unix: bool, now: Instant) -> Option<Duration> {
        self.at(now, || wait_of(fd, unix))
    }

    fn at(&self, now: Instant, ask: impl FnOnce() -> Option<Duration>) -> Option<Duration> {
        if self.short_at.get().is_some_and(|at| now.duration_since(at) < TICK) {
            return Some(Duration::ZERO);
        }
        let waited = ask();
        self.short_at.set(waited.filter(Duration::is_zero).map(|_| now));
        waited
    }
}

/// How long `fd` waited, which was accepted just now; `None` if nobody can tell.
pub(crate) fn wait_of(fd: impl AsFd, unix: bool) -> Option<Duration> {
    // If the kernel does not tell, the connection is as good as any other.
    if unix { None } else { prefork_os::socket::connection_age(fd).ok() }
}

/// Whether so long a wait is too long; a bound of zero is none.
fn is_too_long(waited: Duration, most: Duration) -> bool {
    !most.is_zero() && waited > most
}

/// Counts how long the newly accepted `fd` waited. It is given back, unless that was too long and it is for HTTP: then
/// it is refused here, beside all else that the worker does. Nothing may have been sent on it.
pub(crate) fn admit(
    state: &Rc<LocalWorkerState>,
    fd: OwnedFd,
    waited: Option<Duration>,
    http: bool,
) -> Option<OwnedFd> {
    let Some(waited) = waited else { return Some(fd) };
    state.row.waited(waited);
    if !http || !is_too_long(waited, state.config.max_queue_wait) {
        return Some(fd);
    }
    state.row.shed();
    state.shedding.note(waited);
    refuse(state, fd);
    None
}

/// Answers and closes in such a way that the answer arrives, whatever the client has sent and still sends.
fn refuse(state: &Rc<LocalWorkerState>, fd: OwnedFd) {
    // Not the time of the last beat: what was queued for long comes to a loop that has been frozen for long, and
    // would be cut at once.
    let now = LocalWorkerState::monotonic_ms();
    let entry = ConnectionEntry::new(now);
    entry.conn.set_phase(ConnectionPhase::Lingering, now);
    // It counts as open until it is closed: `worker-connections` bounds these, too.
    state.row.opened();
    let guard = ConnectionGuard::new(state, &entry);
    // The buffer of a new socket is empty, so all of it goes in; if not, the client is gone.
    let Ok(sent) = prefork_os::socket::write_nonblocking(&fd, REFUSAL) else { return };
    state.row.meter().bytes_out(sent);
    let closing = tokio::task::spawn_local(close_with_linger(LazyStream::new(fd, false), || true));
    tokio::task::spawn_local(serve_connection::wait_or_abort_task(entry, guard, closing));
}

/// Called once a beat: says how many were refused, at most once a second.
pub(crate) fn report(state: &LocalWorkerState, now_ms: u64) {
    if let Some((count, longest)) = state.shedding.due(now_ms) {
        let plural = if count == 1 { "" } else { "s" };
        log::warn!(
            "{} answered 503 to {count} connection{plural} that had waited longer than max-queue-wait (up to {}): \
             the workers do not keep up",
            state.tag,
            HumanDuration(longest)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_wait_is_too_long_beyond_the_bound_and_never_without_one() {
        assert!(!is_too_long(100 * MS, 100 * MS));
        assert!(is_too_long(101 * MS, 100 * MS));
        assert!(!is_too_long(3_600_000 * MS, Duration::ZERO));
    }

    #[test]
    fn the_kernel_is_asked_again_after_a_tick_and_as_long_as_waits_are_long() {
        let (waits, begun) = (Waits::default(), Instant::now());
        let asked = Cell::new(0);
        let wait = |after: Duration, says: Option<u64>| {
            waits.at(begun + after, || {
                asked.set(asked.get() + 1);
                says.map(Duration::from_millis)
            })
        };
        // When it is looked at, in tenths of a tick; what the kernel would say; what is said; how often it was asked.
        let steps = [
            (0, Some(8), Some(8), 1),
            (1, Some(4), Some(4), 2),
            (2, Some(0), Some(0), 3),
            (3, Some(700), Some(0), 3),
            (11, Some(700), Some(0), 3),
            (12, Some(700), Some(700), 4),
            (13, Some(0), Some(0), 5),
            (23, None, None, 6),
            (24, Some(0), Some(0), 7),
        ];
        for (tenths, says, said, times) in steps {
            let got = wait(tenths * TICK / 10, says);
            assert_eq!((got, asked.get()), (said.map(Duration::from_millis), times), "{tenths}");
        }
    }

    #[test]
    fn the_log_says_all_of_them_but_once_a_second_only() {
        let shedding = Shedding::default();
        assert_eq!(shedding.due(5000), None);
        shedding.note(300 * MS);
        shedding.note(200 * MS);
        assert_eq!(shedding.due(5000), Some((2, 300 * MS)));
        shedding.note(150 * MS);
        assert_eq!(shedding.due(5999), None);
        shedding.note(400 * MS);
        assert_eq!(shedding.due(6000), Some((2, 400 * MS)));
        assert_eq!(shedding.due(7000), None);
    }
}
