//! The programs on real sockets of the loopback. Who may not load a program of the extended machine sees the fallback
//! instead, in each of these tests.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;

use socket2::{Domain, Socket, Type};

use super::super::selector_backend::{Kernel, Rung};
use super::*;

mod changes;
mod choice;
mod fallback;

/// Sockets of one address, as many as there are slots.
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

    fn group(&self) -> Group<'_> {
        Group(self.all.iter().map(AsFd::as_fd).collect())
    }

    fn connect(&self, count: usize) -> Vec<TcpStream> {
        (0..count).map(|_| TcpStream::connect(self.address).expect("connect")).collect()
    }

    /// Takes all that waits; how many each slot had.
    fn accept(&self) -> Vec<usize> {
        let take = |listener: &TcpListener| std::iter::from_fn(|| listener.accept().ok()).count();
        self.all.iter().map(take).collect()
    }

    /// Which slot a client from this address comes to.
    fn slot_of(&self, source: IpAddr, to: IpAddr) -> u32 {
        let client =
            Socket::new(Domain::for_address(SocketAddr::new(source, 0)), Type::STREAM, None)
                .expect("client");
        client.bind(&SocketAddr::new(source, 0).into()).expect("bind");
        client.connect(&SocketAddr::new(to, self.address.port()).into()).expect("connect");
        self.accept().iter().position(|count| *count == 1).expect("one connection") as u32
    }
}

fn all_healthy(steering: &mut Steering, groups: &[Group<'_>]) {
    for slot in 0..slots(groups) {
        steering.set_health(Slot(slot as u32), true, groups).expect("health");
    }
}

/// Steering by least-conn with all slots healthy, in the kernel; `None`, after a look at the fallback, where that
/// is not allowed.
fn in_kernel(groups: &[Group<'_>]) -> Option<Steering> {
    let mut steering = Steering::start(Dispatch::LeastConn, groups);
    all_healthy(&mut steering, groups);
    let allowed = bpf::create_array_map("prefork_test", 4096, 1).is_ok();
    let (rung, reason) = (steering.rung(), steering.reason());
    assert_eq!(rung, if allowed { "ebpf" } else { "cbpf-weights" }, "{reason:?}");
    assert_eq!(reason.is_none(), allowed, "{reason:?}");
    allowed.then_some(steering)
}

fn kernel(steering: &mut Steering) -> &mut Kernel {
    match &mut steering.rung {
        Rung::Kernel(kernel) => kernel,
        _ => panic!("not in the kernel"),
    }
}
