//! The configuration of a cluster: addresses, workers, limits and timeouts. Resolved, checked, and immutable from then on.

// A new key is one row in `fields.rs`, and one in the table of flags, variables and TOML keys (`cli/server_keys.rs`).

mod app_identity;
mod app_settings;
mod bind_options;
mod builder;
mod choice;
mod client_auth;
mod concurrency_model;
mod control_socket;
mod fd_store;
mod fields;
mod half_close;
mod parse_error;
mod request_durations;
mod tls_keys;
mod when_full;
mod worker_count;

use std::any::Any;
use std::time::Duration;

use crate::listener::OwnListener;
use crate::privilege::WorkerCredentials;
use crate::program::Program;

pub use crate::access_log::{AccessLog, AccessLogFormat, AccessLogSample};
pub use crate::dispatch::{Dispatch, KernelProgram};
pub use crate::https_redirect::{Hsts, RedirectAddr};
pub use crate::listener::{BindAddr, HostAddr, ListenAddr, UnixAddr};
pub use builder::ConfigBuilder;
pub(crate) use builder::missing_token_error;
pub(crate) use choice::impl_choice;
pub use client_auth::ClientAuth;
pub use concurrency_model::ConcurrencyModel;
pub use control_socket::ControlSocket;
pub use fd_store::FdStore;
pub use fields::Config;
pub use half_close::HalfClosePolicy;
pub use parse_error::ParseValueError;
pub(crate) use parse_error::parse_choice;
use prefork_supervisor::SupervisorConfig;
pub use request_durations::MeasureDurations;
pub use when_full::WhenFull;
pub use worker_count::WorkerCount;

impl Config {
    /// Starts from the defaults.
    pub fn builder() -> ConfigBuilder {
        ConfigBuilder { config: Config::default() }
    }

    /// Returns the name of the application, set by [`ConfigBuilder::name`].
    pub fn name(&self) -> &str {
        &self.app.name
    }

    /// Returns the version of the application, if [`ConfigBuilder::version`] has set it.
    pub fn version(&self) -> Option<&str> {
        self.app.version.as_deref()
    }

    /// Returns whether workers measure how long requests take.
    pub(crate) fn measures_durations(&self) -> bool {
        match self.request_durations {
            MeasureDurations::On => true,
            MeasureDurations::Auto => self.admin.is_some(),
            MeasureDurations::Off => false,
        }
    }

    /// Returns `NAME VERSION`, or the name alone without a version.
    pub(crate) fn app_and_version(&self) -> String {
        self.app.to_string()
    }

    /// Returns the settings that the application attached with [`ConfigBuilder::app_settings`], if it is of this type.
    pub fn app_settings<T: Any + Send + Sync>(&self) -> Option<&T> {
        self.app_settings.0.as_ref()?.downcast_ref()
    }

    /// Returns the foreign program that the workers run, if there is one.
    pub fn program(&self) -> Option<&Program> {
        self.program.as_deref()
    }

    /// Returns the command line of the program, cut to 256 characters, for the status.
    pub(crate) fn shown_program(&self) -> Option<String> {
        const MAX_CHARS: usize = 256;
        self.program().map(|program| program.command_line().chars().take(MAX_CHARS).collect())
    }

    /// Whether each worker has listening sockets of its own, not only each slot: programs that know nothing of draining leave
    /// connections in theirs.
    pub(crate) fn has_socket_per_worker(&self) -> bool {
        self.program.is_some() && self.dispatch.has_socket_per_slot()
    }

    /// Whether connections are described: for the application, because proxies are trusted, for the client of requests with ids, or
    /// because what requests get depends on their connection.
    pub(crate) fn wants_connection_info(&self) -> bool {
        self.gives_all_requests_info()
            || self.connection_info_path.is_some()
            || self.access_log != AccessLog::Off
            || self.request_id
            || self.has_https_redirect()
            || self.hsts.is_some()
    }

