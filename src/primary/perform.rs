//! Actions to effects: one arm each. What fails comes back as an event.

use super::Primary;
use crate::identity::WorkerId;
use crate::ipc::ToWorker;
use crate::supervisor::{Action, Event, Outcome};
use crate::sys;
use crate::sys::signal::Signal;

impl Primary {
    /// Performs one action; `Some` when it was the last.
    pub(super) fn perform(&mut self, action: Action) -> Option<Outcome> {
        match action {
            Action::Fork(tag) => {
                let event = match self.fork_worker(tag) {
                    Ok(pid) => Event::Forked { worker: tag.id, pid },
                    Err(e) => Event::ForkFailed { worker: tag.id, why: e.to_string() },
                };
                self.queue.push_back(event);
            }
            Action::CloseListeners => {
                self.listeners.take_listeners();
            }
            Action::Drain(worker) => self.drain(worker),
            Action::Kill(worker) => {
                if let Some(child) = self.children.get(&worker)
                    && let Err(e) = sys::process::kill(child.pid, Signal::SIGKILL)
                {
                    self.journal.cannot_kill(child.tag, &e);
                }
            }
            Action::Report(notice) => self.journal.record(&notice),
            Action::Answer { ticket, outcome } => self.answer(ticket, outcome),
            Action::Exit(outcome) => {
                self.settle_control();
                return Some(outcome);
            }
        }
        None
    }

    /// A worker that cannot be told is frozen or gone: its drain deadline ends it.
    fn drain(&mut self, worker: WorkerId) {
        let Some(child) = self.children.get(&worker) else { return };
        let order = ToWorker::Drain {
            grace: self.config.graceful_timeout,
            linger: self.config.linger_timeout,
            closing: self.supervisor.stopping(),
        };
        if let Some(Err(e)) = child.channel.as_ref().map(|channel| channel.send(&order)) {
            self.journal.cannot_tell(child.tag, &e);
        }
    }
}
