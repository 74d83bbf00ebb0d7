//! Queues the messages of each worker and decides which one is routed next, and where. Without I/O or clock.
//!
//! Workers take turns, one message each. Messages between workers are forwarded here; the router sets the sender, not the worker. A
//! message for a full queue stays first in its sender's queue, and the sender is not read meanwhile: so a flooding sender is slowed
//! down to its receiver. If the receiver takes nothing for a second, the message is dropped.
//!
//! A worker that exits asks for the end of its messages and returns those that it has not read. Those to its slot go to the next
//! worker there and wait until it serves, others are refused or counted. See `redelivery`.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::delivery_key::DeliveryKey;
use super::held_messages::HeldMessages;
use super::lost_messages::{LossReport, LostMessages};
use super::saved_messages::{
    MessageSaver, SavedEnvelope, SavedHeldMessage, SavedMessages, SavedWorker,
};
use super::send_queue::SendQueue;
use super::{
    AttachedConnection, DeliveryRecord, Envelope, MessageAddress, MessageClass, MessageError,
    MessageLimits, MessageRoute, MessageSender, Payload, RejectedEnvelope, ReplyTo,
};
use prefork_supervisor::{Slot, WorkerId, WorkerTag};

/// How long a message waits for a receiver that reads nothing.
const FULL_QUEUE_TIMEOUT: Duration = Duration::from_secs(1);

/// The reason why a message to nobody is lost.
const NO_SUCH_WORKER: &str = "there is no such worker";

/// Tells whether a worker serves its slot.
pub(super) type IsServing<'a> = &'a dyn Fn(WorkerId) -> bool;

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
pub(super) struct WorkerQueues {
    pub(super) tag: WorkerTag,
    /// Received messages that are not routed yet. The worker is not read until this is empty.
    received: VecDeque<Envelope>,
    pub(super) send_queue: SendQueue,
    /// Whether messages can still be sent to the worker.
    is_open: bool,
    /// Whether the worker has asked for the end of its messages, or reads no more.
    is_leaving: bool,
    /// Messages that a leaving worker was not sent. They are redelivered after those that it returns, so when it is gone.
    pub(super) unsent: Vec<Envelope>,
    /// Since when the send queue has been full and not read.
    full_since: Option<Instant>,
}

/// The message queues of all workers.
#[derive(Debug)]
pub(super) struct MessageRouter {
    limits: MessageLimits,
    key: DeliveryKey,
    pub(super) workers: BTreeMap<WorkerId, WorkerQueues>,
    /// The order in which workers are served. Holds each worker with received messages once.
    turn_order: VecDeque<WorkerId>,
    /// Whether all received messages wait for full queues.
    is_blocked: bool,
    /// Messages that wait for the next worker of their slot.
    pub(super) held: HeldMessages,
    /// Requests of the primary that another worker has got, and which.
    moved_requests: Vec<(u64, WorkerId)>,
    lost: LostMessages,
}

impl MessageRouter {
    pub(super) fn new(limits: MessageLimits) -> MessageRouter {
        MessageRouter {
            limits,
            key: DeliveryKey::new(),
            workers: BTreeMap::new(),
            turn_order: VecDeque::new(),
            is_blocked: false,
            held: HeldMessages::new(limits),
            moved_requests: Vec::new(),
            lost: LostMessages::default(),
        }
    }

    pub(super) fn limits(&self) -> MessageLimits {
        self.limits
    }

    pub(super) fn add_worker(&mut self, tag: WorkerTag) {
        let (send_queue, received) = (SendQueue::new(self.limits), VecDeque::new());
        self.workers.insert(
            tag.id,
            WorkerQueues {
                tag,
                received,
                send_queue,
                is_open: true,
                is_leaving: false,
                unsent: Vec::new(),
                full_since: None,
            },
        );
    }

    /// Stops sending to a worker that is gone, and redelivers what it was not sent. Messages that it sent are still routed.
    pub(super) fn close_worker(&mut self, id: WorkerId, now: Instant) {
        let Some(queues) = self.workers.get_mut(&id) else { return };
        queues.is_open = false;
        queues.stop_sending();
        if queues.received.is_empty() {
            self.remove_worker(id, now);
        }
    }

    /// Removes a worker whose messages are all routed, and redelivers what it was not sent.
    fn remove_worker(&mut self, id: WorkerId, now: Instant) {
        if let Some(queues) = self.workers.remove(&id) {
            self.redeliver_all(queues.tag, queues.unsent, now);
        }
    }

    /// Takes back what was not sent to a worker that reads no more, because it is dead. Messages that it sent are still read.
    pub(super) fn stop_sending(&mut self, id: WorkerId) {
        self.workers.get_mut(&id).into_iter().for_each(WorkerQueues::stop_sending);
    }

