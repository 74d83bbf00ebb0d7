//! What changes while the program of `least-conn` steers: workers, slots, addresses, images.

use super::*;

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
    let meter = steering.give_up_all_but(lease).expect("give up");
    (0..10).for_each(|_| meter.opened());
    let clients = sockets.connect(10);
    assert_eq!(sockets.accept(), [0, 10]);
    (0..10).for_each(|_| meter.closed());
    let more = sockets.connect(10);
    assert_eq!(sockets.accept(), [10, 0]);
    (0..10).for_each(|_| meter.opened());
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
