//! Hashing with random keys in shared memory, so that all processes and the next image of an upgrade select the same place for a key.

#[expect(
    deprecated,
    reason = "the algorithm of DefaultHasher may change with the compiler of the next image"
)]
use std::hash::SipHasher;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::Ordering;

use super::memory::SharedPiece;
use crate::error::{Error, Result};

/// The words that hold the keys, at the beginning of a piece: a pair of cache lines, which nobody writes.
pub(super) const HASH_KEY_WORDS: usize = 16;

/// Hashes with keys that clients cannot know, so that they cannot choose keys that collide.
#[derive(Debug, Clone)]
#[expect(deprecated, reason = "see above")]
pub(crate) struct SharedHasher(SipHasher);

impl SharedHasher {
    /// Reads the keys from the first words of `piece`, or draws them if the piece is new.
    #[expect(deprecated, reason = "see above")]
    pub(super) fn new(piece: SharedPiece) -> Result<SharedHasher> {
        let [first, second] = [&piece.words[0], &piece.words[1]];
        if !piece.is_inherited {
            for word in [first, second] {
                let key = prefork_os::system::random_u64()
                    .map_err(|e| Error::system("draw a key for hashing", e))?;
                word.store(key, Ordering::Relaxed);
            }
        }
        let keys = [first, second].map(|word| word.load(Ordering::Relaxed));
        Ok(SharedHasher(SipHasher::new_with_keys(keys[0], keys[1])))
    }

    /// Creates a hasher with these keys.
    #[expect(deprecated, reason = "see above")]
    pub(crate) fn with_keys(keys: u128) -> SharedHasher {
        SharedHasher(SipHasher::new_with_keys(keys as u64, (keys >> 64) as u64))
    }

    /// Returns the hash of the parts, one after the other.
    pub(crate) fn hash_bytes(&self, parts: &[&[u8]]) -> u64 {
        let mut hasher = self.build_hasher();
        parts.iter().for_each(|part| hasher.write(part));
        hasher.finish()
    }
}

#[expect(deprecated, reason = "see above")]
impl BuildHasher for SharedHasher {
    type Hasher = SipHasher;

    fn build_hasher(&self) -> SipHasher {
        self.0.clone()
    }
}
