//! The fallbacks of `least-conn` without privileges, and `ip-hash`, on real sockets.
//!
//! Capabilities belong to threads, so each test drops those of a thread of its own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use super::*;
use crate::dispatch::ip_hash::{IpHashProgram, MAX_SLOTS, select_slot};

/// Runs `test` in a thread that has at most these capabilities.
fn with_capabilities(low: u32, high: u32, test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        // A thread without capabilities cannot gain any.
        if prefork_os::credentials::restrict_thread_capabilities(low, high).is_err() {
            prefork_os::credentials::restrict_thread_capabilities(0, 0)
                .expect("dropping all capabilities is always allowed");
        }
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn unprivileged(test: impl FnOnce() + Send + 'static) {
    with_capabilities(0, 0, test);
}

#[test]
fn cap_bpf_is_enough_for_the_ebpf_program() {
    let allowed = bpf::create_array_map("prefork_test", 4096, 1).is_ok();
    // CAP_BPF is number 39.
    with_capabilities(0, 1 << (39 - 32), move || {
        for slots in [1, 4, 32, 70] {
            let sockets = Sockets::open(slots);
            let groups = [sockets.group()];
            let mut selector = KernelSelector::start(Dispatch::LeastConn, &groups);
            let reason = selector.fallback_reason();
            assert_eq!(selector.backend_name() == "ebpf", allowed, "{slots}: {reason:?}");
            all_healthy(&mut selector, &groups);
            let clients = sockets.connect(2 * slots);
            if allowed {
                assert_eq!(sockets.accept(), vec![2; slots]);
            }
            drop(clients);
        }
    });
}

#[test]
fn without_privileges_weights_avoid_unhealthy_and_busy_slots() {
    unprivileged(|| {
        let sockets = Sockets::open(4);
        let groups = [sockets.group()];
        let mut selector = KernelSelector::start(Dispatch::LeastConn, &groups);
        assert_eq!(selector.backend_name(), "cbpf-weights");
        let reason = selector.fallback_reason().expect("a reason");
        assert!(reason.contains("CAP_BPF"), "{reason}");
        all_healthy(&mut selector, &groups);
        selector.set_slot_health(Slot(2), false, &groups).expect("health");
        let mut clients = sockets.connect(300);
        let got = sockets.accept();
        println!("by weights, slot 2 of 4 not healthy: {got:?}");
        assert_eq!(got[2], 0);
        // The tolerance is five standard deviations.
        assert!([0, 1, 3].iter().all(|slot| got[*slot].abs_diff(100) < 41), "{got:?}");

        let busy = SlotLoad { open: 999, queued: 0 };
        let loads = [busy, SlotLoad::default(), busy, busy];
        let now = Instant::now();
        selector.refresh(now, &loads, &groups).expect("refresh");
        clients.extend(sockets.connect(100));
        assert!(sockets.accept()[1] > 90);
        // Loads are applied once a second only.
        selector.refresh(now + Duration::from_millis(900), &[], &groups).expect("refresh");
        clients.extend(sockets.connect(100));
        assert!(sockets.accept()[1] > 90);
        selector.refresh(now + Duration::from_millis(1000), &[], &groups).expect("refresh");
        clients.extend(sockets.connect(100));
        assert!(sockets.accept()[1] < 60);
        selector.set_slot_health(Slot(1), false, &groups).expect("health");
        clients.extend(sockets.connect(30));
        assert_eq!(sockets.accept()[1..3], [0, 0]);
    });
}

#[test]
fn the_kernels_hash_selects_if_no_program_can_be_attached() {
    // A socket that is in no group: nothing can be attached to it.
    let alone = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
    let groups = [ReuseportGroup(vec![std::os::fd::AsFd::as_fd(&alone)])];
    for policy in [Dispatch::LeastConn, Dispatch::IpHash] {
        let mut selector = KernelSelector::start(policy, &groups);
        assert_eq!(selector.backend_name(), "hash");
        let reason = selector.fallback_reason().expect("a reason");
        println!("{policy}: {reason}");
        assert!(reason.contains("cannot choose by"), "{reason}");
        all_healthy(&mut selector, &groups);
        selector.refresh(Instant::now(), &[], &groups).expect("nothing to do");
        assert!(selector.program_listing().is_empty());
    }
}

#[test]
fn a_client_reaches_the_slot_of_its_address() {
    unprivileged(|| {
        let sockets = Sockets::open(4);
        let groups = [sockets.group()];
        let mut selector = KernelSelector::start(Dispatch::IpHash, &groups);
        assert_eq!((selector.backend_name(), selector.fallback_reason()), ("ip-hash", None));
        all_healthy(&mut selector, &groups);
        let clients: Vec<IpAddr> = (1..80).map(|n| Ipv4Addr::new(127, 0, 7, n).into()).collect();
        let check = |live: &[u32]| {
            for client in &clients {
                let slot = sockets.slot_of(*client, Ipv4Addr::LOCALHOST.into());
                assert_eq!(Some(slot), select_slot(*client, live), "{client} of {live:?}");
            }
        };
        check(&[0, 1, 2, 3]);
        selector.set_slot_health(Slot(1), false, &groups).expect("health");
        // Only the clients of slot 1 move.
        check(&[0, 2, 3]);
        selector.set_slot_health(Slot(1), true, &groups).expect("health");
        check(&[0, 1, 2, 3]);
    });
}

#[test]
fn a_dual_stack_socket_hashes_ipv4_and_ipv6_clients_by_their_own_addresses() {
    unprivileged(|| {
        let sockets = Sockets::open_at((Ipv6Addr::UNSPECIFIED, 0).into(), 5);
        let groups = [sockets.group()];
        let mut selector = KernelSelector::start(Dispatch::IpHash, &groups);
        all_healthy(&mut selector, &groups);
        let live = [0, 1, 2, 3, 4];
        let v6 = IpAddr::from(Ipv6Addr::LOCALHOST);
        assert_eq!(Some(sockets.slot_of(v6, v6)), select_slot(v6, &live));
        for n in 1..40 {
            let client = IpAddr::from(Ipv4Addr::new(127, 1, 0, n));
            let slot = sockets.slot_of(client, Ipv4Addr::LOCALHOST.into());
            assert_eq!(Some(slot), select_slot(client, &live), "{client}");
        }
    });
}

#[test]
fn a_new_slot_takes_clients_and_moves_no_others() {
    let mut sockets = Sockets::open(2);
    let mut selector = KernelSelector::start(Dispatch::IpHash, &[sockets.group()]);
    all_healthy(&mut selector, &[sockets.group()]);
    sockets.grow(2, 64);
    let groups = [sockets.group()];
    selector.add_slots(&groups).expect("grow");
    let clients: Vec<IpAddr> = (1..40).map(|n| Ipv4Addr::new(127, 0, 9, n).into()).collect();
    let slot = |client: &IpAddr| sockets.slot_of(*client, Ipv4Addr::LOCALHOST.into());
    let before: Vec<u32> = clients.iter().map(slot).collect();
    assert!(before.iter().all(|slot| *slot < 2), "not healthy yet: {before:?}");
    all_healthy(&mut selector, &groups);
    let after: Vec<u32> = clients.iter().map(slot).collect();
    assert!(before.iter().zip(&after).all(|(was, is)| was == is || *is >= 2), "{after:?}");
    assert!([2, 3].iter().all(|new| after.contains(new)), "{after:?}");
}

#[test]
fn the_hash_selects_if_a_program_cannot_hold_all_slots() {
    let sockets = Sockets::open(1);
    let groups = [sockets.group()];
    let mut program = IpHashProgram::attach(&[true], &groups).expect("attach");
    program.update_slots(&vec![true; MAX_SLOTS], &groups).expect("the longest program");
    assert_eq!(program.fallback_reason(), None);
    program.update_slots(&vec![true; MAX_SLOTS + 1], &groups).expect("the hash");
    assert_eq!(program.fallback_reason(), Some("581 slots are more than 580"));
    assert_eq!(program.program_listing().len(), 1);
}

#[test]
fn attached_programs_can_be_disassembled() {
    let sockets = Sockets::open(2);
    let groups = [sockets.group()];
    let mut selector = KernelSelector::start(Dispatch::IpHash, &groups);
    all_healthy(&mut selector, &groups);
    let lines = selector.program_listing();
    assert_eq!(lines[0], "   0: ldb [net + 0]");
    assert_eq!(lines[17], "  17: ld [net + 12]");
    unprivileged(|| {
        let sockets = Sockets::open(2);
        let groups = [sockets.group()];
        let mut selector = KernelSelector::start(Dispatch::LeastConn, &groups);
        all_healthy(&mut selector, &groups);
        let expected = "ld rand|mod #2000|jge #1000, 4, 3|ret #0|jge #2000, 6, 5|ret #1|ret #-1";
        let lines: Vec<String> = selector.program_listing();
        let texts: Vec<&str> = lines.iter().map(|line| &line[6..]).collect();
        assert_eq!(texts.join("|"), expected);
    });
    let selector = KernelSelector::start(Dispatch::LeastConn, &groups);
    let lines = selector.program_listing().join("\n");
    println!("{lines}");
    assert!(!lines.contains("unknown") && !lines.contains('?'), "{lines}");
    if selector.backend_name() == "ebpf" {
        assert!(lines.contains("call bpf_sk_select_reuseport#82"), "{lines}");
        assert!(lines.contains("lock *(u64 *)(r0 +16) += r1"), "{lines}");
    }
}

#[test]
fn the_listed_program_is_the_one_that_is_loaded() {
    /// Loaded programs have other map descriptors.
    fn without_numbers(lines: &[String]) -> Vec<&str> {
        lines.iter().map(|line| line.split("map[fd").next().unwrap_or_default()).collect()
    }
    fn compare(policy: Dispatch) {
        let sockets = Sockets::open(3);
        let groups = [sockets.group()];
        let mut selector = KernelSelector::start(policy, &groups);
        all_healthy(&mut selector, &groups);
        let program = policy
            .kernel_programs(3)
            .into_iter()
            .find(|program| program.backend == selector.backend_name());
        let listed = program.expect("a listing for every backend but the hash").listing;
        assert_eq!(without_numbers(&listed), without_numbers(&selector.program_listing()));
    }
    compare(Dispatch::LeastConn);
    compare(Dispatch::IpHash);
    unprivileged(|| compare(Dispatch::LeastConn));
}
