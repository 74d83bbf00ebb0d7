//! The programs on real sockets of the loopback. Who may not load a program of the extended machine sees the fallback
//! instead, in each of these tests.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::rung::{Kernel, Rung};
use super::*;

/// Sockets of one address, as many as there are slots.
pub(super) struct Sockets {
    address: SocketAddr,
    all: Vec<TcpListener>,
}

impl Sockets {
    pub(super) fn open(count: usize) -> Sockets {
        Sockets::open_at((Ipv4Addr::LOCALHOST, 0).into(), count)
    }

    pub(super) fn open_at(address: SocketAddr, count: usize) -> Sockets {
        let mut sockets = Sockets { address, all: Vec::new() };
        sockets.grow(count, 1024);
        sockets
    }

    pub(super) fn grow(&mut self, count: usize, backlog: i32) {
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

    pub(super) fn group(&self) -> Group<'_> {
        Group(self.all.iter().map(AsFd::as_fd).collect())
    }

    pub(super) fn connect(&self, count: usize) -> Vec<TcpStream> {
        (0..count).map(|_| TcpStream::connect(self.address).expect("connect")).collect()
    }

    /// Takes all that waits; how many each slot had.
    pub(super) fn accept(&self) -> Vec<usize> {
        let take = |listener: &TcpListener| std::iter::from_fn(|| listener.accept().ok()).count();
        self.all.iter().map(take).collect()
    }

    /// Which slot a client from this address comes to.
    pub(super) fn slot_of(&self, source: IpAddr, to: IpAddr) -> u32 {
        let client =
            Socket::new(Domain::for_address(SocketAddr::new(source, 0)), Type::STREAM, None)
                .expect("client");
        client.bind(&SocketAddr::new(source, 0).into()).expect("bind");
        client.connect(&SocketAddr::new(to, self.address.port()).into()).expect("connect");
        self.accept().iter().position(|count| *count == 1).expect("one connection") as u32
    }
}

