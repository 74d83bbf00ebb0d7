//! Joins received frames to envelopes. Buffers at most one large envelope.

use std::collections::VecDeque;

use bytes::Bytes;

use super::packet_frame::{self, MessageProtocolError, PacketFrame};
use super::saved_messages::{MessageSaver, SavedEnvelope};
use super::{AttachedConnection, Envelope};

/// The most memory to allocate for a large envelope before its bytes have arrived: 256 KiB.
const INITIAL_CAPACITY_LIMIT: usize = 256 * 1024;

/// A large envelope of which some parts have arrived.
#[derive(Debug)]
struct PartialEnvelope {
    total: usize,
    bytes: Vec<u8>,
    attached: AttachedConnection,
}

/// The receive state of one channel.
#[derive(Debug)]
pub(super) struct EnvelopeAssembler {
    /// The most bytes of an envelope.
    max_envelope_bytes: usize,
    partial: Option<PartialEnvelope>,
}

impl EnvelopeAssembler {
    pub(super) fn new(max_envelope_bytes: usize) -> EnvelopeAssembler {
        EnvelopeAssembler { max_envelope_bytes, partial: None }
    }

    /// Returns whether parts of an envelope have arrived, possibly with a connection.
    pub(super) fn has_partial_envelope(&self) -> bool {
        self.partial.is_some()
    }

