//! The hands' side of an upgrade: what is left to the new image, and taking it over from an old one.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitStatus;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::{Child, Primary};
use crate::config::{Config, Policy};
use crate::error::{Error, Result};
use crate::identity::{Generation, Slot, WorkerId, WorkerTag};
use crate::ipc::{Newcomer, PrimaryEnd, Queue};
use crate::scoreboard::{RowIndex, Rows};
use crate::supervisor::{Adopted, AdoptedMember, Event, Supervisor};
use crate::sys;
use crate::sys::signal::{Blocked, Signal};
use crate::upgrade::{Manifest, PassedConnection, PassedListener, PassedWorker};

impl Primary {
    /// Starts the new binary as a child that shows whether it can take over.
    pub(super) fn prove(&mut self) {
        let outcome =
            self.leave().and_then(|manifest| self.launcher.prove(&manifest, &self.descriptors()));
        match outcome {
            Ok(proof) => self.proof = Some(proof),
            Err(e) => self.queue.push_back(Event::NotProved { why: e.to_string() }),
        }
    }

    /// The child is not wanted any more: its verdict, if it is known already, is dropped, and its end is not
    /// reported, or it would count for the next one. It is ours and not reaped yet, so the pid is its own.
    pub(super) fn stop_proof(&mut self) {
        self.taking_over = false;
        self.queue.retain(|event| !matches!(event, Event::Proved | Event::NotProved { .. }));
        if let Some(proof) = self.proof.take() {
            let _ = sys::process::kill(proof.pid, Signal::SIGKILL);
            self.stopped_proofs.push(proof.pid);
        }
    }

    /// Waits for those that were killed: nobody else would.
    pub(super) fn bury_proofs(&mut self) {
        while !self.stopped_proofs.is_empty() {
            self.stopped_proofs.retain(|pid| matches!(sys::wait::reap(*pid), Ok(None)));
            std::thread::yield_now();
        }
    }

    /// The child has ended; its verdict.
    pub(super) fn proof_ended(&mut self, status: ExitStatus) {
        let Some(proof) = self.proof.take() else { return };
        self.queue.push_back(match proof.verdict(status) {
            Ok(()) => Event::Proved,
            Err(why) => Event::NotProved { why },
        });
    }

