//! Sums that many processes add to without contention.
//!
//! A sum is kept in 32 *stripes*, each on its own cache lines. An addition goes to the stripe of the current CPU, so workers that
//! run at the same time rarely touch the same line. The CPU selects the stripe and not the worker's slot, because state is declared
//! before slots exist, and because a dead worker then leaves nothing to clean up. A migration to another CPU during an addition is
//! harmless, because each addition is atomic.
//!
//! All accesses are relaxed: every word is an independent sum, and no other memory is read because of it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::memory::{self, PieceLayout};
use crate::error::Result;

const STRIPE_COUNT: usize = 32;
/// Words per pair of cache lines: CPUs fetch lines of 64 bytes in pairs.
const WORDS_PER_LINE_PAIR: usize = 16;

/// A few 64-bit sums that are striped together.
#[derive(Clone, Copy)]
pub(super) struct StripedSums {
    words: &'static [AtomicU64],
    /// Words per stripe.
    stride: usize,
}

impl StripedSums {
    /// Allocates `sums` sums for the declaration `name`, all zero unless they are inherited.
    pub(super) fn new(
        name: &str,
        kind: &'static str,
        layout: &str,
        sums: usize,
    ) -> Result<StripedSums> {
        let stride = sums.next_multiple_of(WORDS_PER_LINE_PAIR);
        let piece =
            memory::allocate(name, PieceLayout { kind, layout, words: STRIPE_COUNT * stride })?;
        Ok(StripedSums { words: piece.words, stride })
    }

    /// Adds to some of the sums, all on the stripe of the current CPU.
    pub(super) fn add(&self, additions: impl IntoIterator<Item = (usize, u64)>) {
        let stripe = prefork_os::system::current_cpu() % STRIPE_COUNT * self.stride;
        for (sum, by) in additions {
            self.words[stripe + sum].fetch_add(by, Relaxed);
        }
    }

    /// Returns one of the sums. Wraps at 2^64.
    pub(super) fn sum(&self, sum: usize) -> u64 {
        let parts = self.words.chunks_exact(self.stride).map(|stripe| stripe[sum].load(Relaxed));
        parts.fold(0, u64::wrapping_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn concurrent_additions_are_not_lost_and_stay_in_their_sum() {
        let stripes = StripedSums::new("stripes", "counter", "17", 17).expect("stripes");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|_| stripes.add([(0, 1), (16, 2)])));
            }
        });
        assert_eq!([stripes.sum(0), stripes.sum(1), stripes.sum(16)], [40_000, 0, 80_000]);
    }
}
