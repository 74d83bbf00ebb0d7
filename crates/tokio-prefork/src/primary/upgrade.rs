//! The hands' side of an upgrade: what is left to the new image, and taking it over from an old one.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::process::ExitStatus;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::{Primary, WorkerProcess};
use crate::channel::PrimaryEnd;
use crate::config::Config;
use crate::control::Server;
use crate::dispatch::round_robin::{Newcomer, Queue};
use crate::error::{Error, Result};
use crate::pid_file::PidFile;
use crate::scoreboard::{RowIndex, Rows};
use crate::upgrade::{
    Manifest, PassedConnection, PassedControl, PassedListener, PassedState, PassedWorker, REVISION,
};
use prefork_os::signal::{BlockedSignals, Signal};
use prefork_supervisor::SupervisorConfig;
use prefork_supervisor::{Event, Requester, SavedState, SavedWorker, Supervisor, WorkerKindConfig};
use prefork_supervisor::{Generation, Slot, WEB_KIND, WorkerId, WorkerTag};

/// How long an exec waits for clients of the control socket to read what they were sent.
const CONTROL_FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// How often it looks whether they have.
const QUIET_CHECK_INTERVAL: Duration = Duration::from_millis(20);

impl Primary {
    /// Starts the new binary as a child that shows whether it can take over.
    pub(super) fn prove(&mut self) {
        let outcome =
            self.leave().and_then(|manifest| self.launcher.prove(&manifest, &self.descriptors()));
        match outcome {
            Ok(proof) => self.proof = Some(proof),
            Err(e) => self.pending_events.push_back(Event::UpgradeFailed { reason: e.to_string() }),
        }
    }

    /// The child is not wanted any more: its verdict, if it is known already, is dropped, and its end is not
    /// reported, or it would count for the next one. It is ours and not reaped yet, so the pid is its own.
    pub(super) fn stop_proof(&mut self) {
        self.taking_over = false;
        self.pending_events.retain(|event| {
            !matches!(event, Event::UpgradeCheckPassed | Event::UpgradeFailed { .. })
        });
        if let Some(mut proof) = self.proof.take() {
            self.event_log.proof_printed(&proof.printed());
            let _ = prefork_os::child::signal_child(proof.pid, Signal::SIGKILL);
            self.stopped_proofs.push(proof.pid);
        }
    }

    /// Waits for those that were killed: nobody else would.
    pub(super) fn bury_proofs(&mut self) {
        while !self.stopped_proofs.is_empty() {
            self.stopped_proofs
                .retain(|pid| matches!(prefork_os::child::reap_child(*pid), Ok(None)));
            std::thread::yield_now();
        }
    }

    /// The child has ended; its verdict.
    pub(super) fn proof_ended(&mut self, status: ExitStatus) {
        let Some(proof) = self.proof.take() else { return };
        self.pending_events.push_back(match proof.verdict(status) {
            Ok(revision) => {
                self.proved_revision = revision;
                Event::UpgradeCheckPassed
            }
            Err(why) => Event::UpgradeFailed { reason: why },
        });
    }

    /// Becomes the new binary, once all that was learned is dealt with: a stop, a worker's last word or its end
    /// would be lost with this image. Signals that come from here on wait for the handlers of the new one.
    pub(super) fn take_over(&mut self) {
        let mut outcome = || -> Result<Option<Error>> {
            let _blocked = BlockedSignals::block_all()
                .map_err(|e| Error::system("hold back signals for the upgrade", e))?;
            self.heed_signals().map_err(|e| Error::system("read the last signals", e))?;
            if !self.pending_events.is_empty() {
                return Ok(None);
            }
            // Whoever follows the events gets the last ones of this image from it.
            self.settle_control();
            let mut manifest = self.leave()?;
            match self.proved_revision {
                0 => self.leave_to_older(&manifest)?,
                _ => self.leave_files(&mut manifest),
            }
            self.stop_kernel_selector();
            let mut descriptors = self.descriptors();
            descriptors.extend(self.control.iter().flat_map(Server::descriptors));
            descriptors.extend(self.pid_file.iter().map(AsFd::as_fd));
            // Not before: a child that is only tried would keep them open.
            for newcomer in self.dealer.held() {
                let fd = raw_fd(&newcomer.fd);
                manifest.held.push(PassedConnection { fd, unix: newcomer.unix });
                descriptors.push(newcomer.fd.as_fd());
            }
            Ok(Some(self.launcher.take_over(&manifest, &descriptors)))
        };
        let error = match outcome() {
            Ok(None) => return,
            Ok(Some(error)) | Err(error) => error,
        };
        self.taking_over = false;
        self.update_kernel_selector();
        self.pending_events.push_back(Event::UpgradeFailed { reason: error.to_string() });
    }

