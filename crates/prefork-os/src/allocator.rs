//! The memory that the C library's allocator holds.

use std::hint::black_box;

/// The sizes of blocks that glibc keeps in the cache of a thread, from 24 bytes in steps of 16.
const CACHED_SIZES: std::ops::RangeInclusive<usize> = 24..=1032;

/// How many blocks of each size glibc keeps there.
const CACHED_BLOCKS: usize = 7;

/// Returns free memory of the C library's allocator to the system, including whole pages between used blocks.
///
/// Without this call, glibc returns only what lies at the end of its heap. Takes about 1 ms for each 10 MB that are returned. Does
/// nothing with another C library, and little in a program with another allocator.
pub fn release_free_memory() {
    #[cfg(target_env = "gnu")]
    {
        gather_cached_blocks();
        // SAFETY: the call has no preconditions; it takes the locks of the allocator.
        unsafe { super::libc::malloc_trim(0) };
    }
}

/// Replaces the free blocks in the cache of this thread by others that lie close together.
///
/// glibc takes cached blocks for used ones. They are those that were freed last, from all over the heap, and several hundred of them
/// would each keep a page.
#[cfg(target_env = "gnu")]
fn gather_cached_blocks() {
    for size in CACHED_SIZES.step_by(16) {
        let allocate = || -> [Vec<u8>; CACHED_BLOCKS] {
            std::array::from_fn(|_| black_box(Vec::with_capacity(size)))
        };
        // The cached ones, and then ones from the smallest gaps of the heap. Those that are freed first fill the cache.
        let (cached, gathered) = (allocate(), allocate());
        drop(gathered);
        drop(cached);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the resident memory of this process in KiB.
    fn resident_kib() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").expect("status");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
        line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
    }

    #[test]
    #[cfg(target_env = "gnu")]
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
