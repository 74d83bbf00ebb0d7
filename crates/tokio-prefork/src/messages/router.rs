//! Queues the messages of each worker and decides which one is routed next, and where. Without I/O or clock.
//!
//! Workers take turns, one message each. Messages between workers are forwarded here; the router sets the sender, not the worker. A
//! message for a full queue stays first in its sender's queue, and the sender is not read meanwhile: so a flooding sender is slowed
//! down to its receiver. If the receiver takes nothing for a second, the message is dropped.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::send_queue::SendQueue;
use super::{
    AttachedConnection, Envelope, MessageAddress, MessageClass, MessageError, MessageLimits,
    MessageSender, Payload, RejectedEnvelope, ReplyTo,
};
use prefork_supervisor::{WorkerId, WorkerTag};

/// How long a message waits for a receiver that reads nothing.
const FULL_QUEUE_TIMEOUT: Duration = Duration::from_secs(1);

/// Tells whether a worker serves its slot.
type IsServing<'a> = &'a dyn Fn(WorkerId) -> bool;

/// The result of one routing step.
#[derive(Debug)]
pub(crate) enum RouterStep {
    /// A message to the primary.
    ForPrimary(WorkerTag, Envelope),
    /// A message was forwarded to another worker, or dropped.
    Forwarded,
    /// No message can be routed at the moment.
    Idle,
}

/// The messages to and from one worker.
#[derive(Debug)]
struct WorkerQueues {
    tag: WorkerTag,
    /// Received messages that are not routed yet. The worker is not read until this is empty.
    received: VecDeque<Envelope>,
    send_queue: SendQueue,
    /// Whether messages can still be sent to the worker.
    is_open: bool,
    /// Since when the send queue has been full and not read.
    full_since: Option<Instant>,
}

/// The message queues of all workers.
#[derive(Debug)]
pub(super) struct MessageRouter {
    limits: MessageLimits,
    workers: BTreeMap<WorkerId, WorkerQueues>,
    /// The order in which workers are served. Holds each worker with received messages once.
    turn_order: VecDeque<WorkerId>,
    /// Whether all received messages wait for full queues.
    is_blocked: bool,
    dropped_count: u64,
}

impl MessageRouter {
    pub(super) fn new(limits: MessageLimits) -> MessageRouter {
        let (workers, turn_order) = (BTreeMap::new(), VecDeque::new());
        MessageRouter { limits, workers, turn_order, is_blocked: false, dropped_count: 0 }
    }

    pub(super) fn add_worker(&mut self, tag: WorkerTag) {
        let (send_queue, received) = (SendQueue::new(self.limits), VecDeque::new());
        self.workers.insert(
            tag.id,
            WorkerQueues { tag, received, send_queue, is_open: true, full_since: None },
        );
    }

    /// Stops sending to a worker. Messages that it sent are still routed.
    pub(super) fn close_worker(&mut self, id: WorkerId) {
        if let Some(queues) = self.workers.get_mut(&id) {
            queues.is_open = false;
            queues.send_queue = SendQueue::new(self.limits);
            if queues.received.is_empty() {
                self.workers.remove(&id);
            }
        }
    }

    /// Removes a worker and drops its messages.
    pub(super) fn remove_misbehaving(&mut self, id: WorkerId) {
        self.workers.remove(&id);
        self.turn_order.retain(|turn| *turn != id);
    }

    /// Drops all envelopes, in a forked child. Leaves all other memory untouched, to keep it shared.
    pub(super) fn leave_to_parent(mut self) {
        for queues in self.workers.values_mut() {
            if !queues.received.is_empty() {
                queues.received.clear();
            }
            if !queues.send_queue.is_empty() {
                queues.send_queue = SendQueue::new(self.limits);
            }
        }
        std::mem::forget(self);
    }

    /// Returns whether messages of this worker may still arrive or are not routed yet.
    pub(super) fn has_pending(&self, id: WorkerId) -> bool {
        self.workers.contains_key(&id)
    }

    /// Sends a message of the primary and returns its receiver. Returns the envelope on an error.
    pub(super) fn send_queue(&mut self, id: WorkerId) -> Option<&mut SendQueue> {
        self.workers.get_mut(&id).map(|queues| &mut queues.send_queue)
    }

    pub(super) fn has_outgoing(&self, id: WorkerId) -> bool {
        self.workers.get(&id).is_some_and(|queues| !queues.send_queue.is_empty())
    }

    /// Records that a worker has read something.
    pub(super) fn record_progress(&mut self, id: WorkerId) {
        if let Some(queues) = self.workers.get_mut(&id) {
            queues.full_since = None;
        }
    }

