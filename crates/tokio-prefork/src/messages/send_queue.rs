//! What is to be sent over one channel, and in which order: pure.
//!
//! Letters of one kind leave in the order in which they came. The kinds take kind_order, a frame each; a envelope that does not
//! fit into a packet leaves in parts, one such envelope at a time, so that the receiver has one buffer to keep.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bytes::Bytes;

use super::packet_frame::{self, MAX_PACKET_BYTES, PacketFrame};
use super::{
    AttachedConnection, Envelope, MessageClass, MessageError, MessageKind, MessageLimits,
    RejectedEnvelope,
};

/// A envelope that fits into one packet.
const MAX_WHOLE_BYTES: usize = MAX_PACKET_BYTES - packet_frame::FRAME_HEADER_BYTES;

/// A part of a larger envelope is not smaller than this, unless it is the last.
const MIN_PART_BYTES: usize = 1024;

/// Connections that may wait in one channel: each is a descriptor of this process.
const MAX_QUEUED_CONNECTIONS: usize = 64;

/// A envelope that waits, or is under way in parts.
#[derive(Debug)]
struct OutgoingMessage {
    head: Vec<u8>,
    payload: Bytes,
    sent: usize,
    connection: Option<OwnedFd>,
}

impl OutgoingMessage {
    fn encoded_size(&self) -> usize {
        self.head.len() + self.payload.len()
    }

    /// The next `length` bytes of it.
    fn take_part(&mut self, length: usize) -> Vec<u8> {
        let (from, to) = (self.sent, self.sent + length);
        let middle = self.head.len();
        let mut part = Vec::with_capacity(length);
        part.extend_from_slice(&self.head[from.min(middle)..to.min(middle)]);
        part.extend_from_slice(
            &self.payload[from.saturating_sub(middle)..to.saturating_sub(middle)],
        );
        self.sent = to;
        part
    }
}

/// One datagram, until the kernel has taken it.
#[derive(Debug, Default)]
pub(super) struct Packet {
    pub(super) bytes: Vec<u8>,
    connection: Option<OwnedFd>,
}

impl Packet {
    pub(super) fn connection(&self) -> Option<BorrowedFd<'_>> {
        self.connection.as_ref().map(AsFd::as_fd)
    }
}

/// What waits to be sent.
#[derive(Debug)]
pub(super) struct SendQueue {
    limits: MessageLimits,
    queues_by_kind: HashMap<MessageKind, VecDeque<OutgoingMessage>>,
    /// Whose turn it is; each kind that has something, once.
    kind_order: VecDeque<MessageKind>,
    /// The kind whose first envelope is under way in parts.
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
            queues_by_kind: HashMap::new(),
            kind_order: VecDeque::new(),
            partial_kind: None,
            queued_messages: 0,
            queued_bytes: 0,
            queued_connections: 0,
            packet: None,
        }
    }

    /// Whether `envelope` is small enough, and there is room for it.
    pub(super) fn check_room(&self, envelope: &Envelope) -> Result<(), MessageError> {
        let (size, most) = (envelope.encoded_size(), self.limits.max_envelope_bytes());
        if size > most {
            return Err(MessageError::TooLarge {
                size: envelope.payload.len(),
                most: self.limits.max_message_bytes,
            });
        }
        // Who asked waits for the answer: a queue that is full of other things must not keep it rejected.
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

    /// Takes `envelope` in; on an error it comes rejected.
    pub(super) fn push(&mut self, envelope: Envelope) -> Result<(), RejectedEnvelope> {
        if let Err(e) = self.check_room(&envelope) {
            return Err(Box::new((e, envelope)));
        }
        let head = envelope.encode_header();
        let Envelope { kind, payload, attached, .. } = envelope;
        let connection = match attached {
            AttachedConnection::Present(fd) => Some(fd),
            AttachedConnection::Absent | AttachedConnection::Lost => None,
        };
        let envelope = OutgoingMessage { head, payload, sent: 0, connection };
        self.queued_messages += 1;
        self.queued_bytes += envelope.encoded_size();
        self.queued_connections += usize::from(envelope.connection.is_some());
        let queue = self.queues_by_kind.entry(kind.clone()).or_default();
        if queue.is_empty() {
            self.kind_order.push_back(kind);
        }
        queue.push_back(envelope);
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queued_messages == 0 && self.packet.is_none()
    }

    /// What is to be sent now: the same until `sent` is called.
    pub(super) fn current_packet(&mut self) -> Option<&Packet> {
        if self.packet.is_none() && self.queued_messages > 0 {
            self.packet = Some(self.build_packet());
        }
        self.packet.as_ref()
    }

    /// The packet is gone, and with it our duplicate of its connection.
    pub(super) fn packet_sent(&mut self) {
        self.packet = None;
    }

    fn build_packet(&mut self) -> Packet {
        let mut packet = Packet { bytes: Vec::new(), connection: None };
        // So many kinds in a row had nothing that fits.
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
        let Some(envelope) = queue.front_mut() else { return false };
        let room = MAX_PACKET_BYTES - packet.bytes.len();
        let (size, left) = (envelope.encoded_size(), envelope.encoded_size() - envelope.sent);
        if envelope.connection.is_some() && packet.connection.is_some() {
            return false;
        }
        let connection = envelope.connection.is_some();
        let done = if size <= MAX_WHOLE_BYTES {
            if room < packet_frame::FRAME_HEADER_BYTES + size {
                return false;
            }
            PacketFrame::Whole(&envelope.take_part(size), connection).write(&mut packet.bytes);
            true
        } else {
            let first = envelope.sent == 0;
            let heads = packet_frame::FRAME_HEADER_BYTES
                + if first { packet_frame::TOTAL_LENGTH_BYTES } else { 0 };
            let other = self.partial_kind.as_ref().is_some_and(|partial_kind| partial_kind != kind);
            if other || room < heads + left.min(MIN_PART_BYTES) {
                return false;
            }
            let part = envelope.take_part(left.min(room - heads));
            match first {
                true => PacketFrame::First { total: size, part: &part, connection },
                false => PacketFrame::Next(&part),
            }
            .write(&mut packet.bytes);
            let done = envelope.sent == size;
            self.partial_kind = (!done).then(|| kind.clone());
            done
        };
        if let Some(fd) = envelope.connection.take() {
            self.queued_connections -= 1;
            packet.connection = Some(fd);
        }
        if done {
            queue.pop_front();
            self.queued_messages -= 1;
            self.queued_bytes -= size;
        }
        true
    }
}
