//! Reading the configuration again, and the sockets that follow it.
//!
//! A candidate's sockets are opened before anything else is done with it: an address that cannot be bound
//! fails the reload while nothing has changed. Sockets that no configuration in use names are closed.

use std::rc::Rc;
use std::time::Instant;

use super::Primary;
use crate::config::Config;
use crate::error::Result;
use crate::listener::{HostLookup, ResolvedHosts};
use prefork_supervisor::Event;
use prefork_supervisor::SupervisorConfig;
use prefork_supervisor::{Generation, Slot};

/// A configuration whose host names are being looked up.
pub(super) struct Candidate {
    generation: Generation,
    config: Config,
    pub(super) lookup: HostLookup,
}

impl Primary {
    /// Reads the configuration for workers of `generation`. What comes of it is the next event, or, where host names have
    /// to be looked up first, a later one.
    pub(super) fn read_config(&mut self, generation: Generation) {
        self.repair_files();
        self.stop_lookup();
        let outcome = (self.reread)().and_then(|config| match HostLookup::start(&config.bind)? {
            None => self.prepare(generation, config, &ResolvedHosts::default()).map(Some),
            Some(lookup) => {
                self.candidate = Some(Candidate { generation, config, lookup });
                Ok(None)
            }
        });
        self.config_read(outcome);
    }

    /// Goes on with a reload whose host names are known by now, or will not be.
    pub(super) fn tend_lookup(&mut self) {
        let done = |candidate: &mut Candidate| {
            candidate.lookup.is_complete() || candidate.lookup.deadline <= Instant::now()
        };
        let Some(mut candidate) = self.candidate.take_if(done) else { return };
        let names = candidate.lookup.finish();
        self.bury_lookup(candidate.lookup.pid);
        if !self.supervisor.is_awaiting_config(candidate.generation) {
            return;
        }
        let Candidate { generation, config, .. } = candidate;
        let outcome = names.and_then(|names| self.prepare(generation, config, &names).map(Some));
        self.config_read(outcome);
    }

    fn config_read(&mut self, outcome: Result<Option<SupervisorConfig>>) {
        let outcome = outcome.map_err(|e| e.to_string()).transpose();
        self.pending_events.extend(outcome.map(|result| Event::ConfigRead { result }));
    }

    fn stop_lookup(&mut self) {
        if let Some(mut candidate) = self.candidate.take() {
            let _ = candidate.lookup.finish();
            self.bury_lookup(candidate.lookup.pid);
        }
    }

    /// It has ended, or is about to: then its SIGCHLD brings us back.
    fn bury_lookup(&mut self, pid: u32) {
        if matches!(prefork_os::child::reap_child(pid), Ok(None)) {
            self.stopped_proofs.push(pid);
        }
    }

    fn prepare(
        &mut self,
        generation: Generation,
        mut config: Config,
        names: &ResolvedHosts,
    ) -> Result<SupervisorConfig> {
        if self.log.prepare(generation, &config)? {
            self.event_log.takes_a_restart("log-file");
        }
        self.warn_of_the_fixed(&config);
        self.listeners.resolve_bind_addrs(&mut config.bind, names);
        // For those that there are while it is under way, and those that it wants in the end.
        let slots = config.supervisor_config().workers.max(self.supervisor.wanted_workers());
        let slots = if config.dispatch.has_socket_per_slot() { slots } else { 1 };
        let repaired = self.listeners.repair_sockets(&config.bind, config.backlog);
        let repaired = self.settle_repaired(repaired?);
        // Whatever becomes of this reload: clients reach these, and the old ones no more.
        self.serve_at_once(&repaired);
        let opened = self.listeners.open_missing_sockets(&config.bind, config.backlog, slots)?;
        for local in &opened.locals {
            self.event_log.opened(local);
        }
        self.serve_at_once(&opened.took_over_traffic);
        self.store_sockets();
        let policy = config.supervisor_config();
        self.configs.insert(generation, Rc::new(config));
        Ok(policy)
    }

    /// Some things are made once, at the start.
    fn warn_of_the_fixed(&mut self, config: &Config) {
        let Some(old) = self.current_config().cloned() else { return };
        for (key, same) in [
            ("control", config.control == old.control),
            ("pid-file", config.pid_file == old.pid_file),
            ("fd-store", config.fd_store == old.fd_store),
        ] {
            if !same {
                self.event_log.takes_a_restart(key);
            }
        }
    }

    /// Forgets the configurations of all other generations, and the sockets that only they named.
    pub(super) fn keep_generations(&mut self, kept: &[Generation]) {
        self.configs.retain(|generation, _| kept.contains(generation));
        let named: Vec<_> = self.configs.values().flat_map(|config| &config.bind).collect();
        let closed = self.listeners.remove_sockets_not_in(&named);
        for listener in closed.iter().filter(|listener| listener.slot == Slot(0)) {
            self.event_log.closed(&listener.local.to_string());
        }
        self.unstore(&closed);
        self.empty_groups(&closed);
        self.update_kernel_selector();
        self.switch_log();
    }
}
