//! What is left without privilege: the lower rungs of `least-conn`, and `ip-hash`, on real sockets. Capabilities
//! belong to threads, so each test gives up its own and no other test's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use super::*;

/// Runs `test` in a thread that has at most these capabilities.
fn with_capabilities(low: u32, high: u32, test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        // Who has none already can not take itself any.
        if prefork_os::credentials::restrict_thread_capabilities(low, high).is_err() {
            prefork_os::credentials::restrict_thread_capabilities(0, 0)
                .expect("to give up all is always allowed");
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
fn one_capability_is_enough_for_the_kernels_program() {
    let allowed = bpf::create_array_map("prefork_test", 4096, 1).is_ok();
    // CAP_BPF is number 39.
    with_capabilities(0, 1 << (39 - 32), move || {
        for slots in [1, 4, 32, 70] {
            let sockets = Sockets::open(slots);
            let groups = [sockets.group()];
            let mut steering = Steering::start(Dispatch::LeastConn, &groups);
            let reason = steering.reason().map(str::to_string);
            assert_eq!(steering.rung() == "ebpf", allowed, "{slots}: {reason:?}");
            all_healthy(&mut steering, &groups);
            let clients = sockets.connect(2 * slots);
            if allowed {
                assert_eq!(sockets.accept(), vec![2; slots]);
            }
            drop(clients);
        }
    });
}

#[test]
fn without_privilege_chance_spares_the_unhealthy_and_the_loaded() {
    unprivileged(|| {
        let sockets = Sockets::open(4);
        let groups = [sockets.group()];
        let mut steering = Steering::start(Dispatch::LeastConn, &groups);
        assert_eq!(steering.rung(), "cbpf-weights");
        let reason = steering.reason().expect("a reason").to_string();
        assert!(reason.contains("CAP_BPF"), "{reason}");
        all_healthy(&mut steering, &groups);
        steering.set_health(Slot(2), false, &groups).expect("health");
        let mut clients = sockets.connect(300);
        let got = sockets.accept();
        println!("by weights, slot 2 of 4 not healthy: {got:?}");
        assert_eq!(got[2], 0);
        // Five standard deviations.
        assert!([0, 1, 3].iter().all(|slot| got[*slot].abs_diff(100) < 41), "{got:?}");

        let busy = Load { open: 999, waiting: 0 };
        let loads = [busy, Load::default(), busy, busy];
        let now = Instant::now();
        steering.refresh(now, &loads, &groups).expect("refresh");
        clients.extend(sockets.connect(100));
        assert!(sockets.accept()[1] > 90);
        // It looks once a second, and not more often.
        steering.refresh(now + Duration::from_millis(900), &[], &groups).expect("refresh");
        clients.extend(sockets.connect(100));
        assert!(sockets.accept()[1] > 90);
        steering.refresh(now + Duration::from_millis(1000), &[], &groups).expect("refresh");
        clients.extend(sockets.connect(100));
        assert!(sockets.accept()[1] < 60);
        steering.set_health(Slot(1), false, &groups).expect("health");
        clients.extend(sockets.connect(30));
        assert_eq!(sockets.accept()[1..3], [0, 0]);
    });
}

#[test]
fn the_hash_is_left_when_no_program_can_be_attached() {
    // A socket that is in no group: nothing can be attached to it.
    let alone = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
    let groups = [Group(vec![std::os::fd::AsFd::as_fd(&alone)])];
    for policy in [Dispatch::LeastConn, Dispatch::IpHash] {
        let mut steering = Steering::start(policy, &groups);
        assert_eq!(steering.rung(), "hash");
        let reason = steering.reason().expect("a reason").to_string();
        println!("{policy}: {reason}");
        assert!(reason.contains("cannot choose by"), "{reason}");
        all_healthy(&mut steering, &groups);
        steering.refresh(Instant::now(), &[], &groups).expect("nothing to do");
        assert!(steering.listing().is_empty());
    }
}

#[test]
fn a_client_comes_to_the_slot_of_its_address() {
    unprivileged(|| {
        let sockets = Sockets::open(4);
        let groups = [sockets.group()];
        let mut steering = Steering::start(Dispatch::IpHash, &groups);
        assert_eq!((steering.rung(), steering.reason()), ("ip-hash", None));
        all_healthy(&mut steering, &groups);
        let clients: Vec<IpAddr> = (1..80).map(|n| Ipv4Addr::new(127, 0, 7, n).into()).collect();
        let check = |live: &[u32]| {
            for client in &clients {
                let slot = sockets.slot_of(*client, Ipv4Addr::LOCALHOST.into());
                assert_eq!(
                    Some(slot),
                    crate::dispatch::ip_hash::pick(*client, live),
                    "{client} of {live:?}"
                );
            }
        };
        check(&[0, 1, 2, 3]);
        steering.set_health(Slot(1), false, &groups).expect("health");
        // By the property of `pick`: those of slot 1 have moved, and nobody else.
        check(&[0, 2, 3]);
        steering.set_health(Slot(1), true, &groups).expect("health");
        check(&[0, 1, 2, 3]);
    });
}

#[test]
fn both_versions_on_one_socket_are_told_apart_by_the_packet() {
    unprivileged(|| {
        let sockets = Sockets::open_at((Ipv6Addr::UNSPECIFIED, 0).into(), 5);
        let groups = [sockets.group()];
        let mut steering = Steering::start(Dispatch::IpHash, &groups);
        all_healthy(&mut steering, &groups);
        let live = [0, 1, 2, 3, 4];
        let v6 = IpAddr::from(Ipv6Addr::LOCALHOST);
        assert_eq!(Some(sockets.slot_of(v6, v6)), crate::dispatch::ip_hash::pick(v6, &live));
        for n in 1..40 {
            let client = IpAddr::from(Ipv4Addr::new(127, 1, 0, n));
            let slot = sockets.slot_of(client, Ipv4Addr::LOCALHOST.into());
            assert_eq!(Some(slot), crate::dispatch::ip_hash::pick(client, &live), "{client}");
        }
    });
}

#[test]
fn a_new_slot_takes_clients_and_moves_no_others() {
    let mut sockets = Sockets::open(2);
    let mut steering = Steering::start(Dispatch::IpHash, &[sockets.group()]);
    all_healthy(&mut steering, &[sockets.group()]);
    sockets.grow(2, 64);
    let groups = [sockets.group()];
    steering.group_grew(&groups).expect("grow");
    let clients: Vec<IpAddr> = (1..40).map(|n| Ipv4Addr::new(127, 0, 9, n).into()).collect();
    let slot = |client: &IpAddr| sockets.slot_of(*client, Ipv4Addr::LOCALHOST.into());
    let before: Vec<u32> = clients.iter().map(slot).collect();
    assert!(before.iter().all(|slot| *slot < 2), "not healthy yet: {before:?}");
    all_healthy(&mut steering, &groups);
    let after: Vec<u32> = clients.iter().map(slot).collect();
    assert!(before.iter().zip(&after).all(|(was, is)| was == is || *is >= 2), "{after:?}");
    assert!([2, 3].iter().all(|new| after.contains(new)), "{after:?}");
}

#[test]
fn more_slots_than_a_program_holds_are_left_to_the_hash() {
    let sockets = Sockets::open(1);
    let groups = [sockets.group()];
    let mut sticky = Sticky::start(&[true], &groups).expect("attach");
    let most = vec![true; crate::dispatch::ip_hash::MOST];
    assert_eq!(sticky.update(&most, &groups).expect("the longest program"), None);
    let why =
        sticky.update(&vec![true; crate::dispatch::ip_hash::MOST + 1], &groups).expect("the hash");
    assert_eq!(why.as_deref(), Some("581 slots are more than 580"));
    assert_eq!(sticky.program.len(), 1);
}

#[test]
fn programs_are_written_down_for_people() {
    let sockets = Sockets::open(2);
    let groups = [sockets.group()];
    let mut steering = Steering::start(Dispatch::IpHash, &groups);
    all_healthy(&mut steering, &groups);
    let lines = steering.listing();
    assert_eq!(lines[0], "   0: ldb [net + 0]");
    assert_eq!(lines[17], "  17: ld [net + 12]");
    unprivileged(|| {
        let sockets = Sockets::open(2);
        let groups = [sockets.group()];
        let mut steering = Steering::start(Dispatch::LeastConn, &groups);
        all_healthy(&mut steering, &groups);
        let expected = "ld rand|mod #2000|jge #1000, 4, 3|ret #0|jge #2000, 6, 5|ret #1|ret #-1";
        let lines: Vec<String> = steering.listing();
        let texts: Vec<&str> = lines.iter().map(|line| &line[6..]).collect();
        assert_eq!(texts.join("|"), expected);
    });
    let steering = Steering::start(Dispatch::LeastConn, &groups);
    let lines = steering.listing().join("\n");
    println!("{lines}");
    assert!(!lines.contains("unknown") && !lines.contains('?'), "{lines}");
    if steering.rung() == "ebpf" {
        assert!(lines.contains("call bpf_sk_select_reuseport#82"), "{lines}");
        assert!(lines.contains("lock *(u64 *)(r0 +16) += r1"), "{lines}");
    }
}

#[test]
fn what_is_printed_beforehand_is_what_is_loaded() {
    /// Tables have other numbers when they are real.
    fn without_numbers(lines: &[String]) -> Vec<&str> {
        lines.iter().map(|line| line.split("map[fd").next().unwrap_or_default()).collect()
    }
    fn compare(policy: Dispatch) {
        let sockets = Sockets::open(3);
        let groups = [sockets.group()];
        let mut steering = Steering::start(policy, &groups);
        all_healthy(&mut steering, &groups);
        let plan = policy.kernel_programs(3).into_iter().find(|plan| plan.rung == steering.rung());
        let planned = plan.expect("a plan of every rung but the hash").listing;
        assert_eq!(without_numbers(&planned), without_numbers(&steering.listing()));
    }
    compare(Dispatch::LeastConn);
    compare(Dispatch::IpHash);
    unprivileged(|| compare(Dispatch::LeastConn));
}
