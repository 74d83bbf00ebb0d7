//! The queue of outgoing messages of one channel. Without I/O.
//!
//! Messages of one kind keep their order. The kinds take turns, one frame each. An envelope that does not fit into a packet is sent in
//! parts, one such envelope at a time, so that the receiver needs one buffer.

use std::collections::{HashMap, VecDeque};
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
    payload: Bytes,
    sent: usize,
    connection: Option<OwnedFd>,
}

impl OutgoingMessage {
    fn encoded_size(&self) -> usize {
        self.head.len() + self.payload.len()
    }

    /// Returns the next `length` bytes and marks them as sent.
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

/// A datagram to be sent.
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

/// The queued messages, by kind.
#[derive(Debug)]
pub(super) struct SendQueue {
    limits: MessageLimits,
    queues_by_kind: HashMap<MessageKind, VecDeque<OutgoingMessage>>,
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
            queues_by_kind: HashMap::new(),
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
        let head = envelope.encode_header();
        let Envelope { kind, payload, attached, .. } = envelope;
        let connection = match attached {
            AttachedConnection::Present(fd) => Some(fd),
            AttachedConnection::Absent | AttachedConnection::Lost => None,
        };
        let payload = payload.bytes().clone();
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
        let mut packet = Packet { bytes: Vec::new(), connection: None };
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
