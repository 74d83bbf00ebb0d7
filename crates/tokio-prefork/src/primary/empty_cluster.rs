//! What happens to the listening sockets when the last `web` worker leaves for good, and when another one follows.

use std::os::fd::AsFd;

use super::Primary;
use crate::channel::{HandoverMode, WorkerCommand};
use prefork_supervisor::Event;

impl Primary {
    /// Holds off new connections, and has the workers that drain serve what is left: a worker accepts the connections in
    /// the queues, which would be reset later, and none hands over any more.
    pub(super) fn hold_connections(&mut self) {
        self.listeners.hold_connections();
        let web = self.workers.values().filter(|process| process.tag.slot.is_web());
        let mut channels = web.filter_map(|process| process.channel.as_ref());
        if let Some(config) = self.current_config() {
            let order = WorkerCommand::Drain {
                grace: config.graceful_timeout,
                linger: config.linger_timeout,
                closing: true,
                hand_over: HandoverMode::Never,
            };
            // A worker whose channel is full hands over to the others; these keep what they get.
            channels.clone().for_each(|channel| drop(channel.send(&order)));
        }
        if self.worker_sockets.is_some() {
            // A foreign program accepts from the sockets that it has, and from no others.
            return;
        }
        // Without room in any channel, nobody accepts them.
        let _ = channels.any(|channel| {
            self.listeners.listeners.iter().all(|listener| {
                let word = WorkerCommand::AdoptSlot { slot: listener.slot, closing: true };
                channel.send_with_fd(&word, listener.as_fd()).is_ok()
            })
        });
    }

    /// Runs the hooks, and queues the confirmation after the commands that they have queued.
    pub(super) fn confirm_empty(&mut self) {
        self.run_event_hooks();
        self.pending_events.push_back(Event::EmptyConfirmed);
    }

    /// Makes the listening sockets refuse connections.
    pub(super) fn refuse_connections(&mut self) {
        // It holds on to sockets that listen.
        self.stop_kernel_selector();
        self.set_refusing_on_worker_sockets(true);
        let event_log = &mut self.event_log;
        let refused = self.listeners.refuse_connections(|listener, e| {
            event_log.log_refuse_error(&listener.local.to_string(), e);
        });
        self.event_log.log_refusing_connections(&refused);
        let held = self.round_robin.drain_held().count();
        self.round_robin.count_lost(held, "no worker is left to take them");
    }

    /// Makes the listening sockets accept connections again. A failure is logged; a reload repairs the sockets.
    pub(super) fn resume_listening(&mut self) {
        let Some(config) = self.current_config().cloned() else { return };
        let slots = self.listeners.slots().max(1);
        match self.listeners.resume_listening(&config.bind, config.backlog, slots) {
            Ok(()) => self.event_log.log_listening_again(&self.listeners.bound_addr_texts()),
            Err(e) => self.event_log.log_listen_again_error(&e),
        }
        self.set_refusing_on_worker_sockets(false);
        self.update_kernel_selector();
    }

    /// Reports that nothing is left to do, if no worker and no timer or descriptor of the application is left.
    pub(super) fn report_application_idle(&mut self) {
        if self.event_loop.is_empty() && self.supervisor.is_idle() {
            self.pending_events.push_back(Event::ApplicationIdle);
        }
    }
}
