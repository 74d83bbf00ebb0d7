//! Sums that many processes add to without slowing each other down.
//!
//! A sum is kept in 32 *stripes*, each on cache lines of its own, and one adds to the stripe of the processor
//! one runs on. So two workers that run at the same time rarely touch the same line. The processor and not the
//! slot of the worker chooses, because state is declared before there are slots, and also because a dead worker
//! then leaves nothing behind that is its own: the sum simply stays. If the kernel moves us in between, the sum
//! is right all the same, as each addition is atomic.
//!
//! All accesses are Relaxed: every word is a sum of its own, and no other memory is read because of it.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

const STRIPES: usize = 32;
/// Words that are fetched together: processors fetch lines of 64 bytes in pairs.
const LINE: usize = 16;

/// A few sums of 64 bits, all striped alike.
#[derive(Clone, Copy)]
pub(super) struct Stripes {
    words: &'static [AtomicU64],
    /// Words of a stripe.
    stride: usize,
}

impl Stripes {
    /// `sums` sums, all zero.
    pub(super) fn new(sums: usize) -> io::Result<Stripes> {
        let stride = sums.next_multiple_of(LINE);
        Ok(Stripes {
            words: prefork_os::shared_memory::create_shared_words(STRIPES * stride)?,
            stride,
        })
    }

    /// Adds to some of the sums, all on this processor's stripe.
    pub(super) fn add(&self, additions: impl IntoIterator<Item = (usize, u64)>) {
        let stripe = prefork_os::system::current_cpu() % STRIPES * self.stride;
        for (sum, by) in additions {
            self.words[stripe + sum].fetch_add(by, Relaxed);
        }
    }

    /// One of the sums. It wraps as its parts do.
    pub(super) fn sum(&self, sum: usize) -> u64 {
        let parts = self.words.chunks_exact(self.stride).map(|stripe| stripe[sum].load(Relaxed));
        parts.fold(0, u64::wrapping_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_do_not_mix_and_nothing_is_lost_between_threads() {
        let stripes = Stripes::new(17).expect("stripes");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|_| stripes.add([(0, 1), (16, 2)])));
            }
        });
        assert_eq!([stripes.sum(0), stripes.sum(1), stripes.sum(16)], [40_000, 0, 80_000]);
    }
}