    /// Removes a worker and drops what it has sent. Messages for it are redelivered.
    pub(super) fn remove_misbehaving(&mut self, id: WorkerId, now: Instant) {
        if let Some(queues) = self.workers.get_mut(&id) {
            queues.received.clear();
        }
        self.close_worker(id, now);
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
            if !queues.unsent.is_empty() {
                queues.unsent.clear();
            }
        }
        self.held.clear();
        std::mem::forget(self);
    }

    /// Saves the state for the new image, except for the parts of large messages that are arriving.
    pub(super) fn save<'a>(&'a self, saver: &mut MessageSaver<'a>) -> SavedMessages {
        let workers = self.workers.iter().map(|(id, queues)| SavedWorker {
            id: id.0,
            is_leaving: queues.is_leaving,
            received: queues.received.iter().filter_map(|one| saver.save(one)).collect(),
            outgoing: queues
                .send_queue
                .iter()
                .filter_map(|(envelope, sent)| match sent {
                    0 => saver.save(envelope).map(|saved| (saved, 0)),
                    _ => Some((saver.save_always(envelope), sent)),
                })
                .collect(),
            unsent: queues.unsent.iter().filter_map(|one| saver.save(one)).collect(),
            partial: None,
        });
        let workers = workers.collect();
        let held = self.held.iter().filter_map(|held| {
            let envelope = saver.save(&held.envelope)?;
            let kind = held.last_worker.map(|last| last.kind.to_string());
            Some(SavedHeldMessage { slot: held.slot.0, kind, envelope })
        });
        let held = held.collect();
        let (key, unanswered) = (self.key, Vec::new());
        let lost = self.lost.total();
        SavedMessages { key, lost, last_request_id: 0, workers, held, unanswered }
    }

    /// Continues with the messages of the previous image.
    pub(super) fn restore(&mut self, key: DeliveryKey, lost: u64) {
        self.key = key;
        self.lost.restore_total(lost);
    }

    /// Continues with the queues of a worker of the previous image. It was added before.
    pub(super) fn restore_worker(&mut self, saved: SavedWorker) {
        let id = WorkerId(saved.id);
        let Some(queues) = self.workers.get_mut(&id) else { return };
        queues.is_leaving = saved.is_leaving;
        for (envelope, sent) in saved.outgoing {
            if let Some(envelope) = envelope.restore() {
                queues.send_queue.restore(envelope, sent);
            }
        }
        queues.unsent = saved.unsent.into_iter().filter_map(SavedEnvelope::restore).collect();
        self.receive(id, saved.received.into_iter().filter_map(SavedEnvelope::restore).collect());
    }

    /// Puts the packets that were built and not sent back into the queues, so that `save` finds everything there.
    pub(super) fn undo_packets(&mut self) {
        self.workers.values_mut().for_each(|queues| queues.send_queue.undo_packet());
    }

    /// Returns whether messages of this worker may still arrive or are not routed yet.
    pub(super) fn has_pending(&self, id: WorkerId) -> bool {
        self.workers.contains_key(&id) || self.held.has_request_of(id)
    }

    /// Returns the queue of messages to a worker.
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
    pub(super) fn lost_count(&self) -> u64 {
        self.lost.total()
    }

    /// Returns whether messages were lost since the last call of `take_loss_reports`.
    pub(super) fn has_loss_report(&self) -> bool {
        self.lost.has_report()
    }

    /// Returns what was lost since the last call.
    pub(super) fn take_loss_reports(&mut self) -> Vec<LossReport> {
        self.lost.take_reports()
    }

    /// Returns the requests of the primary that another worker has got since the last call.
    pub(super) fn take_moved_requests(&mut self) -> Vec<(u64, WorkerId)> {
        std::mem::take(&mut self.moved_requests)
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
            if envelope.class == MessageClass::EndRequest || envelope.delivery.is_returned {
                match envelope.class {
                    MessageClass::EndRequest => self.end_messages(id),
                    _ => self.accept_returned(tag, envelope, now),
                }
                self.end_turn(id, now);
                return RouterStep::Forwarded;
            }
            let envelope = Envelope { delivery: DeliveryRecord::default(), ..envelope };
            let waits = match envelope.address {
                MessageAddress::Primary => {
                    self.end_turn(id, now);
                    return RouterStep::ForPrimary(tag, envelope);
                }
                _ => self.route(id, envelope, now, is_serving),
            };
            let Some(envelope) = waits else {
                self.end_turn(id, now);
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

    fn end_turn(&mut self, id: WorkerId, now: Instant) {
        let Some(queues) = self.workers.get(&id) else { return };
        match (queues.received.is_empty(), queues.is_open) {
            (false, _) => self.turn_order.push_back(id),
            (true, false) => self.remove_worker(id, now),
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
    ) -> Option<Envelope> {
        if envelope.address == MessageAddress::AllOthers {
            return self.route_to_all(from, envelope, now);
        }
        let address = envelope.address;
        envelope.delivery.route = address.route(envelope.class);
        let follows_held = matches!(address, MessageAddress::Slot(slot)
            if self.held.should_follow(slot, &envelope));
        let to = self.find_worker(address, is_serving).filter(|_| !follows_held);
        let Some(to) = to else {
            envelope.address = MessageAddress::Worker(from);
            match address {
                MessageAddress::Slot(slot) => self.keep_for_slot(slot, envelope, now),
                _ => self.lose(&envelope, NO_SUCH_WORKER),
            }
            return None;
        };
        let queues = self.workers.get_mut(&to)?;
        if let Err(e) = queues.send_queue.check_room(&envelope) {
            if e == MessageError::Full && queues.may_drain_soon(now) {
                return Some(envelope);
            }
            envelope.address = MessageAddress::Worker(from);
            self.lose(&envelope, "its receiver does not read");
            return None;
        }
        envelope.address = MessageAddress::Worker(from);
        let _ = self.push(to, envelope);
        None
    }

    /// Queues a message for a worker. Its address is the sender.
    pub(super) fn push(
        &mut self,
        to: WorkerId,
        mut envelope: Envelope,
    ) -> Result<(), RejectedEnvelope> {
        envelope.delivery = DeliveryRecord { is_returned: false, code: 0, ..envelope.delivery };
        if envelope.delivery.route != MessageRoute::ThisWorkerOnly {
            envelope.delivery.code = self.key.code(to, &envelope);
        }
        match self.workers.get_mut(&to) {
            Some(queues) => queues.send_queue.push(envelope),
            None => Err(Box::new((MessageError::Closed, envelope))),
        }
    }

    /// Returns whether a worker returns a message that it was sent.
    pub(super) fn is_own_delivery(&self, worker: WorkerId, envelope: &Envelope) -> bool {
        self.key.is_delivered(worker, envelope)
    }

    fn route_to_all(
        &mut self,
        from: WorkerId,
        envelope: Envelope,
        now: Instant,
    ) -> Option<Envelope> {
        let others = |id: &WorkerId, queues: &WorkerQueues| *id != from && queues.can_receive();
        // Waits until all receivers have room, so that none gets the message twice.
        for (id, queues) in &mut self.workers {
            if others(id, queues)
                && queues.send_queue.check_room(&envelope) == Err(MessageError::Full)
                && queues.may_drain_soon(now)
            {
                return Some(envelope);
            }
        }
        for (id, queues) in &mut self.workers {
            let copy = Envelope {
                address: MessageAddress::Worker(from),
                ..envelope.clone_without_connection()
            };
            if others(id, queues) && queues.send_queue.push(copy).is_err() {
                self.lost.add(&envelope.kind, "its receiver does not read", 1);
            }
        }
        None
    }

    /// Finds the newest worker at an address, preferring those that serve their slots.
    fn find_worker(&self, address: MessageAddress, is_serving: IsServing<'_>) -> Option<WorkerId> {
        let open = self.workers.values().filter(|queues| queues.can_receive());
        let here = open.filter(|queues| queues.is_at(address));
        here.map(|queues| queues.tag.id).max_by_key(|id| (is_serving(*id), *id))
    }

    /// Finds the worker at a slot that receives no more: the next one is not forked yet.
    pub(super) fn find_leaving_worker(&mut self, slot: Slot) -> Option<&mut WorkerQueues> {
        let mut workers = self.workers.values_mut().rev();
        workers.find(|queues| !queues.can_receive() && queues.tag.slot == slot)
    }

    /// Counts a lost message, whose address is its sender. Refuses a request with `reason`.
    pub(super) fn lose(&mut self, envelope: &Envelope, reason: &'static str) {
        self.lost.add(&envelope.kind, reason, 1);
        let MessageAddress::Worker(from) = envelope.address else { return };
        if envelope.class == MessageClass::Request {
            let (to, id, kind) = (MessageSender::Worker(from), envelope.id, envelope.kind.clone());
            let reason = Bytes::from_static(reason.as_bytes()).into();
            let _ = self.reply(&ReplyTo { to, id, kind }, MessageClass::Refusal, reason);
        }
    }

    /// Counts a lost message.
    pub(super) fn count_loss(&mut self, envelope: &Envelope, reason: &'static str) {
        self.lost.add(&envelope.kind, reason, 1);
    }

    /// Records that the primary's request to a worker has gone to another one.
    pub(super) fn record_moved_request(&mut self, id: u64, to: WorkerId) {
        self.moved_requests.push((id, to));
    }

    /// Sends a message of the primary and returns its receiver. Returns the envelope on an error.
    ///
    /// A message to a slot between two workers waits; then the receiver is the last worker.
    pub(super) fn send(
        &mut self,
        to: MessageAddress,
        mut envelope: Envelope,
        is_serving: IsServing<'_>,
        now: Instant,
    ) -> Result<WorkerId, RejectedEnvelope> {
        envelope.delivery.route = to.route(envelope.class);
        if let Some(id) = self.find_worker(to, is_serving) {
            return self.push(id, envelope).map(|()| id);
        }
        if let MessageAddress::Slot(slot) = to
            && let Some(leaving) = self.find_leaving_worker(slot)
        {
            let id = leaving.tag.id;
            self.keep_for_slot(slot, envelope, now);
            return Ok(id);
        }
        let target = match to {
            MessageAddress::Slot(slot) => format!("at slot {slot}"),
            MessageAddress::Worker(id) => format!("number {id}"),
            MessageAddress::Primary | MessageAddress::AllOthers => "the primary".to_string(),
        };
        Err(Box::new((MessageError::NoSuchWorker(target), envelope)))
    }

    /// Sends a message of the library to a worker, which drops it if it exits first.
    pub(super) fn send_internal(
        &mut self,
        to: WorkerId,
        envelope: Envelope,
    ) -> Result<(), RejectedEnvelope> {
        self.push(to, envelope)
    }

    pub(super) fn reply(
        &mut self,
        to: &ReplyTo,
        class: MessageClass,
        payload: Payload,
    ) -> Result<(), MessageError> {
        let mut envelope = to.reply_envelope(class, payload);
        let MessageAddress::Worker(worker) =
            std::mem::replace(&mut envelope.address, MessageAddress::Primary)
        else {
            return Err(MessageError::NoSuchWorker("the primary".to_string()));
        };
        match self.workers.get(&worker).is_some_and(|queues| queues.is_open) {
            true => self.push(worker, envelope).map_err(|rejected| rejected.0),
            false => Err(MessageError::NoSuchWorker(format!("number {worker}"))),
        }
    }

    /// Sends a message to all workers. Returns how many it was queued for, and how many queues were full.
    pub(super) fn broadcast(
        &mut self,
        envelope: &Envelope,
    ) -> Result<(usize, usize), MessageError> {
        let (mut sent, mut missed) = (0, 0);
        for queues in self.workers.values_mut().filter(|queues| queues.can_receive()) {
            match queues.send_queue.push(Envelope {
                attached: AttachedConnection::Absent,
                ..envelope.clone_without_connection()
            }) {
                Ok(()) => sent += 1,
                Err(rejected) if rejected.0 == MessageError::Full => missed += 1,
                Err(rejected) => return Err(rejected.0),
            }
        }
        self.lost.add(&envelope.kind, "its receiver does not read", missed as u64);
        Ok((sent, missed))
    }
}

impl WorkerQueues {
    /// Sends a worker nothing more than the end of its messages.
    pub(super) fn end_messages(&mut self) {
        self.is_leaving = true;
        let unsent = self.send_queue.take_unsent();
        self.unsent.extend(unsent);
        // There is room. Without this answer the worker waits for its deadline.
        let _ = self.send_queue.push(Envelope::new_end(MessageClass::EndOfMessages));
    }

    /// Takes back everything that the worker has not got completely.
    fn stop_sending(&mut self) {
        self.is_leaving = true;
        let undelivered = self.send_queue.take_undelivered();
        self.unsent.splice(..0, undelivered);
    }

    /// Returns whether new messages may be queued for the worker.
    pub(super) fn can_receive(&self) -> bool {
        self.is_open && !self.is_leaving
    }

    fn is_at(&self, address: MessageAddress) -> bool {
        match address {
            MessageAddress::Slot(slot) => self.tag.slot == slot,
            MessageAddress::Worker(id) => self.tag.id == id,
            MessageAddress::Primary | MessageAddress::AllOthers => false,
        }
    }

    /// Returns whether a full queue may still be read: its receiver has read something within the timeout.
    fn may_drain_soon(&mut self, now: Instant) -> bool {
        now < *self.full_since.get_or_insert(now) + FULL_QUEUE_TIMEOUT
    }
}

#[cfg(test)]
mod tests;
