//! From values to a checked configuration.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::attached::Attached;
use super::{Config, ControlSocket, Dispatch, FdStore, HalfClose, Model, Workers};
use crate::error::{Error, Result};
use crate::listener::ListenAddr;
use crate::log_file::is_same_file;
use crate::privilege::Credentials;

/// Builds a [`Config`]; nothing is checked before [`ConfigBuilder::build`].
#[derive(Debug, Clone)]
#[must_use]
pub struct ConfigBuilder {
    pub(super) config: Config,
}

macro_rules! setters {
    ($($name:ident: $type:ty),* $(,)?) => {$(
        #[doc = concat!("Sets [`Config::", stringify!($name), "`].")]
        pub fn $name(mut self, value: $type) -> ConfigBuilder {
            self.config.$name = value;
            self
        }
    )*};
}

impl ConfigBuilder {
    setters! {
        bind: Vec<ListenAddr>,
        unix_mode: Option<u32>,
        unix_owner: Option<String>,
        unix_group: Option<String>,
        model: Model,
        workers: Workers,
        backlog: u32,
        max_queue_wait: Duration,
        dispatch: Dispatch,
        graceful_timeout: Duration,
        linger_timeout: Duration,
        drain_delay: Duration,
        hand_over: bool,
        boot_timeout: Duration,
        min_uptime: Duration,
        boot_attempts: u32,
        reload_surge: u32,
        reload_max_unavailable: u32,
        max_requests: u32,
        max_rss: u64,
        max_rss_hard: u64,
        max_lifetime: Duration,
        stall_warn: Duration,
        stall_timeout: Duration,
        header_timeout: Duration,
        keep_alive_timeout: Duration,
        body_timeout: Option<Duration>,
        send_timeout: Option<Duration>,
        min_body_rate: Option<u64>,
        min_send_rate: Option<u64>,
        request_timeout: Option<Duration>,
        half_close: HalfClose,
        tcp_keep_alive: Option<Duration>,
        max_header_size: usize,
        worker_connections: u32,
        pool_threads: u32,
        pool_queue: u32,
        pool_nice: u32,
        pool_newest_first: bool,
        pipeline_flush: bool,
        http2: bool,
        user: Option<String>,
        group: Option<String>,
        pid_file: Option<PathBuf>,
        log_file: Option<PathBuf>,
        titles: bool,
        control: ControlSocket,
        fd_store: FdStore,
    }

    /// Attaches settings of the application, for [`Config::attached`] in the workers. A reload brings those of
    /// the new configuration to the new workers. `Send` and `Sync`, as a worker may have several threads.
    pub fn attach<T: Send + Sync + 'static>(mut self, settings: T) -> ConfigBuilder {
        self.config.attached = Attached(Some(Arc::new(settings)));
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
        c.set_unix_access()?;
        fits_model(&c)?;
        in_range("backlog", c.backlog.into(), 1, 65_535)?;
        in_range("boot-attempts", c.boot_attempts.into(), 1, 1_000)?;
        in_range("max-header-size", c.max_header_size as u64, 8 * 1024, 1024 * 1024)?;
        in_range("worker-connections", c.worker_connections.into(), 1, 1_000_000)?;
        in_range("pool-threads", c.pool_threads.into(), 0, 1_024)?;
        in_range("pool-queue", c.pool_queue.into(), 0, 1_000_000)?;
        in_range("pool-nice", c.pool_nice.into(), 0, 19)?;
        for (name, value, least) in [
            ("max-queue-wait", c.max_queue_wait, Duration::ZERO),
            ("graceful-timeout", c.graceful_timeout, Duration::ZERO),
            ("drain-delay", c.drain_delay, Duration::ZERO),
            ("linger-timeout", c.linger_timeout, Duration::ZERO),
            ("boot-timeout", c.boot_timeout, Duration::from_millis(1)),
            ("min-uptime", c.min_uptime, Duration::ZERO),
            ("max-lifetime", c.max_lifetime, Duration::ZERO),
            ("stall-warn", c.stall_warn, Duration::ZERO),
            ("stall-timeout", c.stall_timeout, Duration::ZERO),
            ("header-timeout", c.header_timeout, Duration::from_millis(1)),
            ("keep-alive-timeout", c.keep_alive_timeout, Duration::from_millis(1)),
        ] {
            duration_in_range(name, value, least)?;
        }
        if let (Some(log), Some(pid)) = (&c.log_file, &c.pid_file)
            && is_same_file(log, pid)
        {
            return Err(Error::config(format!(
                "log-file = {} is the pid-file, too: give each a file of its own",
                log.display()
            )));
        }
        for (name, value, least) in [
            ("body-timeout", c.body_timeout, Duration::from_millis(1)),
            ("send-timeout", c.send_timeout, Duration::from_millis(1)),
            ("request-timeout", c.request_timeout, Duration::from_millis(1)),
            ("tcp-keep-alive", c.tcp_keep_alive, MIN_TCP_KEEP_ALIVE),
        ] {
            value.map_or(Ok(()), |value| duration_in_range(name, value, least))?;
        }
        for (name, rate) in [("min-body-rate", c.min_body_rate), ("min-send-rate", c.min_send_rate)]
        {
            rate.map_or(Ok(()), |rate| in_range(name, rate, 1, 1 << 30))?;
        }
        c.credentials = Credentials::look_up(c.user.as_deref(), c.group.as_deref())?;
        Ok(c)
    }
}