    /// Returns whether all messages of this worker have been routed, so that it may be read again.
    pub(super) fn can_read(&self, id: WorkerId) -> bool {
        self.workers.get(&id).is_some_and(|queues| queues.received.is_empty())
    }

    /// Returns whether `route_next` can do something at once.
    pub(super) fn has_work(&self) -> bool {
        !self.turn_order.is_empty() && !self.is_blocked
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.is_blocked
    }

    /// Returns the number of messages that were dropped for lack of a receiver, or because it did not read.
    pub(super) fn dropped_count(&self) -> u64 {
        self.dropped_count
    }

    /// Takes in messages that a worker sent.
    pub(super) fn receive(&mut self, id: WorkerId, envelopes: VecDeque<Envelope>) {
        let Some(queues) = self.workers.get_mut(&id) else { return };
        if queues.received.is_empty() && !envelopes.is_empty() {
            self.turn_order.push_back(id);
        }
        queues.received.extend(envelopes);
        self.is_blocked = false;
    }

    /// Routes the next message.
    pub(super) fn route_next(&mut self, now: Instant, is_serving: IsServing<'_>) -> RouterStep {
        for _ in 0..self.turn_order.len() {
            let Some(id) = self.turn_order.pop_front() else { break };
            let Some(queues) = self.workers.get_mut(&id) else { continue };
            let Some(envelope) = queues.received.pop_front() else { continue };
            let tag = queues.tag;
            let waits = match envelope.address {
                MessageAddress::Primary => {
                    self.end_turn(id);
                    return RouterStep::ForPrimary(tag, envelope);
                }
                _ => self.route(id, envelope, now, is_serving).err(),
            };
            let Some(envelope) = waits else {
                self.end_turn(id);
                return RouterStep::Forwarded;
            };
            if let Some(queues) = self.workers.get_mut(&id) {
                queues.received.push_front(envelope);
            }
            self.turn_order.push_back(id);
        }
        self.is_blocked = !self.turn_order.is_empty();
        RouterStep::Idle
    }

    fn end_turn(&mut self, id: WorkerId) {
        let Some(queues) = self.workers.get(&id) else { return };
        match (queues.received.is_empty(), queues.is_open) {
            (false, _) => self.turn_order.push_back(id),
            (true, false) => drop(self.workers.remove(&id)),
            (true, true) => {}
        }
    }

    /// Forwards a message. Returns it if it has to wait for a full queue.
    fn route(
        &mut self,
        from: WorkerId,
        mut envelope: Envelope,
        now: Instant,
        is_serving: IsServing<'_>,
    ) -> Result<(), Envelope> {
        if envelope.address == MessageAddress::AllOthers {
            return self.route_to_all(from, envelope, now);
        }
        let Some(to) = self.find_worker(envelope.address, is_serving) else {
            self.drop_message(from, &envelope, "there is no such worker");
            return Ok(());
        };
        let Some(queues) = self.workers.get_mut(&to) else { return Ok(()) };
        if let Err(e) = queues.send_queue.check_room(&envelope) {
            if e == MessageError::Full && queues.may_drain_soon(now) {
                return Err(envelope);
            }
            self.drop_message(from, &envelope, "the receiver does not read");
            return Ok(());
        }
        envelope.address = MessageAddress::Worker(from);
        let _ = queues.send_queue.push(envelope);
        Ok(())
    }

    fn route_to_all(
        &mut self,
        from: WorkerId,
        envelope: Envelope,
        now: Instant,
    ) -> Result<(), Envelope> {
        let others = |id: &WorkerId, queues: &WorkerQueues| *id != from && queues.is_open;
        // Waits until all receivers have room, so that none gets the message twice.
        for (id, queues) in &mut self.workers {
            if others(id, queues)
                && queues.send_queue.check_room(&envelope) == Err(MessageError::Full)
                && queues.may_drain_soon(now)
            {
                return Err(envelope);
            }
        }
        for (id, queues) in &mut self.workers {
            let copy = Envelope {
                address: MessageAddress::Worker(from),
                ..envelope.clone_without_connection()
            };
            if others(id, queues) && queues.send_queue.push(copy).is_err() {
                self.dropped_count += 1;
            }
        }
        Ok(())
    }

    /// Finds the newest worker at an address, preferring those that serve their slots.
    fn find_worker(&self, address: MessageAddress, is_serving: IsServing<'_>) -> Option<WorkerId> {
        let open = self.workers.values().filter(|queues| queues.is_open);
        let here = open.filter(|queues| match address {
            MessageAddress::Slot(slot) => queues.tag.slot == slot,
            MessageAddress::Worker(id) => queues.tag.id == id,
            MessageAddress::Primary | MessageAddress::AllOthers => false,
        });
        here.map(|queues| queues.tag.id).max_by_key(|id| (is_serving(*id), *id))
    }

