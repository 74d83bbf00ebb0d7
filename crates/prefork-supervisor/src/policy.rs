//! Policy: the numbers the supervisor obeys, and nothing else.

use std::time::Duration;

/// What the supervisor needs to know of the configuration. Plain numbers, no sources, no paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// How many workers should serve.
    pub workers: u32,
    /// How many it can be asked to be: one where the concurrency model has one worker process.
    pub most_workers: u32,
    /// Whether each slot has listening sockets of its own.
    pub socket_per_slot: bool,
    /// How long a worker may take from fork to READY before it is killed.
    pub boot_timeout: Duration,
    /// How long a draining worker may take before it is killed.
    pub graceful_timeout: Duration,
    /// How long a stop waits before workers are told to drain.
    pub drain_delay: Duration,
    /// A worker that dies sooner than this after READY (or before it) counts towards a crash loop.
    pub min_uptime: Duration,
    /// This many failed rounds before any worker was ever ready, and the primary gives up.
    pub boot_attempts: u32,
    /// The delay after the first failed round; each further one doubles it.
    pub backoff_first: Duration,
    /// The longest delay between two rounds.
    pub backoff_max: Duration,
    /// How many workers beyond the wanted number a reload may start at a time. At least 1, or
    /// `max_unavailable` is.
    pub surge: u32,
    /// How many workers may be missing during a reload.
    pub max_unavailable: u32,
    /// A worker is replaced after about so many requests. `None`: never.
    pub max_requests: Option<u64>,
    /// A worker with more resident memory than this is replaced.
    pub max_rss: Option<u64>,
    /// A worker with more resident memory than this is killed.
    pub max_rss_hard: Option<u64>,
    /// A worker is replaced when it is about that old.
    pub max_lifetime: Option<Duration>,
    /// An event loop that has not turned for this long is reported. `None`: never.
    pub stall_warn: Option<Duration>,
    /// An event loop that has not turned for this long is killed. `None`: never.
    pub stall_timeout: Option<Duration>,
}
