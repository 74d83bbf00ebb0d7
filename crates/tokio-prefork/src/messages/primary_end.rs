//! The primary's end: all channels, in its poll loop. Nothing here blocks, and each turn is bounded.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::assembler::Assembler;
use super::packet_frame::{Garbled, PACKET};
use super::router::Post;
pub(crate) use super::router::Turn;
use super::{Back, Carried, Class, Letter, MessageError, MessageLimits, Place, ReplyTo};
use prefork_os::fd::FdCloseBatch;
use prefork_os::fd_passing::{
    PassedFd, ReceivedMessage, discard_messages, receive_message, send_message,
};
use prefork_os::poll::{self, PollInterest, WatchedFd};
use prefork_supervisor::{WorkerId, WorkerTag};

/// Packets taken from one worker in one turn.
const PACKETS_A_TURN: usize = 4;

/// A packet of so many bytes is one of many: its sender has more to say than fits into one.
pub(super) const FULL: usize = PACKET / 4;

/// What a dead worker can have left unread is bounded by its socket's buffer, and this is more.
const LAST_PACKETS: usize = 4096;

/// When letters that wait for a receiver are looked at again. Its end of the wait rings earlier.
const BLOCKED: Duration = Duration::from_millis(50);

/// When a packet with a connection is tried again that the kernel did not take: the socket may be writable all the
/// while, as there is a limit on descriptors under way, too.
const CROWDED: Duration = Duration::from_millis(2);

/// The channel to one worker.
#[derive(Debug)]
struct Channel {
    fd: OwnedFd,
    assembler: Assembler,
    /// The kernel did not take a packet with a connection.
    crowded: bool,
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
pub(crate) struct MailHub {
    limits: MessageLimits,
    channels: BTreeMap<WorkerId, Channel>,
    post: Post,
    buffer: Vec<u8>,
}

impl Default for MailHub {
    fn default() -> MailHub {
        MailHub::new(MessageLimits::default())
    }
}

impl MailHub {
    pub(crate) fn new(limits: MessageLimits) -> MailHub {
        let (channels, post) = (BTreeMap::new(), Post::new(limits));
        MailHub { limits, channels, post, buffer: Vec::new() }
    }

    pub(crate) fn limits(&self) -> MessageLimits {
        self.limits
    }

    /// A worker was forked; `fd` is our end of its channel.
    pub(crate) fn add(&mut self, tag: WorkerTag, fd: OwnedFd) {
        let assembler = Assembler::new(self.limits.letter());
        self.channels.insert(tag.id, Channel { fd, assembler, crowded: false });
        self.post.open(tag);
    }

    /// Returns what to wait for. The tokens of ready descriptors go to `read`.
    pub(crate) fn poll_sources(&self) -> impl Iterator<Item = (MessagePollToken, WatchedFd<'_>)> {
        self.channels.iter().flat_map(|(&id, channel)| {
            let readable = self.post.may_read(id).then_some(PollInterest::Readable);
            let has_outgoing = self.post.has_outgoing(id) && !channel.crowded;
            let writable = has_outgoing.then_some(PollInterest::Writable);
            readable.into_iter().chain(writable).map(move |interest| {
                let watched = WatchedFd::new(channel.fd.as_fd(), interest);
                (MessagePollToken { id, interest }, watched)
            })
        })
    }

    /// When to go on at the latest.
    pub(crate) fn pause(&self) -> Option<Duration> {
        if self.post.has_turns() {
            return Some(Duration::ZERO);
        }
        let crowded = self.channels.values().any(|channel| channel.crowded);
        let blocked = self.post.is_blocked().then_some(BLOCKED);
        blocked.into_iter().chain(crowded.then_some(CROWDED)).min()
    }

    /// Reads the channels of these tokens. Returns the workers that broke the protocol, and how.
    pub(crate) fn read(&mut self, ready: &[MessagePollToken]) -> Vec<(WorkerId, Garbled)> {
        let mut garbled = Vec::new();
        for want in ready.iter().filter(|token| token.is_to_read()) {
            if let Err(why) = self.listen(want.id, PACKETS_A_TURN) {
                if let Some(channel) = self.channels.remove(&want.id) {
                    discard_messages(&channel.fd);
                }
                self.post.condemn(want.id);
                garbled.push((want.id, why));
            }
        }
        garbled
    }

