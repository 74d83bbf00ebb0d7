//! Drains a program that knows nothing of draining: from outside, before its stop signal.
//!
//! New connections go to other workers by then. The program takes what is left in its accept queue. Connections that are idle
//! between two requests are half-closed (`shutdown(SHUT_RD)` on a copy of the socket): the program reads the end of the stream
//! and closes them, as if the client had. When none is left, the stop signal can do no harm.

mod connection_history;
mod decider;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::observe::{HalfClose, ProgramObserver};
use decider::{Decision, DrainDecider};

pub(crate) use decider::{DrainSettings, StopReason};

/// The shortest time between two checks of the connections.
const CHECK_INTERVAL: Duration = Duration::from_millis(5);
/// The longest.
const MAX_CHECK_INTERVAL: Duration = Duration::from_millis(200);
/// The time between two checks is at least this multiple of what a check takes: thousands of connections must not keep a core busy.
const CHECK_COST_FACTOR: u32 = 8;

/// How long handshakes that are in progress are waited for: a round trip, and a repeated segment.
const MAX_HANDSHAKE_TIME: Duration = Duration::from_millis(1300);

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
    /// The clients whose handshakes were in progress when new connections were sent elsewhere. Theirs still come here, or to a
    /// worker that has begun its handshake.
    in_handshake: BTreeSet<SocketAddr>,
    half_closed: u32,
}

impl ProgramDrain {
    pub(crate) fn new(
        settings: DrainSettings,
        now: Instant,
        observer: &ProgramObserver,
    ) -> ProgramDrain {
        ProgramDrain {
            started: now,
            decider: DrainDecider::new(settings),
            in_handshake: observer.clients_in_handshake(),
            half_closed: 0,
        }
    }

    /// Looks at the program once, half-closes idle connections, and says what comes next.
    pub(crate) fn step(&mut self, now: Instant, observer: &mut ProgramObserver) -> DrainStep {
        // The queue first: a connection that is accepted in between is seen among the connections.
        let elapsed = now.saturating_duration_since(self.started);
        let queued =
            self.handshakes(elapsed, observer).saturating_add(observer.acceptable_connections());
        let scan = observer.connections();
        match self.decider.decide(elapsed, queued, &scan) {
            Decision::SendStopSignal(reason) => DrainStep::SendStopSignal(reason),
            Decision::Wait { half_close } => {
                for connection in &half_close {
                    if observer.half_close(connection) == HalfClose::Done {
                        self.half_closed += 1;
                        self.decider.record_half_close(connection, elapsed);
                    }
                }
                let wait = now.elapsed() * CHECK_COST_FACTOR;
                DrainStep::Wait(wait.clamp(CHECK_INTERVAL, MAX_CHECK_INTERVAL))
            }
        }
    }

    /// Returns how many handshakes that were in progress at the start of the drain still are.
    fn handshakes(&mut self, elapsed: Duration, observer: &ProgramObserver) -> u32 {
        if elapsed >= MAX_HANDSHAKE_TIME {
            self.in_handshake.clear();
        } else if !self.in_handshake.is_empty() {
            let now = observer.clients_in_handshake();
            self.in_handshake.retain(|client| now.contains(client));
        }
        u32::try_from(self.in_handshake.len()).unwrap_or(u32::MAX)
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
