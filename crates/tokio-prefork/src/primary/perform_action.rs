//! Performs the supervisor's actions. A failure comes rejected as an event.

use std::time::Instant;

use super::Primary;
use crate::channel::{HandoverMode, WorkerCommand};
use prefork_os::signal::Signal;
use prefork_supervisor::{Action, Event, Generation, LogEvent, ShutdownReason, WorkerId};

impl Primary {
    /// Performs one action. Returns a reason if the primary ends.
    pub(super) fn perform_action(&mut self, action: Action) -> Option<ShutdownReason> {
        match action {
            Action::Fork(tag) => self.fork_worker(tag),
            Action::OpenSockets { slots } => self.open_sockets(slots),
            Action::AdoptSlot { worker, slot } => self.adopt_slot(worker, slot),
            Action::ReleaseSlot { worker, slot } => self.release_slot(worker, slot),
            Action::SetDispatchTarget { slot, worker } => self.set_dispatch_target(slot, worker),
            Action::CloseListeners => self.close_listeners(),
            Action::HoldConnections => self.hold_connections(),
            Action::ConfirmEmpty => self.confirm_empty(),
            Action::RefuseConnections => self.refuse_connections(),
            Action::ResumeListening => self.resume_listening(),
            Action::Drain(worker) => self.drain_worker(worker),
            Action::KeepIdleWorker(worker) => self.keep_idle_process(worker),
            Action::Abort(worker) => self.abort_after_capture(worker),
            Action::Kill(worker) => self.signal_worker(worker, Signal::SIGKILL),
            Action::ReadConfig(generation) => self.read_config(generation),
            Action::KeepGenerations(kept) => self.keep_generations(&kept),
            Action::StartUpgradeCheck => self.start_upgrade_check(),
            Action::StopUpgradeCheck => self.stop_upgrade_check(),
            Action::ExecNewBinary => {
                self.upgrade.schedule_exec();
                self.stop_stack_captures();
            }
            Action::SampleHealth { with_memory } => self.sample_health(with_memory),
            Action::ConfirmRestart(exit) => self.confirm_restart(&exit),
            Action::Log(event) => self.publish_log_event(&event),
            Action::Reply { reply_id, result } => self.reply_to_command(reply_id, result),
            Action::Exit(reason) => return Some(self.shut_down(reason)),
        }
        None
    }

    fn signal_worker(&mut self, worker: WorkerId, signal: Signal) {
        self.workers.signal(worker, signal, &mut self.event_log);
    }

    fn sample_health(&mut self, with_memory: bool) {
        self.refresh_kernel_selector();
        self.check_worker_sockets();
        let samples = self.workers.sample_health(&self.scoreboard, &self.configs, with_memory);
        self.pending_events.push_back(Event::HealthSampled { samples });
    }

    /// Publishes an event to the log, the service manager, the hooks and the schedulers of isolated jobs.
    fn publish_log_event(&mut self, event: &LogEvent) {
        let exit = match event {
            LogEvent::Exited(exit) => Some(exit),
            _ => None,
        };
        // A client that leaves is no error.
        let was_killed_with_job =
            exit.is_some_and(|exit| self.isolated_pools.take_killed_with_job(exit));
        match exit {
            Some(exit) if was_killed_with_job => self.event_log.log_killed_with_job(exit),
            _ => self.log_supervisor_event(event),
        }
        let exit = exit.map(|exit| self.hooks.classify_exit(exit));
        self.count_event(event, exit.as_ref().map(|exit| (exit, was_killed_with_job)));
        match event {
            LogEvent::Stalled { worker, .. } => self.capture_stalled_worker(worker.id),
            LogEvent::Recovered { worker, .. } => self.stacks.clear_stall(worker.id),
            _ => {}
        }
        self.notify_service_manager(event);
        let Primary { hooks, listeners, configs, .. } = self;
        hooks.queue_cluster_event(event, |worker| {
            let config = configs.config_of_generation(worker.generation);
            config.map_or_else(Vec::new, |config| listeners.bound_addrs_of(&config.bind))
        });
        self.update_job_schedulers(event);
    }

    fn log_supervisor_event(&mut self, event: &LogEvent) {
        match event {
            // The primary of a program's pools never has an address nor a web worker.
            LogEvent::Empty if self.listeners.listeners.is_empty() => {}
            _ => self.event_log.log_event(event),
        }
    }

    fn close_listeners(&mut self) {
        self.remove_stored_unix_sockets();
        self.listeners.close_all();
        // Connections that the primary holds go to the workers before these are told to drain.
        self.dispatch_round_robin(Instant::now());
    }

    /// Sends the last replies and notifications before the primary ends.
    fn shut_down(&mut self, reason: ShutdownReason) -> ShutdownReason {
        self.finish_messages();
        self.control.send_new_events(&self.event_log);
        self.notify_service_manager_if_due(Instant::now());
        self.admin.kill_all(&mut self.killed_children);
        reason
    }

    /// Sends a worker the command to drain. One that cannot be told is stalled or gone: its deadline ends it.
    fn drain_worker(&mut self, worker: WorkerId) {
        let Some(config) = self.current_config().cloned() else { return };
        let is_stopping = self.supervisor.is_stopping();
        // Nobody accepts after the last worker.
        let is_last = self.supervisor.is_emptying();
        if !is_stopping && self.has_other_queue_worker(worker) {
            self.reclaim_queue(worker);
        }
        let Some(process) = self.workers.get(&worker) else { return };
        let has_successor = self.workers.has_other_serving_worker(worker, &self.supervisor);
        let order = WorkerCommand::Drain {
            grace: config.graceful_timeout,
            linger: config.linger_timeout,
            closing: is_stopping || is_last || self.has_removed_listen_addr(process.tag.generation),
            hand_over: match config.hand_over && !is_stopping {
                false => HandoverMode::Never,
                true if has_successor => HandoverMode::Immediately,
                true => HandoverMode::WhenOthersServe,
            },
        };
        let Some(process) = self.workers.get_mut(&worker) else { return };
        process.released = true;
        if let Some(Err(e)) = process.channel.as_ref().map(|channel| channel.send(&order)) {
            self.event_log.log_worker_unreachable(process.tag, &e);
        }
    }

    /// Returns whether workers of `generation` listen on an address that the current configuration does not name.
    fn has_removed_listen_addr(&self, generation: Generation) -> bool {
        let Some((old, new)) =
            self.configs.config_of_generation(generation).zip(self.current_config())
        else {
            return false;
        };
        old.bind.iter().any(|addr| !new.bind.contains(addr))
    }
}
