//! Policy: the numbers the supervisor obeys, and nothing else.

use std::time::Duration;

/// What the supervisor needs to know of the configuration. Plain numbers, no sources, no paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Policy {
    /// How many workers should serve.
    pub workers: u32,
    /// How long a worker may take from fork to READY before it is killed.
    pub boot_timeout: Duration,
    /// How long a draining worker may take before it is killed.
    pub graceful_timeout: Duration,
    /// A worker that dies sooner than this after READY (or before it) counts towards a crash loop.
    pub min_uptime: Duration,
    /// This many failed rounds before any worker was ever ready, and the primary gives up.
    pub boot_attempts: u32,
    /// The delay after the first failed round; each further one doubles it.
    pub backoff_first: Duration,
    /// The longest delay between two rounds.
    pub backoff_max: Duration,
}
