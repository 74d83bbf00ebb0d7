//! Sockets of slots: opened for more workers, and handed to siblings of those that do not accept.

use std::collections::BTreeSet;
use std::os::fd::AsFd;

use super::Primary;
use crate::identity::{Slot, WorkerId};
use crate::ipc::ToWorker;
use crate::listener::Listener;
use crate::supervisor::Event;

impl Primary {
    /// Opens what is missing for so many slots of the configuration in force.
    pub(super) fn open_sockets(&mut self, slots: u32) -> Event {
        let outcome = match self.config_in_force().cloned() {
            Some(config) => {
                let opened = self.listeners.open_missing(&config.bind, config.backlog, slots);
                opened.map(drop).map_err(|e| e.to_string())
            }
            None => Err("no configuration is in force".to_string()),
        };
        self.tend_steering();
        self.store_sockets();
        Event::SocketsOpened { slots, outcome }
    }

    /// One message for each socket of the slot. What fails is for the supervisor to try otherwise.
    pub(super) fn adopt_slot(&mut self, worker: WorkerId, slot: Slot) {
        if !self.send_slot(worker, slot) {
            self.queue.push_back(Event::AdoptFailed { worker, slot });
        }
    }

    fn send_slot(&mut self, worker: WorkerId, slot: Slot) -> bool {
        let Some(child) = self.children.get(&worker) else { return false };
        let Some(channel) = &child.channel else { return false };
        let word = ToWorker::Adopt { slot, closing: false };
        let mut sockets = self.listeners.of_slot(slot);
        let sent = sockets.try_for_each(|listener| channel.send_with(&word, listener.as_fd()));
        if let Err(e) = &sent {
            self.journal.cannot_hand_slot(child.tag, slot, e);
        }
        sent.is_ok()
    }

    pub(super) fn release_slot(&mut self, worker: WorkerId, slot: Slot) {
        let Some(child) = self.children.get(&worker) else { return };
        let Some(channel) = &child.channel else { return };
        if let Err(e) = channel.send(&ToWorker::GiveBack(slot)) {
            self.journal.cannot_hand_slot(child.tag, slot, &e);
            self.queue.push_back(Event::ReleaseFailed { worker, slot });
        }
    }

    /// An address is listened on no more. Adopters let go of its sockets and keep those of other addresses; and of
    /// each socket some worker that serves takes what is still in the queue, whoever held it before.
    pub(super) fn empty_groups(&mut self, closed: &[Listener]) {
        let slots: BTreeSet<Slot> = closed.iter().map(|listener| listener.slot).collect();
        if slots.iter().all(|slot| *slot == Slot(0)) {
            return;
        }
        let adopted: Vec<_> =
            self.supervisor.adopters().filter(|(slot, _)| slots.contains(slot)).collect();
        for (slot, worker) in adopted {
            self.release_slot(worker, slot);
            self.adopt_slot(worker, slot);
        }
        for listener in closed.iter().filter(|listener| !listener.is_everybodys()) {
            let word = ToWorker::Adopt { slot: listener.slot, closing: true };
            let serving = self.children.iter().filter(|(id, _)| self.supervisor.serves(**id));
            let channels = serving.filter_map(|(_, child)| child.channel.as_ref());
            // If no channel has room, there is nobody who could take them.
            let _ = channels.map(|c| c.send_with(&word, listener.as_fd())).any(|sent| sent.is_ok());
        }
    }
}
