//! The events of a cluster, as the application's hooks in the primary receive them.

use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use crate::listener::ListenAddr;
use prefork_supervisor::{DrainReason, ExitCause, ExitReport, RecycleReason, RefusedCommand};
use prefork_supervisor::{Generation, WorkerId, WorkerTag};

/// An event of the cluster; see [`Cluster::on_event`](crate::Cluster::on_event).
///
/// For one worker, these rules hold:
///
/// - `Fork` is the first event, once for each process that existed.
/// - `Online` comes at most once, before `Listening`, which comes at most once too. A worker that exits early has neither.
/// - `Disconnect` and `Exit` come exactly once for each `Fork`, in this order. (In Node's cluster the order is open.)
/// - `Replaced` comes at most once, after `Exit` and after `Listening` of the replacement. It does not come for workers
///   that were never ready, that left for good, or whose slot was removed.
///
/// `Stopping` comes once, and after it no `Fork` except those that were under way. A failed fork is `ForkFailed` and
/// nothing else, as no process existed; the slot's next try has another id. So each id that
/// [`fork_with`](crate::PrimaryHandle::fork_with) returned has exactly one `Fork`, `ForkFailed` or `Refused`. After an upgrade in place, workers of the old image have their `Disconnect`, `Exit` and `Replaced`
/// in the new image; events that the old image had no time to deliver are lost.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClusterEvent {
    /// A worker's process was forked.
    #[non_exhaustive]
    Fork {
        /// The worker, with its pid.
        worker: WorkerTag,
    },
    /// A worker's runtime runs and its channel works; the application boots.
    #[non_exhaustive]
    Online {
        /// The worker.
        worker: WorkerTag,
    },
    /// A worker's application has booted and it accepts connections. A worker of another kind than `web` runs its loop.
    #[non_exhaustive]
    Listening {
        /// The worker.
        worker: WorkerTag,
        /// The addresses that this worker serves, as the kernel has them: with the real port where 0 was requested. Those
        /// that a reload has dropped are not among them. Empty for kinds other than `web`.
        addresses: Vec<ListenAddr>,
    },
    /// A worker's channel is closed: no message can reach it any more.
    #[non_exhaustive]
    Disconnect {
        /// The worker.
        worker: WorkerTag,
    },
    /// A worker's process has exited.
    Exit(WorkerExit),
    /// Another worker serves in the slot of one that has exited.
    #[non_exhaustive]
    Replaced {
        /// The worker that has exited.
        worker: WorkerId,
        /// Its replacement.
        by: WorkerTag,
    },
    /// A worker could not be forked; another try follows.
    #[non_exhaustive]
    ForkFailed {
        /// The worker, which has no pid.
        worker: WorkerTag,
        /// Why the fork failed.
        reason: String,
    },
    /// A command of a hook or a signal was refused, or can no longer be carried out. Refusals of operators' commands
    /// (`prefork scale`) are no events.
    #[non_exhaustive]
    Refused {
        /// The command, with its worker.
        command: RefusedCommand,
        /// Why it was refused.
        reason: String,
    },
    /// A reload has completed: all workers are of this generation.
    #[non_exhaustive]
    Reloaded {
        /// The new generation.
        generation: Generation,
        /// How many workers serve.
        workers: usize,
    },
    /// A reload failed and the old workers keep serving.
    #[non_exhaustive]
    ReloadFailed {
        /// Why it failed.
        reason: String,
    },
    /// The wanted number of workers has changed.
    #[non_exhaustive]
    Scaled {
        /// The worker kind.
        kind: &'static str,
        /// The number before.
        from: u32,
        /// The number from now on.
        to: u32,
    },
    /// The last `web` worker has exited and none will follow: each was disconnected, left out by
    /// [`Cluster::on_restart`](crate::Cluster::on_restart), or scaled away.
    ///
    /// A hook that forks or scales now keeps the cluster as it is. Otherwise clients are refused from here on, though the
    /// addresses stay bound, until a worker is forked: from a timer or for a descriptor
    /// ([`PrimaryHandle::after`](crate::PrimaryHandle::after)), by a reload, or by an operator. If the application has neither
    /// timers nor descriptors in the primary and no worker of another kind runs, the cluster stops and `serve` returns
    /// `Ok`.
    Empty,
    /// The cluster has started to stop.
    Stopping,
}

