//! A cluster without `web` workers, on purpose: every slot was disconnected, vetoed or scaled away.
//!
//! No worker would accept what the listening sockets queue, so clients would wait for ever. Instead they are refused,
//! while the addresses stay bound, until a worker is to be forked again. If nothing else keeps the primary busy, it ends.
//!
//! The application may have forked a worker, or be about to do so in a hook; its commands come as events. So the primary
//! is asked to run the hooks and to report [`Event::EmptyConfirmed`](crate::Event::EmptyConfirmed) after whatever is
//! pending: once before the cluster counts as empty, and once more after the hooks have been told.

use std::time::Instant;

use crate::action::{Action, LogEvent};
use crate::command::Requester;
use crate::slot_table::{RestartPolicy, SlotEntry};
use crate::supervisor::Supervisor;

/// Whether the listening sockets accept connections for the workers of the kind `web`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum ListenState {
    /// They do: there are workers, or there will be.
    #[default]
    Listening,
    /// The last workers drain. New connections are held off, so that these can empty the accept queues.
    Holding,
    /// No worker is left. A command that is pending may change that.
    Confirming,
    /// `LogEvent::Empty` was logged. A hook may fork.
    Announced,
    /// Connections are refused.
    Refusing,
}

impl Supervisor {
    /// Follows the number of `web` workers. Called after every event.
    pub(crate) fn update_listen_state(&mut self) {
        if self.is_stop_requested() {
            return;
        }
        if !self.is_left_empty() {
            return self.resume_listening();
        }
        if self.listen_state == ListenState::Listening {
            self.listen_state = ListenState::Holding;
            self.actions.push(Action::HoldConnections);
        }
        let has_workers = self.workers.iter().any(|record| record.tag.slot.is_web());
        if self.listen_state == ListenState::Holding && !has_workers {
            self.listen_state = ListenState::Confirming;
            self.actions.push(Action::ConfirmEmpty);
        }
    }

    /// Makes the sockets accept again. Called before anything that needs them: a fork, a reload, an upgrade.
    pub(crate) fn resume_listening(&mut self) {
        if std::mem::take(&mut self.listen_state) != ListenState::Listening {
            self.actions.push(Action::ResumeListening);
        }
    }

    /// The hooks have run, and no command of theirs fills a slot.
    pub(crate) fn on_empty_confirmed(&mut self) {
        if self.is_stop_requested() || !self.is_left_empty() {
            return;
        }
        match self.listen_state {
            ListenState::Confirming => {
                self.listen_state = ListenState::Announced;
                self.log_event(LogEvent::Empty);
                self.actions.push(Action::ConfirmEmpty);
            }
            ListenState::Announced => {
                self.listen_state = ListenState::Refusing;
                self.actions.push(Action::RefuseConnections);
            }
            ListenState::Listening | ListenState::Holding | ListenState::Refusing => {}
        }
    }

    /// Ends the primary if it has nothing left to do. The application has no timers or descriptors.
    pub(crate) fn on_application_idle(&mut self, now: Instant) {
        if self.is_idle() {
            let by = "no worker is left, and the application waits for nothing";
            self.begin_stop(now, Requester::without_reply(by));
        }
    }

    /// Returns whether every slot of `web` stays empty and nothing is under way that would fill one.
    pub(crate) fn is_left_empty(&self) -> bool {
        let mut web = self.slots.iter().filter(|entry| entry.slot.is_web());
        self.scale_queue.is_empty()
            && !self.reload.is_reloading()
            && !self.upgrade.is_upgrading()
            && web.all(is_left_empty)
    }

    /// Returns whether connections are refused, as the last `web` worker has exited for good.
    pub fn is_refusing_connections(&self) -> bool {
        self.listen_state == ListenState::Refusing
    }

    /// Returns whether the last `web` workers drain and none will follow them.
    pub fn is_emptying(&self) -> bool {
        self.listen_state == ListenState::Holding
    }

    /// Returns whether no worker of any kind exists or will be forked, so that only the application's own timers and
    /// descriptors keep the primary: see `Event::ApplicationIdle`.
    pub fn is_idle(&self) -> bool {
        self.is_refusing_connections()
            && !self.is_stop_requested()
            && !self.upgrade.is_upgrading()
            && self.workers.is_empty()
            && self.slots.iter().all(is_left_empty)
    }
}

/// Returns whether the slot has no worker and gets none before a reload or a scale command.
fn is_left_empty(entry: &SlotEntry) -> bool {
    let is_unfilled = entry.holder.is_none() && entry.successor.is_none();
    is_unfilled && entry.restart == RestartPolicy::LeaveEmpty
}
