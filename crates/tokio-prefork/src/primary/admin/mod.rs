//! The admin listener in the primary: its sockets, its process, and what is published for it.
//!
//! The process is no worker. It is forked, watched and replaced here, apart from the supervisor of the workers, so that nothing that
//! happens to it ends or delays the cluster.

mod fork_process;
mod overlay;
mod publish;
mod sockets;
mod upgrade;

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use super::Primary;
use super::event_log::EventLog;
use super::workers::KilledChildren;
use crate::admin::AdminMemory;
use crate::channel::{
    HandoverMode, PrimaryChannelEnd, ReceivedReport, WorkerCommand, WorkerReport,
};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::listener::ResolvedHosts;
use crate::status::{AdminStatus, WorkerState};
use overlay::OverlayPublisher;
pub use overlay::OverlayState;
use prefork_os::child::{reap_child, signal_child};
use prefork_os::poll::WatchedFd;
use prefork_os::signal::Signal;
use prefork_supervisor::{
    AdminAction, AdminKillReason, AdminProcessId, AdminProcessState, AdminSupervisor, Generation,
};
pub(crate) use sockets::{AdminSettings, AdminSockets};
pub(super) use upgrade::read_passed_events;

/// How often the primary records that its loop turns, and publishes its part of the status.
const PUBLISH_INTERVAL: Duration = Duration::from_secs(1);

/// The shortest time between two publications of the status.
const MIN_PUBLISH_INTERVAL: Duration = Duration::from_millis(100);

/// For how long the primary counts as alive after its loop has turned.
const LIVENESS_TIMEOUT: Duration = Duration::from_secs(5);

/// For how long the primary counts as alive from the exec of an upgrade on: the new image loads the application first.
const UPGRADE_LIVENESS_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a draining process answers the requests of kept connections.
const DRAIN_GRACE: Duration = Duration::from_secs(5);

/// The most reports that are read from a process at a time.
const MAX_REPORTS_PER_READ: usize = 16;

/// The admin listener of the primary. Without an address it does nothing.
#[derive(Default)]
pub(super) struct AdminListener {
    sockets: AdminSockets,
    /// The addresses and the token in force.
    settings: AdminSettings,
    /// Those that a reload to this generation has opened.
    opened: Option<(Generation, AdminSettings)>,
    supervisor: AdminSupervisor,
    processes: BTreeMap<AdminProcessId, AdminProcess>,
    /// Created with the first address.
    memory: Option<AdminMemory>,
    /// When the status was published last.
    published_at: Option<Instant>,
    /// Whether the status has changed since.
    is_changed: bool,
    /// The number of the last published event.
    published_event: u64,
    overlay: OverlayPublisher,
}

/// A process of the admin listener that is not reaped yet.
struct AdminProcess {
    pid: u32,
    /// `None` once either side has closed it.
    channel: Option<PrimaryChannelEnd>,
    /// Its page in the memory. `None`: the memory is that of the previous image.
    page: Option<usize>,
    generation: Generation,
    forked_at: Instant,
    /// What it said why it could not boot.
    boot_error: Option<String>,
}

impl AdminListener {
    pub(super) fn new(sockets: AdminSockets, settings: AdminSettings) -> AdminListener {
        AdminListener { sockets, settings, ..AdminListener::default() }
    }

    /// Returns whether an admin listener is configured.
    fn is_on(&self) -> bool {
        !self.settings.addrs.is_empty()
    }

    /// Returns the descriptors to poll.
    pub(super) fn poll_sources(&self) -> impl Iterator<Item = (AdminProcessId, WatchedFd<'_>)> {
        self.processes.iter().filter_map(|(id, process)| {
            Some((*id, WatchedFd::readable(process.channel.as_ref()?.as_fd())))
        })
    }

