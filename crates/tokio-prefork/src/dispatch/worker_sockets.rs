//! Sends new connections to the sockets of certain workers, where each worker has a listening socket of its own.
//!
//! Workers that run a foreign program accept from the sockets that they inherited and from no others. So each *worker* has
//! a socket in the reuseport group of an address, and a draining worker keeps its own to empty the queue. The kernel's
//! hash would send connections to all sockets of the group; a classic BPF program, which needs no privilege, sends them
//! to the sockets of the workers that accept:
//!
//! - `reuseport`: by chance, weighted by how many connections already wait there. The kernel's hash of addresses and ports
//!   is spread no better, and cannot favour the workers that keep up.
//! - `ip-hash`: by rendezvous hashing of the client's address among the *slots* of these workers, so that a client stays
//!   with its slot when the worker is replaced, and so the socket.
//!
//! A connection from 127.80.H.L goes to socket H * 256 + L: a worker probes its own program from there. Only processes of
//! this host have such an address.

use std::io;
use std::os::fd::BorrowedFd;

use super::Dispatch;
use super::bpf::classic::{
    MAX_INSTRUCTIONS, NETWORK_HEADER_OFFSET, jump_if_at_least, jump_if_equal, load_byte,
    load_half_word, return_accumulator, return_socket, shift_right,
};
use super::ip_hash;
use super::least_conn::weights;
use prefork_os::bpf::{self, ClassicBpfInstruction};
use prefork_supervisor::Slot;

/// The first two bytes of the addresses from which a worker probes its own socket: 127.80.
const PROBE_NETWORK: u32 = 0x7f50;

/// The most targets in a program for `ip-hash`: two less than without the instructions for probes.
const MAX_ADDRESS_TARGETS: usize = ip_hash::MAX_SLOTS - 2;

/// The instructions for probes, without those for moved sockets.
const PROBE_INSTRUCTIONS: usize = 8;

/// The most moved sockets whose probes reach them: jumps are short. There is one for each time that a program has shut its socket
/// down since the start, as long as the order of the sockets shows it.
const MAX_MOVED_SOCKETS: usize = 120;

/// The weight of a socket without waiting connections.
const MAX_WEIGHT: u32 = 1000;

/// How many waiting connections halve the weight of a socket. A few wait at any busy one.
const HALF_WEIGHT_QUEUE: u32 = 8;

/// A socket that new connections are sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SocketTarget {
    /// The slot of the worker that accepts from the socket.
    pub(crate) slot: Slot,
    /// The number of the socket in the kernel's group.
    pub(crate) position: u32,
    /// How many connections wait in its accept queue.
    pub(crate) queued: u32,
}

/// The sockets of a group, as far as a program has to know them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct GroupLayout {
    /// How many sockets the kernel has in the group.
    pub(crate) sockets: u32,
    /// Index and position of the sockets where these differ.
    pub(crate) moved: Vec<(u32, u32)>,
}

/// The way in which a program selects one of its targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Selection {
    Random,
    ClientAddress,
}

/// The program that is attached to the group of one address.
#[derive(Debug, Default)]
pub(crate) struct AttachedTargets {
    targets: Vec<SocketTarget>,
    layout: GroupLayout,
    selection: Option<Selection>,
}

impl AttachedTargets {
    /// Attaches a program for these targets to the group of `socket`, unless the attached one serves as well.
    ///
    /// # Errors
    /// The kernel refuses the program; then the one before stays attached.
    pub(crate) fn update(
        &mut self,
        policy: Dispatch,
        targets: &[SocketTarget],
        socket: BorrowedFd<'_>,
        layout: GroupLayout,
    ) -> io::Result<()> {
        let selection = selection(policy, targets);
        let is_same = self.selection == Some(selection) && self.layout == layout;
        if is_same && !has_changed(&self.targets, targets, selection) {
            return Ok(());
        }
        bpf::attach_classic_reuseport_program(socket, &assemble(selection, targets, &layout))?;
        *self = AttachedTargets { targets: targets.to_vec(), layout, selection: Some(selection) };
        Ok(())
    }

    /// Returns whether new connections may be sent to this socket.
    pub(crate) fn includes(&self, position: u32) -> bool {
        self.targets.iter().any(|target| target.position == position)
    }

