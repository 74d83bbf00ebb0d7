//! Sockets that the service manager has, too: those that it made and passed to us, and ours that it keeps for the primary
//! that comes after us.
//!
//! What a unit's sockets are for is said in the unit, so they are served whatever `bind` says; a `bind` that was left at its
//! default is replaced by them, and an address that both name is not bound again. What we had stored ourselves
//! is taken back as far as `bind` names it.

use std::os::fd::{AsFd, OwnedFd};

use socket2::{Domain, Socket};

use super::{ListenAddr, Listener, ListenerSet, bind_socket};
use crate::error::{Error, Result};
use crate::systemd::{Passed, StoreName, is_stored};
use prefork_supervisor::Slot;

/// Who has a listening socket besides the workers and this process, and so whether it listens after our end. (Who passed a
/// socket that is named as `fd://N` is not known: it counts as ours, and is left as it is in the end.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keeper {
    /// Nobody.
    Us,
    /// The service manager keeps it for us.
    Store,
    /// Whoever made it and passed it to us.
    Manager,
}

impl Keeper {
    const NAMES: [(&str, Keeper); 3] =
        [("us", Keeper::Us), ("store", Keeper::Store), ("manager", Keeper::Manager)];

    /// As it crosses an upgrade.
    pub(crate) fn name(self) -> &'static str {
        Keeper::NAMES.iter().find(|(_, one)| *one == self).map_or("us", |(name, _)| name)
    }

    /// An image that knew no keepers says nothing.
    pub(crate) fn named(name: &str) -> Keeper {
        Keeper::NAMES.iter().find(|(one, _)| *one == name).map_or(Keeper::Us, |(_, one)| *one)
    }
}

/// `bind` with the addresses of sockets that were passed: instead of the default, or besides what is named.
pub(crate) fn serve_passed(bind: &mut Vec<ListenAddr>, passed: &[ListenAddr]) {
    if passed.is_empty() {
        return;
    }
    if *bind == [ListenAddr::default()] {
        bind.clear();
    }
    for addr in passed {
        if !bind.contains(addr) {
            bind.push(addr.clone());
        }
    }
}

impl ListenerSet {
    /// Takes the sockets that the manager made. Those that `bind` names as `fd://N` are left to be taken as such.
    ///
    /// # Errors
    /// One is not a listening stream socket.
    pub(crate) fn take_passed(&mut self, passed: &[Passed], bind: &[ListenAddr]) -> Result<()> {
        let named = |one: &&Passed| !bind.contains(&ListenAddr::Fd(one.number));
        for one in passed.iter().filter(|one| !is_stored(&one.name)).filter(named) {
            let refuse = |why: String| {
                let Passed { number, name } = one;
                Error::bind(format!("descriptor {number} ({name:?} of LISTEN_FDS)"), why)
            };
            let fd = prefork_os::fd::take_inherited_fd(one.number)
                .map_err(|e| refuse(format!("it was not passed to this process ({e})")))?;
            let socket = Socket::from(fd);
            if !bind_socket::is_stream_listener(&socket) {
                return Err(refuse(
                    "it is not a listening stream socket (give ListenStream= and Accept=no in the \
                     socket unit)"
                        .to_string(),
                ));
            }
            let addr = address(&socket, one.number);
            self.inherit(addr, Slot(0), socket.into(), std::process::id(), Keeper::Manager)?;
        }
        Ok(())
    }

    /// Takes back the sockets that the manager kept for us and `bind` names. Returns the names of those that it may let
    /// go of.
    pub(crate) fn take_stored(&mut self, passed: &[Passed], bind: &[ListenAddr]) -> Vec<String> {
        let mut stored: Vec<_> = passed.iter().filter(|one| is_stored(&one.name)).collect();
        // In the order of the slots, as they were opened.
        stored.sort_by_key(|one| StoreName::decode(&one.name).map(|name| name.slot));
        let mut unwanted = Vec::new();
        for one in stored {
            // What cannot be used is opened anew, so this is no reason not to start.
            let taken = prefork_os::fd::take_inherited_fd(one.number)
                .is_ok_and(|fd| self.take_back(&one.name, fd, bind).is_some());
            if !taken {
                unwanted.push(one.name.clone());
            }
        }
        unwanted
    }

    fn take_back(&mut self, name: &str, fd: OwnedFd, bind: &[ListenAddr]) -> Option<()> {
        let StoreName { slot, addr } = StoreName::decode(name)?;
        let addr: ListenAddr = addr.parse().ok().filter(|addr| bind.contains(addr))?;
        let socket = Socket::from(fd);
        // The file of a Unix socket that somebody has removed leads nobody here any more.
        let lost = matches!(&addr, ListenAddr::Unix(unix)
            if unix.abstract_name().is_none() && !unix.path.exists());
        if lost || !bind_socket::is_stream_listener(&socket) || self.has(&addr, slot) {
            return None;
        }
        // A program of the primary before this one chooses by what nobody keeps up to date any more.
        let _ = prefork_os::bpf::detach_reuseport_program(socket.as_fd());
        // Nor is it closed to newcomers, whatever was meant when that primary ended.
        let _ = socket.detach_filter();
        self.inherit(addr, slot, socket.into(), std::process::id(), Keeper::Store).ok()
    }

