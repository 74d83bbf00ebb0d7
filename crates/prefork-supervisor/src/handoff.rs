//! Upgrade in place as the mind sees it: a proof, then the end of this image; or a beginning with workers that
//! are there already.

use std::time::{Duration, Instant};

use super::action::{Action, DrainReason, LogEvent};
use super::rolling::{Before, Roll};
use super::{
    ClusterPhase, LAST_MOMENT, Place, Supervisor, WorkerRecord, WorkerState, places_of_web,
};
use crate::config::SupervisorConfig;
use crate::config::WorkerKindConfig;
use crate::identity::Generation;
use crate::{Requester, SavedState};

/// The new binary's start before its workers boot: loading the program, reading the configuration.
const STARTING: Duration = Duration::from_secs(5);

/// What those who asked for an upgrade are told.
const TAKES_OVER: &str = "the new binary is fit and takes over now";

/// A new binary that is being tried.
#[derive(Debug)]
pub(super) struct Handoff {
    /// Until when it has to be proved; `None` once it is, and only the exec is still to come.
    deadline: Option<Instant>,
    askers: Vec<UpgradeAsker>,
}

/// Who asked for an upgrade.
#[derive(Debug)]
pub(super) struct UpgradeAsker {
    by: Requester,
    /// Whether the answer comes when the new image serves, and not as soon as the new binary is proved.
    wait: bool,
}

impl Handoff {
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Those whom the new image has to answer.
    pub(super) fn waiting(&self) -> Vec<Requester> {
        let waiting = self.askers.iter().filter(|asker| asker.wait && asker.by.reply_id.is_some());
        waiting.map(|asker| asker.by.clone()).collect()
    }
}

impl Supervisor {
    /// A cluster whose workers were forked by the image before this one. They are rolled over to our own
    /// generation at once; should that fail they serve on.
    pub fn restore(
        policy: SupervisorConfig,
        kinds: Vec<WorkerKindConfig>,
        seed: u64,
        now: Instant,
        left: SavedState,
    ) -> Supervisor {
        let mut mind = Supervisor::new(policy.clone(), seed);
        let workers = policy.workers;
        mind.phase = ClusterPhase::Running;
        mind.ever_ready = true;
        // Whatever is forked from now on is of this image, also where the roll fails: of the one that had
        // forked the old workers nothing is left to go back to.
        let ours = Generation(left.generation.0 + 1);
        mind.generation = ours;
        mind.last_generation = ours;
        mind.next_id = left.next_id.0;
        mind.restarts = left.restart_count;
        mind.policy.workers = left.wanted_workers;
        mind.places = places_of_web(left.wanted_workers, ours);
        mind.add_kinds(kinds, left.workers.iter().map(|one| one.tag));
        mind.adoption.sockets = left.socket_slots;
        for (slot, environment) in left.environments {
            if let Some(place) = mind.places.iter_mut().find(|place| place.slot == slot) {
                place.environment = environment;
            }
        }
        let deadline = now + policy.graceful_timeout + LAST_MOMENT;
        for one in left.workers {
            let mut member = WorkerRecord::new(one.tag, now - one.age, mind.watch.spread());
            member.own_socket = one.has_own_socket;
            member.online = true;
            let adopts = one.adopted_slots.iter().map(|slot| (*slot, one.tag.id));
            mind.adoption.adopters.extend(adopts.filter(|_| one.is_serving));
            // Of a kind that this image does not have, nobody is wanted.
            let own = |p: &&mut Place| p.slot == one.tag.slot && p.kind == one.tag.kind;
            let place = mind.places.iter_mut().find(own);
            match place.filter(|place| one.is_serving && place.holder.is_none()) {
                Some(place) => {
                    member.state = WorkerState::Serving;
                    member.ready = Some(now - one.age);
                    place.holder = Some(one.tag.id);
                    place.last = Some(one.tag.id);
                }
                None => {
                    member.leave = one.is_serving.then_some(DrainReason::Reload);
                    member.state = WorkerState::Draining { deadline };
                    mind.untold.push(one.tag.id);
                }
            }
            mind.enter(member);
        }
        let before = Box::new(Before { policy: mind.policy.clone(), generation: ours });
        mind.roll =
            Some(Roll::Rolling { target: ours, workers, before, askers: left.upgrade_requesters });
        mind
    }

    /// Workers that the image before this one had told to leave, or had not got to know, are told again.
    pub(super) fn renew_drains(&mut self, actions: &mut Vec<Action>) {
        actions.extend(std::mem::take(&mut self.untold).into_iter().map(Action::Drain));
    }