    /// Returns the name of the attached program, for status.
    pub(crate) fn backend_name(&self) -> &'static str {
        match self.selection {
            Some(Selection::Random) => "cbpf-random",
            Some(Selection::ClientAddress) => "ip-hash",
            None => "",
        }
    }
}

/// More slots than fit into a program for `ip-hash` are selected by chance.
fn selection(policy: Dispatch, targets: &[SocketTarget]) -> Selection {
    match policy == Dispatch::IpHash && targets.len() <= MAX_ADDRESS_TARGETS {
        true => Selection::ClientAddress,
        false => Selection::Random,
    }
}

/// Returns whether the targets are other ones, or the lengths of their queues demand other shares.
fn has_changed(old: &[SocketTarget], new: &[SocketTarget], selection: Selection) -> bool {
    let socket = |target: &SocketTarget| (target.slot, target.position);
    let weights = |targets: &[SocketTarget]| targets.iter().map(weight).collect::<Vec<u32>>();
    !old.iter().map(socket).eq(new.iter().map(socket))
        || selection == Selection::Random
            && weights::weights_differ_noticeably(&weights(old), &weights(new))
}

/// Returns the weight of a target: less, the more connections wait in its queue.
fn weight(target: &SocketTarget) -> u32 {
    let queued = target.queued.min(MAX_WEIGHT * HALF_WEIGHT_QUEUE);
    (MAX_WEIGHT * HALF_WEIGHT_QUEUE / (queued + HALF_WEIGHT_QUEUE)).max(1)
}

/// Returns the program for these targets in a group of this layout.
fn assemble(
    selection: Selection,
    targets: &[SocketTarget],
    layout: &GroupLayout,
) -> Vec<ClassicBpfInstruction> {
    let by_address = || {
        let pairs: Vec<_> = targets.iter().map(|one| (one.slot.0, one.position)).collect();
        ip_hash::assemble_for_sockets(&pairs)
    };
    let selected = match selection {
        Selection::ClientAddress => by_address(),
        Selection::Random => None,
    };
    let selected = selected.unwrap_or_else(|| weights::assemble(&weights_by_position(targets)));
    let room = MAX_INSTRUCTIONS.saturating_sub(selected.len() + PROBE_INSTRUCTIONS) / 2;
    let mut program = assemble_probe(layout, room.min(MAX_MOVED_SOCKETS));
    program.extend(selected);
    program
}

/// Returns the part of a program that sends a probe to the socket of its index, and goes on for other connections. Of the moved
/// sockets it knows at most `max_moved`.
fn assemble_probe(layout: &GroupLayout, max_moved: usize) -> Vec<ClassicBpfInstruction> {
    let moved = &layout.moved[..layout.moved.len().min(max_moved)];
    let rest = 2 * moved.len() as u8;
    let mut program = vec![
        load_byte(NETWORK_HEADER_OFFSET),
        shift_right(4),
        jump_if_equal(4, 0, 5 + rest),
        load_half_word(NETWORK_HEADER_OFFSET + 12),
        jump_if_equal(PROBE_NETWORK, 0, 3 + rest),
        load_half_word(NETWORK_HEADER_OFFSET + 14),
        jump_if_at_least(layout.sockets, 1 + rest, 0),
    ];
    for (index, position) in moved {
        program.extend([jump_if_equal(*index, 0, 1), return_socket(*position)]);
    }
    program.push(return_accumulator());
    program
}

