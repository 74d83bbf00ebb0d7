//! Which slot the eBPF program of `least-conn` selects.

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use super::*;
use crate::dispatch::bpf::ebpf;
use crate::dispatch::least_conn::program;

#[test]
fn connections_are_spread_evenly_over_healthy_slots() {
    let sockets = Sockets::open(4);
    let groups = [sockets.group()];
    let Some(mut selector) = start_least_conn(&groups) else { return };
    selector.set_slot_health(Slot(2), false, &groups).expect("health");
    let clients = sockets.connect(200);
    let got = sockets.accept();
    println!("slot 2 of 4 not healthy: {got:?}");
    assert_eq!(got[2], 0);
    assert!([0, 1, 3].iter().all(|slot| (66..=67).contains(&got[*slot])), "{got:?}");
    assert_eq!(least_conn_program(&mut selector).memory.hash_fallback_count(), 0);
    drop(clients);
}

#[test]
fn slots_with_fewer_connections_catch_up_over_all_addresses() {
    let (one, other) = (Sockets::open(4), Sockets::open(4));
    let groups = [one.group(), other.group()];
    let Some(mut selector) = start_least_conn(&groups) else { return };
    let open = [30, 0, 12, 5];
    for (slot, open) in open.iter().enumerate() {
        least_conn_program(&mut selector).memory.set_counts(slot, *open, 0);
    }
    let clients = [one.connect(20), other.connect(53)];
    let got: Vec<usize> = one.accept().iter().zip(other.accept()).map(|(a, b)| a + b).collect();
    println!("open {open:?}, and 73 more: {got:?}");
    assert_eq!(got, [0, 30, 18, 25]);
    drop(clients);
}

#[test]
fn a_random_idle_slot_is_selected() {
    let sockets = Sockets::open(5);
    let groups = [sockets.group()];
    let Some(mut selector) = start_least_conn(&groups) else { return };
    selector.set_slot_health(Slot(1), false, &groups).expect("health");
    let mut got = [0_u64; 5];
    for _ in 0..400 {
        let client = sockets.connect(1);
        let slot = sockets.accept().iter().position(|n| *n == 1).expect("one");
        got[slot] += 1;
        // These connections were accepted, served and closed.
        least_conn_program(&mut selector).memory.set_counts(slot, 0, got[slot]);
        drop(client);
    }
    println!("400 one after another, slot 1 not healthy: {got:?}");
    // The tolerance is five standard deviations.
    assert!([0, 2, 3, 4].iter().all(|slot| got[*slot].abs_diff(100) < 44), "{got:?}");
    assert_eq!(got[1], 0);
}

