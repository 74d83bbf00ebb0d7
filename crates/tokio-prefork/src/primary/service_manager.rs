//! What the service manager learns of us, and which sockets it keeps. It is never waited for, and nothing depends on it.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::Primary;
use crate::listener::{ListenAddr, Listener, SocketKeeper};
use crate::systemd::Figures;
use prefork_os::signal::Signal;
use prefork_supervisor::LogEvent;
use prefork_supervisor::Slot;

/// What a primary needs besides the deadlines of its workers.
const MARGIN: Duration = Duration::from_secs(2);

impl Primary {
    /// Says what concerns the manager.
    pub(super) fn announce(&mut self, notice: &LogEvent) {
        if self.manager.is_none() {
            return;
        }
        let (figures, now) = (self.figures(), Instant::now());
        let (grace, boot) = self
            .current_config()
            .map_or((Duration::ZERO, Duration::ZERO), |c| (c.graceful_timeout, c.boot_timeout));
        let round = (grace + boot) * self.supervisor.wanted_workers() + MARGIN;
        let Some(manager) = &mut self.manager else { return };
        let herald = &mut manager.herald;
        let usec = || prefork_os::system::monotonic_ns() / 1000;
        match notice {
            LogEvent::AllReady { .. } => herald.ready(&figures),
            LogEvent::Reloading { .. } => herald.reloading(now, usec(), round),
            LogEvent::Reloaded { .. } => herald.reloaded(None, &figures),
            LogEvent::ReloadFailed { reason } => herald.reloaded(Some(reason), &figures),
            // The manager may have sent it, and waits for an answer.
            LogEvent::CommandRefused { by, reason } if by == Signal::SIGHUP.as_str() => {
                herald.reloading(now, usec(), MARGIN);
                herald.reloaded(Some(reason), &figures);
            }
            LogEvent::UpgradeFailed { reason } => {
                herald.remark(format!("the last upgrade failed: {reason}"))
            }
            LogEvent::StopDelayed { delay, .. } => herald.stopping(now, *delay + grace + MARGIN),
            LogEvent::Stopping { .. } => herald.stopping(now, grace + MARGIN),
            LogEvent::StoppingNow { .. } | LogEvent::GivingUp { .. } => {
                herald.stopping(now, MARGIN)
            }
            _ => return,
        }
        self.tell_manager();
    }

    /// What is said from time to time. Returns when it is to be called again.
    pub(super) fn tend_manager(&mut self, now: Instant) -> Option<Instant> {
        let due = self.manager.as_ref()?.herald.is_due(now);
        if due {
            let figures = self.figures();
            self.manager.as_mut()?.herald.look(now, &figures);
            self.store_sockets();
        }
        self.tell_manager();
        self.manager.as_ref().map(|manager| manager.deadline(now))
    }

    fn tell_manager(&mut self) {
        if let Some(Err(e)) = self.manager.as_mut().map(|manager| manager.flush()) {
            self.event_log.cannot_notify(&e);
        }
    }

    fn figures(&self) -> Figures {
        let now = prefork_os::system::monotonic_ms();
        let fresh = self.manager.as_ref().map_or(Duration::ZERO, |m| m.herald.freshness());
        let serving = self.workers.iter().filter(|(id, _)| self.supervisor.is_serving(**id));
        let (mut ready, mut serves) = (0, false);
        for (_, child) in serving {
            ready += 1;
            let age = now.saturating_sub(self.scoreboard.glance(child.row).beat);
            serves |= u128::from(age) <= fresh.as_millis();
        }
        let living = self.workers.values().map(|child| self.scoreboard.glance(child.row).requests);
        let wanted = self.supervisor.wanted_workers();
        Figures {
            // In a reload there are more for a while.
            ready: ready.min(wanted),
            wanted,
            generation: self.supervisor.wanted_generation(),
            requests: self.scoreboard.totals().0.requests + living.sum::<u64>(),
            serves,
        }
    }

    /// Gives the manager what it does not keep yet.
    pub(super) fn store_sockets(&mut self) {
        let Some(manager) = self.manager.as_mut().filter(|manager| manager.stores()) else {
            return;
        };
        for listener in
            self.listeners.listeners.iter_mut().filter(|l| l.keeper == SocketKeeper::Primary)
        {
            let Some(name) = listener.store_name() else { continue };
            match manager.store(&name, listener.as_fd()) {
                Ok(true) => listener.keeper = SocketKeeper::FdStore,
                // Tried again at the next look.
                Ok(false) => return,
                Err(e) => return self.event_log.cannot_notify(&e),
            }
        }
    }

    /// Nobody wants these any more.
    pub(super) fn unstore(&mut self, closed: &[Listener]) {
        let stored = closed.iter().filter(|listener| listener.keeper == SocketKeeper::FdStore);
        let names: Vec<String> = stored.filter_map(Listener::store_name).collect();
        self.let_go(&names);
    }

    /// In the end the files of our Unix sockets go, and nobody could reach what the manager kept.
    pub(super) fn unstore_files(&mut self) {
        let files = |l: &&Listener| {
            l.keeper == SocketKeeper::FdStore && matches!(l.addr, ListenAddr::Unix(_))
        };
        let kept = self.listeners.listeners.iter().filter(files);
        let names: Vec<String> =
            kept.filter(|l| l.slot == Slot(0)).filter_map(Listener::store_name).collect();
        self.let_go(&names);
    }

    fn let_go(&mut self, names: &[String]) {
        if let Some(manager) = &mut self.manager {
            names.iter().for_each(|name| manager.forget(name));
        }
        self.tell_manager();
    }
}
