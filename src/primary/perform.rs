//! Actions to effects: one arm each. What fails comes back as an event.

use super::{Primary, journal};
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
                if let Some(child) = self.children.get(&worker) {
                    if let Err(e) = sys::process::kill(child.pid, Signal::SIGKILL) {
                        journal::cannot_kill(child.tag, &e);
                    }
                }
            }
            Action::Report(notice) => journal::record(&notice),
            // Nobody asks with a ticket yet.
            Action::Answer { .. } => {}
            Action::Exit(outcome) => return Some(outcome),
        }
        None
    }

    /// A worker that cannot be told is frozen or gone: its drain deadline ends it.
    fn drain(&mut self, worker: WorkerId) {
        let Some(child) = self.children.get_mut(&worker) else { return };
        child.released = true;
        let order = ToWorker::Drain {
            grace: self.config.graceful_timeout,
            linger: self.config.linger_timeout,
            closing: self.supervisor.stopping(),
            hand_over: self.config.hand_over && !self.supervisor.stopping(),
        };
        if let Some(Err(e)) = child.channel.as_ref().map(|channel| channel.send(&order)) {
            journal::cannot_tell(child.tag, &e);
        }
    }
}
