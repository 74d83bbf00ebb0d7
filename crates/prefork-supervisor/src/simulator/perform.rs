//! Simulates the kernel's part of each action, and the steps of workers.

use super::{
    SIGABRT, SIGKILL, ScheduledItem, Simulator, WorkerStep, exit_by_signal, exit_code, ms,
};
use crate::worker_identity::WorkerId;
use crate::{Action, Event, HealthSample, RestartDecision, SupervisorConfig};

impl Simulator {
    pub(super) fn perform_action(&mut self, action: Action) {
        match &action {
            Action::Fork(tag) => {
                let script = (self.choose_script)(*tag, &mut self.rng);
                self.schedule_item(script.fork_time, ScheduledItem::ForkReturn(tag.id));
                self.forking.insert(tag.id, script);
            }
            Action::Drain(worker) => self.schedule_drain_end(*worker),
            Action::Kill(worker) => {
                let step = WorkerStep::Exit(exit_by_signal(SIGKILL));
                self.schedule_item(ms(1), ScheduledItem::WorkerStep(*worker, step));
            }
            Action::Abort(worker) => self.schedule_abort_exit(*worker),
            Action::ReadConfig(_) => {
                let config = self.configured();
                let (after, result) = (self.config_file)(&config, &mut self.rng);
                self.pending_config = Some(result);
                self.schedule_item(after, ScheduledItem::ConfigRead);
            }
            Action::SampleHealth { with_memory } => {
                let samples = self.sample_health(*with_memory);
                self.schedule_item(ms(0), ScheduledItem::HealthSampled(samples));
            }
            Action::StartUpgradeCheck => self.start_upgrade_check(),
            Action::StopUpgradeCheck => self.stop_upgrade_check(),
            Action::ExecNewBinary => self.schedule_exec(),
            Action::Log(_) | Action::Reply { .. } | Action::KeepGenerations(_) => {}
            Action::CloseListeners => {}
            Action::OpenSockets { slots } => {
                let is_failing = self.rng.random_below(6) == 0;
                let result = if is_failing { Err("EMFILE".to_string()) } else { Ok(()) };
                self.schedule_report(Event::SocketsOpened { slots: *slots, result });
            }
            Action::AdoptSlot { worker, slot } if self.is_channel_full() => {
                self.schedule_report(Event::AdoptSlotFailed { worker: *worker, slot: *slot });
            }
            Action::ReleaseSlot { worker, slot } if self.is_channel_full() => {
                self.schedule_report(Event::ReleaseSlotFailed { worker: *worker, slot: *slot });
            }
            Action::AdoptSlot { .. } | Action::ReleaseSlot { .. } => {}
            Action::KeepIdleWorker(_) => {}
            Action::SetDispatchTarget { .. } => {}
            Action::ConfirmRestart(report) => {
                let odds = self.restart_veto_odds;
                let restart =
                    self.restart_delay.map_or(RestartDecision::Restart, RestartDecision::After);
                let is_vetoed = odds > 0 && self.rng.random_below(odds) == 0;
                let decision = if is_vetoed { RestartDecision::LeaveEmpty } else { restart };
                self.schedule_report(Event::RestartDecided { worker: report.worker.id, decision });
            }
            Action::ConfirmEmpty => self.schedule_report(Event::EmptyConfirmed),
            Action::HoldConnections | Action::ResumeListening => {}
            Action::RefuseConnections => {}
            Action::Exit(reason) => self.exit = Some(*reason),
        }
        self.log.push((self.now - self.started_at, action));
    }

    /// Returns the configuration in force with the configured number of workers, not the scaled one.
    pub(super) fn configured(&self) -> SupervisorConfig {
        let workers = self.supervisor.configured_workers;
        SupervisorConfig { workers, ..self.supervisor.config.clone() }
    }

    fn schedule_report(&mut self, event: Event) {
        self.schedule_item(ms(0), ScheduledItem::Report(event));
    }

    fn schedule_drain_end(&mut self, worker: WorkerId) {
        if let Some(time) = self.workers.get(&worker).and_then(|worker| worker.script.drain_time) {
            self.schedule_item(time, ScheduledItem::WorkerStep(worker, WorkerStep::FinishDraining));
        }
    }

