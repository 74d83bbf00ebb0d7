//! What the operator asked for: resolved, checked, and immutable from then on.
//!
//! Two steps, kept apart: `raw` is what was *said* (flags, environment, file; each value remembers its
//! source), [`Config`] is what it *means*: every value present and within its bounds.

mod attached;
mod builder;
mod control;
mod dispatch;
mod fd_store;
mod half_close;
mod model;
mod workers;

use std::any::Any;
use std::path::PathBuf;
use std::time::Duration;

use crate::listener::ListenAddr;
use crate::privilege::Credentials;

use attached::Attached;
pub use builder::ConfigBuilder;
pub use control::ControlSocket;
pub use dispatch::Dispatch;
pub use fd_store::FdStore;
pub use half_close::HalfClose;
pub use model::Model;
use prefork_supervisor::SupervisorConfig;
pub use workers::Workers;

/// The configuration of a cluster. Made by [`Config::builder`]; every field has a default.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Config {
    /// Addresses to listen on, at least one. Default: `127.0.0.1:3000`.
    pub bind: Vec<ListenAddr>,
    /// Permissions of the files of Unix sockets that name none themselves ([`UnixAddr::mode`](crate::UnixAddr::mode)).
    /// Default: what the umask leaves of 0777.
    pub unix_mode: Option<u32>,
    /// Who owns those files, by name or number. Default: the user who starts the primary.
    pub unix_owner: Option<String>,
    /// Their group, by name or number. Default: that of the primary.
    pub unix_group: Option<String>,
    /// What serves the connections: processes or threads. Default: [`Model::Prefork`].
    pub model: Model,
    /// How many workers; threads under [`Model::Threads`] and [`Model::ThreadPerCore`]. Default: [`Workers::Auto`].
    pub workers: Workers,
    /// Length of the kernel's accept queue, capped by `net.core.somaxconn`. Default: 4096, which is
    /// that cap's own default since Linux 5.4.
    pub backlog: u32,
    /// A TCP connection that waited in that queue for longer gets a 503 with `Retry-After` at once, in a step of a
    /// kernel tick (1 to 10 ms). Not in clusters of [`Cluster::serve_connections`](crate::Cluster::serve_connections),
    /// which get every connection. 0: never. Default: 0.
    pub max_queue_wait: Duration,
    /// Who gets the next connection. Default: [`Dispatch::Shared`], which is all that a model of one process has.
    pub dispatch: Dispatch,
    /// How long a stopping worker may go on serving before it is cut off. Default: 30 s.
    pub graceful_timeout: Duration,
    /// How long a stopping worker keeps an idle kept-alive connection open, so that a request which
    /// is already on its way is answered instead of reset. Default: 1 s.
    pub linger_timeout: Duration,
    /// How long a stopping cluster goes on accepting and serving while [`Worker::is_ready`](crate::Worker::is_ready)
    /// says no already, so that balancers can send new connections elsewhere. A second request to stop ends it.
    /// Default: 0.
    pub drain_delay: Duration,
    /// A worker that leaves while others go on serving hands its kept-alive HTTP/1.1 connections to
    /// them, between two requests, instead of closing them. Default: on; never under [`Model::Threads`].
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
    /// How long to wait for the next bytes of a request body before the request is refused with 408, or the connection
    /// closed where the response has begun. Counts only while the handler wants to read, and for the first bytes in any
    /// case, which hyper reads before the handler asks. `None`: no limit. Default: 60 s.
    pub body_timeout: Option<Duration>,
    /// How long to wait for the client to take the next bytes of a response before the connection is closed. `None`: no
    /// limit. Default: 60 s.
    pub send_timeout: Option<Duration>,
    /// The fewest bytes per second of a request body, over each 5 s of waiting for them; below, as for `body_timeout`.
    /// `None`: no limit. Default: none.
    pub min_body_rate: Option<u64>,
    /// The fewest bytes per second of a response, over each 5 s of waiting for the client to take them; below, as for
    /// `send_timeout`. `None`: no limit. Default: none.
    pub min_send_rate: Option<u64>,
    /// How long a request may take, from its head to the end of its response. After that its handler is dropped and the
    /// answer is 503; where the response has begun, the connection (HTTP/2: the stream) is closed. A handler changes it
    /// for its own request with [`RequestDeadline`](crate::RequestDeadline). `None`: no limit. Default: none.
    pub request_timeout: Option<Duration>,
    /// What becomes of HTTP/1 clients that close their sending side while they wait for a response. Default:
    /// [`HalfClose::Probe`].
    pub half_close: HalfClose,
    /// How long a TCP connection whose host has vanished is kept: TCP keep-alive begins to probe after half of it.
    /// `None`: the kernel does not probe. Default: 2 min.
    pub tcp_keep_alive: Option<Duration>,
    /// Largest request head in bytes; beyond it, 431. Default: 16 KiB. At least 8 KiB.
    pub max_header_size: usize,
    /// Open connections a worker accepts before it leaves new ones to the others; so many for each thread where
    /// `workers` counts threads. Default: 10 000.
    pub worker_connections: u32,
    /// Threads of each worker's CPU pool. 0 stands for the cores this process may use, shared among the
    /// workers, at least one. Default: 0.
    pub pool_threads: u32,
    /// Jobs that may wait in each worker's CPU pool; beyond, [`PoolError::Full`](crate::pool::PoolError).
    /// Default: 256.
    pub pool_queue: u32,
    /// How much the threads of the CPU pool give way to the event loops, as a nice value from 0 to 19.
    /// Default: 19.
    pub pool_nice: u32,
    /// While its queue is more than half full, a CPU pool runs the newest job first, as the callers of the
    /// oldest have most likely given up. Default: off.
    pub pool_newest_first: bool,
    /// Has no effect: responses of pipelined requests that are ready together always leave in one write, of up to
    /// 32 KiB. Default: false.
    pub pipeline_flush: bool,
    /// Accept HTTP/2 without TLS from clients that know we speak it (prior knowledge). Default: on.
    pub http2: bool,
    /// The user that workers become, by name or number, with its groups and without any capability; the primary stays
    /// root, as which it has to be started then. Default: none, they stay what the primary is.
    pub user: Option<String>,
    /// Their group, by name or number, in place of the one that `user` has. Default: none.
    pub group: Option<String>,
    /// Where the primary writes its pid, for others to read: mode 0644, locked while it runs, removed at its
    /// end. Default: none.
    pub pid_file: Option<PathBuf>,
    /// Append the log, and whatever else is printed to standard error, to this file; SIGUSR1 opens it anew after
    /// it was renamed. Default: none, the log goes to standard error.
    pub log_file: Option<PathBuf>,
    /// Show `prefork: primary` and `prefork: worker 3 (gen 2)` as command lines. Default: off; the `prefork`
    /// command turns it on.
    pub titles: bool,
    /// Where the primary answers `prefork status` and the like. Default: [`ControlSocket::Off`].
    pub control: ControlSocket,
    /// Whether systemd keeps the listening sockets, so that they outlive a primary that is killed. Default:
    /// [`FdStore::Auto`].
    pub fd_store: FdStore,
    attached: Attached,
    /// What `user` and `group` are in numbers.
    credentials: Option<Credentials>,
}

