//! What the supervisor knows, as plain data: for `status`, metrics and the service manager.

use std::time::Instant;

use super::{Phase, State, Supervisor};
use crate::identity::{Generation, Slot, WorkerTag};

/// The cluster as the primary knows it from its own memory.
#[derive(Debug, Clone)]
pub struct View {
    pub phase: &'static str,
    pub generation: Generation,
    /// How many workers of the kind `web` there should be.
    pub wanted: u32,
    /// And how many of each other kind.
    pub kinds: Vec<(&'static str, u32)>,
    pub restarts: u64,
    /// Slots that stay empty for now.
    pub vacant: Vec<Slot>,
    /// Every worker that exists or is being forked, oldest first.
    pub members: Vec<MemberView>,
}

/// One worker as the primary knows it.
#[derive(Debug, Clone)]
pub struct MemberView {
    pub tag: WorkerTag,
    pub state: &'static str,
    /// When its fork was decided.
    pub born: Instant,
}

impl Supervisor {
    /// A copy of what is known now.
    pub fn view(&self) -> View {
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
            kinds: self.wanted_of_kinds(),
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
