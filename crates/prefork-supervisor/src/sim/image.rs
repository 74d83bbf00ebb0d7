//! Upgrades in the simulated world: a binary that is tried as a child, and the moment in which the primary becomes it.

use std::time::Duration;

use super::super::{Action, Event, SavedWorker, Supervisor, WorkerState};
use super::lives::Child;
use super::{Dice, Happening, World, code, ms};
use crate::config::SupervisorConfig;
use crate::identity::WorkerTag;

/// What stands at the primary's path, decided anew each time it is tried. It is given the policy in force.
pub type File = Box<dyn FnMut(&SupervisorConfig, &mut Dice) -> Binary>;

/// How a new binary behaves.
#[derive(Debug, Clone)]
pub struct Binary {
    /// How long it takes to prove itself, and what comes of it; `None` if it hangs.
    pub proof: Option<(Duration, Result<(), String>)>,
    /// How long until the primary gets to it, how long the exec takes, and what the new image's configuration
    /// says; or reason the exec fails.
    pub exec: (Duration, Duration, Result<SupervisorConfig, String>),
    /// One in so many workers dies while the exec takes its time; 0 if none does.
    pub toll: u64,
}

impl Binary {
    /// Is fit, and takes over with this policy.
    pub fn fit(policy: &SupervisorConfig) -> Binary {
        let exec = (ms(0), ms(20), Ok(policy.clone()));
        Binary { proof: Some((ms(50), Ok(()))), exec, toll: 0 }
    }

    /// Anything that can come of an upgrade.
    pub fn random(policy: &SupervisorConfig, dice: &mut Dice) -> Binary {
        let workers = if dice.below(3) == 0 { 1 + dice.below(8) as u32 } else { policy.workers };
        let policy = SupervisorConfig { workers, surge: dice.below(3) as u32, ..policy.clone() };
        let verdict = if dice.below(5) == 0 { Err("unfit".to_string()) } else { Ok(()) };
        let result = if dice.below(5) == 0 { Err("EACCES".to_string()) } else { Ok(policy) };
        Binary {
            proof: (dice.below(6) > 0).then(|| (dice.millis(3_000), verdict)),
            exec: (dice.millis(2) * 50, dice.millis(200), result),
            toll: dice.below(4),
        }
    }
}

/// The upgrade under way, as the primary's hands know it.
#[derive(Debug)]
pub(super) struct Trial {
    number: usize,
    binary: Binary,
    stopped: bool,
}

/// A moment of the upgrade with this number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    Proof(usize),
    Exec(usize),
}

impl World {
    pub(super) fn prove(&mut self) {
        let binary = (self.binary)(&self.mind.policy, &mut self.dice);
        let number = self.planned;
        if let Some((after, _)) = &binary.proof {
            self.plan(*after, Happening::Upgrades(Moment::Proof(number)));
        }
        self.trial = Some(Trial { number, binary, stopped: false });
    }

    /// The child may have finished a moment before it is killed; then its verdict comes though nobody waits for it.
    /// One that hung dies now.
    pub(super) fn stop_proof(&mut self) {
        let Some(trial) = &mut self.trial else { return };
        trial.stopped = true;
        if self.dice.below(2) == 0 {
            trial.binary.proof = Some((ms(0), Err("killed".to_string())));
        }
        let number = trial.number;
        self.plan(ms(1), Happening::Upgrades(Moment::Proof(number)));
    }

    pub(super) fn take_over(&mut self) {
        let Some(trial) = &self.trial else { return };
        let (wait, number) = (trial.binary.exec.0, trial.number);
        self.plan(wait, Happening::Upgrades(Moment::Exec(number)));
    }