    /// Counts a dropped message. Refuses a request with `why`.
    fn drop_message(&mut self, from: WorkerId, envelope: &Envelope, why: &'static str) {
        self.dropped_count += 1;
        if envelope.class == MessageClass::Request {
            let (to, id, kind) = (MessageSender::Worker(from), envelope.id, envelope.kind.clone());
            let why = Bytes::from_static(why.as_bytes()).into();
            let _ = self.reply(&ReplyTo { to, id, kind }, MessageClass::Refusal, why);
        }
    }

    /// Sends something of the primary's, and says to whom; on an error it comes rejected.
    pub(super) fn send(
        &mut self,
        to: MessageAddress,
        envelope: Envelope,
        is_serving: IsServing<'_>,
    ) -> Result<WorkerId, RejectedEnvelope> {
        let no_such_worker = |envelope| {
            let target = match to {
                MessageAddress::Slot(slot) => format!("at slot {slot}"),
                MessageAddress::Worker(id) => format!("number {id}"),
                MessageAddress::Primary | MessageAddress::AllOthers => "the primary".to_string(),
            };
            Err(Box::new((MessageError::NoSuchWorker(target), envelope)))
        };
        let Some(id) = self.find_worker(to, is_serving) else { return no_such_worker(envelope) };
        let Some(queues) = self.workers.get_mut(&id) else { return no_such_worker(envelope) };
        queues.send_queue.push(envelope).map(|()| id)
    }

    pub(super) fn reply(
        &mut self,
        to: &ReplyTo,
        class: MessageClass,
        payload: Payload,
    ) -> Result<(), MessageError> {
        let mut envelope = to.reply_envelope(class, payload);
        let address = std::mem::replace(&mut envelope.address, MessageAddress::Primary);
        self.send(address, envelope, &|_| true).map(drop).map_err(|rejected| rejected.0)
    }

    /// Sends a message to all workers. Returns how many it was queued for, and how many queues were full.
    pub(super) fn broadcast(
        &mut self,
        envelope: &Envelope,
    ) -> Result<(usize, usize), MessageError> {
        let (mut sent, mut missed) = (0, 0);
        for queues in self.workers.values_mut().filter(|queues| queues.is_open) {
            match queues.send_queue.push(Envelope {
                attached: AttachedConnection::Absent,
                ..envelope.clone_without_connection()
            }) {
                Ok(()) => sent += 1,
                Err(rejected) if rejected.0 == MessageError::Full => missed += 1,
                Err(rejected) => return Err(rejected.0),
            }
        }
        self.dropped_count += missed as u64;
        Ok((sent, missed))
    }
}

impl WorkerQueues {
    /// Returns whether a full queue may still be read: its receiver has read something within the timeout.
    fn may_drain_soon(&mut self, now: Instant) -> bool {
        now < *self.full_since.get_or_insert(now) + FULL_QUEUE_TIMEOUT
    }
}

#[cfg(test)]
mod tests {
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
        router
            .receive(WorkerId(1), (0..100).map(|_| envelope_to(MessageAddress::Primary)).collect());
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
        router.close_worker(WorkerId(1));
        let sent = router.send(MessageAddress::Slot(Slot(0)), test_envelope("a", 1), &is_serving);
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
        assert_eq!(router.dropped_count(), 3);
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
        assert_eq!(router.dropped_count(), 0);
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
        assert_eq!(router.dropped_count(), 2);
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
        assert_eq!((router.dropped_count(), drain_queue(&mut router, 1)), (2, 1));
        let sent = router.send(
            MessageAddress::Worker(WorkerId(9)),
            test_envelope("a", 1),
            &always_serving,
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
        router.close_worker(WorkerId(1));
        router.remove_misbehaving(WorkerId(2));
        assert_eq!(senders_to_primary(&mut router), [1, 1]);
        assert!(router.workers.is_empty() && router.turn_order.is_empty());
    }

    #[test]
    fn queues_are_bounded_and_an_empty_queue_accepts_any_message() {
        let mut router = MessageRouter::new(
            MessageLimits::default().queue_bounds(1000, 3).max_message_bytes(5000),
        );
        router.add_worker(worker_tag(1, 0));
        let mut send = |size| {
            let sent = router.send(
                MessageAddress::Worker(WorkerId(1)),
                test_envelope("a", size),
                &always_serving,
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
                )
                .is_ok()
        };
        assert_eq!([1, 1, 1, 1].map(&mut send), [true, true, true, false]);
    }
}
