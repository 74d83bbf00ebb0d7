//! Simulated upgrades: a new binary that is checked in a child, and the exec that replaces the old one.

use std::time::Duration;

use super::worker_script::SimulatedWorker;
use super::{
    SIGKILL, ScheduledItem, Simulator, TestRng, WorkerScript, WorkerStep, exit_by_signal,
    exit_code, ms,
};
use crate::supervisor::Supervisor;
use crate::worker_identity::{WorkerId, WorkerTag};
use crate::worker_table::WorkerState;
use crate::{Action, Event, SavedWorker, SupervisorConfig};

/// Returns the binary at the primary's path, given the configuration in force.
pub(super) type NewBinaryFn = Box<dyn FnMut(&SupervisorConfig, &mut TestRng) -> NewBinary>;

/// How a new binary behaves.
#[derive(Debug, Clone)]
pub(crate) struct NewBinary {
    /// How long the check takes, and its result; `None` if it hangs.
    pub(crate) check: Option<(Duration, Result<(), String>)>,
    pub(crate) exec: SimulatedExec,
}

/// The duration and the result of a simulated exec.
#[derive(Debug, Clone)]
pub(crate) struct SimulatedExec {
    /// Delay before the primary calls exec.
    pub(crate) wait: Duration,
    /// Duration of the exec.
    pub(crate) time: Duration,
    /// The new binary's configuration, or why the exec fails.
    pub(crate) result: Result<SupervisorConfig, String>,
    /// One in this many workers dies during the exec; 0 if none does.
    pub(crate) death_odds: u64,
}

impl SimulatedExec {
    pub(crate) fn new(
        wait: Duration,
        time: Duration,
        result: Result<SupervisorConfig, String>,
    ) -> SimulatedExec {
        SimulatedExec { wait, time, result, death_odds: 0 }
    }
}

impl NewBinary {
    /// Passes its check and takes over with this configuration.
    pub(crate) fn working_binary(config: &SupervisorConfig) -> NewBinary {
        let exec = SimulatedExec::new(ms(0), ms(20), Ok(config.clone()));
        NewBinary { check: Some((ms(50), Ok(()))), exec }
    }

    pub(crate) fn random_binary(config: &SupervisorConfig, rng: &mut TestRng) -> NewBinary {
        let workers =
            if rng.random_below(3) == 0 { 1 + rng.random_below(8) as u32 } else { config.workers };
        let config =
            SupervisorConfig { workers, surge: rng.random_below(3) as u32, ..config.clone() };
        let passes = if rng.random_below(5) == 0 { Err("unfit".to_string()) } else { Ok(()) };
        let result = if rng.random_below(5) == 0 { Err("EACCES".to_string()) } else { Ok(config) };
        NewBinary {
            check: (rng.random_below(6) > 0).then(|| (rng.random_millis(3_000), passes)),
            exec: SimulatedExec {
                wait: rng.random_millis(2) * 50,
                time: rng.random_millis(200),
                result,
                death_odds: rng.random_below(4),
            },
        }
    }
}

/// The current upgrade.
#[derive(Debug)]
pub(super) struct SimulatedUpgrade {
    number: usize,
    binary: NewBinary,
    is_stopped: bool,
}

/// The next stage of the upgrade with this number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UpgradeStage {
    CheckDone(usize),
    Exec(usize),
}

impl Simulator {
    pub(super) fn start_upgrade_check(&mut self) {
        let config = self.configured();
        let binary = (self.new_binary)(&config, &mut self.rng);
        let number = self.scheduled_count;
        if let Some((after, _)) = &binary.check {
            self.schedule_item(*after, ScheduledItem::Upgrade(UpgradeStage::CheckDone(number)));
        }
        self.upgrade = Some(SimulatedUpgrade { number, binary, is_stopped: false });
    }

    /// Kills the child process of the upgrade check. It may have finished just before; then its result is reported
    /// though nothing waits for it.
    pub(super) fn stop_upgrade_check(&mut self) {
        let Some(upgrade) = &mut self.upgrade else { return };
        upgrade.is_stopped = true;
        if self.rng.random_below(2) == 0 {
            upgrade.binary.check = Some((ms(0), Err("killed".to_string())));
        }
        let number = upgrade.number;
        self.schedule_item(ms(1), ScheduledItem::Upgrade(UpgradeStage::CheckDone(number)));
    }

    pub(super) fn schedule_exec(&mut self) {
        let Some(upgrade) = &self.upgrade else { return };
        let (wait, number) = (upgrade.binary.exec.wait, upgrade.number);
        self.schedule_item(wait, ScheduledItem::Upgrade(UpgradeStage::Exec(number)));
    }

