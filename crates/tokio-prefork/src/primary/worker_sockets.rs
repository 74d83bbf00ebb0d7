//! Where each worker has listening sockets of its own (foreign programs): which of them a forked worker gets, and which of
//! them get new connections.
//!
//! The sockets of a worker have the same *index* at each address. New connections go to the indices of the dispatch targets.
//! A worker that drains keeps its index to its end, so that it can empty its queues; its successor gets another one. What
//! still waits at an index when its worker has gone, is left to the next worker: an index with waiting connections is given
//! away before all others. A handshake that completes late, after the last look of a draining worker at its queue, is such
//! a connection. If no worker is forked for [`ORPHAN_CONNECTION_TIMEOUT`], it is reset: the client learns that it has to try
//! again.
//!
//! Without any dispatch target, connections go to where the next worker will find them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::workers::WorkerTable;
use super::{Primary, WorkerProcess};
use crate::config::{Config, WorkerCount};
use crate::dispatch::{AttachedTargets, SocketTarget};
use crate::error::{Error, Result};
use crate::listener::{ListenAddr, WorkerSocketGroup};
use prefork_supervisor::{Slot, Supervisor, WorkerTag};

/// How long connections may wait at a socket without a worker, while other workers accept.
const ORPHAN_CONNECTION_TIMEOUT: Duration = Duration::from_secs(2);

/// How many sockets an address has at least. The kernel takes a BPF program only for a group, which two sockets make, and
/// then keeps it for those that join.
const MIN_SOCKETS: u32 = 2;

/// How many sockets an address has at most: for each slot a worker, a draining one, and two that still have connections.
const MAX_SOCKETS: u32 = 4 * WorkerCount::MAX;

/// Maximum number of different errors that are logged.
const MAX_LOGGED_ERRORS: usize = 8;

/// The listening sockets of workers that run a foreign program.
#[derive(Debug, Default)]
pub(super) struct WorkerSockets {
    /// The sockets that get new connections, by address.
    attached: Vec<(ListenAddr, AttachedTargets)>,
    /// The index of the last worker of each slot that has exited.
    predecessors: BTreeMap<Slot, u32>,
    /// Indices whose positions in the kernel are not certain: no worker gets them.
    retired: BTreeSet<u32>,
    /// Since when connections wait at indices without a worker.
    waiting_since: BTreeMap<u32, Instant>,
    /// Whether the sockets do not listen, on purpose.
    is_refusing: bool,
    /// Addresses whose one socket all workers share, and errors, that have been logged.
    logged: BTreeSet<String>,
}

impl WorkerSockets {
    fn attached_to(&mut self, addr: &ListenAddr) -> &mut AttachedTargets {
        let known = self.attached.iter().position(|(of, _)| of == addr);
        let index = known.unwrap_or_else(|| {
            self.attached.push((addr.clone(), AttachedTargets::default()));
            self.attached.len() - 1
        });
        &mut self.attached[index].1
    }

    /// Returns whether new connections at this address may be sent to the socket of `index`.
    fn is_target(&self, group: &WorkerSocketGroup<'_>, index: u32) -> bool {
        let attached = self.attached.iter().find(|(addr, _)| addr == group.addr);
        attached
            .zip(group.position_of(index))
            .is_some_and(|((_, targets), position)| targets.includes(position))
    }

    /// Returns the name of what selects, for status.
    pub(super) fn backend_name(&self) -> &'static str {
        self.attached.first().map_or("", |(_, targets)| targets.backend_name())
    }

    /// Records that a worker has exited.
    pub(super) fn worker_exited(&mut self, process: &WorkerProcess) {
        self.predecessors.insert(process.tag.slot, process.socket_index);
    }

    /// Returns whether this line is new and may be logged.
    fn should_log(&mut self, line: String) -> bool {
        self.logged.len() < MAX_LOGGED_ERRORS && self.logged.insert(line)
    }
}

/// Chooses the index of a new worker. `queued` is the number of connections that wait at each index, and `used` the indices
/// that no other worker may get. Returns `None` if another socket has to be opened.
///
/// Waiting connections decide: first those of the predecessor in the slot, then the most. Without any, a worker gets the
/// index of its predecessor or the lowest one, so that numbers stay small.
fn choose_index(predecessor: Option<u32>, used: &BTreeSet<u32>, queued: &[u32]) -> Option<u32> {
    let is_free = |index: &u32| !used.contains(index) && (*index as usize) < queued.len();
    let waiting = |index: u32| queued[index as usize];
    let own = predecessor.filter(is_free);
    let free = || (0..queued.len() as u32).filter(is_free);
    let own_waiting = own.filter(|index| waiting(*index) > 0);
    let most_waiting = || {
        let longest = free().filter(|index| waiting(*index) > 0);
        longest.max_by_key(|index| (waiting(*index), std::cmp::Reverse(*index)))
    };
    own_waiting.or_else(most_waiting).or(own).or_else(|| free().next())
}

