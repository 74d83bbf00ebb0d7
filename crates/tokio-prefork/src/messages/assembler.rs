//! From packets to letters: pure, with one buffer for the larger letter that is under way.

use std::collections::VecDeque;

use bytes::Bytes;

use super::packet_frame::{self, Frame, Garbled};
use super::{Carried, Letter};

/// How much room a large letter is given before any of it has come.
const TRUST: usize = 256 * 1024;

/// The larger letter that is under way.
#[derive(Debug)]
struct Partial {
    total: usize,
    bytes: Vec<u8>,
    carried: Carried,
}

/// What came over one channel and is not complete yet.
#[derive(Debug)]
pub(super) struct Assembler {
    /// Bytes of a letter, at most.
    most: usize,
    partial: Option<Partial>,
}

impl Assembler {
    pub(super) fn new(most: usize) -> Assembler {
        Assembler { most, partial: None }
    }

    /// Whether a part of a letter has come, perhaps with a connection.
    pub(super) fn is_amid_letter(&self) -> bool {
        self.partial.is_some()
    }

    /// Appends the letters that `packet` completes to `letters`. A connection that no frame claims is closed.
    pub(super) fn take(
        &mut self,
        mut packet: &[u8],
        mut carried: Carried,
        letters: &mut VecDeque<Letter>,
    ) -> Result<(), Garbled> {
        let mut claim = |connection: bool| match (connection, std::mem::take(&mut carried)) {
            (false, unclaimed) => {
                carried = unclaimed;
                Ok(Carried::Nothing)
            }
            (true, Carried::Nothing) => Err(Garbled::MissingDescriptor),
            (true, claimed) => Ok(claimed),
        };
        while let Some(frame) = packet_frame::next(&mut packet)? {
            match frame {
                Frame::Whole(bytes, connection) => {
                    if bytes.len() > self.most {
                        return Err(Garbled::TooLarge(bytes.len()));
                    }
                    let bytes = Bytes::copy_from_slice(bytes);
                    let letter = Letter::decode(bytes, claim(connection)?);
                    letters.push_back(letter.ok_or(Garbled::Letter)?);
                }
                Frame::First { total, .. } if total > self.most => {
                    return Err(Garbled::TooLarge(total));
                }
                Frame::First { total, part, connection } => {
                    if self.partial.is_some() {
                        return Err(Garbled::Parts);
                    }
                    let bytes = Vec::with_capacity(total.min(TRUST));
                    self.partial = Some(Partial { total, bytes, carried: claim(connection)? });
                    self.go_on(part, letters)?;
                }
                Frame::Next(part) => self.go_on(part, letters)?,
            }
        }
        Ok(())
    }

