//! What the operator asked for: resolved, checked, and immutable from then on.
//!
//! Two steps, kept apart: `raw` is what was *said* (flags, environment, file; each value remembers its
//! source), [`Config`] is what it *means*: every value present and within its bounds.

mod control;
mod draft;
mod environment;
mod file;
pub(crate) mod key;
pub(crate) mod keys;
mod nearest;
mod policy;
pub(crate) mod raw;
mod said;
mod value;

use std::any::Any;
use std::fmt;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::listener::ListenAddr;

pub use control::ControlSocket;
pub(crate) use policy::Policy;

/// How many workers to fork.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Workers {
    /// One for each core this process may use: the affinity mask and the cgroup's CPU quota
    /// (rounded down, at least one) both count.
    #[default]
    Auto,
    /// Exactly so many, from 1 to [`Workers::MAX`].
    Count(NonZeroU32),
}

impl Workers {
    /// The largest accepted number of workers. The scoreboard has room for twice as many.
    pub const MAX: u32 = 1024;

    /// `count` workers; an error outside `1..=`[`Workers::MAX`].
    pub fn count(count: u32) -> Result<Workers> {
        match NonZeroU32::new(count) {
            Some(n) if count <= Workers::MAX => Ok(Workers::Count(n)),
            _ => Err(Error::config(format!(
                "workers = {count} is out of range: give 1 to {}, or auto",
                Workers::MAX
            ))),
        }
    }

    /// The number itself, asking the system where it is [`Workers::Auto`].
    pub fn resolve(self) -> u32 {
        match self {
            Workers::Count(n) => n.get(),
            Workers::Auto => std::thread::available_parallelism()
                .map_or(1, |n| u32::try_from(n.get()).unwrap_or(1).min(Workers::MAX)),
        }
    }
}

/// Settings of the application that travel with a configuration, so that a reload changes both or neither.
#[derive(Clone, Default)]
struct Attached(Option<Rc<dyn Any>>);

impl fmt::Debug for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Attached" } else { "None" })
    }
}

/// The configuration of a cluster. Made by [`Config::builder`]; every field has a default.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Config {
    /// Addresses to listen on, at least one. Default: `127.0.0.1:3000`.
    pub bind: Vec<ListenAddr>,
    /// How many workers. Default: [`Workers::Auto`].
    pub workers: Workers,
    /// Length of the kernel's accept queue, capped by `net.core.somaxconn`. Default: 4096, which is
    /// that cap's own default since Linux 5.4.
    pub backlog: u32,
    /// How long a stopping worker may go on serving before it is cut off. Default: 30 s.
    pub graceful_timeout: Duration,
    /// How long a stopping worker keeps an idle kept-alive connection open, so that a request which
    /// is already on its way is answered instead of reset. Default: 1 s.
    pub linger_timeout: Duration,
    /// A worker that leaves while others go on serving hands its kept-alive HTTP/1.1 connections to
    /// them, between two requests, instead of closing them. Default: on.
    pub hand_over: bool,
    /// How long a worker may take from fork to READY. Default: 30 s.
    pub boot_timeout: Duration,
    /// A worker that dies sooner than this after READY counts towards a crash loop. Default: 1 s.
    pub min_uptime: Duration,
    /// Failed rounds before any worker was ever ready, after which the primary gives up. Default: 5.
    pub boot_attempts: u32,
    /// Workers that a reload may start beyond the wanted number, at a time. 0 stands for a quarter of the
    /// workers, rounded up. Default: 0.
    pub reload_surge: u32,
    /// Workers that may be missing during a reload: those are stopped before their successors start, which
    /// saves memory and costs capacity. Default: 0.
    pub reload_max_unavailable: u32,
    /// A worker is replaced after so many requests, less up to a fifth, so that not all are at the same time.
    /// 0: never. Default: 0.
    pub max_requests: u32,
    /// A worker that uses more resident memory than this, in bytes, is replaced when it has finished what is
    /// open. 0: never. Default: 0.
    pub max_rss: u64,
    /// A worker that uses more resident memory than this, in bytes, is killed and replaced. 0: never.
    /// Default: 0.
    pub max_rss_hard: u64,
    /// A worker is replaced at this age, less up to a fifth. 0: never. Default: 0.
    pub max_lifetime: Duration,
    /// An event loop that has not turned for this long is logged with the request it is working on. 0: never.
    /// Default: 1 s.
    pub stall_warn: Duration,
    /// A worker whose event loop has not turned for this long is killed and replaced. 0: never.
    /// Default: 30 s.
    pub stall_timeout: Duration,
    /// How long a client may take to send a request head. Default: 10 s.
    pub header_timeout: Duration,
    /// How long a kept-alive connection may stay idle. Default: 65 s (longer than the 60 s of common
    /// load balancers, so that they close first).
    pub keep_alive_timeout: Duration,
    /// Largest request head in bytes; beyond it, 431. Default: 16 KiB. At least 8 KiB.
    pub max_header_size: usize,
    /// Open connections a worker accepts before it leaves new ones to the others. Default: 10 000.
    pub worker_connections: u32,
    /// Collect the responses of pipelined requests into one write: about 6 times the pipelined
    /// throughput, but a slow reader's whole body is then buffered in memory. Default: off.
    pub pipeline_flush: bool,
    /// Accept HTTP/2 without TLS from clients that know we speak it (prior knowledge). Default: on.
    pub http2: bool,
    /// Where the primary writes its pid, for others to read: mode 0644, locked while it runs, removed at its
    /// end. Default: none.
    pub pid_file: Option<PathBuf>,
    /// Show `prefork: primary` and `prefork: worker 3 (gen 2)` as command lines. Default: off; the `prefork`
    /// command turns it on.
    pub titles: bool,
    /// Where the primary answers `prefork status` and the like. Default: [`ControlSocket::Off`].
    pub control: ControlSocket,
    attached: Attached,
}

