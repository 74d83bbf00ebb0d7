//! Updates the kernel selector when configuration, sockets or workers change.
//!
//! Which worker accepts for a slot is decided by the supervisor (`Action::SetDispatchTarget`), together with the
//! adoption of sockets. Everything else is compared with the wanted state when it may have changed, before each fork
//! and once a second, and updated where it differs. So what has failed is retried; meanwhile the kernel's hash selects
//! a socket.

use std::collections::BTreeSet;
use std::time::Instant;

use super::Primary;
use crate::config::{Config, Dispatch};
use crate::dispatch::{KernelSelector, LoadPageLease, ReuseportGroup, SlotLoad};
use crate::error::Error;
use crate::listener::{ListenAddr, ListenerSet};
use prefork_supervisor::{Slot, WorkerId};

/// Maximum number of different errors that are logged per selector.
const MAX_LOGGED_ERRORS: usize = 8;

/// The active kernel selector, and the parameters that it was started with.
pub(super) struct ActiveSelector {
    pub(super) selector: KernelSelector,
    policy: Dispatch,
    /// The listening addresses, with the number of their sockets.
    groups: Vec<(ListenAddr, usize)>,
    /// Errors that have been logged: the same one would come every second.
    logged_errors: BTreeSet<String>,
}

/// Returns the sockets of the addresses in `config`, if its policy selects slots in the kernel.
fn socket_groups<'a>(
    listeners: &'a ListenerSet,
    config: &Config,
) -> Vec<(&'a ListenAddr, ReuseportGroup<'a>)> {
    match config.dispatch.has_kernel_program() && !config.has_socket_per_worker() {
        true => {
            listeners.groups(&config.bind).map(|(addr, fds)| (addr, ReuseportGroup(fds))).collect()
        }
        false => Vec::new(),
    }
}

fn sockets_without_addresses<'a>(
    groups: Vec<(&'a ListenAddr, ReuseportGroup<'a>)>,
) -> Vec<ReuseportGroup<'a>> {
    groups.into_iter().map(|(_, group)| group).collect()
}

/// Describes which backend selects, with the reason if it is not the best one of the policy.
fn describe_backend(policy: Dispatch, backend: &str, reason: Option<&str>) -> String {
    let Some(why) = reason else {
        return format!("{policy}: the kernel chooses the worker ({backend})");
    };
    match backend {
        "cbpf-weights" => format!("{policy}: {why}; choosing by weights ({backend})"),
        _ => format!("{policy}: {why}; choosing by the kernel's hash ({backend})"),
    }
}

impl Primary {
    /// Starts, updates or stops the kernel selector so that it fits the configuration in force.
    pub(super) fn update_kernel_selector(&mut self) {
        self.steer_connections();
        let config = self.current_config().cloned();
        let Some(config) = config.filter(|_| !self.supervisor.is_stopping()) else { return };
        let groups = socket_groups(&self.listeners, &config);
        let wanted: Vec<(ListenAddr, usize)> =
            groups.iter().map(|(addr, group)| ((*addr).clone(), group.0.len())).collect();
        let active = self.kernel_selector.as_mut().filter(|one| one.policy == config.dispatch);
        let Some(active) = active.filter(|_| !wanted.is_empty()) else {
            self.stop_kernel_selector();
            return self.start_kernel_selector(&config, wanted);
        };
        if active.groups == wanted {
            return;
        }
        let outcome = match active.groups.iter().map(|g| &g.0).eq(wanted.iter().map(|g| &g.0)) {
            true => active.selector.add_slots(&sockets_without_addresses(groups)),
            false => active.selector.replace_groups(&sockets_without_addresses(groups)),
        };
        match outcome {
            Ok(()) => active.groups = wanted,
            Err(e) => self.log_selector_error(&e),
        }
    }

    fn start_kernel_selector(&mut self, config: &Config, wanted: Vec<(ListenAddr, usize)>) {
        if wanted.is_empty() {
            return;
        }
        let policy = config.dispatch;
        let selector = KernelSelector::start(
            policy,
            &sockets_without_addresses(socket_groups(&self.listeners, config)),
        );
        let reason = selector.fallback_reason();
        let text = describe_backend(policy, selector.backend_name(), reason.as_deref());
        self.event_log.log_kernel_selector(text, reason.is_none());
        self.kernel_selector = Some(ActiveSelector {
            selector,
            policy,
            groups: wanted,
            logged_errors: BTreeSet::new(),
        });
        let targets: Vec<_> =
            self.supervisor.dispatch_targets().iter().map(|(s, w)| (*s, *w)).collect();
        for (slot, worker) in targets {
            self.set_dispatch_target(slot, Some(worker));
        }
    }

