//! Encodes and decodes the frames of a packet. Bounded; no input makes it panic.

/// The largest packet in bytes. The kernel buffers about five of them per socket pair.
pub(super) const MAX_PACKET_BYTES: usize = 32 * 1024;

/// Bytes of type, flags and length.
pub(super) const FRAME_HEADER_BYTES: usize = 6;

/// Bytes of the envelope length in a FIRST frame.
pub(super) const TOTAL_LENGTH_BYTES: usize = 4;

const WHOLE_TYPE: u8 = 0x01;
const FIRST_TYPE: u8 = 0x02;
const NEXT_TYPE: u8 = 0x03;

/// The first of the frame types that receivers skip if they do not know them.
const FIRST_OPTIONAL_TYPE: u8 = 0x80;

/// The descriptor of the packet belongs to this frame.
const CONNECTION_FLAG: u8 = 0x01;

/// How a packet violates the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MessageProtocolError {
    #[error("unknown frame type {0:#04x}")]
    UnknownFrameType(u8),
    #[error("truncated frame")]
    TruncatedFrame,
    #[error("message of {0} bytes is too large")]
    TooLarge(usize),
    #[error("parts of messages do not fit together")]
    PartsDoNotFit,
    #[error("invalid message header")]
    InvalidEnvelope,
    #[error("connection without a descriptor")]
    MissingDescriptor,
    #[error("packet of more than {MAX_PACKET_BYTES} bytes")]
    PacketTooLarge,
    #[error("the channel failed: {0}")]
    ChannelFailed(String),
}

/// A frame of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PacketFrame<'a> {
    /// A whole envelope, and whether a connection is attached.
    Whole(&'a [u8], bool),
    /// The first part of an envelope of `total` bytes.
    First { total: usize, part: &'a [u8], connection: bool },
    /// A further part.
    Next(&'a [u8]),
}

impl PacketFrame<'_> {
    pub(super) fn write(&self, packet: &mut Vec<u8>) {
        let (kind, connection, total, part) = match *self {
            PacketFrame::Whole(part, connection) => (WHOLE_TYPE, connection, None, part),
            PacketFrame::First { total, part, connection } => {
                (FIRST_TYPE, connection, Some(total), part)
            }
            PacketFrame::Next(part) => (NEXT_TYPE, false, None, part),
        };
        packet.push(kind);
        packet.push(if connection { CONNECTION_FLAG } else { 0 });
        let length = part.len() + total.map_or(0, |_| TOTAL_LENGTH_BYTES);
        packet.extend((length as u32).to_le_bytes());
        packet.extend(total.into_iter().flat_map(|total| (total as u32).to_le_bytes()));
        packet.extend(part);
    }
}

/// Decodes the first frame of `packet` and removes it. Returns `None` at the end of the packet.
pub(super) fn next_frame<'a>(
    packet: &mut &'a [u8],
) -> Result<Option<PacketFrame<'a>>, MessageProtocolError> {
    while !packet.is_empty() {
        let (head, rest) = packet
            .split_first_chunk::<FRAME_HEADER_BYTES>()
            .ok_or(MessageProtocolError::TruncatedFrame)?;
        let [kind, flags, a, b, c, d] = *head;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        let (body, rest) =
            rest.split_at_checked(length).ok_or(MessageProtocolError::TruncatedFrame)?;
        *packet = rest;
        let connection = flags & CONNECTION_FLAG != 0;
        return Ok(Some(match kind {
            WHOLE_TYPE => PacketFrame::Whole(body, connection),
            FIRST_TYPE => {
                let (total, part) = body
                    .split_first_chunk::<TOTAL_LENGTH_BYTES>()
                    .ok_or(MessageProtocolError::TruncatedFrame)?;
                PacketFrame::First { total: u32::from_le_bytes(*total) as usize, part, connection }
            }
            NEXT_TYPE => PacketFrame::Next(body),
            FIRST_OPTIONAL_TYPE.. => continue,
            _ => return Err(MessageProtocolError::UnknownFrameType(kind)),
        }));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_optional_unknown_frames_are_skipped() {
        let mut packet = vec![0x80, 0xff, 1, 0, 0, 0, 9];
        PacketFrame::Next(b"x").write(&mut packet);
        let mut rest = &packet[..];
        assert_eq!(next_frame(&mut rest), Ok(Some(PacketFrame::Next(b"x"))));
        assert_eq!(next_frame(&mut rest), Ok(None));
        assert_eq!(
            next_frame(&mut &[0x7f, 0, 0, 0, 0, 0][..]),
            Err(MessageProtocolError::UnknownFrameType(0x7f))
        );
    }

    #[test]
    fn a_truncated_frame_is_detected() {
        let mut packet = Vec::new();
        PacketFrame::First { total: 9, part: b"abc", connection: true }.write(&mut packet);
        for length in 1..packet.len() {
            assert_eq!(
                next_frame(&mut &packet[..length]),
                Err(MessageProtocolError::TruncatedFrame),
                "{length}"
            );
        }
    }

    proptest! {
        #[test]
        fn encoded_frames_are_decoded(whole: Vec<u8>, part: Vec<u8>, total: u32, connection: bool) {
            let total = total as usize;
            let frames = [
                PacketFrame::Whole(&whole, connection),
                PacketFrame::First { total, part: &part, connection },
                PacketFrame::Next(&part),
            ];
            let mut packet = Vec::new();
            frames.iter().for_each(|frame| frame.write(&mut packet));
            let mut rest = &packet[..];
            for frame in frames {
                prop_assert_eq!(next_frame(&mut rest), Ok(Some(frame)));
            }
            prop_assert_eq!(next_frame(&mut rest), Ok(None));
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(bytes: Vec<u8>) {
            let mut rest = &bytes[..];
            while let Ok(Some(_)) = next_frame(&mut rest) {}
        }
    }
}