    fn go_on(&mut self, part: &[u8], letters: &mut VecDeque<Letter>) -> Result<(), Garbled> {
        let mut partial = self.partial.take().ok_or(Garbled::Parts)?;
        if part.is_empty() || part.len() > partial.total - partial.bytes.len() {
            return Err(Garbled::Parts);
        }
        partial.bytes.extend(part);
        if partial.bytes.len() < partial.total {
            self.partial = Some(partial);
            return Ok(());
        }
        let letter = Letter::decode(partial.bytes.into(), partial.carried);
        letters.push_back(letter.ok_or(Garbled::Letter)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::MessageLimits;
    use super::super::envelope::tests::{letter, same};
    use super::super::packet_frame::PACKET;
    use super::super::send_queue::Outbox;
    use super::*;
    use proptest::prelude::*;

    fn assembler() -> Assembler {
        Assembler::new(MessageLimits::default().letter())
    }

    fn duplicate(carried: bool) -> Carried {
        let fd = || std::fs::File::open("/dev/null").expect("open").into();
        if carried { Carried::Here(fd()) } else { Carried::Nothing }
    }

    /// Everything that comes out at the other end, and the number of packets it took.
    fn carry(outbox: &mut Outbox) -> (Vec<Letter>, usize) {
        let (mut assembler, mut letters, mut packets) = (assembler(), VecDeque::new(), 0);
        while let Some(packet) = outbox.packet() {
            assert!(packet.bytes.len() <= PACKET && !packet.bytes.is_empty());
            let carried = duplicate(packet.connection().is_some());
            assembler.take(&packet.bytes, carried, &mut letters).expect("ours");
            outbox.sent();
            packets += 1;
        }
        assert!(outbox.is_empty() && assembler.partial.is_none());
        (letters.into(), packets)
    }

    #[test]
    fn short_messages_share_a_packet_and_pass_a_large_one_of_another_kind() {
        let mut outbox = Outbox::new(MessageLimits::default());
        outbox.push(letter("large", 800_000)).expect("room");
        for _ in 0..10 {
            outbox.push(letter("short", 10)).expect("room");
        }
        outbox.push(letter("large", 3)).expect("room");
        outbox.push(letter("other large", 70_000)).expect("room");
        let (letters, packets) = carry(&mut outbox);
        let order: Vec<_> = letters.iter().map(|l| (l.kind.as_str(), l.payload.len())).collect();
        assert_eq!(order[..10], [("short", 10); 10]);
        // In its own kind nothing passes it.
        let at = |wanted| order.iter().position(|one| *one == wanted);
        assert!(at(("large", 800_000)) < at(("large", 3)), "{order:?}");
        assert_eq!((order.len(), packets), (13, 27));
    }

    #[test]
    fn each_packet_carries_one_connection() {
        let mut outbox = Outbox::new(MessageLimits::default());
        for size in [5, 100_000, 7] {
            let carried = duplicate(true);
            outbox.push(Letter { carried, ..letter("a", size) }).expect("room");
        }
        let (letters, _) = carry(&mut outbox);
        assert!(letters.iter().all(|letter| letter.carried.is_here()));
        assert_eq!(letters.len(), 3);
    }

    #[test]
    fn what_does_not_fit_together_is_known() {
        let take = |frames: &[Frame<'_>], carried| {
            let mut packet = Vec::new();
            frames.iter().for_each(|frame| frame.write(&mut packet));
            assembler().take(&packet, carried, &mut VecDeque::new())
        };
        let first = Frame::First { total: 99_999, part: b"x", connection: false };
        let none = || Carried::Nothing;
        assert_eq!(take(&[Frame::Next(b"x")], none()), Err(Garbled::Parts));
        assert_eq!(take(&[first, first], none()), Err(Garbled::Parts));
        assert_eq!(take(&[first, Frame::Next(b"")], none()), Err(Garbled::Parts));
        assert_eq!(take(&[first, Frame::Next(&[0; 100_000])], none()), Err(Garbled::Parts));
        assert_eq!(take(&[Frame::Whole(b"x", false)], none()), Err(Garbled::Letter));
        assert_eq!(take(&[Frame::Whole(b"x", true)], none()), Err(Garbled::MissingDescriptor));
        let huge = Frame::First { total: 17 << 20, part: b"x", connection: false };
        assert_eq!(take(&[huge], none()), Err(Garbled::TooLarge(17 << 20)));
        assert_eq!(take(&[first], duplicate(true)), Ok(()));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn every_interleaving_arrives_whole_and_in_the_order_of_its_kind(
            sizes in prop::collection::vec((0usize..4, 0usize..100_000, any::<bool>()), 0..40),
        ) {
            let mut outbox = Outbox::new(MessageLimits::default());
            let kinds = ["a", "b", "c", "d"];
            let mut sent = Vec::new();
            for (kind, size, carries) in sizes {
                let carried = duplicate(carries);
                outbox.push(Letter { carried, ..letter(kinds[kind], size) }).expect("room");
                sent.push((letter(kinds[kind], size), carries));
            }
            let (letters, _) = carry(&mut outbox);
            prop_assert_eq!(letters.len(), sent.len());
            for kind in kinds {
                let of = |letter: &&Letter| letter.kind.as_str() == kind;
                let came = letters.iter().filter(of);
                let left = sent.iter().filter(|(letter, _)| letter.kind.as_str() == kind);
                for (came, (left, carries)) in came.zip(left) {
                    prop_assert!(same(came, left));
                    prop_assert_eq!(came.carried.is_here(), *carries);
                }
            }
        }

        #[test]
        fn any_packets_are_survived(packets: Vec<Vec<u8>>) {
            let mut assembler = assembler();
            for packet in packets {
                let _ = assembler.take(&packet, Carried::Nothing, &mut VecDeque::new());
            }
        }

        #[test]
        fn spoiled_packets_are_survived(at in 0usize..40_000, byte: u8) {
            let mut outbox = Outbox::new(MessageLimits::default());
            outbox.push(letter("a", 40_000)).expect("room");
            outbox.push(letter("b", 10)).expect("room");
            let mut assembler = assembler();
            let mut letters = VecDeque::new();
            while let Some(packet) = outbox.packet() {
                let mut bytes = packet.bytes.clone();
                let at = at % bytes.len();
                bytes[at] = byte;
                if assembler.take(&bytes, Carried::Nothing, &mut letters).is_err() {
                    break;
                }
                outbox.sent();
            }
        }
    }
}
