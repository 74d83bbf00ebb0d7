//! The primary's end of all message channels, for its poll loop. Never blocks, and bounds the work per call.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use super::assembler::EnvelopeAssembler;
use super::channel_io::{
    FD_RETRY_INTERVAL, LARGE_PACKET_BYTES, ReadOutcome, WriteOutcome, read_packet, write_packets,
};
use super::packet_frame::{MAX_PACKET_BYTES, MessageProtocolError};
use super::router::MessageRouter;
pub(crate) use super::router::RouterStep;
use super::saved_messages::{
    MessageSaver, SavedHeldMessage, SavedMessages, SavedRequest, refusal_text,
};
use super::{
    Envelope, LossReport, MessageAddress, MessageClass, MessageError, MessageKind, MessageLimits,
    MessageSender, Payload, RejectedEnvelope, ReplyTo,
};
use prefork_os::fd::FdCloseBatch;
use prefork_os::fd_passing::discard_messages;
use prefork_os::poll::{PollInterest, WatchedFd};
use prefork_supervisor::{Generation, Slot, WorkerId, WorkerTag};

/// Packets read from one worker per call.
const MAX_PACKETS_PER_READ: usize = 4;

/// The most packets read from a dead worker. Its socket buffer holds fewer.
const MAX_REMAINING_PACKETS: usize = 4096;

/// How long to wait before messages for a full receiver are tried again. A writable socket ends the wait earlier.
const BLOCKED_RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// The most requests of workers that are remembered until they are answered.
const MAX_UNANSWERED_REQUESTS: usize = 1 << 16;

/// The channel to one worker.
#[derive(Debug)]
struct WorkerChannel {
    fd: OwnedFd,
    assembler: EnvelopeAssembler,
    /// Whether the kernel refused a packet with a descriptor.
    fd_was_refused: bool,
}

/// Identifies a polled channel and the polled readiness.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MessagePollToken {
    id: WorkerId,
    interest: PollInterest,
}

impl MessagePollToken {
    /// Returns whether the channel is polled for something to read.
    pub(crate) fn is_read_token(self) -> bool {
        self.interest == PollInterest::Readable
    }
}

/// The primary's end of all message channels.
#[derive(Debug)]
pub(crate) struct PrimaryMessageEnd {
    limits: MessageLimits,
    channels: BTreeMap<WorkerId, WorkerChannel>,
    router: MessageRouter,
    buffer: Vec<u8>,
    /// Requests of workers that were handed to the application and are not answered: worker and id.
    unanswered: BTreeMap<(WorkerId, u64), MessageKind>,
}

impl Default for PrimaryMessageEnd {
    fn default() -> PrimaryMessageEnd {
        PrimaryMessageEnd::new(MessageLimits::default())
    }
}

impl PrimaryMessageEnd {
    pub(crate) fn new(limits: MessageLimits) -> PrimaryMessageEnd {
        let (channels, router) = (BTreeMap::new(), MessageRouter::new(limits));
        PrimaryMessageEnd {
            limits,
            channels,
            router,
            buffer: Vec::new(),
            unanswered: BTreeMap::new(),
        }
    }

    pub(crate) fn limits(&self) -> MessageLimits {
        self.limits
    }

    /// Adds a worker that was forked; `fd` is the primary's end of its channel.
    pub(crate) fn add(&mut self, tag: WorkerTag, fd: OwnedFd) {
        let assembler = EnvelopeAssembler::new(self.limits.max_envelope_bytes());
        self.channels.insert(tag.id, WorkerChannel { fd, assembler, fd_was_refused: false });
        self.router.add_worker(tag);
    }

    /// Returns what to wait for. The tokens of ready descriptors go to `read`.
    pub(crate) fn poll_sources(&self) -> impl Iterator<Item = (MessagePollToken, WatchedFd<'_>)> {
        self.channels.iter().flat_map(|(&id, channel)| {
            let readable = self.router.can_read(id).then_some(PollInterest::Readable);
            let has_outgoing = self.router.has_outgoing(id) && !channel.fd_was_refused;
            let writable = has_outgoing.then_some(PollInterest::Writable);
            readable.into_iter().chain(writable).map(move |interest| {
                let watched = WatchedFd::new(channel.fd.as_fd(), interest);
                (MessagePollToken { id, interest }, watched)
            })
        })
    }

