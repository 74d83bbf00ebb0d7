//! The configuration of each generation, and the reading of a new one for a reload.
//!
//! A reload opens its sockets before anything else: an address that cannot be bound fails the reload while nothing has
//! changed. Sockets that no configuration in use names are closed.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use super::Primary;
use super::workers::KilledChildren;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::listener::{HostLookup, ListenAddr, ResolvedHosts};
use crate::upgrade::UpgradeManifest;
use prefork_supervisor::{Event, Generation, Slot, SupervisorConfig, WorkerTag};

/// Reads the configuration again.
pub(crate) type ReadConfig = Box<dyn Fn() -> Result<Config>>;

/// The configurations that workers are forked under, and the one that a reload is reading.
pub(super) struct ConfigStore {
    by_generation: BTreeMap<Generation, Arc<Config>>,
    /// The configuration that was read last.
    last: Arc<Config>,
    read_config: ReadConfig,
    /// The configuration of a reload that waits for host names.
    pending: Option<PendingConfig>,
}

/// A configuration whose host names are being resolved.
struct PendingConfig {
    generation: Generation,
    config: Config,
    lookup: HostLookup,
}

impl ConfigStore {
    pub(super) fn new(
        read_config: ReadConfig,
        config: Arc<Config>,
        manifest: Option<&UpgradeManifest>,
    ) -> ConfigStore {
        let generations = match manifest {
            None => vec![Generation(1)],
            // If the new generation fails, workers of the old one are forked under this configuration too.
            Some(manifest) => {
                vec![Generation(manifest.generation), Generation(manifest.generation + 1)]
            }
        };
        let by_generation = generations.into_iter().map(|each| (each, Arc::clone(&config)));
        let by_generation = by_generation.collect();
        ConfigStore { by_generation, last: config, read_config, pending: None }
    }

    pub(super) fn config_of_generation(&self, generation: Generation) -> Option<&Arc<Config>> {
        self.by_generation.get(&generation)
    }

    /// Returns the configuration of a generation, or the one that was read last if that is gone.
    pub(super) fn config_or_last(&self, generation: Generation) -> &Config {
        self.by_generation.get(&generation).unwrap_or(&self.last)
    }

    pub(super) fn config_of_worker(&self, tag: WorkerTag) -> Result<Arc<Config>> {
        self.config_of_generation(tag.generation).cloned().ok_or_else(|| {
            Error::internal(format!("no configuration for generation {}", tag.generation))
        })
    }

    /// Adds listening addresses to the configuration of every generation.
    pub(super) fn add_bind_addresses(&mut self, addrs: &[ListenAddr]) {
        for config in self.by_generation.values_mut() {
            let missing: Vec<_> =
                addrs.iter().filter(|a| !config.bind.contains(a)).cloned().collect();
            Arc::make_mut(config).bind.extend(missing);
        }
    }

    /// Returns the descriptor that becomes readable when host names are resolved, if a lookup runs.
    pub(super) fn lookup_fd(&self) -> Option<BorrowedFd<'_>> {
        self.pending.as_ref().map(|pending| pending.lookup.as_fd())
    }

    pub(super) fn lookup_deadline(&self) -> Option<Instant> {
        self.pending.as_ref().map(|pending| pending.lookup.deadline)
    }

    /// Returns whether `pid` is the process that resolves host names.
    pub(super) fn is_lookup_pid(&self, pid: u32) -> bool {
        self.pending.as_ref().is_some_and(|pending| pending.lookup.pid == pid)
    }

    /// Reads the configuration again. Returns `None` if its host names have to be resolved first.
    fn read(&mut self, generation: Generation) -> Result<Option<Config>> {
        let config = (self.read_config)()?;
        let Some(lookup) = HostLookup::start(&config.all_listen_addrs())? else {
            return Ok(Some(config));
        };
        self.pending = Some(PendingConfig { generation, config, lookup });
        Ok(None)
    }

    /// Takes the pending configuration, once its lookup is complete or too late.
    fn take_resolved(
        &mut self,
        killed: &mut KilledChildren,
    ) -> Option<(Generation, Config, Result<ResolvedHosts>)> {
        let mut pending = self.pending.take_if(|pending| {
            pending.lookup.is_complete() || pending.lookup.deadline <= Instant::now()
        })?;
        let names = pending.lookup.finish();
        killed.add_child(pending.lookup.pid);
        Some((pending.generation, pending.config, names))
    }

    fn cancel_lookup(&mut self, killed: &mut KilledChildren) {
        if let Some(mut pending) = self.pending.take() {
            let _ = pending.lookup.finish();
            killed.add_child(pending.lookup.pid);
        }
    }

    /// Drops the lookup in a forked worker. The process that resolves the names is the primary's child.
    pub(super) fn drop_lookup_in_worker(&mut self) {
        self.pending = None;
    }
}

impl Primary {
    /// Reads the configuration for `generation`. The result is the next event, or a later one if host names have to be
    /// resolved.
    pub(super) fn read_config(&mut self, generation: Generation) {
        self.repair_control_and_pid_file();
        self.configs.cancel_lookup(&mut self.killed_children);
        match self.configs.read(generation) {
            Ok(None) => {}
            Ok(Some(config)) => {
                self.prepare_generation(generation, config, &ResolvedHosts::default())
            }
            Err(e) => self.report_config_read(Err(e)),
        }
    }

