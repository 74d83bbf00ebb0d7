//! A prefork server for tokio, hyper, axum and tonic: worker processes that share a listening socket, supervised by a primary.
//!
//! The *primary* process binds the addresses, forks *workers* that each run a single-threaded tokio runtime, replaces those
//! that die, and reloads, scales and upgrades without losing a request. It is what Node's cluster module does, in Rust. Linux only.
//!
//! ```no_run
//! use axum::{Router, extract::State, routing::get};
//! use tokio_prefork::{BoxError, Cluster, Config, Main, Worker};
//!
//! fn main() -> Main {
//!     run().into()
//! }
//!
//! fn run() -> Result<(), BoxError> {
//!     let config = Config::builder().listen("127.0.0.1:3000")?.workers(4).build()?;
//!     Cluster::new(config).serve(|worker: Worker| async move {
//!         // Runs once in each worker, after the fork: connect to the database here.
//!         let motd = std::fs::read_to_string("/etc/motd")?;
//!         Ok(Router::new().route("/", get(hello)).with_state((worker, motd)))
//!     })?;
//!     Ok(())
//! }
//!
//! async fn hello(State((worker, motd)): State<(Worker, String)>) -> String {
//!     format!("{motd}Handled by worker {} with PID {}\n", worker.id(), worker.pid())
//! }
//! ```
//!
//! # Three doors
//!
//! | method | the function you give it returns | for |
//! |---|---|---|
//! | [`Cluster::serve`] | an axum `Router`, a tower service or a service of hyper ([`IntoHttpService`]) | HTTP; nothing needs to be `Send` |
//! | [`Cluster::serve_threads`] | the same, `Send + Sync` | HTTP in one process with several threads |
//! | [`Cluster::serve_connections`] | a function for each [`AcceptedStream`] | any other protocol |
//!
//! Each takes an `async` function that runs once in each worker and may fail with any error: `?` takes those of std, `anyhow` and
//! this crate. At the start such an error ends the cluster, and `serve` returns it; [`Main`] prints it and maps it to an exit
//! status. [`Cluster::kind`] adds workers that serve no connections, [`Cluster::isolated_pool`] processes for jobs that may crash.
//!
//! # Where to look
//!
//! - [`Cluster`]: hooks in the primary ([`Cluster::on_event`]), preloaded data, migrations, kinds of workers.
//! - [`Config`] and [`config`]: addresses, limits and timeouts.
//! - [`Worker`]: the handle in a worker, `Send + Sync + Clone`: messages, CPU pool, draining, status.
//! - [`client`]: peer and local address of a connection.
//! - [`messages`]: between workers and with the primary. [`events`]: what happens to workers, and the primary's handle.
//! - [`shared`]: counters, gauges, histograms, flags, caches, rate limits and leadership across all workers.
//! - [`pool`]: CPU-bound jobs on threads. [`isolated`]: jobs in processes of their own.
//! - [`control`]: asks a running primary for its status, a reload, an upgrade or a stop. [`status`]: the answer.
//! - [`Error`]: has a kind to match on, a cause and an exit status.
//!
//! # Features
//!
//! | feature | adds |
//! |---|---|
//! | `axum` | axum's extractors `ConnectInfo<SocketAddr>` and `ConnectInfo<PeerAddr>`; [`ConnectionInfo`] is an extractor |
//! | `cli` | module `cli`: the flags, environment variables and TOML file of `prefork serve` for your own program |
//! | `http2` | HTTP/2, over TLS by ALPN and without TLS by prior knowledge; tonic needs it |
//! | `stack-traces` | [`stack`]: where in the code a stuck request stands, in the log and on demand |
//! | `tls` | TLS with certificates from files: keys `tls-cert` and `tls-key` |
//! | `testing` | module `testing`: clusters in the tests of your program |
//!
//! None is on by default. Services of tower and axum need no feature.
//!
//! # Fork safety
//!
//! A process with threads, a runtime or open connections cannot be forked safely. So call `serve` from a plain `fn main`, not from
//! `#[tokio::main]`, and start no thread before it; it returns an error otherwise. Database pools, HTTP clients and exporters
//! belong into the function that runs in each worker, migrations into [`Cluster::before_fork`], large tables into
//! [`Cluster::preload`]. [`fork_safety`] names descriptors that should not be shared.
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

mod access_log;
#[cfg_attr(not(feature = "admin"), expect(dead_code, reason = "only the primary's part is used"))]
mod admin;
mod app_name;
mod application_sockets;
mod channel;
#[cfg(feature = "cli")]
pub mod cli;
pub mod client;
mod cluster;
pub mod config;
pub mod control;
mod dispatch;
mod error;
pub mod fork_safety;
mod https_redirect;
mod inherited_fds;
pub mod isolated;
mod listener;
pub mod log_file;
pub mod log_output;
mod main_result;
pub mod messages;
#[cfg(feature = "admin")]
mod metrics;
mod panic_location;
mod pid_file;
pub mod pool;
mod primary;
mod privilege;
mod process_limits;
mod process_settings;
mod processors;
pub mod program;
mod runtime;
mod scoreboard;
pub mod shared;
mod skip_backoff;
mod socket_file;
pub mod stack;
pub mod status;
mod systemd;
#[cfg(feature = "testing")]
pub mod testing;
pub mod text;
mod tls;
mod transfer;
mod upgrade;
mod worker;
mod worker_init;
mod worker_stdio;
mod yield_now;

