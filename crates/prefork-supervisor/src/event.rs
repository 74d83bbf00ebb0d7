//! Everything that can happen to the primary, and who reports it.

use std::process::ExitStatus;
use std::time::Duration;

use crate::identity::{Generation, Slot, WorkerId, WorkerTag};
use crate::policy::Policy;

/// Something happened. Reported by `primary`, in the order it was learned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The listeners are bound and the application is loaded: begin. Once, first.
    Started,
    /// A fork that we asked for worked.
    Forked { worker: WorkerId, pid: u32 },
    /// A fork that we asked for failed.
    ForkFailed { worker: WorkerId, why: String },
    /// The worker's process runs and its channel works.
    Online { worker: WorkerId },
    /// The worker accepts connections.
    Ready { worker: WorkerId },
    /// The worker was given work that may well kill it: its end is no sign that such workers cannot come up.
    Proven { worker: WorkerId },
    /// The worker says why it cannot start; its exit follows.
    BootFailed { worker: WorkerId, why: String },
    /// The worker drains on its own account and wants a replacement.
    Retiring { worker: WorkerId },
    /// The worker drains on its own account and wants no replacement.
    Disconnecting { worker: WorkerId },
    /// The worker closed its channel; its exit should follow.
    ChannelClosed { worker: WorkerId },
    /// The worker said something that is not one of its words.
    Garbled { worker: WorkerId, why: String },
    /// All of the worker's process was stopped by a signal: it does nothing until `Continued`.
    Stopped { worker: WorkerId },
    /// The worker's process goes on.
    Continued { worker: WorkerId },
    /// The worker was reaped. From now on its pid means nothing. `served` is what its scoreboard row said.
    Exited { worker: WorkerId, status: ExitStatus, served: u64 },
    /// Somebody asked for something.
    Asked { intent: Intent, by: Asker },
    /// The time that `Supervisor::deadline` named has come. Reported only after everything that was waiting by
    /// then: a primary that was stopped for a while must not kill for words that it has not read.
    DeadlineReached,
    /// The configuration was read again and its sockets are open; or why not. Answers `ReadConfig`.
    ConfigRead { outcome: Result<Policy, String> },
    /// The sockets of the first so many slots are open, or why not. Answers `OpenSockets`.
    SocketsOpened { slots: u32, outcome: Result<(), String> },
    /// The worker does not serve the slot that it was to adopt: its channel is full, or it says so.
    AdoptFailed { worker: WorkerId, slot: Slot },
    /// The worker could not be told to stop serving the slot.
    ReleaseFailed { worker: WorkerId, slot: Slot },
    /// Whether the worker that ended is replaced. Answers `AskRestart`.
    RestartDecided { worker: WorkerId, restart: bool },
    /// The new binary has shown that it can take over. Answers `Prove`.
    Proved,
    /// The new binary cannot take over, or did not when it should; everything is as before.
    NotProved { why: String },
    /// What the workers' pages and processes looked like. Answers `Look`.
    Observed { vitals: Vec<Vitals> },
}

/// One worker seen from outside. The worker itself wrote most of it, so these are figures to compare with
/// limits, never to index or compute with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vitals {
    pub worker: WorkerId,
    /// Changes as long as its event loop turns.
    pub beat: u64,
    /// Requests since it started.
    pub requests: u64,
    /// Resident memory in bytes; `None` if it was not asked for or cannot be read.
    pub memory: Option<u64>,
    /// Whether it has all the connections it may have.
    pub full: bool,
    /// What its event loop is working on, if anything.
    pub serving: Option<String>,
}

/// What can be asked of the cluster, by a signal, an operator or the application. Decided once, whoever asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Intent {
    /// Finish what is open, then end. Asked a second time: end now.
    Stop,
    /// End now.
    StopNow,
    /// Read the configuration again and replace every worker, one by one.
    Reload,
    /// So many workers of the kind `web` from now on.
    Scale(Scale),
    /// So many of another kind.
    ScaleKind(String, Scale),
    /// This worker finishes what it has open, leaves, and is not replaced.
    Disconnect(WorkerId),
    /// Become the binary that now stands at our path. With `wait`, the answer comes when the workers of the new image
    /// serve; without, when the new binary is proved.
    Upgrade { wait: bool },
}

/// How many workers are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scale {
    To(u32),
    Up(u32),
    Down(u32),
    /// One more, under a number that was drawn before (`Supervisor::draw_id`), with variables of its own.
    With(WorkerId, Environment),
}

/// Variables that the workers of one slot have besides those of the primary.
pub type Environment = Vec<(String, String)>;

/// What the image before this one left to its successor.
#[derive(Debug, Clone)]
pub struct Adopted {
    /// The last one that was tried, even if in vain: workers of it may live, and numbers only grow.
    pub generation: Generation,
    pub next_id: u64,
    pub restarts: u64,
    pub workers_wanted: u32,
    /// Slots 0 to this have sockets; 0 where all workers share one.
    pub sockets: u32,
    /// Of slots that have variables of their own.
    pub environments: Vec<(Slot, Environment)>,
    pub members: Vec<AdoptedMember>,
    /// Who asked for the upgrade and waits until the workers of the new image serve.
    pub askers: Vec<Asker>,
}

/// A worker that was forked by the image before this one.
#[derive(Debug, Clone)]
pub struct AdoptedMember {
    pub tag: WorkerTag,
    pub age: Duration,
    /// Whether it serves; otherwise it is on its way out.
    pub serving: bool,
    /// Whether it was born with the sockets of its slot, and not with a shared one.
    pub own_socket: bool,
    /// The slots whose sockets it accepts from besides.
    pub adopts: Vec<Slot>,
}

/// Who asked, and whether they wait for an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asker {
    /// As it stands in the log: `SIGHUP`, `control uid=0 pid=4711`.
    pub who: String,
    /// Answered exactly once by `Action::Answer`, when the outcome is known.
    pub ticket: Option<u64>,
}

impl Asker {
    /// Somebody who does not wait.
    pub fn nameless(who: impl Into<String>) -> Asker {
        Asker { who: who.into(), ticket: None }
    }
}
