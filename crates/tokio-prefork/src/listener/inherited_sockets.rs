//! Listening sockets that the service manager holds as well: sockets it created and passed to this process, and sockets
//! of this process in its file descriptor store.
//!
//! ActivationFd sockets are always served, as the unit file says so. They replace a `bind` that was left at its
//! default, and an address that both name is not bound again. Stored sockets are taken back if `bind` names their
//! address.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use socket2::{Domain, Socket};

use super::{ListenAddr, Listener, ListenerSet, bind_socket};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::systemd::{ActivationFd, StoredSocketName, is_stored_socket_name};
use prefork_supervisor::Slot;

/// Which process besides primary and workers keeps a listening socket open, and so whether it listens after the
/// primary's end.
///
/// A socket that is named as `fd://N` counts as the primary's, as its origin is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SocketKeeper {
    /// No other process: the socket closes with the primary and its workers.
    Primary,
    /// The service manager, in its file descriptor store, for the next primary.
    FdStore,
    /// The service manager, which created the socket and passed it to this process.
    ServiceManager,
}

impl SocketKeeper {
    const SOCKET_KEEPER_NAMES: [(&str, SocketKeeper); 3] = [
        ("us", SocketKeeper::Primary),
        ("store", SocketKeeper::FdStore),
        ("manager", SocketKeeper::ServiceManager),
    ];

    /// Returns the name that the upgrade manifest uses.
    pub(crate) fn name(self) -> &'static str {
        SocketKeeper::SOCKET_KEEPER_NAMES
            .iter()
            .find(|(_, one)| *one == self)
            .map_or("us", |(name, _)| name)
    }

    /// Returns the keeper of this name, or `Primary` for a name that an older manifest left empty.
    pub(crate) fn from_name(name: &str) -> SocketKeeper {
        SocketKeeper::SOCKET_KEEPER_NAMES
            .iter()
            .find(|(one, _)| *one == name)
            .map_or(SocketKeeper::Primary, |(_, one)| *one)
    }
}

impl ListenerSet {
    /// Takes the sockets that the service manager created, except those that `bind` names as `fd://N`.
    ///
    /// # Errors
    ///
    /// A descriptor is not a listening stream socket.
    pub(crate) fn take_passed_sockets(
        &mut self,
        passed: &[ActivationFd],
        bind: &[ListenAddr],
    ) -> Result<()> {
        let named = |one: &&ActivationFd| !bind.contains(&ListenAddr::Fd(one.fd));
        for one in passed.iter().filter(|one| !is_stored_socket_name(&one.name)).filter(named) {
            let refuse = |why: String| {
                let ActivationFd { fd, name } = one;
                Error::bind(format!("descriptor {fd} ({name:?} of LISTEN_FDS)"), why)
            };
            let fd = prefork_os::fd::take_inherited_fd(one.fd)
                .map_err(|e| refuse(format!("it was not passed to this process ({e})")))?;
            let socket = Socket::from(fd);
            if !bind_socket::is_stream_listener(&socket) {
                return Err(refuse(
                    "it is not a listening stream socket (give ListenStream= and Accept=no in the \
                     socket unit)"
                        .to_string(),
                ));
            }
            let addr = bind_addr_of(&socket, one.fd);
            self.inherit(
                addr,
                Slot(0),
                socket.into(),
                std::process::id(),
                SocketKeeper::ServiceManager,
            )?;
        }
        Ok(())
    }

    /// Takes the listening sockets that the program made itself. Those that the previous image has passed stay.
    pub(crate) fn take_own_listeners(&mut self, config: &mut Config) -> Result<()> {
        for OwnListener { addr, socket } in config.take_own_listeners() {
            let own = std::process::id();
            match socket.take() {
                Some(fd) if !self.has(&addr, Slot(0)) => {
                    self.inherit(addr, Slot(0), fd, own, SocketKeeper::Primary)?;
                }
                // A duplicate, or taken before.
                Some(_) | None => {}
            }
        }
        Ok(())
    }

