//! Copies between bytes and words of shared memory that other processes may change at the same time.
//!
//! Every access is an atomic one of a whole word, so none is undefined, whatever other processes do. A word is never torn. Bytes of a
//! copy that spans several words may be of different ages, unless a lock prevents it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

const WORD_BYTES: usize = size_of::<u64>();

/// The part of a copy that lies in one word.
struct WordPart {
    word: usize,
    /// The first byte in the word.
    first: usize,
    /// Where the part is in the other buffer.
    bytes: std::ops::Range<usize>,
}

/// Splits a copy of `len` bytes from byte `offset` of the words on.
fn word_parts(offset: usize, len: usize) -> impl Iterator<Item = WordPart> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done;
        let first = at % WORD_BYTES;
        let count = (WORD_BYTES - first).min(len - done);
        let part = WordPart { word: at / WORD_BYTES, first, bytes: done..done + count };
        done += count;
        (count > 0).then_some(part)
    })
}

/// Copies bytes from byte `offset` of the words on.
///
/// # Panics
/// The words are shorter.
pub(super) fn read(words: &[AtomicU64], offset: usize, buffer: &mut [u8]) {
    for part in word_parts(offset, buffer.len()) {
        let word = words[part.word].load(Relaxed).to_ne_bytes();
        let count = part.bytes.len();
        buffer[part.bytes].copy_from_slice(&word[part.first..part.first + count]);
    }
}

/// Copies bytes to byte `offset` of the words and further. Leaves the other bytes of the first and last word as they are, also if other
/// processes write them at this moment.
///
/// # Panics
/// The words are shorter.
pub(super) fn write(words: &[AtomicU64], offset: usize, bytes: &[u8]) {
    for part in word_parts(offset, bytes.len()) {
        let word = &words[part.word];
        let new = &bytes[part.bytes];
        if let Ok(whole) = <[u8; WORD_BYTES]>::try_from(new) {
            word.store(u64::from_ne_bytes(whole), Relaxed);
        } else {
            let replace_part = |old: u64| {
                let mut all = old.to_ne_bytes();
                all[part.first..part.first + new.len()].copy_from_slice(new);
                Some(u64::from_ne_bytes(all))
            };
            let _ = word.fetch_update(Relaxed, Relaxed, replace_part);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn copies_are_those_of_a_slice(
            writes in prop::collection::vec((0..64_usize, prop::collection::vec(any::<u8>(), 0..40)), 1..20),
            reads in prop::collection::vec((0..64_usize, 0..40_usize), 1..10),
        ) {
            let words: Vec<AtomicU64> = (0..8).map(|_| AtomicU64::new(0)).collect();
            let mut model = [0_u8; 64];
            for (offset, bytes) in writes {
                let bytes = &bytes[..bytes.len().min(64 - offset)];
                write(&words, offset, bytes);
                model[offset..offset + bytes.len()].copy_from_slice(bytes);
            }
            for (offset, len) in reads {
                let mut buffer = vec![0xaa; len.min(64 - offset)];
                read(&words, offset, &mut buffer);
                prop_assert_eq!(&buffer[..], &model[offset..offset + buffer.len()]);
            }
        }
    }

    #[test]
    fn neighbouring_bytes_of_one_word_can_be_written_at_the_same_time() {
        let words = [AtomicU64::new(0)];
        std::thread::scope(|scope| {
            for at in 0..8 {
                let words = &words;
                scope.spawn(move || (0..=200).for_each(|value| write(words, at, &[value])));
            }
        });
        assert_eq!(words[0].load(Relaxed).to_ne_bytes(), [200; 8]);
    }
}
