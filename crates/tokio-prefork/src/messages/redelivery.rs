//! Redelivers messages that a worker did not read before it exited. Without I/O or clock.
//!
//! The worker asks for the end of its messages. The primary takes back what it has not sent, and marks the end; the worker returns
//! what it has got and not read. Both go the same way: a message to a slot to the next worker there, in order; one to a worker id
//! back to its sender, as a refusal or a count; a broadcast nowhere, as others have copies. What a killed worker had not been sent
//! is redelivered too; what it had in its memory is lost.

use std::time::Instant;

use super::held_messages::HeldMessage;
use super::router::{IsServing, MessageRouter};
use super::{Envelope, MessageAddress, MessageClass, MessageRoute};
use prefork_supervisor::{Slot, WorkerId, WorkerTag};

/// Why messages to the id of a worker are lost.
const WORKER_EXITED: &str = "the worker exited before it read the message";

/// Why messages to a slot are lost that has no worker for long.
const TOO_MANY_WAIT: &str = "too many messages wait for the next worker of the slot";

/// Why messages to a slot are lost.
const NO_SUCCESSOR: &str =
    "the worker exited before it read the message, and no other one takes its place";

impl MessageAddress {
    /// Returns who gets a message to this address if the worker exits first.
    pub(super) fn route(self, class: MessageClass) -> MessageRoute {
        match (self, class) {
            (MessageAddress::Slot(_), MessageClass::Message | MessageClass::Request) => {
                MessageRoute::ToSlot
            }
            (MessageAddress::Worker(_), MessageClass::Message | MessageClass::Request) => {
                MessageRoute::ToWorker
            }
            _ => MessageRoute::ThisWorkerOnly,
        }
    }
}

impl MessageRouter {
    /// Sends a worker nothing more than the end of its messages.
    pub(super) fn end_messages(&mut self, worker: WorkerId) {
        if let Some(queues) = self.workers.get_mut(&worker).filter(|queues| queues.can_receive()) {
            queues.end_messages();
        }
    }

    /// Takes in a message that a worker has not read.
    pub(super) fn accept_returned(&mut self, worker: WorkerTag, envelope: Envelope, now: Instant) {
        let is_own = self.is_own_delivery(worker.id, &envelope);
        match envelope.class {
            MessageClass::Message | MessageClass::Request if is_own => {
                self.redeliver(worker, envelope, now);
            }
            // Not refused, because its sender may be made up.
            _ => self.count_loss(&envelope, "a worker returned it that had not received it"),
        }
    }

    pub(super) fn redeliver_all(
        &mut self,
        last_worker: WorkerTag,
        envelopes: Vec<Envelope>,
        now: Instant,
    ) {
        for envelope in envelopes {
            self.redeliver(last_worker, envelope, now);
        }
    }

    /// Finds another receiver for a message that was delivered to `last_worker` or on its way there.
    fn redeliver(&mut self, last_worker: WorkerTag, envelope: Envelope, now: Instant) {
        match envelope.delivery.route {
            MessageRoute::ToSlot => self.hold(last_worker.slot, Some(last_worker), envelope, now),
            MessageRoute::ToWorker => self.lose(&envelope, WORKER_EXITED),
            MessageRoute::ThisWorkerOnly => {}
        }
    }

    /// Keeps a message to a slot without a worker that receives: behind those of the worker that leaves, if there is one.
    pub(super) fn keep_for_slot(&mut self, slot: Slot, envelope: Envelope, now: Instant) {
        let limits = self.limits();
        match self.find_leaving_worker(slot) {
            Some(leaving) if leaving.unsent.len() < limits.queue_messages => {
                leaving.unsent.push(envelope);
            }
            Some(_) => self.lose(&envelope, TOO_MANY_WAIT),
            None => self.hold(slot, None, envelope, now),
        }
    }