    /// Whether a request for `path` gets its `ConnectionInfo`.
    pub(crate) fn gives_connection_info<'a>(&self, path: impl FnOnce() -> &'a str) -> bool {
        self.gives_all_requests_info()
            || self.connection_info_path.is_some_and(|wanted| wanted == path())
    }

    fn gives_all_requests_info(&self) -> bool {
        self.connection_info || !self.trusted_proxies.is_empty()
    }

    /// Attaches settings of the application.
    #[cfg(feature = "cli")]
    pub(crate) fn with_app_settings<T: Any + Send + Sync>(self, settings: T) -> Config {
        self.into_builder().app_settings(settings).config
    }

    /// Records that the addresses are not the default, so that [`ConfigBuilder::listen`] adds to them.
    #[cfg(feature = "cli")]
    pub(crate) fn set_bind_given(&mut self) {
        self.is_default_bind = false;
    }

    /// Takes the listening sockets that the program made itself.
    pub(crate) fn take_own_listeners(&mut self) -> Vec<OwnListener> {
        std::mem::take(&mut self.own_listeners)
    }

    /// Returns the addresses of the service and of the admin listener.
    pub(crate) fn all_listen_addrs(&self) -> Vec<ListenAddr> {
        self.bind.iter().chain(&self.admin).cloned().collect()
    }

    /// Returns the user and groups that workers change to, if any.
    pub(crate) fn credentials(&self) -> Option<&WorkerCredentials> {
        self.credentials.as_ref()
    }

    /// Turns the configuration back into a builder, to change it. [`ConfigBuilder::listen`] then adds to its addresses.
    pub fn into_builder(self) -> ConfigBuilder {
        ConfigBuilder { config: self }
    }

    /// Returns the most threads of a CPU pool. There is one pool for each worker process.
    pub(crate) fn pool_thread_count(&self) -> usize {
        match self.pool_threads {
            Some(threads) => threads as usize,
            None => cores_per_worker(
                crate::processors::available(),
                self.supervisor_config().workers as usize,
            ),
        }
    }

    /// Returns the number that `auto` stands for, for a key whose value is one.
    #[cfg(feature = "cli")]
    pub(crate) fn resolve_auto(&self, key: &str) -> Option<u32> {
        match key {
            "workers" => Some(self.workers.resolve()),
            "pool-threads" => u32::try_from(self.pool_thread_count()).ok(),
            "reload-surge" => Some(self.supervisor_config().surge),
            _ => None,
        }
    }

    /// Returns how many threads serve in one worker process.
    pub(crate) fn threads(&self) -> u32 {
        if self.model.workers_are_threads() { self.workers.resolve() } else { 1 }
    }

    /// Returns how many worker pages of the scoreboard a worker process writes: each has one writing thread, or is written
    /// with atomic additions.
    pub(crate) fn scoreboard_page_count(&self) -> usize {
        if self.model == ConcurrencyModel::ThreadPerCore { self.threads() as usize } else { 1 }
    }

    /// Returns how many connections a worker process accepts, in all its threads.
    pub(crate) fn max_process_connections(&self) -> u32 {
        self.worker_connections.saturating_mul(self.threads())
    }

    /// Returns how many TLS handshakes of one event loop may be in progress. Half of the connections are for other clients.
    pub(crate) fn max_tls_handshakes(&self) -> usize {
        self.tls_max_handshakes.min(self.worker_connections / 2).max(1) as usize
    }

    pub(crate) fn supervisor_config(&self) -> SupervisorConfig {
        let workers = if self.model.is_one_process() { 1 } else { self.workers.resolve() };
        let max_workers = if self.model.is_one_process() { 1 } else { WorkerCount::MAX };
        SupervisorConfig {
            workers,
            max_workers,
            has_socket_per_slot: self.dispatch.has_socket_per_slot(),
            can_adopt_sockets: self.program.is_none(),
            boot_timeout: self.boot_timeout,
            graceful_timeout: self.graceful_timeout,
            drain_delay: self.drain_delay,
            min_uptime: self.min_uptime,
            boot_attempts: self.boot_attempts,
            backoff_first: Duration::from_millis(100),
            backoff_max: Duration::from_secs(15),
            surge: self.reload_surge.unwrap_or_else(|| workers.div_ceil(4).max(1)),
            max_unavailable: self.reload_max_unavailable,
            max_requests: self.max_requests.map(u64::from),
            max_rss: self.max_rss,
            max_rss_hard: self.max_rss_hard,
            max_lifetime: self.max_lifetime,
            stall_warn: self.stall_warn,
            stall_timeout: self.stall_timeout,
        }
    }
}

/// Returns the share of one worker in the cores, at least one.
fn cores_per_worker(cores: usize, workers: usize) -> usize {
    (cores / workers.max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cores_are_shared_among_the_workers() {
        let shares = [(2, 2), (8, 2), (8, 3), (2, 4), (1, 0)].map(|(c, w)| cores_per_worker(c, w));
        assert_eq!(shares, [1, 4, 2, 1, 1]);
        let config = Config { pool_threads: Some(7), ..Config::default() };
        assert_eq!(config.pool_thread_count(), 7);
    }
}