    /// Saves the parts of an envelope that have arrived, for the new image of the primary.
    pub(super) fn save_partial<'a>(
        &'a self,
        saver: &mut MessageSaver<'a>,
    ) -> Option<(usize, SavedEnvelope)> {
        let partial = self.partial.as_ref()?;
        Some((partial.total, saver.save_part(&partial.bytes, &partial.attached)))
    }

    /// Continues with the parts that the previous image has received.
    pub(super) fn restore_partial(&mut self, total: usize, saved: SavedEnvelope) {
        let attached = saved.take_attached();
        self.partial = Some(PartialEnvelope { total, bytes: saved.bytes, attached });
    }

    /// Appends the envelopes that `packet` completes to `envelopes`. Closes a connection that no frame claims.
    pub(super) fn accept_packet(
        &mut self,
        mut packet: &[u8],
        mut attached: AttachedConnection,
        envelopes: &mut VecDeque<Envelope>,
    ) -> Result<(), MessageProtocolError> {
        let mut claim_connection =
            |connection: bool| match (connection, std::mem::take(&mut attached)) {
                (false, unclaimed) => {
                    attached = unclaimed;
                    Ok(AttachedConnection::Absent)
                }
                (true, AttachedConnection::Absent) => Err(MessageProtocolError::MissingDescriptor),
                (true, claimed) => Ok(claimed),
            };
        while let Some(frame) = packet_frame::next_frame(&mut packet)? {
            match frame {
                PacketFrame::Whole(bytes, connection) => {
                    if bytes.len() > self.max_envelope_bytes {
                        return Err(MessageProtocolError::TooLarge(bytes.len()));
                    }
                    let bytes = Bytes::copy_from_slice(bytes);
                    let envelope = Envelope::decode(bytes, claim_connection(connection)?);
                    envelopes.push_back(envelope.ok_or(MessageProtocolError::InvalidEnvelope)?);
                }
                PacketFrame::First { total, .. } if total > self.max_envelope_bytes => {
                    return Err(MessageProtocolError::TooLarge(total));
                }
                PacketFrame::First { total, part, connection } => {
                    if self.partial.is_some() {
                        return Err(MessageProtocolError::PartsDoNotFit);
                    }
                    let bytes = Vec::with_capacity(total.min(INITIAL_CAPACITY_LIMIT));
                    self.partial = Some(PartialEnvelope {
                        total,
                        bytes,
                        attached: claim_connection(connection)?,
                    });
                    self.append_part(part, envelopes)?;
                }
                PacketFrame::Next(part) => self.append_part(part, envelopes)?,
            }
        }
        Ok(())
    }

    /// Appends a part to the partial envelope, and completes it if nothing is missing.
    fn append_part(
        &mut self,
        part: &[u8],
        envelopes: &mut VecDeque<Envelope>,
    ) -> Result<(), MessageProtocolError> {
        let mut partial = self.partial.take().ok_or(MessageProtocolError::PartsDoNotFit)?;
        if part.is_empty() || part.len() > partial.total - partial.bytes.len() {
            return Err(MessageProtocolError::PartsDoNotFit);
        }
        partial.bytes.extend(part);
        if partial.bytes.len() < partial.total {
            self.partial = Some(partial);
            return Ok(());
        }
        let envelope = Envelope::decode(partial.bytes.into(), partial.attached);
        envelopes.push_back(envelope.ok_or(MessageProtocolError::InvalidEnvelope)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::MessageLimits;
    use super::super::envelope::tests::{is_same_envelope, test_envelope};
    use super::super::packet_frame::MAX_PACKET_BYTES;
    use super::super::send_queue::SendQueue;
    use super::*;
    use proptest::prelude::*;

    fn assembler() -> EnvelopeAssembler {
        EnvelopeAssembler::new(MessageLimits::default().max_envelope_bytes())
    }

    fn attach_test_file(attached: bool) -> AttachedConnection {
        let fd = || std::fs::File::open("/dev/null").expect("open").into();
        if attached { AttachedConnection::Present(fd()) } else { AttachedConnection::Absent }
    }

    /// Returns all envelopes that arrive at the other end, and the number of packets.
    fn transfer_all(send_queue: &mut SendQueue) -> (Vec<Envelope>, usize) {
        let (mut assembler, mut envelopes, mut packets) = (assembler(), VecDeque::new(), 0);
        while let Some(packet) = send_queue.current_packet() {
            assert!(packet.bytes.len() <= MAX_PACKET_BYTES && !packet.bytes.is_empty());
            let attached = attach_test_file(packet.connection().is_some());
            assembler.accept_packet(&packet.bytes, attached, &mut envelopes).expect("ours");
            send_queue.packet_sent();
            packets += 1;
        }
        assert!(send_queue.is_empty() && assembler.partial.is_none());
        (envelopes.into(), packets)
    }

    #[test]
    fn short_messages_share_a_packet_and_overtake_a_large_one_of_another_kind() {
        let mut send_queue = SendQueue::new(MessageLimits::default());
        send_queue.push(test_envelope("large", 800_000)).expect("room");
        for _ in 0..10 {
            send_queue.push(test_envelope("short", 10)).expect("room");
        }
        send_queue.push(test_envelope("large", 3)).expect("room");
        send_queue.push(test_envelope("other large", 70_000)).expect("room");
        let (envelopes, packets) = transfer_all(&mut send_queue);
        let order: Vec<_> =
            envelopes.iter().map(|l| (l.kind.as_str(), l.payload.bytes().len())).collect();
        assert_eq!(order[..10], [("short", 10); 10]);
        // Messages of one kind keep their order.
        let at = |wanted| order.iter().position(|one| *one == wanted);
        assert!(at(("large", 800_000)) < at(("large", 3)), "{order:?}");
        assert_eq!((order.len(), packets), (13, 27));
    }

    #[test]
    fn each_packet_carries_at_most_one_connection() {
        let mut send_queue = SendQueue::new(MessageLimits::default());
        for size in [5, 100_000, 7] {
            let attached = attach_test_file(true);
            send_queue.push(Envelope { attached, ..test_envelope("a", size) }).expect("room");
        }
        let (envelopes, _) = transfer_all(&mut send_queue);
        assert!(envelopes.iter().all(|envelope| envelope.attached.is_present()));
        assert_eq!(envelopes.len(), 3);
    }

    #[test]
    fn invalid_sequences_of_frames_are_detected() {
        let take = |frames: &[PacketFrame<'_>], attached| {
            let mut packet = Vec::new();
            frames.iter().for_each(|frame| frame.write(&mut packet));
            assembler().accept_packet(&packet, attached, &mut VecDeque::new())
        };
        let first = PacketFrame::First { total: 99_999, part: b"x", connection: false };
        let none = || AttachedConnection::Absent;
        assert_eq!(
            take(&[PacketFrame::Next(b"x")], none()),
            Err(MessageProtocolError::PartsDoNotFit)
        );
        assert_eq!(take(&[first, first], none()), Err(MessageProtocolError::PartsDoNotFit));
        assert_eq!(
            take(&[first, PacketFrame::Next(b"")], none()),
            Err(MessageProtocolError::PartsDoNotFit)
        );
        assert_eq!(
            take(&[first, PacketFrame::Next(&[0; 100_000])], none()),
            Err(MessageProtocolError::PartsDoNotFit)
        );
        assert_eq!(
            take(&[PacketFrame::Whole(b"x", false)], none()),
            Err(MessageProtocolError::InvalidEnvelope)
        );
        assert_eq!(
            take(&[PacketFrame::Whole(b"x", true)], none()),
            Err(MessageProtocolError::MissingDescriptor)
        );
        let huge = PacketFrame::First { total: 17 << 20, part: b"x", connection: false };
        assert_eq!(take(&[huge], none()), Err(MessageProtocolError::TooLarge(17 << 20)));
        assert_eq!(take(&[first], attach_test_file(true)), Ok(()));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn all_messages_arrive_whole_and_in_order_within_their_kind(
            sizes in prop::collection::vec((0usize..4, 0usize..100_000, any::<bool>()), 0..40),
        ) {
            let mut send_queue = SendQueue::new(MessageLimits::default());
            let kinds = ["a", "b", "c", "d"];
            let mut sent = Vec::new();
            for (kind, size, carries) in sizes {
                let attached = attach_test_file(carries);
                send_queue.push(Envelope { attached, ..test_envelope(kinds[kind], size) }).expect("room");
                sent.push((test_envelope(kinds[kind], size), carries));
            }
            let (envelopes, _) = transfer_all(&mut send_queue);
            prop_assert_eq!(envelopes.len(), sent.len());
            for kind in kinds {
                let of = |envelope: &&Envelope| envelope.kind.as_str() == kind;
                let came = envelopes.iter().filter(of);
                let left = sent.iter().filter(|(envelope, _)| envelope.kind.as_str() == kind);
                for (came, (left, carries)) in came.zip(left) {
                    prop_assert!(is_same_envelope(came, left));
                    prop_assert_eq!(came.attached.is_present(), *carries);
                }
            }
        }

        #[test]
        fn arbitrary_packets_do_not_panic(packets: Vec<Vec<u8>>) {
            let mut assembler = assembler();
            for packet in packets {
                let _ = assembler.accept_packet(&packet, AttachedConnection::Absent, &mut VecDeque::new());
            }
        }

        #[test]
        fn corrupted_packets_do_not_panic(at in 0usize..40_000, byte: u8) {
            let mut send_queue = SendQueue::new(MessageLimits::default());
            send_queue.push(test_envelope("a", 40_000)).expect("room");
            send_queue.push(test_envelope("b", 10)).expect("room");
            let mut assembler = assembler();
            let mut envelopes = VecDeque::new();
            while let Some(packet) = send_queue.current_packet() {
                let mut bytes = packet.bytes.clone();
                let at = at % bytes.len();
                bytes[at] = byte;
                if assembler.accept_packet(&bytes, AttachedConnection::Absent, &mut envelopes).is_err() {
                    break;
                }
                send_queue.packet_sent();
            }
        }
    }
}