impl WorkerTable {
    /// Returns the workers that have the sockets of an index. Those that are killed serve nothing any more.
    fn socket_owners(&self, supervisor: &Supervisor) -> impl Iterator<Item = &WorkerProcess> {
        let owners = self.values().filter(|process| process.tag.slot.is_web());
        owners.filter(|process| !supervisor.is_killed(process.tag.id))
    }
}

impl WorkerProcess {
    /// Returns the target that this worker is at an address, if it has a socket there.
    fn target_at(&self, group: &WorkerSocketGroup<'_>, slot: Slot) -> Option<SocketTarget> {
        let position = group.position_of(self.socket_index)?;
        let queued = group.queued_at(self.socket_index);
        self.socket_addrs.contains(group.addr).then_some(SocketTarget { slot, position, queued })
    }
}

impl Primary {
    /// Opens the sockets that the first workers get. Nothing accepts yet.
    pub(super) fn open_first_worker_sockets(&mut self) -> Result<()> {
        let config = self.current_config().filter(|config| config.has_socket_per_worker());
        let Some(config) = config.cloned() else { return Ok(()) };
        let pool = self.listeners.queued_by_index().len() as u32;
        let workers = self.supervisor.wanted_workers();
        // The rest when the program is attached: the kernel's hash would send connections there.
        for sockets in [MIN_SOCKETS, pool.max(workers).max(MIN_SOCKETS)] {
            self.listeners.open_missing_sockets(&config.bind, config.backlog, sockets)?;
            self.steer_connections();
        }
        self.log_shared_sockets(&config);
        Ok(())
    }

    /// Returns how many sockets an address has to have, so that all workers have theirs there.
    pub(super) fn worker_socket_count(&self) -> u32 {
        (self.listeners.queued_by_index().len() as u32).max(MIN_SOCKETS)
    }

    /// Chooses the sockets of a worker that is about to be forked, and opens them if there are none. Returns their index.
    ///
    /// # Errors
    /// A socket cannot be opened, or there are too many.
    pub(super) fn take_socket_index(&mut self, tag: WorkerTag, config: &Config) -> Result<u32> {
        if self.worker_sockets.is_none() || !config.has_socket_per_worker() {
            return Ok(0);
        }
        let queued = self.listeners.queued_by_index();
        let index = self.next_index(tag.slot, &queued).unwrap_or(queued.len() as u32);
        if index >= MAX_SOCKETS {
            let reason = std::io::Error::other(format!(
                "all {MAX_SOCKETS} listening sockets of an address belong to workers that still drain; wait for them, or lower \
                 graceful-timeout"
            ));
            return Err(Error::system(format!("find a socket for {tag}"), reason));
        }
        let sockets = (index + 1).max(MIN_SOCKETS);
        self.listeners.open_missing_sockets(&config.bind, config.backlog, sockets)?;
        if index as usize >= queued.len() {
            self.store_sockets();
        }
        self.steer_connections();
        Ok(index)
    }

    /// Returns the index of the next worker of a slot, or `None` if a socket has to be opened for it.
    fn next_index(&self, slot: Slot, queued: &[u32]) -> Option<u32> {
        let sockets = self.worker_sockets.as_ref()?;
        // The program that was built takes over the socket of the worker that waits for it, with its queue.
        let awaiting =
            self.workers.values().find(|one| one.tag.slot == slot && self.awaits_build(one));
        let owners = self.workers.socket_owners(&self.supervisor);
        let owners = owners.filter(|one| awaiting.is_none_or(|of| of.tag.id != one.tag.id));
        let mut used: BTreeSet<u32> = owners.map(|process| process.socket_index).collect();
        used.extend(&sockets.retired);
        if let Some(index) = awaiting.map(|process| process.socket_index)
            && !used.contains(&index)
        {
            return Some(index);
        }
        let killed = self
            .workers
            .values()
            .rfind(|process| process.tag.slot == slot && self.supervisor.is_killed(process.tag.id));
        let predecessor = killed.map(|process| process.socket_index);
        let predecessor = predecessor.or_else(|| sockets.predecessors.get(&slot).copied());
        choose_index(predecessor, &used, queued)
    }

    /// Returns whether a worker waits for the first build of its program, and so never accepts anything.
    fn awaits_build(&self, process: &WorkerProcess) -> bool {
        let config = self.configs.config_or_last(process.tag.generation);
        process.tag.slot.is_web() && config.program().is_some_and(|program| !program.is_built())
    }

