//! Upgrade in place, in the primary: the check of the new binary, the exec, and the state that crosses it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use super::control_requests::ControlEndpoint;
use super::{Primary, WorkerProcess};
use crate::application_sockets::{self, ApplicationSocket};
use crate::channel::PrimaryChannelEnd;
use crate::control::Reply;
use crate::dispatch::round_robin::{ConnectionQueue, QueuedConnection};
use crate::error::{Error, Result};
use crate::listener::ListenAddr;
use crate::messages::{MAX_SAVED_STATE_BYTES, MESSAGE_FORMAT, SavedMessages};
use crate::scoreboard::{PageRange, WorkerPages};
use crate::shared::passed_state::PassedFds;
use crate::status::SumsOfDeadWorkers;
use crate::upgrade::{
    ADMIN_REVISION, BinaryLauncher, ISOLATED_JOBS_REVISION, MANIFEST_REVISION, MANIFEST_VERSION,
    MESSAGES_REVISION, PassedClientState, PassedConnection, PassedControl, PassedKind,
    PassedListener, PassedMessages, PassedSocket, PassedWorker, SHARED_STATE_REVISION,
    TICKET_KEYS_REVISION, UpgradeCheck, UpgradeManifest,
};
use prefork_os::child::reap_child;
use prefork_os::fd::take_inherited_fd;
use prefork_os::signal::{BlockedSignals, Signal};
use prefork_supervisor::{Event, Requester, SavedForkedSlot, SavedKind};
use prefork_supervisor::{Generation, Slot, WEB_KIND, WorkerId, WorkerTag};
use prefork_supervisor::{SavedState, SavedWorker, Supervisor};
use prefork_supervisor::{SupervisorConfig, WorkerKindConfig};

/// How long an exec waits for clients of the control socket to read their replies.
const CONTROL_FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// How often to check whether the clients have read their replies.
const CONTROL_FLUSH_CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// How many bytes of output that was read and not delivered an exec passes on. The manifest has a limit.
const MAX_PASSED_OUTPUT_BYTES: usize = 2 << 20;

/// The current upgrade, and the number of earlier ones of this process.
pub(super) struct UpgradeState {
    launcher: BinaryLauncher,
    /// The child that checks whether the new binary can take over.
    check: Option<UpgradeCheck>,
    /// The newest manifest revision that the checked binary understands; 0 if it knows none.
    checked_revision: u32,
    /// When the exec stops waiting for clients of the control socket; `None` if no exec is scheduled.
    exec_flush_deadline: Option<Instant>,
    /// How often this process has become a new image.
    pub(super) upgrade_count: u64,
    /// How many lines of the log the previous images had to drop.
    pub(super) dropped_log_lines: u64,
}

impl UpgradeState {
    pub(super) fn new(launcher: BinaryLauncher) -> UpgradeState {
        UpgradeState {
            launcher,
            check: None,
            checked_revision: 0,
            exec_flush_deadline: None,
            upgrade_count: 0,
            dropped_log_lines: 0,
        }
    }

    /// Returns the pipes on which the checked binary reports.
    pub(super) fn check_output_fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.check.iter().flat_map(UpgradeCheck::open_outputs)
    }

    pub(super) fn read_check_output(&mut self) {
        self.check.iter_mut().for_each(UpgradeCheck::read_outputs);
    }

    /// Returns whether `pid` is the child that checks the new binary.
    pub(super) fn is_check_pid(&self, pid: u32) -> bool {
        self.check.as_ref().is_some_and(|check| check.pid == pid)
    }

    /// Drops the check in a forked worker. The checking process is the primary's child.
    pub(super) fn drop_check_in_worker(&mut self) {
        self.check = None;
    }

    /// Schedules the exec for the moment when no event is pending.
    pub(super) fn schedule_exec(&mut self) {
        self.exec_flush_deadline = Some(Instant::now() + CONTROL_FLUSH_TIMEOUT);
    }

    pub(super) fn is_exec_scheduled(&self) -> bool {
        self.exec_flush_deadline.is_some()
    }

    /// Returns whether an exec is scheduled and every client of the control socket has read what it was sent, or had
    /// time enough. The exec would cut a reply off in the middle.
    pub(super) fn is_exec_due(&self, control: &ControlEndpoint) -> bool {
        self.exec_flush_deadline
            .is_some_and(|at| !control.has_unsent_replies() || at <= Instant::now())
    }

    /// Returns how long to wait before the next check of `is_exec_due`.
    pub(super) fn exec_retry_after(&self, control: &ControlEndpoint) -> Option<Duration> {
        (self.is_exec_scheduled() && !self.is_exec_due(control))
            .then_some(CONTROL_FLUSH_CHECK_INTERVAL)
    }
}

