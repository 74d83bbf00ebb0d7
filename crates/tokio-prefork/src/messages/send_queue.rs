//! What is to be sent over one channel, and in which order: pure.
//!
//! Letters of one kind leave in the order in which they came. The kinds take turns, a frame each; a letter that does not
//! fit into a packet leaves in parts, one such letter at a time, so that the receiver has one buffer to keep.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bytes::Bytes;

use super::packet_frame::{self, Frame, PACKET};
use super::{Back, Carried, Class, Kind, Letter, MessageError, MessageLimits};

/// A letter that fits into one packet.
const WHOLE: usize = PACKET - packet_frame::HEAD;

/// A part of a larger letter is not smaller than this, unless it is the last.
const PART: usize = 1024;

/// Connections that may wait in one channel: each is a descriptor of this process.
const CONNECTIONS: usize = 64;

/// A letter that waits, or is under way in parts.
#[derive(Debug)]
struct Outgoing {
    head: Vec<u8>,
    payload: Bytes,
    sent: usize,
    connection: Option<OwnedFd>,
}

impl Outgoing {
    fn size(&self) -> usize {
        self.head.len() + self.payload.len()
    }

    /// The next `length` bytes of it.
    fn part(&mut self, length: usize) -> Vec<u8> {
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
pub(super) struct Outbox {
    limits: MessageLimits,
    kinds: HashMap<Kind, VecDeque<Outgoing>>,
    /// Whose turn it is; each kind that has something, once.
    turns: VecDeque<Kind>,
    /// The kind whose first letter is under way in parts.
    large: Option<Kind>,
    waiting: usize,
    bytes: usize,
    connections: usize,
    packet: Option<Packet>,
}

impl Outbox {
    pub(super) fn new(limits: MessageLimits) -> Outbox {
        Outbox {
            limits,
            kinds: HashMap::new(),
            turns: VecDeque::new(),
            large: None,
            waiting: 0,
            bytes: 0,
            connections: 0,
            packet: None,
        }
    }

    /// Whether `letter` is small enough, and there is room for it.
    pub(super) fn check(&self, letter: &Letter) -> Result<(), MessageError> {
        let (size, most) = (letter.size(), self.limits.letter());
        if size > most {
            return Err(MessageError::TooLarge {
                size: letter.payload.len(),
                most: self.limits.max_message_bytes,
            });
        }
        // Who asked waits for the answer: a queue that is full of other things must not keep it back.
        let share = if matches!(letter.class, Class::Reply | Class::Refusal) { 2 } else { 1 };
        let fits = self.waiting == 0 || self.bytes + size <= share * self.limits.queue_bytes;
        let counts = self.waiting < share * self.limits.queue_messages;
        let carries = letter.carried.is_here() && self.connections >= CONNECTIONS;
        match fits && counts && !carries {
            true => Ok(()),
            false => Err(MessageError::Full),
        }
    }

    /// Takes `letter` in; on an error it comes back.
    pub(super) fn push(&mut self, letter: Letter) -> Result<(), Back> {
        if let Err(e) = self.check(&letter) {
            return Err(Box::new((e, letter)));
        }
        let head = letter.head();
        let Letter { kind, payload, carried, .. } = letter;
        let connection = match carried {
            Carried::Here(fd) => Some(fd),
            Carried::Nothing | Carried::Lost => None,
        };
        let letter = Outgoing { head, payload, sent: 0, connection };
        self.waiting += 1;
        self.bytes += letter.size();
        self.connections += usize::from(letter.connection.is_some());
        let queue = self.kinds.entry(kind.clone()).or_default();
        if queue.is_empty() {
            self.turns.push_back(kind);
        }
        queue.push_back(letter);
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting == 0 && self.packet.is_none()
    }

    /// What is to be sent now: the same until `sent` is called.
    pub(super) fn packet(&mut self) -> Option<&Packet> {
        if self.packet.is_none() && self.waiting > 0 {
            self.packet = Some(self.pack());
        }
        self.packet.as_ref()
    }

    /// The packet is gone, and with it our duplicate of its connection.
    pub(super) fn sent(&mut self) {
        self.packet = None;
    }

    fn pack(&mut self) -> Packet {
        let mut packet = Packet { bytes: Vec::new(), connection: None };
        // So many kinds in a row had nothing that fits.
        let mut passed = 0;
        while passed < self.turns.len() {
            let Some(kind) = self.turns.pop_front() else { break };
            match self.add(&kind, &mut packet) {
                true => passed = 0,
                false => passed += 1,
            }
            match self.kinds.get(&kind).is_some_and(|queue| !queue.is_empty()) {
                true => self.turns.push_back(kind),
                false => drop(self.kinds.remove(&kind)),
            }
        }
        packet
    }

    /// Adds a frame of `kind` to `packet`, if one fits.
    fn add(&mut self, kind: &Kind, packet: &mut Packet) -> bool {
        let Some(queue) = self.kinds.get_mut(kind) else { return false };
        let Some(letter) = queue.front_mut() else { return false };
        let room = PACKET - packet.bytes.len();
        let (size, left) = (letter.size(), letter.size() - letter.sent);
        if letter.connection.is_some() && packet.connection.is_some() {
            return false;
        }
        let connection = letter.connection.is_some();
        let done = if size <= WHOLE {
            if room < packet_frame::HEAD + size {
                return false;
            }
            Frame::Whole(&letter.part(size), connection).write(&mut packet.bytes);
            true
        } else {
            let first = letter.sent == 0;
            let heads = packet_frame::HEAD + if first { packet_frame::TOTAL } else { 0 };
            let other = self.large.as_ref().is_some_and(|large| large != kind);
            if other || room < heads + left.min(PART) {
                return false;
            }
            let part = letter.part(left.min(room - heads));
            match first {
                true => Frame::First { total: size, part: &part, connection },
                false => Frame::Next(&part),
            }
            .write(&mut packet.bytes);
            let done = letter.sent == size;
            self.large = (!done).then(|| kind.clone());
            done
        };
        if let Some(fd) = letter.connection.take() {
            self.connections -= 1;
            packet.connection = Some(fd);
        }
        if done {
            queue.pop_front();
            self.waiting -= 1;
            self.bytes -= size;
        }
        true
    }
}
