//! BPF programs on real loopback sockets. Without the privilege for eBPF, each test checks the fallback instead.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;

use socket2::{Domain, Socket, Type};

use super::super::least_conn::LeastConnProgram;
use super::*;

mod changes;
mod choice;
mod fallback;

/// The listening sockets of one address, one per slot.
struct Sockets {
    address: SocketAddr,
    all: Vec<TcpListener>,
}

impl Sockets {
    fn open(count: usize) -> Sockets {
        Sockets::open_at((Ipv4Addr::LOCALHOST, 0).into(), count)
    }

    fn open_at(address: SocketAddr, count: usize) -> Sockets {
        let mut sockets = Sockets { address, all: Vec::new() };
        sockets.grow(count, 1024);
        sockets
    }

    fn grow(&mut self, count: usize, backlog: i32) {
        for _ in 0..count {
            let socket =
                Socket::new(Domain::for_address(self.address), Type::STREAM, None).expect("socket");
            socket.set_reuse_port(true).expect("reuseport");
            if self.address.is_ipv6() {
                socket.set_only_v6(false).expect("both versions");
            }
            socket.bind(&self.address.into()).expect("bind");
            socket.listen(backlog).expect("listen");
            socket.set_nonblocking(true).expect("nonblocking");
            let listener: TcpListener = socket.into();
            self.address = listener.local_addr().expect("address");
            self.all.push(listener);
        }
    }

    fn group(&self) -> ReuseportGroup<'_> {
        ReuseportGroup(self.all.iter().map(AsFd::as_fd).collect())
    }

    fn connect(&self, count: usize) -> Vec<TcpStream> {
        (0..count).map(|_| TcpStream::connect(self.address).expect("connect")).collect()
    }

    /// Accepts all queued connections; returns how many each slot had.
    fn accept(&self) -> Vec<usize> {
        let take = |listener: &TcpListener| std::iter::from_fn(|| listener.accept().ok()).count();
        self.all.iter().map(take).collect()
    }

    /// Returns the slot that a client from this address reaches.
    fn slot_of(&self, source: IpAddr, to: IpAddr) -> u32 {
        let client =
            Socket::new(Domain::for_address(SocketAddr::new(source, 0)), Type::STREAM, None)
                .expect("client");
        client.bind(&SocketAddr::new(source, 0).into()).expect("bind");
        client.connect(&SocketAddr::new(to, self.address.port()).into()).expect("connect");
        self.accept().iter().position(|count| *count == 1).expect("one connection") as u32
    }
}

fn all_healthy(selector: &mut KernelSelector, groups: &[ReuseportGroup<'_>]) {
    for slot in 0..count_slots(groups) {
        selector.set_slot_health(Slot(slot as u32), true, groups).expect("health");
    }
}

/// Starts `least-conn` with all slots healthy; `None`, after a check of the fallback, where eBPF is not allowed.
fn start_least_conn(groups: &[ReuseportGroup<'_>]) -> Option<KernelSelector> {
    let mut selector = KernelSelector::start(Dispatch::LeastConn, groups);
    all_healthy(&mut selector, groups);
    let allowed = bpf::create_array_map("prefork_test", 4096, 1).is_ok();
    let (backend, reason) = (selector.backend_name(), selector.fallback_reason());
    assert_eq!(backend, if allowed { "ebpf" } else { "cbpf-weights" }, "{reason:?}");
    assert_eq!(reason.is_none(), allowed, "{reason:?}");
    allowed.then_some(selector)
}

fn least_conn_program(selector: &mut KernelSelector) -> &mut LeastConnProgram {
    selector.backend.as_least_conn().expect("the eBPF program is attached")
}