impl Primary {
    /// Starts the new binary as a child that checks whether it can take over.
    pub(super) fn start_upgrade_check(&mut self) {
        self.application_sockets = application_sockets::registered();
        let shared = PassedFds::for_check();
        let check = self.write_manifest().and_then(|mut manifest| {
            manifest.shared = Some(shared.state.clone());
            let mut fds = self.inheritable_fds();
            fds.extend(shared.fds());
            self.upgrade.launcher.start_check(&manifest, &fds)
        });
        match check {
            Ok(check) => self.upgrade.check = Some(check),
            Err(e) => {
                self.pending_events.push_back(Event::UpgradeFailed { reason: e.to_string() });
            }
        }
    }

    /// Kills the check and drops its result, which would count for the next check. The child is not reaped yet, so the
    /// pid is its own.
    pub(super) fn stop_upgrade_check(&mut self) {
        self.upgrade.exec_flush_deadline = None;
        self.pending_events.retain(|event| {
            !matches!(event, Event::UpgradeCheckPassed | Event::UpgradeFailed { .. })
        });
        if let Some(mut check) = self.upgrade.check.take() {
            self.event_log.log_new_binary_output(&check.stderr_tail());
            let _ = prefork_os::child::signal_child(check.pid, Signal::SIGKILL);
            self.killed_children.add_child(check.pid);
        }
    }

    /// Queues the result of the check if its process has exited.
    pub(super) fn reap_upgrade_check(&mut self) {
        let pid = self.upgrade.check.as_ref().map(|check| check.pid);
        if let Some(Ok(Some(status))) = pid.map(reap_child) {
            self.finish_upgrade_check(status);
        }
    }

    fn finish_upgrade_check(&mut self, status: ExitStatus) {
        let Some(check) = self.upgrade.check.take() else { return };
        self.pending_events.push_back(match check.into_result(status) {
            Ok(revision) => {
                self.upgrade.checked_revision = revision;
                Event::UpgradeCheckPassed
            }
            Err(reason) => Event::UpgradeFailed { reason },
        });
    }

    /// Replaces this process by the new binary, unless events are pending: a stop, a worker's report or its exit would
    /// be lost. Signals that arrive from here on wait for the handlers of the new image.
    pub(super) fn exec_new_binary(&mut self) {
        let error = match self.try_exec_new_binary() {
            Ok(None) => return,
            Ok(Some(error)) | Err(error) => error,
        };
        self.upgrade.exec_flush_deadline = None;
        self.update_kernel_selector();
        self.pending_events.push_back(Event::UpgradeFailed { reason: error.to_string() });
    }

