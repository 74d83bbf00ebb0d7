//! The sockets of workers that run a foreign program: a pool of them for each address.
//!
//! A worker gets the sockets of one *index*, one at each address, and keeps them to its end, so that a draining worker
//! can empty its queues while its successor serves others. `Listener::slot` holds the index. The pool grows when all
//! indices are in use; a socket of it is closed only with its address.
//!
//! A BPF program names a socket by its *position* in the kernel's reuseport group: a socket that begins to listen gets the
//! last one, and when one ends to listen, the last socket takes its place. The sockets of an address are in this order in
//! the set. A program may end the listening of its socket by shutdown(2), which concerns all processes that have the
//! socket; it is made to listen again.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use super::{ListenAddr, Listener, ListenerSet, bind_socket};
use crate::dispatch::GroupLayout;
use crate::error::{Error, Result};
use prefork_supervisor::Slot;

/// How many connections of one socket are reset at a time.
const MAX_RESET_CONNECTIONS: usize = 1024;

/// The pool of one address, in the order of the kernel's positions.
pub(crate) struct WorkerSocketGroup<'a> {
    pub(crate) addr: &'a ListenAddr,
    sockets: Vec<&'a Listener>,
}

impl<'a> WorkerSocketGroup<'a> {
    /// Returns what a BPF program has to know of the group.
    pub(crate) fn layout(&self) -> GroupLayout {
        let places = self.sockets.iter().map(|one| one.slot.0).zip(0..);
        GroupLayout {
            sockets: self.sockets.len() as u32,
            moved: places.filter(|(index, position)| index != position).collect(),
        }
    }

    /// Returns a socket through which a BPF program can be attached to the group: one that listens. For another one the
    /// kernel would make a group of its own, which keeps it from listening again.
    pub(crate) fn socket(&self) -> Option<BorrowedFd<'a>> {
        let listening = self.sockets.iter().copied().find(|one| is_listener(one));
        listening.map(Listener::as_fd)
    }

    /// Returns the kernel's position of the socket of this index.
    pub(crate) fn position_of(&self, index: u32) -> Option<u32> {
        let position = self.sockets.iter().position(|one| one.slot == Slot(index))?;
        Some(position as u32)
    }

    /// Returns how many connections wait at the socket of this index.
    pub(crate) fn queued_at(&self, index: u32) -> u32 {
        self.sockets.iter().filter(|one| one.slot == Slot(index)).map(|one| queued(one)).sum()
    }
}

fn is_listener(listener: &Listener) -> bool {
    listener.socket.is_listener().unwrap_or(true)
}

fn queued(listener: &Listener) -> u32 {
    prefork_os::socket::accept_queue(&listener.socket).map_or(0, |queue| queue.depth)
}

