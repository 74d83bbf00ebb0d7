//! Notifies the service manager of the cluster's state, and stores listening sockets in it. Nothing waits for it or
//! depends on it.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::Primary;
use crate::listener::{ListenAddr, Listener, SocketKeeper};
use crate::systemd::ClusterSummary;
use prefork_os::signal::Signal;
use prefork_supervisor::{LogEvent, Slot};

/// Time that the primary itself needs, in addition to the timeouts of its workers.
const PRIMARY_TIME_MARGIN: Duration = Duration::from_secs(2);

impl Primary {
    /// Notifies the service manager of an event that concerns it.
    pub(super) fn notify_service_manager(&mut self, event: &LogEvent) {
        if self.service_manager.is_none() {
            return;
        }
        let (summary, now) = (self.cluster_summary(), Instant::now());
        let (grace, boot) = self
            .current_config()
            .map_or((Duration::ZERO, Duration::ZERO), |c| (c.graceful_timeout, c.boot_timeout));
        let reload_limit = (grace + boot) * self.supervisor.wanted_workers() + PRIMARY_TIME_MARGIN;
        let Some(manager) = &mut self.service_manager else { return };
        let state = &mut manager.notify_state;
        let monotonic_usec = || prefork_os::system::monotonic_ns() / 1000;
        match event {
            LogEvent::AllReady { .. } => state.queue_ready(&summary),
            LogEvent::Reloading { .. } => {
                state.queue_reloading(now, monotonic_usec(), reload_limit)
            }
            LogEvent::Reloaded { .. } => state.queue_reloaded(None, &summary),
            LogEvent::ReloadFailed { reason } => state.queue_reloaded(Some(reason), &summary),
            // The manager may have sent the signal, and waits for the end of a reload.
            LogEvent::CommandRefused { by, reason, .. }
                if by == Signal::SIGHUP.as_str() && !self.supervisor.is_stopping() =>
            {
                state.queue_reloading(now, monotonic_usec(), PRIMARY_TIME_MARGIN);
                state.queue_reloaded(Some(reason), &summary);
            }
            LogEvent::UpgradeFailed { reason } => {
                state.set_status_remark(format!("the last upgrade failed: {reason}"));
            }
            LogEvent::StopDelayed { delay, .. } => {
                state.queue_stopping(now, *delay + grace + PRIMARY_TIME_MARGIN);
            }
            LogEvent::Stopping { .. } => state.queue_stopping(now, grace + PRIMARY_TIME_MARGIN),
            LogEvent::StoppingNow { .. } | LogEvent::GivingUp { .. } => {
                state.queue_stopping(now, PRIMARY_TIME_MARGIN);
            }
            _ => return,
        }
        self.flush_notifications();
    }

    /// Sends status and watchdog messages when they are due. Returns when to call it again.
    pub(super) fn notify_service_manager_if_due(&mut self, now: Instant) -> Option<Instant> {
        let is_due = self.service_manager.as_ref()?.notify_state.is_due(now);
        if is_due {
            let summary = self.cluster_summary();
            self.service_manager.as_mut()?.notify_state.queue_due_messages(now, &summary);
            self.store_sockets();
        }
        self.flush_notifications();
        self.service_manager.as_ref().map(|manager| manager.next_deadline(now))
    }

    fn flush_notifications(&mut self) {
        if let Some(Err(e)) = self.service_manager.as_mut().map(|manager| manager.flush()) {
            self.event_log.log_notify_error(&e);
        }
    }

    fn cluster_summary(&self) -> ClusterSummary {
        let now = prefork_os::system::monotonic_ms();
        let manager = self.service_manager.as_ref();
        let max_age = manager.map_or(Duration::ZERO, |one| one.notify_state.max_heartbeat_age());
        let serving = self.workers.iter().filter(|(id, _)| self.supervisor.is_serving(**id));
        let (mut ready, mut is_responsive) = (0, false);
        for (_, process) in serving {
            ready += 1;
            let age =
                now.saturating_sub(self.scoreboard.heartbeat_sample(process.pages).heartbeat_ms);
            is_responsive |= u128::from(age) <= max_age.as_millis();
        }
        let living =
            self.workers.values().map(|one| self.scoreboard.heartbeat_sample(one.pages).requests);
        let wanted = self.supervisor.wanted_workers();
        ClusterSummary {
            // During a reload more workers than wanted may serve.
            ready: ready.min(wanted),
            wanted,
            generation: self.supervisor.wanted_generation(),
            requests: self.scoreboard.sums_of_dead_workers().totals.requests + living.sum::<u64>(),
            is_responsive,
        }
    }

    /// Stores the listening sockets that the service manager does not keep yet.
    pub(super) fn store_sockets(&mut self) {
        let Some(manager) = self.service_manager.as_mut().filter(|one| one.stores_sockets()) else {
            return;
        };
        for listener in
            self.listeners.listeners.iter_mut().filter(|l| l.keeper == SocketKeeper::Primary)
        {
            let Some(name) = listener.store_name() else { continue };
            match manager.store_socket(&name, listener.as_fd()) {
                Ok(true) => listener.keeper = SocketKeeper::FdStore,
                // Tried again with the next status.
                Ok(false) => return,
                Err(e) => return self.event_log.log_notify_error(&e),
            }
        }
    }

    /// Removes closed sockets from the service manager's store.
    pub(super) fn remove_stored_sockets(&mut self, closed: &[Listener]) {
        let stored = closed.iter().filter(|listener| listener.keeper == SocketKeeper::FdStore);
        let names: Vec<String> = stored.filter_map(Listener::store_name).collect();
        self.remove_from_store(&names);
    }

    /// Removes all Unix sockets from the store before the primary ends: without its file no client can reach one.
    pub(super) fn remove_stored_unix_sockets(&mut self) {
        let is_stored_unix_socket = |listener: &&Listener| {
            listener.keeper == SocketKeeper::FdStore
                && matches!(listener.addr, ListenAddr::Unix(_))
                && listener.slot == Slot(0)
        };
        let stored = self.listeners.listeners.iter().filter(is_stored_unix_socket);
        let names: Vec<String> = stored.filter_map(Listener::store_name).collect();
        self.remove_from_store(&names);
    }

    fn remove_from_store(&mut self, names: &[String]) {
        if let Some(manager) = &mut self.service_manager {
            names.iter().for_each(|name| manager.remove_socket(name));
        }
        self.flush_notifications();
    }
}
