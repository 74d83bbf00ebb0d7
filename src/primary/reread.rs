//! Reading the configuration again, and the sockets that follow it.
//!
//! A candidate's sockets are opened before anything else is done with it: an address that cannot be bound
//! fails the reload while nothing has changed. Sockets that no configuration in use names are closed.

use std::rc::Rc;

use super::Primary;
use crate::config::Config;
use crate::error::Result;
use crate::identity::{Generation, Slot};
use crate::supervisor::Event;

impl Primary {
    /// Reads the configuration for workers of `generation`.
    pub(super) fn read_config(&mut self, generation: Generation) -> Event {
        let outcome = self.prepare(generation).map_err(|e| e.to_string());
        Event::ConfigRead { outcome }
    }

    fn prepare(&mut self, generation: Generation) -> Result<crate::config::Policy> {
        let config = (self.reread)()?;
        if self.log.prepare(generation, &config)? {
            self.journal.takes_a_restart("log-file");
        }
        self.warn_of_the_fixed(&config);
        // For those that there are while it is under way, and those that it wants in the end.
        let slots = config.policy().workers.max(self.supervisor.wanted());
        let slots = if config.dispatch.has_socket_per_slot() { slots } else { 1 };
        let opened = self.listeners.open_missing(&config.bind, config.backlog, slots)?;
        for local in opened {
            self.journal.opened(&local);
        }
        self.store_sockets();
        let policy = config.policy();
        self.configs.insert(generation, Rc::new(config));
        Ok(policy)
    }

    /// Some things are made once, at the start.
    fn warn_of_the_fixed(&mut self, config: &Config) {
        let Some(old) = self.config_in_force().cloned() else { return };
        for (key, same) in [
            ("control", config.control == old.control),
            ("pid-file", config.pid_file == old.pid_file),
            ("fd-store", config.fd_store == old.fd_store),
        ] {
            if !same {
                self.journal.takes_a_restart(key);
            }
        }
    }

    /// Forgets the configurations of all other generations, and the sockets that only they named.
    pub(super) fn keep_generations(&mut self, kept: &[Generation]) {
        self.configs.retain(|generation, _| kept.contains(generation));
        let named: Vec<_> = self.configs.values().flat_map(|config| &config.bind).collect();
        let closed = self.listeners.remove_unnamed(&named);
        for listener in closed.iter().filter(|listener| listener.slot == Slot(0)) {
            self.journal.closed(&listener.local);
        }
        self.unstore(&closed);
        self.empty_groups(&closed);
        self.tend_steering();
        self.switch_log();
    }
}