    /// Adds the control socket with its clients, and the pid file. A worker that was forked a moment before the exec has
    /// copies of both until it lets go of what is the primary's. If the exec closed our own, this worker alone would hold
    /// the lock of the pid file and the listening socket: the new image would find both in use, and go on without.
    fn leave_files(&mut self, manifest: &mut Manifest) {
        manifest.control = self.control.as_mut().map(Server::pass);
        manifest.pid_file = self.pid_file.as_ref().and_then(PidFile::pass);
    }

    /// The new binary opens control socket and pid file anew, and answers nobody who asked us.
    fn leave_to_older(&mut self, manifest: &Manifest) -> Result<()> {
        if manifest.workers.iter().any(|worker| worker.board > 0) {
            return Err(Error::config(
                "workers of the image before this one are still finishing, and the new binary is too old to take them over; \
                 try again when they are gone",
            ));
        }
        let said = "the new binary takes over now; it is too old to tell when its workers serve";
        for asker in self.supervisor.save_state(Instant::now()).upgrade_requesters {
            asker.reply_id.into_iter().for_each(|ticket| self.answer(ticket, Ok(said.to_string())));
        }
        Ok(())
    }

    /// Whether every client of the control socket has got what it was sent, or has had time enough. What is on its way when
    /// the exec comes would end in the middle.
    pub(super) fn control_is_quiet(&self) -> bool {
        let unsent = self.control.as_ref().is_some_and(Server::has_unsent);
        !unsent || self.quiet_until.is_none_or(|until| until <= Instant::now())
    }

    /// How long to wait before `control_is_quiet` is asked again.
    pub(super) fn quiet_pause(&self) -> Option<Duration> {
        (self.taking_over && !self.control_is_quiet()).then_some(QUIET_CHECK_INTERVAL)
    }

    /// The exec follows as soon as nothing is left to be dealt with.
    pub(super) fn begin_take_over(&mut self) {
        self.taking_over = true;
        self.quiet_until = Some(Instant::now() + CONTROL_FLUSH_TIMEOUT);
    }

