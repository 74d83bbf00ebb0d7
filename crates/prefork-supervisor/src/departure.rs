//! The first part of a stop (`drain-delay`): balancers are told, by `/readyz`, while all goes on as before. What is
//! already on its way to us is served, workers that die are replaced, and nothing new is begun.

use std::time::{Duration, Instant};

use super::Supervisor;
use super::action::{Action, LogEvent};
use crate::command::Requester;

/// A stop that was asked for and has not begun.
#[derive(Debug)]
pub(super) struct Departure {
    /// Who asked, for the log.
    by: String,
    /// When the stop begins.
    until: Instant,
}

impl Supervisor {
    /// Whether the cluster stops, or is about to: nobody new should be sent here.
    pub fn is_stop_requested(&self) -> bool {
        self.is_stopping() || self.departure.is_some()
    }

    pub(super) fn departure_deadline(&self) -> Option<Instant> {
        self.departure.as_ref().map(|departure| departure.until)
    }

    /// The first request to stop. Where nobody serves there is nobody to be sent elsewhere.
    pub(super) fn announce_stop(&mut self, now: Instant, by: Requester, actions: &mut Vec<Action>) {
        let delay = self.policy.drain_delay;
        if delay.is_zero() || self.serving() == 0 {
            return self.stop(now, by, actions);
        }
        self.stop_began = Some(now);
        self.departure = Some(Departure { by: by.name.clone(), until: now + delay });
        actions.push(Action::Log(LogEvent::StopDelayed { by: by.name.clone(), delay }));
        by.confirm(format!("stopping: connections are accepted for {}", told(delay)), actions);
    }

    /// A second request: the rest of the delay is not waited for.
    pub(super) fn depart_early(&mut self, now: Instant, by: Requester, actions: &mut Vec<Action>) {
        self.stop(now, by, actions);
    }

    /// Begins the stop when the delay is over.
    pub(super) fn depart(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if let Some(departure) = self.departure.take_if(|departure| departure.until <= now) {
            self.stop(now, Requester::without_reply(departure.by), actions);
        }
    }
}

fn told(delay: Duration) -> String {
    format!("{:.1} s more (drain-delay)", delay.as_secs_f64())
}
