//! The queue of outgoing messages of one channel. Without I/O.
//!
//! Messages of one kind keep their order. The kinds take turns, one frame each. An envelope that does not fit into a packet is sent in
//! parts, one such envelope at a time, so that the receiver needs one buffer.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bytes::Bytes;

use super::packet_frame::{self, MAX_PACKET_BYTES, PacketFrame};
use super::{
    AttachedConnection, Envelope, MessageClass, MessageError, MessageKind, MessageLimits,
    RejectedEnvelope,
};

/// The largest envelope that fits into one packet.
const MAX_WHOLE_BYTES: usize = MAX_PACKET_BYTES - packet_frame::FRAME_HEADER_BYTES;

/// The smallest part of a large envelope, except for the last one.
const MIN_PART_BYTES: usize = 1024;

/// The most connections that may be queued per channel. Each one uses a descriptor of this process.
const MAX_QUEUED_CONNECTIONS: usize = 64;

/// A queued envelope, possibly sent in part.
#[derive(Debug)]
struct OutgoingMessage {
    head: Vec<u8>,
    envelope: Envelope,
    /// Number of bytes in packets, including the current one.
    sent: usize,
}

impl OutgoingMessage {
    fn new(envelope: Envelope) -> OutgoingMessage {
        OutgoingMessage { head: envelope.encode_header(), envelope, sent: 0 }
    }

    fn encoded_size(&self) -> usize {
        self.head.len() + self.payload().len()
    }

    fn payload(&self) -> &Bytes {
        self.envelope.payload.bytes()
    }

    fn has_connection(&self) -> bool {
        self.envelope.attached.is_present()
    }

    /// Returns the next `length` bytes and marks them as sent.
    fn take_part(&mut self, length: usize) -> Vec<u8> {
        let (from, to) = (self.sent, self.sent + length);
        let middle = self.head.len();
        let mut part = Vec::with_capacity(length);
        part.extend_from_slice(&self.head[from.min(middle)..to.min(middle)]);
        part.extend_from_slice(
            &self.payload()[from.saturating_sub(middle)..to.saturating_sub(middle)],
        );
        self.sent = to;
        part
    }
}

/// A datagram to be sent, and what it was built from.
#[derive(Debug, Default)]
pub(super) struct Packet {
    pub(super) bytes: Vec<u8>,
    /// The messages that this packet completes, and how much of each one was in earlier packets.
    completed: Vec<(OutgoingMessage, usize)>,
    /// How much of the message that continues after this packet was in earlier packets.
    partial_sent_before: Option<usize>,
    connection: Option<OwnedFd>,
    /// The position in `completed` of the message that `connection` belongs to; `None` for the one that continues.
    connection_owner: Option<usize>,
}

impl Packet {
    pub(super) fn connection(&self) -> Option<BorrowedFd<'_>> {
        self.connection.as_ref().map(AsFd::as_fd)
    }
}

/// The queued messages, by kind.
#[derive(Debug)]
pub(super) struct SendQueue {
    limits: MessageLimits,
    /// Not a `HashMap`: in the primary it would draw the random keys that all later workers inherit.
    queues_by_kind: BTreeMap<MessageKind, VecDeque<OutgoingMessage>>,
    /// The order in which kinds are served. Holds each kind with queued messages once.
    kind_order: VecDeque<MessageKind>,
    /// The kind whose first envelope is sent in part.
    partial_kind: Option<MessageKind>,
    queued_messages: usize,
    queued_bytes: usize,
    queued_connections: usize,
    packet: Option<Packet>,
}

impl SendQueue {
    pub(super) fn new(limits: MessageLimits) -> SendQueue {
        SendQueue {
            limits,
            queues_by_kind: BTreeMap::new(),
            kind_order: VecDeque::new(),
            partial_kind: None,
            queued_messages: 0,
            queued_bytes: 0,
            queued_connections: 0,
            packet: None,
        }
    }