    fn schedule_abort_exit(&mut self, worker: WorkerId) {
        // A stopped process receives the signal only when it continues.
        if let Some(time) = self.workers.get(&worker).and_then(|worker| worker.script.abort_time) {
            let step = WorkerStep::Exit(exit_by_signal(SIGABRT));
            self.schedule_item(time, ScheduledItem::WorkerStep(worker, step));
        }
    }

    fn is_channel_full(&mut self) -> bool {
        self.full_channel_odds > 0 && self.rng.random_below(self.full_channel_odds) == 0
    }

    fn sample_health(&self, with_memory: bool) -> Vec<HealthSample> {
        let samples = self.workers.iter().map(|(id, worker)| HealthSample {
            worker: *id,
            heartbeat: worker.heartbeat(self.now),
            is_sleeping: false,
            requests: worker.requests(self.now),
            memory: with_memory.then(|| worker.memory(self.now)),
            is_full: worker.is_full(),
            current_request: worker.is_frozen().then(|| "GET /fib/50".to_string()),
        });
        samples.collect()
    }

    pub(super) fn run_scheduled(&mut self, item: ScheduledItem) {
        match item {
            ScheduledItem::Command(command) => self.send_command(command),
            ScheduledItem::ConfigRead => {
                if let Some(result) = self.pending_config.take() {
                    self.report_event(Event::ConfigRead { result });
                }
            }
            ScheduledItem::Upgrade(stage) => self.run_upgrade_stage(stage),
            ScheduledItem::Report(event) => self.report_event(event),
            ScheduledItem::HealthSampled(samples) => {
                self.report_event(Event::HealthSampled { samples })
            }
            ScheduledItem::ForkReturn(worker) => match self.forking.get(&worker) {
                Some(script) if script.is_fork_failing => {
                    self.report_event(Event::ForkFailed { worker, reason: "EAGAIN".to_string() });
                }
                Some(_) => self.report_event(Event::Forked { worker, pid: 1000 + worker.0 as u32 }),
                None => {}
            },
            ScheduledItem::WorkerStep(worker, step) => {
                // The worker may have died, and a frozen worker performs no steps.
                if self.workers.get(&worker).is_some_and(|worker| worker.can_perform_step(step)) {
                    self.perform_worker_step(worker, step);
                }
            }
        }
    }

    pub(super) fn perform_worker_step(&mut self, worker: WorkerId, step: WorkerStep) {
        match step {
            WorkerStep::ReportOnline => self.report_event(Event::Online { worker }),
            WorkerStep::ReportReady => self.report_event(Event::Ready { worker }),
            WorkerStep::ReportBootFailed => {
                self.report_event(Event::BootFailed { worker, reason: "no".to_string() });
            }
            WorkerStep::StartRiskyJob => self.report_event(Event::RiskyJobStarted { worker }),
            WorkerStep::Retire => {
                self.report_event(Event::Retiring { worker });
                self.schedule_drain_end(worker);
            }
            WorkerStep::Disconnect => {
                self.report_event(Event::Disconnecting { worker });
                self.schedule_drain_end(worker);
            }
            WorkerStep::CloseChannel => self.report_event(Event::ChannelClosed { worker }),
            WorkerStep::Freeze | WorkerStep::Thaw => {
                if let Some(record) = self.workers.get_mut(&worker) {
                    record.set_frozen(step == WorkerStep::Freeze, self.now);
                }
            }
            WorkerStep::StopBySignal => {
                self.perform_worker_step(worker, WorkerStep::Freeze);
                self.report_event(Event::Stopped { worker });
            }
            WorkerStep::ContinueBySignal => {
                self.perform_worker_step(worker, WorkerStep::Thaw);
                self.report_event(Event::Continued { worker });
            }
            WorkerStep::BecomeFull | WorkerStep::BecomeEmpty => {
                if let Some(record) = self.workers.get_mut(&worker) {
                    record.set_full_of_connections(step == WorkerStep::BecomeFull);
                }
            }
            WorkerStep::FinishDraining => {
                self.perform_worker_step(worker, WorkerStep::Exit(exit_code(0)));
            }
            WorkerStep::BreakProtocol => {
                self.report_event(Event::ProtocolError { worker, reason: "noise".to_string() });
            }
            WorkerStep::Exit(status) => {
                // The kernel closes a dead worker's channel; either may be noticed first.
                if self.rng.random_below(2) == 0 {
                    self.report_event(Event::ChannelClosed { worker });
                }
                self.report_event(Event::Exited { worker, status, requests_served: 7 });
            }
        }
    }
}
