//! What the application's functions in the primary can see and do; what they send is in `handle_mail`.

use super::Primary;
use crate::error::{Error, Result};
use prefork_os::signal::Signal;
use prefork_supervisor::{ClusterCommand, Event, Requester, ScaleChange};
use prefork_supervisor::{Slot, WEB_KIND, WorkerId, WorkerTag};

/// More events than this wait for a primary whose hooks ask and ask.
const MOST: usize = 4096;

/// The primary, as the application's functions in it see it: see [`Cluster::on_event`](crate::Cluster::on_event) and
/// [`Cluster::on_message`](crate::Cluster::on_message). What it is asked to do happens after the function has returned,
/// in the order of the calls; what cannot be done then is in the log. Nothing here waits.
pub struct PrimaryHandle<'a> {
    pub(super) primary: &'a mut Primary,
}

/// One worker as the primary knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerInfo {
    /// Who: its number, slot, generation and pid.
    pub worker: WorkerTag,
    /// `forking`, `booting`, `serving`, `draining`, `leaving`, `aborted` or `killed`.
    pub state: &'static str,
}

impl PrimaryHandle<'_> {
    /// Every worker that exists or is being forked, oldest first.
    pub fn workers(&self) -> Vec<WorkerInfo> {
        let members = self.primary.supervisor.view().workers;
        let info = members.into_iter().map(|m| WorkerInfo { worker: m.tag, state: m.state });
        info.collect()
    }

    /// How many workers there should be.
    pub fn workers_wanted(&self) -> u32 {
        self.primary.supervisor.wanted_workers()
    }

    /// One more worker, with these variables besides those of the primary; of two with the same name the last one
    /// counts. They belong to the worker's slot: whoever replaces it has them too, until the slot is scaled away.
    ///
    /// Returns the number that the worker will have. Its fork may wait (for a crash loop to end) or be refused (during
    /// a reload, above [`Workers::MAX`](crate::Workers::MAX)), which the log tells; then the number is not used.
    ///
    /// # Errors
    /// A name is empty or has `=` or a NUL in it, a value has a NUL, or the cluster is stopping.
    pub fn fork_with<K, V>(
        &mut self,
        environment: impl IntoIterator<Item = (K, V)>,
    ) -> Result<WorkerId>
    where
        K: Into<String>,
        V: Into<String>,
    {
        self.fork_as(environment, ClusterCommand::Scale)
    }

    fn fork_as<K, V>(
        &mut self,
        environment: impl IntoIterator<Item = (K, V)>,
        command: impl FnOnce(ScaleChange) -> ClusterCommand,
    ) -> Result<WorkerId>
    where
        K: Into<String>,
        V: Into<String>,
    {
        let pairs = environment.into_iter().map(|(name, value)| (name.into(), value.into()));
        let pairs: Vec<(String, String)> = pairs.collect();
        for (name, value) in &pairs {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                return Err(Error::application("fork_with", format!("{name:?} is no variable")));
            }
        }
        if self.primary.supervisor.is_stop_requested() {
            return Err(Error::application("fork_with", "the cluster is stopping"));
        }
        let id = self.primary.supervisor.reserve_worker_id();
        match self.ask(command(ScaleChange::AddWorker(id, pairs)), "fork_with") {
            true => Ok(id),
            false => Err(Error::application("fork_with", "too much was asked for at once")),
        }
    }

    /// The same for workers of another kind than `web`: see [`Kind`](crate::Kind).
    ///
    /// # Errors
    /// As [`fork_with`](PrimaryHandle::fork_with), and if the program named no such kind.
    pub fn fork_kind_with<K, V>(
        &mut self,
        kind: &str,
        environment: impl IntoIterator<Item = (K, V)>,
    ) -> Result<WorkerId>
    where
        K: Into<String>,
        V: Into<String>,
    {
        let known = self.primary.supervisor.kind_first_slots().iter().any(|one| one.0 == kind);
        if !known && kind != WEB_KIND {
            return Err(Error::application("fork_with", format!("there is no kind {kind:?}")));
        }
        let kind = kind.to_string();
        self.fork_as(environment, move |scale| ClusterCommand::ScaleKind(kind, scale))
    }

    /// So many workers of another kind than `web` from now on, from 0.
    pub fn scale_kind(&mut self, kind: &str, workers: u32) {
        self.ask(ClusterCommand::ScaleKind(kind.to_string(), ScaleChange::To(workers)), "scale");
    }

    /// The slot of the `n`th worker of another kind than `web`, counted from 0, if the program named that kind.
    pub fn slot_of_kind(&self, kind: &str, n: u32) -> Option<Slot> {
        self.primary
            .supervisor
            .kind_first_slots()
            .iter()
            .find(|one| one.0 == kind)?
            .1
            .checked_add(n)
    }

    /// So many workers from now on, from 1 to [`Workers::MAX`](crate::Workers::MAX). Slots that stay empty (see
    /// [`disconnect`](PrimaryHandle::disconnect)) are filled again.
    pub fn scale(&mut self, workers: u32) {
        self.ask(ClusterCommand::Scale(ScaleChange::To(workers)), "scale");
    }

    /// Reads the configuration again and replaces every worker, as SIGHUP does.
    pub fn reload(&mut self) {
        self.ask(ClusterCommand::Reload, "reload");
    }

    /// The worker finishes what it has open, within `graceful-timeout`, and leaves. It is not replaced: its slot stays
    /// empty until the next reload, or until somebody scales.
    pub fn disconnect(&mut self, worker: WorkerId) {
        self.ask(ClusterCommand::Disconnect(worker), "disconnect");
    }

    /// Every worker finishes what it has open, then the primary ends: Node's `cluster.disconnect()`. Asked again, a
    /// moment later, the workers are killed.
    pub fn stop(&mut self) {
        self.ask(ClusterCommand::Stop, "stop");
    }

    /// Sends a signal to a worker, at once: 9 kills it, 15 makes it finish and be replaced.
    ///
    /// # Errors
    /// There is no such worker (any more), no such signal, or the system refuses.
    pub fn kill(&mut self, worker: WorkerId, signal: i32) -> Result<()> {
        let signal = Signal::try_from(signal)
            .map_err(|_| Error::application("kill", format!("there is no signal {signal}")))?;
        // Only of a child that is not reaped yet is the pid its own.
        let child = self.primary.workers.get(&worker);
        let child = child
            .ok_or_else(|| Error::application("kill", format!("there is no worker {worker}")))?;
        prefork_os::child::signal_child(child.pid, signal)
            .map_err(|e| Error::system(format!("send {} to {}", signal.as_str(), child.tag), e))
    }

    /// Whether there is room for what is asked.
    fn ask(&mut self, command: ClusterCommand, what: &str) -> bool {
        if self.primary.pending_events.len() >= MOST {
            self.primary.event_log.hook_asks_too_much();
            return false;
        }
        let by = Requester::without_reply(format!("a hook: {what}"));
        self.primary.pending_events.push_back(Event::CommandReceived { command, by });
        true
    }
}

impl std::fmt::Debug for PrimaryHandle<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PrimaryHandle").field("workers", &self.workers()).finish()
    }
}