    /// Returns the longest time until the next call, or `None` without limit.
    pub(crate) fn poll_timeout(&self) -> Option<Duration> {
        if self.router.has_work() {
            return Some(Duration::ZERO);
        }
        let fd_was_refused = self.channels.values().any(|channel| channel.fd_was_refused);
        let is_waiting = self.router.is_blocked() || self.has_held_messages();
        let blocked = is_waiting.then_some(BLOCKED_RETRY_INTERVAL);
        blocked.into_iter().chain(fd_was_refused.then_some(FD_RETRY_INTERVAL)).min()
    }

    /// Reads the channels of these tokens. Returns the workers that broke the protocol, and how.
    pub(crate) fn read(
        &mut self,
        ready: &[MessagePollToken],
    ) -> Vec<(WorkerId, MessageProtocolError)> {
        let mut broken = Vec::new();
        for token in ready.iter().filter(|token| token.is_read_token()) {
            if let Err(why) = self.read_packets(token.id, MAX_PACKETS_PER_READ) {
                if let Some(channel) = self.channels.remove(&token.id) {
                    discard_messages(&channel.fd);
                }
                self.router.remove_misbehaving(token.id, Instant::now());
                broken.push((token.id, why));
            }
        }
        broken
    }

    /// Reads up to `packets` packets of one worker.
    fn read_packets(&mut self, id: WorkerId, packets: usize) -> Result<(), MessageProtocolError> {
        self.buffer.resize(MAX_PACKET_BYTES, 0);
        let mut envelopes = VecDeque::new();
        let mut is_closed = false;
        for _ in 0..packets {
            let Some(channel) = self.channels.get_mut(&id) else { break };
            let WorkerChannel { fd, assembler, .. } = channel;
            let length = match read_packet(fd, &mut self.buffer, assembler, &mut envelopes)? {
                ReadOutcome::Packet(length) => length,
                ReadOutcome::Empty => break,
                ReadOutcome::Closed => {
                    is_closed = true;
                    break;
                }
            };
            // More data is unlikely, and poll would report it. Another read costs a system call.
            if packets == MAX_PACKETS_PER_READ && length < LARGE_PACKET_BYTES {
                break;
            }
        }
        self.router.receive(id, envelopes);
        if is_closed {
            self.channels.remove(&id);
            self.router.close_worker(id, Instant::now());
        }
        Ok(())
    }

    /// Sends as much as the sockets accept.
    pub(crate) fn flush(&mut self) {
        let mut broken = Vec::new();
        for (&id, channel) in &mut self.channels {
            channel.fd_was_refused = false;
            let Some(send_queue) =
                self.router.send_queue(id).filter(|send_queue| !send_queue.is_empty())
            else {
                continue;
            };
            let (outcome, has_sent) = write_packets(&channel.fd, send_queue);
            channel.fd_was_refused = outcome == WriteOutcome::FdRefused;
            if outcome == WriteOutcome::PeerGone {
                broken.push(id);
            }
            if has_sent {
                self.router.record_progress(id);
            }
        }
        for id in broken {
            self.router.stop_sending(id);
        }
    }

    /// Removes a worker that has exited, after reading its last messages. Drops a partial message, and redelivers what the worker
    /// was not sent.
    pub(crate) fn remove(&mut self, id: WorkerId) {
        let own = (id, 0)..=(id, u64::MAX);
        let answered_by_exit: Vec<_> = self.unanswered.range(own).map(|(key, _)| *key).collect();
        answered_by_exit.iter().for_each(|key| drop(self.unanswered.remove(key)));
        // Protocol errors of a dead worker do not matter.
        let _ = self.read_packets(id, MAX_REMAINING_PACKETS);
        self.channels.remove(&id);
        self.router.close_worker(id, Instant::now());
    }

    /// Moves the descriptors of all channels to `fds`, in a forked child.
    ///
    /// Drops envelopes in progress, because they may hold connections. Leaves all other memory untouched, to keep it shared.
    pub(crate) fn leave_to_parent(self, fds: &mut FdCloseBatch) {
        let PrimaryMessageEnd { mut channels, router, .. } = self;
        for channel in
            channels.values_mut().filter(|channel| channel.assembler.has_partial_envelope())
        {
            channel.assembler = EnvelopeAssembler::new(0);
        }
        fds.add_fds_of_owner(channels, |channels, take| {
            channels.values().map(|channel| channel.fd.as_fd()).for_each(take);
        });
        router.leave_to_parent();
    }