    /// Checks that `envelope` is small enough and that there is room for it.
    pub(super) fn check_room(&self, envelope: &Envelope) -> Result<(), MessageError> {
        let (size, most) = (envelope.encoded_size(), self.limits.max_envelope_bytes());
        if size > most {
            return Err(MessageError::TooLarge {
                size: envelope.payload.bytes().len(),
                most: self.limits.max_message_bytes,
            });
        }
        // Replies get twice the room: requesters wait for them, so other messages must not block them.
        let limit_factor = if matches!(envelope.class, MessageClass::Reply | MessageClass::Refusal)
        {
            2
        } else {
            1
        };
        let fits = self.queued_messages == 0
            || self.queued_bytes + size <= limit_factor * self.limits.queue_bytes;
        let counts = self.queued_messages < limit_factor * self.limits.queue_messages;
        let carries =
            envelope.attached.is_present() && self.queued_connections >= MAX_QUEUED_CONNECTIONS;
        match fits && counts && !carries {
            true => Ok(()),
            false => Err(MessageError::Full),
        }
    }

    /// Queues an envelope. Returns it on an error.
    pub(super) fn push(&mut self, envelope: Envelope) -> Result<(), RejectedEnvelope> {
        if let Err(e) = self.check_room(&envelope) {
            return Err(Box::new((e, envelope)));
        }
        let outgoing = OutgoingMessage::new(envelope);
        self.count_in(&outgoing);
        self.queue_of(outgoing.envelope.kind.clone()).push_back(outgoing);
        Ok(())
    }

    /// Returns the queue of a kind, which takes turns with the others from now on.
    fn queue_of(&mut self, kind: MessageKind) -> &mut VecDeque<OutgoingMessage> {
        let queue = self.queues_by_kind.entry(kind.clone()).or_default();
        if queue.is_empty() {
            self.kind_order.push_back(kind);
        }
        queue
    }

    fn count_in(&mut self, outgoing: &OutgoingMessage) {
        self.queued_messages += 1;
        self.queued_bytes += outgoing.encoded_size();
        self.queued_connections += usize::from(outgoing.has_connection());
    }

    fn count_out(&mut self, outgoing: &OutgoingMessage) {
        self.queued_messages -= 1;
        self.queued_bytes -= outgoing.encoded_size();
        self.queued_connections -= usize::from(outgoing.has_connection());
    }

