//! How a listening socket becomes ours, and stays the primary's for its whole life.
//!
//! Workers only inherit: the death of any of them loses no queued connection and refuses none. A listener's
//! identity is its content, what the operator wrote as address; a descriptor number is a detail.
//!
//! Under a policy with sockets per slot a TCP address has a *group*: one SO_REUSEPORT socket for each slot, opened
//! in the order of the slots, which is the order in which the kernel counts them. The first is the plain socket
//! that guards the address. A group never shrinks while the address is listened on: closing one of its
//! sockets would reset what is in its queue, and handshakes under way. Unix sockets, and sockets that were
//! passed to us, have no group.

mod bind_socket;
mod draining_workers;
mod host_lookup;
mod inherited_sockets;
mod keep_alive;
mod listen_addr;
mod orphan_sockets;
mod repair_sockets;
mod resolve_bind_addrs;
mod socket_holders;
mod unix_addr;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use socket2::{SockFilter, Socket};

use crate::error::Result;
use crate::socket_file::SocketFile;
use bind_socket::{Acquired, Binding};
pub(crate) use host_lookup::{Lookup, Names, look_up};
pub(crate) use inherited_sockets::{Keeper, serve_passed};
pub use listen_addr::{HostAddr, ListenAddr};
use prefork_os::socket::AcceptQueue;
use prefork_supervisor::Slot;
pub(crate) use repair_sockets::Repaired;
pub use unix_addr::UnixAddr;

/// One listening socket.
#[derive(Debug)]
pub(crate) struct Listener {
    /// As the operator wrote it.
    pub(crate) addr: ListenAddr,
    /// As the kernel has it: with the real port where 0 was asked for.
    pub(crate) local: String,
    /// Which socket of its group this is; all but slot 0 are there for a policy with sockets per slot.
    pub(crate) slot: Slot,
    /// Non-blocking, close-on-exec, listening.
    pub(crate) socket: Socket,
    /// Who else has it.
    pub(crate) keeper: Keeper,
    /// No other socket can join it: all workers accept from it, whatever the policy.
    pub(crate) lone: bool,
}

/// All listening sockets of the cluster.
#[derive(Debug, Default)]
pub(crate) struct ListenerSet {
    pub(crate) listeners: Vec<Listener>,
    /// Files of Unix sockets; those that we made are removed when the primary drops this. Never crosses into a worker.
    files: Vec<(ListenAddr, SocketFile)>,
    /// Addresses with port 0 that share one port, as they are those of one host name.
    same_port: Vec<Vec<ListenAddr>>,
    /// This image was begun by an upgrade: no descriptor is left that could be named as `fd://N`.
    upgraded: bool,
    /// Somebody is served: nothing may wait any more.
    serving: bool,
}

/// What was opened.
#[derive(Debug, Default)]
pub(crate) struct Opened {
    /// New addresses, as the kernel has them.
    pub(crate) locals: Vec<String>,
    /// Those among them, as the operator wrote them, that take connections which went to another socket of ours until
    /// now: whoever served that one has to serve this one at once.
    pub(crate) narrower: Vec<ListenAddr>,
}

/// Lets every TCP segment pass but a SYN without ACK: byte 13 of the header holds the flags.
/// `ldb [13]; and #0x12; jeq #0x02, drop, pass; drop: ret #0; pass: ret #-1`.
const NO_NEWCOMERS: [SockFilter; 5] = [
    SockFilter::new(0x30, 0, 0, 13),
    SockFilter::new(0x54, 0, 0, 0x12),
    SockFilter::new(0x15, 0, 1, 0x02),
    SockFilter::new(0x06, 0, 0, 0),
    SockFilter::new(0x06, 0, 0, u32::MAX),
];

impl Listener {
    /// In a worker: a socket of another slot that the primary has sent.
    pub(crate) fn adopted(fd: OwnedFd, slot: Slot) -> Result<Listener> {
        bind_socket::adopted(fd, slot)
    }

    /// The same socket once more, for another thread of this worker.
    pub(crate) fn try_clone(&self) -> std::io::Result<Listener> {
        let (addr, local) = (self.addr.clone(), self.local.clone());
        let Listener { slot, keeper, lone, .. } = *self;
        Ok(Listener { addr, local, slot, socket: self.socket.try_clone()?, keeper, lone })
    }

    /// Whether all workers accept from it, whatever the policy.
    pub(crate) fn is_everybodys(&self) -> bool {
        self.lone || !matches!(self.addr, ListenAddr::Tcp(_))
    }

    /// Whether a worker of `slot` is born with it; with one for each slot only if it is its own.
    pub(crate) fn is_for(&self, slot: Slot, socket_per_slot: bool) -> bool {
        let own = if socket_per_slot { slot } else { Slot(0) };
        self.is_everybodys() || self.slot == own
    }

    /// Whether connections come over a Unix socket: see `bind_socket::listening` for the names.
    pub(crate) fn is_unix(&self) -> bool {
        !self.local.starts_with("http://")
    }

