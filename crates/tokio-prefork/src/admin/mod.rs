//! The admin listener: health checks, metrics, status, events and a dashboard, served by a process of its own.
//!
//! ```text
//! workers  -> scoreboard ---------------+
//! primary  -> scoreboard, AdminMemory --+--> admin process -> HTTP
//! ```
//!
//! The process reads shared memory only. So it answers while all workers are frozen and the primary is busy, or stopped. It holds no
//! socket of the service, and what happens to it costs nobody else: see `prefork_supervisor::AdminSupervisor`.
//!
//! The primary's part is always compiled; what speaks HTTP needs the feature `admin`.

mod published_status;
mod shared_memory;
mod token;

#[cfg(feature = "admin")]
mod access;
#[cfg(feature = "admin")]
mod connections;
#[cfg(feature = "admin")]
mod dashboard;
#[cfg(feature = "admin")]
mod events;
#[cfg(feature = "admin")]
mod handle_request;
#[cfg(feature = "admin")]
mod health;
#[cfg(feature = "admin")]
mod overlay;
#[cfg(feature = "admin")]
mod pages;
#[cfg(feature = "admin")]
mod process;
#[cfg(feature = "admin")]
mod response;
#[cfg(feature = "admin")]
mod status_reader;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::config::Config;
use crate::listener::Listener;
use crate::scoreboard::ScoreboardReader;
#[cfg(feature = "admin")]
pub(crate) use process::run_admin_process;
pub(crate) use published_status::PublishedStatus;
pub(crate) use shared_memory::{
    AdminMemory, AdminMemoryReader, MAX_EVENT_BYTES, MAX_OVERLAY_BYTES, PROCESS_PAGES, ProcessPage,
};
pub(crate) use token::AdminToken;

/// Everything that the primary hands to an admin process at its fork.
pub(crate) struct AdminProcessInit {
    pub(crate) token: Option<AdminToken>,
    pub(crate) listeners: Vec<Listener>,
    /// The process's end of the channel to the primary.
    pub(crate) channel: OwnedFd,
    pub(crate) memory: AdminMemoryReader,
    pub(crate) own_page: ProcessPage,
    pub(crate) scoreboard: ScoreboardReader,
    pub(crate) config: Arc<Config>,
    /// Set by SIGTERM to the process itself.
    pub(crate) terminate: Arc<std::sync::atomic::AtomicBool>,
}

/// Never called: a configuration with an admin listener is an error without the feature.
#[cfg(not(feature = "admin"))]
pub(crate) fn run_admin_process(_: AdminProcessInit) -> u8 {
    log::error!("the admin listener needs the feature admin of tokio-prefork");
    crate::error::exit::CONFIG
}
