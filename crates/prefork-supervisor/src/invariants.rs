//! Invariants: what holds after every event, whatever the workers do.
//!
//! The simulator checks them at each step, against the supervisor's real state and against what the checker itself
//! remembers.

mod added_workers;
mod demand;
mod generations;
mod health_samples;
mod listening;
mod log_order;
mod slot_sockets;
mod upgrade;

use std::collections::BTreeSet;
use std::fmt;
use std::time::Instant;

use crate::crash_backoff::ForkAllowance;
use crate::reload::Rollout;
use crate::slot_table::{RestartPolicy, SlotEntry};
use crate::supervisor::{ClusterPhase, Supervisor};
use crate::worker_identity::{WorkerId, WorkerTag};
use crate::worker_table::WorkerState;
use crate::{Action, Event, LogEvent, SavedState};

/// Checks the invariants against its own record of events and actions, independent of the supervisor's state.
#[derive(Debug, Default)]
pub(crate) struct InvariantChecker {
    /// Requested forks without a result.
    pending_forks: BTreeSet<WorkerId>,
    alive: BTreeSet<WorkerId>,
    drained: BTreeSet<WorkerId>,
    killed: BTreeSet<WorkerId>,
    used_ids: BTreeSet<WorkerId>,
    are_listeners_closed: bool,
    has_exited: bool,
    /// The ids of expected replies.
    pending_replies: BTreeSet<u64>,
    upgrade: upgrade::UpgradeChecker,
    added_workers: added_workers::AddedWorkerChecker,
    generations: generations::GenerationChecker,
    health_samples: health_samples::HealthSampleChecker,
    slot_sockets: slot_sockets::SlotSocketChecker,
    log_order: log_order::LogOrderChecker,
    listening: listening::ListeningChecker,
}

/// The state before an event.
#[derive(Debug)]
pub(crate) struct StateBeforeEvent {
    phase: ClusterPhase,
    allowance: ForkAllowance,
    backoff_deadline: Option<Instant>,
    restart_count: u64,
    setup: upgrade::ClusterSetup,
}

/// The message that is printed when an invariant is violated. It is formatted only then.
struct InvariantViolation<'a> {
    before: &'a StateBeforeEvent,
    event: &'a Event,
    actions: &'a [Action],
    supervisor: &'a Supervisor,
}

impl fmt::Display for InvariantViolation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let InvariantViolation { before, event, actions, supervisor } = self;
        write!(f, "{before:#?}, then {event:?}, gave {actions:#?} and {supervisor:#?}")
    }
}

impl StateBeforeEvent {
    pub(crate) fn capture_state(supervisor: &Supervisor) -> StateBeforeEvent {
        StateBeforeEvent {
            phase: supervisor.phase,
            allowance: supervisor.backoff.fork_allowance(),
            backoff_deadline: supervisor.backoff.deadline(),
            restart_count: supervisor.restart_count(),
            setup: upgrade::ClusterSetup::capture_state(supervisor),
        }
    }
}

impl InvariantChecker {
    pub(crate) fn check_invariants(
        &mut self,
        before: &StateBeforeEvent,
        now: Instant,
        supervisor: &Supervisor,
        event: &Event,
        actions: &[Action],
    ) {
        let violation = &InvariantViolation { before, event, actions, supervisor };
        self.record_event(event);
        self.health_samples.record_event(now, event);
        assert!(!self.has_exited || actions.is_empty(), "Exit is the last action: {violation}");
        for action in actions {
            self.check_action(action, supervisor, violation);
            self.health_samples.check_health_sample_action(action, supervisor, violation);
        }
        self.health_samples.check_health_sample_invariants(now, supervisor, violation);
        self.log_order.check_log_order_invariants(event, actions, violation);
        self.listening.check_listening_invariants(supervisor, actions, violation);
        self.slot_sockets.check_slot_socket_invariants(supervisor, event, actions, violation);
        self.added_workers.check_added_worker_invariants(event, actions, violation);
        self.generations.check_generation_invariants(supervisor, event, actions, violation);
        self.upgrade.check_upgrade_invariants(now, supervisor, event, actions, violation);
        demand::check_demand_invariants(supervisor, event, actions, violation);
        self.check_worker_table(supervisor, violation);
        check_slot_holders(supervisor, violation);
        check_phase_order(before, supervisor, violation);
        check_backoff(before, now, supervisor, event, actions, violation);
        self.check_progress(supervisor, violation);
        if *event == Event::DeadlineReached {
            let has_moved = supervisor.next_deadline().is_none_or(|deadline| deadline > now);
            assert!(has_moved, "a reached deadline is handled: {violation}");
        }
        let restarted = supervisor.restart_count() - before.restart_count;
        assert!(restarted <= 1, "one event ends at most one worker: {violation}");
    }