    fn leave(&self) -> Result<Manifest> {
        let mind = self.supervisor.save_state(Instant::now());
        let memory =
            self.scoreboard.memory().ok_or_else(|| Error::config("no scoreboard to pass on"))?;
        let (totals, started_ms) = self.scoreboard.totals();
        let known = |id| mind.workers.iter().find(|member| member.tag.id == id);
        let serving = |id| known(id).is_some_and(|member| member.is_serving);
        let age = |id| known(id).map_or(Duration::ZERO, |member| member.age);
        let boards = self.older_boards();
        let workers = self.workers.iter().map(|(id, child)| {
            let (board, rows) = match child.row {
                RowIndex::Own(rows) => (0, rows),
                RowIndex::Inherited { board, rows } => {
                    (1 + boards.iter().position(|one| *one == board).unwrap_or_default(), rows)
                }
            };
            PassedWorker {
                id: id.0,
                slot: child.tag.slot.0,
                kind: child.tag.kind.to_string(),
                generation: child.tag.generation.0,
                pid: child.pid,
                row: rows.first,
                rows: rows.count,
                board,
                channel_fd: child.channel.as_ref().map(raw_fd),
                queue_fds: child.queue.as_ref().map(|queue| queue.ends().map(raw_fd)),
                age_ms: age(*id).as_millis() as u64,
                serving: serving(*id),
                own_socket: known(*id).is_some_and(|member| member.has_own_socket),
                adopts: known(*id)
                    .map_or(Vec::new(), |m| m.adopted_slots.iter().map(|s| s.0).collect()),
            }
        });
        let listeners = self.listeners.listeners.iter().map(|listener| PassedListener {
            addr: listener.addr.to_string(),
            slot: listener.slot.0,
            keeper: listener.keeper.name().to_string(),
            fd: raw_fd(listener),
        });
        Ok(Manifest {
            version: Manifest::VERSION,
            pid: std::process::id(),
            started_ms,
            upgrades: self.upgrades,
            generation: mind.generation.0,
            next_id: mind.next_id.0,
            restarts: mind.restart_count,
            workers_wanted: mind.wanted_workers,
            totals,
            listeners: listeners.collect(),
            workers: workers.collect(),
            held: Vec::new(),
            environments: mind.environments.into_iter().map(|(slot, own)| (slot.0, own)).collect(),
            board_fd: raw_fd(memory),
            revision: REVISION,
            older_boards: boards
                .iter()
                .filter_map(|board| self.scoreboard.inherited_memory(*board))
                .map(raw_fd)
                .collect(),
            control: None,
            pid_file: None,
            last_event: self.event_log.ledger.last(),
        })
    }

    /// The inherited scoreboards on which workers still write, without repetition.
    fn older_boards(&self) -> Vec<usize> {
        let boards = self.workers.values().filter_map(|child| match child.row {
            RowIndex::Inherited { board, .. } => Some(board),
            RowIndex::Own(_) => None,
        });
        boards.collect::<BTreeSet<_>>().into_iter().collect()
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let listeners = self.listeners.listeners.iter().map(AsFd::as_fd);
        let channels = self.workers.values().filter_map(|child| child.channel.as_ref());
        let queues = self.workers.values().filter_map(|child| child.queue.as_ref());
        listeners
            .chain(channels.map(AsFd::as_fd))
            .chain(queues.flat_map(Queue::ends))
            .chain(self.scoreboard.memory().map(AsFd::as_fd))
            .chain(
                self.older_boards()
                    .into_iter()
                    .filter_map(|board| self.scoreboard.inherited_memory(board))
                    .map(AsFd::as_fd),
            )
            .collect()
    }

    /// Takes over the workers, channels and counters that another image left.
    pub(super) fn adopt(&mut self, manifest: &Manifest) -> Result<()> {
        for number in std::iter::once(&manifest.board_fd).chain(&manifest.older_boards) {
            prefork_os::fd::take_inherited_fd(*number)
                .and_then(|memory| self.scoreboard.inherit(memory))
                .map_err(|e| {
                    Error::system("read the scoreboard of the image before this one", e)
                })?;
        }
        self.scoreboard.succeed(&manifest.totals, manifest.started_ms);
        self.upgrades = manifest.upgrades + 1;
        let kinds = self.supervisor.kind_first_slots();
        let names: Vec<&'static str> = kinds.iter().map(|kind| kind.0).collect();
        for worker in &manifest.workers {
            let channel = worker
                .channel_fd
                .map(prefork_os::fd::take_inherited_fd)
                .transpose()
                .map_err(|e| Error::system("take over the channel of a worker", e))?;
            let rows = Rows { first: worker.row, count: worker.rows };
            let row = RowIndex::Inherited { board: worker.board, rows };
            let channel = channel.map(PrimaryEnd::new);
            let queue = worker.queue_fds.map(inherit_queue).transpose()?;
            let tag = tag(worker, &names);
            let child =
                WorkerProcess { queue, ..WorkerProcess::new(tag, worker.pid, channel, row) };
            self.workers.insert(WorkerId(worker.id), child);
        }
        for held in &manifest.held {
            let fd = prefork_os::fd::take_inherited_fd(held.fd)
                .map_err(|e| Error::system("take over a connection that was accepted", e))?;
            self.dealer.inherit(Newcomer { fd, unix: held.unix });
        }
        let used = self.older_boards();
        let unused = (0..=manifest.older_boards.len()).filter(|board| !used.contains(board));
        unused.for_each(|board| self.scoreboard.release_inherited(board));
        Ok(())
    }
}