    /// Returns why the exec failed, or `None` if events have to be handled first.
    fn try_exec_new_binary(&mut self) -> Result<Option<Error>> {
        let _blocked = BlockedSignals::block_all()
            .map_err(|e| Error::system("block signals for the upgrade", e))?;
        // Before the last look at the events: the hook may cause some.
        self.flush_output();
        self.read_signals().map_err(|e| Error::system("read the last signals", e))?;
        if !self.pending_events.is_empty() {
            return Ok(None);
        }
        // Clients that follow the events get the last ones of this image from it.
        self.control.send_new_events(&self.event_log);
        self.application_sockets = application_sockets::registered();
        let mut manifest = self.write_manifest()?;
        match self.upgrade.checked_revision {
            0 => self.prepare_exec_of_older_binary(&manifest)?,
            _ => self.pass_control_and_pid_file(&mut manifest),
        }
        self.stop_kernel_selector();
        self.publish_for_admin(Instant::now());
        if self.upgrade.checked_revision >= ADMIN_REVISION {
            manifest.admin.iter_mut().for_each(|admin| self.admin.pass_processes(admin));
            self.admin.prepare_exec();
        } else {
            // A binary that knows no admin listener would keep its process for ever.
            self.admin.kill_all(&mut self.killed_children);
        }
        if self.upgrade.checked_revision >= TICKET_KEYS_REVISION {
            manifest.ticket_keys_fd = self.ticket_keys.fd().map(|fd| fd.as_raw_fd());
        }
        let can_pass_jobs = self.upgrade.checked_revision >= ISOLATED_JOBS_REVISION;
        self.settle_isolated_jobs(can_pass_jobs);
        self.messages.primary_end.prepare_save();
        let mut fds = self.inheritable_fds();
        fds.extend(self.control.passed_fds());
        fds.extend(self.pid_file.lock_fd());
        if self.upgrade.checked_revision >= ADMIN_REVISION {
            fds.extend(self.admin.process_fds());
        }
        if manifest.ticket_keys_fd.is_some() {
            fds.extend(self.ticket_keys.fd());
        }
        // Not in the manifest of a check: its process would keep these connections open.
        for connection in self.round_robin.held_connections() {
            let passed =
                PassedConnection { fd: connection.fd.as_raw_fd(), unix: connection.is_unix };
            manifest.held.push(passed);
            fds.push(connection.fd.as_fd());
        }
        let shared = PassedFds::for_new_image();
        if self.upgrade.checked_revision >= SHARED_STATE_REVISION {
            manifest.shared = Some(shared.state.clone());
            fds.extend(shared.fds());
        }
        let jobs = self.save_isolated_jobs()?;
        if can_pass_jobs {
            manifest.isolated_jobs = Some(jobs.state.clone());
            fds.extend(jobs.fds());
        }
        let state_fd;
        if self.upgrade.checked_revision >= MESSAGES_REVISION {
            let last_request_id = self.messages.requests.next_id() - 1;
            let (saved, message_fds) = self.messages.primary_end.save(last_request_id);
            state_fd = create_message_state(&saved)?;
            let channels = self.messages.primary_end.channel_fds();
            let channels = channels.map(|(id, fd)| (id.0, fd.as_raw_fd())).collect();
            let (format, number) = (MESSAGE_FORMAT, state_fd.as_raw_fd());
            manifest.messages = Some(PassedMessages { format, state_fd: number, channels });
            fds.extend(message_fds);
            fds.push(state_fd.as_fd());
        }
        Ok(Some(self.upgrade.launcher.exec_new_image(&manifest, &fds)))
    }

    /// Passes the control socket with its clients, and the pid file.
    ///
    /// A worker that was forked a moment before the exec has copies of both until it closes them. If the exec closed
    /// the primary's own, that worker alone would hold the lock and the listening socket, and the new image would find
    /// both in use.
    fn pass_control_and_pid_file(&mut self, manifest: &mut UpgradeManifest) {
        manifest.control = self.control.pass_to_new_image();
        manifest.pid_file = self.pid_file.pass_to_new_image();
    }

    /// Answers waiting clients, as an older binary cannot. It opens the control socket and the pid file by itself.
    fn prepare_exec_of_older_binary(&mut self, manifest: &UpgradeManifest) -> Result<()> {
        if manifest.workers.iter().any(|worker| worker.board > 0) {
            return Err(Error::refused(
                "the new binary is too old to take over workers of the previous image, which are still draining; try \
                 again when they have exited",
            ));
        }
        let text = "the new binary takes over now; it is too old to report when its workers serve";
        let state = self.supervisor.save_state(Instant::now());
        for reply_id in state.upgrade_requesters.iter().filter_map(|one| one.reply_id) {
            self.control.reply(reply_id, &Reply::Done(text.to_string()));
        }
        Ok(())
    }

    fn write_manifest(&self) -> Result<UpgradeManifest> {
        let state = self.supervisor.save_state(Instant::now());
        let memory = self.scoreboard.memory();
        let memory = memory.ok_or_else(|| Error::internal("no scoreboard to pass on"))?;
        let SumsOfDeadWorkers { totals, kept, pools } = self.scoreboard.sums_of_dead_workers();
        let boards = self.workers.inherited_scoreboards();
        let older_boards = boards.iter().filter_map(|one| self.scoreboard.inherited_memory(*one));
        let mut room_for_output = MAX_PASSED_OUTPUT_BYTES;
        let workers = self.workers.values().map(|process| {
            let saved = state.workers.iter().find(|saved| saved.tag.id == process.tag.id);
            let outputs = self.output.passed_pipes(process.tag.id, &mut room_for_output);
            PassedWorker { outputs, ..passed_worker(process, saved, &boards) }
        });
        let listeners = self.listeners.listeners.iter().map(|listener| PassedListener {
            addr: listener.addr.to_string(),
            slot: listener.slot.0,
            keeper: listener.keeper.name().to_string(),
            fd: listener.as_fd().as_raw_fd(),
        });
        Ok(UpgradeManifest {
            version: MANIFEST_VERSION,
            pid: std::process::id(),
            started_ms: self.scoreboard.started_at_ms(),
            upgrades: self.upgrade.upgrade_count,
            generation: state.generation.0,
            next_id: state.next_id.0,
            restarts: state.restart_count,
            workers_wanted: state.wanted_workers,
            workers_configured: state.configured_workers,
            kinds: state.kinds.into_iter().map(passed_kind).collect(),
            totals,
            kept,
            pools,
            supervision: self.scoreboard.supervision_counters(),
            listeners: listeners.collect(),
            workers: workers.collect(),
            held: Vec::new(),
            reserved_ids: state.forked_slots.iter().filter_map(reserved_id).collect(),
            environments: state
                .forked_slots
                .into_iter()
                .map(|forked| (forked.slot.0, forked.environment))
                .collect(),
            board_fd: memory.as_raw_fd(),
            revision: MANIFEST_REVISION,
            older_boards: older_boards.map(AsRawFd::as_raw_fd).collect(),
            stack_fds: self.stacks.passed_fd_numbers(&boards),
            control: None,
            pid_file: None,
            last_event: self.event_log.history.last_number(),
            sockets: self.application_sockets.iter().map(passed_socket).collect(),
            messages: None,
            shared: None,
            isolated_jobs: None,
            ticket_keys_fd: None,
            admin: self.admin.passed_sockets(),
        })
    }