    /// Takes the sockets that `bind` names from the descriptor store. Returns the names of the others, for removal from
    /// the store.
    ///
    /// `keeps_program` leaves the BPF program of the previous primary attached. One that reads no memory of the primary still
    /// sends connections to the sockets of its workers, where the first new workers will find them.
    pub(crate) fn take_stored_sockets(
        &mut self,
        passed: &[ActivationFd],
        bind: &[ListenAddr],
        keeps_program: bool,
    ) -> Vec<String> {
        let mut stored: Vec<_> =
            passed.iter().filter(|one| is_stored_socket_name(&one.name)).collect();
        // In the order of the slots: the kernel numbers the sockets of a reuseport group in the order of their
        // creation.
        stored.sort_by_key(|one| StoredSocketName::decode(&one.name).map(|name| name.slot));
        let mut unwanted = Vec::new();
        for one in stored {
            // A socket that cannot be used is bound again, so a failure does not prevent the start.
            let taken = prefork_os::fd::take_inherited_fd(one.fd).is_ok_and(|fd| {
                self.take_stored_socket(&one.name, fd, bind, keeps_program).is_some()
            });
            if !taken {
                unwanted.push(one.name.clone());
            }
        }
        unwanted
    }

    fn take_stored_socket(
        &mut self,
        name: &str,
        fd: OwnedFd,
        bind: &[ListenAddr],
        keeps_program: bool,
    ) -> Option<()> {
        let StoredSocketName { slot, addr } = StoredSocketName::decode(name)?;
        let addr: ListenAddr = addr.parse().ok().filter(|addr| bind.contains(addr))?;
        let socket = Socket::from(fd);
        // Clients cannot reach a Unix socket whose file was removed.
        let lost = matches!(&addr, ListenAddr::Unix(unix)
            if unix.abstract_name().is_none() && !unix.path.exists());
        if lost || !bind_socket::is_stream_listener(&socket) || self.has(&addr, slot) {
            return None;
        }
        if !keeps_program {
            // No process updates the tables of the previous primary's BPF program any more.
            let _ = prefork_os::bpf::detach_reuseport_program(socket.as_fd());
        }
        // The previous primary may have attached a filter that drops new connections.
        let _ = socket.detach_filter();
        self.inherit(addr, slot, socket.into(), std::process::id(), SocketKeeper::FdStore).ok()
    }

    /// Returns the addresses of the sockets that the service manager created.
    pub(crate) fn passed_socket_addrs(&self) -> Vec<ListenAddr> {
        let passed = self.listeners.iter().filter(|one| one.keeper == SocketKeeper::ServiceManager);
        passed.filter(|one| one.slot == Slot(0)).map(|one| one.addr.clone()).collect()
    }

    /// Falls back to one shared socket if no other socket can join `first`: all workers share it. Returns its address.
    ///
    /// # Errors
    ///
    /// The primary created the socket, or its group has several: then `why` is an error.
    pub(super) fn allow_shared_fallback(&self, first: &Listener, why: Error) -> Result<ListenAddr> {
        if first.keeper == SocketKeeper::Primary || self.group_size(&first.addr) > 1 {
            return Err(why);
        }
        log::warn!(
            "{why}; all workers share the socket that was passed, as under dispatch = shared (the kernel lets only \
             sockets of the user who made it join it: let the service bind the address itself, or choose dispatch = \
             shared)"
        );
        Ok(first.addr.clone())
    }
}

impl Listener {
    /// Returns the name of the socket in the file descriptor store, or `None` if it does not belong there.
    pub(crate) fn store_name(&self) -> Option<String> {
        match self.addr {
            ListenAddr::Tcp(_) | ListenAddr::Unix(_)
                if self.keeper != SocketKeeper::ServiceManager =>
            {
                StoredSocketName { slot: self.slot, addr: self.addr.to_string() }.encode()
            }
            _ => None,
        }
    }
}

