//! The concurrency models and their names.

use std::fmt;
use std::str::FromStr;

use super::parse_error::{ParseValueError, parse_choice};

/// What a worker process runs. Default: `Prefork`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum ConcurrencyModel {
    /// `workers` processes, each with one single-threaded runtime: a fault affects one process only.
    #[default]
    Prefork,
    /// One process with one single-threaded runtime, like Node without cluster.
    Single,
    /// One process with tokio's multi-thread runtime of `workers` threads. They share the service, which must be `Send`
    /// and `Sync`: needs [`Cluster::serve_threads`](crate::Cluster::serve_threads).
    Threads,
    /// One process with `workers` threads, each with a single-threaded runtime and a service of its own.
    ThreadPerCore,
}

impl ConcurrencyModel {
    /// All models, in the order of the documentation.
    pub const ALL: [ConcurrencyModel; 4] = [
        ConcurrencyModel::Prefork,
        ConcurrencyModel::Single,
        ConcurrencyModel::Threads,
        ConcurrencyModel::ThreadPerCore,
    ];

    /// Returns the name in configuration, flags and status.
    pub const fn name(self) -> &'static str {
        match self {
            ConcurrencyModel::Prefork => "prefork",
            ConcurrencyModel::Single => "single",
            ConcurrencyModel::Threads => "threads",
            ConcurrencyModel::ThreadPerCore => "thread-per-core",
        }
    }

    /// Returns whether the model has one worker process, whatever `workers` says.
    pub(crate) fn is_one_process(self) -> bool {
        !matches!(self, ConcurrencyModel::Prefork)
    }

    /// Returns whether `workers` counts the threads of one process.
    pub(crate) fn workers_are_threads(self) -> bool {
        matches!(self, ConcurrencyModel::Threads | ConcurrencyModel::ThreadPerCore)
    }
}

impl fmt::Display for ConcurrencyModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for ConcurrencyModel {
    type Err = ParseValueError;

    /// # Errors
    ///
    /// Fails for a name that no model in [`ConcurrencyModel::ALL`] has.
    fn from_str(text: &str) -> Result<ConcurrencyModel, ParseValueError> {
        let named = ConcurrencyModel::ALL.map(|model| (model.name(), model));
        parse_choice(text, "a concurrency model", &named)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_parses_and_an_unknown_one_lists_them_all() {
        for model in ConcurrencyModel::ALL {
            assert_eq!(model.name().parse(), Ok(model));
        }
        let why = "fork".parse::<ConcurrencyModel>().expect_err("unknown");
        assert!(why.reason().contains("thread-per-core"), "{why}");
    }
}