    /// Sends new connections to the workers that are dispatch targets. What fails is tried again with the next change, or
    /// twice a second.
    pub(super) fn steer_connections(&mut self) {
        let policy = self.current_config().map(|config| config.dispatch);
        let is_stopping = self.supervisor.is_stopping();
        let Some(mut sockets) = self.worker_sockets.take() else { return };
        let mut unselectable = Vec::new();
        let policy = policy.filter(|_| !is_stopping && !sockets.is_refusing);
        for group in self.listeners.worker_socket_groups().filter(|_| policy.is_some()) {
            let targets = self.targets_at(&group, &sockets);
            let Some(policy) = policy else { break };
            let Some(socket) = group.socket() else { continue };
            let attached = sockets.attached_to(group.addr);
            let outcome = attached.update(policy, &targets, socket, group.layout());
            if let Err(e) = outcome {
                let has_program = !attached.backend_name().is_empty();
                unselectable.push((group.addr.clone(), has_program, e));
            }
        }
        let open: Vec<&ListenAddr> =
            self.listeners.worker_socket_groups().map(|group| group.addr).collect();
        sockets.attached.retain(|(addr, _)| open.contains(&addr));
        self.worker_sockets = Some(sockets);
        for (addr, has_program, error) in unselectable {
            self.handle_steering_error(&addr, has_program, &error);
        }
    }

    /// Returns the sockets that new connections at an address go to; never none.
    fn targets_at(
        &self,
        group: &WorkerSocketGroup<'_>,
        sockets: &WorkerSockets,
    ) -> Vec<SocketTarget> {
        let accepting = self.supervisor.dispatch_targets().iter().filter_map(|(slot, worker)| {
            self.workers.get(worker).and_then(|process| process.target_at(group, *slot))
        });
        let accepting: Vec<SocketTarget> = accepting.collect();
        if !accepting.is_empty() {
            return accepting;
        }
        // They boot, or are frozen for a moment.
        let coming = self.workers.socket_owners(&self.supervisor);
        let coming = coming.filter(|process| !process.released && process.channel.is_some());
        let coming = coming.filter_map(|process| process.target_at(group, process.tag.slot));
        let coming: Vec<SocketTarget> = coming.collect();
        if !coming.is_empty() {
            return coming;
        }
        let queued = self.listeners.queued_by_index();
        let used = self.workers.socket_owners(&self.supervisor).map(|one| one.socket_index);
        let used = used.chain(sockets.retired.iter().copied()).collect();
        let predecessor = sockets.predecessors.get(&Slot(0)).copied();
        let next = choose_index(predecessor, &used, &queued).or_else(|| used.first().copied());
        let position = next.and_then(|index| group.position_of(index)).unwrap_or(0);
        vec![SocketTarget { slot: Slot(0), position, queued: 0 }]
    }

    /// Falls back to one shared socket if the kernel takes no program and no worker depends on it yet.
    fn handle_steering_error(
        &mut self,
        addr: &ListenAddr,
        has_program: bool,
        error: &std::io::Error,
    ) {
        let is_served = self.workers.values().any(|one| one.socket_addrs.contains(addr));
        if has_program || is_served {
            let line = format!(
                "cannot send the new connections at {addr} to the workers that accept ({error}); trying again"
            );
            if self.worker_sockets.as_mut().is_some_and(|sockets| sockets.should_log(line.clone()))
            {
                self.event_log.log_steering_error(&line);
            }
            return;
        }
        self.listeners.share_first_socket(addr);
        self.event_log
            .log_shared_socket(addr, &format!("the kernel takes no BPF program: {error}"));
    }

    /// Logs the addresses where workers cannot have sockets of their own, once.
    pub(super) fn log_shared_sockets(&mut self, config: &Config) {
        if !config.has_socket_per_worker() {
            return;
        }
        let Primary { listeners, worker_sockets, event_log, .. } = self;
        let Some(sockets) = worker_sockets else { return };
        let shared = listeners.listeners.iter().filter(|one| one.is_shared_by_all_workers());
        for listener in shared.filter(|one| config.bind.contains(&one.addr)) {
            let reason = match listener.is_unix() {
                true => "a Unix socket has no group of sockets",
                false => "no socket of this user can join the one that was passed",
            };
            if sockets.should_log(format!("{} {reason}", listener.addr)) {
                event_log.log_shared_socket(&listener.addr, reason);
            }
        }
    }

    /// Repairs what programs have done to their sockets, and resets connections that no worker will accept. Called twice a
    /// second.
    pub(super) fn check_worker_sockets(&mut self) {
        if self.worker_sockets.as_ref().is_none_or(|sockets| sockets.is_refusing)
            || self.supervisor.is_stopping()
        {
            return;
        }
        self.restore_shut_down_sockets();
        self.steer_connections();
        self.reset_orphan_connections(Instant::now());
    }