fn inherit_queue(ends: [i32; 2]) -> Result<Queue> {
    let failed = |e| Error::system("take over the queue of a worker", e);
    let [sending, reading] = ends.map(prefork_os::fd::take_inherited_fd);
    Ok(Queue::inherit(sending.map_err(failed)?, reading.map_err(failed)?))
}

/// A supervisor that goes on where the image before this one stopped, and what it forks workers under.
pub(super) fn go_on(
    manifest: &Manifest,
    sockets: u32,
    policy: SupervisorConfig,
    kinds: Vec<WorkerKindConfig>,
    seed: u64,
    config: &Rc<Config>,
) -> (Supervisor, BTreeMap<Generation, Rc<Config>>) {
    let names: Vec<&'static str> = kinds.iter().map(|kind| kind.name).collect();
    let adopted = SavedState { socket_slots: sockets, ..adopted(manifest, &names) };
    let before = adopted.generation;
    let mind = Supervisor::restore(policy, kinds, seed, Instant::now(), adopted);
    // Should the new generation fail, the old one's slots are forked from what there is.
    let configs = [before, Generation(before.0 + 1)].map(|each| (each, Rc::clone(config)));
    (mind, BTreeMap::from(configs))
}

/// What the supervisor has to know of a manifest.
fn adopted(manifest: &Manifest, kinds: &[&'static str]) -> SavedState {
    let members = manifest.workers.iter().map(|worker| SavedWorker {
        tag: tag(worker, kinds),
        age: Duration::from_millis(worker.age_ms),
        is_serving: worker.serving,
        has_own_socket: worker.own_socket,
        adopted_slots: worker.adopts.iter().copied().map(Slot).collect(),
    });
    SavedState {
        generation: Generation(manifest.generation),
        next_id: WorkerId(manifest.next_id),
        restart_count: manifest.restarts,
        wanted_workers: manifest.workers_wanted,
        socket_slots: 0,
        environments: {
            let own = manifest.environments.iter();
            own.map(|(slot, own)| (Slot(*slot), own.clone())).collect()
        },
        workers: members.collect(),
        upgrade_requesters: manifest.control.as_ref().map_or(Vec::new(), askers),
    }
}

/// Those who wait for the end of the upgrade. Their tickets are those of the control socket that is passed with them.
fn askers(control: &PassedControl) -> Vec<Requester> {
    let waiting = control.clients.iter().filter_map(|client| match client.state {
        PassedState::Waiting { ticket } => Some((client.who.clone(), ticket)),
        PassedState::Asking { .. } | PassedState::Following { .. } => None,
    });
    waiting.map(|(who, ticket)| Requester { name: who, reply_id: Some(ticket) }).collect()
}

/// `kinds` are those that this program has; of another kind a worker is only to leave.
fn tag(worker: &PassedWorker, kinds: &[&'static str]) -> WorkerTag {
    let known = kinds.iter().copied().chain([WEB_KIND]).find(|kind| *kind == worker.kind);
    WorkerTag {
        kind: known.unwrap_or("unknown"),
        id: WorkerId(worker.id),
        slot: Slot(worker.slot),
        generation: Generation(worker.generation),
        pid: Some(worker.pid),
    }
}

/// Returns the number of `fd`, which the next image takes over by it.
fn raw_fd(fd: impl AsFd) -> RawFd {
    fd.as_fd().as_raw_fd()
}
