//! Changes of workers, slots, addresses and primaries while the program of `least-conn` is attached.

use super::*;

#[test]
fn slots_can_be_added_while_the_program_is_attached() {
    let mut sockets = Sockets::open(2);
    let mut selector = {
        let groups = [sockets.group()];
        let Some(selector) = start_least_conn(&groups) else { return };
        selector
    };
    least_conn_program(&mut selector).memory.set_counts(0, 100, 0);
    least_conn_program(&mut selector).memory.set_counts(1, 100, 0);
    // Beyond the first bank.
    sockets.grow(38, 1024);
    let groups = [sockets.group()];
    selector.add_slots(&groups).expect("grow");
    let none = sockets.connect(10);
    assert_eq!(sockets.accept()[2..].iter().sum::<usize>(), 0, "none of the new ones is healthy");
    all_healthy(&mut selector, &groups);
    let clients = sockets.connect(76);
    assert_eq!(sockets.accept(), [vec![0; 2], vec![2; 38]].concat());
    drop((none, clients));
}

#[test]
fn a_worker_can_write_its_own_page_only() {
    let sockets = Sockets::open(2);
    let groups = [sockets.group()];
    let Some(mut selector) = start_least_conn(&groups) else { return };
    let lease = selector.lease_page(Slot(0));
    selector.activate_page(lease);
    // As after a fork; the program stays attached.
    let page = selector.keep_only_page(lease).expect("give up");
    (0..10).for_each(|_| page.count_opened());
    let clients = sockets.connect(10);
    assert_eq!(sockets.accept(), [0, 10]);
    (0..10).for_each(|_| page.count_closed());
    let more = sockets.connect(10);
    assert_eq!(sockets.accept(), [10, 0]);
    (0..10).for_each(|_| page.count_opened());
    (0..10).for_each(|_| page.count_accepted());
    // A worker that drains stops counting.
    page.stop_counting();
    (0..5).for_each(|_| page.count_opened());
    let even = sockets.connect(2);
    assert_eq!(sockets.accept(), [1, 1]);
    drop((clients, more, even));
}

#[test]
fn a_new_worker_starts_without_load_and_a_dead_one_leaves_none() {
    let sockets = Sockets::open(2);
    let groups = [sockets.group()];
    let Some(mut selector) = start_least_conn(&groups) else { return };
    let active = selector.lease_page(Slot(0));
    selector.activate_page(active);
    let clients = sockets.connect(10);
    assert_eq!(sockets.accept(), [5, 5]);
    least_conn_program(&mut selector).memory.set_counts(0, 5, 5);
    // Five open at slot 1; the replacement at slot 0 has none, but one waits.
    let waits = sockets.connect(1);
    let replacement = selector.lease_page(Slot(0));
    assert_ne!(active, replacement);
    selector.activate_page(replacement);
    let more = sockets.connect(3);
    let got = sockets.accept();
    assert!(got[0] >= 3, "{got:?}");
    selector.free_page(active);
    selector.free_page(replacement);
    let again = selector.lease_page(Slot(0));
    selector.free_page(replacement);
    assert_eq!(
        least_conn_program(&mut selector).memory.lease_page(Slot(0)).page.map(|(page, _)| page),
        Some(1)
    );
    selector.activate_page(again);
    drop((clients, waits, more));
}

#[test]
fn addresses_can_be_added_and_removed() {
    let (one, other) = (Sockets::open(3), Sockets::open(3));
    let Some(mut selector) = start_least_conn(&[one.group()]) else { return };
    least_conn_program(&mut selector).memory.set_counts(1, 100, 0);
    selector.replace_groups(&[other.group(), one.group()]).expect("two");
    let clients = [one.connect(10), other.connect(10)];
    let got: Vec<usize> = one.accept().iter().zip(other.accept()).map(|(a, b)| a + b).collect();
    assert_eq!(got, [10, 0, 10]);
    drop((clients, one));
    let more = {
        selector.replace_groups(&[other.group()]).expect("one");
        other.connect(10)
    };
    assert_eq!(other.accept(), [5, 0, 5]);
    drop(more);
}

#[test]
fn adding_slots_can_be_retried_after_an_error() {
    let mut sockets = Sockets::open(2);
    let Some(mut selector) = start_least_conn(&[sockets.group()]) else { return };
    // Not a socket that listens in this group.
    let wrong = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
    let mut all = sockets.group();
    all.0.push(wrong.as_fd());
    let error = selector.add_slots(&[all]).expect_err("no group").to_string();
    assert!(error.contains("the socket of slot 2"), "{error}");
    sockets.grow(2, 64);
    let groups = [sockets.group()];
    selector.add_slots(&groups).expect("grow");
    all_healthy(&mut selector, &groups);
    let clients = sockets.connect(8);
    assert_eq!(sockets.accept(), [2; 4]);
    drop(clients);
}

#[test]
fn a_new_selector_takes_over_the_same_sockets() {
    let sockets = Sockets::open(3);
    let groups = [sockets.group()];
    let Some(selector) = start_least_conn(&groups) else { return };
    selector.detach(&groups);
    let Some(selector) = start_least_conn(&groups) else { return };
    // Even if the last one was dropped without `detach`.
    drop(selector);
    let selector = start_least_conn(&groups).expect("as before");
    let clients = sockets.connect(30);
    assert_eq!(sockets.accept(), [10; 3]);
    drop((clients, selector));
}