    pub(super) fn upgrade(
        &mut self,
        now: Instant,
        wait: bool,
        by: Requester,
        actions: &mut Vec<Action>,
    ) {
        let asker = UpgradeAsker { by, wait };
        match &mut self.handoff {
            Some(Handoff { deadline: None, .. }) if !wait => {
                return asker.by.confirm(TAKES_OVER.to_string(), actions);
            }
            Some(handoff) => return handoff.askers.push(asker),
            None => {}
        }
        let refusal = match self.phase {
            _ if self.is_stopping() => Some("the cluster is stopping"),
            ClusterPhase::Booting => Some("the workers have not all been ready yet"),
            _ => None,
        };
        if let Some(reason) = refusal {
            actions.push(Action::Log(LogEvent::UpgradeFailed { reason: reason.to_string() }));
            return asker.by.refuse(reason, actions);
        }
        if self.roll.is_some() {
            // Whoever does not wait is served by the same upgrade as those before.
            if asker.by.reply_id.is_some() || self.upgrades_waiting.is_empty() {
                actions.push(Action::Log(LogEvent::UpgradeQueued { by: asker.by.name.clone() }));
                self.upgrades_waiting.push(asker);
            }
            return;
        }
        self.begin_upgrade(now, vec![asker], actions);
    }

    fn begin_upgrade(
        &mut self,
        now: Instant,
        askers: Vec<UpgradeAsker>,
        actions: &mut Vec<Action>,
    ) {
        let Some(first) = askers.first() else { return };
        actions.push(Action::Log(LogEvent::UpgradeChecking { by: first.by.name.clone() }));
        actions.push(Action::StartUpgradeCheck);
        let deadline = Some(now + self.policy.boot_timeout + STARTING);
        self.handoff = Some(Handoff { deadline, askers });
    }

    /// Begins the upgrade that waited for the end of a reload.
    pub(super) fn begin_waiting_upgrade(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.roll.is_none() && self.handoff.is_none() && !self.upgrades_waiting.is_empty() {
            let askers = std::mem::take(&mut self.upgrades_waiting);
            self.begin_upgrade(now, askers, actions);
        }
    }

    pub(super) fn proved(&mut self, actions: &mut Vec<Action>) {
        let Some(handoff) = &mut self.handoff else { return };
        // Proved once, whatever is said twice; and proved in time, however late it is heard.
        if handoff.deadline.take().is_none() {
            return;
        }
        self.refuse_scaling("an upgrade is under way; ask again when it is done", actions);
        let Some(handoff) = &mut self.handoff else { return };
        // The others are passed to the new image, which answers them.
        for asker in handoff.askers.extract_if(.., |asker| !asker.wait) {
            asker.by.confirm(TAKES_OVER.to_string(), actions);
        }
        actions.push(Action::Log(LogEvent::UpgradeExecuting));
        actions.push(Action::ExecNewBinary);
    }

    pub(super) fn not_proved(&mut self, reason: &str, actions: &mut Vec<Action>) {
        let Some(handoff) = self.handoff.take() else { return };
        actions.push(Action::Log(LogEvent::UpgradeFailed { reason: reason.to_string() }));
        for asker in handoff.askers {
            asker.by.refuse(reason, actions);
        }
    }

    /// Gives up a proof that takes too long. Judged only when a deadline is reported: by then everything that
    /// was waiting has been heard, and the verdict may have been among it.
    pub(super) fn proof_overdue(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let deadline = self.handoff.as_ref().and_then(Handoff::deadline);
        if deadline.is_some_and(|deadline| deadline <= now) {
            let reason = "the new binary was not ready in time (boot-timeout) and was killed";
            self.stop_proof(reason, actions);
        }
    }

    /// A stop always wins.
    pub(super) fn give_up_proof(&mut self, actions: &mut Vec<Action>) {
        if self.is_stop_requested() && self.handoff.is_some() {
            self.stop_proof("the cluster is stopping", actions);
        }
        if self.is_stop_requested() {
            for asker in std::mem::take(&mut self.upgrades_waiting) {
                let reason = "the cluster is stopping".to_string();
                actions.push(Action::Log(LogEvent::UpgradeFailed { reason: reason.clone() }));
                asker.by.refuse(reason, actions);
            }
        }
    }

    fn stop_proof(&mut self, reason: &str, actions: &mut Vec<Action>) {
        actions.push(Action::StopUpgradeCheck);
        self.not_proved(reason, actions);
    }
}