    /// Returns whether workers of several generations may serve for now.
    pub(crate) fn allows_mixed_generations(&self) -> bool {
        self.generations.may_mix_generations()
    }

    /// Continues with the new binary of an upgrade, while the workers in `alive` run on.
    pub(crate) fn continue_after_upgrade(
        &mut self,
        supervisor: &Supervisor,
        saved: &SavedState,
        alive: BTreeSet<WorkerId>,
        now: Instant,
    ) {
        let passed: BTreeSet<u64> =
            saved.upgrade_requesters.iter().filter_map(|one| one.reply_id).collect();
        assert_eq!(self.pending_replies, passed, "pending replies are passed on: {saved:?}");
        self.upgrade.continue_after_upgrade(supervisor, saved, now);
        self.generations.continue_after_upgrade(supervisor);
        self.added_workers.continue_after_upgrade(saved);
        self.slot_sockets.continue_after_upgrade(saved);
        self.health_samples = health_samples::HealthSampleChecker::default();
        self.listening = listening::ListeningChecker::default();
        self.log_order.continue_after_upgrade(&alive);
        self.pending_forks.clear();
        // The new binary may repeat drains and kills of the old one.
        self.drained.clear();
        self.killed.clear();
        self.alive = alive;
        let known: BTreeSet<WorkerId> = supervisor.workers.ids().into_iter().collect();
        assert_eq!(known, self.alive, "all living workers are known: {saved:?}, {supervisor:#?}");
    }

    fn record_event(&mut self, event: &Event) {
        match event {
            Event::Forked { worker, .. } => {
                self.alive.extend(self.pending_forks.take(worker));
            }
            Event::ForkFailed { worker, .. } => drop(self.pending_forks.remove(worker)),
            Event::Exited { worker, .. } => {
                self.pending_forks.remove(worker);
                self.alive.remove(worker);
            }
            Event::CommandReceived { by, .. } => {
                let is_new = by.reply_id.is_none_or(|id| self.pending_replies.insert(id));
                assert!(is_new, "the test uses each reply id once");
            }
            _ => {}
        }
    }

