//! Commands that change the cluster, and their requesters.

use std::fmt;

use crate::action::{Action, LogEvent};
use crate::worker_identity::WorkerId;

/// A command to the cluster, from a signal, an operator or the application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterCommand {
    /// Stop gracefully: workers finish their open connections. A second `Stop` stops at once.
    Stop,
    /// Kill all workers and exit.
    StopNow,
    /// Read the configuration again and replace every worker, a few at a time.
    Reload,
    /// Change the number of workers of the kind `web`.
    Scale(ScaleChange),
    /// Change the number of workers of the named kind.
    ScaleKind(String, ScaleChange),
    /// Drain this worker and leave its slot empty.
    Disconnect(WorkerId),
    /// Replace the running binary by the one that is now at its path.
    Upgrade {
        /// Whether the reply is sent when the new binary's workers serve, instead of when its check has passed.
        wait: bool,
    },
}

/// A change of the number of workers of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScaleChange {
    /// Exactly this many workers.
    To(u32),
    /// This many more workers.
    Up(u32),
    /// This many fewer workers.
    Down(u32),
    /// One more, with an id from [`Supervisor::reserve_worker_id`](crate::Supervisor::reserve_worker_id) and
    /// environment variables of its own.
    AddWorker(WorkerId, WorkerEnvironment),
}

/// Environment variables that the workers of one slot have in addition to those of the primary.
pub type WorkerEnvironment = Vec<(String, String)>;

/// A command that was refused, without the details that its requester knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RefusedCommand {
    /// The fork of a worker, whose id stays unused.
    Fork(WorkerId),
    /// A change of the number of workers.
    Scale,
    /// A disconnect of this worker.
    Disconnect(WorkerId),
    /// A reload.
    Reload,
    /// An upgrade in place.
    Upgrade,
    /// A stop.
    Stop,
}

impl RefusedCommand {
    /// Returns the worker that the command is about, if it is about one.
    pub fn worker(self) -> Option<WorkerId> {
        match self {
            RefusedCommand::Fork(worker) | RefusedCommand::Disconnect(worker) => Some(worker),
            RefusedCommand::Scale | RefusedCommand::Reload => None,
            RefusedCommand::Upgrade | RefusedCommand::Stop => None,
        }
    }
}

/// Writes the command and its worker: `fork worker=4`.
impl fmt::Display for RefusedCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RefusedCommand::Fork(_) => "fork",
            RefusedCommand::Scale => "scale",
            RefusedCommand::Disconnect(_) => "disconnect",
            RefusedCommand::Reload => "reload",
            RefusedCommand::Upgrade => "upgrade",
            RefusedCommand::Stop => "stop",
        })?;
        self.worker().map_or(Ok(()), |worker| write!(f, " worker={worker}"))
    }
}

impl ClusterCommand {
    /// Returns what a refusal calls the command.
    pub fn as_refused(&self) -> RefusedCommand {
        match self {
            ClusterCommand::Stop | ClusterCommand::StopNow => RefusedCommand::Stop,
            ClusterCommand::Reload => RefusedCommand::Reload,
            ClusterCommand::Scale(change) | ClusterCommand::ScaleKind(_, change) => {
                change.as_refused()
            }
            ClusterCommand::Disconnect(worker) => RefusedCommand::Disconnect(*worker),
            ClusterCommand::Upgrade { .. } => RefusedCommand::Upgrade,
        }
    }
}

/// The sender of a command, and whether it expects a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requester {
    /// The name for the log: `SIGHUP`, `control uid=0 pid=4711`.
    pub name: String,
    /// Identifies the pending reply. Exactly one `Action::Reply` carries it; `None` expects no reply.
    pub reply_id: Option<u64>,
}

impl ScaleChange {
    /// Returns what a refusal calls the change.
    pub(crate) fn as_refused(&self) -> RefusedCommand {
        match self {
            ScaleChange::AddWorker(worker, _) => RefusedCommand::Fork(*worker),
            ScaleChange::To(_) | ScaleChange::Up(_) | ScaleChange::Down(_) => RefusedCommand::Scale,
        }
    }

    /// Returns the new number of workers, given the current number `from`.
    pub(crate) fn scaled_worker_count(&self, from: u32) -> u32 {
        match self {
            ScaleChange::To(n) => *n,
            ScaleChange::Up(n) => from.saturating_add(*n),
            ScaleChange::Down(n) => from.saturating_sub(*n),
            ScaleChange::AddWorker(..) => from.saturating_add(1),
        }
    }
}

impl Requester {
    /// Creates a requester that expects no reply, such as a signal.
    pub fn without_reply(name: impl Into<String>) -> Requester {
        Requester { name: name.into(), reply_id: None }
    }

    /// Replies that the command was carried out, and how.
    pub(crate) fn confirm_command(self, what: impl Into<String>, actions: &mut Vec<Action>) {
        self.send_reply(Ok(what.into()), actions);
    }

    /// Replies that the command was refused or failed, and why.
    pub(crate) fn refuse_command(self, reason: impl Into<String>, actions: &mut Vec<Action>) {
        self.send_reply(Err(reason.into()), actions);
    }

    /// Refuses the command, and logs the refusal if no reply is expected.
    pub(crate) fn refuse_command_or_log(
        self,
        command: RefusedCommand,
        reason: impl Into<String>,
        actions: &mut Vec<Action>,
    ) {
        let reason = reason.into();
        if self.reply_id.is_none() {
            let (by, reason) = (self.name.clone(), reason.clone());
            actions.push(Action::Log(LogEvent::CommandRefused { by, command, reason }));
        }
        self.refuse_command(reason, actions);
    }

    fn send_reply(self, result: Result<String, String>, actions: &mut Vec<Action>) {
        if let Some(reply_id) = self.reply_id {
            actions.push(Action::Reply { reply_id, result });
        }
    }
}
