//! Reads the frame headers in one direction of an HTTP/2 connection (RFC 9113, section 4.1), beside hyper, which tells
//! nobody what a connection is doing. Payloads are skipped, except for the few settings and increments that are needed.

/// Length of a frame header.
const HEADER: usize = 9;

/// Frame types (RFC 9113, section 6).
pub(super) mod kind {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const WINDOW_UPDATE: u8 = 8;
    pub(crate) const CONTINUATION: u8 = 9;
}

/// Flags (RFC 9113, section 6).
pub(super) mod flag {
    pub(crate) const END_STREAM: u8 = 1;
    pub(crate) const ACK: u8 = 1;
    pub(crate) const END_HEADERS: u8 = 4;
}

/// Bytes of a payload that are kept: all of a usual SETTINGS frame.
const KEPT: usize = 64;

/// One frame, as far as it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    /// Length of the payload.
    pub(super) length: u32,
    kept: [u8; KEPT],
    kept_len: usize,
}

impl Frame {
    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The beginning of the payload.
    pub(super) fn payload(&self) -> &[u8] {
        &self.kept[..self.kept_len]
    }
}

/// What a piece of the byte stream holds.
#[derive(Debug, Clone, Copy)]
pub(super) enum Piece<'a> {
    /// A frame header has begun to arrive, or is complete with its payload still to come.
    Begun(Option<&'a Frame>),
    /// Bytes of a payload.
    Payload(&'a Frame, usize),
    /// The frame is complete.
    Complete(&'a Frame),
}

/// Follows the frames of one direction, wherever the reads and writes cut them.
#[derive(Debug)]
pub(super) struct FrameScanner {
    /// Bytes to skip before the first frame.
    preface: usize,
    header: [u8; HEADER],
    header_len: usize,
    frame: Option<Frame>,
    left: u32,
}

impl FrameScanner {
    /// `preface`: how many bytes come before the first frame.
    pub(super) fn new(preface: usize) -> FrameScanner {
        FrameScanner { preface, header: [0; HEADER], header_len: 0, frame: None, left: 0 }
    }

    /// Tells `on` what `bytes` hold.
    pub(super) fn scan(&mut self, bytes: &[u8], mut on: impl FnMut(Piece<'_>)) {
        let skipped = self.preface.min(bytes.len());
        self.preface -= skipped;
        let mut bytes = &bytes[skipped..];
        while !bytes.is_empty() {
            let Some(frame) = &mut self.frame else {
                let taken = (HEADER - self.header_len).min(bytes.len());
                self.header[self.header_len..][..taken].copy_from_slice(&bytes[..taken]);
                self.header_len += taken;
                bytes = &bytes[taken..];
                if self.header_len < HEADER {
                    return on(Piece::Begun(None));
                }
                self.begin(&mut on);
                continue;
            };
            let taken = bytes.len().min(self.left as usize);
            let kept = taken.min(KEPT - frame.kept_len);
            frame.kept[frame.kept_len..][..kept].copy_from_slice(&bytes[..kept]);
            frame.kept_len += kept;
            on(Piece::Payload(frame, taken));
            bytes = &bytes[taken..];
            self.left -= taken as u32;
            self.end(&mut on);
        }
    }

    fn begin(&mut self, on: &mut impl FnMut(Piece<'_>)) {
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = self.header;
        let length = u32::from_be_bytes([0, l0, l1, l2]);
        let stream = u32::from_be_bytes([s0, s1, s2, s3]) & 0x7fff_ffff;
        let frame = Frame { kind, flags, stream, length, kept: [0; KEPT], kept_len: 0 };
        (self.header_len, self.left) = (0, length);
        on(Piece::Begun(Some(&frame)));
        self.frame = Some(frame);
        self.end(on);
    }

    fn end(&mut self, on: &mut impl FnMut(Piece<'_>)) {
        if self.left == 0
            && let Some(frame) = self.frame.take()
        {
            on(Piece::Complete(&frame));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut raw = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        raw.extend([kind, flags]);
        raw.extend(stream.to_be_bytes());
        raw.extend(payload);
        raw
    }

    fn complete(scanner: &mut FrameScanner, bytes: &[u8]) -> Vec<(u8, u32, u32, Vec<u8>)> {
        let mut seen = Vec::new();
        scanner.scan(bytes, |piece| {
            if let Piece::Complete(f) = piece {
                seen.push((f.kind, f.stream, f.length, f.payload().to_vec()));
            }
        });
        seen
    }

    proptest! {
        #[test]
        fn frames_do_not_depend_on_how_the_bytes_come(cuts in prop::collection::vec(0usize..400, 0..12)) {
            let raw = [
                b"PREFACE".to_vec(),
                frame(kind::SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]),
                frame(kind::SETTINGS, flag::ACK, 0, &[]),
                frame(kind::HEADERS, flag::END_HEADERS, 1, &[7; 40]),
                frame(kind::DATA, 0, 1, &[9; 300]),
                frame(kind::DATA, flag::END_STREAM, 0x8000_0001, &[]),
            ].concat();
            let whole = complete(&mut FrameScanner::new(7), &raw);
            prop_assert_eq!(whole.len(), 5);
            prop_assert_eq!(&whole[0], &(kind::SETTINGS, 0, 6, vec![0, 4, 0, 1, 0, 0]));
            prop_assert_eq!(&whole[3], &(kind::DATA, 1, 300, vec![9; KEPT]));
            prop_assert_eq!(&whole[4], &(kind::DATA, 1, 0, vec![]));
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