    /// Becomes the new binary, once all that was learned is dealt with: a stop, a worker's last word or its end
    /// would be lost with this image. Signals that come from here on wait for the handlers of the new one.
    pub(super) fn take_over(&mut self) {
        let mut outcome = || -> Result<Option<Error>> {
            let _blocked = Blocked::all()
                .map_err(|e| Error::system("hold back signals for the upgrade", e))?;
            self.heed_signals().map_err(|e| Error::system("read the last signals", e))?;
            if !self.queue.is_empty() {
                return Ok(None);
            }
            let mut manifest = self.leave()?;
            self.end_steering();
            let mut descriptors = self.descriptors();
            // Not before: a child that is only tried would keep them open.
            for newcomer in self.dealer.held() {
                let fd = sys::exec::number(&newcomer.fd);
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
        self.tend_steering();
        self.queue.push_back(Event::NotProved { why: error.to_string() });
    }

    fn leave(&self) -> Result<Manifest> {
        let mind = self.supervisor.leave(Instant::now());
        let memory =
            self.board.memory().ok_or_else(|| Error::config("no scoreboard to pass on"))?;
        let (totals, started_ms) = self.board.totals();
        let known = |id| mind.members.iter().find(|member| member.tag.id == id);
        let serving = |id| known(id).is_some_and(|member| member.serving);
        let age = |id| known(id).map_or(Duration::ZERO, |member| member.age);
        let workers = self.children.iter().map(|(id, child)| {
            let RowIndex::Own(rows) = child.row else {
                return Err(Error::config(
                    "workers of the image before this one are still finishing; try again when they are gone",
                ));
            };
            Ok(PassedWorker {
                id: id.0,
                slot: child.tag.slot.0,
                generation: child.tag.generation.0,
                pid: child.pid,
                row: rows.first,
                rows: rows.count,
                channel_fd: child.channel.as_ref().map(sys::exec::number),
                queue_fds: child.queue.as_ref().map(|queue| queue.ends().map(sys::exec::number)),
                age_ms: age(*id).as_millis() as u64,
                serving: serving(*id),
                own_socket: known(*id).is_some_and(|member| member.own_socket),
                adopts: known(*id).map_or(Vec::new(), |m| m.adopts.iter().map(|s| s.0).collect()),
            })
        });
        let listeners = self.listeners.listeners.iter().map(|listener| PassedListener {
            addr: listener.addr.to_string(),
            slot: listener.slot.0,
            keeper: listener.keeper.name().to_string(),
            fd: sys::exec::number(listener),
        });
        Ok(Manifest {
            version: Manifest::VERSION,
            pid: std::process::id(),
            started_ms,
            upgrades: self.upgrades,
            generation: mind.generation.0,
            next_id: mind.next_id,
            restarts: mind.restarts,
            workers_wanted: mind.workers_wanted,
            totals,
            listeners: listeners.collect(),
            workers: workers.collect::<Result<Vec<_>>>()?,
            held: Vec::new(),
            environments: mind.environments.into_iter().map(|(slot, own)| (slot.0, own)).collect(),
            board_fd: sys::exec::number(memory),
        })
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let listeners = self.listeners.listeners.iter().map(AsFd::as_fd);
        let channels = self.children.values().filter_map(|child| child.channel.as_ref());
        let queues = self.children.values().filter_map(|child| child.queue.as_ref());
        listeners
            .chain(channels.map(AsFd::as_fd))
            .chain(queues.flat_map(Queue::ends))
            .chain(self.board.memory().map(AsFd::as_fd))
            .collect()
    }

    /// Takes over the workers, channels and counters that another image left.
    pub(super) fn adopt(&mut self, manifest: &Manifest) -> Result<()> {
        let memory = sys::fd::adopt(manifest.board_fd)
            .map_err(|e| Error::system("take over the scoreboard", e))?;
        self.board
            .succeed(&memory, &manifest.totals, manifest.started_ms)
            .map_err(|e| Error::system("read the scoreboard of the image before this one", e))?;
        self.upgrades = manifest.upgrades + 1;
        for worker in &manifest.workers {
            let channel = worker
                .channel_fd
                .map(sys::fd::adopt)
                .transpose()
                .map_err(|e| Error::system("take over the channel of a worker", e))?;
            let row = RowIndex::Inherited(Rows { first: worker.row, count: worker.rows });
            let channel = channel.map(PrimaryEnd::new);
            let queue = worker.queue_fds.map(inherit_queue).transpose()?;
            let child = Child { queue, ..Child::new(tag(worker), worker.pid, channel, row) };
            self.children.insert(WorkerId(worker.id), child);
        }
        for held in &manifest.held {
            let fd = sys::fd::adopt(held.fd)
                .map_err(|e| Error::system("take over a connection that was accepted", e))?;
            self.dealer.inherit(Newcomer { fd, unix: held.unix });
        }
        Ok(())
    }
}

fn inherit_queue(ends: [i32; 2]) -> Result<Queue> {
    let failed = |e| Error::system("take over the queue of a worker", e);
    let [sending, reading] = ends.map(sys::fd::adopt);
    Ok(Queue::inherit(sending.map_err(failed)?, reading.map_err(failed)?))
}

/// A supervisor that goes on where the image before this one stopped, and what it forks workers under.
pub(super) fn go_on(
    manifest: &Manifest,
    sockets: u32,
    policy: Policy,
    seed: u64,
    config: &Rc<Config>,
) -> (Supervisor, BTreeMap<Generation, Rc<Config>>) {
    let adopted = Adopted { sockets, ..adopted(manifest) };
    let before = adopted.generation;
    let mind = Supervisor::adopt(policy, seed, Instant::now(), adopted);
    // Should the new generation fail, the old one's slots are forked from what there is.
    let configs = [before, Generation(before.0 + 1)].map(|each| (each, Rc::clone(config)));
    (mind, BTreeMap::from(configs))
}

/// What the supervisor has to know of a manifest.
fn adopted(manifest: &Manifest) -> Adopted {
    let members = manifest.workers.iter().map(|worker| AdoptedMember {
        tag: tag(worker),
        age: Duration::from_millis(worker.age_ms),
        serving: worker.serving,
        own_socket: worker.own_socket,
        adopts: worker.adopts.iter().copied().map(Slot).collect(),
    });
    Adopted {
        generation: Generation(manifest.generation),
        next_id: manifest.next_id,
        restarts: manifest.restarts,
        workers_wanted: manifest.workers_wanted,
        sockets: 0,
        environments: {
            let own = manifest.environments.iter();
            own.map(|(slot, own)| (Slot(*slot), own.clone())).collect()
        },
        members: members.collect(),
    }
}

fn tag(worker: &PassedWorker) -> WorkerTag {
    WorkerTag {
        id: WorkerId(worker.id),
        slot: Slot(worker.slot),
        generation: Generation(worker.generation),
        pid: Some(worker.pid),
    }
}
