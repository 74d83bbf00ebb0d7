//! Everything that can happen to the primary, and who reports it.

use std::process::ExitStatus;

use crate::identity::WorkerId;

/// Something happened. Reported by `primary`, in the order it was learned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// The listeners are bound and the application is loaded: begin. Once, first.
    Started,
    /// A fork that we asked for worked.
    Forked { worker: WorkerId, pid: u32 },
    /// A fork that we asked for failed.
    ForkFailed { worker: WorkerId, why: String },
    /// The worker accepts connections.
    Ready { worker: WorkerId },
    /// The worker says why it cannot start; its exit follows.
    BootFailed { worker: WorkerId, why: String },
    /// The worker drains on its own account and wants a replacement.
    Retiring { worker: WorkerId },
    /// The worker closed its channel; its exit should follow.
    ChannelClosed { worker: WorkerId },
    /// The worker said something that is not one of its words.
    Garbled { worker: WorkerId, why: String },
    /// The worker was reaped. From now on its pid means nothing. `served` is what its scoreboard row said.
    Exited { worker: WorkerId, status: ExitStatus, served: u64 },
    /// Somebody asked for something.
    Asked { intent: Intent, by: String },
    /// The time that `Supervisor::deadline` named has come. Reported only after everything that was waiting by
    /// then: a primary that was stopped for a while must not kill for words that it has not read.
    DeadlineReached,
}

/// What can be asked of the cluster, by a signal or an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Intent {
    /// Finish what is open, then end. Asked a second time: end now.
    Stop,
    /// End now.
    StopNow,
}
