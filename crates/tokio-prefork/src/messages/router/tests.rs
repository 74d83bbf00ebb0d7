//! Tests of the router.

use super::*;
use crate::messages::envelope::tests::test_envelope;
use prefork_supervisor::{Generation, Slot, WEB_KIND};

fn worker_tag(id: u64, slot: u32) -> WorkerTag {
    let (id, slot, generation) = (WorkerId(id), Slot(slot), Generation(1));
    WorkerTag { id, slot, generation, pid: None, kind: WEB_KIND }
}

/// Creates a router with workers 1 to `workers` at slots 0 up, and queues of `queue` messages.
fn create_router(workers: u64, queue: usize) -> MessageRouter {
    let mut router = MessageRouter::new(MessageLimits::default().queue_bounds(1 << 20, queue));
    (1..=workers).for_each(|id| router.add_worker(worker_tag(id, id as u32 - 1)));
    router
}

fn always_serving(_: WorkerId) -> bool {
    true
}

fn envelope_to(address: MessageAddress) -> Envelope {
    Envelope { address, ..test_envelope("a", 3) }
}

fn request_to(address: MessageAddress) -> Envelope {
    Envelope { class: MessageClass::Request, id: 7, ..envelope_to(address) }
}

fn drain_queue(router: &mut MessageRouter, id: u64) -> usize {
    let mut packets = 0;
    let send_queue = router.send_queue(WorkerId(id)).expect("open");
    while send_queue.current_packet().is_some() {
        send_queue.packet_sent();
        packets += 1;
    }
    packets
}

/// Returns the senders of the messages to the primary, in routing order.
fn senders_to_primary(router: &mut MessageRouter) -> Vec<u64> {
    let mut from = Vec::new();
    loop {
        match router.route_next(Instant::now(), &always_serving) {
            RouterStep::ForPrimary(tag, _) => from.push(tag.id.0),
            RouterStep::Forwarded => {}
            RouterStep::Idle => return from,
        }
    }
}

#[test]
fn a_flooding_worker_does_not_starve_others() {
    let mut router = create_router(3, 10);
    router.receive(WorkerId(1), (0..100).map(|_| envelope_to(MessageAddress::Primary)).collect());
    router.receive(WorkerId(2), [envelope_to(MessageAddress::Primary)].into());
    router.receive(
        WorkerId(3),
        [envelope_to(MessageAddress::Primary), envelope_to(MessageAddress::Primary)].into(),
    );
    assert!(!router.can_read(WorkerId(1)));
    assert_eq!(senders_to_primary(&mut router)[..6], [1, 2, 3, 1, 3, 1]);
    assert!(router.can_read(WorkerId(1)) && !router.has_work());
}

#[test]
fn messages_reach_the_worker_that_serves_the_slot() {
    let mut router = create_router(2, 10);
    // A successor at slot 0, not ready yet.
    router.add_worker(worker_tag(3, 0));
    let is_serving = |id: WorkerId| id != WorkerId(3);
    router.receive(WorkerId(2), [envelope_to(MessageAddress::Slot(Slot(0)))].into());
    assert!(matches!(router.route_next(Instant::now(), &is_serving), RouterStep::Forwarded));
    assert!(router.has_outgoing(WorkerId(1)) && !router.has_outgoing(WorkerId(3)));
    router.receive(
        WorkerId(2),
        [
            envelope_to(MessageAddress::Slot(Slot(0))),
            envelope_to(MessageAddress::Worker(WorkerId(1))),
        ]
        .into(),
    );
    drain_queue(&mut router, 1);
    assert!(senders_to_primary(&mut router).is_empty());
    assert_eq!((drain_queue(&mut router, 3), drain_queue(&mut router, 1)), (1, 1));
    // Without another worker, one that does not serve yet gets the message.
    router.close_worker(WorkerId(1), Instant::now());
    let sent = router.send(
        MessageAddress::Slot(Slot(0)),
        test_envelope("a", 1),
        &is_serving,
        Instant::now(),
    );
    assert!(sent.is_ok() && router.has_outgoing(WorkerId(3)));
}

#[test]
fn a_broadcast_reaches_all_workers_except_its_sender_once() {
    let mut router = create_router(4, 2);
    router.receive(WorkerId(2), [envelope_to(MessageAddress::AllOthers)].into());
    assert!(senders_to_primary(&mut router).is_empty());
    let has = [1, 2, 3, 4].map(|id| router.has_outgoing(WorkerId(id)));
    assert_eq!(has, [true, false, true, true]);
    assert_eq!(router.broadcast(&test_envelope("a", 1)), Ok((4, 0)));
    // Three have two envelopes now, which is all they may have.
    assert_eq!(router.broadcast(&test_envelope("a", 1)), Ok((1, 3)));
    assert_eq!(router.lost_count(), 3);
}