    /// Returns the descriptors that every manifest names.
    fn inheritable_fds(&self) -> Vec<BorrowedFd<'_>> {
        let listeners = self.listeners.listeners.iter().map(AsFd::as_fd);
        let channels = self.workers.values().filter_map(|process| process.channel.as_ref());
        let queues = self.workers.values().filter_map(|process| process.queue.as_ref());
        let boards = self.workers.inherited_scoreboards();
        let stacks = self.stacks.passed_fds(&boards);
        let boards = boards.into_iter();
        let older_boards = boards.filter_map(|board| self.scoreboard.inherited_memory(board));
        listeners
            .chain(channels.map(AsFd::as_fd))
            .chain(queues.flat_map(ConnectionQueue::ends))
            .chain(self.output.passed_fds())
            .chain(self.admin.socket_fds())
            .chain(self.application_sockets.iter().map(|one| one.fd.as_fd()))
            .chain(self.scoreboard.memory().into_iter().chain(older_boards).map(AsFd::as_fd))
            .chain(stacks)
            .collect()
    }

    /// Takes over the message channels of the workers. On an error they are closed, which tells the workers.
    fn restore_messages(&mut self, messages: &PassedMessages, kinds: &[&'static str]) {
        let channels = messages.channels.iter().map(|(id, fd)| (WorkerId(*id), *fd));
        let channels: Vec<_> =
            channels.filter_map(|(id, fd)| Some((id, take_inherited_fd(fd).ok()?))).collect();
        let saved = match read_message_state(messages) {
            Ok(saved) => saved,
            Err(reason) => return self.event_log.log_closed_message_channels(&reason),
        };
        for (id, fd) in channels {
            if let Some(process) = self.workers.get(&id) {
                self.messages.primary_end.add(process.tag, fd);
            }
        }
        self.messages.requests.continue_after(saved.last_request_id);
        let kinds: Vec<_> = kinds.iter().copied().chain([WEB_KIND]).collect();
        self.messages.primary_end.restore(saved, &kinds, Instant::now());
    }

    /// Takes over the workers, channels and counters of the previous image.
    pub(super) fn restore_state(&mut self, manifest: &UpgradeManifest) -> Result<()> {
        for fd in std::iter::once(&manifest.board_fd).chain(&manifest.older_boards) {
            take_inherited_fd(*fd)
                .and_then(|memory| self.scoreboard.inherit(memory))
                .map_err(|e| Error::system("map the scoreboard of the previous image", e))?;
        }
        for fd in &manifest.stack_fds {
            // Without it, the stacks of old workers are missing.
            self.stacks.inherit(fd.and_then(|fd| take_inherited_fd(fd).ok()));
        }
        let sums = SumsOfDeadWorkers {
            totals: manifest.totals,
            kept: manifest.kept.clone(),
            pools: manifest.pools.clone(),
        };
        self.scoreboard.restore_totals(&sums, manifest.started_ms);
        self.scoreboard.publish_supervision_counters(&manifest.supervision);
        self.upgrade.dropped_log_lines = manifest.supervision.log_lines_dropped;
        self.upgrade.upgrade_count = manifest.upgrades + 1;
        let kinds = self.supervisor.kind_first_slots();
        let kinds: Vec<&'static str> = kinds.iter().map(|kind| kind.0).collect();
        // New addresses are opened later than this.
        let addrs = manifest.listeners.iter().filter_map(|one| one.addr.parse().ok());
        let addrs: Vec<ListenAddr> = addrs.collect();
        for worker in &manifest.workers {
            let tag = worker_tag(worker, &kinds);
            let fd = worker.channel_fd.map(take_inherited_fd).transpose();
            let fd = fd.map_err(|e| Error::system(format!("take over the channel of {tag}"), e))?;
            let pages = PageRange { first: worker.row, count: worker.rows };
            let worker_pages = WorkerPages::Inherited { board: worker.board, pages };
            self.scoreboard.add_inherited_worker(worker_pages);
            let queue = worker.queue_fds.map(|fds| inherit_queue(tag, fds)).transpose()?;
            let channel = fd.map(PrimaryChannelEnd::new);
            let process = WorkerProcess::new(tag, worker.pid, channel, worker_pages);
            let process = WorkerProcess {
                queue,
                released: !worker.serving,
                socket_index: worker.socket_index,
                socket_addrs: self.worker_sockets.as_ref().map_or(Vec::new(), |_| addrs.clone()),
                ..process.with_inherited_group()
            };
            self.workers.insert(process);
            self.output
                .restore_pipes(tag, &worker.outputs)
                .map_err(|e| Error::system(format!("take over the output of {tag}"), e))?;
        }
        if let Some(messages) = &manifest.messages {
            self.restore_messages(messages, &kinds);
        }
        if let Some(admin) = &manifest.admin {
            self.admin.restore_processes(admin)?;
        }
        if let Some(jobs) = &manifest.isolated_jobs {
            self.restore_isolated_jobs(jobs, WorkerId(manifest.next_id));
        }
        for held in &manifest.held {
            let fd = take_inherited_fd(held.fd)
                .map_err(|e| Error::system("take over an accepted connection", e))?;
            self.round_robin.restore_held(QueuedConnection { fd, is_unix: held.unix });
        }
        let used = self.workers.inherited_scoreboards();
        let unused = (0..=manifest.older_boards.len()).filter(|board| !used.contains(board));
        for board in unused {
            self.scoreboard.release_inherited(board);
            self.stacks.release_inherited(board);
        }
        Ok(())
    }
}

