//! The listening sockets of the cluster. The primary holds them for its whole life; workers inherit them.
//!
//! The death of a worker therefore loses no queued connection and refuses none. A listener is identified by the address
//! that the operator wrote, never by a descriptor number.
//!
//! Under a policy with a socket for each slot, a TCP address has a *reuseport group*: one SO_REUSEPORT socket for each
//! slot, opened in the order of the slots, which is the order in which the kernel numbers them. The socket of slot 0 is
//! bound exclusively first and so guards the address. A group never shrinks while its address is served: closing a
//! socket would reset the connections in its queue. Unix sockets and passed sockets have no group.
//!
//! Workers that run a foreign program have a socket for each *worker*: see `worker_sockets`.

mod bind_addr;
mod bind_socket;
mod draining_workers;
mod host_lookup;
mod inherited_sockets;
mod keep_alive;
mod listen_addr;
mod orphan_sockets;
mod refuse_connections;
mod repair_sockets;
mod resolve_bind_addrs;
mod socket_holders;
#[cfg(test)]
mod test_support;
mod unix_addr;
mod worker_sockets;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use socket2::{SockFilter, Socket};

use crate::error::Result;
use crate::socket_file::UnixSocketFile;
pub use bind_addr::BindAddr;
pub(crate) use bind_addr::BindOptions;
use bind_socket::{BindContext, OpenedSocket};
pub(crate) use host_lookup::{HostLookup, ResolvedHosts, resolve_hosts};
pub(crate) use inherited_sockets::{OwnListener, SocketKeeper};
use listen_addr::BoundAddr;
pub(crate) use listen_addr::is_host_name;
pub use listen_addr::{HostAddr, ListenAddr};
use prefork_os::socket::AcceptQueue;
use prefork_supervisor::Slot;
pub(crate) use repair_sockets::RepairedSockets;
pub use unix_addr::UnixAddr;
pub(crate) use worker_sockets::WorkerSocketGroup;

/// One listening socket.
#[derive(Debug)]
pub(crate) struct Listener {
    /// The address as the operator wrote it.
    pub(crate) addr: ListenAddr,
    /// The address as the kernel has it.
    pub(crate) local: BoundAddr,
    /// Position in the reuseport group; 0 for a socket without a group. Where each worker has a socket, the number by which
    /// a worker gets it.
    pub(crate) slot: Slot,
    /// Listening, non-blocking, close-on-exec.
    pub(crate) socket: Socket,
    /// Which other process keeps it open.
    pub(crate) keeper: SocketKeeper,
    /// Whether no other socket can join it, so that all workers accept from it whatever the policy.
    pub(crate) is_shared_by_all: bool,
    /// Whether foreign programs have got it, which may have changed whether it blocks.
    pub(crate) is_given_to_programs: bool,
}

/// All listening sockets of the cluster.
#[derive(Debug, Default)]
pub(crate) struct ListenerSet {
    pub(crate) listeners: Vec<Listener>,
    /// Files of Unix sockets. Dropping this removes those that the primary created; workers never get it.
    files: Vec<(ListenAddr, UnixSocketFile)>,
    /// Groups of addresses with port 0 that share one port, as they belong to one host name.
    same_port: Vec<Vec<ListenAddr>>,
    /// Whether an upgrade started this image: then no inherited descriptor can be named as `fd://N`.
    is_started_by_upgrade: bool,
    /// Whether workers serve: then nothing may wait any more.
    has_started_serving: bool,
    /// Whether `[::]` accepts IPv6 only.
    ipv6_only: bool,
    /// Whether the application speaks a protocol of its own, not HTTP: addresses are shown as `tcp://`.
    serves_raw_connections: bool,
    /// The addresses whose connections speak TLS: they are shown as `https://`.
    tls_addrs: Vec<ListenAddr>,
    /// Whether foreign programs have the sockets, so that those that are taken over stay blocking or not, as they are.
    has_foreign_programs: bool,
}

/// The result of opening sockets.
#[derive(Debug, Default)]
pub(crate) struct OpenSummary {
    /// New addresses as the kernel has them.
    pub(crate) locals: Vec<String>,
    /// New addresses whose connections went to another socket of this service before. The workers of that socket
    /// must serve them at once.
    pub(crate) took_over_traffic: Vec<ListenAddr>,
}

/// Socket filter that drops a SYN without ACK and passes every other TCP segment. Byte 13 of the header holds the
/// flags. `ldb [13]; and #0x12; jeq #0x02, drop, pass; drop: ret #0; pass: ret #-1`.
const DROP_SYN_FILTER: [SockFilter; 5] = [
    SockFilter::new(0x30, 0, 0, 13),
    SockFilter::new(0x54, 0, 0, 0x12),
    SockFilter::new(0x15, 0, 1, 0x02),
    SockFilter::new(0x06, 0, 0, 0),
    SockFilter::new(0x06, 0, 0, u32::MAX),
];