/// Returns the sum of the weights at each position. Workers that share a socket count as many.
fn weights_by_position(targets: &[SocketTarget]) -> Vec<u32> {
    let positions = targets.iter().map(|target| target.position as usize + 1).max().unwrap_or(0);
    let mut weights = vec![0; positions];
    for target in targets {
        weights[target.position as usize] += weight(target);
    }
    weights
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use socket2::{Domain, Socket, Type};

    use super::super::bpf::classic::interpret;
    use super::*;

    fn target(slot: u32, position: u32) -> SocketTarget {
        SocketTarget { slot: Slot(slot), position, queued: 0 }
    }

    fn layout(sockets: u32) -> GroupLayout {
        GroupLayout { sockets, moved: Vec::new() }
    }

    fn ipv4_header(source: Ipv4Addr) -> Vec<u8> {
        [&[0x45][..], &[0xee; 11], &source.octets(), &[0xee; 4]].concat()
    }

    fn ipv6_header(source: Ipv6Addr) -> Vec<u8> {
        [&[0x60][..], &[0xee; 7], &source.octets(), &[0xee; 16]].concat()
    }

    const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);

    #[test]
    fn only_targets_are_selected_each_as_often() {
        let program =
            assemble(Selection::Random, &[target(0, 1), target(1, 4), target(2, 5)], &layout(8));
        let mut got = [0; 8];
        for random in 0..3 * MAX_WEIGHT {
            got[interpret(&program, &ipv4_header(CLIENT), random) as usize] += 1;
        }
        assert_eq!(got, [0, MAX_WEIGHT, 0, 0, MAX_WEIGHT, MAX_WEIGHT, 0, 0]);
    }

    #[test]
    fn a_socket_whose_queue_is_longer_gets_less() {
        let busy = SocketTarget { queued: 8, ..target(1, 1) };
        assert_eq!(weights_by_position(&[target(0, 0), busy]), [1000, 500]);
        let stuck = SocketTarget { queued: u32::MAX, ..target(1, 1) };
        assert_eq!(weights_by_position(&[target(0, 0), stuck]), [1000, 1]);
        // Four workers on one shared socket, one with its own.
        let shared = [target(0, 0), target(1, 0), target(2, 0), target(3, 0), target(0, 5)];
        assert_eq!(weights_by_position(&shared), [4000, 0, 0, 0, 0, 1000]);
    }

    #[test]
    fn a_probe_reaches_its_socket_and_no_other_client_does() {
        for selection in [Selection::Random, Selection::ClientAddress] {
            let program = assemble(selection, &[target(0, 2)], &layout(300));
            let select = |source: Ipv4Addr| interpret(&program, &ipv4_header(source), 7);
            assert_eq!(select(Ipv4Addr::new(127, 80, 0, 5)), 5);
            assert_eq!(select(Ipv4Addr::new(127, 80, 1, 43)), 299);
            assert_eq!(select(Ipv4Addr::new(127, 80, 1, 44)), 2, "there are 300 sockets");
            assert_eq!(select(Ipv4Addr::new(127, 81, 0, 5)), 2);
            assert_eq!(select(Ipv4Addr::new(127, 0, 0, 1)), 2);
            assert_eq!(select(CLIENT), 2);
            let mapped = Ipv4Addr::new(127, 80, 0, 5).to_ipv6_mapped();
            assert_eq!(interpret(&program, &ipv6_header(mapped), 7), 2);
        }
    }

    #[test]
    fn a_probe_finds_a_socket_that_has_moved() {
        let moved: Vec<_> = (0..300).map(|index| (index, 299 - index)).collect();
        let layout = GroupLayout { sockets: 300, moved };
        for selection in [Selection::Random, Selection::ClientAddress] {
            let program = assemble(selection, &[target(0, 2)], &layout);
            let select = |source: Ipv4Addr| interpret(&program, &ipv4_header(source), 7);
            assert_eq!(select(Ipv4Addr::new(127, 80, 0, 5)), 294);
            assert_eq!(select(Ipv4Addr::new(127, 80, 0, 119)), 180);
            assert_eq!(select(Ipv4Addr::new(127, 80, 1, 44)), 2, "there are 300 sockets");
            assert_eq!(select(CLIENT), 2);
            assert_eq!(interpret(&program, &ipv6_header(Ipv6Addr::LOCALHOST), 7), 2);
        }
    }

    #[test]
    fn a_client_keeps_its_slot_when_the_worker_is_replaced() {
        let before = [target(0, 0), target(1, 1), target(2, 2)];
        let after = [target(0, 0), target(1, 3), target(2, 2)];
        let select = |targets: &[SocketTarget], client: u32| {
            let program = assemble(Selection::ClientAddress, targets, &layout(4));
            interpret(&program, &ipv4_header(Ipv4Addr::from_bits(client)), 0)
        };
        for client in 0x0a00_0000..0x0a00_0100 {
            let (was, is) = (select(&before, client), select(&after, client));
            assert_eq!(is, if was == 1 { 3 } else { was });
        }
    }

    #[test]
    fn the_most_workers_fit_into_a_program() {
        let most = crate::config::WorkerCount::MAX;
        // After a reload from one shared socket, each slot has its own beyond it.
        let targets: Vec<_> = (0..most).map(|slot| target(slot, slot + most)).collect();
        assert_eq!(selection(Dispatch::IpHash, &targets), Selection::Random);
        assert!(assemble(Selection::Random, &targets, &layout(2 * most)).len() <= MAX_INSTRUCTIONS);
        let fitting = &targets[..MAX_ADDRESS_TARGETS];
        assert_eq!(selection(Dispatch::IpHash, fitting), Selection::ClientAddress);
        let program = assemble(Selection::ClientAddress, fitting, &layout(2 * most));
        assert!(program.len() <= MAX_INSTRUCTIONS, "{}", program.len());
        let moved: Vec<_> = (0..most).map(|index| (index, most - 1 - index)).collect();
        let moved = GroupLayout { sockets: most, moved };
        for (selection, targets) in
            [(Selection::ClientAddress, fitting), (Selection::Random, &targets)]
        {
            assert!(assemble(selection, targets, &moved).len() <= MAX_INSTRUCTIONS);
        }
    }

    /// Two plain listeners on one port, in the order of the kernel.
    fn listener_pair() -> [TcpListener; 2] {
        let mut address: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
        [(); 2].map(|()| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("socket");
            socket.set_reuse_port(true).expect("reuseport");
            socket.bind(&address.into()).expect("bind");
            socket.listen(1024).expect("listen");
            socket.set_nonblocking(true).expect("nonblocking");
            let listener: TcpListener = socket.into();
            address = listener.local_addr().expect("address");
            listener
        })
    }

    fn accepted(listener: &TcpListener) -> usize {
        std::iter::from_fn(|| listener.accept().ok()).count()
    }

    #[test]
    fn connections_follow_the_target_from_one_listener_to_the_other() {
        let listeners = listener_pair();
        let address = listeners[0].local_addr().expect("address");
        let mut attached = AttachedTargets::default();
        for (policy, socket) in
            [(Dispatch::Reuseport, 0), (Dispatch::Reuseport, 1), (Dispatch::IpHash, 0)]
        {
            let targets = [target(0, socket)];
            attached.update(policy, &targets, listeners[1].as_fd(), layout(2)).expect("attach");
            assert!(attached.includes(socket) && !attached.includes(1 - socket));
            let clients: Vec<_> = (0..32).map(|_| TcpStream::connect(address)).collect();
            assert!(clients.iter().all(Result::is_ok));
            let counts = [accepted(&listeners[0]), accepted(&listeners[1])];
            assert_eq!(counts[socket as usize], 32, "{policy}: {counts:?}");
        }
        assert_eq!(attached.backend_name(), "ip-hash");
    }

    #[test]
    fn a_probe_reaches_the_listener_of_its_address() {
        let listeners = listener_pair();
        let address = listeners[0].local_addr().expect("address");
        let mut attached = AttachedTargets::default();
        let targets = [target(0, 0)];
        attached
            .update(Dispatch::Reuseport, &targets, listeners[0].as_fd(), layout(2))
            .expect("attach");
        let client = Socket::new(Domain::IPV4, Type::STREAM, None).expect("client");
        let source: SocketAddr = (Ipv4Addr::new(127, 80, 0, 1), 0).into();
        client.bind(&source.into()).expect("bind");
        client.connect(&address.into()).expect("connect");
        assert_eq!([accepted(&listeners[0]), accepted(&listeners[1])], [0, 1]);
    }

    #[test]
    fn the_kernel_keeps_the_program_when_a_socket_joins_the_group() {
        let listeners = listener_pair();
        let address = listeners[0].local_addr().expect("address");
        let mut attached = AttachedTargets::default();
        let targets = [target(0, 0)];
        attached
            .update(Dispatch::Reuseport, &targets, listeners[0].as_fd(), layout(2))
            .expect("attach");
        let third = Socket::new(Domain::IPV4, Type::STREAM, None).expect("socket");
        third.set_reuse_port(true).expect("reuseport");
        third.bind(&address.into()).expect("bind");
        third.listen(1024).expect("listen");
        let clients: Vec<_> = (0..64).map(|_| TcpStream::connect(address)).collect();
        assert_eq!((accepted(&listeners[0]), clients.len()), (64, 64));
    }
}