fn passed_socket(socket: &ApplicationSocket) -> PassedSocket {
    PassedSocket { name: socket.name.clone(), fd: socket.fd.as_raw_fd() }
}

/// Writes the queues of messages to a memfd.
fn create_message_state(saved: &SavedMessages) -> Result<OwnedFd> {
    let failed = |e| Error::system("save the application's messages", e);
    let bytes = saved.encode().map_err(|why| failed(std::io::Error::other(why)))?;
    prefork_os::exec::create_sealed_memfd("prefork-messages", &bytes).map_err(failed)
}

/// Reads the queues of messages that the previous image has saved.
fn read_message_state(messages: &PassedMessages) -> Result<SavedMessages, String> {
    if messages.format != MESSAGE_FORMAT {
        let theirs = messages.format;
        return Err(format!("format {theirs} of messages, this binary reads {MESSAGE_FORMAT}"));
    }
    let state = take_inherited_fd(messages.state_fd)
        .and_then(|fd| prefork_os::exec::read_memfd(&fd, MAX_SAVED_STATE_BYTES));
    SavedMessages::decode(&state.map_err(|e| e.to_string())?)
}

fn passed_worker(
    process: &WorkerProcess,
    saved: Option<&SavedWorker>,
    inherited_boards: &[usize],
) -> PassedWorker {
    let (board, pages) = match process.pages {
        WorkerPages::Own(pages) => (0, pages),
        WorkerPages::Inherited { board, pages } => {
            let position = inherited_boards.iter().position(|one| *one == board);
            (1 + position.unwrap_or_default(), pages)
        }
    };
    let tag = process.tag;
    PassedWorker {
        id: tag.id.0,
        slot: tag.slot.0,
        kind: tag.kind.to_string(),
        generation: tag.generation.0,
        pid: process.pid,
        program_pid: process.tag.pid.filter(|_| process.runs_program()),
        row: pages.first,
        rows: pages.count,
        board,
        channel_fd: process.channel.as_ref().map(|channel| channel.as_fd().as_raw_fd()),
        queue_fds: process.queue.as_ref().map(|queue| queue.ends().map(|fd| fd.as_raw_fd())),
        age_ms: saved.map_or(0, |saved| saved.age.as_millis() as u64),
        serving: saved.is_some_and(|saved| saved.is_serving),
        own_socket: saved.is_some_and(|saved| saved.has_own_socket),
        adopts: saved.map_or(Vec::new(), |one| one.adopted_slots.iter().map(|s| s.0).collect()),
        socket_index: process.socket_index,
        outputs: Vec::new(),
    }
}