    /// Continues a reload whose host names are resolved, or could not be in time.
    pub(super) fn finish_lookup(&mut self) {
        let resolved = self.configs.take_resolved(&mut self.killed_children);
        let Some((generation, config, names)) = resolved else { return };
        if !self.supervisor.is_awaiting_config(generation) {
            return;
        }
        match names {
            Ok(names) => self.prepare_generation(generation, config, &names),
            Err(e) => self.report_config_read(Err(e)),
        }
    }

    fn prepare_generation(
        &mut self,
        generation: Generation,
        config: Config,
        names: &ResolvedHosts,
    ) {
        let result = self.apply_config(generation, config, names);
        self.report_config_read(result);
    }

    fn report_config_read(&mut self, result: Result<SupervisorConfig>) {
        let result = result.map_err(|e| e.to_string());
        self.pending_events.push_back(Event::ConfigRead { result });
    }

    /// Opens the sockets and files of the new configuration, and keeps it for workers of `generation`.
    fn apply_config(
        &mut self,
        generation: Generation,
        mut config: Config,
        names: &ResolvedHosts,
    ) -> Result<SupervisorConfig> {
        for warning in config.load_tls_certificates()? {
            self.event_log.log_certificate_warning(&warning);
        }
        self.ticket_keys.prepare(config.ticket_lifetime(), &mut self.event_log)?;
        if self.log_file.open_for_reload(generation, config.log_file.as_deref())? {
            self.event_log.log_restart_needed("log-file");
        }
        self.access_log.open_for_reload(generation, &config.access_log)?;
        self.warn_about_fixed_keys(&config);
        self.listeners.set_ipv6_only(config.ipv6_only);
        config.resolve_bind_addrs(&mut self.listeners, names);
        // During the reload the old number of workers may be larger than the new one.
        let configured = config.supervisor_config().workers;
        let slots = self.supervisor.web_workers_after_reload(configured);
        let slots = slots.max(self.supervisor.wanted_workers());
        let slots = match config.dispatch.has_socket_per_slot() {
            true if config.has_socket_per_worker() => self.worker_socket_count(),
            true => slots,
            false => 1,
        };
        self.restore_shut_down_sockets();
        let repaired = self.listeners.repair_sockets(&config.bind, config.backlog)?;
        // Clients reach these sockets and not the old ones, even if this reload fails.
        let repaired = self.replace_sockets(repaired);
        self.serve_with_running_workers(&repaired);
        let opened = self.listeners.open_missing_sockets(&config.bind, config.backlog, slots)?;
        for local in &opened.locals {
            self.event_log.log_listening(local);
        }
        self.serve_with_running_workers(&opened.took_over_traffic);
        // No worker has a socket at a new address yet: what comes there waits for the first one.
        self.steer_connections();
        self.log_shared_sockets(&config);
        self.admin.open_for_reload(generation, &config, names, &mut self.event_log)?;
        self.store_sockets();
        let supervisor_config = config.supervisor_config();
        let config = Arc::new(config);
        self.configs.last = Arc::clone(&config);
        self.configs.by_generation.insert(generation, config);
        Ok(supervisor_config)
    }

    /// Warns about changed keys that only a restart applies.
    fn warn_about_fixed_keys(&mut self, config: &Config) {
        let Some(current) = self.current_config().cloned() else { return };
        for (key, is_same) in [
            ("control", config.control == current.control),
            ("ipv6-only", config.ipv6_only == current.ipv6_only),
            ("pid-file", config.pid_file == current.pid_file),
            ("fd-store", config.fd_store == current.fd_store),
        ] {
            if !is_same {
                self.event_log.log_restart_needed(key);
            }
        }
    }

    /// Drops the configurations of all other generations, and closes the sockets that only those named.
    pub(super) fn keep_generations(&mut self, kept: &[Generation]) {
        let configs = &mut self.configs.by_generation;
        configs.retain(|generation, _| kept.contains(generation));
        let named: Vec<_> = configs.values().flat_map(|config| &config.bind).collect();
        let closed = self.listeners.remove_sockets_not_in(&named);
        for listener in closed.iter().filter(|listener| listener.slot == Slot(0)) {
            self.event_log.log_listener_closed(&self.listeners.local_text(listener));
        }
        self.remove_stored_sockets(&closed);
        self.drain_closed_sockets(&closed);
        self.update_kernel_selector();
        self.warn_of_expiring_certificates();
        let current = self.supervisor.wanted_generation();
        if let Some(config) = self.current_config().cloned() {
            self.output.set_program(&config);
        }
        let Primary { workers, scoreboard, event_log, .. } = self;
        self.log_file.switch_to_generation(current, workers, event_log);
        self.access_log.switch_to_generation(current, workers, scoreboard, event_log);
        self.admin.reopen_log();
        let kept_admin = self.admin.keep_generations(current, kept, &mut self.event_log);
        kept_admin.unwrap_or_else(|e| self.event_log.log_admin_fork_error(&e));
    }
}
