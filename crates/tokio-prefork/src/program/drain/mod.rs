//! Drains a program that knows nothing of draining: from outside, before its stop signal.
//!
//! New connections go to other workers by then. The program takes what is left in its accept queue. Connections that are idle
//! between two requests are half-closed (`shutdown(SHUT_RD)` on a copy of the socket): the program reads the end of the stream
//! and closes them, as if the client had. When none is left, the stop signal can do no harm.

mod connection_history;
mod decider;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use super::observe::{HalfClose, ProgramObserver};
use decider::{Decision, DrainDecider};

pub(crate) use decider::{DrainSettings, StopReason};

/// The shortest time between two looks at the connections.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
/// The longest.
const MAX_LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// The time between two looks is at least so many times what a look takes: thousands of connections must not keep a core busy.
const LOOK_COST_FACTOR: u32 = 8;

/// What the guard does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DrainStep {
    /// Calls again after this time.
    Wait(Duration),
    /// Sends the stop signal.
    SendStopSignal(StopReason),
}

/// The drain of a program in progress.
#[derive(Debug)]
pub(crate) struct ProgramDrain {
    started: Instant,
    decider: DrainDecider,
    half_closed: u32,
}

impl ProgramDrain {
    pub(crate) fn new(settings: DrainSettings, now: Instant) -> ProgramDrain {
        ProgramDrain { started: now, decider: DrainDecider::new(settings), half_closed: 0 }
    }

    /// Looks at the program once, half-closes idle connections, and says what comes next.
    pub(crate) fn step(&mut self, now: Instant, observer: &mut ProgramObserver) -> DrainStep {
        // The queue first: a connection that is accepted in between is seen among the connections.
        let queued = observer.queued_connections();
        let scan = observer.connections();
        let elapsed = now.saturating_duration_since(self.started);
        match self.decider.decide(elapsed, queued, &scan) {
            Decision::SendStopSignal(reason) => DrainStep::SendStopSignal(reason),
            Decision::Wait { half_close } => {
                for connection in &half_close {
                    if observer.half_close(connection) == HalfClose::Done {
                        self.half_closed += 1;
                        self.decider.record_half_close(connection, elapsed);
                    }
                }
                let wait = now.elapsed() * LOOK_COST_FACTOR;
                DrainStep::Wait(wait.clamp(LOOK_INTERVAL, MAX_LOOK_INTERVAL))
            }
        }
    }

    /// Returns how many connections were half-closed.
    pub(crate) fn half_closed(&self) -> u32 {
        self.half_closed
    }

    /// Returns how many connections the last look has shown.
    pub(crate) fn connections(&self) -> usize {
        self.decider.connections()
    }
}
