//! What serves the connections: processes, threads, or one loop alone.

use std::fmt;
use std::str::FromStr;

/// The concurrency model. In all of them a primary supervises; the model says what it forks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Model {
    /// `workers` processes, each with one single-threaded runtime: what breaks, breaks in one of them.
    #[default]
    Prefork,
    /// One process with one single-threaded runtime: plain Node.
    Single,
    /// One process with tokio's multi-thread runtime of `workers` threads. The service is shared by all of them, so it
    /// must be `Send` and `Sync`: only [`Cluster::serve_threads`](crate::Cluster::serve_threads) has it.
    Threads,
    /// One process with `workers` threads, each with a single-threaded runtime and a service of its own.
    ThreadPerCore,
}

impl Model {
    /// All of them, in the order in which they are explained.
    pub const ALL: [Model; 4] =
        [Model::Prefork, Model::Single, Model::Threads, Model::ThreadPerCore];

    /// Its name as it is given and shown.
    pub const fn name(self) -> &'static str {
        match self {
            Model::Prefork => "prefork",
            Model::Single => "single",
            Model::Threads => "threads",
            Model::ThreadPerCore => "thread-per-core",
        }
    }

    /// Whether there is one worker process, whatever `workers` says.
    pub(crate) fn is_one_process(self) -> bool {
        !matches!(self, Model::Prefork)
    }

    /// Whether `workers` counts the threads of one process.
    pub(crate) fn counts_threads(self) -> bool {
        matches!(self, Model::Threads | Model::ThreadPerCore)
    }
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Model {
    type Err = String;

    /// # Errors
    ///
    /// A name that is not among [`Model::ALL`].
    fn from_str(text: &str) -> Result<Model, String> {
        let known = Model::ALL.into_iter().find(|model| model.name() == text.trim());
        known.ok_or_else(|| {
            let names = Model::ALL.map(Model::name).join(", ");
            format!("is no concurrency model: give one of {names}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_read_back_and_others_are_refused_with_the_list() {
        for model in Model::ALL {
            assert_eq!(model.name().parse(), Ok(model));
        }
        let why = "fork".parse::<Model>().expect_err("unknown");
        assert!(why.contains("thread-per-core"), "{why}");
    }
}
