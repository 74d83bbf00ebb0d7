//! The sockets that a cluster begins with: left by the image before this one, passed by the service manager, or bound.

use super::Cluster;
use crate::config::FdStore;
use crate::error::{Error, Result};
use crate::listener::{ListenerSet, SocketKeeper, add_passed_sockets};
use crate::systemd::{Manager, Passed, Service};
use crate::upgrade::Manifest;
use prefork_supervisor::Slot;

impl Cluster {
    /// Those that there are already, all of which are listened on. From here on `bind` names them, now and after a
    /// reload.
    pub(super) fn take_sockets(
        &mut self,
        left: Option<&Manifest>,
        passed: &[Passed],
    ) -> Result<ListenerSet> {
        let mut set = inherit(left)?;
        if left.is_some() {
            set.set_started_by_upgrade();
        }
        if left.is_none() {
            set.take_passed(passed, &self.config.bind)?;
        }
        let given = set.passed_addrs();
        add_passed_sockets(&mut self.config.bind, &given);
        let reread = std::mem::replace(
            &mut self.reread,
            Box::new(|| {
                Err(Error::internal("the configuration is read while it is being replaced"))
            }),
        );
        self.reread = Box::new(move || {
            let mut config = reread()?;
            add_passed_sockets(&mut config.bind, &given);
            Ok(config)
        });
        Ok(set)
    }

    /// How many sockets each address needs, with `left` by the image before this one.
    pub(super) fn slots(&self, left: Option<&Manifest>) -> u32 {
        let workers = self.config.supervisor_config().workers;
        match self.config.dispatch.has_socket_per_slot() {
            true => left.map_or(workers, |manifest| workers.max(manifest.workers_wanted)),
            false => 1,
        }
    }

    /// The service manager, if there is one. What it kept for us and is `unwanted` it is to forget.
    pub(super) fn manager(
        &self,
        service: Service,
        taken_over: bool,
        unwanted: &[String],
    ) -> Option<Manager> {
        let stores = match self.config.fd_store {
            FdStore::Auto => service.keeps(),
            FdStore::On => true,
            FdStore::Off => false,
        };
        let mut manager = service.manager(stores, taken_over, self.config.boot_timeout)?;
        unwanted.iter().for_each(|name| manager.forget(name));
        Some(manager)
    }
}

/// The sockets of the image before this one.
fn inherit(left: Option<&Manifest>) -> Result<ListenerSet> {
    let mut set = ListenerSet::default();
    let passed = left.into_iter().flat_map(|m| m.listeners.iter().map(|l| (l, m.pid)));
    for (passed, owner) in passed {
        let fd = prefork_os::fd::take_inherited_fd(passed.fd)
            .map_err(|e| Error::system(format!("take over the socket of {}", passed.addr), e))?;
        let keeper = SocketKeeper::from_name(&passed.keeper);
        set.inherit(passed.addr.parse()?, Slot(passed.slot), fd, owner, keeper)?;
    }
    Ok(set)
}