impl Listener {
    /// Wraps the socket of another slot that the primary has sent to a worker.
    pub(crate) fn from_received_fd(fd: OwnedFd, slot: Slot) -> Result<Listener> {
        bind_socket::listener_from_fd(fd, slot)
    }

    /// Duplicates the socket for another thread of this worker.
    pub(crate) fn try_clone(&self) -> std::io::Result<Listener> {
        let (addr, local) = (self.addr.clone(), self.local.clone());
        let Listener { slot, keeper, is_shared_by_all, is_given_to_programs, .. } = *self;
        Ok(Listener {
            addr,
            local,
            slot,
            socket: self.socket.try_clone()?,
            keeper,
            is_shared_by_all,
            is_given_to_programs,
        })
    }

    /// Returns whether all workers accept from it, whatever the policy.
    pub(crate) fn is_shared_by_all_workers(&self) -> bool {
        self.is_shared_by_all || !matches!(self.addr, ListenAddr::Tcp(_))
    }

    /// Returns whether a worker of `slot` gets it at its fork.
    pub(crate) fn is_for_slot(&self, slot: Slot, socket_per_slot: bool) -> bool {
        let own = if socket_per_slot { slot } else { Slot(0) };
        self.is_shared_by_all_workers() || self.slot == own
    }

    /// Returns whether it is a Unix socket.
    pub(crate) fn is_unix(&self) -> bool {
        !matches!(self.local, BoundAddr::Http(_))
    }

    /// Returns the address as the kernel has it, with the real port.
    pub(crate) fn real_addr(&self) -> ListenAddr {
        self.local.to_listen_addr()
    }

    /// Returns the TCP address with the real port.
    pub(crate) fn tcp(&self) -> Option<SocketAddr> {
        self.socket.local_addr().ok().and_then(|local| local.as_socket())
    }

    /// Makes the kernel drop new connections, and keeps those in the queue.
    ///
    /// Without this, a connection between a worker's last accept and its close would be reset. A client repeats the
    /// dropped SYN after a second and is refused then. Sockets of the service manager go on listening.
    fn refuse_new_connections(&self) {
        // Without the filter a connection may rarely be reset.
        let _ = match (self.keeper, &self.addr) {
            (SocketKeeper::Primary | SocketKeeper::FdStore, ListenAddr::Tcp(_)) => {
                self.socket.attach_filter(&DROP_SYN_FILTER)
            }
            _ => Ok(()),
        };
    }
}

impl ListenerSet {
    /// Takes over a socket that another image listened on. `owner` is the pid that created it.
    ///
    /// An old image that knew no groups gives slot 0 for each socket of a group; they get the next numbers.
    pub(crate) fn inherit(
        &mut self,
        addr: ListenAddr,
        slot: Slot,
        fd: OwnedFd,
        owner: u32,
        keeper: SocketKeeper,
    ) -> Result<()> {
        let slot = if self.has(&addr, slot) { Slot(self.group_size(&addr)) } else { slot };
        // The service manager removes the file of a socket that it created.
        let owner = (keeper != SocketKeeper::ServiceManager).then_some(owner);
        let keeps_mode = self.has_foreign_programs;
        let (mut listener, file) =
            bind_socket::adopt_inherited(&addr, slot, fd, owner, keeps_mode)?;
        listener.keeper = keeper;
        listener.is_given_to_programs = true;
        self.files.extend(file.map(|file| (addr, file)));
        self.listeners.push(listener);
        Ok(())
    }

    /// Opens the missing sockets of `addrs`, one for each of the first `slots` slots: all or none.
    ///
    /// # Errors
    ///
    /// A socket cannot be bound.
    pub(crate) fn open_missing_sockets(
        &mut self,
        addrs: &[ListenAddr],
        backlog: u32,
        slots: u32,
    ) -> Result<OpenSummary> {
        let opened = self.bind_missing_addrs(addrs, backlog)?;
        // All sockets are bound before the first one listens: closing a listening socket again would reset its
        // connections.
        let firsts = self.listeners.iter().chain(opened.iter().map(|one| &one.listener));
        let (mut joining, mut is_shared_by_all) = (Vec::new(), Vec::new());
        for first in firsts.filter(|first| addrs.contains(&first.addr) && first.slot == Slot(0)) {
            match self.bind_missing_slots(first, slots) {
                Ok(rest) => joining.extend(rest),
                Err(why) => is_shared_by_all.push(self.allow_shared_fallback(first, why)?),
            }
        }
        let mut outcome = OpenSummary::default();
        for one in &opened {
            outcome.locals.push(self.local_text(&one.listener));
            if !one.listens && self.takes_over_addr_of_own_socket(&one.listener) {
                outcome.took_over_traffic.push(one.listener.addr.clone());
            }
        }
        for OpenedSocket { listener, file, listens } in opened {
            if !listens {
                bind_socket::start_listening(&listener, backlog)?;
            }
            self.files.extend(file.map(|file| (listener.addr.clone(), file)));
            self.listeners.push(listener);
        }
        for first in
            self.listeners.iter_mut().filter(|first| is_shared_by_all.contains(&first.addr))
        {
            first.is_shared_by_all = true;
        }
        for listener in &joining {
            bind_socket::start_listening(listener, backlog)?;
        }
        self.listeners.extend(joining);
        Ok(outcome)
    }