pub use application_sockets::inherit_socket;
pub use cluster::{Cluster, Preloaded, WorkerKind};
#[doc(inline)]
pub use config::{Config, ConfigBuilder};
pub use error::{BoxError, Error, ErrorKind, Result, exit};
#[doc(inline)]
pub use http::IntoHttpService;
pub use inherited_fds::close_inherited_fds;
pub use main_result::Main;
pub use prefork_supervisor::{Generation, Slot, WEB_KIND, WorkerId, WorkerTag};
pub use upgrade::report_failed_start;
pub use worker::{AcceptedStream, EndOnDrain, HoldGuard, Worker, is_worker};
pub use worker_stdio::{OutputStream, WorkerStdio};

// Shorter paths to what the modules document.
#[doc(hidden)]
pub use client::{
    ClientAddr, ClientInfo, ConnectionInfo, ForwardedHeaders, ParentId, PeerAddr, ProxyHeader,
    ProxyProtocol, RequestId, TlsInfo, TraceContext, TraceId, TrustedProxies, UnixPeer,
};
#[doc(hidden)]
pub use config::{
    AccessLog, AccessLogFormat, AccessLogSample, BindAddr, ConcurrencyModel, ControlSocket,
    Dispatch, FdStore, HalfClosePolicy, HostAddr, Hsts, KernelProgram, ListenAddr,
    MeasureDurations, ParseValueError, RedirectAddr, UnixAddr, WhenFull, WorkerCount,
};
#[doc(hidden)]
pub use events::{
    ClusterEvent, FdWatchId, OverlayState, PrimaryHandle, RecycleReason, RefusedCommand,
    RestartDecision, TimerId, WorkerExit, WorkerExitReason, WorkerInfo,
};
#[doc(hidden)]
pub use http::{RequestDeadline, ViaHyper, ViaTower};
#[doc(hidden)]
pub use isolated::{IsolatedJobError, IsolatedPool, IsolatedPoolConfig};
#[doc(hidden)]
pub use messages::{
    Compact, Inbox, IntoPayload, Message, MessageError, MessageLimits, MessageSender,
    MessageTarget, PassedConnection, Payload, PayloadEncoding, ReplyTo, SendConnectionError,
};
#[doc(hidden)]
pub use shared::{
    KeyedRateLimiter, Leadership, LockError, MetricDescription, RateLimiter, SharedBytes,
    SharedCache, SharedCounter, SharedFlag, SharedGauge, SharedHistogram, SharedLockGuard,
    SharedLocks, SharedNumber,
};

/// What happens to the workers, as hooks in the primary see it, and the handle with which hooks act.
///
/// [`Cluster::on_event`] and its siblings add hooks. They run in the primary's only thread, between two events.
pub mod events {
    pub use crate::primary::{
        ClusterEvent, FdWatchId, OverlayState, PrimaryHandle, TimerId, WorkerExit,
        WorkerExitReason, WorkerInfo,
    };
    pub use prefork_supervisor::{RecycleReason, RefusedCommand, RestartDecision};
}

/// HTTP services, and what a handler can set for its request.
pub mod http {
    pub use crate::worker::RequestDeadline;
    pub use crate::worker::http::into_service::{IntoHttpService, ViaHyper, ViaTower};
}

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
        AccessLogPage: "docs/src/access-log.md",
        Axum: "docs/src/axum.md",
        BehindAProxy: "docs/src/behind-a-proxy.md",
        Control: "docs/src/control.md",
        CpuBoundWork: "docs/src/cpu-bound-work.md",
        CpuPool: "docs/src/cpu-pool.md",
        ForkSafety: "docs/src/fork-safety.md",
        Http: "docs/src/http.md",
        IsolatedJobs: "docs/src/isolated-jobs.md",
        Library: "docs/src/library.md",
        LogsPage: "docs/src/logs.md",
        Messages: "docs/src/messages.md",
        MetricsPage: "docs/src/metrics.md",
        RequestIds: "docs/src/request-ids.md",
        SharedState: "docs/src/shared-state.md",
        TlsPage: "docs/src/tls.md",
        WorkerKinds: "docs/src/worker-kinds.md",
    }
    #[cfg(feature = "testing")]
    pages! {
        Testing: "docs/src/testing.md",
    }

    #[cfg(feature = "admin")]
    pages! { AdminPage: "docs/src/admin.md" }

    #[cfg(feature = "cli")]
    pages! { OwnFlags: "docs/src/own-flags.md" }
}
