//! The builder of the configuration, with its checks.

use std::sync::Arc;

use super::app_settings::AppSettings;
use super::{ConcurrencyModel, Config, Dispatch, WorkerCount};
use crate::error::{Error, Result};
use crate::listener::ListenAddr;
use crate::log_file::is_same_file;
use crate::privilege::WorkerCredentials;

/// Builds a [`Config`]; nothing is checked before [`ConfigBuilder::build`].
#[derive(Debug, Clone)]
#[must_use]
pub struct ConfigBuilder {
    pub(super) config: Config,
}

impl ConfigBuilder {
    /// Attaches settings of the application, for [`Config::app_settings`] in the workers. A reload brings those of
    /// the new configuration to the new workers. `Send` and `Sync`, as a worker may have several threads.
    pub fn app_settings<T: Send + Sync + 'static>(mut self, settings: T) -> ConfigBuilder {
        self.config.app_settings = AppSettings(Some(Arc::new(settings)));
        self
    }

    /// Sets [`Config::bind`] to one address in text: `HOST:PORT`, `unix:PATH`, `unix:@NAME` or `fd://N`.
    pub fn listen(mut self, addr: &str) -> Result<ConfigBuilder> {
        self.config.bind = vec![addr.parse()?];
        Ok(self)
    }

    /// Checks every value against its bounds, and looks up user and group.
    pub fn build(self) -> Result<Config> {
        let mut c = self.config;
        if c.bind.is_empty() {
            return Err(Error::config("no address to listen on: give at least one bind"));
        }
        if let Some(twice) = c.bind.iter().enumerate().find(|(i, a)| c.bind[..*i].contains(a)) {
            return Err(Error::config(format!("bind = {} is given twice", twice.1)));
        }
        c.apply_unix_socket_defaults()?;
        if c.http2 && cfg!(not(feature = "http2")) {
            return Err(Error::config(
                "http2 = true needs the feature http2 of tokio-prefork: add it in Cargo.toml, or give false",
            ));
        }
        check_model_limits(&c)?;
        c.check_bounds()?;
        if let (Some(log), Some(pid)) = (&c.log_file, &c.pid_file)
            && is_same_file(log, pid)
        {
            return Err(Error::config(format!(
                "log-file = {} is the pid-file, too: give each a file of its own",
                log.display()
            )));
        }
        c.credentials = WorkerCredentials::resolve(c.user.as_deref(), c.group.as_deref())?;
        Ok(c)
    }
}

impl Config {
    /// Sets the defaults for mode, owner and group of Unix sockets, and checks the names.
    fn apply_unix_socket_defaults(&mut self) -> Result<()> {
        let (mode, owner, group) = (self.unix_mode, &self.unix_owner, &self.unix_group);
        if let Some(mode) = mode.filter(|mode| *mode > 0o777) {
            return Err(Error::config(format!(
                "unix-mode = {mode:o} is out of range: give 0 to 777"
            )));
        }
        for addr in &mut self.bind {
            let ListenAddr::Unix(unix) = addr else { continue };
            if unix.abstract_name().is_some() {
                continue;
            }
            unix.mode = unix.mode.or(mode);
            unix.owner = unix.owner.take().or_else(|| owner.clone());
            unix.group = unix.group.take().or_else(|| group.clone());
            unix.access().map_err(|why| Error::config(format!("bind = {unix}: {why}")))?;
        }
        Ok(())
    }
}

/// Checks that no setting contradicts the concurrency model: one process has one accept queue.
fn check_model_limits(c: &Config) -> Result<()> {
    if c.model.is_one_process() && c.dispatch != Dispatch::default() {
        return Err(Error::config(format!(
            "dispatch = {} does not fit model = {}: there is one worker process; leave dispatch out, or give model = \
             prefork",
            c.dispatch, c.model
        )));
    }
    match c.workers {
        WorkerCount::Count(n) if c.model == ConcurrencyModel::Single && n.get() > 1 => {
            Err(Error::config(format!(
                "workers = {n} does not fit model = single, which has one: leave workers out, or give another model"
            )))
        }
        WorkerCount::Count(_) | WorkerCount::Auto => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        Config::builder().build().expect("defaults");
    }

    #[test]
    fn a_value_out_of_bounds_is_an_error_of_the_configuration() {
        let error = Config::builder().backlog(0).build().expect_err("0 is out of range");
        assert_eq!(error.exit_status(), crate::error::exit::CONFIG);
        assert!(WorkerCount::new(0).is_err());
        assert!(WorkerCount::new(WorkerCount::MAX + 1).is_err());
    }

    #[test]
    fn a_model_of_one_process_refuses_what_it_cannot_do() {
        let one = Config::builder().model(ConcurrencyModel::Single);
        let two = one.clone().workers(WorkerCount::new(2).expect("two")).build();
        assert!(two.expect_err("one process").to_string().starts_with("workers = 2 does not fit"));
        one.clone().workers(WorkerCount::new(1).expect("one")).build().expect("fits");
        let spread = one.dispatch(Dispatch::Reuseport).build().expect_err("one process");
        assert!(spread.to_string().starts_with("dispatch = reuseport does not fit"), "{spread}");
    }

    #[test]
    fn threads_are_counted_by_workers_and_the_process_is_one() {
        let four = WorkerCount::new(4).expect("four");
        for (model, processes, threads, pages) in [
            (ConcurrencyModel::Prefork, 4, 1, 1),
            (ConcurrencyModel::Threads, 1, 4, 1),
            (ConcurrencyModel::ThreadPerCore, 1, 4, 4),
        ] {
            let config = Config::builder().model(model).workers(four).build().expect("fits");
            assert_eq!(config.supervisor_config().workers, processes, "{model}");
            assert_eq!(
                (config.threads(), config.scoreboard_page_count()),
                (threads, pages),
                "{model}"
            );
            assert_eq!(config.max_process_connections(), 10_000 * threads, "{model}");
        }
    }

    #[test]
    fn the_same_address_twice_is_refused() {
        let twice = vec![ListenAddr::default(), ListenAddr::default()];
        assert!(Config::builder().bind(twice).build().is_err());
    }
}