impl Config {
    /// Starts from the defaults.
    pub fn builder() -> ConfigBuilder {
        ConfigBuilder { config: Config::default() }
    }

    /// What the application attached with [`ConfigBuilder::attach`], if it is of this type.
    pub fn attached<T: Any + Send + Sync>(&self) -> Option<&T> {
        self.attached.0.as_ref()?.downcast_ref()
    }

    /// Whom workers become, if they do.
    pub(crate) fn credentials(&self) -> Option<&Credentials> {
        self.credentials.as_ref()
    }

    /// Back to a builder, to change a configuration.
    pub fn rebuild(self) -> ConfigBuilder {
        ConfigBuilder { config: self }
    }

    /// How many threads a CPU pool has. There is one for each worker, and for each thread with a loop of its own.
    pub(crate) fn threads_of_pool(&self) -> usize {
        match self.pool_threads as usize {
            0 => share_of_cores(
                std::thread::available_parallelism().map_or(1, usize::from),
                self.supervisor_config().workers as usize * self.rows(),
            ),
            n => n,
        }
    }

    /// How many threads serve in one worker process.
    pub(crate) fn threads(&self) -> u32 {
        if self.model.counts_threads() { self.workers.resolve() } else { 1 }
    }

    /// How many rows of the scoreboard a worker process writes: each has one writing thread, or is written with
    /// atomic additions.
    pub(crate) fn rows(&self) -> usize {
        if self.model == Model::ThreadPerCore { self.threads() as usize } else { 1 }
    }

    /// Open connections that a worker process takes, in all its threads.
    pub(crate) fn process_connections(&self) -> u32 {
        self.worker_connections.saturating_mul(self.threads())
    }

    pub(crate) fn supervisor_config(&self) -> SupervisorConfig {
        let workers = if self.model.is_one_process() { 1 } else { self.workers.resolve() };
        let max_workers = if self.model.is_one_process() { 1 } else { Workers::MAX };
        let duration = |d: Duration| Some(d).filter(|d| !d.is_zero());
        let number = |n: u64| Some(n).filter(|n| *n > 0);
        SupervisorConfig {
            workers,
            max_workers,
            has_socket_per_slot: self.dispatch.has_socket_per_slot(),
            boot_timeout: self.boot_timeout,
            graceful_timeout: self.graceful_timeout,
            drain_delay: self.drain_delay,
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

/// The cores of one of so many workers, at least one.
fn share_of_cores(cores: usize, workers: usize) -> usize {
    (cores / workers.max(1)).max(1)
}

impl Default for Config {
    fn default() -> Config {
        Config {
            bind: vec![ListenAddr::default()],
            unix_mode: None,
            unix_owner: None,
            unix_group: None,
            model: Model::Prefork,
            workers: Workers::Auto,
            backlog: 4096,
            max_queue_wait: Duration::ZERO,
            dispatch: Dispatch::Shared,
            graceful_timeout: Duration::from_secs(30),
            linger_timeout: Duration::from_secs(1),
            drain_delay: Duration::ZERO,
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
            body_timeout: Some(Duration::from_secs(60)),
            send_timeout: Some(Duration::from_secs(60)),
            min_body_rate: None,
            min_send_rate: None,
            request_timeout: None,
            half_close: HalfClose::Probe,
            tcp_keep_alive: Some(Duration::from_secs(120)),
            max_header_size: 16 * 1024,
            worker_connections: 10_000,
            pool_threads: 0,
            pool_queue: 256,
            pool_nice: 19,
            pool_newest_first: false,
            pipeline_flush: false,
            http2: true,
            user: None,
            group: None,
            pid_file: None,
            log_file: None,
            titles: false,
            control: ControlSocket::Off,
            fd_store: FdStore::Auto,
            attached: Attached::default(),
            credentials: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cores_are_shared_among_the_workers() {
        let shares = [(2, 2), (8, 2), (8, 3), (2, 4), (1, 0)].map(|(c, w)| share_of_cores(c, w));
        assert_eq!(shares, [1, 4, 2, 1, 1]);
        let config = Config { pool_threads: 7, ..Config::default() };
        assert_eq!(config.threads_of_pool(), 7);
    }
}