/// The shortest time in which TCP keep-alive can notice a vanished host: the kernel counts whole seconds, and four
/// probes come after as many idle seconds.
const MIN_TCP_KEEP_ALIVE: Duration = Duration::from_secs(8);

impl Config {
    /// Gives each Unix socket what it does not say itself, and checks the names.
    fn set_unix_access(&mut self) -> Result<()> {
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

/// Longer than any sensible wait, short enough that no deadline arithmetic overflows.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// A model of one process has one accept queue and, but for threads, one loop.
fn fits_model(c: &Config) -> Result<()> {
    if c.model.is_one_process() && c.dispatch != Dispatch::default() {
        return Err(Error::config(format!(
            "dispatch = {} does not fit model = {}: there is one worker process; leave dispatch out, or give model = \
             prefork",
            c.dispatch, c.model
        )));
    }
    match c.workers {
        Workers::Count(n) if c.model == Model::Single && n.get() > 1 => {
            Err(Error::config(format!(
                "workers = {n} does not fit model = single, which has one: leave workers out, or give another model"
            )))
        }
        Workers::Count(_) | Workers::Auto => Ok(()),
    }
}

fn in_range(name: &str, value: u64, least: u64, most: u64) -> Result<()> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::config(format!("{name} = {value} is out of range: give {least} to {most}")))
}

fn duration_in_range(name: &str, value: Duration, least: Duration) -> Result<()> {
    if (least..=LONGEST).contains(&value) {
        return Ok(());
    }
    Err(Error::config(format!("{name} = {value:?} is out of range: give {least:?} to {LONGEST:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        Config::builder().build().expect("defaults");
    }

    #[test]
    fn bounds_are_named() {
        let error = Config::builder().backlog(0).build().expect_err("0 is out of range");
        assert_eq!(error.to_string(), "backlog = 0 is out of range: give 1 to 65535");
        assert_eq!(error.exit_status(), crate::error::exit::CONFIG);
        assert!(Workers::count(0).is_err());
        assert!(Workers::count(Workers::MAX + 1).is_err());
    }

    #[test]
    fn a_model_of_one_process_refuses_what_it_cannot_do() {
        let one = Config::builder().model(Model::Single);
        let two = one.clone().workers(Workers::count(2).expect("two")).build();
        assert!(two.expect_err("one process").to_string().starts_with("workers = 2 does not fit"));
        one.clone().workers(Workers::count(1).expect("one")).build().expect("fits");
        let spread = one.dispatch(Dispatch::Reuseport).build().expect_err("one process");
        assert!(spread.to_string().starts_with("dispatch = reuseport does not fit"), "{spread}");
    }

    #[test]
    fn threads_are_counted_by_workers_and_the_process_is_one() {
        let four = Workers::count(4).expect("four");
        for (model, processes, threads, rows) in
            [(Model::Prefork, 4, 1, 1), (Model::Threads, 1, 4, 1), (Model::ThreadPerCore, 1, 4, 4)]
        {
            let config = Config::builder().model(model).workers(four).build().expect("fits");
            assert_eq!(config.supervisor_config().workers, processes, "{model}");
            assert_eq!((config.threads(), config.rows()), (threads, rows), "{model}");
            assert_eq!(config.process_connections(), 10_000 * threads, "{model}");
        }
    }

    #[test]
    fn the_same_address_twice_is_refused() {
        let twice = vec![ListenAddr::default(), ListenAddr::default()];
        assert!(Config::builder().bind(twice).build().is_err());
    }
}
