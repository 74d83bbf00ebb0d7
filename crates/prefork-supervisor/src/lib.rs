//! The decisions of a prefork server's primary process: a state machine without I/O.
//!
//! [`Supervisor::handle`] takes an [`Event`] (a worker was forked, is ready, has exited; a command arrived) and returns
//! the [`Action`]s to perform (fork, drain, kill, log). It makes no system calls, reads no clock and writes no
//! log; the caller passes the time. A failed action is not an error return but the next event. So every failure can be
//! a unit test, and a simulated cluster lives through a year of crashes in a second: see the crate's tests.
//!
//! ```
//! use prefork_supervisor::{Action, Event, Slot, Supervisor, SupervisorConfig};
//! use std::time::{Duration, Instant};
//!
//! # fn config() -> SupervisorConfig {
//! #     SupervisorConfig {
//! #         workers: 1,
//! #         max_workers: 8,
//! #         has_socket_per_slot: false,
//! #         can_adopt_sockets: true,
//! #         boot_timeout: Duration::from_secs(30),
//! #         graceful_timeout: Duration::from_secs(30),
//! #         drain_delay: Duration::ZERO,
//! #         min_uptime: Duration::from_secs(1),
//! #         boot_attempts: 5,
//! #         backoff_first: Duration::from_millis(100),
//! #         backoff_max: Duration::from_secs(15),
//! #         surge: 1,
//! #         max_unavailable: 0,
//! #         max_requests: None,
//! #         max_rss: None,
//! #         max_rss_hard: None,
//! #         max_lifetime: None,
//! #         stall_warn: None,
//! #         stall_timeout: None,
//! #     }
//! # }
//! let mut supervisor = Supervisor::new(config(), 42);
//! let now = Instant::now();
//!
//! // With one wanted worker, the first action is to fork it.
//! let actions = supervisor.handle(now, Event::Started);
//! let [Action::Fork(tag)] = actions[..] else { panic!("{actions:?}") };
//! assert_eq!(tag.slot, Slot(0));
//!
//! // The caller forks, reports the pid, and reports the deadline if the worker is not ready by then.
//! let _logs = supervisor.handle(now, Event::Forked { worker: tag.id, pid: 4711 });
//! let deadline = supervisor.next_deadline().expect("the boot timeout");
//! let actions = supervisor.handle(deadline, Event::DeadlineReached);
//! assert!(actions.contains(&Action::Kill(tag.id)));
//! ```

mod action;
mod admin_process;
mod cluster_view;
mod command;
mod config;
mod crash_backoff;
mod demand;
mod empty_cluster;
mod event;
mod health;
mod orphan_sockets;
mod reload;
mod replacement_budget;
mod saved_state;
mod scaling;
mod slot_plan;
mod slot_table;
mod stop;
mod supervisor;
mod upgrade;
mod worker_events;
mod worker_identity;
mod worker_kinds;
mod worker_table;

#[cfg(test)]
mod invariants;
#[cfg(test)]
mod simulator;
#[cfg(test)]
mod tests;

pub use action::{
    Action, DrainReason, ExitCause, ExitReport, LogEvent, RecycleReason, ShutdownReason,
};
pub use admin_process::{
    AdminAction, AdminKillReason, AdminProcessId, AdminProcessState, AdminSupervisor,
};
pub use cluster_view::{ClusterView, WorkerView};
pub use command::{ClusterCommand, RefusedCommand, Requester, ScaleChange, WorkerEnvironment};
pub use config::{RecycleLimits, SupervisorConfig, WorkerKindConfig, WorkerRange};
pub use event::{Event, HealthSample, RestartDecision};
pub use saved_state::{SavedForkedSlot, SavedKind, SavedState, SavedWorker};
pub use slot_plan::workers_after_upgrade;
pub use supervisor::Supervisor;
pub use worker_identity::{Generation, Slot, WEB_KIND, WorkerId, WorkerTag};

/// The largest number of workers over all kinds. The scoreboard has room for twice as many.
pub const MAX_WORKERS: u32 = 1024;
