//! Framing: a big-endian length of four bytes, then that many bytes. Pure.

/// The longest request that is read.
pub(crate) const REQUEST_MAX: usize = 64 * 1024;

/// The longest reply that a client reads.
pub(crate) const REPLY_MAX: usize = 16 * 1024 * 1024;

const HEAD: usize = 4;

/// One frame as bytes.
pub(crate) fn encode(payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(HEAD + payload.len());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A frame that arrives in pieces. Nothing is allocated by the length that a peer claims, only by what it
/// has sent, and nothing is asked for beyond the end of the frame: what follows stays in the kernel.
#[derive(Debug)]
pub(crate) struct Incoming {
    bytes: Vec<u8>,
    max: usize,
}

/// A frame longer than it may be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooLong {
    pub(crate) claimed: usize,
    pub(crate) max: usize,
}

impl Incoming {
    /// Nothing yet of a frame with a payload of up to `max` bytes.
    pub(crate) fn new(max: usize) -> Incoming {
        Incoming { bytes: Vec::new(), max }
    }

    /// How many bytes are missing for the next step; 0 when the frame is complete.
    pub(crate) fn wanted(&self) -> Result<usize, TooLong> {
        let Some(head) = self.bytes.first_chunk::<HEAD>() else {
            return Ok(HEAD - self.bytes.len());
        };
        let claimed = u32::from_be_bytes(*head) as usize;
        match claimed > self.max {
            true => Err(TooLong { claimed, max: self.max }),
            false => Ok(claimed - (self.bytes.len() - HEAD)),
        }
    }

    /// Takes in at most as many bytes as were wanted.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// What has arrived of the frame so far, its head included.
    pub(crate) fn received(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether the peer has stopped in the middle of a frame, or would, if it stopped now.
    pub(crate) fn begun(&self) -> bool {
        !self.bytes.is_empty()
    }

    /// The payload of a complete frame; from then on, the next frame.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.split_off(HEAD.min(bytes.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Reads frames out of `stream` until it ends or one is refused.
    fn decode(mut stream: &[u8], max: usize) -> (Vec<Vec<u8>>, Option<TooLong>) {
        let (mut incoming, mut frames) = (Incoming::new(max), Vec::new());
        loop {
            match incoming.wanted() {
                Ok(0) => frames.push(incoming.take()),
                Ok(_) if stream.is_empty() => return (frames, None),
                Ok(wanted) => {
                    let (piece, rest) = stream.split_at(wanted.min(stream.len()).min(3));
                    incoming.push(piece);
                    stream = rest;
                }
                Err(refused) => return (frames, Some(refused)),
            }
        }
    }

    #[test]
    fn a_frame_is_a_length_and_its_bytes() {
        assert_eq!(encode(b"{}"), *b"\0\0\0\x02{}");
        assert_eq!(encode(b""), [0; 4]);
    }

    #[test]
    fn a_claim_over_the_limit_is_refused_before_anything_is_read() {
        let (frames, refused) = decode(&[0xff; 4], REQUEST_MAX);
        assert!(frames.is_empty());
        assert_eq!(refused, Some(TooLong { claimed: u32::MAX as usize, max: REQUEST_MAX }));
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(frames: Vec<Vec<u8>>) {
            let stream: Vec<u8> = frames.iter().flat_map(|frame| encode(frame)).collect();
            prop_assert_eq!(decode(&stream, REQUEST_MAX), (frames, None));
        }

        #[test]
        fn arbitrary_bytes_are_survived(stream: Vec<u8>, max in 0usize..64) {
            let (frames, _) = decode(&stream, max);
            prop_assert!(frames.iter().all(|frame| frame.len() <= max));
            prop_assert!(frames.iter().map(|frame| HEAD + frame.len()).sum::<usize>() <= stream.len());
        }
    }
}