impl Config {
    /// Starts from the defaults.
    pub fn builder() -> ConfigBuilder {
        ConfigBuilder { config: Config::default() }
    }

    /// What the application attached with [`ConfigBuilder::attach`], if it is of this type.
    pub fn attached<T: 'static>(&self) -> Option<&T> {
        self.attached.0.as_ref()?.downcast_ref()
    }

    /// Back to a builder, to change a configuration.
    pub fn rebuild(self) -> ConfigBuilder {
        ConfigBuilder { config: self }
    }

    pub(crate) fn policy(&self) -> Policy {
        let workers = self.workers.resolve();
        let duration = |d: Duration| Some(d).filter(|d| !d.is_zero());
        let number = |n: u64| Some(n).filter(|n| *n > 0);
        Policy {
            workers,
            boot_timeout: self.boot_timeout,
            graceful_timeout: self.graceful_timeout,
            min_uptime: self.min_uptime,
            boot_attempts: self.boot_attempts,
            backoff_first: Duration::from_millis(100),
            backoff_max: Duration::from_secs(15),
            surge: match self.reload_surge {
                0 => workers.div_ceil(4),
                n => n,
            },
            max_unavailable: self.reload_max_unavailable,
            max_requests: number(self.max_requests.into()),
            max_rss: number(self.max_rss),
            max_rss_hard: number(self.max_rss_hard),
            max_lifetime: duration(self.max_lifetime),
            stall_warn: duration(self.stall_warn),
            stall_timeout: duration(self.stall_timeout),
        }
    }
}

impl Default for Config {
    fn default() -> Config {
        Config {
            bind: vec![ListenAddr::default()],
            workers: Workers::Auto,
            backlog: 4096,
            graceful_timeout: Duration::from_secs(30),
            linger_timeout: Duration::from_secs(1),
            hand_over: true,
            boot_timeout: Duration::from_secs(30),
            min_uptime: Duration::from_secs(1),
            boot_attempts: 5,
            reload_surge: 0,
            reload_max_unavailable: 0,
            max_requests: 0,
            max_rss: 0,
            max_rss_hard: 0,
            max_lifetime: Duration::ZERO,
            stall_warn: Duration::from_secs(1),
            stall_timeout: Duration::from_secs(30),
            header_timeout: Duration::from_secs(10),
            keep_alive_timeout: Duration::from_secs(65),
            max_header_size: 16 * 1024,
            worker_connections: 10_000,
            pipeline_flush: false,
            http2: true,
            pid_file: None,
            titles: false,
            control: ControlSocket::Off,
            attached: Attached::default(),
        }
    }
}

/// Builds a [`Config`]; nothing is checked before [`ConfigBuilder::build`].
#[derive(Debug, Clone)]
#[must_use]
pub struct ConfigBuilder {
    config: Config,
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
        workers: Workers,
        backlog: u32,
        graceful_timeout: Duration,
        linger_timeout: Duration,
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
        max_header_size: usize,
        worker_connections: u32,
        pipeline_flush: bool,
        http2: bool,
        pid_file: Option<PathBuf>,
        titles: bool,
        control: ControlSocket,
    }

    /// Attaches settings of the application, for [`Config::attached`] in the workers. A reload brings those of
    /// the new configuration to the new workers.
    pub fn attach<T: 'static>(mut self, settings: T) -> ConfigBuilder {
        self.config.attached = Attached(Some(Rc::new(settings)));
        self
    }

    /// Sets [`Config::bind`] to one address in text: `HOST:PORT`, `unix:PATH` or `fd://N`.
    pub fn listen(mut self, addr: &str) -> Result<ConfigBuilder> {
        self.config.bind = vec![addr.parse()?];
        Ok(self)
    }

    /// Checks every value against its bounds.
    pub fn build(self) -> Result<Config> {
        let c = self.config;
        if c.bind.is_empty() {
            return Err(Error::config("no address to listen on: give at least one bind"));
        }
        if let Some(twice) = c.bind.iter().enumerate().find(|(i, a)| c.bind[..*i].contains(a)) {
            return Err(Error::config(format!("bind = {} is given twice", twice.1)));
        }
        in_range("backlog", c.backlog.into(), 1, 65_535)?;
        in_range("boot-attempts", c.boot_attempts.into(), 1, 1_000)?;
        in_range("max-header-size", c.max_header_size as u64, 8 * 1024, 1024 * 1024)?;
        in_range("worker-connections", c.worker_connections.into(), 1, 1_000_000)?;
        for (name, value, least) in [
            ("graceful-timeout", c.graceful_timeout, Duration::ZERO),
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
        Ok(c)
    }
}

/// Longer than any sensible wait, short enough that no deadline arithmetic overflows.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

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
    fn the_same_address_twice_is_refused() {
        let twice = vec![ListenAddr::default(), ListenAddr::default()];
        assert!(Config::builder().bind(twice).build().is_err());
    }
}