impl ListenerSet {
    /// Returns the pools of all addresses that have more than one socket.
    pub(crate) fn worker_socket_groups(&self) -> impl Iterator<Item = WorkerSocketGroup<'_>> {
        let firsts = self
            .listeners
            .iter()
            .filter(|one| one.slot == Slot(0) && !one.is_shared_by_all_workers());
        firsts.map(|first| self.group_of(&first.addr)).filter(|group| group.sockets.len() > 1)
    }

    fn group_of<'a>(&'a self, addr: &'a ListenAddr) -> WorkerSocketGroup<'a> {
        let sockets = self.listeners.iter().filter(|one| one.addr == *addr).collect();
        WorkerSocketGroup { addr, sockets }
    }

    /// Returns how many connections wait at the sockets of each index.
    pub(crate) fn queued_by_index(&self) -> Vec<u32> {
        let sockets = || self.listeners.iter().filter(|one| !one.is_shared_by_all_workers());
        let indices = sockets().map(|one| one.slot.0 + 1).max().unwrap_or(0);
        let mut counts = vec![0_u32; indices as usize];
        for listener in sockets() {
            let count = &mut counts[listener.slot.0 as usize];
            *count = count.saturating_add(queued(listener));
        }
        counts
    }

    /// Accepts and resets what waits at the sockets of an index that no worker has. Returns the number of connections.
    ///
    /// # Errors
    /// Connections cannot be accepted, for example because all descriptors of the process are in use.
    pub(crate) fn reset_queued(&self, addr: &ListenAddr, index: u32) -> io::Result<usize> {
        let is_wanted = |one: &&Listener| one.addr == *addr && one.slot == Slot(index);
        let mut count = 0;
        for listener in self.listeners.iter().filter(is_wanted) {
            // A program may have made it blocking: the flag belongs to the open file description.
            listener.socket.set_nonblocking(true)?;
            while count < MAX_RESET_CONNECTIONS {
                match prefork_os::socket::accept_connection(listener) {
                    Ok(connection) => {
                        prefork_os::socket::set_reset_on_close(&connection)?;
                        count += 1;
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    Err(e) if prefork_os::socket::is_accepted_connection_error(&e) => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(count)
    }

    /// Makes sockets that programs are about to get for the first time block, as those of systemd do: a program that accepts in a
    /// thread expects it, and event loops change it. Later it would stop the event loops of programs that share a socket.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub(crate) fn give_to_programs(&mut self) -> Result<()> {
        for listener in self.listeners.iter_mut().filter(|one| !one.is_given_to_programs) {
            listener.socket.set_nonblocking(false).map_err(|e| {
                Error::system(format!("make the socket of {} blocking", listener.addr), e)
            })?;
            listener.is_given_to_programs = true;
        }
        Ok(())
    }

    /// Makes the sockets of pools listen again that a program has shut down. Returns their addresses and indices.
    ///
    /// # Errors
    /// The kernel does not let a socket listen again.
    pub(crate) fn restore_shut_down_sockets(
        &mut self,
        backlog: u32,
    ) -> Result<Vec<(ListenAddr, u32)>> {
        let mut restored = Vec::new();
        let has_ended = |one: &Listener| !one.is_shared_by_all_workers() && !is_listener(one);
        while let Some(ended) = self.listeners.iter().position(has_ended) {
            let addr = self.listeners[ended].addr.clone();
            if let Err(error) = self.listeners[ended].listen_again(backlog) {
                self.replace_ended_socket(ended, backlog, error)?;
            }
            restored.push((addr.clone(), self.listeners[ended].slot.0));
            self.move_to_last_position(ended, &addr);
        }
        Ok(restored)
    }

    /// Puts a new socket in the place of one that cannot listen again, as the kernel has a group for it alone.
    fn replace_ended_socket(&mut self, ended: usize, backlog: u32, error: Error) -> Result<()> {
        let old = &self.listeners[ended];
        let mut others = self.listeners.iter().filter(|one| one.addr == old.addr);
        let Some(member) = others.find(|one| is_listener(one)) else { return Err(error) };
        let new = bind_socket::bind_slot_socket(member, old.slot)?;
        bind_socket::start_listening(&new, backlog)?;
        self.listeners[ended] = new;
        Ok(())
    }

    /// Follows the kernel: the last socket of the group took the place of the one at `ended`, which is the last one now.
    fn move_to_last_position(&mut self, ended: usize, addr: &ListenAddr) {
        let last = self.listeners.iter().rposition(|one| one.addr == *addr).unwrap_or(ended);
        self.listeners.swap(ended, last);
    }

    /// Closes the sockets of pools whose position is not certain, as one before them is missing, and returns their names in the
    /// file descriptor store. They are opened anew.
    pub(crate) fn drop_sockets_after_gaps(&mut self) -> Vec<String> {
        let indices: BTreeSet<(String, u32)> =
            self.listeners.iter().map(|one| (one.addr.to_string(), one.slot.0)).collect();
        let follows_gap = |one: &Listener| {
            let addr = one.addr.to_string();
            (0..one.slot.0).any(|index| !indices.contains(&(addr.clone(), index)))
        };
        let dropped = self.listeners.extract_if(.., |one| follows_gap(one));
        dropped.filter_map(|one| one.store_name()).collect()
    }

    /// Closes all sockets of `addr` but the first one, which all workers share from now on: nothing can select among them.
    pub(crate) fn share_first_socket(&mut self, addr: &ListenAddr) {
        self.listeners.retain(|one| one.addr != *addr || one.slot == Slot(0));
        let firsts = self.listeners.iter_mut().filter(|one| one.addr == *addr);
        firsts.for_each(|one| one.is_shared_by_all = true);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Shutdown, SocketAddr, TcpStream};

    use super::super::test_support::open;
    use super::*;
    use crate::dispatch::{AttachedTargets, Dispatch, SocketTarget};

    fn local(set: &ListenerSet) -> SocketAddr {
        set.listeners[0].tcp().expect("TCP")
    }

    /// Sends all new connections to the socket of `index`.
    fn target(set: &ListenerSet, index: u32) {
        for group in set.worker_socket_groups() {
            let position = group.position_of(index).expect("a socket");
            let targets = [SocketTarget { slot: Slot(0), position, queued: 0 }];
            let mut attached = AttachedTargets::default();
            let socket = group.socket().expect("one listens");
            attached.update(Dispatch::Reuseport, &targets, socket, group.layout()).expect("attach");
        }
    }

    #[test]
    fn the_queues_of_an_index_are_counted_over_all_addresses() {
        let (set, _) = open(&["127.0.0.1:0", "127.0.0.2:0"], 3);
        target(&set, 2);
        let locals: Vec<_> = set.listeners.iter().filter(|one| one.slot == Slot(0)).collect();
        let clients: Vec<_> =
            locals.iter().map(|one| TcpStream::connect(one.tcp().expect("TCP"))).collect();
        assert!(clients.iter().all(Result::is_ok));
        assert_eq!(set.queued_by_index(), [0, 0, 2]);
    }

    #[test]
    fn waiting_connections_of_an_index_are_reset_even_if_its_socket_blocks() {
        use std::io::Read;
        let (set, addrs) = open(&["127.0.0.1:0"], 2);
        target(&set, 1);
        let mut client = TcpStream::connect(local(&set)).expect("connect");
        set.listeners.iter().for_each(|one| one.socket.set_nonblocking(false).expect("blocking"));
        assert_eq!(set.reset_queued(&addrs[0], 1).expect("reset"), 1);
        let error = client.read(&mut [0]).expect_err("reset");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(set.reset_queued(&addrs[0], 1).expect("nothing waits"), 0);
    }

    #[test]
    fn a_socket_that_a_program_has_shut_down_listens_again_and_is_found_at_its_new_position() {
        for port in ["127.0.0.1:0", "fixed"] {
            let free = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
            let fixed = free.local_addr().expect("address").to_string();
            drop(free);
            let addr = if port == "fixed" { fixed.as_str() } else { port };
            for ended in 0..3 {
                let (mut set, addrs) = open(&[addr], 3);
                let local = local(&set);
                set.listeners[ended as usize].socket.shutdown(Shutdown::Both).expect("shutdown");
                let restored = set.restore_shut_down_sockets(16).expect("listening");
                assert_eq!(restored, [(addrs[0].clone(), ended)]);
                assert!(set.restore_shut_down_sockets(16).expect("listening").is_empty());
                for index in 0..3 {
                    target(&set, index);
                    let client = TcpStream::connect(local).expect("connect");
                    let mut expected = [0; 3];
                    expected[index as usize] = 1;
                    assert_eq!(set.queued_by_index(), expected, "socket {ended} ended");
                    assert_eq!(set.reset_queued(&addrs[0], index).expect("reset"), 1);
                    drop(client);
                }
            }
        }
    }

    #[test]
    fn a_socket_that_has_a_group_of_its_own_is_replaced() {
        let (mut set, addrs) = open(&["127.0.0.1:0"], 3);
        let local = local(&set);
        let ended = &set.listeners[1];
        ended.socket.shutdown(Shutdown::Both).expect("shutdown");
        // As if a program were attached in the moment after it was shut down.
        let targets = [SocketTarget { slot: Slot(0), position: 0, queued: 0 }];
        let mut attached = AttachedTargets::default();
        let layout = GroupLayout { sockets: 3, moved: Vec::new() };
        attached.update(Dispatch::Reuseport, &targets, ended.as_fd(), layout).expect("attach");
        assert_eq!(set.restore_shut_down_sockets(16).expect("replaced"), [(addrs[0].clone(), 1)]);
        target(&set, 1);
        TcpStream::connect(local).expect("connect");
        assert_eq!(set.queued_by_index(), [0, 1, 0]);
    }

    #[test]
    fn sockets_after_a_gap_are_dropped() {
        let (mut set, _) = open(&["127.0.0.1:0", "127.0.0.2:0"], 4);
        assert!(set.drop_sockets_after_gaps().is_empty());
        let addr = set.listeners[0].addr.clone();
        set.listeners.retain(|one| one.addr != addr || one.slot != Slot(1));
        assert_eq!(set.drop_sockets_after_gaps().len(), 2);
        let left: Vec<u32> = set.listeners.iter().map(|one| one.slot.0).collect();
        assert_eq!(left.iter().filter(|index| **index == 0).count(), 2, "{left:?}");
        assert_eq!(left.len(), 5, "{left:?}");
    }

    #[test]
    fn an_address_whose_sockets_cannot_be_selected_is_shared_by_all_workers() {
        let (mut set, addrs) = open(&["127.0.0.1:0"], 3);
        set.share_first_socket(&addrs[0]);
        assert_eq!(set.worker_socket_groups().count(), 0);
        assert!(set.listeners.iter().all(|one| one.is_for_slot(Slot(2), true)));
        TcpStream::connect(local(&set)).expect("the socket listens");
    }
}
