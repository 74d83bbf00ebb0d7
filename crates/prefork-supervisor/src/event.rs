//! Events that the primary reports to the supervisor.

use std::process::ExitStatus;
use std::time::Duration;

use crate::action::RecycleReason;
use crate::command::{ClusterCommand, Requester};
use crate::config::SupervisorConfig;
use crate::worker_identity::{Slot, WorkerId};

/// An event that the supervisor has to handle. The primary reports events in the order in which it learns of them.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "field names tell: the worker, and the result or the error")]
pub enum Event {
    /// The listeners are bound and the application is loaded. Reported once, first.
    Started,
    /// A fork requested by `Action::Fork` succeeded.
    Forked { worker: WorkerId, pid: u32 },
    /// A fork requested by `Action::Fork` failed.
    ForkFailed { worker: WorkerId, reason: String },
    /// The worker's process runs and its channel works.
    Online { worker: WorkerId },
    /// The worker has started a foreign program with this pid, which stands for the worker in logs from now on.
    ProgramStarted { worker: WorkerId, pid: u32 },
    /// The worker accepts connections.
    Ready { worker: WorkerId },
    /// The worker began a job that may kill it, so its exit does not count towards a crash loop.
    RiskyJobStarted { worker: WorkerId },
    /// Jobs wait for workers of this kind, and this many workers would have something to do. Starts workers of a kind
    /// with a `demand_range`; changes nothing for others.
    WorkersNeeded { kind: &'static str, workers: u32 },
    /// The worker has had nothing to do for the idle timeout of its kind, and gets no job until this event is answered:
    /// by `Action::Drain`, or by `Action::KeepIdleWorker`.
    WorkerIdle { worker: WorkerId },
    /// The worker has reached a limit between two jobs, so that it gets no more. It drains and is replaced at once.
    WorkerUsedUp { worker: WorkerId, reason: RecycleReason },
    /// The worker could not start its foreign program, which may succeed next time; its exit follows.
    BootAttemptFailed { worker: WorkerId, reason: String },
    /// The worker cannot boot; its exit follows.
    BootFailed { worker: WorkerId, reason: String },
    /// The worker drains by its own decision and wants a replacement.
    Retiring { worker: WorkerId },
    /// The application has sent SIGTERM to the worker, which should drain by its own decision.
    TerminationSent { worker: WorkerId },
    /// The worker drains by its own decision and wants no replacement.
    Disconnecting { worker: WorkerId },
    /// The worker closed its channel; its exit should follow.
    ChannelClosed { worker: WorkerId },
    /// The worker sent something that its channel's protocol does not allow.
    ProtocolError { worker: WorkerId, reason: String },
    /// A signal stopped the worker's process; it makes no progress until `Continued`.
    Stopped { worker: WorkerId },
    /// The worker's stopped process continues.
    Continued { worker: WorkerId },
    /// The worker was reaped, so its pid is no longer valid. `requests_served` is from its scoreboard row.
    Exited { worker: WorkerId, status: ExitStatus, requests_served: u64 },
    /// A signal, an operator or the application sent a command.
    CommandReceived { command: ClusterCommand, by: Requester },
    /// The time named by `Supervisor::next_deadline` has come.
    ///
    /// Report it only after all other pending events: a primary that was stopped for a while must not kill a worker
    /// whose READY it has not read yet.
    DeadlineReached,
    /// The configuration was read again and its sockets are open, or why not. Answers `Action::ReadConfig`.
    ConfigRead { result: Result<SupervisorConfig, String> },
    /// The sockets of the slots `0..slots` are open, or why not. Answers `Action::OpenSockets`.
    SocketsOpened { slots: u32, result: Result<(), String> },
    /// The worker does not accept from the slot that it was to adopt: its channel is full, or it reports so.
    AdoptSlotFailed { worker: WorkerId, slot: Slot },
    /// The release could not be sent to the worker.
    ReleaseSlotFailed { worker: WorkerId, slot: Slot },
    /// The application decided whether the exited worker is replaced. Answers `Action::ConfirmRestart`.
    RestartDecided { worker: WorkerId, decision: RestartDecision },
    /// The application's hooks have run, and the commands that were pending have been reported. Answers
    /// `Action::ConfirmEmpty`.
    EmptyConfirmed,
    /// `Supervisor::is_idle` is true, and the application has no timers and descriptors in the primary.
    ApplicationIdle,
    /// The new binary can take over. Answers `Action::StartUpgradeCheck`.
    UpgradeCheckPassed,
    /// The new binary failed its check, or could not be executed. Nothing has changed.
    UpgradeFailed { reason: String },
    /// The current health of all workers. Answers `Action::SampleHealth`.
    HealthSampled { samples: Vec<HealthSample> },
}

/// Whether, and when, a worker that exited unexpectedly is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartDecision {
    /// Replaces the worker at once; in a crash loop after a back-off.
    Restart,
    /// Replaces the worker after this time, or later if the back-off of a crash loop lasts longer. Until then the slot
    /// stays empty. A reload, an upgrade or a scale command of its kind fills it earlier.
    After(Duration),
    /// Leaves the slot empty until the next reload, upgrade or scale command.
    LeaveEmpty,
}

/// The health of one worker, seen from outside.
///
/// The worker itself wrote most of it, so compare these figures with limits, but never index or calculate with them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthSample {
    /// The worker.
    pub worker: WorkerId,
    /// A counter that changes while the worker's event loop makes progress.
    pub heartbeat: u64,
    /// Whether the event loop sleeps because the worker is idle, and the next change of the counter is not due yet.
    pub is_sleeping: bool,
    /// Requests since the worker started.
    pub requests: u64,
    /// Resident memory in bytes; `None` if it was not requested or cannot be read.
    pub memory: Option<u64>,
    /// Whether the worker has reached its connection limit.
    pub is_full: bool,
    /// The request that its event loop is working on, if any.
    pub current_request: Option<String>,
}