/// Returns the address of a passed socket as `bind` would name it.
fn bind_addr_of(socket: &Socket, number: i32) -> ListenAddr {
    let local = socket.local_addr().ok();
    let tcp = local.as_ref().and_then(|local| local.as_socket());
    let path = local.as_ref().filter(|_| socket.domain().is_ok_and(|d| d == Domain::UNIX));
    match (tcp, path.and_then(|local| local.as_pathname())) {
        (Some(tcp), _) => ListenAddr::Tcp(tcp),
        (None, Some(path)) => ListenAddr::Unix(path.into()),
        // An abstract or unnamed Unix socket.
        (None, None) => ListenAddr::Fd(number),
    }
}

/// A listening socket that the program made itself.
#[derive(Debug, Clone)]
pub(crate) struct OwnListener {
    addr: ListenAddr,
    socket: SharedOwnFd,
}

/// A descriptor that one of several clones of a configuration takes: none keeps it open in the workers.
#[derive(Debug, Clone)]
struct SharedOwnFd(Arc<Mutex<Option<OwnedFd>>>);

impl SharedOwnFd {
    fn take(&self) -> Option<OwnedFd> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl OwnListener {
    /// # Errors
    /// The descriptor is not a listening stream socket with an address.
    pub(crate) fn new(fd: OwnedFd) -> Result<OwnListener> {
        let number = fd.as_raw_fd();
        let socket = Socket::from(fd);
        let addr = bind_addr_of(&socket, number);
        if !bind_socket::is_stream_listener(&socket) || addr == ListenAddr::Fd(number) {
            return Err(Error::config(format!(
                "descriptor {number} is no listener: give a listening TCP socket, or a Unix socket with a path"
            )));
        }
        Ok(OwnListener { addr, socket: SharedOwnFd(Arc::new(Mutex::new(Some(socket.into())))) })
    }

    pub(crate) fn addr(&self) -> &ListenAddr {
        &self.addr
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addrs(texts: &[&str]) -> Vec<ListenAddr> {
        texts.iter().map(|text| text.parse().expect("address")).collect()
    }

    #[test]
    fn every_socket_keeper_survives_a_round_trip_through_its_name() {
        for keeper in [SocketKeeper::Primary, SocketKeeper::FdStore, SocketKeeper::ServiceManager] {
            assert_eq!(SocketKeeper::from_name(keeper.name()), keeper);
        }
        assert_eq!(SocketKeeper::from_name(""), SocketKeeper::Primary);
    }

    #[test]
    fn stored_sockets_are_taken_back_with_their_slot_and_unwanted_ones_are_reported() {
        let mut set = ListenerSet::default();
        let bind = addrs(&["127.0.0.1:0"]);
        set.open_missing_sockets(&bind, 16, 3).expect("bind");
        let local = set.bound_addrs_of(&bind);
        let passed: Vec<ActivationFd> = set
            .listeners
            .drain(..)
            .rev()
            .map(|one| {
                let name = one.store_name().expect("short");
                let fd = prefork_os::fd::mark_inherited_for_test(one.socket.into());
                ActivationFd { fd, name }
            })
            .collect();
        let mut back = ListenerSet::default();
        assert!(back.take_stored_sockets(&passed, &bind, false).is_empty());
        let slots: Vec<u32> = back.listeners.iter().map(|one| one.slot.0).collect();
        assert_eq!((back.bound_addrs_of(&bind), slots), (local, vec![0, 1, 2]));
        // One has an address that `bind` does not name, the other an invalid name.
        let names = ["prefork-0-127.0.0.1%3A0", "prefork-odd"].map(str::to_string);
        let other = back.listeners.drain(..2).zip(&names);
        let passed: Vec<ActivationFd> = other
            .map(|(one, name)| {
                let fd = prefork_os::fd::mark_inherited_for_test(one.socket.into());
                ActivationFd { fd, name: name.clone() }
            })
            .collect();
        let mut none = ListenerSet::default();
        let mut unwanted = none.take_stored_sockets(&passed, &addrs(&["127.0.0.1:1"]), false);
        unwanted.sort();
        assert!(none.listeners.is_empty());
        assert_eq!(unwanted, names);
    }
}