#[test]
fn a_sender_waits_at_most_a_second_for_a_full_receiver() {
    let mut router = create_router(3, 1);
    let now = Instant::now();
    let twice = || {
        [
            request_to(MessageAddress::Worker(WorkerId(2))),
            request_to(MessageAddress::Worker(WorkerId(2))),
        ]
    };
    router.receive(WorkerId(1), twice().into());
    router.receive(WorkerId(3), [envelope_to(MessageAddress::Primary)].into());
    assert!(matches!(router.route_next(now, &always_serving), RouterStep::Forwarded));
    // Other senders are not delayed.
    assert!(
        matches!(router.route_next(now, &always_serving), RouterStep::ForPrimary(from, _) if from.id == WorkerId(3))
    );
    assert!(matches!(router.route_next(now, &always_serving), RouterStep::Idle));
    assert!(router.is_blocked() && !router.has_work() && !router.can_read(WorkerId(1)));
    // The receiver takes something: the sender goes on.
    assert_eq!(drain_queue(&mut router, 2), 1);
    router.record_progress(WorkerId(2));
    assert!(matches!(
        router.route_next(now + FULL_QUEUE_TIMEOUT, &always_serving),
        RouterStep::Forwarded
    ));
    assert_eq!(router.lost_count(), 0);
    // Now it reads nothing: requests are refused.
    router.receive(WorkerId(1), twice().into());
    assert!(matches!(router.route_next(now, &always_serving), RouterStep::Idle));
    assert!(matches!(
        router.route_next(now + FULL_QUEUE_TIMEOUT, &always_serving),
        RouterStep::Forwarded
    ));
    assert!(matches!(
        router.route_next(now + FULL_QUEUE_TIMEOUT, &always_serving),
        RouterStep::Forwarded
    ));
    assert_eq!(router.lost_count(), 2);
    assert!(router.has_outgoing(WorkerId(1)) && router.can_read(WorkerId(1)));
}

#[test]
fn a_request_to_a_missing_worker_is_refused() {
    let mut router = create_router(1, 4);
    router.receive(
        WorkerId(1),
        [
            request_to(MessageAddress::Slot(Slot(9))),
            envelope_to(MessageAddress::Worker(WorkerId(9))),
        ]
        .into(),
    );
    assert!(senders_to_primary(&mut router).is_empty());
    router.deliver_held(Instant::now(), &always_serving, &|slot| slot != Slot(9));
    assert_eq!((router.lost_count(), drain_queue(&mut router, 1)), (2, 1));
    let sent = router.send(
        MessageAddress::Worker(WorkerId(9)),
        test_envelope("a", 1),
        &always_serving,
        Instant::now(),
    );
    assert!(sent.is_err_and(|rejected| matches!(rejected.0, MessageError::NoSuchWorker(_))));
}

#[test]
fn messages_of_dead_workers_are_routed_but_not_those_of_misbehaving_ones() {
    let mut router = create_router(2, 4);
    for id in [1, 2] {
        router.receive(
            WorkerId(id),
            [envelope_to(MessageAddress::Primary), envelope_to(MessageAddress::Primary)].into(),
        );
    }
    router.close_worker(WorkerId(1), Instant::now());
    router.remove_misbehaving(WorkerId(2), Instant::now());
    assert_eq!(senders_to_primary(&mut router), [1, 1]);
    assert!(router.workers.is_empty() && router.turn_order.is_empty());
}

#[test]
fn queues_are_bounded_and_an_empty_queue_accepts_any_message() {
    let mut router =
        MessageRouter::new(MessageLimits::default().queue_bounds(1000, 3).max_message_bytes(5000));
    router.add_worker(worker_tag(1, 0));
    let mut send = |size| {
        let sent = router.send(
            MessageAddress::Worker(WorkerId(1)),
            test_envelope("a", size),
            &always_serving,
            Instant::now(),
        );
        sent.map_err(|rejected| {
            assert_eq!(rejected.1.payload.bytes().len(), size, "it comes rejected");
            rejected.0
        })
    };
    assert_eq!(send(5000), Ok(WorkerId(1)));
    assert_eq!(send(0), Err(MessageError::Full));
    assert_eq!(send(5064), Err(MessageError::TooLarge { size: 5064, most: 5000 }));
    drain_queue(&mut router, 1);
    let mut send = |size| {
        router
            .send(
                MessageAddress::Worker(WorkerId(1)),
                test_envelope("a", size),
                &always_serving,
                Instant::now(),
            )
            .is_ok()
    };
    assert_eq!([1, 1, 1, 1].map(&mut send), [true, true, true, false]);
}
