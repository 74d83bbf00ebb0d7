//! What chooses among the sockets of slots: kept in step with the configuration, the sockets and the workers.
//!
//! Who takes the connections of a slot is the supervisor's word (`Action::SetDispatchTarget`), as it decides on adoption by the same
//! facts. All else is looked at when it may have changed, before each fork and once a second, and done where it differs. So what
//! has failed is tried again, and meanwhile the kernel's hash chooses: among sockets that all have somebody.

use std::collections::BTreeSet;
use std::time::Instant;

use super::Primary;
use crate::config::{Config, Dispatch};
use crate::dispatch::{Group, Lease, Load, Steering};
use crate::error::Error;
use crate::listener::{ListenAddr, ListenerSet};
use prefork_supervisor::{Slot, WorkerId};

/// So many different troubles are told.
const MOST_TOLD: usize = 8;

/// What chooses, and what it was given to choose from.
pub(super) struct Steered {
    pub(super) steering: Steering,
    policy: Dispatch,
    /// The addresses, with the number of their sockets.
    groups: Vec<(ListenAddr, usize)>,
    /// What has failed was told: it is tried again each second.
    told: BTreeSet<String>,
}

/// The sockets of the addresses that `config` names, where slots have their own.
fn groups<'a>(listeners: &'a ListenerSet, config: &Config) -> Vec<(&'a ListenAddr, Group<'a>)> {
    match config.dispatch.chooses_in_kernel() {
        true => listeners.groups(&config.bind).map(|(addr, fds)| (addr, Group(fds))).collect(),
        false => Vec::new(),
    }
}

/// As steering takes them.
fn sockets<'a>(groups: Vec<(&'a ListenAddr, Group<'a>)>) -> Vec<Group<'a>> {
    groups.into_iter().map(|(_, group)| group).collect()
}

/// What chooses, in words, with the reason if it is not what the policy means.
fn said(policy: Dispatch, rung: &str, reason: Option<&str>) -> String {
    let Some(why) = reason else {
        return format!("{policy}: the kernel chooses the worker ({rung})");
    };
    match rung {
        "cbpf-weights" => format!("{policy}: {why}; choosing by weights ({rung})"),
        _ => format!("{policy}: {why}; choosing by the kernel's hash ({rung})"),
    }
}

impl Primary {
    /// Sees to it that what is listened on is steered as the configuration in force says.
    pub(super) fn tend_steering(&mut self) {
        let config = self.current_config().cloned();
        let Some(config) = config.filter(|_| !self.supervisor.is_stopping()) else { return };
        let groups = groups(&self.listeners, &config);
        let wanted: Vec<(ListenAddr, usize)> =
            groups.iter().map(|(addr, group)| ((*addr).clone(), group.0.len())).collect();
        let steered = self.steering.as_mut().filter(|one| one.policy == config.dispatch);
        let Some(steered) = steered.filter(|_| !wanted.is_empty()) else {
            self.end_steering();
            return self.begin_steering(&config, wanted);
        };
        if steered.groups == wanted {
            return;
        }
        let outcome = match steered.groups.iter().map(|g| &g.0).eq(wanted.iter().map(|g| &g.0)) {
            true => steered.steering.group_grew(&sockets(groups)),
            false => steered.steering.regroup(&sockets(groups)),
        };
        match outcome {
            Ok(()) => steered.groups = wanted,
            Err(e) => self.note_steering(&e),
        }
    }

    fn begin_steering(&mut self, config: &Config, wanted: Vec<(ListenAddr, usize)>) {
        if wanted.is_empty() {
            return;
        }
        let policy = config.dispatch;
        let steering = Steering::start(policy, &sockets(groups(&self.listeners, config)));
        let text = said(policy, steering.rung(), steering.reason());
        self.event_log.steering(text, steering.reason().is_none());
        self.steering = Some(Steered { steering, policy, groups: wanted, told: BTreeSet::new() });
        let told: Vec<_> =
            self.supervisor.dispatch_targets().iter().map(|(s, w)| (*s, *w)).collect();
        for (slot, worker) in told {
            self.steer(slot, Some(worker));
        }
    }

