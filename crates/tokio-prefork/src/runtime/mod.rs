//! The four concurrency models: what a worker process runs. The primary is the same in all of them.
//!
//! ```text
//! prefork          N workers: one process each, one single-threaded runtime
//! single           one worker: one process, one single-threaded runtime
//! thread-per-core  one worker: one process, N threads, each with its own runtime, service and scoreboard page
//! threads          one worker: one process, one thread that accepts, N threads that serve
//! ```
//!
//! In every model a worker process boots, reports READY, drains and exits as one, so stop, reload, respawn and upgrade are the
//! same.

pub(crate) mod thread_per_core;
pub(crate) mod threads;

use std::sync::Arc;

use crate::config::{ConcurrencyModel, Config};
use crate::error::{Error, Result};
use crate::worker::{self, WorkerApp};
use crate::worker_init::WorkerInit;

/// Whether the service of an application is shared by several threads. Decides which models it can run under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AppThreading {
    /// The service stays on the thread that created it.
    SingleThread,
    /// The service is shared by several threads.
    MultiThread,
}

impl AppThreading {
    /// Checks that the model of `config` fits this application, and returns `config` adapted to it.
    pub(crate) fn adapt_config(self, mut config: Config) -> Result<Config> {
        let model = config.model;
        match (self, model) {
            (AppThreading::MultiThread, ConcurrencyModel::Threads) => {
                // A socket belongs to the epoll instance of one runtime, and its requests run on any thread of that.
                if config.hand_over {
                    log::info!(
                        "hand-over is off: model = threads closes connections when it is replaced"
                    );
                }
                config.hand_over = false;
                Ok(config)
            }
            (
                AppThreading::SingleThread,
                ConcurrencyModel::Prefork
                | ConcurrencyModel::Single
                | ConcurrencyModel::ThreadPerCore,
            ) => Ok(config),
            (AppThreading::SingleThread, ConcurrencyModel::Threads) => Err(Error::config(
                "model = threads needs a service that is Send and Sync: start the application with \
                 Cluster::serve_threads, or choose thread-per-core",
            )),
            (AppThreading::MultiThread, _) => Err(Error::config(format!(
                "model = {model} does not fit an application of Cluster::serve_threads: give model = threads, or \
                 start it with Cluster::serve"
            ))),
        }
    }

    /// As [`AppThreading::adapt_config`], for a reload, which cannot change how the application was started.
    pub(crate) fn adapt_reloaded_config(self, config: Config) -> Result<Config> {
        let model = config.model;
        self.adapt_config(config).map_err(|_| {
            Error::config(format!(
                "model = {model} cannot be had by a reload: restart, or upgrade in place (a service for `threads` is \
                 another one)"
            ))
        })
    }
}

/// Runs a worker from its `WorkerInit` to its exit status.
pub(crate) fn enter(mut init: WorkerInit, app: &WorkerApp) -> u8 {
    match init.config.model {
        ConcurrencyModel::Prefork | ConcurrencyModel::Single => worker::run_worker(init, app),
        ConcurrencyModel::ThreadPerCore => thread_per_core::enter(init, app),
        ConcurrencyModel::Threads => {
            // One thread accepts for all, so it may have as many connections as N processes together.
            let mut config = Config::clone(&init.config);
            config.worker_connections = config.max_process_connections();
            config.tls_max_handshakes = config.tls_max_handshakes.saturating_mul(config.threads());
            init.config = Arc::new(config);
            init.worker_pages
                .iter_mut()
                .for_each(crate::scoreboard::WorkerPage::share_with_threads);
            worker::run_worker(init, app)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_application_runs_only_under_the_models_that_its_service_allows() {
        let with = |model| Config::builder().model(model).build().expect("valid");
        for model in ConcurrencyModel::ALL {
            let threads = model == ConcurrencyModel::Threads;
            assert_eq!(
                AppThreading::SingleThread.adapt_config(with(model)).is_ok(),
                !threads,
                "{model}"
            );
            assert_eq!(
                AppThreading::MultiThread.adapt_config(with(model)).is_ok(),
                threads,
                "{model}"
            );
        }
        let why = AppThreading::SingleThread
            .adapt_config(with(ConcurrencyModel::Threads))
            .expect_err("not Send")
            .to_string();
        assert!(why.contains("Cluster::serve_threads"), "{why}");
        let why = AppThreading::SingleThread
            .adapt_reloaded_config(with(ConcurrencyModel::Threads))
            .expect_err("not Send")
            .to_string();
        assert!(why.contains("restart"), "{why}");
        assert!(
            !AppThreading::MultiThread
                .adapt_config(with(ConcurrencyModel::Threads))
                .expect("fits")
                .hand_over
        );
    }
}
