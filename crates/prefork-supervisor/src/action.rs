//! Actions that the supervisor requests from the primary, and the events that it logs.

use std::process::ExitStatus;
use std::time::Duration;

use crate::command::RefusedCommand;
use crate::worker_identity::{Generation, Slot, WorkerId, WorkerTag};

/// An action that the primary has to perform. A failure is not an error here: it comes back as an
/// [`Event`](crate::Event).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Fork a worker. Answered by `Event::Forked` or `Event::ForkFailed`.
    Fork(WorkerTag),
    /// Close the primary's listening sockets. Workers empty the accept queue; then nothing listens any more.
    CloseListeners,
    /// Drop new connections, as the last `web` workers drain and none will follow. These empty the accept queues.
    HoldConnections,
    /// Run the application's hooks. Answered by `Event::EmptyConfirmed`, after the commands that they have queued.
    ConfirmEmpty,
    /// Refuse connections, without giving up the addresses: no `web` worker is left or will be forked.
    RefuseConnections,
    /// Accept connections again, after `HoldConnections` or `RefuseConnections`.
    ResumeListening,
    /// Open the missing sockets of the slots `0..slots`. Answered by `Event::SocketsOpened`.
    OpenSockets {
        /// How many slots need sockets.
        slots: u32,
    },
    /// Tell a worker to accept from the sockets of another slot as well. Answered by `Event::AdoptSlotFailed`, or
    /// not at all.
    AdoptSlot {
        /// The adopter.
        worker: WorkerId,
        /// The slot whose own worker does not accept.
        slot: Slot,
    },
    /// Tell a worker to stop accepting from a slot that it adopted. Answered by `Event::ReleaseSlotFailed`, or not
    /// at all.
    ReleaseSlot {
        /// The former adopter.
        worker: WorkerId,
        /// The slot to release.
        slot: Slot,
    },
    /// Dispatch the connections of a slot to this worker from now on; `None` excludes the slot. Comes before each `Drain`
    /// of the same event.
    SetDispatchTarget {
        /// The slot that connections are sent to.
        slot: Slot,
        /// The slot's own worker, if it accepts.
        worker: Option<WorkerId>,
    },
    /// Tell a worker to stop accepting, finish its open connections and exit.
    Drain(WorkerId),
    /// Give jobs to this idle worker again: it is not ended. Answers `Event::WorkerIdle`.
    KeepIdleWorker(WorkerId),
    /// Send SIGABRT, so that the core dump shows where the worker hangs.
    Abort(WorkerId),
    /// Send SIGKILL.
    Kill(WorkerId),
    /// Read the configuration again, for workers of this generation. Answered by `Event::ConfigRead`.
    ReadConfig(Generation),
    /// Drop the configurations and sockets of all generations but these.
    KeepGenerations(Vec<Generation>),
    /// Start the new binary as a child that checks whether it can take over. Answered by
    /// `Event::UpgradeCheckPassed` or `Event::UpgradeFailed`.
    StartUpgradeCheck,
    /// Kill the child of the upgrade check. Its exit is not reported.
    StopUpgradeCheck,
    /// Replace this process by the new binary with `execve`. Answered by `Event::UpgradeFailed` if that fails.
    ExecNewBinary,
    /// Sample heartbeat and load of all workers. Answered by `Event::HealthSampled`.
    SampleHealth {
        /// Whether to read the resident memory too, which costs one file per worker.
        with_memory: bool,
    },
    /// Ask the application whether to replace this worker. Answered by `Event::RestartDecided`.
    ConfirmRestart(ExitReport),
    /// Write an event to the log and announce it.
    Log(LogEvent),
    /// Send the result of a command to its requester: what was done, or why it was refused.
    Reply {
        /// The `reply_id` of the [`Requester`](crate::Requester).
        reply_id: u64,
        /// The result as text for the operator.
        result: Result<String, String>,
    },
    /// Exit the primary. Always the last action.
    Exit(ShutdownReason),
}

/// Why the primary exits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShutdownReason {
    /// A stop was requested and has completed.
    StopRequested,
    /// No worker ever became ready, in all of `boot_attempts`.
    WorkersCannotBoot,
}