    /// Its TCP address, with the real port.
    pub(crate) fn tcp(&self) -> Option<SocketAddr> {
        self.socket.local_addr().ok().and_then(|local| local.as_socket())
    }

    /// Nobody can queue here any more; who is in the queue stays in it. Without this, a connection that is
    /// made between a worker's last look at the queue and its close would be reset. A SYN that is dropped now
    /// is repeated after a second, and refused then. A socket that somebody passed to us goes on listening.
    fn refuse_newcomers(&self) {
        // Where that is refused, a rare reset remains.
        let _ = match (self.keeper, &self.addr) {
            (Keeper::Us | Keeper::Store, ListenAddr::Tcp(_)) => {
                self.socket.attach_filter(&NO_NEWCOMERS)
            }
            _ => Ok(()),
        };
    }
}

impl ListenerSet {
    /// Takes over a socket that another image of process `owner` listened on. An image that knew no groups says
    /// slot 0 of each of a group that it was passed: they get the next numbers.
    pub(crate) fn inherit(
        &mut self,
        addr: ListenAddr,
        slot: Slot,
        fd: OwnedFd,
        owner: u32,
        keeper: Keeper,
    ) -> Result<()> {
        let slot = if self.has(&addr, slot) { Slot(self.group(&addr)) } else { slot };
        // What the manager made is the manager's to remove.
        let owner = (keeper != Keeper::Manager).then_some(owner);
        let (mut listener, file) = bind_socket::inherit(&addr, slot, fd, owner)?;
        listener.keeper = keeper;
        self.files.extend(file.map(|file| (addr, file)));
        self.listeners.push(listener);
        Ok(())
    }

    /// Opens what is missing of `addrs`, with a socket for each of the first `slots` slots: all of it or nothing.
    pub(crate) fn open_missing(
        &mut self,
        addrs: &[ListenAddr],
        backlog: u32,
        slots: u32,
    ) -> Result<Opened> {
        let opened = self.acquire_missing(addrs, backlog)?;
        // All are bound before the first one listens: a socket that is closed again after it has listened
        // would reset whom the kernel has sent there.
        let firsts = self.listeners.iter().chain(opened.iter().map(|one| &one.listener));
        let (mut joining, mut lone) = (Vec::new(), Vec::new());
        for first in firsts.filter(|first| addrs.contains(&first.addr) && first.slot == Slot(0)) {
            match self.bind_rest(first, slots) {
                Ok(rest) => joining.extend(rest),
                Err(why) => lone.push(self.stays_alone(first, why)?),
            }
        }
        let mut outcome = Opened::default();
        for one in &opened {
            outcome.locals.push(one.listener.local.clone());
            if !one.listens && self.takes_over_from_another(&one.listener) {
                outcome.narrower.push(one.listener.addr.clone());
            }
        }
        for Acquired { listener, file, listens } in opened {
            if !listens {
                bind_socket::listen(&listener, backlog)?;
            }
            self.files.extend(file.map(|file| (listener.addr.clone(), file)));
            self.listeners.push(listener);
        }
        for first in self.listeners.iter_mut().filter(|first| lone.contains(&first.addr)) {
            first.lone = true;
        }
        for listener in &joining {
            bind_socket::listen(listener, backlog)?;
        }
        self.listeners.extend(joining);
        Ok(outcome)
    }

    /// The first socket of each of `addrs` that has none yet.
    fn acquire_missing(&self, addrs: &[ListenAddr], backlog: u32) -> Result<Vec<Acquired>> {
        let mut opened: Vec<Acquired> = Vec::new();
        for addr in addrs.iter().filter(|addr| !self.has(addr, Slot(0))) {
            if opened.iter().any(|one| one.listener.addr == *addr) {
                continue;
            }
            match self.same_port.iter().find(|group| group.contains(addr)) {
                Some(group) => self.acquire_group(group, backlog, &mut opened)?,
                None => opened.push(self.acquire(addr, backlog, None, &opened)?),
            }
        }
        Ok(opened)
    }

    fn acquire(
        &self,
        addr: &ListenAddr,
        backlog: u32,
        port: Option<u16>,
        opened: &[Acquired],
    ) -> Result<Acquired> {
        let ours = self.listeners.iter().chain(opened.iter().map(|one| &one.listener));
        let ours: Vec<&Listener> = ours.collect();
        let (may_take_over, may_wait) = (!self.upgraded, !self.upgraded && !self.serving);
        bind_socket::acquire(addr, &Binding { backlog, ours: &ours, port, may_take_over, may_wait })
    }

    /// Whether connections to `new` went to another of our sockets until now.
    fn takes_over_from_another(&self, new: &Listener) -> bool {
        let Some(new) = new.tcp() else { return false };
        let others = self.listeners.iter().filter_map(Listener::tcp);
        others.into_iter().any(|other| listen_addr::covers(other, new))
    }