    /// Makes sockets listen again that a program has shut down.
    pub(super) fn restore_shut_down_sockets(&mut self) {
        let config = self.current_config().filter(|config| config.program().is_some()).cloned();
        let Some(config) = config else { return };
        let Primary { listeners, worker_sockets, event_log, .. } = self;
        let Some(sockets) = worker_sockets.as_mut().filter(|one| !one.is_refusing) else { return };
        let restored = match listeners.restore_shut_down_sockets(config.backlog) {
            Ok(restored) => restored,
            Err(e) => {
                if sockets.should_log(e.to_string()) {
                    event_log.log_steering_error(&e.to_string());
                }
                return;
            }
        };
        for (at, (addr, index)) in restored.iter().enumerate() {
            event_log.log_socket_restored(addr, *index);
            // A group whose last socket ends loses its program.
            sockets.attached.retain(|(of, _)| of != addr);
            if restored[..at].iter().any(|(of, _)| of == addr) {
                // The order in which they ended decides about the positions of the others.
                sockets.retired.extend(0..listeners.queued_by_index().len() as u32);
            }
        }
    }

    fn reset_orphan_connections(&mut self, now: Instant) {
        let queued = self.listeners.queued_by_index();
        let owners = self.workers.socket_owners(&self.supervisor);
        let used: BTreeSet<u32> = owners.map(|process| process.socket_index).collect();
        let Some(mut sockets) = self.worker_sockets.take() else { return };
        // Without any, they wait for the workers to come.
        let has_targets = !self.supervisor.dispatch_targets().is_empty();
        let waits = |index: u32| {
            let groups = || self.listeners.worker_socket_groups();
            has_targets
                && !used.contains(&index)
                && queued.get(index as usize).is_some_and(|count| *count > 0)
                && !groups().any(|group| sockets.is_target(&group, index))
        };
        let waiting: Vec<u32> = (0..queued.len() as u32).filter(|index| waits(*index)).collect();
        sockets.waiting_since.retain(|index, _| waiting.contains(index));
        for index in waiting {
            let since = *sockets.waiting_since.entry(index).or_insert(now);
            if now.duration_since(since) < ORPHAN_CONNECTION_TIMEOUT {
                continue;
            }
            for group in self.listeners.worker_socket_groups() {
                match self.listeners.reset_queued(group.addr, index) {
                    Ok(0) => {}
                    Ok(count) => self.event_log.log_reset_connections(group.addr, count),
                    Err(e) => {
                        let line = format!(
                            "cannot reset the connections that wait at {}: {e}",
                            group.addr
                        );
                        if sockets.should_log(line.clone()) {
                            self.event_log.log_steering_error(&line);
                        }
                    }
                }
            }
        }
        self.worker_sockets = Some(sockets);
    }

    /// Records that the sockets stop to listen on purpose, or listen again.
    pub(super) fn set_refusing_on_worker_sockets(&mut self, is_refusing: bool) {
        if let Some(sockets) = &mut self.worker_sockets {
            sockets.is_refusing = is_refusing;
            // The kernel drops the program with the last socket of a group.
            sockets.attached.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(predecessor: Option<u32>, used: &[u32], queued: &[u32]) -> Option<u32> {
        choose_index(predecessor, &used.iter().copied().collect(), queued)
    }

    #[test]
    fn waiting_connections_of_the_predecessor_come_first() {
        assert_eq!(choose(Some(1), &[0], &[0, 1, 9]), Some(1));
        assert_eq!(choose(Some(1), &[0], &[0, 0, 9]), Some(2), "others wait, its own do not");
    }

    #[test]
    fn the_most_waiting_connections_of_free_sockets_are_served() {
        assert_eq!(choose(None, &[3], &[0, 2, 7, 99]), Some(2));
        assert_eq!(choose(None, &[], &[0, 2, 2]), Some(1), "the lower of two");
    }

    #[test]
    fn without_waiting_connections_a_worker_gets_the_index_of_its_predecessor_or_the_lowest() {
        assert_eq!(choose(Some(2), &[0], &[0; 4]), Some(2));
        assert_eq!(choose(Some(2), &[2], &[0; 4]), Some(0), "it still drains");
        assert_eq!(choose(None, &[0, 1], &[0; 4]), Some(2));
        assert_eq!(choose(Some(9), &[0], &[0; 2]), Some(1), "there is no index 9");
    }

    #[test]
    fn another_socket_is_needed_when_all_are_in_use() {
        assert_eq!(choose(Some(1), &[0, 1], &[5, 5]), None);
        assert_eq!(choose(None, &[], &[]), None);
    }
}
