//! The part of the configuration that the supervisor uses: plain numbers, no sources and no paths.

use std::time::Duration;

/// The supervisor's part of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SupervisorConfig {
    /// How many workers of the kind `web` should serve.
    pub workers: u32,
    /// The largest number of `web` workers that a command may ask for; 1 for models with one worker process.
    pub max_workers: u32,
    /// Whether each slot has listening sockets of its own.
    pub has_socket_per_slot: bool,
    /// Whether a worker can accept from the sockets of another slot too. A program that inherits its sockets cannot.
    pub can_adopt_sockets: bool,
    /// How long a worker may take from fork to READY before it is killed.
    pub boot_timeout: Duration,
    /// How long a draining worker may take before it is killed.
    pub graceful_timeout: Duration,
    /// How long a stop waits before workers drain, so that load balancers notice. Zero: not at all.
    pub drain_delay: Duration,
    /// Time after READY within which a crash counts towards a crash loop.
    pub min_uptime: Duration,
    /// Number of failed boot rounds, without any worker ever ready, after which the primary gives up.
    pub boot_attempts: u32,
    /// The back-off delay after the first failed round; it doubles with each further one.
    pub backoff_first: Duration,
    /// The longest back-off delay.
    pub backoff_max: Duration,
    /// How many workers beyond the wanted number a reload may start at a time. Raised to 1 if `max_unavailable` is 0.
    pub surge: u32,
    /// How many workers may be missing during a reload.
    pub max_unavailable: u32,
    /// Recycles a worker after this many requests, minus up to 20 % jitter. `None`: never.
    pub max_requests: Option<u64>,
    /// Recycles a worker with more resident memory than this, in bytes. `None`: never.
    pub max_rss: Option<u64>,
    /// Kills a worker with more resident memory than this, in bytes. `None`: never.
    pub max_rss_hard: Option<u64>,
    /// Recycles a worker at this age, minus up to 20 % jitter. `None`: never.
    pub max_lifetime: Option<Duration>,
    /// Reports a worker whose event loop has stalled for this long. `None`: never.
    pub stall_warn: Option<Duration>,
    /// Aborts a worker whose event loop has stalled for this long. `None`: never.
    pub stall_timeout: Option<Duration>,
}

/// A worker kind besides `web`, as the program declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerKindConfig {
    /// The kind's name.
    pub name: &'static str,
    /// How many workers of the kind should run. With a `demand_range`: how many run at first.
    pub workers: u32,
    /// The bounds within which the number of workers follows the demand. `None`: only commands change it.
    pub demand_range: Option<WorkerRange>,
    /// The limits at which its workers are replaced or killed.
    pub limits: RecycleLimits,
    /// Whether reloads leave its workers alone. Only upgrades replace them.
    pub is_kept_by_reload: bool,
}

/// The smallest and the largest number of workers of a kind whose number follows the demand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerRange {
    /// The number that runs without any demand; may be 0.
    pub min: u32,
    /// The largest number, at least `min`.
    pub max: u32,
}

/// The limits at which workers of one kind are recycled or killed. `None`: never.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RecycleLimits {
    /// Recycles after this many requests, minus up to 20 % jitter.
    pub max_requests: Option<u64>,
    /// Recycles above this resident memory in bytes.
    pub max_rss: Option<u64>,
    /// Kills above this resident memory in bytes.
    pub max_rss_hard: Option<u64>,
    /// Recycles at this age, minus up to 20 % jitter.
    pub max_lifetime: Option<Duration>,
}

impl SupervisorConfig {
    /// Returns the limits of workers of the kind `web`.
    pub(crate) fn web_recycle_limits(&self) -> RecycleLimits {
        RecycleLimits {
            max_requests: self.max_requests,
            max_rss: self.max_rss,
            max_rss_hard: self.max_rss_hard,
            max_lifetime: self.max_lifetime,
        }
    }

    /// Returns whether stalled workers are reported or killed.
    pub(crate) fn has_stall_limit(&self) -> bool {
        self.stall_warn.is_some() || self.stall_timeout.is_some()
    }
}

impl WorkerRange {
    /// Returns the number of workers in the range that is nearest to `workers`.
    pub(crate) fn nearest(self, workers: u32) -> u32 {
        workers.min(self.max).max(self.min)
    }

    pub(crate) fn contains(self, workers: u32) -> bool {
        (self.min..=self.max).contains(&workers)
    }
}

impl RecycleLimits {
    /// Returns whether the workers' memory has to be sampled.
    pub(crate) fn has_memory_limit(&self) -> bool {
        self.max_rss.is_some() || self.max_rss_hard.is_some()
    }
}
