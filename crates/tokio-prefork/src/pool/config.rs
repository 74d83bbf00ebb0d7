//! The size of a pool, and its scheduling.

use std::time::Duration;

/// The size of a pool, and its scheduling.
///
/// ```
/// use std::time::Duration;
/// use tokio_prefork::pool::PoolConfig;
///
/// let config = PoolConfig::new().threads(4).queue(64).idle_timeout(Duration::from_secs(10));
/// assert_eq!(config.queue, 64);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolConfig {
    /// Most threads, at least one. Each starts when a job finds no idle thread. Default: one per core that this process may use.
    pub threads: usize,
    /// Threads that start with the first job, and that stay when they are idle. `None` is 0; for a
    /// [`TaskPool`](super::TaskPool), whose threads start with it, all threads. Default: `None`.
    pub min_threads: Option<usize>,
    /// How long a thread beyond `min_threads` waits for a job before it ends. `None`: threads end with the pool. Default: `None`.
    pub idle_timeout: Option<Duration>,
    /// Stack size of the threads in bytes. `None` is the default of Rust's threads: 2 MiB, or `RUST_MIN_STACK`. Default: `None`.
    pub stack_bytes: Option<usize>,
    /// Jobs that may wait, in addition to those that idle threads take at once. Default: 256.
    pub queue: usize,
    /// Nice value of the threads, 0 to 19: the higher, the more they yield to the event loop. Default: 19.
    pub nice: u32,
    /// Whether the newest job runs first while the queue is more than half full. Default: false, the oldest runs first.
    pub newest_first: bool,
}

impl Default for PoolConfig {
    fn default() -> PoolConfig {
        PoolConfig::with_threads(std::thread::available_parallelism().map_or(1, usize::from))
    }
}

impl PoolConfig {
    /// Returns the defaults with this number of threads. Unlike [`new`](Self::new), does not ask how many processors there are.
    pub(crate) fn with_threads(threads: usize) -> PoolConfig {
        PoolConfig {
            threads,
            min_threads: None,
            idle_timeout: None,
            stack_bytes: None,
            queue: 256,
            nice: 19,
            newest_first: false,
        }
    }

    /// Returns the defaults.
    pub fn new() -> PoolConfig {
        PoolConfig::default()
    }

    /// Sets [`PoolConfig::threads`].
    pub fn threads(mut self, threads: usize) -> PoolConfig {
        self.threads = threads;
        self
    }

    /// Sets [`PoolConfig::min_threads`].
    pub fn min_threads(mut self, threads: usize) -> PoolConfig {
        self.min_threads = Some(threads);
        self
    }

    /// Sets [`PoolConfig::idle_timeout`].
    pub fn idle_timeout(mut self, timeout: impl Into<Option<Duration>>) -> PoolConfig {
        self.idle_timeout = timeout.into();
        self
    }

    /// Sets [`PoolConfig::stack_bytes`].
    pub fn stack_bytes(mut self, bytes: usize) -> PoolConfig {
        self.stack_bytes = Some(bytes);
        self
    }

    /// Sets [`PoolConfig::queue`].
    pub fn queue(mut self, jobs: usize) -> PoolConfig {
        self.queue = jobs;
        self
    }

    /// Sets [`PoolConfig::nice`].
    pub fn nice(mut self, nice: u32) -> PoolConfig {
        self.nice = nice;
        self
    }

    /// Sets [`PoolConfig::newest_first`].
    pub fn newest_first(mut self, newest_first: bool) -> PoolConfig {
        self.newest_first = newest_first;
        self
    }

    /// Returns the most threads: at least one.
    pub(super) fn max_threads(&self) -> usize {
        self.threads.max(1)
    }

    /// Returns the threads that stay when they are idle, which are never more than the most.
    pub(super) fn kept_threads(&self) -> usize {
        self.min_threads.unwrap_or(0).min(self.max_threads())
    }
}