    /// The addresses of sockets that were passed to us.
    pub(crate) fn passed(&self) -> Vec<ListenAddr> {
        let passed = self.listeners.iter().filter(|one| one.keeper == Keeper::Manager);
        passed.filter(|one| one.slot == Slot(0)).map(|one| one.addr.clone()).collect()
    }

    /// The address of a socket that somebody else made and no other socket can join, which is no reason not to serve it.
    pub(super) fn stays_alone(&self, first: &Listener, why: Error) -> Result<ListenAddr> {
        if first.keeper == Keeper::Us || self.group(&first.addr) > 1 {
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
    /// The name under which the manager is to keep it; `None` if it should not.
    pub(crate) fn store_name(&self) -> Option<String> {
        match self.addr {
            ListenAddr::Tcp(_) | ListenAddr::Unix(_) if self.keeper != Keeper::Manager => {
                StoreName { slot: self.slot, addr: self.addr.to_string() }.encode()
            }
            _ => None,
        }
    }
}

/// Where a socket listens, in the words in which `bind` would say it.
fn address(socket: &Socket, number: i32) -> ListenAddr {
    let local = socket.local_addr().ok();
    let tcp = local.as_ref().and_then(|local| local.as_socket());
    let path = local.as_ref().filter(|_| socket.domain().is_ok_and(|d| d == Domain::UNIX));
    match (tcp, path.and_then(|local| local.as_pathname())) {
        (Some(tcp), _) => ListenAddr::Tcp(tcp),
        (None, Some(path)) => ListenAddr::Unix(path.into()),
        // It has a name that is no file.
        (None, None) => ListenAddr::Fd(number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addrs(texts: &[&str]) -> Vec<ListenAddr> {
        texts.iter().map(|text| text.parse().expect("address")).collect()
    }

    #[test]
    fn sockets_that_were_passed_replace_the_default_and_join_what_is_named() {
        for (bind, passed, served) in [
            (&["127.0.0.1:3000"][..], &[][..], &["127.0.0.1:3000"][..]),
            (&["127.0.0.1:3000"], &["[::]:80", "unix:/run/a"], &["[::]:80", "unix:/run/a"]),
            (&["127.0.0.1:3000"], &["127.0.0.1:3000"], &["127.0.0.1:3000"]),
            (&[":80", "127.0.0.1:1"], &["[::]:80"], &["[::]:80", "127.0.0.1:1"]),
            (&["127.0.0.1:1"], &["fd://3"], &["127.0.0.1:1", "fd://3"]),
        ] {
            let mut fitted = addrs(bind);
            serve_passed(&mut fitted, &addrs(passed));
            assert_eq!(fitted, addrs(served));
        }
    }

    #[test]
    fn a_keeper_is_read_as_it_was_written() {
        for keeper in [Keeper::Us, Keeper::Store, Keeper::Manager] {
            assert_eq!(Keeper::named(keeper.name()), keeper);
        }
        assert_eq!(Keeper::named(""), Keeper::Us);
    }

    #[test]
    fn what_is_stored_comes_back_under_its_slot_and_the_rest_may_go() {
        let mut set = ListenerSet::default();
        let bind = addrs(&["127.0.0.1:0"]);
        set.open_missing(&bind, 16, 3).expect("bind");
        let local = set.locals();
        let passed: Vec<Passed> = set
            .listeners
            .drain(..)
            .rev()
            .map(|one| {
                let name = one.store_name().expect("short");
                let number = prefork_os::fd::leave_open_for_test(one.socket.into());
                Passed { number, name }
            })
            .collect();
        let mut back = ListenerSet::default();
        assert!(back.take_stored(&passed, &bind).is_empty());
        let slots: Vec<u32> = back.listeners.iter().map(|one| one.slot.0).collect();
        assert_eq!((back.locals(), slots), (local, vec![0, 1, 2]));
        // Nobody asks for that address any more, nor does this name mean anything.
        let names = ["prefork-0-127.0.0.1%3A0", "prefork-odd"].map(str::to_string);
        let other = back.listeners.drain(..2).zip(&names);
        let passed: Vec<Passed> = other
            .map(|(one, name)| {
                let number = prefork_os::fd::leave_open_for_test(one.socket.into());
                Passed { number, name: name.clone() }
            })
            .collect();
        let mut none = ListenerSet::default();
        let mut unwanted = none.take_stored(&passed, &addrs(&["127.0.0.1:1"]));
        unwanted.sort();
        assert!(none.listeners.is_empty());
        assert_eq!(unwanted, names);
    }
}
