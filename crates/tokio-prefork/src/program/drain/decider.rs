//! Decides, from what is observed, which connections of a draining program to half-close, and when to send the stop signal.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::connection_history::{CONFIRMED_QUIET, ConnectionHistory, IDLE_QUIET};
use crate::program::observe::{ConnectionScan, ProgramConnection, Visibility};

/// The shortest drain: a connection whose handshake was in progress when new ones were sent elsewhere arrives within this time.
const MIN_DRAIN: Duration = Duration::from_millis(50);
/// The longest time for which that is waited, however long the round trips are.
const MAX_HANDSHAKE_WAIT: Duration = Duration::from_secs(1);
/// How many looks in a row must show no connection: one may be on its way from the queue to the program.
const EMPTY_LOOKS: u32 = 3;
/// The most connections that are half-closed at once, so that their clients do not all connect again in the same moment.
const MAX_HALF_CLOSED_PER_LOOK: usize = 16;
/// How long to wait for connections that are never idle to end after all, and from then on for a moment without requests.
const NEVER_IDLE_WAIT: Duration = Duration::from_secs(2);
/// How long to wait for such a moment at most, counted from the start of the drain.
const MAX_NEVER_IDLE_WAIT: Duration = Duration::from_secs(3);
/// How long to wait until all connections are idle for a while, if none can be half-closed, before any moment without requests
/// will do.
const ALL_IDLE_WAIT: Duration = Duration::from_secs(1);
/// How long to wait for a moment without requests, if new connections keep coming.
const QUIET_MOMENT_WAIT: Duration = Duration::from_secs(2);
/// How much younger than the drain a new connection must be to show that new ones still come.
const LATE_ARRIVAL: Duration = Duration::from_millis(300);
/// How many such connections show it.
const LATE_ARRIVALS: u32 = 3;

/// What is known of a program before its drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DrainSettings {
    /// How long after the start of the drain the stop signal is sent at the latest.
    pub(crate) deadline: Duration,
    /// Whether a listening socket of the program is also that of other workers, so that new connections keep coming.
    pub(crate) shares_listener: bool,
    /// Whether the program has a handler of its own for the stop signal, so that it may end long connections in order.
    pub(crate) handles_stop_signal: bool,
    /// Whether the program ends each connection with its next response, so that only those without requests need to be
    /// half-closed.
    pub(crate) ends_connections: bool,
}

/// Why the stop signal is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopReason {
    /// The queue is empty, and no connection is left.
    Drained,
    /// New connections keep coming, because the socket is shared or nobody sends them elsewhere.
    StillGetsConnections,
    /// The connections that are left cannot be half-closed, and no request is in progress.
    OnlyIdleLeft,
    /// On the connections that are left one request follows the other, or they are streams that the program ends itself.
    NeverIdle,
    /// The kernel does not show the connections of the program.
    CannotSee,
    /// The time for the drain is over.
    Deadline,
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            StopReason::Drained => "no connection is left",
            StopReason::StillGetsConnections => "new connections keep coming",
            StopReason::OnlyIdleLeft => "only idle connections are left",
            StopReason::NeverIdle => "the connections that are left are never idle",
            StopReason::CannotSee => "the kernel does not show its connections",
            StopReason::Deadline => "the time for draining is over",
        })
    }
}

/// What to do after a look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    /// Half-close these connections, and look again.
    Wait {
        half_close: Vec<ProgramConnection>,
    },
    SendStopSignal(StopReason),
}

/// Decides how a program is drained. Has no clock and makes no system call.
#[derive(Debug)]
pub(super) struct DrainDecider {
    settings: DrainSettings,
    histories: BTreeMap<u64, ConnectionHistory>,
    looks: u64,
    empty_looks: u32,
    late_arrivals: u32,
    longest_round_trip: Duration,
}

impl DrainDecider {
    pub(super) fn new(settings: DrainSettings) -> DrainDecider {
        DrainDecider {
            settings,
            histories: BTreeMap::new(),
            looks: 0,
            empty_looks: 0,
            late_arrivals: 0,
            longest_round_trip: Duration::ZERO,
        }
    }