    /// Routes the next envelope. `is_serving` tells which workers serve their slots.
    pub(crate) fn route_next(
        &mut self,
        now: Instant,
        serves: &dyn Fn(WorkerId) -> bool,
    ) -> RouterStep {
        let step = self.router.route_next(now, serves);
        if let RouterStep::ForPrimary(from, envelope) = &step
            && envelope.class == MessageClass::Request
            && self.unanswered.len() < MAX_UNANSWERED_REQUESTS
        {
            self.unanswered.insert((from.id, envelope.id), envelope.kind.clone());
        }
        step
    }

    /// Returns whether messages of this worker may still arrive or are not handled yet.
    pub(crate) fn has_pending(&self, id: WorkerId) -> bool {
        self.router.has_pending(id)
    }

    /// Sends a message of the primary and returns its receiver. Returns the envelope on an error.
    pub(crate) fn send(
        &mut self,
        to: MessageAddress,
        envelope: Envelope,
        serves: &dyn Fn(WorkerId) -> bool,
    ) -> Result<WorkerId, RejectedEnvelope> {
        self.router.send(to, envelope, serves, Instant::now())
    }

    /// Sends a message of the library to a worker, which drops it if it exits first.
    pub(crate) fn send_internal(
        &mut self,
        to: WorkerId,
        envelope: Envelope,
    ) -> Result<(), RejectedEnvelope> {
        self.router.send_internal(to, envelope)
    }

    /// Returns whether received messages can be routed at once.
    pub(crate) fn has_work(&self) -> bool {
        self.router.has_work()
    }

    /// Returns whether messages wait for the next worker of their slot.
    pub(crate) fn has_held_messages(&self) -> bool {
        !self.router.held.is_empty()
    }

    /// Delivers messages that waited for a worker at their slot. `is_expected` tells whether a slot has a worker or gets one.
    pub(crate) fn deliver_held(
        &mut self,
        now: Instant,
        serves: &dyn Fn(WorkerId) -> bool,
        is_expected: &dyn Fn(Slot) -> bool,
    ) {
        self.router.deliver_held(now, serves, is_expected);
    }

    /// Returns the requests of the primary that another worker has got since the last call.
    pub(crate) fn take_moved_requests(&mut self) -> Vec<(u64, WorkerId)> {
        self.router.take_moved_requests()
    }

    pub(crate) fn reply(
        &mut self,
        to: &ReplyTo,
        class: MessageClass,
        payload: Payload,
    ) -> Result<(), MessageError> {
        if let MessageSender::Worker(worker) = to.to {
            self.unanswered.remove(&(worker, to.id));
        }
        self.router.reply(to, class, payload)
    }

    /// Prepares `save`: returns to the queues what is in packets.
    pub(crate) fn prepare_save(&mut self) {
        self.router.undo_packets();
    }

    /// Saves the messages for the new image, and returns the descriptors that have to stay open with them.
    pub(crate) fn save(&self, last_request_id: u64) -> (SavedMessages, Vec<BorrowedFd<'_>>) {
        let mut saver = MessageSaver::new();
        let mut saved = self.router.save(&mut saver);
        for worker in &mut saved.workers {
            let channel = self.channels.get(&WorkerId(worker.id));
            worker.partial = channel.and_then(|channel| channel.assembler.save_partial(&mut saver));
        }
        let MessageSaver { mut fds, lost, mut unanswered, .. } = saver;
        fds.extend(self.channels.values().map(|channel| channel.fd.as_fd()));
        unanswered.extend(self.unanswered.iter().map(|((worker, id), kind)| SavedRequest {
            worker: worker.0,
            id: *id,
            kind: kind.as_str().to_string(),
        }));
        saved.lost += lost;
        (SavedMessages { last_request_id, unanswered, ..saved }, fds)
    }

    /// Returns the channels of all workers.
    pub(crate) fn channel_fds(&self) -> impl Iterator<Item = (WorkerId, BorrowedFd<'_>)> {
        self.channels.iter().map(|(id, channel)| (*id, channel.fd.as_fd()))
    }

