//! The listening sockets that a cluster starts with: from the previous image, from the service manager, or newly bound.

use super::Cluster;
use crate::config::FdStore;
use crate::error::{Error, Result};
use crate::listener::{ListenerSet, ResolvedHosts, SocketKeeper};
use crate::primary::{AdminSettings, AdminSockets};
use crate::systemd::{ActivationFd, ServiceEnvironment, ServiceManager};
use crate::upgrade::UpgradeManifest;
use prefork_supervisor::{Slot, workers_after_upgrade};

impl Cluster {
    /// Takes over the sockets that are open already, and adds their addresses to `bind`, now and at each reload.
    pub(super) fn take_inherited_sockets(
        &mut self,
        manifest: Option<&UpgradeManifest>,
        passed: &[ActivationFd],
    ) -> Result<ListenerSet> {
        let mut set = ListenerSet::default();
        if self.config.program().is_some() {
            set.set_has_foreign_programs();
        }
        inherit_listeners(&mut set, manifest)?;
        if manifest.is_some() {
            set.set_started_by_upgrade();
        }
        if manifest.is_none() {
            set.take_passed_sockets(passed, &self.config.bind)?;
        }
        set.take_own_listeners(&mut self.config)?;
        let passed_addrs = set.passed_socket_addrs();
        self.config.add_passed_sockets(&passed_addrs);
        let read_config = std::mem::replace(
            &mut self.read_config,
            Box::new(|| {
                Err(Error::internal("the configuration is read while it is being replaced"))
            }),
        );
        self.read_config = Box::new(move || {
            let mut config = read_config()?;
            config.add_passed_sockets(&passed_addrs);
            Ok(config)
        });
        Ok(set)
    }

    /// Takes over and opens the sockets of the admin listener, and reads its token.
    pub(super) fn open_admin_sockets(
        &self,
        manifest: Option<&UpgradeManifest>,
        names: &ResolvedHosts,
    ) -> Result<(AdminSockets, AdminSettings)> {
        let mut sockets = AdminSockets::inherit(manifest)?;
        match sockets.open(&self.config, names) {
            Ok((settings, _)) => Ok((sockets, settings)),
            Err(e) => {
                // An exec has no way back.
                super::log_error_after_upgrade(e, manifest.is_some())?;
                Ok((AdminSockets::default(), AdminSettings::default()))
            }
        }
    }

    /// Returns how many sockets each address needs.
    pub(super) fn sockets_per_addr(&self, manifest: Option<&UpgradeManifest>) -> u32 {
        let workers = self.config.supervisor_config().workers;
        // Those of workers are opened by the primary, which selects among them.
        let has_socket_per_worker = self.config.has_socket_per_worker();
        match self.config.dispatch.has_socket_per_slot() && !has_socket_per_worker {
            true => manifest.map_or(workers, |manifest| {
                let forked = manifest.environments.iter().filter(|(slot, _)| Slot(*slot).is_web());
                let (current, before) = (manifest.workers_wanted, manifest.workers_configured);
                workers_after_upgrade(current, before, workers, forked.count() as u32).max(current)
            }),
            false => 1,
        }
    }

    /// Returns the service manager, if it wants to be notified. Removes `unwanted` sockets from its store.
    pub(super) fn connect_service_manager(
        &self,
        service: ServiceEnvironment,
        is_upgrade: bool,
        unwanted: &[String],
    ) -> Option<ServiceManager> {
        let stores = match self.config.fd_store {
            FdStore::Auto => service.has_fd_store(),
            FdStore::On => true,
            FdStore::Off => false,
        };
        let app = self.config.app_and_version();
        let mut manager =
            service.service_manager(stores, is_upgrade, self.config.boot_timeout, app)?;
        unwanted.iter().for_each(|name| manager.remove_socket(name));
        Some(manager)
    }
}

/// Takes over the sockets of the previous image.
fn inherit_listeners(set: &mut ListenerSet, manifest: Option<&UpgradeManifest>) -> Result<()> {
    let passed = manifest.into_iter().flat_map(|m| m.listeners.iter().map(|l| (l, m.pid)));
    for (passed, owner) in passed {
        let fd = prefork_os::fd::take_inherited_fd(passed.fd)
            .map_err(|e| Error::system(format!("take over the socket of {}", passed.addr), e))?;
        let keeper = SocketKeeper::from_name(&passed.keeper);
        set.inherit(passed.addr.parse()?, Slot(passed.slot), fd, owner, keeper)?;
    }
    Ok(())
}
