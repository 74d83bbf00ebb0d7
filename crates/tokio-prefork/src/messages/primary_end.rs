//! The primary's end: all channels, in its poll loop. Nothing here blocks, and each turn is bounded.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::assembler::EnvelopeAssembler;
use super::packet_frame::{MAX_PACKET_BYTES, MessageProtocolError};
use super::router::MessageRouter;
pub(crate) use super::router::RouterStep;
use super::{
    AttachedConnection, Envelope, MessageAddress, MessageClass, MessageError, MessageLimits,
    RejectedEnvelope, ReplyTo,
};
use prefork_os::fd::FdCloseBatch;
use prefork_os::fd_passing::{
    PassedFd, ReceivedMessage, discard_messages, receive_message, send_message,
};
use prefork_os::poll::{self, PollInterest, WatchedFd};
use prefork_supervisor::{WorkerId, WorkerTag};

/// Packets has_sent from one worker in one turn.
const PACKETS_PER_TURN: usize = 4;

/// A packet of so many bytes is one of many: its sender has more to say than fits into one.
pub(super) const LARGE_PACKET_BYTES: usize = MAX_PACKET_BYTES / 4;

/// What a dead worker can have left unread is bounded by its socket's buffer, and this is more.
const MAX_REMAINING_PACKETS: usize = 4096;

/// When envelopes that wait for a receiver are looked at again. Its end of the wait rings earlier.
const BLOCKED_RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// When a packet with a connection is tried again that the kernel did not take: the socket may be writable all the
/// while, as there is a limit on descriptors under way, too.
const FD_RETRY_INTERVAL: Duration = Duration::from_millis(2);

/// The channel to one worker.
#[derive(Debug)]
struct WorkerChannel {
    fd: OwnedFd,
    assembler: EnvelopeAssembler,
    /// The kernel did not take a packet with a connection.
    fd_was_refused: bool,
}

/// Names a channel to poll and what it is polled for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MessagePollToken {
    id: WorkerId,
    interest: PollInterest,
}

impl MessagePollToken {
    /// Returns whether the channel is polled for something to read.
    pub(crate) fn is_to_read(self) -> bool {
        self.interest == PollInterest::Readable
    }
}

/// The primary's end of all channels.
#[derive(Debug)]
pub(crate) struct PrimaryMessageEnd {
    limits: MessageLimits,
    channels: BTreeMap<WorkerId, WorkerChannel>,
    router: MessageRouter,
    buffer: Vec<u8>,
}

impl Default for PrimaryMessageEnd {
    fn default() -> PrimaryMessageEnd {
        PrimaryMessageEnd::new(MessageLimits::default())
    }
}

impl PrimaryMessageEnd {
    pub(crate) fn new(limits: MessageLimits) -> PrimaryMessageEnd {
        let (channels, router) = (BTreeMap::new(), MessageRouter::new(limits));
        PrimaryMessageEnd { limits, channels, router, buffer: Vec::new() }
    }

    pub(crate) fn limits(&self) -> MessageLimits {
        self.limits
    }

    /// A worker was forked; `fd` is our end of its channel.
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

    /// When to go on at the latest.
    pub(crate) fn poll_timeout(&self) -> Option<Duration> {
        if self.router.has_work() {
            return Some(Duration::ZERO);
        }
        let fd_was_refused = self.channels.values().any(|channel| channel.fd_was_refused);
        let blocked = self.router.is_blocked().then_some(BLOCKED_RETRY_INTERVAL);
        blocked.into_iter().chain(fd_was_refused.then_some(FD_RETRY_INTERVAL)).min()
    }

    /// Reads the channels of these tokens. Returns the workers that broke the protocol, and how.
    pub(crate) fn read(
        &mut self,
        ready: &[MessagePollToken],
    ) -> Vec<(WorkerId, MessageProtocolError)> {
        let mut broken = Vec::new();
        for token in ready.iter().filter(|token| token.is_to_read()) {
            if let Err(why) = self.read_packets(token.id, PACKETS_PER_TURN) {
                if let Some(channel) = self.channels.remove(&token.id) {
                    discard_messages(&channel.fd);
                }
                self.router.remove_misbehaving(token.id);
                broken.push((token.id, why));
            }
        }
        broken
    }

