//! Sockets of slots: opened for more workers, and handed to siblings of those that do not accept.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Instant;

use super::Primary;
use crate::channel::{ToWorker, Unread};
use crate::listener::{ListenAddr, Listener, RepairedSockets};
use prefork_supervisor::Event;
use prefork_supervisor::{Slot, WorkerId};

/// Connections that are taken from the queue of a socket that was replaced. More have hardly come.
const MAX_MOVED_CONNECTIONS: usize = 256;

impl Primary {
    /// Opens what is missing for so many slots of the configuration in force.
    pub(super) fn open_sockets(&mut self, slots: u32) -> Event {
        let result = match self.current_config().cloned() {
            Some(config) => {
                let opened =
                    self.listeners.open_missing_sockets(&config.bind, config.backlog, slots);
                opened.map(drop).map_err(|e| e.to_string())
            }
            None => Err("no configuration is in force".to_string()),
        };
        self.update_kernel_selector();
        self.store_sockets();
        Event::SocketsOpened { slots, result }
    }

    /// Workers that serve take these addresses on, besides what they have, and those that replace them are born with
    /// them: connections come there from now on, and the new generation may never get ready.
    pub(super) fn serve_at_once(&mut self, addrs: &[ListenAddr]) {
        if addrs.is_empty() {
            return;
        }
        for config in self.configs.values_mut() {
            let missing: Vec<_> =
                addrs.iter().filter(|a| !config.bind.contains(a)).cloned().collect();
            Rc::make_mut(config).bind.extend(missing);
        }
        let new = || self.listeners.listeners.iter().filter(|one| addrs.contains(&one.addr));
        for child in self.workers.values().filter(|one| one.serves_web(&self.supervisor)) {
            let config = self.configs.get(&child.tag.generation);
            let Some(dispatch) = config.map(|config| config.dispatch) else { continue };
            if dispatch.accepts_in_primary() || child.released {
                continue;
            }
            let adopted =
                self.supervisor.slot_adopters().filter(|(_, worker)| *worker == child.tag.id);
            let slots: BTreeSet<Slot> =
                adopted.map(|(slot, _)| slot).chain([child.tag.slot]).collect();
            let per_slot = dispatch.has_socket_per_slot();
            for listener in
                new().filter(|l| slots.iter().any(|slot| l.is_for_slot(*slot, per_slot)))
            {
                let word = ToWorker::Adopt { slot: listener.slot, closing: false };
                let Some(channel) = &child.channel else { continue };
                if let Err(e) = channel.send_with(&word, listener.as_fd()) {
                    self.event_log.cannot_hand_slot(child.tag, listener.slot, &e);
                }
            }
        }
    }

    /// Tells of sockets that were made anew, and passes on what waits in those that they replace.
    pub(super) fn settle_repaired(&mut self, repaired: RepairedSockets) -> Vec<ListenAddr> {
        let RepairedSockets { addrs, replaced } = repaired;
        for listener in &replaced {
            if listener.slot == Slot(0) {
                self.event_log.reopened(&listener.local.to_string());
            }
            for _ in 0..MAX_MOVED_CONNECTIONS {
                let Ok(fd) = prefork_os::socket::accept_connection(listener) else { break };
                self.handover.take_in(fd, Unread::default(), Instant::now());
            }
        }
        self.unstore(&replaced);
        self.update_kernel_selector();
        addrs
    }

    /// One message for each socket of the slot. What fails is for the supervisor to try otherwise.
    pub(super) fn adopt_slot(&mut self, worker: WorkerId, slot: Slot) {
        if !self.send_slot(worker, slot) {
            self.pending_events.push_back(Event::AdoptSlotFailed { worker, slot });
        }
    }

    fn send_slot(&mut self, worker: WorkerId, slot: Slot) -> bool {
        let Some(child) = self.workers.get(&worker) else { return false };
        let Some(channel) = &child.channel else { return false };
        let word = ToWorker::Adopt { slot, closing: false };
        let mut sockets = self.listeners.slot_listeners(slot);
        let sent = sockets.try_for_each(|listener| channel.send_with(&word, listener.as_fd()));
        if let Err(e) = &sent {
            self.event_log.cannot_hand_slot(child.tag, slot, e);
        }
        sent.is_ok()
    }

    pub(super) fn release_slot(&mut self, worker: WorkerId, slot: Slot) {
        let Some(child) = self.workers.get(&worker) else { return };
        let Some(channel) = &child.channel else { return };
        if let Err(e) = channel.send(&ToWorker::GiveBack(slot)) {
            self.event_log.cannot_hand_slot(child.tag, slot, &e);
            self.pending_events.push_back(Event::ReleaseSlotFailed { worker, slot });
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
            self.supervisor.slot_adopters().filter(|(slot, _)| slots.contains(slot)).collect();
        for (slot, worker) in adopted {
            self.release_slot(worker, slot);
            self.adopt_slot(worker, slot);
        }
        for listener in closed.iter().filter(|listener| !listener.is_shared_by_all_workers()) {
            let word = ToWorker::Adopt { slot: listener.slot, closing: true };
            let serving = self.workers.values().filter(|one| one.serves_web(&self.supervisor));
            let channels = serving.filter_map(|child| child.channel.as_ref());
            // If no channel has room, there is nobody who could take them.
            let _ = channels.map(|c| c.send_with(&word, listener.as_fd())).any(|sent| sent.is_ok());
        }
    }
}