    /// Continues with the messages of the previous image, after `add` for each worker. Refuses the requests that it did not answer.
    pub(crate) fn restore(&mut self, saved: SavedMessages, kinds: &[&'static str], now: Instant) {
        self.router.restore(saved.key, saved.lost);
        for mut worker in saved.workers {
            if let Some(channel) = self.channels.get_mut(&WorkerId(worker.id))
                && let Some((total, partial)) = worker.partial.take()
            {
                channel.assembler.restore_partial(total, partial);
            }
            self.router.restore_worker(worker);
        }
        for SavedHeldMessage { slot, kind, envelope } in saved.held {
            let kind = kinds.iter().copied().find(|known| Some(*known) == kind.as_deref());
            let slot = Slot(slot);
            let last_worker = kind.map(|kind| WorkerTag {
                id: WorkerId(0),
                slot,
                generation: Generation(0),
                pid: None,
                kind,
            });
            if let Some(envelope) = envelope.restore() {
                self.router.hold(slot, last_worker, envelope, now);
            }
        }
        for SavedRequest { worker, id, kind } in saved.unanswered {
            let Ok(kind) = MessageKind::new(&kind) else { continue };
            let to = ReplyTo { to: MessageSender::Worker(WorkerId(worker)), id, kind };
            // A worker without room for the refusal runs into its timeout.
            let _ = self.router.reply(&to, MessageClass::Refusal, refusal_text().into());
        }
    }

    /// Sends a message to all workers. Returns how many it was queued for, and how many queues were full.
    pub(crate) fn broadcast(
        &mut self,
        envelope: &Envelope,
    ) -> Result<(usize, usize), MessageError> {
        self.router.broadcast(envelope)
    }

    /// Returns the number of messages that were lost for lack of a receiver, or because it did not read.
    pub(crate) fn lost_count(&self) -> u64 {
        self.router.lost_count()
    }

    /// Returns whether messages were lost since the last call of `take_loss_reports`.
    pub(crate) fn has_loss_report(&self) -> bool {
        self.router.has_loss_report()
    }

    /// Returns what was lost since the last call.
    pub(crate) fn take_loss_reports(&mut self) -> Vec<LossReport> {
        self.router.take_loss_reports()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::super::AttachedConnection;
    use super::super::envelope::tests::test_envelope;
    use super::super::send_queue::SendQueue;
    use super::*;
    use prefork_supervisor::{Generation, Slot, WEB_KIND};

    #[test]
    fn leave_to_parent_closes_all_descriptors() {
        let mut primary_end = PrimaryMessageEnd::default();
        let mut peers = Vec::new();
        let mut socket = || {
            let (own, peer) = UnixStream::pair().expect("pair");
            peers.push(peer);
            OwnedFd::from(own)
        };
        for id in 1..=3 {
            let (slot, generation) = (Slot(id as u32), Generation(1));
            let tag = WorkerTag { id: WorkerId(id), slot, generation, pid: None, kind: WEB_KIND };
            primary_end.add(tag, socket());
        }
        let with_connection = |size, fd| Envelope {
            attached: AttachedConnection::Present(fd),
            ..test_envelope("a", size)
        };
        primary_end.router.receive(WorkerId(1), [with_connection(3, socket())].into());
        let send_queue = primary_end.router.send_queue(WorkerId(2)).expect("open");
        send_queue.push(with_connection(3, socket())).expect("room");
        // The first part of an envelope of several packets.
        let mut parts = SendQueue::new(MessageLimits::default());
        parts.push(test_envelope("a", 4 * MAX_PACKET_BYTES)).expect("room");
        let bytes = parts.current_packet().expect("a part").bytes.clone();
        let channel = primary_end.channels.get_mut(&WorkerId(3)).expect("open");
        let outcome = channel
            .assembler
            .accept_packet(&bytes, AttachedConnection::Absent, &mut VecDeque::new())
            .map(drop);
        outcome.expect("a part");
        assert!(channel.assembler.has_partial_envelope());

        let mut fds = FdCloseBatch::default();
        primary_end.leave_to_parent(&mut fds);
        fds.close_all();
        for (at, peer) in peers.iter_mut().enumerate() {
            // A program that another test starts briefly has copies of all descriptors.
            peer.set_read_timeout(Some(Duration::from_secs(10))).expect("timeout");
            assert_eq!(peer.read(&mut [0]).expect("end"), 0, "{at}");
        }
    }
}
