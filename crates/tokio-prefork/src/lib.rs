//! A prefork server: a *primary* process binds one SO_REUSEPORT listening socket, forks *workers* that each
//! run a single-threaded tokio runtime with hyper, and supervises and respawns them. Node's cluster module,
//! as real processes, in Rust. Linux only.
//!
//! Start with [`Cluster`]. The map of the house is in `ARCHITECTURE.md`; its invariants, absences first:
//!
//! - The primary has one thread and no async runtime, ever; a process that forks has one thread.
//! - Only `sys` touches the kernel by hand: no other room names libc, nor the keyword that lifts Rust's guarantees.
//! - The supervisor makes no system call and never learns the time except as an argument.
//! - A pid is forgotten the moment its exit is reported, and never signalled again.
//! - A forked worker never returns into the primary's code, and never outlives it.
//! - Nothing read from shared memory or a channel is believed: it is a figure to check or to show.
//! - Nothing waits for a peer without a deadline, and every queue has a bound.

mod channel;
mod cluster;
mod config;
pub mod control;
mod dispatch;
mod error;
mod inherited_fds;
mod isolated;
mod listener;
pub mod log_file;
pub mod log_output;
mod messages;
mod pid_file;
pub mod pool;
mod primary;
mod privilege;
mod runtime;
mod scoreboard;
pub mod shared;
mod skip_backoff;
mod socket_file;
pub mod status;
mod systemd;
pub mod text;
mod upgrade;
mod worker;
mod worker_init;
mod yield_now;

pub use cluster::{Cluster, PreloadedCluster, WorkerKind};
pub use config::{
    ConcurrencyModel, Config, ConfigBuilder, ControlSocket, Dispatch, FdStore, HalfClosePolicy,
    WorkerCount,
};
pub use dispatch::KernelProgram;
pub use error::{Error, ErrorKind, Result, exit};
pub use inherited_fds::close_inherited_fds;
pub use isolated::{IsolatedJobError, IsolatedPoolConfig};
pub use listener::{HostAddr, ListenAddr, UnixAddr};
pub use messages::{
    Inbox, IntoPayload, Message, MessageError, MessageLimits, MessageSender, MessageTarget,
    PassedConnection, ReplyTo, SendConnectionError,
};
pub use prefork_supervisor::RecycleReason;
pub use prefork_supervisor::{Generation, Slot, WEB_KIND, WorkerId, WorkerTag};
pub use primary::{
    ClusterEvent, PrimaryHandle, RestartDecision, WorkerExit, WorkerExitReason, WorkerInfo,
};
pub use shared::{
    KeyedRateLimiter, Leadership, RateLimiter, SharedCache, SharedCounter, SharedFlag, SharedGauge,
    SharedHistogram,
};
pub use upgrade::report_failed_start;
pub use worker::{AcceptedStream, BoxError, IsolatedPool, RequestDeadline, ThreadedWorker, Worker};

/// The programs of README.md and of the book, for the compiler.
#[cfg(doctest)]
mod documentation {
    macro_rules! pages {
        ($($name:ident: $path:literal),* $(,)?) => {$(
            #[doc = include_str!(concat!("../../../", $path))]
            struct $name;
        )*};
    }

    pages! {
        Readme: "README.md",
        Axum: "docs/src/axum.md",
        Control: "docs/src/control.md",
        CpuPool: "docs/src/cpu-pool.md",
        Http: "docs/src/http.md",
        IsolatedJobs: "docs/src/isolated-jobs.md",
        Library: "docs/src/library.md",
        Messages: "docs/src/messages.md",
        SharedState: "docs/src/shared-state.md",
        WorkerKinds: "docs/src/worker-kinds.md",
    }
}
