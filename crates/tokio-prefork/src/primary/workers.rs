//! The worker processes: their table, their exits, their health and what they report over their channels.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::time::Instant;

use super::Primary;
use super::event_log::EventLog;
use super::handover_relay::HandoverRelay;
use super::reload_config::ConfigStore;
use crate::channel::{PrimaryChannelEnd, ReceivedReport, WorkerCommand, WorkerReport};
use crate::dispatch::LoadPageLease;
use crate::dispatch::round_robin::ConnectionQueue;
use crate::listener::ListenAddr;
use crate::scoreboard::{Scoreboard, WorkerPages};
use prefork_os::child::{ChildStateChange, find_exited_child, poll_child_state, reap_child};
use prefork_os::process::process_state;
use prefork_os::process_group::{
    is_group_leader, kill_group_if_child_exited, kill_group_of_child, set_group_of_child,
};
use prefork_os::resource_limits::resident_bytes;
use prefork_os::signal::Signal;
use prefork_os::system::monotonic_ms;
use prefork_supervisor::{Event, HealthSample, Supervisor, WorkerId, WorkerTag};

/// How many reports are read from one channel before the other channels get their turn.
const MAX_REPORTS_PER_READ: usize = 16;

/// How many reports are read from an exited worker: more than its socket's buffer can hold.
const MAX_LAST_REPORTS: usize = 4096;

/// How many adopted orphans are reaped before the primary turns to its other events.
const MAX_ORPHANS_PER_REAP: usize = 1024;

/// A worker process that is not reaped yet.
pub(crate) struct WorkerProcess {
    pub(crate) tag: WorkerTag,
    /// The pid, which belongs to this process until it is reaped. The table forgets it in the same moment.
    pub(crate) pid: u32,
    /// `None` once either side has closed it.
    pub(crate) channel: Option<PrimaryChannelEnd>,
    /// The worker pages on the scoreboard.
    pub(crate) pages: WorkerPages,
    /// The queue of its new connections, under `round-robin`.
    pub(crate) queue: Option<ConnectionQueue>,
    /// Number of connections of other workers that were sent to this worker.
    pub(crate) handovers_sent: u64,
    /// Whether the worker drains or has announced its exit, so that it gets no more connections.
    pub(crate) released: bool,
    /// The worker's page of load counters, if a kernel program reads them.
    pub(crate) lease: Option<LoadPageLease>,
    /// Whether the worker has handed over connections. Its channel is not read while the relay is full.
    pub(crate) hands_over: bool,
    /// Whether the worker leads a process group of its own, which is killed with it.
    pub(super) leads_group: bool,
    /// The index of its listening sockets, where each worker has its own; else 0.
    pub(super) socket_index: u32,
    /// The addresses where it has them.
    pub(super) socket_addrs: Vec<ListenAddr>,
}

impl WorkerProcess {
    pub(super) fn new(
        tag: WorkerTag,
        pid: u32,
        channel: Option<PrimaryChannelEnd>,
        pages: WorkerPages,
    ) -> WorkerProcess {
        WorkerProcess {
            tag,
            pid,
            channel,
            pages,
            queue: None,
            handovers_sent: 0,
            released: false,
            lease: None,
            hands_over: false,
            leads_group: false,
            socket_index: 0,
            socket_addrs: Vec::new(),
        }
    }

    /// Makes the freshly forked worker the leader of a process group of its own.
    pub(super) fn lead_own_group(&mut self, event_log: &mut EventLog) {
        self.leads_group = true;
        if let Err(e) = set_group_of_child(self.pid) {
            event_log.log_group_error(self.tag, &e);
        }
    }

    /// Finds out whether a worker from before an upgrade leads a process group of its own.
    pub(super) fn with_inherited_group(self) -> WorkerProcess {
        let leads_group = is_group_leader(self.pid);
        WorkerProcess { leads_group, ..self }
    }

    /// Returns whether this is the guard of a foreign program that has been started.
    pub(super) fn runs_program(&self) -> bool {
        self.tag.pid.is_some_and(|shown| shown != self.pid)
    }