    /// Returns when the primary has to wake up for the admin listener.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let of_publication = self
            .published_at
            .filter(|_| self.is_on())
            .map(|at| at + if self.is_changed { MIN_PUBLISH_INTERVAL } else { PUBLISH_INTERVAL });
        self.supervisor.next_deadline().into_iter().chain(of_publication).min()
    }

    /// Returns whether `pid` is a process of the admin listener.
    pub(super) fn is_process_pid(&self, pid: u32) -> bool {
        self.processes.values().any(|process| process.pid == pid)
    }

    /// Closes everything in a forked worker, which gets no socket and no page of the admin listener.
    pub(super) fn close_in_worker(&mut self) {
        // Files of Unix sockets stay the primary's.
        drop(self.sockets.take_for_process(&AdminSettings::default()));
        self.processes.clear();
        self.memory.iter_mut().for_each(AdminMemory::close_in_worker);
    }

    /// Reads the reports of a process whose channel is readable.
    pub(super) fn read_reports(&mut self, id: AdminProcessId, event_log: &mut EventLog) {
        for _ in 0..MAX_REPORTS_PER_READ {
            let Some(process) = self.processes.get_mut(&id) else { return };
            let Some(channel) = &process.channel else { return };
            match channel.receive() {
                ReceivedReport::Empty => return,
                ReceivedReport::Report(WorkerReport::Ready) => {
                    self.supervisor.on_ready(Instant::now(), id);
                    event_log.log_admin_ready(process.pid);
                    self.is_changed = true;
                }
                ReceivedReport::Report(WorkerReport::Retiring) => {
                    self.supervisor.on_stopped_accepting(id);
                }
                ReceivedReport::Report(WorkerReport::BootFailed(reason)) => {
                    process.boot_error = Some(reason);
                }
                ReceivedReport::Closed => process.channel = None,
                ReceivedReport::Invalid(_) => {
                    process
                        .channel
                        .take()
                        .into_iter()
                        .for_each(PrimaryChannelEnd::discard_and_close);
                }
                // It has nothing else to report.
                _ => {}
            }
        }
    }

    /// Reaps the processes that have exited.
    pub(super) fn reap(&mut self, event_log: &mut EventLog) {
        let exited: Vec<(AdminProcessId, ExitStatus)> = self
            .processes
            .iter()
            .filter_map(|(id, process)| Some((*id, reap_child(process.pid).ok()??)))
            .collect();
        for (id, status) in exited {
            // Its last words may say why it has exited.
            self.read_reports(id, event_log);
            let Some(process) = self.processes.remove(&id) else { continue };
            if self.supervisor.on_exited(Instant::now(), id) {
                let reason = process.boot_error.as_deref();
                event_log.log_admin_exited(process.pid, status, reason);
            }
            self.is_changed = true;
        }
    }

    /// Performs what the supervisor decides, except for forks. Returns the process to fork.
    fn perform_actions(&mut self, event_log: &mut EventLog) -> Option<AdminProcessId> {
        let now = Instant::now();
        let AdminListener { supervisor, processes, memory, .. } = self;
        let reader = memory.as_ref().map(AdminMemory::reader);
        supervisor.check_heartbeats(now, |id| {
            let page = processes.get(&id)?.page?;
            Some(reader?.process_figures(page).heartbeat_ms)
        });
        let mut fork = None;
        for action in supervisor.actions(now) {
            match action {
                AdminAction::Fork(id) => fork = Some(id),
                AdminAction::StartAccepting(id) => {
                    processes.get(&id).into_iter().for_each(AdminProcess::start_accepting);
                }
                AdminAction::Drain(id) => {
                    processes.get(&id).into_iter().for_each(AdminProcess::drain);
                }
                AdminAction::Kill(id, reason) => {
                    let Some(process) = processes.get(&id) else { continue };
                    process.kill();
                    match reason {
                        AdminKillReason::Superseded => {}
                        _ => event_log.log_admin_killed(process.pid, reason),
                    }
                }
            }
        }
        fork
    }

    /// Kills all processes: the primary ends, or executes a binary that knows no admin listener.
    pub(super) fn kill_all(&mut self, killed: &mut KilledChildren) {
        for (_, process) in std::mem::take(&mut self.processes) {
            process.kill();
            killed.add_child(process.pid);
        }
        self.supervisor = AdminSupervisor::default();
    }

    /// Lets all processes write their log to the file that is this process's standard error now.
    pub(super) fn reopen_log(&self) {
        let channels = self.processes.values().filter_map(|process| process.channel.as_ref());
        for channel in channels {
            // One that does not read its channel has stalled, and is killed.
            let _ = channel.send_with_fd(&WorkerCommand::ReopenLog, std::io::stderr().as_fd());
        }
    }

    /// Opens the sockets that a reload to `generation` needs, and reads the token.
    pub(super) fn open_for_reload(
        &mut self,
        generation: Generation,
        config: &Config,
        names: &ResolvedHosts,
        event_log: &mut EventLog,
    ) -> Result<()> {
        self.opened = None;
        if self.is_on() {
            self.sockets.repair(&self.settings)?;
        }
        let (settings, locals) = self.sockets.open(config, names)?;
        locals.iter().for_each(|local| event_log.log_admin_listening(local));
        self.opened = Some((generation, settings));
        Ok(())
    }

    /// Uses what the reload to `current` has opened, and closes the sockets that neither it nor a reload in progress names.
    pub(super) fn keep_generations(
        &mut self,
        current: Generation,
        kept: &[Generation],
        event_log: &mut EventLog,
    ) -> Result<()> {
        self.opened.take_if(|(generation, _)| !kept.contains(generation));
        if let Some((_, settings)) = self.opened.take_if(|(generation, _)| *generation == current) {
            self.settings = settings;
            self.want_generation(current)?;
        }
        let opened = self.opened.iter().flat_map(|(_, settings)| &settings.addrs);
        let named: Vec<_> = self.settings.addrs.iter().chain(opened).collect();
        for closed in self.sockets.set.remove_sockets_not_in(&named) {
            event_log.log_listener_closed(&self.sockets.set.local_text(&closed));
        }
        Ok(())
    }

    /// Lets a process of this generation serve, or none without an address.
    pub(super) fn want_generation(&mut self, generation: Generation) -> Result<()> {
        if self.is_on() && self.memory.is_none() {
            let failed = |e| Error::system("create the shared memory of the admin listener", e);
            self.memory = Some(AdminMemory::create().map_err(failed)?);
            self.published_event = 0;
            self.publish_overlay();
        }
        self.supervisor.set_wanted(self.is_on().then_some(generation.0));
        self.is_changed = true;
        Ok(())
    }

    /// Returns the addresses as the kernel has them.
    pub(super) fn bound_addr_texts(&self) -> Vec<String> {
        self.sockets.bound_addr_texts(&self.settings)
    }

    /// Returns the status of the process. `None` without an admin listener.
    pub(super) fn status(&self, now: Instant) -> Option<AdminStatus> {
        if !self.is_on() {
            return None;
        }
        let status = AdminStatus {
            listeners: self.bound_addr_texts(),
            restarts: self.supervisor.restart_count(),
            state: WorkerState::Forking,
            ..AdminStatus::default()
        };
        let current = self.current_process();
        let Some((process, state)) = current else { return Some(status) };
        let uptime = now.saturating_duration_since(process.forked_at).as_millis();
        let figures = process.page.zip(self.memory.as_ref());
        let figures = figures.map(|(page, memory)| memory.reader().process_figures(page));
        let figures = figures.unwrap_or_default();
        Some(AdminStatus {
            pid: Some(process.pid),
            state: WorkerState::from_name(state.name()),
            generation: process.generation,
            uptime_ms: u64::try_from(uptime).unwrap_or(u64::MAX),
            connections: figures.connections,
            requests: figures.requests,
            ..status
        })
    }

    fn current_process(&self) -> Option<(&AdminProcess, AdminProcessState)> {
        let (id, state) = self.supervisor.current()?;
        Some((self.processes.get(&id)?, state))
    }
}

impl AdminProcess {
    fn start_accepting(&self) {
        // One that does not read its channel has stalled, and is killed.
        let _ = self.channel.as_ref().map(|one| one.send(&WorkerCommand::StartAccepting));
    }

    fn drain(&self) {
        let order = WorkerCommand::Drain {
            grace: DRAIN_GRACE,
            linger: DRAIN_GRACE,
            closing: false,
            hand_over: HandoverMode::Never,
        };
        // One that does not read its channel is killed at its deadline.
        let _ = self.channel.as_ref().map(|channel| channel.send(&order));
    }

    /// Sends SIGKILL. The process is not reaped yet, so the pid is its own.
    fn kill(&self) {
        let _ = signal_child(self.pid, Signal::SIGKILL);
    }
}

impl Primary {
    /// Publishes what has changed, and forks, drains or kills the processes of the admin listener.
    pub(super) fn attend_admin_listener(&mut self) {
        self.publish_for_admin(Instant::now());
        if let Some(id) = self.admin.perform_actions(&mut self.event_log) {
            self.fork_admin_process(id);
        }
    }
}