#[test]
fn a_worker_that_writes_implausible_counts_gets_no_connections() {
    let sockets = Sockets::open(3);
    let groups = [sockets.group()];
    let Some(mut selector) = start_least_conn(&groups) else { return };
    for (open, accepted) in [(u64::MAX, 0), (1 << 63, 0), (0, 1 << 63), (0, 1 << 40)] {
        least_conn_program(&mut selector).memory.set_counts(1, open, accepted);
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
    let Some(mut selector) = start_least_conn(&groups) else { return };
    for slot in 0..3 {
        selector.set_slot_health(Slot(slot), false, &groups).expect("health");
    }
    let clients = sockets.connect(30);
    assert_eq!(sockets.accept().iter().sum::<usize>(), 30);
    assert_eq!(least_conn_program(&mut selector).memory.hash_fallback_count(), 30);
    drop(clients);
}

#[test]
fn syns_without_a_connection_stop_counting_as_load() {
    let mut sockets = Sockets::open(0);
    sockets.grow(1, 1);
    let groups = [sockets.group()];
    let Some(mut selector) = start_least_conn(&groups) else { return };
    // The queue has room for two; the kernel drops what comes after that, but the program has seen it.
    let clients: Vec<Socket> = (0..12)
        .map(|_| {
            let client = Socket::new(Domain::IPV4, Type::STREAM, None).expect("client");
            client.set_nonblocking(true).expect("nonblocking");
            let _ = client.connect(&sockets.address.into());
            client
        })
        .collect();
    let queued =
        || u64::from(prefork_os::socket::accept_queue(&sockets.all[0]).expect("queue").depth);
    let before = least_conn_program(&mut selector).memory.selected_count(0);
    assert!(queued() == 2 && before >= 12, "{} queued, {before} selected", queued());
    // Their retries would be counted too.
    drop(clients);
    let mut now = Instant::now();
    let mut refresh = |selector: &mut KernelSelector| {
        now += Duration::from_secs(1);
        selector.refresh(now, &[], &groups).expect("refresh");
        least_conn_program(selector).memory.selected_count(0)
    };
    let first = refresh(&mut selector);
    assert!(first >= before, "one refresh alone subtracts nothing: {before} to {first}");
    refresh(&mut selector);
    let third = refresh(&mut selector);
    println!("selected {before}, queued {}; after three refreshes {third}", queued());
    assert_eq!(third, queued());
}

#[test]
fn programs_for_up_to_1024_slots_pass_the_verifier() {
    let slot_table = match bpf::create_array_map("prefork_test", 32, 1025) {
        Err(e) => return assert!(bpf::is_permission_denied(&e), "{e}"),
        Ok(slot_table) => slot_table,
    };
    let sockets = bpf::create_reuseport_socket_map("prefork_test", 1025).expect("table");
    let bank =
        || bpf::create_array_map("prefork_test", program::BANK_PAGES * 4096, 1).expect("bank");
    let banks: Vec<_> = (0..32).map(|_| bank()).collect();
    let numbers: Vec<i32> = banks.iter().map(AsRawFd::as_raw_fd).collect();
    let maps = program::ProgramMaps {
        slot_table: slot_table.as_raw_fd(),
        page_banks: &numbers,
        sockets: sockets.as_raw_fd(),
    };
    for slots in [0, 1, 4, 32, 33, 64, 500, 993, 1024] {
        let instructions = program::assemble(slots, &maps).expect("it fits");
        println!(
            "{slots} slots: {} instructions, {}",
            instructions.len(),
            bpf::verifier_statistics(&instructions)
        );
        bpf::load_reuseport_program("prefork_test", &instructions).expect("the verifier takes it");
    }
    assert!(program::assemble(1025, &maps).is_none());
}

#[test]
fn a_load_error_holds_the_log_of_the_verifier() {
    if bpf::create_array_map("prefork_test", 4096, 1).is_err() {
        return;
    }
    let mut a = ebpf::Assembler::default();
    a.load64(ebpf::Register(0), ebpf::Register(3), 0);
    a.exit();
    let refusal = bpf::load_reuseport_program("prefork_test", &a.finish().expect("labels"))
        .expect_err("no such register");
    assert!(!bpf::is_permission_denied(&refusal.error), "{refusal:?}");
    assert!(refusal.verifier_log.contains("R3 !read_ok"), "{refusal:?}");
}

#[test]
fn refreshes_while_connections_move_keep_the_counts_right() {
    let sockets = Sockets::open(2);
    let groups = [sockets.group()];
    let Some(mut selector) = start_least_conn(&groups) else { return };
    for slot in [Slot(0), Slot(1)] {
        let lease = selector.lease_page(slot);
        selector.activate_page(lease);
    }
    let address = sockets.address;
    let clients = std::thread::spawn(move || {
        for _ in 0..500 {
            drop(std::net::TcpStream::connect(address).expect("connect"));
        }
    });
    let (mut now, mut accepted) = (Instant::now(), [0; 2]);
    let mut refresh = |selector: &mut KernelSelector| {
        now += Duration::from_secs(1);
        selector.refresh(now, &[], &groups).expect("refresh");
    };
    loop {
        let done = clients.is_finished();
        for (slot, count) in sockets.accept().into_iter().enumerate() {
            refresh(&mut selector);
            // Taken out of the queue before, and counted only now.
            accepted[slot] += count as u64;
            least_conn_program(&mut selector).memory.set_counts(slot, 0, accepted[slot]);
        }
        if done {
            break;
        }
    }
    clients.join().expect("clients");
    refresh(&mut selector);
    refresh(&mut selector);
    assert_eq!(accepted.iter().sum::<u64>(), 500);
    for (slot, accepted) in accepted.iter().enumerate() {
        assert_eq!(
            least_conn_program(&mut selector).memory.selected_count(slot),
            *accepted,
            "slot {slot}"
        );
    }
    // Both slots got connections all the time: neither counted as loaded for long.
    assert!(accepted.iter().all(|n| *n > 100), "{accepted:?}");
}
