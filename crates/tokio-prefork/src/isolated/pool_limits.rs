//! The settings of a pool that limit what its processes may use, and how long they live.

use std::time::Duration;

use super::IsolatedPoolConfig;
use crate::process_limits::ProcessLimits;

/// The stack of the thread that runs the jobs, unless `RUST_MIN_STACK` says otherwise: what std takes.
const DEFAULT_STACK_BYTES: usize = 2 << 20;

/// Room for what the library itself reserves beside the jobs.
const RESERVED_BYTES: u64 = 1 << 20;

/// What limits the processes of a pool.
#[derive(Debug, Clone)]
pub(crate) struct PoolLimits {
    pub(crate) max_jobs: Option<u64>,
    pub(crate) idle_timeout: Duration,
    /// `None`: `pool-nice` of the configuration.
    pub(crate) nice: Option<u32>,
    pub(crate) cpu_time: Option<Duration>,
    pub(crate) max_rss: Option<u64>,
    pub(crate) max_idle_rss: Option<u64>,
    max_data: Option<u64>,
    max_address_space: Option<u64>,
    open_files: Option<u64>,
    has_core_dumps: bool,
    pub(crate) stack_bytes: Option<usize>,
}

impl Default for PoolLimits {
    fn default() -> PoolLimits {
        PoolLimits {
            max_jobs: None,
            idle_timeout: Duration::from_secs(30),
            nice: None,
            cpu_time: None,
            max_rss: None,
            max_idle_rss: None,
            max_data: None,
            max_address_space: None,
            open_files: None,
            has_core_dumps: false,
            stack_bytes: None,
        }
    }
}

/// What limits the thread that runs the jobs of a process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct JobThreadLimits {
    pub(crate) nice: Option<u32>,
    pub(crate) cpu_time: Option<Duration>,
    pub(crate) stack_bytes: Option<usize>,
    /// Whether a failed allocation is the end of what a limit of the pool allows.
    pub(crate) has_memory_limit: bool,
}

impl PoolLimits {
    /// Returns what the kernel enforces on a process of the pool.
    pub(crate) fn process_limits(&self) -> ProcessLimits {
        let of_std = || {
            let text = std::env::var("RUST_MIN_STACK").ok();
            text.and_then(|text| text.parse().ok()).unwrap_or(DEFAULT_STACK_BYTES)
        };
        let stack_bytes = self.stack_bytes.unwrap_or_else(of_std) as u64;
        ProcessLimits {
            has_own_group: true,
            max_data: self.max_data,
            max_address_space: self.max_address_space,
            max_rss: self.max_rss,
            reserved_bytes: stack_bytes.saturating_add(RESERVED_BYTES),
            open_files: self.open_files,
            has_no_core_dumps: !self.has_core_dumps,
        }
    }

    pub(crate) fn thread_limits(&self) -> JobThreadLimits {
        let limits = [self.max_rss, self.max_data, self.max_address_space];
        JobThreadLimits {
            nice: self.nice,
            cpu_time: self.cpu_time,
            stack_bytes: self.stack_bytes,
            has_memory_limit: limits.iter().any(Option::is_some),
        }
    }
}

/// Limits of the processes.
impl IsolatedPoolConfig {
    /// Replaces a process when it has run this many jobs. With 1, each job has a process of its own, freshly forked: no job
    /// sees what another one has left, such as variables, threads or the current directory. Default: no limit.
    ///
    /// The replacement is ready within milliseconds, plus the time that `init` takes.
    pub fn max_jobs(mut self, jobs: u64) -> IsolatedPoolConfig {
        self.limits.max_jobs = Some(jobs.max(1));
        self
    }

    /// Sets how long a process of a pool with a range, such as `1..=4`, waits for a job before it ends. Default: 30 s.
    ///
    /// The smallest number of processes is kept. A job that waits never waits for this: a process is started for it.
    pub fn idle_timeout(mut self, timeout: Duration) -> IsolatedPoolConfig {
        self.limits.idle_timeout = timeout;
        self
    }

    /// Sets the niceness of the thread that runs the jobs, 0 to 19, and of the threads and programs that jobs start. The
    /// process keeps its heartbeat with the niceness of the cluster. Default: `pool-nice`, 19.
    pub fn nice(mut self, nice: u32) -> IsolatedPoolConfig {
        self.limits.nice = Some(nice.min(19));
        self
    }

    /// Limits the CPU time of each job: of all threads of its process, without the programs that it starts. A job beyond it
    /// is ended by SIGXCPU as [`LimitExceeded`](crate::IsolatedJobError::LimitExceeded). Default: no limit but the deadline.
    pub fn cpu_time(mut self, limit: Duration) -> IsolatedPoolConfig {
        self.limits.cpu_time = Some(limit);
        self
    }

    /// Sets how much memory a process may have resident, in bytes, all that it shares with the primary included. A job beyond
    /// it ends as [`LimitExceeded`](crate::IsolatedJobError::LimitExceeded). Default: no limit.
    ///
    /// The kernel cannot limit resident memory, but it refuses private memory that would not fit: the allocation fails, which
    /// aborts the process. What a job reserves counts even if it is never touched. Shared memory and mapped files are not
    /// private; for them the primary looks twice a second, and kills a process above the limit.
    pub fn max_rss(mut self, bytes: u64) -> IsolatedPoolConfig {
        self.limits.max_rss = Some(bytes);
        self
    }

    /// Sets how much memory a process may keep resident between two jobs, in bytes; one that keeps more is replaced before
    /// its next job, which so does not pay for what earlier jobs have leaked. Default: with [`max_rss`](Self::max_rss) three
    /// quarters of what that leaves to jobs, else no limit.
    pub fn max_idle_rss(mut self, bytes: u64) -> IsolatedPoolConfig {
        self.limits.max_idle_rss = Some(bytes);
        self
    }

    /// Limits the private writable memory of a process in bytes (RLIMIT_DATA), used or only reserved, with what it has from
    /// the primary. An allocation beyond it fails, in the programs that jobs start as well. Default: no limit.
    pub fn max_data_bytes(mut self, bytes: u64) -> IsolatedPoolConfig {
        self.limits.max_data = Some(bytes);
        self
    }

    /// Limits all that a process maps, in bytes (RLIMIT_AS): private and shared memory, files, and addresses that are only
    /// reserved, of which a program has far more than it uses. Default: no limit.
    pub fn max_address_space_bytes(mut self, bytes: u64) -> IsolatedPoolConfig {
        self.limits.max_address_space = Some(bytes);
        self
    }

    /// Limits the open files and sockets of a process (RLIMIT_NOFILE). The library needs about 20 of them. Default: the limit
    /// of the primary.
    pub fn open_files(mut self, files: u64) -> IsolatedPoolConfig {
        self.limits.open_files = Some(files);
        self
    }

    /// Sets whether a process that crashes may leave a core dump. Default: `false`, as jobs may crash.
    pub fn core_dumps(mut self, may_dump: bool) -> IsolatedPoolConfig {
        self.limits.has_core_dumps = may_dump;
        self
    }

    /// Sets the stack of the thread that runs the jobs, in bytes. Default: 2 MiB, or `RUST_MIN_STACK`.
    pub fn stack_bytes(mut self, bytes: usize) -> IsolatedPoolConfig {
        self.limits.stack_bytes = Some(bytes);
        self
    }
}