    /// Runs a stage of the current upgrade, and ignores stages of earlier ones.
    pub(super) fn run_upgrade_stage(&mut self, stage: UpgradeStage) {
        let Some(upgrade) = &self.upgrade else { return };
        let (number, is_stopped, binary) =
            (upgrade.number, upgrade.is_stopped, upgrade.binary.clone());
        match stage {
            UpgradeStage::CheckDone(n) if n == number => match binary.check {
                Some((_, Ok(()))) => self.report_event(Event::UpgradeCheckPassed),
                Some((_, Err(reason))) => self.report_event(Event::UpgradeFailed { reason }),
                None => {}
            },
            // The primary handles all pending events before the exec.
            UpgradeStage::Exec(n) if n == number && !self.supervisor.scale_queue.is_empty() => {
                self.schedule_item(ms(0), ScheduledItem::Upgrade(stage));
            }
            UpgradeStage::Exec(n) if n == number && !is_stopped => match binary.exec.result {
                Ok(config) => {
                    self.exec_new_binary(config, binary.exec.time, binary.exec.death_odds);
                }
                Err(reason) => self.report_event(Event::UpgradeFailed { reason }),
            },
            UpgradeStage::CheckDone(_) | UpgradeStage::Exec(_) => {}
        }
    }

    /// Replaces the old binary. The workers keep running, except those that die during the exec.
    pub(crate) fn exec_new_binary(
        &mut self,
        config: SupervisorConfig,
        time: Duration,
        death_odds: u64,
    ) {
        let mut saved = self.supervisor.save_state(self.now);
        // The primary forks at once: a requested fork has returned by now, or has failed unnoticed.
        for (id, script) in std::mem::take(&mut self.forking) {
            let record = self.supervisor.workers.get(id).filter(|_| !script.is_fork_failing);
            let Some(record) = record else { continue };
            saved.workers.push(SavedWorker {
                tag: WorkerTag { pid: Some(1000 + id.0 as u32), ..record.tag },
                age: ms(0),
                is_serving: false,
                has_own_socket: false,
                adopted_slots: Vec::new(),
            });
            self.start_worker(id, script);
        }
        // Results of the old binary's own requests are lost; commands and worker steps continue.
        self.schedule.retain(|_, item| {
            matches!(item, ScheduledItem::WorkerStep(..) | ScheduledItem::Command(_))
        });
        self.upgrade = None;
        let workers: Vec<_> = self.workers.keys().copied().collect();
        for worker in workers {
            if death_odds > 0 && self.rng.random_below(death_odds) == 0 {
                let statuses = [exit_code(0), exit_code(1), exit_by_signal(SIGKILL)];
                let step = WorkerStep::Exit(statuses[self.rng.random_below(3) as usize]);
                self.schedule_item(ms(0), ScheduledItem::WorkerStep(worker, step));
            }
        }
        self.now += time;
        // The new binary opens the sockets it needs before it starts.
        if config.has_socket_per_slot {
            let slots = config.workers.max(saved.wanted_workers);
            saved.socket_slots = saved.socket_slots.max(slots);
        }
        let (seed, kinds) = (self.rng.random_below(u64::MAX), self.kinds.clone());
        self.supervisor = Supervisor::restore(config, kinds, seed, self.now, saved.clone());
        self.upgrade_count += 1;
        let alive = self.workers.keys().copied().collect();
        self.invariants.continue_after_upgrade(&self.supervisor, &saved, alive, self.now);
        self.report_event(Event::Started);
    }

    pub(super) fn start_worker(&mut self, worker: WorkerId, script: WorkerScript) {
        for (after, step) in &script.steps {
            self.schedule_item(*after, ScheduledItem::WorkerStep(worker, *step));
        }
        self.workers.insert(worker, SimulatedWorker::new(script, self.now));
    }

    /// Returns the draining workers.
    pub(crate) fn draining_workers(&self) -> Vec<u64> {
        let drains = |state| matches!(state, WorkerState::Draining { .. });
        let workers = self.supervisor.workers.iter().filter(|record| drains(record.state));
        workers.map(|record| record.tag.id.0).collect()
    }

    /// Returns whether workers of several generations may serve, because a rollback or a rollout after an upgrade
    /// failed.
    pub(crate) fn allows_mixed_generations(&self) -> bool {
        self.invariants.allows_mixed_generations()
    }

    /// Returns the actions of upgrades in their order.
    pub(crate) fn upgrade_actions(&self) -> Vec<Action> {
        let is_of_upgrade = |action: &&Action| {
            matches!(
                action,
                Action::StartUpgradeCheck | Action::StopUpgradeCheck | Action::ExecNewBinary
            )
        };
        self.log.iter().map(|(_, action)| action).filter(is_of_upgrade).cloned().collect()
    }
}