    /// Opens the first socket of each of `addrs` that has none.
    fn bind_missing_addrs(&self, addrs: &[ListenAddr], backlog: u32) -> Result<Vec<OpenedSocket>> {
        let mut opened: Vec<OpenedSocket> = Vec::new();
        for addr in addrs.iter().filter(|addr| !self.has(addr, Slot(0))) {
            if opened.iter().any(|one| one.listener.addr == *addr) {
                continue;
            }
            match self.same_port.iter().find(|group| group.contains(addr)) {
                Some(group) => self.open_on_one_port(group, backlog, &mut opened)?,
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
        opened: &[OpenedSocket],
    ) -> Result<OpenedSocket> {
        let ours = self.listeners.iter().chain(opened.iter().map(|one| &one.listener));
        let ours: Vec<&Listener> = ours.collect();
        let (may_take_inherited, may_wait) =
            (!self.is_started_by_upgrade, !self.is_started_by_upgrade && !self.has_started_serving);
        bind_socket::open_socket(
            addr,
            &BindContext {
                backlog,
                ours: &ours,
                port,
                may_take_inherited,
                may_wait,
                ipv6_only: self.ipv6_only,
            },
        )
    }

    /// Returns whether connections to `new` went to another socket of this service before.
    fn takes_over_addr_of_own_socket(&self, new: &Listener) -> bool {
        let Some(new) = new.tcp() else { return false };
        let others = self.listeners.iter().filter_map(Listener::tcp);
        others.into_iter().any(|other| listen_addr::wildcard_covers(other, new))
    }

    /// Checks whether [`ListenerSet::open_missing_sockets`] could bind, without an effect on clients: opens new
    /// addresses and closes them again, and lets no socket listen in a group that serves.
    pub(crate) fn check_can_bind(
        &self,
        addrs: &[ListenAddr],
        backlog: u32,
        slots: u32,
    ) -> Result<()> {
        let opened = self.bind_missing_addrs(addrs, backlog)?;
        let new = opened.iter().map(|one| &one.listener);
        let named = self.listeners.iter().chain(new).filter(|first| addrs.contains(&first.addr));
        for first in named.filter(|first| first.slot == Slot(0)) {
            if let Err(why) = self.bind_missing_slots(first, slots) {
                self.allow_shared_fallback(first, why)?;
            }
        }
        Ok(())
    }

    /// Binds the missing sockets of the reuseport group of `first` in order. They do not listen yet.
    fn bind_missing_slots(&self, first: &Listener, slots: u32) -> Result<Vec<Listener>> {
        let missing = (1..slots).map(Slot).filter(|slot| !self.has(&first.addr, *slot));
        let missing = missing.filter(|_| !first.is_shared_by_all_workers());
        missing.map(|slot| bind_socket::bind_slot_socket(first, slot)).collect()
    }

    /// Returns the number of slots that have sockets: the size of the largest reuseport group, 0 without groups.
    pub(crate) fn slots(&self) -> u32 {
        let last = self.listeners.iter().map(|listener| listener.slot.0).max();
        last.filter(|last| *last > 0).map_or(0, |last| last + 1)
    }

    /// Returns the sockets that only the worker of `slot` gets.
    pub(crate) fn slot_listeners(&self, slot: Slot) -> impl Iterator<Item = &Listener> {
        self.listeners.iter().filter(move |l| l.slot == slot && !l.is_shared_by_all_workers())
    }

    /// Returns the reuseport groups of the addresses in `named`, each with its sockets in the order of the slots.
    pub(crate) fn groups(
        &self,
        named: &[ListenAddr],
    ) -> impl Iterator<Item = (&ListenAddr, Vec<BorrowedFd<'_>>)> {
        let firsts =
            self.listeners.iter().filter(|l| l.slot == Slot(0) && !l.is_shared_by_all_workers());
        firsts.filter(|first| named.contains(&first.addr)).map(|first| {
            let group = self.listeners.iter().filter(|l| l.addr == first.addr);
            let by_slot: BTreeMap<Slot, BorrowedFd<'_>> =
                group.map(|l| (l.slot, l.as_fd())).collect();
            (&first.addr, by_slot.into_values().collect())
        })
    }

    /// Removes all sockets whose address is not in `named` and drops new connections to them. Queued connections are
    /// served by the workers that hold the sockets, and lost when the last descriptor is closed.
    pub(crate) fn remove_sockets_not_in(&mut self, named: &[&ListenAddr]) -> Vec<Listener> {
        self.files.retain(|(addr, _)| named.contains(&addr));
        self.same_port.retain(|group| group.iter().any(|addr| named.contains(&addr)));
        let closed = self.listeners.extract_if(.., |listener| !named.contains(&&listener.addr));
        closed.inspect(Listener::refuse_new_connections).collect()
    }

    /// Closes all sockets of the primary; the workers serve the queues and close theirs. Sockets that the service
    /// manager keeps go on listening for the next primary.
    pub(crate) fn close_all(&mut self) {
        let ours =
            self.listeners.drain(..).filter(|listener| listener.keeper == SocketKeeper::Primary);
        ours.for_each(|listener| listener.refuse_new_connections());
    }

    /// Returns the sockets of `slot` in `named` and closes the others, in a forked worker. Socket files stay the
    /// primary's.
    pub(crate) fn take_for_worker(
        &mut self,
        named: &[ListenAddr],
        slot: Slot,
        socket_per_slot: bool,
    ) -> Vec<Listener> {
        let mut taken = std::mem::take(&mut self.listeners);
        taken.retain(|l| named.contains(&l.addr) && l.is_for_slot(slot, socket_per_slot));
        // A program gets them as descriptors 3, 4 and so on.
        taken.sort_by_key(|l| named.iter().position(|addr| *addr == l.addr));
        taken
    }

    fn has(&self, addr: &ListenAddr, slot: Slot) -> bool {
        self.listeners.iter().any(|listener| listener.addr == *addr && listener.slot == slot)
    }

    /// Returns how many sockets the address has.
    fn group_size(&self, addr: &ListenAddr) -> u32 {
        let slots: BTreeSet<Slot> =
            self.listeners.iter().filter(|l| l.addr == *addr).map(|l| l.slot).collect();
        slots.len() as u32
    }

    /// Records that foreign programs get the sockets. O_NONBLOCK belongs to the open file description, so that changing it in
    /// this process changes it for running programs.
    pub(crate) fn set_has_foreign_programs(&mut self) {
        self.has_foreign_programs = true;
    }

    /// Sets whether the application speaks a protocol of its own, not HTTP.
    pub(crate) fn set_serves_raw_connections(&mut self, serves_raw_connections: bool) {
        self.serves_raw_connections = serves_raw_connections;
    }

    /// Sets the addresses whose connections speak TLS.
    pub(crate) fn set_tls_addrs(&mut self, tls_addrs: Vec<ListenAddr>) {
        self.tls_addrs = tls_addrs;
    }

    /// Returns whether connections speak a protocol of their own, not HTTP.
    pub(crate) fn serves_raw_connections(&self) -> bool {
        self.serves_raw_connections
    }

    /// Returns the address of a listener as the kernel has it, with the scheme of what is served there.
    pub(crate) fn local_text(&self, listener: &Listener) -> String {
        let is_tls = self.tls_addrs.contains(&listener.addr);
        let scheme = match (self.serves_raw_connections, is_tls) {
            (false, false) => "http",
            (false, true) => "https",
            (true, false) => "tcp",
            (true, true) => "tls",
        };
        match &listener.local {
            BoundAddr::Http(addr) => format!("{scheme}://{addr}"),
            local => local.to_string(),
        }
    }

    /// Returns the addresses as the kernel has them, for display.
    pub(crate) fn bound_addr_texts(&self) -> Vec<String> {
        let firsts = self.listeners.iter().filter(|listener| listener.slot == Slot(0));
        firsts.map(|listener| self.local_text(listener)).collect()
    }

    /// Returns those of the addresses in `named` that have sockets, as the kernel has them.
    pub(crate) fn bound_addrs_of(&self, named: &[ListenAddr]) -> Vec<ListenAddr> {
        let firsts = self.listeners.iter().filter(|listener| listener.slot == Slot(0));
        firsts.filter(|first| named.contains(&first.addr)).map(Listener::real_addr).collect()
    }

    /// Returns the accept queue of each TCP socket with its address. The kernel does not show the queue of Unix
    /// sockets.
    pub(crate) fn accept_queues(&self) -> impl Iterator<Item = (String, AcceptQueue)> + '_ {
        let told = |l: &Listener| {
            Some((self.local_text(l), prefork_os::socket::accept_queue(&l.socket).ok()?))
        };
        self.listeners.iter().filter_map(told)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
