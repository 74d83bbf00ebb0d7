//! Scans the frames in one direction of an HTTP/2 connection (RFC 9113, section 4.1).
//!
//! Keeps only the start of each payload, which is enough for SETTINGS and WINDOW_UPDATE.

/// Length of a frame header in bytes.
const FRAME_HEADER_LENGTH: usize = 9;

/// HTTP/2 frame types (RFC 9113, section 6).
pub(super) mod frame_type {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const WINDOW_UPDATE: u8 = 8;
    pub(crate) const CONTINUATION: u8 = 9;
}

/// HTTP/2 frame flags (RFC 9113, section 6).
pub(super) mod frame_flag {
    pub(crate) const END_STREAM: u8 = 1;
    pub(crate) const ACK: u8 = 1;
    pub(crate) const END_HEADERS: u8 = 4;
}

/// How many payload bytes to keep: all of a usual SETTINGS frame.
const MAX_KEPT_PAYLOAD: usize = 64;

/// One HTTP/2 frame, as far as its bytes have arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Http2Frame {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    /// Length of the payload.
    pub(super) length: u32,
    kept: [u8; MAX_KEPT_PAYLOAD],
    kept_len: usize,
}

impl Http2Frame {
    pub(super) fn has_flag(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Returns the start of the payload, up to `MAX_KEPT_PAYLOAD` bytes.
    pub(super) fn payload(&self) -> &[u8] {
        &self.kept[..self.kept_len]
    }
}

/// One event in the byte stream.
#[derive(Debug, Clone, Copy)]
pub(super) enum FrameEvent<'a> {
    /// A frame header is complete, or `None` while it is incomplete.
    Header(Option<&'a Http2Frame>),
    /// This many bytes of a payload arrived.
    Payload(&'a Http2Frame, usize),
    /// The frame is complete.
    Complete(&'a Http2Frame),
}

/// Scans the frames of one direction, however reads and writes split them.
#[derive(Debug)]
pub(super) struct FrameScanner {
    /// Bytes to skip before the first frame.
    preface: usize,
    header: [u8; FRAME_HEADER_LENGTH],
    header_len: usize,
    frame: Option<Http2Frame>,
    /// Payload bytes of the current frame that have not arrived.
    payload_left: u32,
}

impl FrameScanner {
    /// Creates a scanner that skips `preface` bytes before the first frame.
    pub(super) fn new(preface: usize) -> FrameScanner {
        FrameScanner {
            preface,
            header: [0; FRAME_HEADER_LENGTH],
            header_len: 0,
            frame: None,
            payload_left: 0,
        }
    }

    /// Calls `on` with the events in `bytes`.
    pub(super) fn scan_frames(&mut self, bytes: &[u8], mut on: impl FnMut(FrameEvent<'_>)) {
        let skipped = self.preface.min(bytes.len());
        self.preface -= skipped;
        let mut bytes = &bytes[skipped..];
        while !bytes.is_empty() {
            let Some(frame) = &mut self.frame else {
                let taken = (FRAME_HEADER_LENGTH - self.header_len).min(bytes.len());
                self.header[self.header_len..][..taken].copy_from_slice(&bytes[..taken]);
                self.header_len += taken;
                bytes = &bytes[taken..];
                if self.header_len < FRAME_HEADER_LENGTH {
                    return on(FrameEvent::Header(None));
                }
                self.begin_frame(&mut on);
                continue;
            };
            let taken = bytes.len().min(self.payload_left as usize);
            let kept = taken.min(MAX_KEPT_PAYLOAD - frame.kept_len);
            frame.kept[frame.kept_len..][..kept].copy_from_slice(&bytes[..kept]);
            frame.kept_len += kept;
            on(FrameEvent::Payload(frame, taken));
            bytes = &bytes[taken..];
            self.payload_left -= taken as u32;
            self.end_frame(&mut on);
        }
    }

    fn begin_frame(&mut self, on: &mut impl FnMut(FrameEvent<'_>)) {
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = self.header;
        let length = u32::from_be_bytes([0, l0, l1, l2]);
        let stream = u32::from_be_bytes([s0, s1, s2, s3]) & 0x7fff_ffff;
        let frame =
            Http2Frame { kind, flags, stream, length, kept: [0; MAX_KEPT_PAYLOAD], kept_len: 0 };
        (self.header_len, self.payload_left) = (0, length);
        on(FrameEvent::Header(Some(&frame)));
        self.frame = Some(frame);
        self.end_frame(on);
    }

    fn end_frame(&mut self, on: &mut impl FnMut(FrameEvent<'_>)) {
        if self.payload_left == 0
            && let Some(frame) = self.frame.take()
        {
            on(FrameEvent::Complete(&frame));
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Encodes one frame.
    pub(crate) fn encode_frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut raw = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        raw.extend([kind, flags]);
        raw.extend(stream.to_be_bytes());
        raw.extend(payload);
        raw
    }

    fn complete(scanner: &mut FrameScanner, bytes: &[u8]) -> Vec<(u8, u32, u32, Vec<u8>)> {
        let mut seen = Vec::new();
        scanner.scan_frames(bytes, |event| {
            if let FrameEvent::Complete(f) = event {
                seen.push((f.kind, f.stream, f.length, f.payload().to_vec()));
            }
        });
        seen
    }

    proptest! {
        #[test]
        fn scanned_frames_do_not_depend_on_read_sizes(cuts in prop::collection::vec(0usize..400, 0..12)) {
            let raw = [
                b"PREFACE".to_vec(),
                encode_frame(frame_type::SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]),
                encode_frame(frame_type::SETTINGS, frame_flag::ACK, 0, &[]),
                encode_frame(frame_type::HEADERS, frame_flag::END_HEADERS, 1, &[7; 40]),
                encode_frame(frame_type::DATA, 0, 1, &[9; 300]),
                encode_frame(frame_type::DATA, frame_flag::END_STREAM, 0x8000_0001, &[]),
            ].concat();
            let whole = complete(&mut FrameScanner::new(7), &raw);
            prop_assert_eq!(whole.len(), 5);
            prop_assert_eq!(&whole[0], &(frame_type::SETTINGS, 0, 6, vec![0, 4, 0, 1, 0, 0]));
            prop_assert_eq!(&whole[3], &(frame_type::DATA, 1, 300, vec![9; MAX_KEPT_PAYLOAD]));
            prop_assert_eq!(&whole[4], &(frame_type::DATA, 1, 0, vec![]));
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(raw.len())).collect();
            cuts.extend([0, raw.len()]);
            cuts.sort_unstable();
            let mut scanner = FrameScanner::new(7);
            let pieces: Vec<_> =
                cuts.windows(2).flat_map(|w| complete(&mut scanner, &raw[w[0]..w[1]])).collect();
            prop_assert_eq!(pieces, whole);
        }
    }
}