fn passed_kind(kind: SavedKind) -> PassedKind {
    PassedKind { name: kind.name, wanted: kind.wanted_workers, declared: kind.declared_workers }
}

/// Returns slot and id of a worker of the program that is not forked yet.
fn reserved_id(forked: &SavedForkedSlot) -> Option<(u32, u64)> {
    forked.reserved_id.map(|id| (forked.slot.0, id.0))
}

fn inherit_queue(tag: WorkerTag, fds: [RawFd; 2]) -> Result<ConnectionQueue> {
    let failed = |e| Error::system(format!("take over the connection queue of {tag}"), e);
    let [sender, reader] = fds.map(take_inherited_fd);
    Ok(ConnectionQueue::from_ends(sender.map_err(failed)?, reader.map_err(failed)?))
}

/// Creates a supervisor that continues where the previous image stopped.
pub(super) fn restore_supervisor(
    manifest: &UpgradeManifest,
    socket_slots: u32,
    config: SupervisorConfig,
    kinds: Vec<WorkerKindConfig>,
    seed: u64,
) -> Supervisor {
    let names: Vec<&'static str> = kinds.iter().map(|kind| kind.name).collect();
    let state = saved_state(manifest, socket_slots, &names);
    Supervisor::restore(config, kinds, seed, Instant::now(), state)
}

/// Converts a manifest into the supervisor's saved state.
fn saved_state(
    manifest: &UpgradeManifest,
    socket_slots: u32,
    kinds: &[&'static str],
) -> SavedState {
    let workers = manifest.workers.iter().map(|worker| SavedWorker {
        tag: worker_tag(worker, kinds),
        age: Duration::from_millis(worker.age_ms),
        is_serving: worker.serving,
        has_own_socket: worker.own_socket,
        adopted_slots: worker.adopts.iter().copied().map(Slot).collect(),
    });
    let saved_kinds = manifest.kinds.iter().map(|kind| SavedKind {
        name: kind.name.clone(),
        wanted_workers: kind.wanted,
        declared_workers: kind.declared,
    });
    let forked_slots = manifest.environments.iter().map(|(slot, environment)| {
        let reserved = manifest.reserved_ids.iter().find(|(of, _)| of == slot);
        SavedForkedSlot {
            slot: Slot(*slot),
            reserved_id: reserved.map(|(_, id)| WorkerId(*id)),
            environment: environment.clone(),
        }
    });
    SavedState {
        generation: Generation(manifest.generation),
        next_id: WorkerId(manifest.next_id),
        restart_count: manifest.restarts,
        wanted_workers: manifest.workers_wanted,
        configured_workers: manifest.workers_configured,
        kinds: saved_kinds.collect(),
        socket_slots,
        forked_slots: forked_slots.collect(),
        workers: workers.collect(),
        upgrade_requesters: manifest.control.as_ref().map_or(Vec::new(), upgrade_requesters),
    }
}

/// Returns the clients that wait for the end of the upgrade. Their reply ids are those of the passed control socket.
fn upgrade_requesters(control: &PassedControl) -> Vec<Requester> {
    let waiting = control.clients.iter().filter_map(|client| match client.state {
        PassedClientState::WaitingForReply { request_id } => {
            Some((client.client_name.clone(), request_id))
        }
        PassedClientState::ReadingRequest { .. } | PassedClientState::Following { .. } => None,
    });
    waiting.map(|(name, request_id)| Requester { name, reply_id: Some(request_id) }).collect()
}

/// Returns the tag of a passed worker. A worker of a kind that is not in `kinds` can only drain.
fn worker_tag(worker: &PassedWorker, kinds: &[&'static str]) -> WorkerTag {
    let known = kinds.iter().copied().chain([WEB_KIND]).find(|kind| *kind == worker.kind);
    WorkerTag {
        kind: known.unwrap_or("unknown"),
        id: WorkerId(worker.id),
        slot: Slot(worker.slot),
        generation: Generation(worker.generation),
        pid: worker.program_pid.or(Some(worker.pid)),
    }
}