/// An event that is logged and reported to the application's event hook.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "field names tell: the worker, the requester (`by`), a duration, the reason"
)]
pub enum LogEvent {
    /// A worker was forked.
    Forked { worker: WorkerTag },
    /// A forked worker runs and its channel works. Reported once, before `Ready`.
    Online { worker: WorkerTag },
    /// A worker's channel is closed. Reported once for each forked worker, before `Exited`.
    Disconnected { worker: WorkerTag },
    /// A worker that had been ready is gone, and another is ready in its slot. The last event of a worker.
    Replaced { worker: WorkerId, by: WorkerTag },
    /// A worker drains and its slot stays empty.
    Disconnecting { worker: WorkerTag },
    /// The application vetoed the replacement of a worker; the slot stays empty.
    NotRestarted { worker: WorkerTag },
    /// The application put the replacement of a worker off; the slot stays empty for `delay`.
    RestartDelayed { worker: WorkerTag, delay: Duration },
    /// A worker became ready, `after` its fork.
    Ready { worker: WorkerTag, after: Duration },
    /// All workers serve for the first time.
    AllReady { workers: u32 },
    /// A fork failed and will be retried.
    ForkFailed { worker: WorkerTag, reason: String },
    /// A worker reported why it cannot boot.
    BootFailed { worker: WorkerTag, reason: String },
    /// A worker was not ready within `limit` and is killed.
    BootTimedOut { worker: WorkerTag, limit: Duration },
    /// A worker drains by its own decision and is replaced.
    Retiring { worker: WorkerTag },
    /// A worker broke the channel's protocol and is killed.
    Misbehaved { worker: WorkerTag, reason: String },
    /// A draining worker did not finish within `limit` and is killed.
    DrainTimedOut { worker: WorkerTag, limit: Duration },
    /// A worker exited.
    Exited(ExitReport),
    /// Workers crash at boot or soon after; the next fork waits for `delay`.
    BackingOff { failures: u32, delay: Duration },
    /// No worker ever became ready, and the primary gives up: after `failures` rounds of crashes, or at the first error
    /// that a worker reported. `reason` is the last failure.
    GivingUp { failures: u32, reason: String },
    /// A reload begins.
    Reloading { by: String },
    /// A reload, or the rolling replacement after an upgrade, is complete.
    Reloaded { generation: Generation, workers: usize, is_upgrade: bool },
    /// A reload failed; the workers of the old generation keep serving.
    ReloadFailed { reason: String },
    /// Workers that the failed reload replaced are being rolled back to this generation.
    RollingBack { to: Generation },
    /// The number of workers of a kind changed.
    Scaled { by: String, kind: &'static str, from: u32, to: u32 },
    /// An upgrade was requested during a reload and begins after it.
    UpgradeQueued { by: String },
    /// An upgrade was requested; the new binary is being checked.
    UpgradeChecking { by: String },
    /// The new binary passed its check; this process executes it.
    UpgradeExecuting,
    /// An upgrade failed and changed nothing.
    UpgradeFailed { reason: String },
    /// A command was refused, and its requester does not wait for a reply.
    CommandRefused { by: String, command: RefusedCommand, reason: String },
    /// A worker has reached a recycling limit and is replaced.
    Recycling { worker: WorkerTag, limit: RecycleReason },
    /// A worker is over its hard memory limit (bytes) and is killed.
    MemoryLimitExceeded { worker: WorkerTag, memory: u64, limit: u64 },
    /// A worker's event loop has made no progress for the warning time.
    Stalled { worker: WorkerTag, stalled_for: Duration, current_request: Option<String> },
    /// A stalled worker's event loop makes progress again.
    Recovered { worker: WorkerTag, stalled_for: Duration },
    /// A worker's event loop has stalled for too long; the worker is aborted, then killed.
    StallTimedOut { worker: WorkerTag, stalled_for: Duration, current_request: Option<String> },
    /// The last `web` worker has exited, and its slot stays empty like all others.
    Empty,
    /// A stop was requested and begins after `delay` (drain-delay).
    StopDelayed { by: String, delay: Duration },
    /// A graceful stop begins; this many workers drain.
    Stopping { by: String, workers: usize },
    /// An immediate stop begins; this many workers are killed.
    StoppingNow { by: String, workers: usize },
    /// All workers are gone.
    Stopped,
}

/// The recycling limit that a worker has reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecycleReason {
    /// `max-requests`: the number of requests it has answered.
    Requests(u64),
    /// `max-rss`: its resident memory in bytes.
    Memory(u64),
    /// `max-lifetime`: its age.
    Lifetime(Duration),
    /// The number of jobs that it has run, as the program limits it.
    Jobs(u64),
}

/// How a worker ended, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitReport {
    /// The worker.
    pub worker: WorkerTag,
    /// Exit code or signal, as reaped.
    pub status: ExitStatus,
    /// The cause of the exit.
    pub cause: ExitCause,
    /// Why it was draining, if it was.
    pub drain_reason: Option<DrainReason>,
    /// The worker's last error, or the primary's reason for killing it.
    pub error: Option<String>,
    /// The time from fork to exit.
    pub uptime: Duration,
    /// How many requests it served, from its scoreboard row.
    pub requests_served: u64,
}

/// The reason why a worker drains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainReason {
    /// The cluster stops.
    Stop,
    /// The number of slots was reduced.
    Scale,
    /// A reload or an upgrade replaces the worker.
    Reload,
    /// The worker reached this recycling limit.
    Recycle(RecycleReason),
    /// The worker asked to be replaced.
    Retire,
    /// The worker was disconnected and is not replaced.
    Disconnect,
}

/// The cause of a worker's exit, as far as the supervisor knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitCause {
    /// The worker exited by itself while draining.
    Drained,
    /// Killed: it was not ready in time.
    BootTimeout,
    /// Killed: an immediate stop, or a stop while it was booting.
    KilledByStop,
    /// Killed: it did not finish draining in time.
    GracefulTimeout,
    /// Killed: it broke the channel's protocol.
    Misbehaved,
    /// Aborted or killed: its event loop stalled.
    Stalled,
    /// Killed: it exceeded the hard memory limit.
    MemoryLimit,
    /// Killed: its reload was given up, or another worker took its place.
    Superseded,
    /// The worker exited before it was ready.
    BootFailed,
    /// The worker crashed, exited by itself, or was killed from outside.
    Unexpected,
}