    /// Keeps a message until the next worker serves the slot.
    pub(super) fn hold(
        &mut self,
        slot: Slot,
        last_worker: Option<WorkerTag>,
        envelope: Envelope,
        now: Instant,
    ) {
        let held = HeldMessage { slot, last_worker, since: now, envelope };
        if let Err(rejected) = self.held.push(held) {
            self.lose(&rejected, TOO_MANY_WAIT);
        }
    }

    /// Delivers held messages to the workers that serve now. `is_expected` tells whether a slot has a worker or gets one.
    pub(super) fn deliver_held(
        &mut self,
        now: Instant,
        is_serving: IsServing<'_>,
        is_expected: &dyn Fn(Slot) -> bool,
    ) {
        for slot in self.held.slots() {
            while let Some(held) = self.held.first_of(slot) {
                let is_hopeless = held.is_overdue(now) || !is_expected(slot);
                let size_check = &held.envelope;
                let other_kind = held.last_worker.filter(|_| is_hopeless).map(|last| last.kind);
                let target = self.find_successor(slot, other_kind, is_serving);
                let has_room = target
                    .and_then(|to| self.workers.get(&to))
                    .is_some_and(|queues| queues.send_queue.check_room(size_check).is_ok());
                if !has_room && !(is_hopeless && (target.is_none() || held.is_overdue(now))) {
                    break;
                }
                let Some(held) = self.held.pop(slot) else { break };
                match target.filter(|_| has_room) {
                    Some(to) => self.push_held(to, held.envelope),
                    None => self.lose(&held.envelope, NO_SUCCESSOR),
                }
            }
        }
    }

    fn push_held(&mut self, to: WorkerId, envelope: Envelope) {
        let is_request_of_primary =
            envelope.class == MessageClass::Request && envelope.address == MessageAddress::Primary;
        let id = envelope.id;
        // There is room.
        if self.push(to, envelope).is_ok() && is_request_of_primary {
            self.record_moved_request(id, to);
        }
    }