    /// Leaves the choice to the kernel's hash.
    pub(super) fn end_steering(&mut self) {
        let Some(steered) = self.steering.take() else { return };
        let addrs: Vec<ListenAddr> = steered.groups.into_iter().map(|(addr, _)| addr).collect();
        let groups: Vec<_> = self.listeners.groups(&addrs).map(|(_, fds)| Group(fds)).collect();
        steered.steering.release(&groups);
        // Their pages are nobody's any more.
        self.workers.values_mut().for_each(|child| child.lease = None);
    }

    /// This worker takes the slot's connections from now on, or nobody does.
    pub(super) fn steer(&mut self, slot: Slot, worker: Option<WorkerId>) {
        let lease = worker.and_then(|id| self.workers.get(&id)?.lease);
        let config = self.current_config().cloned();
        let Some((steered, config)) = self.steering.as_mut().zip(config) else { return };
        if let Some(lease) = lease {
            steered.steering.hold(lease);
        }
        let groups = sockets(groups(&self.listeners, &config));
        if let Err(e) = steered.steering.set_health(slot, worker.is_some(), &groups) {
            self.note_steering(&e);
        }
    }

    /// What is to be done each second.
    pub(super) fn refresh_steering(&mut self) {
        let now = Instant::now();
        if !self.steering.as_ref().is_some_and(|steered| steered.steering.is_due(now)) {
            return;
        }
        self.tend_steering();
        let config = self.current_config().cloned();
        let Some((steered, config)) = self.steering.as_mut().zip(config) else { return };
        let groups = sockets(groups(&self.listeners, &config));
        let mut loads = vec![Load::default(); groups.iter().map(|g| g.0.len()).max().unwrap_or(0)];
        for (slot, worker) in self.supervisor.dispatch_targets() {
            let row = self.workers.get(worker).map(|child| child.row);
            if let Some((load, row)) = loads.get_mut(slot.0 as usize).zip(row) {
                load.open = self.scoreboard.glance(row).open;
            }
        }
        for group in &groups {
            for (load, socket) in loads.iter_mut().zip(&group.0) {
                load.waiting +=
                    prefork_os::socket::accept_queue(socket).map_or(0, |q| u64::from(q.depth));
            }
        }
        if let Err(e) = steered.steering.refresh(now, &loads, &groups) {
            self.note_steering(&e);
        }
    }

    /// A page for the worker that is about to be forked for `slot` under `config`.
    pub(super) fn lease_page(&mut self, slot: Slot, config: &Config) -> Option<Lease> {
        let steered = self.steering.as_mut().filter(|_| config.dispatch.chooses_in_kernel())?;
        Some(steered.steering.lease(slot))
    }

    /// Nobody steers to a dead worker; its page is free.
    pub(super) fn bury_steered(&mut self, worker: WorkerId, lease: Option<Lease>) {
        let slots = self.supervisor.dispatch_targets().iter();
        let own = slots.filter(|(_, own)| **own == worker).map(|(slot, _)| *slot).next();
        // In this order: a page that is empty would attract everybody.
        if let Some(slot) = own {
            self.steer(slot, None);
        }
        if let Some((steered, lease)) = self.steering.as_mut().zip(lease) {
            steered.steering.retire(lease);
        }
    }

    /// Tells trouble once, and not each second.
    fn note_steering(&mut self, trouble: &Error) {
        let Some(steered) = &mut self.steering else { return };
        if steered.told.len() < MOST_TOLD && steered.told.insert(trouble.to_string()) {
            self.event_log.cannot_steer(trouble);
        }
    }

    /// What chooses, for status; empty where only the policy does.
    pub(super) fn rung(&self) -> &'static str {
        self.steering.as_ref().map_or("", |steered| steered.steering.rung())
    }
}
