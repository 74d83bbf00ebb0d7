//! The post, without a kernel.

use super::*;
use crate::messages::envelope::tests::letter;
use prefork_supervisor::{Generation, Slot, WEB_KIND};

fn tag(id: u64, slot: u32) -> WorkerTag {
    let (id, slot, generation) = (WorkerId(id), Slot(slot), Generation(1));
    WorkerTag { id, slot, generation, pid: None, kind: WEB_KIND }
}

/// Workers 1 to `workers` at slots 0 up, with queues of `queue` messages.
fn post(workers: u64, queue: usize) -> Post {
    let mut post = Post::new(MessageLimits::default().queue_bounds(1 << 20, queue));
    (1..=workers).for_each(|id| post.open(tag(id, id as u32 - 1)));
    post
}

fn all(_: WorkerId) -> bool {
    true
}

fn to(place: Place) -> Letter {
    Letter { place, ..letter("a", 3) }
}

fn request(place: Place) -> Letter {
    Letter { class: Class::Request, id: 7, ..to(place) }
}

fn drain(post: &mut Post, id: u64) -> usize {
    let mut packets = 0;
    let outbox = post.outbox(WorkerId(id)).expect("open");
    while outbox.packet().is_some() {
        outbox.sent();
        packets += 1;
    }
    packets
}

/// Who the letters to the primary come from, in turn.
fn mine(post: &mut Post) -> Vec<u64> {
    let mut from = Vec::new();
    loop {
        match post.next(Instant::now(), &all) {
            Turn::Mine(tag, _) => from.push(tag.id.0),
            Turn::Moved => {}
            Turn::Idle => return from,
        }
    }
}

#[test]
fn a_flooder_does_not_starve_the_others() {
    let mut post = post(3, 10);
    post.come(WorkerId(1), (0..100).map(|_| to(Place::Primary)).collect());
    post.come(WorkerId(2), [to(Place::Primary)].into());
    post.come(WorkerId(3), [to(Place::Primary), to(Place::Primary)].into());
    assert!(!post.may_read(WorkerId(1)));
    assert_eq!(mine(&mut post)[..6], [1, 2, 3, 1, 3, 1]);
    assert!(post.may_read(WorkerId(1)) && !post.has_turns());
}

#[test]
fn letters_find_the_worker_that_serves_the_slot() {
    let mut post = post(2, 10);
    // A successor at slot 0, not ready yet.
    post.open(tag(3, 0));
    let serves = |id: WorkerId| id != WorkerId(3);
    post.come(WorkerId(2), [to(Place::Slot(Slot(0)))].into());
    assert!(matches!(post.next(Instant::now(), &serves), Turn::Moved));
    assert!(post.has_outgoing(WorkerId(1)) && !post.has_outgoing(WorkerId(3)));
    post.come(WorkerId(2), [to(Place::Slot(Slot(0))), to(Place::Worker(WorkerId(1)))].into());
    drain(&mut post, 1);
    assert!(mine(&mut post).is_empty());
    assert_eq!((drain(&mut post, 3), drain(&mut post, 1)), (1, 1));
    // With nobody else there, one that does not serve yet will read it later.
    post.close(WorkerId(1));
    let sent = post.send(Place::Slot(Slot(0)), letter("a", 1), &serves);
    assert!(sent.is_ok() && post.has_outgoing(WorkerId(3)));
}

#[test]
fn a_broadcast_goes_to_everybody_but_its_sender_once() {
    let mut post = post(4, 2);
    post.come(WorkerId(2), [to(Place::Everybody)].into());
    assert!(mine(&mut post).is_empty());
    let has = [1, 2, 3, 4].map(|id| post.has_outgoing(WorkerId(id)));
    assert_eq!(has, [true, false, true, true]);
    assert_eq!(post.broadcast(&letter("a", 1)), Ok((4, 0)));
    // Three have two letters now, which is all they may have.
    assert_eq!(post.broadcast(&letter("a", 1)), Ok((1, 3)));
    assert_eq!(post.lost(), 3);
}

#[test]
fn a_sender_waits_for_a_full_receiver_for_a_second_and_no_longer() {
    let mut post = post(3, 1);
    let now = Instant::now();
    let twice = || [request(Place::Worker(WorkerId(2))), request(Place::Worker(WorkerId(2)))];
    post.come(WorkerId(1), twice().into());
    post.come(WorkerId(3), [to(Place::Primary)].into());
    assert!(matches!(post.next(now, &all), Turn::Moved));
    // The other one is not held up by this.
    assert!(matches!(post.next(now, &all), Turn::Mine(from, _) if from.id == WorkerId(3)));
    assert!(matches!(post.next(now, &all), Turn::Idle));
    assert!(post.is_blocked() && !post.has_turns() && !post.may_read(WorkerId(1)));
    // The receiver takes something: the sender goes on.
    assert_eq!(drain(&mut post, 2), 1);
    post.taken(WorkerId(2));
    assert!(matches!(post.next(now + PATIENCE, &all), Turn::Moved));
    assert_eq!(post.lost(), 0);
    // Now it takes nothing: those who ask are told.
    post.come(WorkerId(1), twice().into());
    assert!(matches!(post.next(now, &all), Turn::Idle));
    assert!(matches!(post.next(now + PATIENCE, &all), Turn::Moved));
    assert!(matches!(post.next(now + PATIENCE, &all), Turn::Moved));
    assert_eq!(post.lost(), 2);
    assert!(post.has_outgoing(WorkerId(1)) && post.may_read(WorkerId(1)));
}

#[test]
fn a_request_to_nobody_is_refused() {
    let mut post = post(1, 4);
    post.come(WorkerId(1), [request(Place::Slot(Slot(9))), to(Place::Worker(WorkerId(9)))].into());
    assert!(mine(&mut post).is_empty());
    assert_eq!((post.lost(), drain(&mut post, 1)), (2, 1));
    let sent = post.send(Place::Worker(WorkerId(9)), letter("a", 1), &all);
    assert!(sent.is_err_and(|back| matches!(back.0, MessageError::NoSuchWorker(_))));
}

#[test]
fn what_the_dead_sent_is_handled_and_what_the_condemned_sent_is_not() {
    let mut post = post(2, 4);
    for id in [1, 2] {
        post.come(WorkerId(id), [to(Place::Primary), to(Place::Primary)].into());
    }
    post.close(WorkerId(1));
    post.condemn(WorkerId(2));
    assert_eq!(mine(&mut post), [1, 1]);
    assert!(post.boxes.is_empty() && post.turns.is_empty());
}

#[test]
fn queues_are_bounded_in_messages_and_bytes_and_a_large_one_always_fits_alone() {
    let mut post =
        Post::new(MessageLimits::default().queue_bounds(1000, 3).max_message_bytes(5000));
    post.open(tag(1, 0));
    let mut send = |size| {
        let sent = post.send(Place::Worker(WorkerId(1)), letter("a", size), &all);
        sent.map_err(|back| {
            assert_eq!(back.1.payload.len(), size, "it comes back");
            back.0
        })
    };
    assert_eq!(send(5000), Ok(WorkerId(1)));
    assert_eq!(send(0), Err(MessageError::Full));
    assert_eq!(send(5064), Err(MessageError::TooLarge { size: 5064, most: 5000 }));
    drain(&mut post, 1);
    let mut send = |size| post.send(Place::Worker(WorkerId(1)), letter("a", size), &all).is_ok();
    assert_eq!([1, 1, 1, 1].map(&mut send), [true, true, true, false]);
}