/// How and why a worker exited.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerExit {
    /// The worker. Its pid may belong to another process by now.
    pub worker: WorkerTag,
    /// The exit status. Exactly one of this and `signal` is set.
    pub code: Option<i32>,
    /// The number of the signal that ended the worker.
    pub signal: Option<i32>,
    /// Why the worker exited, as far as the primary knows.
    pub reason: WorkerExitReason,
    /// Whether the worker drained, by a command or its own request, before it exited: Node's `exitedAfterDisconnect`.
    pub exited_after_disconnect: bool,
    /// The time from its fork to its exit.
    pub uptime: Duration,
    /// How many requests it had served, as it reported itself.
    pub requests: u64,
}

/// Why a worker exited.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum WorkerExitReason {
    /// Drained because the cluster stops, or killed for an immediate stop.
    Stopped,
    /// Drained for good: [`PrimaryHandle::disconnect`](crate::PrimaryHandle::disconnect) or
    /// [`Worker::disconnect`](crate::Worker::disconnect).
    Disconnected,
    /// Asked to be replaced: [`Worker::retire`](crate::Worker::retire), or SIGTERM to the worker itself.
    Retired,
    /// Reached a recycling limit and was replaced.
    Recycled(RecycleReason),
    /// Replaced by a reload or an upgrade.
    Reloaded,
    /// Drained because fewer workers are wanted.
    ScaledDown,
    /// Killed by the primary before it was ready: another worker took its slot, or its reload was abandoned.
    Superseded,
    /// Killed by the primary: it did not drain within `graceful-timeout`.
    GracefulTimeout,
    /// Killed by the primary: it was not ready within `boot-timeout`.
    BootTimeout,
    /// Could not boot and reported why.
    BootFailed(String),
    /// Killed by the primary: its event loop did not run for `stall-timeout`.
    Stalled,
    /// Killed by the primary: it used more memory than `max-rss-hard`.
    MemoryLimit,
    /// Killed by the primary: it broke the protocol of its channel.
    Misbehaved(String),
    /// Killed by the kernel because the memory of its cgroup was exhausted. Reported as `Killed` if `memory.events` of
    /// the cgroup cannot be read.
    OutOfMemory,
    /// Killed by another process: SIGKILL, SIGTERM, SIGINT or SIGHUP.
    Killed,
    /// Ended by another signal: SIGSEGV, SIGABRT and so on.
    Crashed,
    /// Exited by itself.
    Exited,
}

impl ClusterEvent {
    /// Returns the worker that the event is about, if it is about one.
    pub fn worker(&self) -> Option<WorkerId> {
        match self {
            ClusterEvent::Fork { worker }
            | ClusterEvent::Online { worker }
            | ClusterEvent::Listening { worker, .. }
            | ClusterEvent::Disconnect { worker } => Some(worker.id),
            ClusterEvent::Exit(exit) => Some(exit.worker.id),
            ClusterEvent::Replaced { worker, .. } => Some(*worker),
            ClusterEvent::ForkFailed { worker, .. } => Some(worker.id),
            ClusterEvent::Refused { command, .. } => command.worker(),
            ClusterEvent::Reloaded { .. }
            | ClusterEvent::ReloadFailed { .. }
            | ClusterEvent::Scaled { .. }
            | ClusterEvent::Empty
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
            ClusterEvent::ForkFailed { .. } => "fork failed",
            ClusterEvent::Refused { .. } => "refused",
            ClusterEvent::Reloaded { .. } => "reloaded",
            ClusterEvent::ReloadFailed { .. } => "reload failed",
            ClusterEvent::Scaled { .. } => "scaled",
            ClusterEvent::Empty => "empty",
            ClusterEvent::Stopping => "stopping",
        }
    }
}

/// Writes the name of the event and the worker's id: `exit worker=3`, `refused fork worker=4`.
impl fmt::Display for ClusterEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        if let ClusterEvent::Refused { command, .. } = self {
            return write!(f, " {command}");
        }
        self.worker().map_or(Ok(()), |worker| write!(f, " worker={worker}"))
    }
}

