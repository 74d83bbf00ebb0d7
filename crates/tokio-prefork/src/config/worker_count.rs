//! The number of workers.

use std::num::NonZeroU32;

use crate::error::{Error, Result};

/// How many workers to fork.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WorkerCount {
    /// One for each core this process may use: the affinity mask and the cgroup's CPU quota
    /// (rounded down, at least one) both count.
    #[default]
    Auto,
    /// Exactly this many, from 1 to [`WorkerCount::MAX`].
    Count(NonZeroU32),
}

impl WorkerCount {
    /// The largest accepted number of workers. The scoreboard has room for twice as many.
    pub const MAX: u32 = prefork_supervisor::MAX_WORKERS;

    /// Creates a fixed count; an error outside `1..=`[`WorkerCount::MAX`].
    pub fn new(count: u32) -> Result<WorkerCount> {
        match NonZeroU32::new(count) {
            Some(n) if count <= WorkerCount::MAX => Ok(WorkerCount::Count(n)),
            _ => Err(Error::config(format!(
                "workers = {count} is out of range: give 1 to {}, or auto",
                WorkerCount::MAX
            ))),
        }
    }

    /// Returns the number; [`WorkerCount::Auto`] asks the system.
    pub fn resolve(self) -> u32 {
        match self {
            WorkerCount::Count(n) => n.get(),
            WorkerCount::Auto => std::thread::available_parallelism()
                .map_or(1, |n| u32::try_from(n.get()).unwrap_or(1).min(WorkerCount::MAX)),
        }
    }
}
