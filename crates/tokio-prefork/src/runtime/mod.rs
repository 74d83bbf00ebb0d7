//! The four concurrency models. The primary is the same in all of them; the model says what it forks.
//!
//! ```text
//! prefork          N workers, each: one process, one loop
//! single           one worker:      one process, one loop
//! thread-per-core  one worker:      one process, N threads, each with a loop, a service and a row of its own (`thread_per_core`)
//! threads          one worker:      one process, one loop that accepts, N threads that serve (`threads`)
//! ```
//!
//! Whatever the model, a worker process boots, says READY, drains and leaves as one, so that stop, reload, respawn
//! and upgrade need not know of it.

pub(crate) mod thread_per_core;
pub(crate) mod threads;

use std::rc::Rc;

use crate::config::{Config, Model};
use crate::error::{Error, Result};
use crate::worker::{self, WorkerApp};
use crate::worker_init::WorkerInit;

/// Which models an application was made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Made {
    /// Its service stays on the thread that made it.
    ForOneThread,
    /// Its service is shared by threads.
    ForThreads,
}

impl Made {
    /// `config` as this application can have it.
    pub(crate) fn fit(self, mut config: Config) -> Result<Config> {
        let model = config.model;
        match (self, model) {
            (Made::ForThreads, Model::Threads) => {
                // A socket is in the epoll instance of one runtime, and a request on any of its threads.
                if config.hand_over {
                    log::info!(
                        "hand-over is off: model = threads closes connections when it is replaced"
                    );
                }
                config.hand_over = false;
                Ok(config)
            }
            (Made::ForOneThread, Model::Prefork | Model::Single | Model::ThreadPerCore) => {
                Ok(config)
            }
            (Made::ForOneThread, Model::Threads) => Err(Error::config(
                "model = threads needs a service that is Send and Sync: start the application with \
                 Cluster::serve_threads, or choose thread-per-core",
            )),
            (Made::ForThreads, _) => Err(Error::config(format!(
                "model = {model} does not fit an application of Cluster::serve_threads: give model = threads, or \
                 start it with Cluster::serve"
            ))),
        }
    }

    /// The same for a reload, which cannot change what the application was started as.
    pub(crate) fn refit(self, config: Config) -> Result<Config> {
        let model = config.model;
        self.fit(config).map_err(|_| {
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
        Model::Prefork | Model::Single => worker::run_worker(init, app),
        Model::ThreadPerCore => thread_per_core::enter(init, app),
        Model::Threads => {
            // One loop accepts for all threads; the same flags give the same room as with so many processes.
            let mut config = Config::clone(&init.config);
            config.worker_connections = config.process_connections();
            init.config = Rc::new(config);
            init.rows.iter_mut().for_each(crate::scoreboard::OwnRow::share);
            worker::run_worker(init, app)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_application_fits_the_models_it_was_made_for_and_is_told_the_way_to_others() {
        let with = |model| Config::builder().model(model).build().expect("valid");
        for model in Model::ALL {
            let threads = model == Model::Threads;
            assert_eq!(Made::ForOneThread.fit(with(model)).is_ok(), !threads, "{model}");
            assert_eq!(Made::ForThreads.fit(with(model)).is_ok(), threads, "{model}");
        }
        let why = Made::ForOneThread.fit(with(Model::Threads)).expect_err("not Send").to_string();
        assert!(why.contains("Cluster::serve_threads"), "{why}");
        let why = Made::ForOneThread.refit(with(Model::Threads)).expect_err("not Send").to_string();
        assert!(why.contains("restart"), "{why}");
        assert!(!Made::ForThreads.fit(with(Model::Threads)).expect("fits").hand_over);
    }
}
