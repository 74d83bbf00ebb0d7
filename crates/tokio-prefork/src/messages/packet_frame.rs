//! Frames in a packet: pure, bounded, and never panicking whatever the bytes.

/// The largest packet in bytes. The kernel's buffer of a pair holds about five of them.
pub(super) const PACKET: usize = 32 * 1024;

/// Type, flags, length.
pub(super) const HEAD: usize = 6;

/// The length of the whole letter, in a FIRST.
pub(super) const TOTAL: usize = 4;

const WHOLE: u8 = 0x01;
const FIRST: u8 = 0x02;
const NEXT: u8 = 0x03;

/// Types from here up are skipped by those who do not know them.
const OPTIONAL: u8 = 0x80;

/// A descriptor came with this packet and belongs to this frame.
const CONNECTION: u8 = 0x01;

/// Why a packet is not one of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Garbled {
    #[error("a frame of the unknown type {0:#04x}")]
    Type(u8),
    #[error("a half frame")]
    Half,
    #[error("a message of {0} bytes, which is too large")]
    TooLarge(usize),
    #[error("parts of messages that do not fit together")]
    Parts,
    #[error("a message that is none")]
    Letter,
    #[error("a connection without a descriptor")]
    MissingDescriptor,
    #[error("a packet of more than {PACKET} bytes")]
    Packet,
    #[error("the channel failed: {0}")]
    Channel(String),
}

/// One frame of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Frame<'a> {
    /// A letter, and whether a connection comes with it.
    Whole(&'a [u8], bool),
    /// The beginning of a letter of `total` bytes.
    First { total: usize, part: &'a [u8], connection: bool },
    /// Its continuation.
    Next(&'a [u8]),
}

impl Frame<'_> {
    pub(super) fn write(&self, packet: &mut Vec<u8>) {
        let (kind, connection, total, part) = match *self {
            Frame::Whole(part, connection) => (WHOLE, connection, None, part),
            Frame::First { total, part, connection } => (FIRST, connection, Some(total), part),
            Frame::Next(part) => (NEXT, false, None, part),
        };
        packet.push(kind);
        packet.push(if connection { CONNECTION } else { 0 });
        let length = part.len() + total.map_or(0, |_| TOTAL);
        packet.extend((length as u32).to_le_bytes());
        packet.extend(total.into_iter().flat_map(|total| (total as u32).to_le_bytes()));
        packet.extend(part);
    }
}

/// The next frame of `packet`, which is shortened by it; `None` at its end.
pub(super) fn next<'a>(packet: &mut &'a [u8]) -> Result<Option<Frame<'a>>, Garbled> {
    while !packet.is_empty() {
        let (head, rest) = packet.split_first_chunk::<HEAD>().ok_or(Garbled::Half)?;
        let [kind, flags, a, b, c, d] = *head;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        let (body, rest) = rest.split_at_checked(length).ok_or(Garbled::Half)?;
        *packet = rest;
        let connection = flags & CONNECTION != 0;
        return Ok(Some(match kind {
            WHOLE => Frame::Whole(body, connection),
            FIRST => {
                let (total, part) = body.split_first_chunk::<TOTAL>().ok_or(Garbled::Half)?;
                Frame::First { total: u32::from_le_bytes(*total) as usize, part, connection }
            }
            NEXT => Frame::Next(body),
            OPTIONAL.. => continue,
            _ => return Err(Garbled::Type(kind)),
        }));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn unknown_frames_are_skipped_where_they_may_be() {
        let mut packet = vec![0x80, 0xff, 1, 0, 0, 0, 9];
        Frame::Next(b"x").write(&mut packet);
        let mut rest = &packet[..];
        assert_eq!(next(&mut rest), Ok(Some(Frame::Next(b"x"))));
        assert_eq!(next(&mut rest), Ok(None));
        assert_eq!(next(&mut &[0x7f, 0, 0, 0, 0, 0][..]), Err(Garbled::Type(0x7f)));
    }

    #[test]
    fn a_half_frame_is_known() {
        let mut packet = Vec::new();
        Frame::First { total: 9, part: b"abc", connection: true }.write(&mut packet);
        for length in 1..packet.len() {
            assert_eq!(next(&mut &packet[..length]), Err(Garbled::Half), "{length}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(whole: Vec<u8>, part: Vec<u8>, total: u32, connection: bool) {
            let total = total as usize;
            let frames = [
                Frame::Whole(&whole, connection),
                Frame::First { total, part: &part, connection },
                Frame::Next(&part),
            ];
            let mut packet = Vec::new();
            frames.iter().for_each(|frame| frame.write(&mut packet));
            let mut rest = &packet[..];
            for frame in frames {
                prop_assert_eq!(next(&mut rest), Ok(Some(frame)));
            }
            prop_assert_eq!(next(&mut rest), Ok(None));
        }

        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let mut rest = &bytes[..];
            while let Ok(Some(_)) = next(&mut rest) {}
        }
    }
}