    /// Decides what to do, `now` after the start of the drain. `queued` connections wait to be accepted.
    pub(super) fn decide(&mut self, now: Duration, queued: u32, scan: &ConnectionScan) -> Decision {
        self.record(now, scan);
        if let Some(reason) = self.stop_reason(now, queued, scan) {
            return Decision::SendStopSignal(reason);
        }
        let mut half_close = Vec::new();
        if scan.visibility != Visibility::ReadOnly && !self.still_gets_connections() {
            let connections = scan.connections.iter();
            let min_quiet = self.settings.ends_connections.then_some(IDLE_QUIET);
            let idle = connections.filter(|one| {
                let history = self.histories.get(&one.inode);
                history.is_some_and(|one| {
                    one.is_idle() && min_quiet.is_none_or(|min| one.quiet() >= min)
                })
            });
            half_close.extend(idle.take(MAX_HALF_CLOSED_PER_LOOK).copied());
        }
        Decision::Wait { half_close }
    }

    /// Records that a connection was half-closed.
    pub(super) fn record_half_close(&mut self, connection: &ProgramConnection, now: Duration) {
        if let Some(history) = self.histories.get_mut(&connection.inode) {
            history.record_end_of_input(now);
        }
    }

    /// Returns how many connections were seen in the last look.
    pub(super) fn connections(&self) -> usize {
        self.histories.len()
    }

    fn record(&mut self, now: Duration, scan: &ConnectionScan) {
        self.looks += 1;
        for connection in &scan.connections {
            let Some(activity) = connection.activity else { continue };
            let looks = self.looks;
            let history = self
                .histories
                .entry(connection.inode)
                .and_modify(|history| history.record(activity))
                .or_insert_with(|| {
                    // Before the first response this is the time since the handshake.
                    let is_late = looks > 1
                        && activity.sent_bytes == 0
                        && activity.since_sent + LATE_ARRIVAL < now;
                    self.late_arrivals += u32::from(is_late);
                    ConnectionHistory::new(activity)
                });
            history.seen_in = self.looks;
            if history.is_finished() {
                history.record_end_of_input(now);
            }
            self.longest_round_trip = self.longest_round_trip.max(history.round_trip_time());
        }
        self.histories.retain(|_, history| history.seen_in == self.looks);
    }

    fn still_gets_connections(&self) -> bool {
        self.settings.shares_listener || self.late_arrivals >= LATE_ARRIVALS
    }

    fn stop_reason(
        &mut self,
        now: Duration,
        queued: u32,
        scan: &ConnectionScan,
    ) -> Option<StopReason> {
        if now >= self.settings.deadline {
            return Some(StopReason::Deadline);
        }
        let unread = scan.connections.iter().filter(|one| one.activity.is_none()).count();
        let has_unreadable = unread > 0;
        let all_look_idle = |quiet| self.histories.values().all(|one| one.looks_idle(quiet));
        let quiet = if now < ALL_IDLE_WAIT { CONFIRMED_QUIET } else { Duration::ZERO };
        let none_in_progress = !has_unreadable && all_look_idle(quiet);
        if self.still_gets_connections() {
            let is_now = (queued == 0 && none_in_progress) || now >= QUIET_MOMENT_WAIT;
            return is_now.then_some(StopReason::StillGetsConnections);
        }
        let left = self.histories.values().filter(|history| !history.ignores_end_of_input(now));
        let left: Vec<&ConnectionHistory> = left.collect();
        let is_empty = queued == 0 && left.is_empty() && !has_unreadable;
        self.empty_looks = if is_empty { self.empty_looks + 1 } else { 0 };
        let handshake_wait = (self.longest_round_trip * 2).clamp(MIN_DRAIN, MAX_HANDSHAKE_WAIT);
        if queued > 0 || now < handshake_wait {
            return None;
        }
        if self.empty_looks >= EMPTY_LOOKS {
            return Some(match scan.visibility {
                Visibility::Partial => StopReason::CannotSee,
                Visibility::Full | Visibility::ReadOnly => StopReason::Drained,
            });
        }
        if left.is_empty() {
            return None;
        }
        if scan.visibility == Visibility::ReadOnly && none_in_progress {
            return Some(StopReason::OnlyIdleLeft);
        }
        let is_endless = |history: &&ConnectionHistory| {
            history.is_hot() || (self.settings.handles_stop_signal && history.is_stream())
        };
        let is_now = (none_in_progress && now >= NEVER_IDLE_WAIT) || now >= MAX_NEVER_IDLE_WAIT;
        let never_idle = is_now && !has_unreadable && left.iter().all(is_endless);
        never_idle.then_some(StopReason::NeverIdle)
    }
}
