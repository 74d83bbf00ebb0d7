//! Reading the configuration again, and the sockets that follow it.
//!
//! A candidate's sockets are opened before anything else is done with it: an address that cannot be bound
//! fails the reload while nothing has changed. Sockets that no configuration in use names are closed.

use std::rc::Rc;

use super::Primary;
use crate::error::Result;
use crate::identity::Generation;
use crate::supervisor::Event;

impl Primary {
    /// Reads the configuration for workers of `generation`.
    pub(super) fn read_config(&mut self, generation: Generation) -> Event {
        let outcome = self.prepare(generation).map_err(|e| e.to_string());
        Event::ConfigRead { outcome }
    }

    fn prepare(&mut self, generation: Generation) -> Result<crate::config::Policy> {
        let config = (self.reread)()?;
        let opened = self.listeners.open_missing(&config.bind, config.backlog)?;
        for local in opened {
            self.journal.opened(&local);
        }
        let policy = config.policy();
        self.configs.insert(generation, Rc::new(config));
        Ok(policy)
    }

    /// Forgets the configurations of all other generations, and the sockets that only they named.
    pub(super) fn keep_generations(&mut self, kept: &[Generation]) {
        self.configs.retain(|generation, _| kept.contains(generation));
        let named: Vec<_> = self.configs.values().flat_map(|config| &config.bind).collect();
        for local in self.listeners.close_unnamed(&named) {
            self.journal.closed(&local);
        }
    }
}