    fn check_action(
        &mut self,
        action: &Action,
        supervisor: &Supervisor,
        violation: &InvariantViolation<'_>,
    ) {
        let is_stopping = supervisor.is_stopping();
        match action {
            Action::Fork(tag) => {
                assert!(!is_stopping, "no fork during a stop: {violation}");
                assert!(self.used_ids.insert(tag.id), "no id is used again: {violation}");
                let mut entries = supervisor.slots.iter();
                let is_known = entries.any(|one| (one.slot, one.kind) == (tag.slot, tag.kind));
                assert!(tag.pid.is_none() && is_known, "the tag names a slot: {violation}");
                self.pending_forks.insert(tag.id);
            }
            Action::CloseListeners => {
                let is_allowed = is_stopping && !self.are_listeners_closed;
                assert!(is_allowed, "listeners are closed once, to stop: {violation}");
                self.are_listeners_closed = true;
            }
            Action::Drain(worker) => {
                let is_allowed = self.are_listeners_closed || !is_stopping;
                assert!(is_allowed, "listeners close before all workers drain: {violation}");
                assert!(self.alive.contains(worker), "only living workers drain: {violation}");
                assert!(!self.killed.contains(worker), "no killed worker drains: {violation}");
                assert!(self.drained.insert(*worker), "no worker drains twice: {violation}");
            }
            Action::Kill(worker) => {
                assert!(self.alive.contains(worker), "only living workers are killed: {violation}");
                assert!(self.killed.insert(*worker), "no worker is killed twice: {violation}");
            }
            Action::Abort(worker) => {
                assert!(self.alive.contains(worker), "only living workers abort: {violation}");
                assert!(!self.killed.contains(worker), "no killed worker aborts: {violation}");
            }
            Action::Log(LogEvent::AllReady { workers }) => {
                let open = supervisor.slots.iter().filter(|entry| !entry.is_kept_empty());
                let is_all = open.clone().count() == *workers as usize;
                let are_served = open.into_iter().all(|one| one.is_served(&supervisor.workers));
                assert!(is_all && are_served, "all workers are ready: {violation}");
            }
            Action::Reply { reply_id, .. } => {
                let is_pending = self.pending_replies.remove(reply_id);
                assert!(is_pending, "each command has one reply: {violation}");
            }
            Action::Log(_) | Action::ReadConfig(_) | Action::ConfirmRestart(_) => {}
            Action::KeepIdleWorker(_) => {}
            Action::OpenSockets { .. } | Action::AdoptSlot { .. } => {}
            Action::ReleaseSlot { .. } | Action::SetDispatchTarget { .. } => {}
            Action::StartUpgradeCheck | Action::StopUpgradeCheck | Action::ExecNewBinary => {}
            Action::HoldConnections | Action::ConfirmEmpty => {}
            Action::RefuseConnections | Action::ResumeListening => {}
            Action::KeepGenerations(_) | Action::SampleHealth { .. } => {}
            Action::Exit(_) => {
                assert!(self.pending_replies.is_empty(), "all replies were sent: {violation}");
                let is_first = !self.has_exited && supervisor.phase == ClusterPhase::Done;
                assert!(is_first, "the primary exits once: {violation}");
                let is_empty = self.alive.is_empty() && self.pending_forks.is_empty();
                assert!(is_empty, "no worker is left: {violation}");
                self.has_exited = true;
            }
        }
    }

    fn check_worker_table(&self, supervisor: &Supervisor, violation: &InvariantViolation<'_>) {
        let existing: BTreeSet<WorkerId> = self.alive.union(&self.pending_forks).copied().collect();
        let known: BTreeSet<WorkerId> = supervisor.workers.ids().into_iter().collect();
        assert_eq!(known, existing, "the table has the living and the forking: {violation}");
        for record in supervisor.workers.iter() {
            let is_forking = self.pending_forks.contains(&record.tag.id);
            assert_eq!(record.state == WorkerState::Forking, is_forking, "forks: {violation}");
            let is_killed = matches!(record.state, WorkerState::Killed { .. });
            assert_eq!(is_killed, self.killed.contains(&record.tag.id), "kills: {violation}");
        }
    }

    /// Checks that every unfinished state has a pending result, a deadline or a kernel event that ends it.
    fn check_progress(&self, supervisor: &Supervisor, violation: &InvariantViolation<'_>) {
        if supervisor.phase == ClusterPhase::Done {
            return assert!(self.has_exited, "Done comes with Exit: {violation}");
        }
        let has_workers = !self.alive.is_empty() || !self.pending_forks.is_empty();
        let mut entries = supervisor.slots.iter();
        let is_kept_empty = entries.all(|entry| entry.restart != RestartPolicy::Restart);
        assert!(
            is_kept_empty || has_workers || supervisor.next_deadline().is_some(),
            "there is something to wait for: {violation}"
        );
        let has_empty_slot = supervisor.slots.iter().any(|entry| {
            let is_empty = entry.holder.is_none() && entry.successor.is_none();
            let is_full = supervisor.workers.is_slot_full(entry.slot);
            is_empty && entry.restart == RestartPolicy::Restart && !is_full
        });
        if supervisor.is_stopping() || !has_empty_slot {
            return;
        }
        let backoff = &supervisor.backoff;
        assert_eq!(
            backoff.fork_allowance(),
            ForkAllowance::None,
            "what may fork forks: {violation}"
        );
        let probe =
            backoff.probe_worker().is_some_and(|probe| supervisor.workers.get(probe).is_some());
        let is_delayed = backoff.deadline().is_some();
        assert!(probe || is_delayed, "empty slots wait for a delay or the probe: {violation}");
    }
}