impl WorkerExit {
    /// Calls `is_oom_kill` only if SIGKILL came from outside the primary.
    pub(super) fn new(exit: &ExitReport, is_oom_kill: impl FnOnce() -> bool) -> WorkerExit {
        let (code, signal) = (exit.status.code(), exit.status.signal());
        let reason = match reason_of_primary(exit) {
            Some(reason) => reason,
            None if signal == Some(9) && is_oom_kill() => WorkerExitReason::OutOfMemory,
            None => reason_of_status(exit),
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

/// Returns why the primary ended the worker, if it did.
fn reason_of_primary(exit: &ExitReport) -> Option<WorkerExitReason> {
    let error = || exit.error.clone().unwrap_or_default();
    Some(match exit.cause {
        ExitCause::Drained if exit.status.success() => match exit.drain_reason {
            Some(DrainReason::Stop) => WorkerExitReason::Stopped,
            Some(DrainReason::Scale) => WorkerExitReason::ScaledDown,
            Some(DrainReason::Recycle(limit)) => WorkerExitReason::Recycled(limit),
            Some(DrainReason::Retire) => WorkerExitReason::Retired,
            Some(DrainReason::Disconnect) => WorkerExitReason::Disconnected,
            // Without a reason, the previous image drained the worker for the upgrade.
            Some(DrainReason::Reload) | None => WorkerExitReason::Reloaded,
        },
        ExitCause::BootTimeout => WorkerExitReason::BootTimeout,
        ExitCause::KilledByStop => WorkerExitReason::Stopped,
        ExitCause::GracefulTimeout => WorkerExitReason::GracefulTimeout,
        ExitCause::Misbehaved => WorkerExitReason::Misbehaved(error()),
        ExitCause::Stalled => WorkerExitReason::Stalled,
        ExitCause::MemoryLimit => WorkerExitReason::MemoryLimit,
        ExitCause::Superseded => WorkerExitReason::Superseded,
        ExitCause::BootFailed if exit.error.is_some() => WorkerExitReason::BootFailed(error()),
        ExitCause::Drained | ExitCause::BootFailed | ExitCause::Unexpected => return None,
    })
}

/// Derives the reason from the exit status. The numbers of these signals are the same on every Linux.
fn reason_of_status(exit: &ExitReport) -> WorkerExitReason {
    match exit.status.signal() {
        Some(1 | 2 | 9 | 15) => WorkerExitReason::Killed,
        Some(_) => WorkerExitReason::Crashed,
        None => WorkerExitReason::Exited,
    }
}

#[cfg(test)]
mod tests {
    use std::process::ExitStatus;

    use super::*;
    use prefork_supervisor::{Slot, WEB_KIND};

    fn exit_report(cause: ExitCause, drain_reason: Option<DrainReason>, raw: i32) -> ExitReport {
        let (slot, generation, pid) = (Slot(0), Generation(1), Some(7));
        ExitReport {
            worker: WorkerTag { id: WorkerId(1), slot, generation, pid, kind: WEB_KIND },
            status: ExitStatus::from_raw(raw),
            cause,
            drain_reason,
            error: None,
            uptime: Duration::from_secs(1),
            requests_served: 3,
        }
    }

    fn worker_exit(cause: ExitCause, drain_reason: Option<DrainReason>, raw: i32) -> WorkerExit {
        WorkerExit::new(&exit_report(cause, drain_reason, raw), || false)
    }

    #[test]
    fn a_drained_worker_has_the_reason_of_its_drain() {
        let limit = RecycleReason::Requests(9);
        for (drain_reason, reason) in [
            (DrainReason::Stop, WorkerExitReason::Stopped),
            (DrainReason::Scale, WorkerExitReason::ScaledDown),
            (DrainReason::Reload, WorkerExitReason::Reloaded),
            (DrainReason::Retire, WorkerExitReason::Retired),
            (DrainReason::Disconnect, WorkerExitReason::Disconnected),
            (DrainReason::Recycle(limit), WorkerExitReason::Recycled(limit)),
        ] {
            let exit = worker_exit(ExitCause::Drained, Some(drain_reason), 0);
            assert_eq!((exit.reason, exit.exited_after_disconnect), (reason, true));
        }
    }

    #[test]
    fn an_unexpected_exit_has_the_reason_of_its_status() {
        for (raw, reason) in [
            (9, WorkerExitReason::Killed),
            (11, WorkerExitReason::Crashed),
            (42 << 8, WorkerExitReason::Exited),
        ] {
            let exit = worker_exit(ExitCause::Unexpected, None, raw);
            assert_eq!((exit.reason, exit.exited_after_disconnect), (reason, false));
            assert!(exit.code.is_some() != exit.signal.is_some());
        }
        // Killed while it was draining: both are true.
        let exit = worker_exit(ExitCause::Drained, Some(DrainReason::Disconnect), 9);
        assert_eq!((exit.reason, exit.exited_after_disconnect), (WorkerExitReason::Killed, true));
    }

    #[test]
    fn only_kills_from_outside_the_primary_can_be_oom_kills() {
        let reason = |cause, raw| WorkerExit::new(&exit_report(cause, None, raw), || true).reason;
        assert_eq!(reason(ExitCause::Unexpected, 9), WorkerExitReason::OutOfMemory);
        assert_eq!(reason(ExitCause::Stalled, 9), WorkerExitReason::Stalled);
        assert_eq!(reason(ExitCause::Unexpected, 11), WorkerExitReason::Crashed);
    }
}