    /// Up to `packets` packets of one worker.
    fn read_packets(&mut self, id: WorkerId, packets: usize) -> Result<(), MessageProtocolError> {
        self.buffer.resize(MAX_PACKET_BYTES, 0);
        let mut envelopes = VecDeque::new();
        let mut is_closed = false;
        for _ in 0..packets {
            let Some(channel) = self.channels.get_mut(&id) else { break };
            let (length, attached) = match receive_message(&channel.fd, &mut self.buffer) {
                Ok(ReceivedMessage::Message(length, passed)) => (length, attached(passed)),
                Ok(ReceivedMessage::Truncated) => return Err(MessageProtocolError::PacketTooLarge),
                Ok(ReceivedMessage::Closed) => {
                    is_closed = true;
                    break;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(MessageProtocolError::ChannelFailed(e.to_string())),
            };
            channel.assembler.accept_packet(&self.buffer[..length], attached, &mut envelopes)?;
            // Hardly any more is there; if it is, the next wait says so. To look costs a system call each time.
            if packets == PACKETS_PER_TURN && length < LARGE_PACKET_BYTES {
                break;
            }
        }
        self.router.receive(id, envelopes);
        if is_closed {
            self.channels.remove(&id);
            self.router.close_worker(id);
        }
        Ok(())
    }

    /// Sends what there is room for.
    pub(crate) fn flush(&mut self) {
        let mut broken = Vec::new();
        for (&id, channel) in &mut self.channels {
            channel.fd_was_refused = false;
            let Some(send_queue) =
                self.router.send_queue(id).filter(|send_queue| !send_queue.is_empty())
            else {
                continue;
            };
            let mut has_sent = false;
            while let Some(packet) = send_queue.current_packet() {
                match send_message(&channel.fd, &packet.bytes, packet.connection()) {
                    Ok(()) => has_sent = true,
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                        channel.fd_was_refused =
                            packet.connection().is_some() && is_writable(&channel.fd);
                        break;
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    // It is dead. What it said before is still read.
                    Err(_) => {
                        broken.push(id);
                        break;
                    }
                }
                send_queue.packet_sent();
            }
            if has_sent {
                self.router.record_progress(id);
            }
        }
        for id in broken {
            if let Some(send_queue) = self.router.send_queue(id) {
                *send_queue = super::send_queue::SendQueue::new(self.limits);
            }
        }
    }

    /// The worker has is_closed: what it had said by then is read, and its channel closed. A half message is dropped.
    pub(crate) fn remove(&mut self, id: WorkerId) {
        // Garbage of the dead is no news.
        let _ = self.read_packets(id, MAX_REMAINING_PACKETS);
        self.channels.remove(&id);
        self.router.close_worker(id);
    }

    /// In a forked child: gives the descriptors of all channels to `fds`, and drops the envelopes under way, which may carry
    /// connections. All else stays in memory as it is.
    pub(crate) fn leave_to_parent(self, fds: &mut FdCloseBatch) {
        let PrimaryMessageEnd { mut channels, router, .. } = self;
        for channel in channels.values_mut().filter(|channel| channel.assembler.is_amid_letter()) {
            channel.assembler = EnvelopeAssembler::new(0);
        }
        fds.add_fds_of(channels, |channels, take| {
            channels.values().map(|channel| channel.fd.as_fd()).for_each(take);
        });
        router.leave_to_parent();
    }

    /// Goes on with the next envelope; `serves` says which workers serve their slots.
    pub(crate) fn route_next(
        &mut self,
        now: Instant,
        serves: &dyn Fn(WorkerId) -> bool,
    ) -> RouterStep {
        self.router.route_next(now, serves)
    }

    /// Whether anything of this worker may still come, or is here and not handled yet.
    pub(crate) fn has_pending(&self, id: WorkerId) -> bool {
        self.router.has_pending(id)
    }

    /// Sends something of the primary's, and says to whom; on an error it comes rejected.
    pub(crate) fn send(
        &mut self,
        to: MessageAddress,
        envelope: Envelope,
        serves: &dyn Fn(WorkerId) -> bool,
    ) -> Result<WorkerId, RejectedEnvelope> {
        self.router.send(to, envelope, serves)
    }

    pub(crate) fn reply(
        &mut self,
        to: &ReplyTo,
        class: MessageClass,
        payload: Bytes,
    ) -> Result<(), MessageError> {
        self.router.reply(to, class, payload)
    }

    /// To how many workers it goes, and to how many it does not as their queues are full.
    pub(crate) fn broadcast(
        &mut self,
        envelope: &Envelope,
    ) -> Result<(usize, usize), MessageError> {
        self.router.broadcast(envelope)
    }

    /// How many messages were lost so far, as they had no receiver or one that took nothing.
    pub(crate) fn dropped_count(&self) -> u64 {
        self.router.dropped_count()
    }
}

/// Whether the kernel refused a packet for another reason than a full buffer.
fn is_writable(fd: &OwnedFd) -> bool {
    let watched = [WatchedFd::new(fd.as_fd(), PollInterest::Writable)];
    poll::poll_fds(&watched, Some(Duration::ZERO)).is_ok_and(|ready| ready[0])
}

pub(super) fn attached(passed: PassedFd) -> AttachedConnection {
    match passed {
        PassedFd::None => AttachedConnection::Absent,
        PassedFd::One(fd) => AttachedConnection::Present(fd),
        PassedFd::Lost => AttachedConnection::Lost,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::super::envelope::tests::test_envelope;
    use super::super::send_queue::SendQueue;
    use super::*;
    use prefork_supervisor::{Generation, Slot, WEB_KIND};

    #[test]
    fn nothing_that_was_left_to_the_parent_stays_open() {
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
        // The first part of a envelope that takes several packets.
        let mut parts = SendQueue::new(MessageLimits::default());
        parts.push(test_envelope("a", 4 * MAX_PACKET_BYTES)).expect("room");
        let bytes = parts.current_packet().expect("a part").bytes.clone();
        let channel = primary_end.channels.get_mut(&WorkerId(3)).expect("open");
        let outcome = channel
            .assembler
            .accept_packet(&bytes, AttachedConnection::Absent, &mut VecDeque::new())
            .map(drop);
        outcome.expect("a part");
        assert!(channel.assembler.is_amid_letter());

        let mut fds = FdCloseBatch::default();
        primary_end.leave_to_parent(&mut fds);
        fds.close_all();
        for (at, peer) in peers.iter_mut().enumerate() {
            // A program that another test starts has copies of all descriptors for a moment.
            peer.set_read_timeout(Some(Duration::from_secs(10))).expect("timeout");
            assert_eq!(peer.read(&mut [0]).expect("end"), 0, "{at}");
        }
    }
}
