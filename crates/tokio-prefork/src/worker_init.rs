//! Everything that the primary hands to a worker at its fork.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::access_log::AccessLogWriter;
use crate::config::Config;
use crate::dispatch::LoadPage;
use crate::error::{Error, Result};
use crate::listener::Listener;
use crate::messages::{MessageLimits, WorkerMessageEnd};
use crate::scoreboard::{ScoreboardReader, WorkerPage};
use crate::tls::WorkerTls;
use crate::worker::cpu_pool::WorkerPools;
use prefork_supervisor::{Slot, WorkerTag};

/// Holds what a freshly forked worker owns. Nothing else of the primary is used after the fork.
pub(crate) struct WorkerInit {
    pub(crate) tag: WorkerTag,
    /// The kinds besides `web`, each with its first slot.
    pub(crate) kinds: Vec<(&'static str, Slot)>,
    /// The listening sockets to accept from. With a socket per slot: those of the worker's slot.
    pub(crate) listeners: Vec<Listener>,
    /// The worker's end of the channel to the primary.
    pub(crate) channel: OwnedFd,
    /// Where new connections arrive under `round-robin`; `None` if the worker accepts by itself.
    pub(crate) queue: Option<OwnedFd>,
    /// The application's messages.
    pub(crate) messages: MessageEndInit,
    /// The scoreboard pages that only this worker writes: at least one, and one for each thread that needs its own.
    pub(crate) worker_pages: Vec<WorkerPage>,
    /// The pools that the event loops of the process share. `None`: the worker creates its own.
    pub(crate) pools: Option<Arc<WorkerPools>>,
    /// Counts the slot's connections for the dispatch policy.
    pub(crate) load_page: LoadPage,
    /// Reads the scoreboard pages of all workers.
    pub(crate) board: ScoreboardReader,
    /// The configuration of the worker's generation.
    pub(crate) config: Arc<Config>,
    /// How the worker speaks TLS.
    pub(crate) tls: WorkerTls,
    /// Writes the access log of the process; `None` if there is none.
    pub(crate) access_log: Option<Arc<AccessLogWriter>>,
    /// Set by SIGTERM to the worker itself, which asks it to retire.
    pub(crate) terminate: Arc<AtomicBool>,
}

/// Where a worker gets its end of the channel for the application's messages.
pub(crate) enum MessageEndInit {
    /// Creates the end from this descriptor. `None` in an upgrade check, where no process reads messages.
    Channel(Option<OwnedFd>, MessageLimits),
    /// Uses the end that all threads of the process share.
    Shared(Arc<WorkerMessageEnd>),
}

impl MessageEndInit {
    /// Creates the end in the current runtime, or returns the shared one.
    pub(crate) fn start(self, tag: WorkerTag) -> Result<Arc<WorkerMessageEnd>> {
        match self {
            MessageEndInit::Channel(fd, limits) => WorkerMessageEnd::start(tag, fd, limits)
                .map_err(|e| Error::system("register the message channel to the primary", e)),
            MessageEndInit::Shared(end) => Ok(end),
        }
    }
}

/// Runs a worker to its end and returns its exit status. Never returns into the primary's code.
pub(crate) type WorkerEntry = Box<dyn Fn(WorkerInit) -> u8>;
