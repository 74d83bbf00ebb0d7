//! The sockets of slots: opened for more workers, handed to running workers, and drained when they are closed or
//! replaced.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::time::Instant;

use super::Primary;
use crate::channel::{HandoverState, WorkerCommand};
use crate::error::{Error, Result};
use crate::listener::{ListenAddr, Listener, RepairedSockets};
use prefork_supervisor::{Event, Slot, WorkerId};

/// How many connections are moved from the accept queue of a replaced socket.
const MAX_MOVED_CONNECTIONS: usize = 256;

impl Primary {
    /// Opens the missing sockets of the first `slots` slots, for the current configuration.
    pub(super) fn open_sockets(&mut self, slots: u32) {
        let result = self.open_missing_sockets(slots).map_err(|e| e.to_string());
        self.update_kernel_selector();
        self.store_sockets();
        self.pending_events.push_back(Event::SocketsOpened { slots, result });
    }

    fn open_missing_sockets(&mut self, slots: u32) -> Result<()> {
        let config = self.current_config().cloned();
        let config = config.ok_or_else(|| Error::internal("no current configuration"))?;
        self.listeners.open_missing_sockets(&config.bind, config.backlog, slots).map(drop)
    }

    /// Makes running workers and their replacements accept at these addresses too.
    ///
    /// Connections arrive there from now on, and the new generation may never become ready.
    pub(super) fn serve_with_running_workers(&mut self, addrs: &[ListenAddr]) {
        // A foreign program gets its sockets when it starts, and no others later.
        if addrs.is_empty() || self.worker_sockets.is_some() {
            return;
        }
        self.configs.add_bind_addresses(addrs);
        for process in self.workers.values().filter(|one| one.serves_web(&self.supervisor)) {
            let Some(config) = self.configs.config_of_generation(process.tag.generation) else {
                continue;
            };
            if config.dispatch.accepts_in_primary() || process.released {
                continue;
            }
            let adopters = self.supervisor.slot_adopters();
            let adopted = adopters.filter(|(_, worker)| *worker == process.tag.id);
            let slots: BTreeSet<Slot> =
                adopted.map(|(slot, _)| slot).chain([process.tag.slot]).collect();
            let per_slot = config.dispatch.has_socket_per_slot();
            let is_wanted = |listener: &&Listener| {
                addrs.contains(&listener.addr)
                    && slots.iter().any(|slot| listener.is_for_slot(*slot, per_slot))
            };
            for listener in self.listeners.listeners.iter().filter(is_wanted) {
                let word = WorkerCommand::AdoptSlot { slot: listener.slot, closing: false };
                let Some(channel) = &process.channel else { continue };
                if let Err(e) = channel.send_with_fd(&word, listener.as_fd()) {
                    self.event_log.log_slot_handover_error(process.tag, listener.slot, &e);
                }
            }
        }
    }

    /// Reports sockets that were opened anew, and relays the connections in the queues of those that they replace.
    pub(super) fn replace_sockets(&mut self, repaired: RepairedSockets) -> Vec<ListenAddr> {
        let RepairedSockets { addrs, replaced } = repaired;
        let state = self.state_of_accepted();
        for listener in &replaced {
            if listener.slot == Slot(0) {
                self.event_log.log_listener_reopened(&listener.local.to_string());
            }
            if self.worker_sockets.is_some() {
                // Foreign programs cannot take connections over; those that have the socket accept what waits. And it may block.
                continue;
            }
            for _ in 0..MAX_MOVED_CONNECTIONS {
                let Ok(fd) = prefork_os::socket::accept_connection(listener) else { break };
                self.handover.push(fd, state.clone(), Instant::now());
            }
        }
        self.remove_stored_sockets(&replaced);
        self.update_kernel_selector();
        addrs
    }

    /// Returns what a worker has to know of a connection that the primary has accepted.
    ///
    /// Workers of an image that knows no PROXY protocol know nothing of connections that were only accepted either.
    pub(super) fn state_of_accepted(&self) -> HandoverState {
        let may_have_header = self.current_config().is_some_and(|c| c.uses_proxy_protocol());
        let between_requests = HandoverState::served(Vec::new(), None).filter(|_| !may_have_header);
        between_requests.unwrap_or_else(HandoverState::accepted)
    }

    /// Sends the sockets of a slot to its adopter.
    pub(super) fn adopt_slot(&mut self, worker: WorkerId, slot: Slot) {
        if !self.send_slot_sockets(worker, slot) {
            self.pending_events.push_back(Event::AdoptSlotFailed { worker, slot });
        }
    }

    fn send_slot_sockets(&mut self, worker: WorkerId, slot: Slot) -> bool {
        let Some(process) = self.workers.get(&worker) else { return false };
        let Some(channel) = &process.channel else { return false };
        let word = WorkerCommand::AdoptSlot { slot, closing: false };
        let mut sockets = self.listeners.slot_listeners(slot);
        let sent = sockets.try_for_each(|listener| channel.send_with_fd(&word, listener.as_fd()));
        if let Err(e) = &sent {
            self.event_log.log_slot_handover_error(process.tag, slot, e);
        }
        sent.is_ok()
    }

    /// Sends an adopter the command to stop accepting for a slot.
    pub(super) fn release_slot(&mut self, worker: WorkerId, slot: Slot) {
        let Some(process) = self.workers.get(&worker) else { return };
        let Some(channel) = &process.channel else { return };
        if let Err(e) = channel.send(&WorkerCommand::ReleaseSlot(slot)) {
            self.event_log.log_slot_handover_error(process.tag, slot, &e);
            self.pending_events.push_back(Event::ReleaseSlotFailed { worker, slot });
        }
    }

    /// Drains the accept queues of closed sockets. Adopters release them and keep those of other addresses; one serving
    /// worker accepts what is still queued.
    pub(super) fn drain_closed_sockets(&mut self, closed: &[Listener]) {
        let slots: BTreeSet<Slot> = closed.iter().map(|listener| listener.slot).collect();
        if self.worker_sockets.is_some() || slots.iter().all(|slot| *slot == Slot(0)) {
            return;
        }
        let adopted: Vec<_> =
            self.supervisor.slot_adopters().filter(|(slot, _)| slots.contains(slot)).collect();
        for (slot, worker) in adopted {
            self.release_slot(worker, slot);
            self.adopt_slot(worker, slot);
        }
        for listener in closed.iter().filter(|listener| !listener.is_shared_by_all_workers()) {
            let word = WorkerCommand::AdoptSlot { slot: listener.slot, closing: true };
            let serving = self.workers.values().filter(|one| one.serves_web(&self.supervisor));
            let mut channels = serving.filter_map(|process| process.channel.as_ref());
            // Without room in any channel, no worker could accept these connections.
            let _ = channels.any(|channel| channel.send_with_fd(&word, listener.as_fd()).is_ok());
        }
    }
}