    /// Moments of an upgrade that was given up for another are nobody's: the hands tell them apart.
    pub(super) fn upgrades(&mut self, moment: Moment) {
        let Some(trial) = &self.trial else { return };
        let (number, stopped, binary) = (trial.number, trial.stopped, trial.binary.clone());
        match (moment, binary.proof, binary.exec) {
            (Moment::Proof(n), Some((_, verdict)), _) if n == number => self.tell(match verdict {
                Ok(()) => Event::UpgradeCheckPassed,
                Err(reason) => Event::UpgradeFailed { reason },
            }),
            // The hands deal with all that they know before.
            (Moment::Exec(n), ..) if n == number && !self.mind.scaling.is_empty() => {
                self.plan(ms(0), Happening::Upgrades(moment));
            }
            (Moment::Exec(n), _, (_, time, result)) if n == number && !stopped => match result {
                Ok(policy) => self.become_new(policy, time, binary.toll),
                Err(reason) => self.tell(Event::UpgradeFailed { reason }),
            },
            _ => {}
        }
    }

    /// The old image ends here; the workers live on, but for those that die while the exec takes its time.
    pub fn become_new(&mut self, policy: SupervisorConfig, time: Duration, toll: u64) {
        let mut left = self.mind.save_state(self.now);
        // The hands fork at once: what the old image had asked for is there by now, or was never heard of.
        for (id, life) in std::mem::take(&mut self.forking) {
            let Some(member) = self.mind.members.get(&id).filter(|_| !life.fork_fails) else {
                continue;
            };
            let tag = WorkerTag { pid: Some(1000 + id.0 as u32), ..member.tag };
            left.workers.push(SavedWorker {
                tag,
                age: ms(0),
                is_serving: false,
                has_own_socket: false,
                adopted_slots: Vec::new(),
            });
            self.born(id, life);
        }
        // What the old image had asked for itself is no more; what people and workers do goes on.
        self.plan
            .retain(|_, happening| matches!(happening, Happening::Does(..) | Happening::Asks(_)));
        self.trial = None;
        let workers: Vec<_> = self.children.keys().copied().collect();
        for worker in workers {
            if toll > 0 && self.dice.below(toll) == 0 {
                let ends = [code(0), code(1), super::signal(super::SIGKILL)];
                let end = super::Deed::End(ends[self.dice.below(3) as usize]);
                self.plan(ms(0), Happening::Does(worker, end));
            }
        }
        self.now += time;
        // It opens what it needs before it begins.
        if policy.has_socket_per_slot {
            left.socket_slots = left.socket_slots.max(policy.workers).max(left.wanted_workers);
        }
        let seed = self.dice.below(u64::MAX);
        self.mind = Supervisor::restore(policy, self.kinds.clone(), seed, self.now, left.clone());
        self.images += 1;
        let alive = self.children.keys().copied().collect();
        self.laws.adopted(&self.mind, &left, alive, self.now);
        self.tell(Event::Started);
    }

    /// The members that were told to leave by their image, or by the one before it.
    pub fn leaving(&self) -> Vec<u64> {
        let drains = |state| matches!(state, WorkerState::Draining { .. });
        let members = self.mind.members.iter().filter(|(_, member)| drains(member.state));
        members.map(|(id, _)| id.0).collect()
    }

    /// Whether workers of several generations may serve, as going back or following an image has failed.
    pub fn is_mixed(&self) -> bool {
        self.laws.are_mixed()
    }

    /// What was done for upgrades, in its order.
    pub fn upgrade_steps(&self) -> Vec<Action> {
        let ours = |action: &&Action| {
            matches!(
                action,
                Action::StartUpgradeCheck | Action::StopUpgradeCheck | Action::ExecNewBinary
            )
        };
        self.log.iter().map(|(_, action)| action).filter(ours).cloned().collect()
    }

    pub(super) fn born(&mut self, worker: crate::identity::WorkerId, life: super::Life) {
        for (after, deed) in &life.deeds {
            self.plan(*after, Happening::Does(worker, *deed));
        }
        self.children.insert(worker, Child::new(life, self.now));
    }
}