    /// Detaches the selector: the kernel's hash selects from now on.
    pub(super) fn stop_kernel_selector(&mut self) {
        let Some(active) = self.kernel_selector.take() else { return };
        let addrs: Vec<ListenAddr> = active.groups.into_iter().map(|(addr, _)| addr).collect();
        let groups: Vec<_> =
            self.listeners.groups(&addrs).map(|(_, fds)| ReuseportGroup(fds)).collect();
        active.selector.detach(&groups);
        // The pages are unmapped with the selector.
        self.workers.values_mut().for_each(|child| child.lease = None);
    }

    /// Directs new connections of `slot` to `worker`, or to other slots if there is none.
    pub(super) fn set_dispatch_target(&mut self, slot: Slot, worker: Option<WorkerId>) {
        self.steer_connections();
        let lease = worker.and_then(|id| self.workers.get(&id)?.lease);
        let config = self.current_config().cloned();
        let Some((active, config)) = self.kernel_selector.as_mut().zip(config) else { return };
        if let Some(lease) = lease {
            active.selector.activate_page(lease);
        }
        let groups = sockets_without_addresses(socket_groups(&self.listeners, &config));
        if let Err(e) = active.selector.set_slot_health(slot, worker.is_some(), &groups) {
            self.log_selector_error(&e);
        }
    }

    /// Updates the selector with the current loads, once a second.
    pub(super) fn refresh_kernel_selector(&mut self) {
        let now = Instant::now();
        if !self.kernel_selector.as_ref().is_some_and(|active| active.selector.is_refresh_due(now))
        {
            return;
        }
        self.update_kernel_selector();
        let config = self.current_config().cloned();
        let Some((active, config)) = self.kernel_selector.as_mut().zip(config) else { return };
        let groups = sockets_without_addresses(socket_groups(&self.listeners, &config));
        let mut loads =
            vec![SlotLoad::default(); groups.iter().map(|g| g.0.len()).max().unwrap_or(0)];
        for (slot, worker) in self.supervisor.dispatch_targets() {
            let pages = self.workers.get(worker).map(|child| child.pages);
            if let Some((load, pages)) = loads.get_mut(slot.0 as usize).zip(pages) {
                load.open = self.scoreboard.heartbeat_sample(pages).open_connections;
            }
        }
        for group in &groups {
            for (load, socket) in loads.iter_mut().zip(&group.0) {
                load.queued +=
                    prefork_os::socket::accept_queue(socket).map_or(0, |q| u64::from(q.depth));
            }
        }
        if let Err(e) = active.selector.refresh(now, &loads, &groups) {
            self.log_selector_error(&e);
        }
    }

    /// Returns a load page for the worker that is about to be forked for `slot` under `config`.
    pub(super) fn lease_load_page(&mut self, slot: Slot, config: &Config) -> Option<LoadPageLease> {
        let active =
            self.kernel_selector.as_mut().filter(|_| config.dispatch.has_kernel_program())?;
        Some(active.selector.lease_page(slot))
    }

    /// Directs no connections to a dead worker any more, and frees its page.
    pub(super) fn remove_dispatch_target(
        &mut self,
        worker: WorkerId,
        lease: Option<LoadPageLease>,
    ) {
        let mut targets = self.supervisor.dispatch_targets().iter();
        let own = targets.find(|(_, target)| **target == worker).map(|(slot, _)| *slot);
        // Not only a target: its index is free for connections that wait, too.
        self.steer_connections();
        // Before the page is freed: an empty page would attract all connections.
        if let Some(slot) = own {
            self.set_dispatch_target(slot, None);
        }
        if let Some((active, lease)) = self.kernel_selector.as_mut().zip(lease) {
            active.selector.free_page(lease);
        }
    }

    /// Logs an error once, although it may occur every second.
    fn log_selector_error(&mut self, error: &Error) {
        let Some(active) = &mut self.kernel_selector else { return };
        if active.logged_errors.len() < MAX_LOGGED_ERRORS
            && active.logged_errors.insert(error.to_string())
        {
            self.event_log.log_kernel_selector_error(error);
        }
    }

    /// Returns the backend that selects, for status; empty for a policy without one.
    pub(super) fn selector_backend_name(&self) -> &'static str {
        match &self.worker_sockets {
            Some(sockets) => sockets.backend_name(),
            None => self.kernel_selector.as_ref().map_or("", |one| one.selector.backend_name()),
        }
    }
}
