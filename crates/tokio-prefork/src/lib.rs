//! A prefork server for tokio and hyper: worker processes that share a listening socket, supervised by a primary.
//!
//! The *primary* process binds the listening sockets, forks *workers* that each run a single-threaded tokio runtime, and
//! respawns those that die. It is what Node's cluster module does, in Rust. Linux only.
//!
//! ```no_run
//! use http_body_util::Full;
//! use hyper::body::{Bytes, Incoming};
//! use hyper::{Request, Response, service::service_fn};
//! use tokio_prefork::{Cluster, Config, Worker};
//!
//! fn main() -> tokio_prefork::Result<()> {
//!     let config = Config::builder().listen("127.0.0.1:3000")?.build()?;
//!     Cluster::new(config).serve(|worker: Worker| async move {
//!         let pid = worker.pid();
//!         Ok(service_fn(move |_: Request<Incoming>| async move {
//!             let body = Full::new(Bytes::from(format!("Handled by PID {pid}\n")));
//!             Ok::<_, std::convert::Infallible>(Response::new(body))
//!         }))
//!     })
//! }
//! ```
//!
//! # Main items
//!
//! - [`Cluster`] runs an application under a [`Config`]; [`Cluster::on_event`] and its siblings add hooks in the primary.
//! - [`Worker`] is the application's handle in a worker: messages, CPU pool, isolated jobs, status.
//! - [`shared`] has counters, gauges, histograms, flags, caches, rate limits and leadership across all workers.
//! - [`pool`] runs CPU-bound jobs on threads; [`IsolatedPoolConfig`] configures processes for jobs that may crash.
//! - [`control`] asks a running primary for its status, a reload, an upgrade or a stop.
//! - [`Error`] has a kind to match on and an exit status.
//!
//! # Features
//!
//! - `cli` (off by default): the module `cli`, with the flags, environment variables and TOML file of `prefork serve` for
//!   your own program.
//! - `http2` (off by default): HTTP/2 without TLS, by prior knowledge.
//! - `axum` (off by default): axum's extractor `ConnectInfo<SocketAddr>`, or `ConnectInfo<PeerAddr>` for Unix sockets too,
//!   works without another line, and [`ConnectionInfo`] is an extractor.
//! - `testing` (off by default): module `testing`, for the tests of your program.
//!
//! # Invariants
//!
//! - The primary has one thread and no async runtime, because a multi-threaded process cannot fork safely.
//! - The primary holds every listening socket, so that the death of a worker loses no queued connection.
//! - The supervisor makes no system call and gets the time as an argument.
//! - A pid is never signalled after its exit was reported.
//! - A worker never returns into the primary's code and never outlives the primary.
//! - Values read from shared memory or from a channel are checked before they are used.
//! - Every wait for another process has a deadline, and every queue has a limit.

mod app_name;
mod application_sockets;
mod channel;
#[cfg(feature = "cli")]
pub mod cli;
mod client;
mod cluster;
mod config;
pub mod control;
mod dispatch;
mod error;
pub mod fork_safety;
mod inherited_fds;
mod isolated;
mod listener;
pub mod log_file;
pub mod log_output;
mod main_result;
mod messages;
mod pid_file;
pub mod pool;
mod primary;
mod privilege;
mod process_settings;
mod runtime;
mod scoreboard;
pub mod shared;
mod skip_backoff;
mod socket_file;
pub mod status;
mod systemd;
#[cfg(feature = "testing")]
pub mod testing;
pub mod text;
mod upgrade;
mod worker;
mod worker_init;
mod worker_stdio;
mod yield_now;

pub use application_sockets::inherit_socket;
pub use client::{ConnectionInfo, PeerAddr, UnixPeer};
pub use cluster::{Cluster, Preloaded, WorkerKind};
pub use config::{
    ConcurrencyModel, Config, ConfigBuilder, ControlSocket, Dispatch, FdStore, HalfClosePolicy,
    ParseValueError, WhenFull, WorkerCount,
};
pub use dispatch::KernelProgram;
pub use error::{BoxError, Error, ErrorKind, Result, exit};
pub use inherited_fds::close_inherited_fds;
pub use isolated::{IsolatedJobError, IsolatedPoolConfig};
pub use listener::{HostAddr, ListenAddr, UnixAddr};
pub use main_result::Main;
pub use messages::{
    Compact, Inbox, IntoPayload, Message, MessageError, MessageLimits, MessageSender,
    MessageTarget, PassedConnection, Payload, PayloadEncoding, ReplyTo, SendConnectionError,
};
pub use prefork_supervisor::{Generation, Slot, WEB_KIND, WorkerId, WorkerTag};
pub use prefork_supervisor::{RecycleReason, RefusedCommand, RestartDecision};
pub use primary::{
    ClusterEvent, FdWatchId, PrimaryHandle, TimerId, WorkerExit, WorkerExitReason, WorkerInfo,
};
pub use shared::{
    KeyedRateLimiter, Leadership, RateLimiter, SharedCache, SharedCounter, SharedFlag, SharedGauge,
    SharedHistogram,
};
pub use upgrade::report_failed_start;
pub use worker::http::into_service::{IntoHttpService, ViaHyper, ViaTower};
pub use worker::{
    AcceptedStream, EndOnDrain, HoldGuard, IsolatedPool, RequestDeadline, Worker, is_worker,
};
pub use worker_stdio::{OutputStream, WorkerStdio};

/// Compiles the programs in README.md and in the book.
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
        ForkSafety: "docs/src/fork-safety.md",
        Http: "docs/src/http.md",
        IsolatedJobs: "docs/src/isolated-jobs.md",
        Library: "docs/src/library.md",
        Messages: "docs/src/messages.md",
        SharedState: "docs/src/shared-state.md",
        WorkerKinds: "docs/src/worker-kinds.md",
    }
    #[cfg(feature = "testing")]
    pages! {
        Testing: "docs/src/testing.md",
    }

    #[cfg(feature = "cli")]
    pages! { OwnFlags: "docs/src/own-flags.md" }
}
