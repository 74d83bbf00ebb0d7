//! Where a parked connection comes from.

use std::os::fd::AsFd;

use super::{ParkedConnections, ParkedInfo};
use crate::client::{ConnectionInfo, ProxiedClient};
use crate::worker::local_state::LocalWorkerState;
use prefork_os::socket_name::{SocketName, peer_name};

impl ParkedConnections {
    /// Returns what is kept of `info`.
    pub(super) fn keep_info(&self, info: &ConnectionInfo) -> ParkedInfo {
        let proxied = info.proxied_client();
        ParkedInfo {
            peer: info.peer_addr(),
            listener: info.listener_name().clone(),
            proxied: proxied.map(|client| self.slab.borrow_mut().proxied.insert(client)),
        }
    }

    /// Describes a connection again that is no longer parked.
    pub(super) fn restore_info(
        &self,
        state: &LocalWorkerState,
        connection: impl AsFd,
        kept: ParkedInfo,
    ) -> ConnectionInfo {
        let peer = match kept.peer {
            Some(addr) => SocketName::Tcp(addr),
            None => peer_name(&connection).unwrap_or(SocketName::Unix(None)),
        };
        let trusted = &state.config.trusted_proxies;
        let info = ConnectionInfo::accepted(connection, peer, &kept.listener, trusted);
        let proxied = kept.proxied.and_then(|at| self.slab.borrow_mut().proxied.remove(at));
        match proxied {
            Some(client) => info.with_proxied_client(client),
            None => info,
        }
    }

    /// Forgets what was kept of a connection that has closed or moved to another worker.
    pub(super) fn drop_info(&self, kept: Option<ParkedInfo>) {
        if let Some(at) = kept.and_then(|kept| kept.proxied) {
            self.slab.borrow_mut().proxied.remove(at);
        }
    }

    /// Returns what the PROXY header has said, for another worker.
    pub(super) fn proxied_client(&self, kept: Option<&ParkedInfo>) -> Option<ProxiedClient> {
        let at = kept?.proxied?;
        self.slab.borrow().proxied.get(at).copied()
    }
}