fn check_slot_holders(supervisor: &Supervisor, violation: &InvariantViolation<'_>) {
    let of_kinds: u32 = supervisor.wanted_by_kind().iter().map(|kind| kind.1).sum();
    let wanted = (supervisor.wanted_workers() + of_kinds) as usize;
    assert_eq!(supervisor.slots.len(), wanted, "one slot for each worker: {violation}");
    let mut web = supervisor.slots.iter().take_while(|entry| entry.slot.is_web()).enumerate();
    assert!(web.all(|(n, one)| one.slot.0 as usize == n), "web slots come first: {violation}");
    let mut holders = BTreeSet::new();
    let of_entry = |entry: &SlotEntry| [entry.holder, entry.successor].map(|id| (entry.slot, id));
    for (slot, holder) in supervisor.slots.iter().flat_map(of_entry) {
        let Some(holder) = holder else { continue };
        assert!(holders.insert(holder), "a worker is wanted in one slot: {violation}");
        let tag_slot = supervisor.workers.get(holder).map(|record| record.tag.slot);
        assert_eq!(tag_slot, Some(slot), "a holder exists and knows its slot: {violation}");
    }
    for record in supervisor.workers.iter() {
        let stays = matches!(record.state, WorkerState::Booting { .. } | WorkerState::Serving);
        let is_wanted = holders.contains(&record.tag.id);
        assert!(is_wanted || !stays, "a worker without a slot ends: {violation}");
    }
    // This bounds the number of processes.
    for slot in supervisor.workers.iter().map(|record| record.tag.slot) {
        let slot_workers = supervisor.workers.iter().filter(|record| record.tag.slot == slot);
        assert!(slot_workers.count() <= 2, "at most two workers of a slot: {violation}");
    }
}

fn check_phase_order(
    before: &StateBeforeEvent,
    supervisor: &Supervisor,
    violation: &InvariantViolation<'_>,
) {
    let rank = |phase: ClusterPhase| match phase {
        ClusterPhase::Booting => 0,
        ClusterPhase::Running => 1,
        ClusterPhase::Stopping => 2,
        ClusterPhase::Killing(_) => 3,
        ClusterPhase::Done => 4,
    };
    let is_ordered = rank(before.phase) <= rank(supervisor.phase);
    assert!(is_ordered, "phases only move forward: {violation}");
}

/// Checks that only successors are forked during a back-off delay: if they crash too, the reload is over. While the
/// probe boots, only a worker that gets ready allows more than one fork.
fn check_backoff(
    before: &StateBeforeEvent,
    now: Instant,
    supervisor: &Supervisor,
    event: &Event,
    actions: &[Action],
    violation: &InvariantViolation<'_>,
) {
    let is_holder = |tag: &WorkerTag| supervisor.slots.index_of_holder(tag.id).is_some();
    let is_fork = |action: &&Action| matches!(action, Action::Fork(tag) if is_holder(tag));
    let forks = actions.iter().filter(is_fork).count();
    // A worker that was used up has proved that such workers boot.
    if matches!(event, Event::WorkerUsedUp { .. }) {
        // The primary may have been stopped until after the delay. Then the probe is forked as well.
        let is_probe_due = before.backoff_deadline.is_some_and(|until| now >= until);
        let most = 1 + usize::from(is_probe_due);
        return assert!(forks <= most, "one worker is replaced: {violation}");
    }
    if before.allowance == ForkAllowance::None {
        let is_delayed = before.backoff_deadline.is_some_and(|until| now < until);
        assert!(!is_delayed || forks == 0, "a delay is kept: {violation}");
        let is_ready = matches!(event, Event::Ready { .. });
        assert!(is_ready || forks <= 1, "one probe at a time: {violation}");
    }
}

/// Returns whether no slots are being replaced or rolled back.
fn is_settled(supervisor: &Supervisor) -> bool {
    matches!(supervisor.reload.rollout(), None | Some(Rollout::ReadingConfig { .. }))
}
