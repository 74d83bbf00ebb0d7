//! Actions to effects: one arm each. What fails comes back as an event.

use std::time::Instant;

use super::Primary;
use crate::channel::{HandOver, ToWorker};
use prefork_os::signal::Signal;
use prefork_supervisor::{Action, Event, ShutdownReason};
use prefork_supervisor::{Generation, WorkerId};

impl Primary {
    /// Performs one action; `Some` when it was the last.
    pub(super) fn perform(&mut self, action: Action) -> Option<ShutdownReason> {
        match action {
            Action::Fork(tag) => {
                let event = match self.fork_worker(tag) {
                    Ok(pid) => Event::Forked { worker: tag.id, pid },
                    Err(e) => Event::ForkFailed { worker: tag.id, reason: e.to_string() },
                };
                self.pending_events.push_back(event);
            }
            Action::OpenSockets { slots } => {
                let event = self.open_sockets(slots);
                self.pending_events.push_back(event);
            }
            Action::AdoptSlot { worker, slot } => self.adopt_slot(worker, slot),
            Action::ReleaseSlot { worker, slot } => self.release_slot(worker, slot),
            Action::SetDispatchTarget { slot, worker } => self.set_dispatch_target(slot, worker),
            Action::CloseListeners => {
                self.unstore_files();
                self.listeners.close_all();
                // What nobody has yet goes to the workers before they are told to finish.
                self.deal(Instant::now());
            }
            Action::Drain(worker) => self.drain(worker),
            Action::Abort(worker) => self.signal(worker, Signal::SIGABRT),
            Action::Kill(worker) => self.signal(worker, Signal::SIGKILL),
            Action::ReadConfig(generation) => {
                self.read_config(generation);
            }
            Action::StartUpgradeCheck => self.prove(),
            Action::StopUpgradeCheck => self.stop_proof(),
            Action::ExecNewBinary => self.begin_take_over(),
            Action::KeepGenerations(kept) => self.keep_generations(&kept),
            Action::SampleHealth { with_memory } => {
                self.refresh_kernel_selector();
                let event = self.observe(with_memory);
                self.pending_events.push_back(event);
            }
            Action::ConfirmRestart(exit) => self.ask_restart(&exit),
            Action::Log(notice) => {
                self.event_log.record(&notice);
                self.announce(&notice);
                self.note(&notice);
                self.tell_desks(&notice);
            }
            Action::Reply { reply_id, result } => self.answer(reply_id, result),
            Action::Exit(outcome) => {
                self.settle_control();
                self.tend_manager(Instant::now());
                return Some(outcome);
            }
        }
        None
    }

    fn somebody_else_serves(&self, leaving: WorkerId) -> bool {
        let mut others = self.workers.iter().filter(|(id, _)| **id != leaving);
        others.any(|(_, child)| child.serves_web(&self.supervisor))
    }

    /// Whether workers of `generation` listen where the configuration in force does not.
    fn loses_a_socket(&self, generation: Generation) -> bool {
        let Some((old, new)) = self.configs.get(&generation).zip(self.current_config()) else {
            return false;
        };
        old.bind.iter().any(|addr| !new.bind.contains(addr))
    }

    /// To a child that is not reaped yet: the pid is its own.
    pub(super) fn signal(&mut self, worker: WorkerId, signal: Signal) {
        let Some(child) = self.workers.get(&worker) else { return };
        if let Err(e) = prefork_os::child::signal_child(child.pid, signal) {
            self.event_log.cannot_signal(child.tag, signal, &e);
        }
    }

    /// A worker that cannot be told is frozen or gone: its drain deadline ends it.
    fn drain(&mut self, worker: WorkerId) {
        let Some(config) = self.current_config().cloned() else { return };
        let stopping = self.supervisor.is_stopping();
        if !stopping && self.somebody_else_is_dealt_to(worker) {
            self.take_back(worker);
        }
        let Some(child) = self.workers.get(&worker) else { return };
        let order = ToWorker::Drain {
            grace: config.graceful_timeout,
            linger: config.linger_timeout,
            closing: stopping || self.loses_a_socket(child.tag.generation),
            hand_over: match config.hand_over && !stopping {
                false => HandOver::Never,
                true if self.somebody_else_serves(worker) => HandOver::Now,
                true => HandOver::WhenOthersServe,
            },
        };
        let Some(child) = self.workers.get_mut(&worker) else { return };
        child.released = true;
        if let Some(Err(e)) = child.channel.as_ref().map(|channel| channel.send(&order)) {
            self.event_log.cannot_tell(child.tag, &e);
        }
    }
}