    /// Returns whether this is a `web` worker that serves its slot.
    pub(super) fn serves_web(&self, supervisor: &Supervisor) -> bool {
        self.tag.slot.is_web() && supervisor.is_serving(self.tag.id)
    }

    /// Reads up to `limit` reports of the worker. Connections that it hands over go to `relay`.
    fn read_reports(&mut self, limit: usize, relay: &mut HandoverRelay) -> Vec<Event> {
        let worker = self.tag.id;
        let mut events = Vec::new();
        for _ in 0..limit {
            let Some(channel) = &self.channel else { break };
            let event = match channel.receive() {
                ReceivedReport::Empty => break,
                ReceivedReport::Report(WorkerReport::Online) => Event::Online { worker },
                ReceivedReport::Report(WorkerReport::ProgramStarted { pid }) => {
                    self.tag.pid = Some(pid);
                    Event::ProgramStarted { worker, pid }
                }
                ReceivedReport::Report(WorkerReport::Ready) => Event::Ready { worker },
                ReceivedReport::Report(WorkerReport::BootFailed(reason)) => {
                    Event::BootFailed { worker, reason }
                }
                ReceivedReport::Report(WorkerReport::BootAttemptFailed(reason)) => {
                    Event::BootAttemptFailed { worker, reason }
                }
                ReceivedReport::Report(WorkerReport::Retiring) => {
                    self.confirm_release();
                    Event::Retiring { worker }
                }
                ReceivedReport::Report(WorkerReport::Disconnecting) => {
                    self.confirm_release();
                    Event::Disconnecting { worker }
                }
                ReceivedReport::Report(WorkerReport::AdoptSlotFailed(slot)) => {
                    Event::AdoptSlotFailed { worker, slot }
                }
                // The channel returns this one as `Connection`.
                ReceivedReport::Report(WorkerReport::HandOverConnection(_)) => continue,
                ReceivedReport::HandedOverConnection(fd, unread) => {
                    self.hands_over = true;
                    relay.push(fd, unread, Instant::now());
                    continue;
                }
                ReceivedReport::LostConnection => {
                    relay.count_lost(1, "no descriptor left (raise LimitNOFILE)");
                    continue;
                }
                ReceivedReport::Closed => {
                    self.channel = None;
                    Event::ChannelClosed { worker }
                }
                ReceivedReport::Invalid(reason) => {
                    self.channel.take().into_iter().for_each(PrimaryChannelEnd::discard_and_close);
                    Event::ProtocolError { worker, reason }
                }
            };
            events.push(event);
        }
        events
    }

    /// Kills the process group of the worker with `kill`.
    fn kill_group(&self, kill: fn(u32) -> std::io::Result<()>, event_log: &mut EventLog) {
        if let Err(e) = kill(self.pid) {
            event_log.log_group_error(self.tag, &e);
        }
    }

    /// Confirms to a worker that drains by itself that it gets no more connections.
    fn confirm_release(&mut self) {
        self.released = true;
        // A worker whose channel is full leaves without the confirmation.
        self.channel
            .iter()
            .for_each(|channel| drop(channel.send(&WorkerCommand::RetireAcknowledged)));
    }
}

/// All worker processes that are not reaped yet, by worker id.
#[derive(Default)]
pub(crate) struct WorkerTable(BTreeMap<WorkerId, WorkerProcess>);

/// Reads go to the map; changes have methods of their own.
impl Deref for WorkerTable {
    type Target = BTreeMap<WorkerId, WorkerProcess>;

    fn deref(&self) -> &BTreeMap<WorkerId, WorkerProcess> {
        &self.0
    }
}

