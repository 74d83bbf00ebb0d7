//! Frames of HTTP/2 (RFC 9113, 4 and 6): their heads, and how received bytes are divided into them.

use crate::load::request_failure::RequestFailure;

/// What a client sends first, before its SETTINGS.
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Length of a frame's head.
pub(super) const HEAD_LEN: usize = 9;
/// Largest payload of a frame that either side may send, unless the other one allows more.
pub(super) const MAX_PAYLOAD: usize = 16_384;
/// How a response of HTTP/1.1 begins.
const PLAIN_HTTP_PREFIX: &[u8] = b"HTTP/";

/// Types of frames.
pub(super) mod kind {
    pub(in super::super) const DATA: u8 = 0;
    pub(in super::super) const HEADERS: u8 = 1;
    pub(in super::super) const RST_STREAM: u8 = 3;
    pub(in super::super) const SETTINGS: u8 = 4;
    pub(in super::super) const PUSH_PROMISE: u8 = 5;
    pub(in super::super) const PING: u8 = 6;
    pub(in super::super) const GOAWAY: u8 = 7;
    pub(in super::super) const WINDOW_UPDATE: u8 = 8;
    pub(in super::super) const CONTINUATION: u8 = 9;
}

/// Flags of frames.
pub(super) mod flag {
    pub(in super::super) const ACK: u8 = 0x1;
    pub(in super::super) const END_STREAM: u8 = 0x1;
    pub(in super::super) const END_HEADERS: u8 = 0x4;
    pub(in super::super) const PADDED: u8 = 0x8;
    pub(in super::super) const PRIORITY: u8 = 0x20;
}

/// Parameters of SETTINGS.
pub(super) mod setting {
    pub(in super::super) const HEADER_TABLE_SIZE: u16 = 1;
    pub(in super::super) const ENABLE_PUSH: u16 = 2;
    pub(in super::super) const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub(in super::super) const INITIAL_WINDOW_SIZE: u16 = 4;
    pub(in super::super) const MAX_HEADER_LIST_SIZE: u16 = 6;
}

/// Error codes.
pub(super) mod error_code {
    pub(in super::super) const PROTOCOL_ERROR: u32 = 1;
    pub(in super::super) const REFUSED_STREAM: u32 = 7;
    pub(in super::super) const CANCEL: u32 = 8;
}

/// The head of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameHead {
    pub(super) length: usize,
    pub(super) kind: u8,
    pub(super) flags: u8,
    /// 0 is the connection.
    pub(super) stream: u32,
}

impl FrameHead {
    /// Reads a head.
    ///
    /// # Errors
    /// The frame is larger than allowed, which the text of another protocol is too.
    fn parse(head: &[u8; HEAD_LEN]) -> Result<FrameHead, RequestFailure> {
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = *head;
        let length = u32::from_be_bytes([0, l0, l1, l2]) as usize;
        match length > MAX_PAYLOAD {
            true if head.starts_with(PLAIN_HTTP_PREFIX) => Err(RequestFailure::NoHttp2),
            true => Err(RequestFailure::Malformed),
            false => {
                let stream = u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]);
                Ok(FrameHead { length, kind, flags, stream })
            }
        }
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Appends the head of a frame.
    pub(super) fn write(out: &mut Vec<u8>, length: usize, kind: u8, flags: u8, stream: u32) {
        let [_, l0, l1, l2] = (length as u32).to_be_bytes();
        let [s0, s1, s2, s3] = stream.to_be_bytes();
        out.extend_from_slice(&[l0, l1, l2, kind, flags, s0, s1, s2, s3]);
    }
}

/// Passes each complete frame in `partial` followed by `bytes` to `sink`, and keeps what remains in `partial`.
pub(super) fn divide_into_frames(
    partial: &mut Vec<u8>,
    mut bytes: &[u8],
    mut sink: impl FnMut(FrameHead, &[u8]) -> Result<(), RequestFailure>,
) -> Result<(), RequestFailure> {
    // The frame that began in an earlier read.
    while !partial.is_empty() {
        let head = partial.first_chunk().map(FrameHead::parse).transpose()?;
        let needed = head.map_or(HEAD_LEN, |head| HEAD_LEN + head.length);
        let (more, rest) = bytes.split_at((needed - partial.len()).min(bytes.len()));
        partial.extend_from_slice(more);
        bytes = rest;
        match head {
            _ if partial.len() < needed => return Ok(()),
            Some(head) => {
                sink(head, &partial[HEAD_LEN..])?;
                partial.clear();
            }
            None => {}
        }
    }
    while let Some(head) = bytes.first_chunk() {
        let head = FrameHead::parse(head)?;
        let Some((frame, rest)) = bytes.split_at_checked(HEAD_LEN + head.length) else { break };
        sink(head, &frame[HEAD_LEN..])?;
        bytes = rest;
    }
    partial.extend_from_slice(bytes);
    Ok(())
}

/// Returns the payload of DATA or HEADERS without padding and priority.
pub(super) fn unpadded(head: FrameHead, mut payload: &[u8]) -> Result<&[u8], RequestFailure> {
    if head.has(flag::PADDED) {
        let (padding, rest) = payload.split_first().ok_or(RequestFailure::Malformed)?;
        let length = rest.len().checked_sub(usize::from(*padding));
        payload = &rest[..length.ok_or(RequestFailure::Malformed)?];
    }
    if head.kind == kind::HEADERS && head.has(flag::PRIORITY) {
        payload = payload.get(5..).ok_or(RequestFailure::Malformed)?;
    }
    Ok(payload)
}

/// Reads the big-endian number that a payload of four bytes is.
pub(super) fn number(payload: &[u8]) -> Result<u32, RequestFailure> {
    payload.try_into().map(u32::from_be_bytes).map_err(|_| RequestFailure::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_the_same_however_their_bytes_are_split() {
        let mut bytes = Vec::new();
        for length in [0, 1, 9, 300] {
            FrameHead::write(&mut bytes, length, kind::DATA, flag::END_STREAM, 7);
            bytes.extend(std::iter::repeat_n(length as u8, length));
        }
        for step in [1, 2, 5, 8, 9, 10, 11, 100, 1000] {
            let (mut partial, mut found) = (Vec::new(), Vec::new());
            for piece in bytes.chunks(step) {
                let divided = divide_into_frames(&mut partial, piece, |head, payload| {
                    assert_eq!((head.length, head.flags, head.stream), (payload.len(), 1, 7));
                    found.push(payload.to_vec());
                    Ok(())
                });
                assert_eq!(divided, Ok(()));
            }
            assert!(partial.is_empty());
            let lengths: Vec<usize> = found.iter().map(Vec::len).collect();
            assert_eq!(lengths, [0, 1, 9, 300], "{step}");
        }
    }

    #[test]
    fn padding_and_priority_are_removed() {
        let head = |kind, flags| FrameHead { length: 0, kind, flags, stream: 1 };
        let padded = head(kind::DATA, flag::PADDED);
        assert_eq!(unpadded(padded, &[2, 7, 8, 0, 0]), Ok(&[7, 8][..]));
        assert_eq!(unpadded(padded, &[5, 7, 8, 0, 0]), Err(RequestFailure::Malformed));
        assert_eq!(unpadded(padded, &[]), Err(RequestFailure::Malformed));
        let both = head(kind::HEADERS, flag::PADDED | flag::PRIORITY);
        assert_eq!(unpadded(both, &[1, 0, 0, 0, 0, 0, 9, 0]), Ok(&[9][..]));
        assert_eq!(unpadded(both, &[1, 0, 0, 0, 0, 0]), Err(RequestFailure::Malformed));
    }
}
