//! What happens in the life of a cluster, as the application in the primary sees it.

use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use crate::listener::ListenAddr;
use prefork_supervisor::{DrainReason, ExitCause, ExitReport, RecycleReason};
use prefork_supervisor::{Generation, WorkerId, WorkerTag};

/// Something that happened to the cluster; see [`Cluster::on_event`](crate::Cluster::on_event).
///
/// What is promised of one worker, whatever happens to it:
///
/// - `Fork` comes first, and comes once for each process that existed.
/// - `Online` comes at most once, before `Listening`, which comes at most once too. A worker that dies young has neither.
/// - `Disconnect` and `Exit` come exactly once for each `Fork`, in this order. (In Node's cluster the order is open.)
/// - `Replaced` comes at most once, after `Exit`, and after `Listening` of the one that replaced it. It does not come for
///   workers that were never ready, that left for good, or whose slot is no more.
///
/// `Stopping` comes once, and no `Fork` after it but those that were under way. A fork that fails is no event: no
/// process existed. After an upgrade in place, the workers of the image before have their `Disconnect`, `Exit` and
/// `Replaced` in the new image only; what the old image did not live to tell is told by nobody.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClusterEvent {
    /// A worker's process was forked.
    #[non_exhaustive]
    Fork {
        /// Who, with its pid.
        worker: WorkerTag,
    },
    /// It runs: its runtime turns and its channel works. Its application boots.
    #[non_exhaustive]
    Online {
        /// Who.
        worker: WorkerTag,
    },
    /// Its application has booted and it accepts connections; of another kind than `web`, that its loop has begun.
    #[non_exhaustive]
    Listening {
        /// Who.
        worker: WorkerTag,
        /// Where, as the kernel has it: with the real port where 0 was asked for. Nowhere for kinds other than `web`.
        addresses: Vec<ListenAddr>,
    },
    /// Its channel is closed: from now on nothing can be said to it.
    #[non_exhaustive]
    Disconnect {
        /// Who.
        worker: WorkerTag,
    },
    /// Its process is gone.
    Exit(WorkerExit),
    /// It is gone, and another worker serves in its place.
    #[non_exhaustive]
    Replaced {
        /// Who was replaced.
        worker: WorkerId,
        /// Who serves now.
        by: WorkerTag,
    },
    /// A reload is done: all workers are of this generation.
    #[non_exhaustive]
    Reloaded {
        /// The new generation.
        generation: Generation,
        /// How many workers serve.
        workers: usize,
    },
    /// A reload failed, and the workers of before serve on.
    #[non_exhaustive]
    ReloadFailed {
        /// Why.
        why: String,
    },
    /// Another number of workers is wanted.
    #[non_exhaustive]
    Scaled {
        /// Of which kind.
        kind: &'static str,
        /// How many were.
        from: u32,
        /// How many are.
        to: u32,
    },
    /// The cluster has begun to stop.
    Stopping,
}

/// How and why a worker ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerExit {
    /// Who. Its pid means nothing any more.
    pub worker: WorkerTag,
    /// Its exit status, if it exited. Exactly one of this and `signal` is there.
    pub code: Option<i32>,
    /// The number of the signal that ended it, if one did.
    pub signal: Option<i32>,
    /// Why, as far as the primary knows.
    pub reason: Reason,
    /// Whether it was told, or had asked, to finish and leave before it ended: Node's `exitedAfterDisconnect`.
    pub exited_after_disconnect: bool,
    /// From its fork to its end.
    pub uptime: Duration,
    /// How many requests it had served, as it said itself.
    pub requests: u64,
}

/// Why a worker ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// It finished since the cluster stops, or was killed for a stop at once.
    Stopped,
    /// It finished and left for good: [`PrimaryHandle::disconnect`](crate::PrimaryHandle::disconnect) or
    /// [`Worker::disconnect`](crate::Worker::disconnect).
    Disconnected,
    /// It asked to be replaced: [`Worker::retire`](crate::Worker::retire), or SIGTERM to the worker itself.
    Retired,
    /// It had reached this limit and was replaced.
    Recycled(RecycleReason),
    /// A reload or an upgrade replaced it.
    Reloaded,
    /// There are fewer workers now.
    ScaledDown,
    /// Killed by the primary before it served: another took its place, or the reload it was for was given up.
    Superseded,
    /// Killed by the primary: it did not finish within `graceful-timeout`.
    GraceOver,
    /// Killed by the primary: it was not ready within `boot-timeout`.
    BootTimeout,
    /// It could not boot, and said why.
    BootFailed(String),
    /// Killed by the primary: its event loop did not turn for `stall-timeout`.
    Frozen,
    /// Killed by the primary: it used more memory than `max-rss-hard`.
    MaxRssHard,
    /// Killed by the primary for what came over its channel.
    Condemned(String),
    /// Killed by the kernel, since the memory of its cgroup was used up. Known only where the cgroup's
    /// `memory.events` can be read; otherwise this is `Killed`.
    OutOfMemory,
    /// Killed by somebody else: SIGKILL, SIGTERM, SIGINT or SIGHUP.
    Killed,
    /// Ended by another signal: SIGSEGV, SIGABRT, ...
    Crashed,
    /// It exited unasked.
    Exited,
}