impl WorkerTable {
    pub(super) fn get_mut(&mut self, worker: &WorkerId) -> Option<&mut WorkerProcess> {
        self.0.get_mut(worker)
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut WorkerProcess> {
        self.0.values_mut()
    }

    pub(super) fn insert(&mut self, process: WorkerProcess) {
        self.0.insert(process.tag.id, process);
    }

    /// Takes all processes, to close their descriptors in a forked worker.
    pub(super) fn take_processes(&mut self) -> BTreeMap<WorkerId, WorkerProcess> {
        std::mem::take(&mut self.0)
    }

    fn has_pid(&self, pid: u32) -> bool {
        self.values().any(|process| process.pid == pid)
    }

    /// Returns whether a `web` worker other than `leaving` serves its slot.
    pub(super) fn has_other_serving_worker(
        &self,
        leaving: WorkerId,
        supervisor: &Supervisor,
    ) -> bool {
        let mut others = self.iter().filter(|(id, _)| **id != leaving);
        others.any(|(_, process)| process.serves_web(supervisor))
    }

    /// Sends a signal to a worker that is not reaped yet, so the pid is its own.
    pub(super) fn signal(&self, worker: WorkerId, signal: Signal, event_log: &mut EventLog) {
        let Some(process) = self.get(&worker) else { return };
        if let Err(e) = prefork_os::child::signal_child(process.pid, signal) {
            event_log.log_signal_error(process.tag, signal, &e);
        }
        if signal == Signal::SIGKILL && process.leads_group {
            process.kill_group(kill_group_of_child, event_log);
        }
    }

    /// Reads the reports of one worker whose channel is readable.
    pub(super) fn read_reports(
        &mut self,
        worker: WorkerId,
        relay: &mut HandoverRelay,
    ) -> Vec<Event> {
        let process = self.get_mut(&worker);
        process.map_or(Vec::new(), |process| process.read_reports(MAX_REPORTS_PER_READ, relay))
    }

    /// Returns the workers that have exited, stopped or continued since the last call.
    ///
    /// SIGCHLD coalesces, so every worker is asked. Other children of the process are not touched.
    fn poll_state_changes(&self, event_log: &mut EventLog) -> Vec<(WorkerId, ChildStateChange)> {
        let changes = self.iter().filter_map(|(id, process)| {
            // Before the worker is reaped: until then its pid, and so the number of its group, is not used again.
            if process.leads_group {
                process.kill_group(kill_group_if_child_exited, event_log);
            }
            match poll_child_state(process.pid) {
                Ok(change) => change.map(|change| (*id, change)),
                Err(e) => {
                    event_log.log_reap_error(process.tag, &e);
                    None
                }
            }
        });
        changes.collect()
    }

    /// Returns the scoreboards of previous images that workers still write to, without repetition.
    pub(super) fn inherited_scoreboards(&self) -> Vec<usize> {
        let boards = self.values().filter_map(|process| match process.pages {
            WorkerPages::Inherited { board, .. } => Some(board),
            WorkerPages::Own(_) => None,
        });
        boards.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Samples heartbeat, load and, on demand, resident memory of every worker.
    pub(super) fn sample_health(
        &self,
        scoreboard: &Scoreboard,
        configs: &ConfigStore,
        with_memory: bool,
    ) -> Vec<HealthSample> {
        let max_connections = |process: &WorkerProcess| {
            let config = configs.config_of_generation(process.tag.generation);
            config.map_or(u64::MAX, |config| config.max_process_connections().into())
        };
        let samples = self.iter().map(|(worker, process)| {
            let sample = scoreboard.heartbeat_sample(process.pages);
            HealthSample {
                worker: *worker,
                heartbeat: sample.heartbeat_ms,
                is_sleeping: sample.is_sleeping,
                requests: sample.requests,
                memory: match sample.program_memory {
                    // Of all its processes, as the guard measures it.
                    Some(bytes) => with_memory.then_some(bytes),
                    None if with_memory => resident_bytes(process.pid),
                    None => None,
                },
                is_full: sample.open_connections >= max_connections(process),
                current_request: sample.current_request.map(|request| request.describe()),
            }
        });
        samples.collect()
    }
}

/// Children other than workers that were killed or are about to exit, until they are reaped.
#[derive(Debug, Default)]
pub(super) struct KilledChildren(Vec<u32>);

impl KilledChildren {
    /// Adds a child, unless it can be reaped at once.
    pub(super) fn add_child(&mut self, pid: u32) {
        if matches!(reap_child(pid), Ok(None)) {
            self.0.push(pid);
        }
    }

    fn reap_exited(&mut self) {
        self.0.retain(|pid| matches!(reap_child(*pid), Ok(None)));
    }

    /// Waits until all children have exited, and reaps them. They were killed, so the wait is short.
    pub(super) fn reap_all_blocking(&mut self) {
        while !self.0.is_empty() {
            self.reap_exited();
            std::thread::yield_now();
        }
    }
}

impl Primary {
    /// Reaps the children that have exited, and queues the state changes of workers.
    pub(super) fn reap_children(&mut self) {
        self.reap_upgrade_check();
        self.killed_children.reap_exited();
        self.admin.reap(&mut self.event_log);
        for (worker, change) in self.workers.poll_state_changes(&mut self.event_log) {
            match change {
                ChildStateChange::Exited(status) => self.forget_worker(worker, status),
                ChildStateChange::Stopped => {
                    self.end_sleep_of_stopped(worker);
                    self.reclaim_queue(worker);
                    self.pending_events.push_back(Event::Stopped { worker });
                }
                ChildStateChange::Continued => {
                    self.pending_events.push_back(Event::Continued { worker });
                }
            }
        }
        if prefork_os::parent_death::is_orphan_reaper() {
            self.kill_program_orphans();
            self.reap_orphans();
        }
    }

    /// Corrects the page of a worker that was stopped while its event loop slept, so that it counts as stalled in time.
    fn end_sleep_of_stopped(&self, worker: WorkerId) {
        let Some(process) = self.workers.get(&worker) else { return };
        // A worker that goes on by now writes its page itself.
        if process_state(process.pid) == Some('T') {
            self.scoreboard.end_sleep(process.pages, monotonic_ms());
        }
    }

    /// Removes an exited worker with all its resources in the primary. Its pid may belong to another process by now.
    fn forget_worker(&mut self, worker: WorkerId, status: std::process::ExitStatus) {
        let Some(mut process) = self.workers.0.remove(&worker) else { return };
        crate::shared::wake_after_exit();
        self.pending_events.extend(process.read_reports(MAX_LAST_REPORTS, &mut self.handover));
        self.finish_output(worker);
        self.messages.primary_end.remove(worker);
        self.round_robin.remove_worker(worker, process.queue.take());
        if process.tag.slot.is_web() {
            self.worker_sockets.iter_mut().for_each(|sockets| sockets.worker_exited(&process));
            self.restore_shut_down_sockets();
        }
        self.remove_dispatch_target(worker, process.lease);
        self.record_last_job(worker, process.pages);
        self.stacks.forget_worker(worker, process.pages);
        let requests_served = self.scoreboard.release_pages(process.pages).requests;
        self.release_inherited_scoreboard(process.pages);
        self.pending_events.push_back(Event::Exited { worker, status, requests_served });
    }

    /// Unmaps the scoreboard of a previous image when its last worker has exited.
    fn release_inherited_scoreboard(&mut self, pages: WorkerPages) {
        let WorkerPages::Inherited { board, .. } = pages else { return };
        if !self.workers.inherited_scoreboards().contains(&board) {
            self.scoreboard.release_inherited(board);
            self.stacks.release_inherited(board);
        }
    }

    /// Reaps orphans that the kernel made children of this process, which is PID 1 or a subreaper. No event comes of
    /// it.
    fn reap_orphans(&self) {
        for _ in 0..MAX_ORPHANS_PER_REAP {
            match find_exited_child() {
                Some(pid) if !self.is_own_child(pid) => drop(reap_child(pid)),
                // A child of the primary that has just exited: its own SIGCHLD is still to come.
                Some(_) | None => return,
            }
        }
        // There may be more, and no further signal for them: this one makes the primary look again.
        let _ = prefork_os::child::signal_child(std::process::id(), Signal::SIGCHLD);
    }

    pub(super) fn is_own_child(&self, pid: u32) -> bool {
        self.workers.has_pid(pid)
            || self.upgrade.is_check_pid(pid)
            || self.configs.is_lookup_pid(pid)
            || self.stacks.is_reader_pid(pid)
            || self.killed_children.0.contains(&pid)
            || self.admin.is_process_pid(pid)
    }
}