    /// Finds the worker that serves the slot, or else one of this kind.
    fn find_successor(
        &self,
        slot: Slot,
        kind: Option<&'static str>,
        is_serving: IsServing<'_>,
    ) -> Option<WorkerId> {
        let serving = || {
            self.workers.values().filter(|queues| queues.can_receive() && is_serving(queues.tag.id))
        };
        let same_slot = serving().filter(|queues| queues.tag.slot == slot);
        let same_kind = serving().filter(|queues| Some(queues.tag.kind) == kind);
        let newest = same_slot.map(|queues| queues.tag.id).max();
        newest.or_else(|| same_kind.map(|queues| queues.tag.id).min())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::super::envelope::tests::test_envelope;
    use super::super::router::RouterStep;
    use super::super::{MessageLimits, send_queue::SendQueue};
    use super::*;
    use crate::messages::assembler::EnvelopeAssembler;
    use crate::messages::{AttachedConnection, DeliveryRecord};
    use prefork_supervisor::Generation;

    const SLOT: Slot = Slot(0);

    /// A router with workers that read nothing by themselves.
    struct Simulation {
        router: MessageRouter,
        serving: Vec<u64>,
        is_slot_expected: bool,
        now: Instant,
    }

    impl Simulation {
        /// Creates workers 1 and up at the given slots, which all serve.
        fn new(slots: &[u32]) -> Simulation {
            let router = MessageRouter::new(MessageLimits::default().queue_bounds(1 << 20, 100));
            let (serving, now) = (Vec::new(), Instant::now());
            let mut simulation = Simulation { router, serving, is_slot_expected: true, now };
            for (at, slot) in slots.iter().enumerate() {
                simulation.add_worker(at as u64 + 1, *slot);
            }
            simulation
        }

        fn tag(id: u64, slot: u32) -> WorkerTag {
            let (id, slot, generation) = (WorkerId(id), Slot(slot), Generation(1));
            WorkerTag { id, slot, generation, pid: None, kind: "consumer" }
        }

        fn add_worker(&mut self, id: u64, slot: u32) {
            self.router.add_worker(Simulation::tag(id, slot));
            self.serving.push(id);
        }

        fn send(&mut self, to: MessageAddress, envelope: Envelope) -> WorkerId {
            let serving = self.serving.clone();
            let is_serving = |id: WorkerId| serving.contains(&id.0);
            self.router.send(to, envelope, &is_serving, self.now).expect("sent")
        }

        fn send_numbers(&mut self, to: MessageAddress, numbers: std::ops::Range<usize>) {
            for number in numbers {
                self.send(to, test_envelope("job", number));
            }
        }

        /// Sends as worker `from`, routes everything, and delivers held messages.
        fn receive(&mut self, from: u64, envelopes: Vec<Envelope>) {
            self.router.receive(WorkerId(from), envelopes.into());
            let serving = self.serving.clone();
            let is_serving = |id: WorkerId| serving.contains(&id.0);
            while !matches!(self.router.route_next(self.now, &is_serving), RouterStep::Idle) {}
            self.deliver_held();
        }

        fn deliver_held(&mut self) {
            let serving = self.serving.clone();
            let is_serving = |id: WorkerId| serving.contains(&id.0);
            let is_slot_expected = self.is_slot_expected;
            self.router.deliver_held(self.now, &is_serving, &|_| is_slot_expected);
        }

        /// Reads what was sent to a worker, as its end would.
        fn read(&mut self, id: u64) -> Vec<Envelope> {
            let Some(send_queue) = self.router.send_queue(WorkerId(id)) else { return Vec::new() };
            read_all(send_queue)
        }

        fn read_numbers(&mut self, id: u64) -> Vec<usize> {
            numbers(&self.read(id))
        }

        /// Lets a worker exit that has read these messages from its channel and not handled them.
        fn exit_with_unread(&mut self, id: u64, unread: Vec<Envelope>) {
            self.serving.retain(|serving| *serving != id);
            self.receive(id, vec![Envelope::new_end(MessageClass::EndRequest)]);
            let last = self.read(id);
            assert_eq!(last.last().map(|end| end.class), Some(MessageClass::EndOfMessages));
            let unread = unread.into_iter().chain(last);
            let returned = unread
                .filter(|envelope| envelope.delivery.route != MessageRoute::ThisWorkerOnly)
                .map(|envelope| {
                    let delivery = DeliveryRecord { is_returned: true, ..envelope.delivery };
                    Envelope { delivery, ..envelope }
                });
            self.receive(id, returned.collect());
            self.router.close_worker(WorkerId(id), self.now);
            self.deliver_held();
        }
    }

    fn read_all(send_queue: &mut SendQueue) -> Vec<Envelope> {
        let mut assembler = EnvelopeAssembler::new(MessageLimits::default().max_envelope_bytes());
        let mut envelopes = VecDeque::new();
        while let Some(packet) = send_queue.current_packet() {
            let read =
                assembler.accept_packet(&packet.bytes, AttachedConnection::Absent, &mut envelopes);
            read.expect("valid");
            send_queue.packet_sent();
        }
        envelopes.into()
    }

    fn numbers(envelopes: &[Envelope]) -> Vec<usize> {
        let jobs = envelopes.iter().filter(|envelope| envelope.kind.as_str() == "job");
        jobs.map(|envelope| envelope.payload.bytes().len()).collect()
    }

    #[test]
    fn unread_messages_go_to_the_next_worker_of_the_slot_in_order() {
        let mut simulation = Simulation::new(&[0, 1]);
        let slot = MessageAddress::Slot(SLOT);
        simulation.send_numbers(slot, 0..10);
        let unread = simulation.read(1);
        // These are still with the primary when the worker leaves.
        simulation.send_numbers(slot, 10..15);
        simulation.add_worker(3, 0);
        simulation.exit_with_unread(1, unread);
        assert_eq!(simulation.read_numbers(3), (0..15).collect::<Vec<_>>());
        assert!(simulation.read(2).is_empty());
        assert_eq!(simulation.router.lost_count(), 0);
    }

    #[test]
    fn messages_wait_until_the_next_worker_serves() {
        let mut simulation = Simulation::new(&[0, 1]);
        let slot = MessageAddress::Slot(SLOT);
        simulation.send_numbers(slot, 0..3);
        let unread = simulation.read(1);
        simulation.exit_with_unread(1, unread);
        // A worker that only boots might never serve.
        simulation.router.add_worker(Simulation::tag(3, 0));
        simulation.deliver_held();
        // A newer message does not overtake them.
        let job = Envelope { address: slot, ..test_envelope("job", 3) };
        simulation.receive(2, vec![job]);
        assert!(simulation.read(3).is_empty());
        simulation.serving.push(3);
        simulation.deliver_held();
        assert_eq!(simulation.read_numbers(3), [0, 1, 2, 3]);
        assert!(simulation.router.held.is_empty());
    }

    #[test]
    fn messages_that_arrive_while_the_only_worker_leaves_follow_those_that_it_returns() {
        let mut simulation = Simulation::new(&[0, 1]);
        let slot = MessageAddress::Slot(SLOT);
        simulation.send_numbers(slot, 0..3);
        let unread = simulation.read(1);
        simulation.receive(1, vec![Envelope::new_end(MessageClass::EndRequest)]);
        let job = |number| Envelope { address: slot, ..test_envelope("job", number) };
        simulation.receive(2, vec![job(3), job(4)]);
        assert_eq!(simulation.send(slot, test_envelope("job", 5)), WorkerId(1));
        simulation.exit_with_unread(1, unread);
        // The slot has no worker at all.
        simulation.receive(2, vec![job(6)]);
        simulation.add_worker(3, 0);
        simulation.deliver_held();
        assert_eq!(simulation.read_numbers(3), (0..7).collect::<Vec<_>>());
        assert_eq!(simulation.router.lost_count(), 0);
    }

    #[test]
    fn messages_to_a_slot_that_stays_empty_go_to_another_worker_of_the_kind_or_are_lost() {
        let mut simulation = Simulation::new(&[0, 1]);
        let slot = MessageAddress::Slot(SLOT);
        simulation.send_numbers(slot, 0..3);
        simulation.is_slot_expected = false;
        let unread = simulation.read(1);
        simulation.exit_with_unread(1, unread);
        let unread = simulation.read(2);
        assert_eq!(numbers(&unread), [0, 1, 2]);
        simulation.exit_with_unread(2, unread);
        assert_eq!(simulation.router.lost_count(), 3);
        let reports = simulation.router.take_loss_reports();
        assert_eq!((reports.len(), reports[0].count, reports[0].kind.as_str()), (1, 3, "job"));
    }

    #[test]
    fn messages_of_a_crash_loop_are_lost_after_a_while() {
        let mut simulation = Simulation::new(&[0]);
        simulation.send_numbers(MessageAddress::Slot(SLOT), 0..3);
        let unread = simulation.read(1);
        simulation.exit_with_unread(1, unread);
        simulation.now += std::time::Duration::from_secs(59);
        simulation.deliver_held();
        assert_eq!(simulation.router.lost_count(), 0);
        simulation.now += std::time::Duration::from_secs(2);
        simulation.deliver_held();
        assert!(simulation.router.held.is_empty());
        assert_eq!(simulation.router.lost_count(), 3);
    }

    #[test]
    fn what_a_killed_worker_was_not_sent_goes_to_the_next_one() {
        let mut simulation = Simulation::new(&[0]);
        simulation.send_numbers(MessageAddress::Slot(SLOT), 0..2);
        // Both are in its memory, and lost.
        simulation.read(1);
        simulation.send_numbers(MessageAddress::Slot(SLOT), 2..6);
        // A packet that was built and not taken by the kernel.
        let send_queue = simulation.router.send_queue(WorkerId(1)).expect("open");
        send_queue.current_packet().expect("a packet");
        simulation.router.stop_sending(WorkerId(1));
        simulation.send_numbers(MessageAddress::Slot(SLOT), 6..7);
        simulation.router.close_worker(WorkerId(1), simulation.now);
        simulation.add_worker(2, 0);
        simulation.deliver_held();
        assert_eq!(simulation.read_numbers(2), (2..7).collect::<Vec<_>>());
    }

    #[test]
    fn messages_to_a_worker_id_are_refused_or_counted() {
        let mut simulation = Simulation::new(&[0, 1]);
        let address = MessageAddress::Worker(WorkerId(1));
        let request =
            Envelope { class: MessageClass::Request, id: 7, address, ..test_envelope("job", 1) };
        simulation.receive(2, vec![request, Envelope { address, ..test_envelope("job", 2) }]);
        let unread = simulation.read(1);
        assert_eq!(numbers(&unread), [1, 2]);
        simulation.add_worker(3, 0);
        simulation.exit_with_unread(1, unread);
        assert!(simulation.read(3).is_empty());
        let reply = simulation.read(2);
        assert_eq!(
            reply.iter().map(|reply| (reply.class, reply.id)).collect::<Vec<_>>(),
            [(MessageClass::Refusal, 7)]
        );
        assert_eq!(simulation.router.lost_count(), 2);
    }

    #[test]
    fn a_request_to_a_slot_moves_with_its_sender_and_id() {
        let mut simulation = Simulation::new(&[0, 1]);
        let slot = MessageAddress::Slot(SLOT);
        let request = Envelope { class: MessageClass::Request, id: 7, ..test_envelope("job", 1) };
        simulation.receive(2, vec![Envelope { address: slot, ..request }]);
        let of_primary =
            Envelope { class: MessageClass::Request, id: 9, ..test_envelope("job", 2) };
        assert_eq!(simulation.send(slot, of_primary), WorkerId(1));
        let unread = simulation.read(1);
        simulation.exit_with_unread(1, unread);
        // The primary waits for its reply although the worker is gone.
        assert!(simulation.router.has_pending(WorkerId(1)));
        simulation.add_worker(3, 0);
        simulation.deliver_held();
        assert_eq!(simulation.router.take_moved_requests(), [(9, WorkerId(3))]);
        assert!(!simulation.router.has_pending(WorkerId(1)));
        let moved = simulation.read(3);
        let moved: Vec<_> = moved.iter().map(|one| (one.class, one.address, one.id)).collect();
        assert_eq!(
            moved,
            [
                (MessageClass::Request, MessageAddress::Worker(WorkerId(2)), 7),
                (MessageClass::Request, MessageAddress::Primary, 9)
            ]
        );
    }

    #[test]
    fn broadcasts_and_messages_of_the_library_are_not_redelivered() {
        let mut simulation = Simulation::new(&[0, 1]);
        simulation.router.broadcast(&test_envelope("job", 1)).expect("sent");
        simulation.router.send_internal(WorkerId(1), test_envelope("job", 2)).expect("sent");
        simulation.add_worker(3, 0);
        simulation.exit_with_unread(1, Vec::new());
        assert!(simulation.read(3).is_empty());
        assert_eq!(simulation.router.lost_count(), 0);
    }

    #[test]
    fn a_worker_cannot_make_up_messages_of_others() {
        let mut simulation = Simulation::new(&[0, 1]);
        simulation.send_numbers(MessageAddress::Slot(SLOT), 0..1);
        let delivered = simulation.read(1).remove(0);
        let returned = DeliveryRecord { is_returned: true, ..delivered.delivery };
        let forged = Envelope {
            delivery: returned,
            address: MessageAddress::Worker(WorkerId(2)),
            ..test_envelope("job", 0)
        };
        let reply =
            Envelope { class: MessageClass::Reply, delivery: returned, ..test_envelope("job", 0) };
        simulation.add_worker(3, 0);
        simulation.receive(1, vec![forged, reply]);
        assert!(simulation.read(3).is_empty() && simulation.read(2).is_empty());
        assert_eq!(simulation.router.lost_count(), 2);
        // What it was sent, it may return.
        simulation.receive(1, vec![Envelope { delivery: returned, ..delivered }]);
        assert_eq!(simulation.read_numbers(3), [0]);
    }
}
