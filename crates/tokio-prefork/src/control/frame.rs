//! Frames of the control protocol: a big-endian length of four bytes, then that many bytes.

/// The longest request that the server reads, in bytes.
pub(crate) const MAX_REQUEST_BYTES: usize = 64 * 1024;

/// The longest reply that a client reads, in bytes.
pub(crate) const MAX_REPLY_BYTES: usize = 32 * 1024 * 1024;

const LENGTH_PREFIX_BYTES: usize = 4;

/// Encodes a payload as one frame.
pub(crate) fn encode_frame(payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(LENGTH_PREFIX_BYTES + payload.len());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// Collects a frame that arrives in pieces. Allocates for the bytes received, not for the length that the peer claims.
#[derive(Debug)]
pub(crate) struct FrameReader {
    bytes: Vec<u8>,
    max: usize,
}

/// The error for a frame that is longer than the limit.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FrameTooLong {
    pub(crate) length: usize,
    pub(crate) max: usize,
}

impl FrameReader {
    /// Creates a reader for frames with payloads of up to `max` bytes.
    pub(crate) fn new(max: usize) -> FrameReader {
        FrameReader { bytes: Vec::new(), max }
    }

    /// Returns how many bytes the length or the payload still needs; 0 when the frame is complete.
    pub(crate) fn missing_bytes(&self) -> Result<usize, FrameTooLong> {
        let Some(head) = self.bytes.first_chunk::<LENGTH_PREFIX_BYTES>() else {
            return Ok(LENGTH_PREFIX_BYTES - self.bytes.len());
        };
        let length = u32::from_be_bytes(*head) as usize;
        match length > self.max {
            true => Err(FrameTooLong { length, max: self.max }),
            false => Ok(length - (self.bytes.len() - LENGTH_PREFIX_BYTES)),
        }
    }

    /// Appends received bytes, at most as many as `missing_bytes` returned.
    pub(crate) fn push_bytes(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Returns the received bytes of the frame, including the length prefix.
    pub(crate) fn received_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns whether a part of a frame has been received.
    pub(crate) fn has_partial_frame(&self) -> bool {
        !self.bytes.is_empty()
    }

    /// Returns the payload of a complete frame and starts the next frame.
    pub(crate) fn take_payload(&mut self) -> Vec<u8> {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.split_off(LENGTH_PREFIX_BYTES.min(bytes.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Reads frames from `stream` until it ends or one is refused.
    fn decode_frames(mut stream: &[u8], max: usize) -> (Vec<Vec<u8>>, Option<FrameTooLong>) {
        let (mut incoming, mut frames) = (FrameReader::new(max), Vec::new());
        loop {
            match incoming.missing_bytes() {
                Ok(0) => frames.push(incoming.take_payload()),
                Ok(_) if stream.is_empty() => return (frames, None),
                Ok(wanted) => {
                    let (piece, rest) = stream.split_at(wanted.min(stream.len()).min(3));
                    incoming.push_bytes(piece);
                    stream = rest;
                }
                Err(refused) => return (frames, Some(refused)),
            }
        }
    }

    #[test]
    fn a_frame_is_a_length_prefix_and_a_payload() {
        assert_eq!(encode_frame(b"{}"), *b"\0\0\0\x02{}");
        assert_eq!(encode_frame(b""), [0; 4]);
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_the_payload_is_read() {
        let (frames, refused) = decode_frames(&[0xff; 4], MAX_REQUEST_BYTES);
        assert!(frames.is_empty());
        assert_eq!(
            refused,
            Some(FrameTooLong { length: u32::MAX as usize, max: MAX_REQUEST_BYTES })
        );
    }

    proptest! {
        #[test]
        fn encoded_frames_are_decoded(frames: Vec<Vec<u8>>) {
            let stream: Vec<u8> = frames.iter().flat_map(|frame| encode_frame(frame)).collect();
            prop_assert_eq!(decode_frames(&stream, MAX_REQUEST_BYTES), (frames, None));
        }

        #[test]
        fn decoded_frames_stay_within_the_limit(stream: Vec<u8>, max in 0usize..64) {
            let (frames, _) = decode_frames(&stream, max);
            prop_assert!(frames.iter().all(|frame| frame.len() <= max));
            prop_assert!(frames.iter().map(|frame| LENGTH_PREFIX_BYTES + frame.len()).sum::<usize>() <= stream.len());
        }
    }
}
