//! One worker process, from the decision to fork it to its reaping.
//!
//! | state | entered by | what ends it |
//! |---|---|---|
//! | `Forking` | action `Fork` | `Forked` -> `Booting`; `ForkFailed` -> gone |
//! | `Booting` | `Forked` | `Ready` -> `Serving`; its deadline -> `Killed` |
//! | `Serving` | `Ready` | `Retiring`, a stop -> `Draining`; its channel closes -> `Leaving` |
//! | `Draining` | told or asked to leave | exits by itself; its deadline -> `Killed` |
//! | `Leaving` | channel closed unasked | exits by itself; its deadline -> `Killed` |
//! | `Aborted` | action `Abort` | dumps core; its deadline -> `Killed` |
//! | `Killed` | action `Kill` | the kernel ends it |
//!
//! `Exited` ends each of them but `Forking`, at any time.

use std::time::{Duration, Instant};

use super::action::{DrainReason, ExitCause, RecycleReason};
use crate::identity::{Slot, WorkerTag};

/// What a worker is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerState {
    Forking,
    Booting { deadline: Instant },
    Serving,
    Draining { deadline: Instant },
    Exiting { deadline: Instant },
    Aborted { deadline: Instant },
    Killed { reason: ExitCause },
}

/// One worker.
#[derive(Debug, Clone)]
pub struct WorkerRecord {
    pub tag: WorkerTag,
    pub state: WorkerState,
    /// When its fork was decided.
    pub born: Instant,
    /// When it became ready, if it has been.
    pub ready: Option<Instant>,
    /// Whether its end, however early, is no sign of a crash loop.
    pub(super) proven: bool,
    /// Why it cannot start, in its own words.
    pub(super) complaint: Option<String>,
    /// Why it is to leave, if it is.
    pub(super) leave: Option<DrainReason>,
    /// The limit that its successor was forked for.
    pub(super) worn: Option<RecycleReason>,
    /// Whether it was said that it runs.
    pub(super) online: bool,
    /// Whether it was said that its channel is closed.
    pub(super) disconnected: bool,
    /// Who took its place before it was gone.
    pub(super) replaced_by: Option<WorkerTag>,
    /// Whether it was born with the sockets of its slot, and not with a shared one.
    pub(super) own_socket: bool,
    /// Whether it had all the connections it may have when it was last looked at.
    pub(super) full: bool,
    /// What we know of its event loop.
    pub(super) pulse: Pulse,
    /// Where its share of the recycling limits lies: 0 is the whole limit, 1 is four fifths of it. Workers
    /// that started together should not end together.
    pub(super) spread: f64,
}

/// The event loop of a worker as it was seen the last times.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pulse {
    /// The last beat, if it was looked at.
    pub(super) beat: Option<u64>,
    /// For how long that beat has been the last, as far as we were awake to see it.
    pub(super) still: Duration,
    /// Whether whoever waits for it should not: see `watch::LATE`.
    pub(super) late: bool,
    /// Whether a signal has stopped all of it, by the kernel's word.
    pub(super) stopped: bool,
    /// Whether it was reported.
    pub(super) reported: bool,
}

impl WorkerRecord {
    pub(super) fn new(tag: WorkerTag, now: Instant, spread: f64) -> WorkerRecord {
        let (ready, complaint, pulse) = (None, None, Pulse::default());
        WorkerRecord {
            tag,
            state: WorkerState::Forking,
            born: now,
            ready,
            proven: false,
            complaint,
            leave: None,
            worn: None,
            online: false,
            disconnected: false,
            replaced_by: None,
            own_socket: false,
            full: false,
            pulse,
            spread,
        }
    }

    /// Whether it takes new connections now, as far as we know.
    pub(super) fn is_able(&self) -> bool {
        let turns = !self.pulse.late && !self.pulse.stopped;
        self.tag.slot.is_web() && self.state == WorkerState::Serving && turns && !self.full
    }

    /// The slot whose sockets it was born with. Workers without sockets of their own share those of slot 0.
    pub(super) fn own_slot(&self) -> Slot {
        if self.own_socket { self.tag.slot } else { Slot(0) }
    }

    /// When something has to be done about it, if nothing else happens.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.state {
            WorkerState::Booting { deadline }
            | WorkerState::Draining { deadline }
            | WorkerState::Exiting { deadline }
            | WorkerState::Aborted { deadline } => Some(deadline),
            WorkerState::Forking | WorkerState::Serving | WorkerState::Killed { .. } => None,
        }
    }

    /// Why it ended, given that it has.
    pub(super) fn cause(&self) -> ExitCause {
        match self.state {
            WorkerState::Killed { reason } => reason,
            WorkerState::Aborted { .. } => ExitCause::Stalled,
            WorkerState::Draining { .. } => ExitCause::Drained,
            WorkerState::Forking | WorkerState::Booting { .. } => ExitCause::BootFailed,
            WorkerState::Serving | WorkerState::Exiting { .. } if self.ready.is_some() => {
                ExitCause::Unexpected
            }
            WorkerState::Serving | WorkerState::Exiting { .. } => ExitCause::BootFailed,
        }
    }

    /// Whether its end says that such workers may not come up.
    pub(super) fn is_young(&self, now: Instant, min_uptime: Duration) -> bool {
        !self.proven && self.served_for(now).is_none_or(|uptime| uptime < min_uptime)
    }

    /// How long it had been ready.
    pub(super) fn served_for(&self, now: Instant) -> Option<Duration> {
        self.ready.map(|since| now.duration_since(since))
    }
}
