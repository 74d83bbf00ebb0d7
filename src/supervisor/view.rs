//! What the supervisor knows, as plain data: for `status`, metrics and the service manager.

use std::time::Instant;

use super::{Phase, State, Supervisor};
use crate::identity::{Generation, Slot, WorkerTag};

/// The cluster as the primary knows it from its own memory.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) phase: &'static str,
    pub(crate) generation: Generation,
    /// How many workers there should be.
    pub(crate) wanted: u32,
    pub(crate) restarts: u64,
    /// Slots that stay empty for now.
    pub(crate) vacant: Vec<Slot>,
    /// Every worker that exists or is being forked, oldest first.
    pub(crate) members: Vec<MemberView>,
}

/// One worker as the primary knows it.
#[derive(Debug, Clone)]
pub(crate) struct MemberView {
    pub(crate) tag: WorkerTag,
    pub(crate) state: &'static str,
    /// When its fork was decided.
    pub(crate) born: Instant,
}

impl Supervisor {
    /// A copy of what is known now.
    pub(crate) fn view(&self) -> View {
        let members = self.members.values().map(|member| MemberView {
            tag: member.tag,
            state: member.state.name(),
            born: member.born,
        });
        View {
            phase: match self.roll {
                _ if self.departure.is_some() => Phase::Stopping.name(),
                Some(_) if self.phase == Phase::Running => "reloading",
                _ => self.phase.name(),
            },
            generation: self.generation,
            wanted: self.wanted(),
            restarts: self.restarts,
            vacant: self.vacant(),
            members: members.collect(),
        }
    }
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Phase::Booting => "booting",
            Phase::Running => "running",
            Phase::Stopping => "stopping",
            Phase::Ending(_) => "ending",
            Phase::Done => "done",
        }
    }
}

impl State {
    fn name(self) -> &'static str {
        match self {
            State::Forking => "forking",
            State::Booting { .. } => "booting",
            State::Serving => "serving",
            State::Draining { .. } => "draining",
            State::Leaving { .. } => "leaving",
            State::Aborted { .. } => "aborted",
            State::Killed { .. } => "killed",
        }
    }
}