    /// Up to `packets` packets of one worker.
    fn listen(&mut self, id: WorkerId, packets: usize) -> Result<(), Garbled> {
        self.buffer.resize(PACKET, 0);
        let mut letters = VecDeque::new();
        let mut ended = false;
        for _ in 0..packets {
            let Some(channel) = self.channels.get_mut(&id) else { break };
            let (length, carried) = match receive_message(&channel.fd, &mut self.buffer) {
                Ok(ReceivedMessage::Message(length, passed)) => (length, carried(passed)),
                Ok(ReceivedMessage::Truncated) => return Err(Garbled::Packet),
                Ok(ReceivedMessage::Closed) => {
                    ended = true;
                    break;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(Garbled::Channel(e.to_string())),
            };
            channel.assembler.take(&self.buffer[..length], carried, &mut letters)?;
            // Hardly any more is there; if it is, the next wait says so. To look costs a system call each time.
            if packets == PACKETS_A_TURN && length < FULL {
                break;
            }
        }
        self.post.come(id, letters);
        if ended {
            self.channels.remove(&id);
            self.post.close(id);
        }
        Ok(())
    }

    /// Sends what there is room for.
    pub(crate) fn flush(&mut self) {
        let mut broken = Vec::new();
        for (&id, channel) in &mut self.channels {
            channel.crowded = false;
            let Some(outbox) = self.post.outbox(id).filter(|outbox| !outbox.is_empty()) else {
                continue;
            };
            let mut taken = false;
            while let Some(packet) = outbox.packet() {
                match send_message(&channel.fd, &packet.bytes, packet.connection()) {
                    Ok(()) => taken = true,
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                        channel.crowded = packet.connection().is_some() && is_writable(&channel.fd);
                        break;
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    // It is dead. What it said before is still read.
                    Err(_) => {
                        broken.push(id);
                        break;
                    }
                }
                outbox.sent();
            }
            if taken {
                self.post.taken(id);
            }
        }
        for id in broken {
            if let Some(outbox) = self.post.outbox(id) {
                *outbox = super::send_queue::Outbox::new(self.limits);
            }
        }
    }

    /// The worker has ended: what it had said by then is read, and its channel closed. A half message is dropped.
    pub(crate) fn bury(&mut self, id: WorkerId) {
        // Garbage of the dead is no news.
        let _ = self.listen(id, LAST_PACKETS);
        self.channels.remove(&id);
        self.post.close(id);
    }

    /// In a forked child: gives the descriptors of all channels to `fds`, and drops the letters under way, which may carry
    /// connections. All else stays in memory as it is.
    pub(crate) fn leave_to_parent(self, fds: &mut FdCloseBatch) {
        let MailHub { mut channels, post, .. } = self;
        for channel in channels.values_mut().filter(|channel| channel.assembler.is_amid_letter()) {
            channel.assembler = Assembler::new(0);
        }
        fds.add_fds_of(channels, |channels, take| {
            channels.values().map(|channel| channel.fd.as_fd()).for_each(take);
        });
        post.leave_to_parent();
    }

    /// Goes on with the next letter; `serves` says which workers serve their slots.
    pub(crate) fn next(&mut self, now: Instant, serves: &dyn Fn(WorkerId) -> bool) -> Turn {
        self.post.next(now, serves)
    }

    /// Whether anything of this worker may still come, or is here and not handled yet.
    pub(crate) fn knows(&self, id: WorkerId) -> bool {
        self.post.knows(id)
    }

    /// Sends something of the primary's, and says to whom; on an error it comes back.
    pub(crate) fn send(
        &mut self,
        to: Place,
        letter: Letter,
        serves: &dyn Fn(WorkerId) -> bool,
    ) -> Result<WorkerId, Back> {
        self.post.send(to, letter, serves)
    }

    pub(crate) fn reply(
        &mut self,
        to: &ReplyTo,
        class: Class,
        payload: Bytes,
    ) -> Result<(), MessageError> {
        self.post.reply(to, class, payload)
    }

    /// To how many workers it goes, and to how many it does not as their queues are full.
    pub(crate) fn broadcast(&mut self, letter: &Letter) -> Result<(usize, usize), MessageError> {
        self.post.broadcast(letter)
    }

    /// How many messages were lost so far, as they had no receiver or one that took nothing.
    pub(crate) fn lost(&self) -> u64 {
        self.post.lost()
    }
}

/// Whether the kernel refused a packet for another reason than a full buffer.
fn is_writable(fd: &OwnedFd) -> bool {
    let watched = [WatchedFd::new(fd.as_fd(), PollInterest::Writable)];
    poll::poll_fds(&watched, Some(Duration::ZERO)).is_ok_and(|ready| ready[0])
}

pub(super) fn carried(passed: PassedFd) -> Carried {
    match passed {
        PassedFd::None => Carried::Nothing,
        PassedFd::One(fd) => Carried::Here(fd),
        PassedFd::Lost => Carried::Lost,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::super::envelope::tests::letter;
    use super::super::send_queue::Outbox;
    use super::*;
    use prefork_supervisor::{Generation, Slot, WEB_KIND};

    #[test]
    fn nothing_that_was_left_to_the_parent_stays_open() {
        let mut hub = MailHub::default();
        let mut peers = Vec::new();
        let mut socket = || {
            let (own, peer) = UnixStream::pair().expect("pair");
            peers.push(peer);
            OwnedFd::from(own)
        };
        for id in 1..=3 {
            let (slot, generation) = (Slot(id as u32), Generation(1));
            let tag = WorkerTag { id: WorkerId(id), slot, generation, pid: None, kind: WEB_KIND };
            hub.add(tag, socket());
        }
        let with_connection = |size, fd| Letter { carried: Carried::Here(fd), ..letter("a", size) };
        hub.post.come(WorkerId(1), [with_connection(3, socket())].into());
        let outbox = hub.post.outbox(WorkerId(2)).expect("open");
        outbox.push(with_connection(3, socket())).expect("room");
        // The first part of a letter that takes several packets.
        let mut parts = Outbox::new(MessageLimits::default());
        parts.push(letter("a", 4 * PACKET)).expect("room");
        let bytes = parts.packet().expect("a part").bytes.clone();
        let channel = hub.channels.get_mut(&WorkerId(3)).expect("open");
        let outcome =
            channel.assembler.take(&bytes, Carried::Nothing, &mut VecDeque::new()).map(drop);
        outcome.expect("a part");
        assert!(channel.assembler.is_amid_letter());

        let mut fds = FdCloseBatch::default();
        hub.leave_to_parent(&mut fds);
        fds.close_all();
        for (at, peer) in peers.iter_mut().enumerate() {
            // A program that another test starts has copies of all descriptors for a moment.
            peer.set_read_timeout(Some(Duration::from_secs(10))).expect("timeout");
            assert_eq!(peer.read(&mut [0]).expect("end"), 0, "{at}");
        }
    }
}
