//! Reads and writes the packets of a message channel. Both ends share it; neither blocks.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use super::assembler::EnvelopeAssembler;
use super::packet_frame::{MAX_PACKET_BYTES, MessageProtocolError};
use super::send_queue::SendQueue;
use super::{AttachedConnection, Envelope};
use prefork_os::fd_passing::{PassedFd, ReceivedMessage, receive_message, send_message};
use prefork_os::poll::{self, PollInterest, WatchedFd};

/// How long to wait before a packet with a refused descriptor is sent again.
///
/// The kernel limits descriptors in flight, so the socket may be writable all the while.
pub(super) const FD_RETRY_INTERVAL: Duration = Duration::from_millis(2);

/// A packet of at least this size indicates that its sender has more to send.
pub(super) const LARGE_PACKET_BYTES: usize = MAX_PACKET_BYTES / 4;

/// How many errors are skipped before a channel counts as failed.
const MAX_SKIPPED_ERRORS: usize = 3;

/// The result of writing a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WriteOutcome {
    /// Everything was written.
    Done,
    /// The socket is full.
    SocketFull,
    /// The kernel refuses a descriptor. Try again after `FD_RETRY_INTERVAL`.
    FdRefused,
    /// The peer is gone. What it sent before can still be read.
    PeerGone,
}

/// Writes as many packets as the socket accepts. Returns also whether it has accepted any.
pub(super) fn write_packets(fd: &OwnedFd, send_queue: &mut SendQueue) -> (WriteOutcome, bool) {
    let mut has_written = false;
    while let Some(packet) = send_queue.current_packet() {
        match send_message(fd, &packet.bytes, packet.connection()) {
            Ok(()) => has_written = true,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                let is_fd_refused = packet.connection().is_some() && is_writable(fd);
                let outcome = match is_fd_refused {
                    true => WriteOutcome::FdRefused,
                    false => WriteOutcome::SocketFull,
                };
                return (outcome, has_written);
            }
            Err(_) => return (WriteOutcome::PeerGone, has_written),
        }
        send_queue.packet_sent();
    }
    (WriteOutcome::Done, has_written)
}

/// Returns whether the kernel refused a packet for another reason than a full buffer.
fn is_writable(fd: &OwnedFd) -> bool {
    let watched = [WatchedFd::new(fd.as_fd(), PollInterest::Writable)];
    poll::poll_fds(&watched, Some(Duration::ZERO)).is_ok_and(|ready| ready[0])
}

/// The result of reading one packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadOutcome {
    /// A packet of this many bytes was read.
    Packet(usize),
    /// There is no packet.
    Empty,
    /// The peer has closed its end, and everything is read.
    Closed,
}

/// Reads one packet, and appends the envelopes that it completes. `buffer` has `MAX_PACKET_BYTES`.
pub(super) fn read_packet(
    fd: &OwnedFd,
    buffer: &mut [u8],
    assembler: &mut EnvelopeAssembler,
    envelopes: &mut VecDeque<Envelope>,
) -> Result<ReadOutcome, MessageProtocolError> {
    let mut skipped_errors = 0;
    loop {
        match receive_message(fd, buffer) {
            Ok(ReceivedMessage::Message(length, passed)) => {
                assembler.accept_packet(&buffer[..length], attached(passed), envelopes)?;
                return Ok(ReadOutcome::Packet(length));
            }
            Ok(ReceivedMessage::Closed) => return Ok(ReadOutcome::Closed),
            Ok(ReceivedMessage::Truncated) => return Err(MessageProtocolError::PacketTooLarge),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(ReadOutcome::Empty),
            // The kernel reports once that the peer has exited before it read everything. Its last messages follow.
            Err(e)
                if e.kind() == io::ErrorKind::ConnectionReset
                    && skipped_errors < MAX_SKIPPED_ERRORS =>
            {
                skipped_errors += 1;
            }
            Err(e) => return Err(MessageProtocolError::ChannelFailed(e.to_string())),
        }
    }
}

fn attached(passed: PassedFd) -> AttachedConnection {
    match passed {
        PassedFd::None => AttachedConnection::Absent,
        PassedFd::One(fd) => AttachedConnection::Present(fd),
        PassedFd::Lost => AttachedConnection::Lost,
    }
}

#[cfg(test)]
mod tests {
    use super::super::MessageLimits;
    use super::super::envelope::tests::test_envelope;
    use super::*;
    use prefork_os::fd_passing::create_seqpacket_pair;

    fn read_all(fd: &OwnedFd) -> (Vec<usize>, ReadOutcome) {
        let mut assembler = EnvelopeAssembler::new(MessageLimits::default().max_envelope_bytes());
        let (mut buffer, mut envelopes) = (vec![0; MAX_PACKET_BYTES], VecDeque::new());
        loop {
            let read = read_packet(fd, &mut buffer, &mut assembler, &mut envelopes);
            match read.expect("valid") {
                ReadOutcome::Packet(_) => {}
                outcome => {
                    let sizes = envelopes.iter().map(|one| one.payload.bytes().len());
                    return (sizes.collect(), outcome);
                }
            }
        }
    }

    #[test]
    fn the_last_messages_of_a_peer_that_left_messages_unread_are_read() {
        let (ours, theirs) = create_seqpacket_pair().expect("a pair");
        let (mut sent, mut unread) =
            (SendQueue::new(MessageLimits::default()), SendQueue::new(MessageLimits::default()));
        for size in 1..=5 {
            sent.push(test_envelope("a", size)).expect("room");
        }
        unread.push(test_envelope("a", 1)).expect("room");
        assert_eq!(write_packets(&ours, &mut unread), (WriteOutcome::Done, true));
        assert_eq!(write_packets(&theirs, &mut sent), (WriteOutcome::Done, true));
        drop(theirs);
        assert_eq!(read_all(&ours), (vec![1, 2, 3, 4, 5], ReadOutcome::Closed));
        unread.push(test_envelope("a", 1)).expect("room");
        assert_eq!(write_packets(&ours, &mut unread), (WriteOutcome::PeerGone, false));
        assert_eq!(unread.take_undelivered().len(), 1);
    }

    #[test]
    fn a_full_socket_keeps_the_rest_in_the_queue() {
        let (ours, theirs) = create_seqpacket_pair().expect("a pair");
        let mut send_queue = SendQueue::new(MessageLimits::default());
        for _ in 0..100 {
            send_queue.push(test_envelope("a", 20_000)).expect("room");
        }
        let (outcome, has_written) = write_packets(&ours, &mut send_queue);
        assert_eq!((outcome, has_written), (WriteOutcome::SocketFull, true));
        let mut received = 0;
        while !send_queue.is_empty() {
            received += read_all(&theirs).0.len();
            write_packets(&ours, &mut send_queue);
        }
        assert_eq!(received + read_all(&theirs).0.len(), 100);
    }
}
