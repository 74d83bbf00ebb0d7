//! The sockets of the admin listener, and the token that goes with them.

use crate::admin::AdminToken;
use crate::config::{Config, missing_token_error};
use crate::error::{Error, Result};
use crate::listener::{ListenAddr, Listener, ListenerSet, ResolvedHosts, SocketKeeper};
use crate::upgrade::{PassedListener, UpgradeManifest};
use prefork_os::fd::take_inherited_fd;
use prefork_supervisor::Slot;

/// How many connections may wait to be accepted by the admin process, also while it is replaced.
const ADMIN_BACKLOG: u32 = 512;

/// The sockets of the admin listener.
#[derive(Debug, Default)]
pub(crate) struct AdminSockets {
    pub(super) set: ListenerSet,
}

/// What an admin process serves with: the addresses and the token of one configuration.
#[derive(Debug, Clone, Default)]
pub(crate) struct AdminSettings {
    /// Empty without an admin listener.
    pub(super) addrs: Vec<ListenAddr>,
    pub(super) token: Option<AdminToken>,
}

impl AdminSockets {
    /// Takes over the sockets of the previous image, in the primary or in a check, which removes no file of them at its end.
    pub(crate) fn inherit(manifest: Option<&UpgradeManifest>) -> Result<AdminSockets> {
        let mut sockets = AdminSockets::default();
        let passed = manifest.and_then(|one| Some((one.pid, one.admin.as_ref()?)));
        let Some((owner, passed)) = passed else { return Ok(sockets) };
        for PassedListener { addr, slot, keeper, fd } in &passed.listeners {
            let fd = take_inherited_fd(*fd)
                .map_err(|e| Error::system(format!("take over the socket of {addr}"), e))?;
            let keeper = SocketKeeper::from_name(keeper);
            sockets.set.inherit(addr.parse()?, Slot(*slot), fd, owner, keeper)?;
        }
        sockets.set.set_started_by_upgrade();
        Ok(sockets)
    }

    /// Opens the sockets of a configuration that are missing, and reads the token. Closes none.
    ///
    /// # Errors
    /// An address cannot be bound, the token file cannot be used, or other machines reach a socket that has no token.
    pub(crate) fn open(
        &mut self,
        config: &Config,
        names: &ResolvedHosts,
    ) -> Result<(AdminSettings, Vec<String>)> {
        let settings = self.resolve(config, names)?;
        let opened = self.set.open_missing_sockets(&settings.addrs, ADMIN_BACKLOG, 1)?;
        self.check_has_token_if_public(&settings)?;
        Ok((settings, opened.locals))
    }

    /// Checks whether [`AdminSockets::open`] would succeed.
    pub(crate) fn check_can_open(&mut self, config: &Config, names: &ResolvedHosts) -> Result<()> {
        let settings = self.resolve(config, names)?;
        self.set.check_can_bind(&settings.addrs, ADMIN_BACKLOG, 1)
    }

    fn resolve(&mut self, config: &Config, names: &ResolvedHosts) -> Result<AdminSettings> {
        let token = config.admin_token_file.as_deref().map(AdminToken::read).transpose()?;
        let mut addrs: Vec<ListenAddr> = config.admin.iter().cloned().collect();
        self.set.set_ipv6_only(config.ipv6_only);
        self.set.resolve_bind_addrs(&mut addrs, names);
        let is_public =
            |addr: &&ListenAddr| matches!(addr, ListenAddr::Tcp(tcp) if !tcp.ip().is_loopback());
        match addrs.iter().find(is_public) {
            Some(addr) if token.is_none() => Err(missing_token_error(addr)),
            _ => Ok(AdminSettings { addrs, token }),
        }
    }

    /// A descriptor that was passed to this process tells its address only when it is open.
    fn check_has_token_if_public(&self, settings: &AdminSettings) -> Result<()> {
        let is_public = |listener: &&Listener| {
            settings.addrs.contains(&listener.addr)
                && listener.tcp().is_some_and(|tcp| !tcp.ip().is_loopback())
        };
        match self.set.listeners.iter().find(is_public) {
            Some(listener) if settings.token.is_none() => Err(missing_token_error(&listener.addr)),
            _ => Ok(()),
        }
    }

    /// Opens sockets again whose file was removed.
    pub(super) fn repair(&mut self, settings: &AdminSettings) -> Result<()> {
        // The old sockets are closed: what waits in their queues cannot be reached either.
        self.set.repair_sockets(&settings.addrs, ADMIN_BACKLOG).map(drop)
    }

    /// Returns the addresses of `settings` as the kernel has them.
    pub(super) fn bound_addr_texts(&self, settings: &AdminSettings) -> Vec<String> {
        let named = |listener: &&Listener| settings.addrs.contains(&listener.addr);
        self.set.listeners.iter().filter(named).map(|one| self.set.local_text(one)).collect()
    }

    /// Takes the sockets of `settings` and closes the others, in an admin process.
    pub(super) fn take_for_process(&mut self, settings: &AdminSettings) -> Vec<Listener> {
        self.set.take_for_worker(&settings.addrs, Slot(0), false)
    }
}