    /// Whether `open_missing` would find its addresses free, without a word to a client: new addresses are opened,
    /// but no socket joins a group that is at work.
    pub(crate) fn rehearse(&self, addrs: &[ListenAddr], backlog: u32, slots: u32) -> Result<()> {
        let opened = self.acquire_missing(addrs, backlog)?;
        let new = opened.iter().map(|one| &one.listener);
        let named = self.listeners.iter().chain(new).filter(|first| addrs.contains(&first.addr));
        for first in named.filter(|first| first.slot == Slot(0)) {
            if let Err(why) = self.bind_rest(first, slots) {
                self.stays_alone(first, why)?;
            }
        }
        Ok(())
    }

    /// The sockets of the group of `first` that are missing, in their order, bound but not listening yet.
    fn bind_rest(&self, first: &Listener, slots: u32) -> Result<Vec<Listener>> {
        let missing = (1..slots).map(Slot).filter(|slot| !self.has(&first.addr, *slot));
        let missing = missing.filter(|_| !first.is_everybodys());
        missing.map(|slot| bind_socket::join(first, slot)).collect()
    }

    /// For how many slots there are sockets: the size of the largest group; 0 where no address has one.
    pub(crate) fn slots(&self) -> u32 {
        let last = self.listeners.iter().map(|listener| listener.slot.0).max();
        last.filter(|last| *last > 0).map_or(0, |last| last + 1)
    }

    /// The sockets that the worker of `slot` alone is born with.
    pub(crate) fn of_slot(&self, slot: Slot) -> impl Iterator<Item = &Listener> {
        self.listeners.iter().filter(move |l| l.slot == slot && !l.is_everybodys())
    }

    /// The groups of those of `named` that have one, each with its sockets in the order of the slots.
    pub(crate) fn groups(
        &self,
        named: &[ListenAddr],
    ) -> impl Iterator<Item = (&ListenAddr, Vec<BorrowedFd<'_>>)> {
        let firsts = self.listeners.iter().filter(|l| l.slot == Slot(0) && !l.is_everybodys());
        firsts.filter(|first| named.contains(&first.addr)).map(|first| {
            let group = self.listeners.iter().filter(|l| l.addr == first.addr);
            let by_slot: BTreeMap<Slot, BorrowedFd<'_>> =
                group.map(|l| (l.slot, l.as_fd())).collect();
            (&first.addr, by_slot.into_values().collect())
        })
    }

    /// Lets go of all sockets that are not among `named`. Nobody can queue there any more; who does already is
    /// served by workers that hold them, or lost when the last share is dropped.
    pub(crate) fn remove_unnamed(&mut self, named: &[&ListenAddr]) -> Vec<Listener> {
        self.files.retain(|(addr, _)| named.contains(&addr));
        self.same_port.retain(|group| group.iter().any(|addr| named.contains(&addr)));
        let closed = self.listeners.extract_if(.., |listener| !named.contains(&&listener.addr));
        closed.inspect(Listener::refuse_newcomers).collect()
    }

    /// Ends our share in every socket, for ever; the workers empty the queues and end theirs. What the service manager
    /// keeps goes on listening, for whoever comes after us.
    pub(crate) fn close_all(&mut self) {
        let ours = self.listeners.drain(..).filter(|listener| listener.keeper == Keeper::Us);
        ours.for_each(|listener| listener.refuse_newcomers());
    }

    /// In a freshly forked worker: the sockets of its slot that its configuration names, without the duty to remove
    /// files; the others are closed.
    pub(crate) fn take_named(
        &mut self,
        named: &[ListenAddr],
        slot: Slot,
        socket_per_slot: bool,
    ) -> Vec<Listener> {
        let mut taken = std::mem::take(&mut self.listeners);
        taken.retain(|l| named.contains(&l.addr) && l.is_for(slot, socket_per_slot));
        taken
    }

    fn has(&self, addr: &ListenAddr, slot: Slot) -> bool {
        self.listeners.iter().any(|listener| listener.addr == *addr && listener.slot == slot)
    }

    /// How many sockets the address has.
    fn group(&self, addr: &ListenAddr) -> u32 {
        let slots: BTreeSet<Slot> =
            self.listeners.iter().filter(|l| l.addr == *addr).map(|l| l.slot).collect();
        slots.len() as u32
    }

    /// The addresses as the kernel has them.
    pub(crate) fn locals(&self) -> Vec<String> {
        let firsts = self.listeners.iter().filter(|listener| listener.slot == Slot(0));
        firsts.map(|listener| listener.local.clone()).collect()
    }

    /// The same, to be read by programs.
    pub(crate) fn addresses(&self) -> Vec<ListenAddr> {
        let firsts = self.listeners.iter().filter(|listener| listener.slot == Slot(0));
        let real = |l: &Listener| l.local.strip_prefix("http://").unwrap_or(&l.local).parse().ok();
        firsts.map(|l| real(l).unwrap_or_else(|| l.addr.clone())).collect()
    }

    /// How full the queue of each TCP socket is, with its address. Unix sockets do not tell.
    pub(crate) fn queues(&self) -> impl Iterator<Item = (String, AcceptQueue)> + '_ {
        let told = |l: &Listener| {
            Some((l.local.clone(), prefork_os::socket::accept_queue(&l.socket).ok()?))
        };
        self.listeners.iter().filter_map(told)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
