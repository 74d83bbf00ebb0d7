//! Everything the supervisor may want done. Meanings, not system calls: `primary` performs them.

use std::process::ExitStatus;
use std::time::Duration;

use crate::identity::{Generation, Slot, WorkerId, WorkerTag};

/// Something to do. Its failure, if it can fail, comes back as an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Fork a worker. Answered by `Forked` or `ForkFailed`.
    Fork(WorkerTag),
    /// Close the primary's listening sockets: the workers empty the queue, then nobody listens any more.
    CloseListeners,
    /// Open what is missing of the sockets of the first so many slots. Answered by `SocketsOpened`.
    OpenSockets { slots: u32 },
    /// Tell a worker to accept from the sockets of another slot as well. Answered by `AdoptFailed`, or not at all.
    Adopt { worker: WorkerId, slot: Slot },
    /// Tell it to stop that. Answered by `ReleaseFailed`, or not at all.
    Release { worker: WorkerId, slot: Slot },
    /// This worker takes the connections of its slot now, or nobody does: for whatever chooses among the slots.
    Steer { slot: Slot, worker: Option<WorkerId> },
    /// Tell a worker to stop accepting, finish what is open and exit.
    Drain(WorkerId),
    /// SIGABRT: a chance to leave a core dump that shows where it is stuck.
    Abort(WorkerId),
    /// SIGKILL.
    Kill(WorkerId),
    /// Read the configuration again, for workers of this generation. Answered by `ConfigRead`.
    ReadConfig(Generation),
    /// Workers of these generations are what is wanted; configurations and sockets of others may go.
    KeepGenerations(Vec<Generation>),
    /// Start the binary at our path as a child that shows whether it can take over. Answered by `Proved` or
    /// `NotProved`.
    Prove,
    /// That child is not wanted any more. Its end is not reported.
    StopProof,
    /// Become the new binary. Answered by `NotProved` if that fails; else by nobody, as we are no more.
    TakeOver,
    /// Read all workers' vital signs, with their memory if asked. Answered by `Observed`.
    Look { memory: bool },
    /// Ask the application whether this worker is to be replaced. Answered by `RestartDecided`.
    AskRestart(Exit),
    /// Say what happened: to the log.
    Report(Notice),
    /// Tell whoever asked with this ticket how it went: what was done, or why not.
    Answer { ticket: u64, outcome: Result<String, String> },
    /// End the primary. The last action ever.
    Exit(Outcome),
}

/// How the primary ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// As asked.
    Stopped,
    /// The workers never came up.
    WorkersCannotBoot,
}

