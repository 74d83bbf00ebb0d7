//! The memory that the C library's allocator holds.

#[cfg(target_env = "gnu")]
use std::hint::black_box;

/// The sizes of blocks that glibc keeps in the cache of a thread, from 24 bytes in steps of 16.
#[cfg(target_env = "gnu")]
const CACHED_SIZES: std::ops::RangeInclusive<usize> = 24..=1032;

/// How many blocks of each size glibc keeps there.
#[cfg(target_env = "gnu")]
const CACHED_BLOCKS: usize = 7;

/// What is cut off a block at once: the largest size that glibc merges with its neighbours only in `malloc_trim`, not in `free`.
#[cfg(target_env = "gnu")]
const CUT_BYTES: usize = 128;

/// Returns free memory of the C library's allocator to the system, including whole pages between used blocks.
///
/// Without this call, glibc returns only what lies at the end of its heap. Takes about 1 ms for each 10 MB that are returned. Does
/// nothing with another C library, and little in a program with another allocator.
pub fn release_free_memory() {
    #[cfg(target_env = "gnu")]
    {
        empty_thread_cache();
        // SAFETY: the call has no preconditions; it takes the locks of the allocator.
        unsafe { super::libc::malloc_trim(0) };
    }
}

/// Frees the blocks in the cache of this thread, all but a few of the smallest.
///
/// glibc takes cached blocks for used ones: 236 KiB, which were freed last, from all over the heap, so that each block can keep a page.
/// It has no call that empties the cache, and a block that is freed goes there again. So all blocks are taken out and made smaller from
/// their ends: what is cut off has one size for all, of which the cache takes seven, and the heap the others.
#[cfg(target_env = "gnu")]
fn empty_thread_cache() {
    let cached: Vec<Vec<u8>> = CACHED_SIZES
        .step_by(16)
        .flat_map(|size| (0..CACHED_BLOCKS).map(move |_| black_box(Vec::with_capacity(size))))
        .collect();
    for mut block in cached {
        while block.capacity() > CUT_BYTES + 24 {
            block.shrink_to(block.capacity() - CUT_BYTES);
        }
    }
}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use super::*;

    /// Returns the resident memory of this process in KiB.
    fn resident_kib() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").expect("status");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
        line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
    }

    #[test]
    fn free_blocks_between_used_ones_go_back_to_the_system() {
        let all: Vec<Vec<u8>> = (0..4000).map(|_| vec![1; 16 * 1024]).collect();
        // Every second one stays, so that what is free is not at the end of the heap.
        let blocks: Vec<Vec<u8>> = all.into_iter().step_by(2).collect();
        let before = resident_kib();
        release_free_memory();
        let released = before.saturating_sub(resident_kib());
        assert!(released > 12 * 1024, "{released} KiB of 31 MiB");
        assert_eq!(black_box(&blocks).len(), 2000);
    }
}