    /// Returns the queued messages, in order for each kind, and how much of each was sent. There must be no current packet.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Envelope, usize)> {
        let queues = self.kind_order.iter().filter_map(|kind| self.queues_by_kind.get(kind));
        queues.flatten().map(|outgoing| (&outgoing.envelope, outgoing.sent))
    }

    /// Queues a message of which the previous image has sent `sent` bytes.
    pub(super) fn restore(&mut self, envelope: Envelope, sent: usize) {
        let outgoing = OutgoingMessage { sent, ..OutgoingMessage::new(envelope) };
        let kind = outgoing.envelope.kind.clone();
        if sent > 0 {
            self.partial_kind = Some(kind.clone());
        }
        self.count_in(&outgoing);
        self.queue_of(kind).push_back(outgoing);
    }

    /// Takes the messages of which no part was sent, in order for each kind. A current packet stays.
    pub(super) fn take_unsent(&mut self) -> Vec<Envelope> {
        let mut unsent = Vec::new();
        for kind in std::mem::take(&mut self.kind_order) {
            let Some(mut queue) = self.queues_by_kind.remove(&kind) else { continue };
            if self.partial_kind.as_ref() == Some(&kind)
                && let Some(partial) = queue.pop_front()
            {
                self.queue_of(kind).push_back(partial);
            }
            for outgoing in queue {
                self.count_out(&outgoing);
                unsent.push(outgoing.envelope);
            }
        }
        unsent
    }

    /// Takes all messages that have not arrived completely, in order for each kind, because the receiver is gone.
    pub(super) fn take_undelivered(&mut self) -> Vec<Envelope> {
        self.undo_packet();
        self.partial_kind = None;
        self.take_unsent()
    }

    /// Puts the contents of the current packet back into the queues.
    pub(super) fn undo_packet(&mut self) {
        let Some(packet) = self.packet.take() else { return };
        let Packet { completed, partial_sent_before, mut connection, connection_owner, .. } =
            packet;
        let mut reattach = |outgoing: &mut OutgoingMessage| {
            if let Some(fd) = connection.take() {
                outgoing.envelope.attached = AttachedConnection::Present(fd);
            }
        };
        if let Some(sent_before) = partial_sent_before {
            let partial =
                self.partial_kind.as_ref().and_then(|kind| self.queues_by_kind.get_mut(kind));
            if let Some(partial) = partial.and_then(VecDeque::front_mut) {
                partial.sent = sent_before;
                if connection_owner.is_none() && !partial.has_connection() {
                    reattach(partial);
                    self.queued_connections += usize::from(partial.has_connection());
                }
            }
            if sent_before == 0 {
                self.partial_kind = None;
            }
        }
        for (position, (mut outgoing, sent_before)) in completed.into_iter().enumerate().rev() {
            outgoing.sent = sent_before;
            if connection_owner == Some(position) {
                reattach(&mut outgoing);
            }
            if sent_before > 0 {
                self.partial_kind = Some(outgoing.envelope.kind.clone());
            }
            self.count_in(&outgoing);
            self.queue_of(outgoing.envelope.kind.clone()).push_front(outgoing);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queued_messages == 0 && self.packet.is_none()
    }

    /// Returns how many messages are not sent completely.
    pub(super) fn message_count(&self) -> usize {
        self.queued_messages + self.packet.as_ref().map_or(0, |packet| packet.completed.len())
    }

    /// Returns the packet to send now. The same one until `packet_sent` is called.
    pub(super) fn current_packet(&mut self) -> Option<&Packet> {
        if self.packet.is_none() && self.queued_messages > 0 {
            self.packet = Some(self.build_packet());
        }
        self.packet.as_ref()
    }

    /// Drops the current packet after the kernel has taken it, which closes its connection here.
    pub(super) fn packet_sent(&mut self) {
        self.packet = None;
    }

    fn build_packet(&mut self) -> Packet {
        let mut packet = Packet::default();
        // Number of consecutive kinds without a frame that fits.
        let mut kinds_without_fit = 0;
        while kinds_without_fit < self.kind_order.len() {
            let Some(kind) = self.kind_order.pop_front() else { break };
            match self.add_frame(&kind, &mut packet) {
                true => kinds_without_fit = 0,
                false => kinds_without_fit += 1,
            }
            match self.queues_by_kind.get(&kind).is_some_and(|queue| !queue.is_empty()) {
                true => self.kind_order.push_back(kind),
                false => drop(self.queues_by_kind.remove(&kind)),
            }
        }
        packet
    }

    /// Adds a frame of `kind` to `packet`, if one fits.
    fn add_frame(&mut self, kind: &MessageKind, packet: &mut Packet) -> bool {
        let Some(queue) = self.queues_by_kind.get_mut(kind) else { return false };
        let Some(outgoing) = queue.front_mut() else { return false };
        let room = MAX_PACKET_BYTES - packet.bytes.len();
        let (size, sent_before) = (outgoing.encoded_size(), outgoing.sent);
        let connection = outgoing.has_connection();
        if connection && packet.connection.is_some() {
            return false;
        }
        if size <= MAX_WHOLE_BYTES {
            if room < packet_frame::FRAME_HEADER_BYTES + size {
                return false;
            }
            PacketFrame::Whole(&outgoing.take_part(size), connection).write(&mut packet.bytes);
        } else {
            let (is_first, left) = (sent_before == 0, size - sent_before);
            let heads = packet_frame::FRAME_HEADER_BYTES
                + if is_first { packet_frame::TOTAL_LENGTH_BYTES } else { 0 };
            let other = self.partial_kind.as_ref().is_some_and(|partial_kind| partial_kind != kind);
            if other || room < heads + left.min(MIN_PART_BYTES) {
                return false;
            }
            let part = outgoing.take_part(left.min(room - heads));
            match is_first {
                true => PacketFrame::First { total: size, part: &part, connection },
                false => PacketFrame::Next(&part),
            }
            .write(&mut packet.bytes);
        }
        if connection {
            packet.connection = outgoing.envelope.attached.take_fd();
            self.queued_connections -= 1;
        }
        if outgoing.sent < size {
            packet.partial_sent_before = Some(sent_before);
            self.partial_kind = Some(kind.clone());
            return true;
        }
        if size > MAX_WHOLE_BYTES {
            self.partial_kind = None;
        }
        if connection {
            packet.connection_owner = Some(packet.completed.len());
        }
        if let Some(outgoing) = queue.pop_front() {
            self.queued_messages -= 1;
            self.queued_bytes -= size;
            packet.completed.push((outgoing, sent_before));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::assembler::EnvelopeAssembler;
    use super::super::envelope::tests::test_envelope;
    use super::*;

    /// Sends up to `packets` packets. Returns the payload sizes by kind of what arrived completely.
    fn send_packets(
        send_queue: &mut SendQueue,
        assembler: &mut EnvelopeAssembler,
        packets: usize,
    ) -> Vec<(String, usize)> {
        let mut envelopes = VecDeque::new();
        for _ in 0..packets {
            let Some(packet) = send_queue.current_packet() else { break };
            let attached = match packet.connection() {
                Some(fd) => AttachedConnection::Present(fd.try_clone_to_owned().expect("clone")),
                None => AttachedConnection::Absent,
            };
            assembler.accept_packet(&packet.bytes, attached, &mut envelopes).expect("valid");
            send_queue.packet_sent();
        }
        envelopes.iter().map(name_and_size).collect()
    }

    fn name_and_size(envelope: &Envelope) -> (String, usize) {
        (envelope.kind.as_str().to_string(), envelope.payload.bytes().len())
    }

    fn of_kind(all: &[(String, usize)], kind: &str) -> Vec<usize> {
        all.iter().filter(|(name, _)| name == kind).map(|(_, size)| *size).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn nothing_is_lost_or_sent_twice_whatever_is_taken_back(
            messages in prop::collection::vec((0usize..3, 0usize..100_000, any::<bool>()), 1..20),
            sent in 0usize..12,
            has_current_packet: bool,
            is_receiver_gone: bool,
        ) {
            let limits = MessageLimits::default();
            let mut send_queue = SendQueue::new(limits);
            let mut assembler = EnvelopeAssembler::new(limits.max_envelope_bytes());
            let mut queued = Vec::new();
            let mut connections = 0;
            for (kind, size, has_connection) in messages {
                let mut envelope = test_envelope(["a", "b", "c"][kind], size);
                if has_connection {
                    let file = std::fs::File::open("/dev/null").expect("open");
                    envelope.attached = AttachedConnection::Present(file.into());
                    connections += 1;
                }
                queued.push(name_and_size(&envelope));
                send_queue.push(envelope).expect("room");
            }
            prop_assert_eq!(send_queue.queued_connections, connections);
            let mut arrived = send_packets(&mut send_queue, &mut assembler, sent);
            if has_current_packet {
                send_queue.current_packet();
            }
            let taken = match is_receiver_gone {
                true => send_queue.take_undelivered(),
                false => send_queue.take_unsent(),
            };
            if is_receiver_gone {
                prop_assert!(send_queue.is_empty());
            } else {
                arrived.extend(send_packets(&mut send_queue, &mut assembler, usize::MAX));
            }
            prop_assert_eq!(
                (send_queue.queued_messages, send_queue.queued_bytes, send_queue.queued_connections),
                (0, 0, 0)
            );
            arrived.extend(taken.iter().map(name_and_size));
            for kind in ["a", "b", "c"] {
                prop_assert_eq!(of_kind(&arrived, kind), of_kind(&queued, kind), "{}", kind);
            }
        }

        #[test]
        fn a_packet_that_is_put_back_is_sent_again(
            sizes in prop::collection::vec(0usize..80_000, 1..8), sent in 0usize..8,
        ) {
            let limits = MessageLimits::default();
            let mut send_queue = SendQueue::new(limits);
            let mut assembler = EnvelopeAssembler::new(limits.max_envelope_bytes());
            for size in &sizes {
                send_queue.push(test_envelope("a", *size)).expect("room");
            }
            let mut arrived = send_packets(&mut send_queue, &mut assembler, sent);
            send_queue.current_packet();
            send_queue.undo_packet();
            arrived.extend(send_packets(&mut send_queue, &mut assembler, usize::MAX));
            prop_assert_eq!(of_kind(&arrived, "a"), sizes);
        }
    }
}