pub(super) fn all_healthy(steering: &mut Steering, groups: &[Group<'_>]) {
    for slot in 0..slots(groups) {
        steering.set_health(Slot(slot as u32), true, groups).expect("health");
    }
}

/// Steering by least-conn with all slots healthy, in the kernel; `None`, after a look at the fallback, where that
/// is not allowed.
fn in_kernel(groups: &[Group<'_>]) -> Option<Steering> {
    let mut steering = Steering::start(Dispatch::LeastConn, groups);
    all_healthy(&mut steering, groups);
    let allowed = bpf::create_memory("prefork_test", 4096, 1).is_ok();
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

#[test]
fn connections_are_spread_evenly_over_healthy_slots() {
    let sockets = Sockets::open(4);
    let groups = [sockets.group()];
    let Some(mut steering) = in_kernel(&groups) else { return };
    steering.set_health(Slot(2), false, &groups).expect("health");
    let clients = sockets.connect(200);
    let got = sockets.accept();
    println!("slot 2 of 4 not healthy: {got:?}");
    assert_eq!(got[2], 0);
    assert!([0, 1, 3].iter().all(|slot| (66..=67).contains(&got[*slot])), "{got:?}");
    assert_eq!(steering.by_hash(), Some(0));
    drop(clients);
}

#[test]
fn unequal_slots_are_levelled_over_all_addresses() {
    let (one, other) = (Sockets::open(4), Sockets::open(4));
    let groups = [one.group(), other.group()];
    let Some(mut steering) = in_kernel(&groups) else { return };
    let open = [30, 0, 12, 5];
    for (slot, open) in open.iter().enumerate() {
        kernel(&mut steering).memory.pretend(slot, 0, *open, 0);
    }
    let clients = [one.connect(20), other.connect(53)];
    let got: Vec<usize> = one.accept().iter().zip(other.accept()).map(|(a, b)| a + b).collect();
    println!("open {open:?}, and 73 more: {got:?}");
    assert_eq!(got, [0, 30, 18, 25]);
    drop(clients);
}

#[test]
fn idle_slots_take_turns_by_chance() {
    let sockets = Sockets::open(5);
    let groups = [sockets.group()];
    let Some(mut steering) = in_kernel(&groups) else { return };
    steering.set_health(Slot(1), false, &groups).expect("health");
    let mut got = [0_u64; 5];
    for _ in 0..400 {
        let client = sockets.connect(1);
        let slot = sockets.accept().iter().position(|n| *n == 1).expect("one");
        got[slot] += 1;
        // Accepted, served and gone.
        kernel(&mut steering).memory.pretend(slot, 0, 0, got[slot]);
        drop(client);
    }
    println!("400 one after another, slot 1 not healthy: {got:?}");
    // Five standard deviations.
    assert!([0, 2, 3, 4].iter().all(|slot| got[*slot].abs_diff(100) < 44), "{got:?}");
    assert_eq!(got[1], 0);
}

#[test]
fn a_worker_that_writes_nonsense_gets_the_least() {
    let sockets = Sockets::open(3);
    let groups = [sockets.group()];
    let Some(mut steering) = in_kernel(&groups) else { return };
    for (open, accepted) in [(u64::MAX, 0), (1 << 63, 0), (0, 1 << 63), (0, 1 << 40)] {
        kernel(&mut steering).memory.pretend(1, 0, open, accepted);
        let clients = sockets.connect(20);
        let got = sockets.accept();
        assert_eq!(got[1], 0, "{open} {accepted}: {got:?}");
        drop(clients);
    }
}

#[test]
fn without_a_healthy_slot_the_hash_chooses() {
    let sockets = Sockets::open(3);
    let groups = [sockets.group()];
    let Some(mut steering) = in_kernel(&groups) else { return };
    for slot in 0..3 {
        steering.set_health(Slot(slot), false, &groups).expect("health");
    }
    let clients = sockets.connect(30);
    assert_eq!(sockets.accept().iter().sum::<usize>(), 30);
    assert_eq!(steering.by_hash(), Some(30));
    drop(clients);
}

#[test]
fn packets_that_become_no_connection_are_forgotten() {
    let mut sockets = Sockets::open(0);
    sockets.grow(1, 1);
    let groups = [sockets.group()];
    let Some(mut steering) = in_kernel(&groups) else { return };
    // The queue has room for two; the kernel drops what comes after that, but the program has seen it.
    let clients: Vec<Socket> = (0..12)
        .map(|_| {
            let client = Socket::new(Domain::IPV4, Type::STREAM, None).expect("client");
            client.set_nonblocking(true).expect("nonblocking");
            let _ = client.connect(&sockets.address.into());
            client
        })
        .collect();
    let queued = || u64::from(bpf::queue_length(sockets.all[0].as_fd()).expect("queue"));
    let before = kernel(&mut steering).memory.selected(0);
    assert!(queued() == 2 && before >= 12, "{} queued, {before} selected", queued());
    // Their retries would be counted too.
    drop(clients);
    let mut now = Instant::now();
    let mut look = |steering: &mut Steering| {
        now += Duration::from_secs(1);
        steering.refresh(now, &[], &groups).expect("refresh");
        kernel(steering).memory.selected(0)
    };
    let first = look(&mut steering);
    assert!(first >= before, "one look alone takes nothing away: {before} to {first}");
    look(&mut steering);
    let third = look(&mut steering);
    println!("selected {before}, queued {}; after three looks {third}", queued());
    assert_eq!(third, queued());
}

#[test]
fn slots_are_added_while_it_runs() {
    let mut sockets = Sockets::open(2);
    let mut steering = {
        let groups = [sockets.group()];
        let Some(steering) = in_kernel(&groups) else { return };
        steering
    };
    kernel(&mut steering).memory.pretend(0, 0, 100, 0);
    kernel(&mut steering).memory.pretend(1, 0, 100, 0);
    // Beyond the first bank.
    sockets.grow(38, 1024);
    let groups = [sockets.group()];
    steering.group_grew(&groups).expect("grow");
    let none = sockets.connect(10);
    assert_eq!(sockets.accept()[2..].iter().sum::<usize>(), 0, "none of the new ones is healthy");
    all_healthy(&mut steering, &groups);
    let clients = sockets.connect(76);
    assert_eq!(sockets.accept(), [vec![0; 2], vec![2; 38]].concat());
    drop((none, clients));
}

#[test]
fn a_worker_counts_on_its_own_page_and_has_no_other() {
    let sockets = Sockets::open(2);
    let groups = [sockets.group()];
    let Some(mut steering) = in_kernel(&groups) else { return };
    let lease = steering.lease(Slot(0));
    steering.hold(lease);
    // As after a fork; the program stays where it is attached.
    let mut meter = steering.give_up_all_but(lease).expect("give up");
    (0..10).for_each(|_| meter.opened());
    let clients = sockets.connect(10);
    assert_eq!(sockets.accept(), [0, 10]);
    (0..10).for_each(|_| meter.closed());
    let more = sockets.connect(10);
    assert_eq!(sockets.accept(), [10, 0]);
    (0..10).for_each(|_| meter.accepted());
    // One that leaves says nothing any more.
    meter.leave();
    (0..5).for_each(|_| meter.opened());
    let even = sockets.connect(2);
    assert_eq!(sockets.accept(), [1, 1]);
    drop((clients, more, even));
}

#[test]
fn a_successor_starts_with_nothing_and_a_death_leaves_nothing() {
    let sockets = Sockets::open(2);
    let groups = [sockets.group()];
    let Some(mut steering) = in_kernel(&groups) else { return };
    let holder = steering.lease(Slot(0));
    steering.hold(holder);
    let clients = sockets.connect(10);
    assert_eq!(sockets.accept(), [5, 5]);
    kernel(&mut steering).memory.pretend(0, 0, 5, 5);
    // Five open at slot 1; the successor at slot 0 has none, but one waits.
    let waits = sockets.connect(1);
    let successor = steering.lease(Slot(0));
    assert_ne!(holder, successor);
    steering.hold(successor);
    let more = sockets.connect(3);
    let got = sockets.accept();
    assert!(got[0] >= 3, "{got:?}");
    steering.retire(holder);
    steering.retire(successor);
    let again = steering.lease(Slot(0));
    steering.retire(successor);
    assert_eq!(kernel(&mut steering).memory.lease(Slot(0)).seat.map(|(seat, _)| seat), Some(1));
    steering.hold(again);
    drop((clients, waits, more));
}

#[test]
fn addresses_come_and_go() {
    let (one, other) = (Sockets::open(3), Sockets::open(3));
    let Some(mut steering) = in_kernel(&[one.group()]) else { return };
    kernel(&mut steering).memory.pretend(1, 0, 100, 0);
    steering.regroup(&[other.group(), one.group()]).expect("two");
    let clients = [one.connect(10), other.connect(10)];
    let got: Vec<usize> = one.accept().iter().zip(other.accept()).map(|(a, b)| a + b).collect();
    assert_eq!(got, [10, 0, 10]);
    drop((clients, one));
    let more = {
        steering.regroup(&[other.group()]).expect("one");
        other.connect(10)
    };
    assert_eq!(other.accept(), [5, 0, 5]);
    drop(more);
}

#[test]
fn what_could_not_be_added_can_be_tried_again() {
    let mut sockets = Sockets::open(2);
    let Some(mut steering) = in_kernel(&[sockets.group()]) else { return };
    // Not a socket that listens in this group.
    let wrong = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
    let mut all = sockets.group();
    all.0.push(wrong.as_fd());
    let error = steering.group_grew(&[all]).expect_err("no group").to_string();
    assert!(error.contains("the socket of slot 2"), "{error}");
    sockets.grow(2, 64);
    let groups = [sockets.group()];
    steering.group_grew(&groups).expect("grow");
    all_healthy(&mut steering, &groups);
    let clients = sockets.connect(8);
    assert_eq!(sockets.accept(), [2; 4]);
    drop(clients);
}

#[test]
fn the_next_image_steers_the_same_sockets() {
    let sockets = Sockets::open(3);
    let groups = [sockets.group()];
    let Some(steering) = in_kernel(&groups) else { return };
    steering.release(&groups);
    let Some(steering) = in_kernel(&groups) else { return };
    // And if the last one had no time to let go.
    drop(steering);
    let steering = in_kernel(&groups).expect("as before");
    let clients = sockets.connect(30);
    assert_eq!(sockets.accept(), [10; 3]);
    drop((clients, steering));
}

#[test]
fn all_slots_pass_the_verifier() {
    let desk = match bpf::create_memory("prefork_test", 32, 1025) {
        Err(e) => return assert!(bpf::is_unprivileged(&e), "{e}"),
        Ok(desk) => desk,
    };
    let sockets = bpf::create_sockets("prefork_test", 1025).expect("table");
    let bank =
        || bpf::create_memory("prefork_test", least_conn::BANK_PAGES * 4096, 1).expect("bank");
    let banks: Vec<_> = (0..32).map(|_| bank()).collect();
    let numbers: Vec<i32> = banks.iter().map(AsRawFd::as_raw_fd).collect();
    let tables = least_conn::Tables {
        desk: desk.as_raw_fd(),
        banks: &numbers,
        sockets: sockets.as_raw_fd(),
    };
    for slots in [0, 1, 4, 32, 33, 64, 500, 993, 1024] {
        let program = least_conn::program(slots, &tables).expect("it fits");
        println!("{slots} slots: {} instructions, {}", program.len(), bpf::verify(&program));
        bpf::load("prefork_test", &program).expect("the verifier takes it");
    }
    assert!(least_conn::program(1025, &tables).is_none());
}

#[test]
fn the_verifiers_refusal_is_told() {
    if bpf::create_memory("prefork_test", 4096, 1).is_err() {
        return;
    }
    let mut a = ebpf::Assembler::default();
    a.load64(ebpf::Reg(0), ebpf::Reg(3), 0);
    a.exit();
    let refusal =
        bpf::load("prefork_test", &a.finish().expect("labels")).expect_err("no such register");
    assert!(!bpf::is_unprivileged(&refusal.error), "{refusal:?}");
    assert!(refusal.verifier.contains("R3 !read_ok"), "{refusal:?}");
}