impl ClusterEvent {
    /// The worker that it is about, if it is about one.
    pub fn worker(&self) -> Option<WorkerId> {
        match self {
            ClusterEvent::Fork { worker }
            | ClusterEvent::Online { worker }
            | ClusterEvent::Listening { worker, .. }
            | ClusterEvent::Disconnect { worker } => Some(worker.id),
            ClusterEvent::Exit(exit) => Some(exit.worker.id),
            ClusterEvent::Replaced { worker, .. } => Some(*worker),
            ClusterEvent::Reloaded { .. }
            | ClusterEvent::ReloadFailed { .. }
            | ClusterEvent::Scaled { .. }
            | ClusterEvent::Stopping => None,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            ClusterEvent::Fork { .. } => "fork",
            ClusterEvent::Online { .. } => "online",
            ClusterEvent::Listening { .. } => "listening",
            ClusterEvent::Disconnect { .. } => "disconnect",
            ClusterEvent::Exit(_) => "exit",
            ClusterEvent::Replaced { .. } => "replaced",
            ClusterEvent::Reloaded { .. } => "reloaded",
            ClusterEvent::ReloadFailed { .. } => "reload failed",
            ClusterEvent::Scaled { .. } => "scaled",
            ClusterEvent::Stopping => "stopping",
        }
    }
}

/// Its name, and the worker's number: `exit worker=3`.
impl fmt::Display for ClusterEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        self.worker().map_or(Ok(()), |worker| write!(f, " worker={worker}"))
    }
}

impl WorkerExit {
    /// `out_of_memory` is asked only where it can make a difference.
    pub(super) fn new(exit: &ExitReport, out_of_memory: impl FnOnce() -> bool) -> WorkerExit {
        let (code, signal) = (exit.status.code(), exit.status.signal());
        let reason = match ours(exit) {
            Some(reason) => reason,
            None if signal == Some(9) && out_of_memory() => Reason::OutOfMemory,
            None => theirs(exit),
        };
        WorkerExit {
            worker: exit.worker,
            code,
            signal,
            reason,
            exited_after_disconnect: exit.drain_reason.is_some(),
            uptime: exit.uptime,
            requests: exit.requests_served,
        }
    }
}

/// Why we ended it, if we did.
fn ours(exit: &ExitReport) -> Option<Reason> {
    let error = || exit.error.clone().unwrap_or_default();
    Some(match exit.cause {
        ExitCause::Drained if exit.status.success() => match exit.drain_reason {
            Some(DrainReason::Stop) => Reason::Stopped,
            Some(DrainReason::Scale) => Reason::ScaledDown,
            Some(DrainReason::Recycle(limit)) => Reason::Recycled(limit),
            Some(DrainReason::Retire) => Reason::Retired,
            Some(DrainReason::Disconnect) => Reason::Disconnected,
            // An image before this one told it to leave, and that is what images do when they are followed.
            Some(DrainReason::Reload) | None => Reason::Reloaded,
        },
        ExitCause::BootTimeout => Reason::BootTimeout,
        ExitCause::KilledByStop => Reason::Stopped,
        ExitCause::GracefulTimeout => Reason::GraceOver,
        ExitCause::Misbehaved => Reason::Condemned(error()),
        ExitCause::Stalled => Reason::Frozen,
        ExitCause::MemoryLimit => Reason::MaxRssHard,
        ExitCause::Superseded => Reason::Superseded,
        ExitCause::BootFailed if exit.error.is_some() => Reason::BootFailed(error()),
        ExitCause::Drained | ExitCause::BootFailed | ExitCause::Unexpected => return None,
    })
}

/// How it ended otherwise. The numbers of these signals are the same on every Linux.
fn theirs(exit: &ExitReport) -> Reason {
    match exit.status.signal() {
        Some(1 | 2 | 9 | 15) => Reason::Killed,
        Some(_) => Reason::Crashed,
        None => Reason::Exited,
    }
}

#[cfg(test)]
mod tests;