/// What is worth telling people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A worker's process exists.
    Forked { worker: WorkerTag },
    /// It runs. Once, before it is ready.
    Online { worker: WorkerTag },
    /// Its channel is closed. Once for each that was forked, before its exit.
    Disconnected { worker: WorkerTag },
    /// It was ready once, is gone, and another is ready in its place. The last that is said of it.
    Replaced { worker: WorkerId, by: WorkerTag },
    /// It finishes what it has open and leaves; its slot stays empty.
    Disconnecting { worker: WorkerTag },
    /// The application does not want the worker replaced; its slot stays empty.
    NotRestarted { worker: WorkerTag },
    /// A worker became ready, this long after its fork.
    Ready { worker: WorkerTag, after: Duration },
    /// All workers serve, for the first time or again.
    AllReady { workers: u32 },
    /// A fork failed; it will be tried again.
    ForkFailed { worker: WorkerTag, why: String },
    /// A worker said why it cannot start.
    BootFailed { worker: WorkerTag, why: String },
    /// A worker was not ready in time and is killed.
    BootTimedOut { worker: WorkerTag, limit: Duration },
    /// A worker wants to be replaced.
    Retiring { worker: WorkerTag },
    /// A worker's channel brought what no worker says; it is killed.
    Condemned { worker: WorkerTag, why: String },
    /// A draining worker did not finish in time and is killed.
    GraceOver { worker: WorkerTag, limit: Duration },
    /// A worker ended.
    Exited(Exit),
    /// Workers die young: the next one is forked after this delay.
    CoolingDown { failures: u32, delay: Duration },
    /// No worker ever came up and none will be tried any more.
    GivingUp { failures: u32 },
    /// A reload was asked for.
    Reloading { by: String },
    /// The reload, or the upgrade if it was one, is done: all workers are of this generation.
    Reloaded { generation: Generation, workers: usize, is_upgrade: bool },
    /// The reload failed; the workers of before serve on.
    ReloadFailed { why: String },
    /// The workers that had been replaced are being replaced by those of before.
    RollingBack { to: Generation },
    /// The number of workers of a kind was changed.
    Scaled { by: String, kind: &'static str, from: u32, to: u32 },
    /// An upgrade was asked for during a reload; it begins when that has ended.
    UpgradeWaits { by: String },
    /// An upgrade was asked for; the new binary is being tried.
    Proving { by: String },
    /// The new binary is fit; this process becomes it.
    TakingOver,
    /// The upgrade failed; everything is as before.
    UpgradeFailed { why: String },
    /// A request that is not fulfilled, by somebody who does not wait for an answer.
    Refused { by: String, why: String },
    /// A worker has reached one of its limits and is replaced.
    Recycling { worker: WorkerTag, limit: Limit },
    /// A worker is over its hard memory limit and is killed.
    OverMemory { worker: WorkerTag, memory: u64, limit: u64 },
    /// A worker's event loop has not turned for a while.
    Stalled { worker: WorkerTag, since: Duration, serving: Option<String> },
    /// It turns again.
    Recovered { worker: WorkerTag, after: Duration },
    /// A worker's event loop has not turned for too long; it is aborted, then killed.
    Frozen { worker: WorkerTag, since: Duration, serving: Option<String> },
    /// A stop was asked for; it begins after this delay.
    Departing { by: String, delay: Duration },
    /// A stop was asked for; so many workers have to finish.
    Stopping { by: String, workers: usize },
    /// A stop at once was asked for.
    StoppingNow { by: String, workers: usize },
    /// All workers are gone.
    Stopped,
}

/// The limit that a recycled worker has reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// `max-requests`: it has answered so many.
    Requests(u64),
    /// `max-rss`: it uses so many bytes.
    Memory(u64),
    /// `max-lifetime`: it is that old.
    Lifetime(Duration),
}

/// The end of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    pub worker: WorkerTag,
    pub status: ExitStatus,
    pub cause: Cause,
    /// Why it was to leave, if it was.
    pub leave: Option<Leave>,
    /// What it said before, or was found to be wrong with it.
    pub complaint: Option<String>,
    /// From fork to exit.
    pub uptime: Duration,
    /// Requests, as its scoreboard row said.
    pub served: u64,
}

/// Why a worker was to finish what it had open and leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// The cluster stops.
    Stop,
    /// There are fewer slots now.
    Scale,
    /// A reload or an upgrade has replaced it.
    Reload,
    /// It was replaced since it had reached this limit.
    Recycle(Limit),
    /// It asked to be replaced.
    Retire,
    /// It was told, or wanted, to leave for good.
    Disconnect,
}

/// Why a worker ended, as far as we know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// It was told to leave, or asked to.
    Asked,
    /// We killed it: it did not become ready in time.
    BootTimeout,
    /// We killed it: it was told to go at once.
    Stopped,
    /// We killed it: it did not finish in time.
    GraceOver,
    /// We killed it for what it said.
    Condemned,
    /// We aborted or killed it: its event loop was frozen.
    Frozen,
    /// We killed it: it used too much memory.
    Memory,
    /// We killed it: the reload it belonged to was given up, or another took its place.
    Superseded,
    /// It ended before it was ready.
    BeforeReady,
    /// It ended by itself, or was killed by somebody else.
    Unexpected,
}
