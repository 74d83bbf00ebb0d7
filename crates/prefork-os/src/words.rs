//! Words that every process forked from now on shares and may write, and a word that no child inherits.
//!
//! The other shared memory, in `shm`, has one writer a page. Here everybody writes everywhere, so whoever reads
//! takes no word for an index, a length or a pid without checking it.

use std::io;
use std::num::NonZeroUsize;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous};

/// `count` zeroed words in memory that is shared over fork. They stay for the life of the process: handles to
/// them are plain references that every worker has. Words that nobody touches cost no memory.
pub fn shared(count: usize) -> io::Result<&'static [AtomicU64]> {
    map(count, MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE)
}

/// A word that is zero again in every child (`MADV_WIPEONFORK`): for what is true of one process only, without
/// asking the kernel at each use who we are.
pub fn of_this_process() -> io::Result<&'static AtomicU64> {
    static WORD: OnceLock<&'static [AtomicU64]> = OnceLock::new();
    if let Some(words) = WORD.get() {
        return Ok(&words[0]);
    }
    let words = map(1, MapFlags::MAP_PRIVATE)?;
    let base = std::ptr::NonNull::from(&words[0]).cast();
    // SAFETY: the range is the one page that was just mapped, private and anonymous, and it holds only atomics,
    // for which zero is a valid value.
    unsafe { madvise(base, 8, MmapAdvise::MADV_WIPEONFORK) }?;
    // Another thread may have been faster; then its word counts and ours is never used.
    Ok(&WORD.get_or_init(|| words)[0])
}

fn map(count: usize, flags: MapFlags) -> io::Result<&'static [AtomicU64]> {
    let bytes = count.checked_mul(8).filter(|bytes| *bytes <= isize::MAX as usize);
    let length = bytes.and_then(NonZeroUsize::new).ok_or(io::ErrorKind::InvalidInput)?;
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a fresh anonymous mapping at an address of the kernel's choice: it overlaps nothing.
    let base = unsafe { mmap_anonymous(None, length, protection, flags) }?;
    // SAFETY: the mapping is `count` words long, aligned to a page, zeroed, never unmapped, and can not be
    // made shorter, as no file is behind it. All words are atomics, whatever other processes write.
    Ok(unsafe { std::slice::from_raw_parts(base.cast::<AtomicU64>().as_ptr(), count) })
}

/// The processor this thread runs on right now, or 0 if the kernel does not say. It may be another one by the
/// time the caller uses it: good for spreading writes, for nothing else.
pub fn processor() -> usize {
    nix::sched::sched_getcpu().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering::Relaxed;

    #[test]
    fn words_are_zero_and_keep_what_is_written() {
        let words = shared(3).expect("words");
        assert!(words.len() == 3 && words.iter().all(|w| w.load(Relaxed) == 0));
        words[2].store(7, Relaxed);
        assert_eq!(words[2].load(Relaxed), 7);
        assert!(shared(0).is_err() && shared(usize::MAX).is_err());
    }

    #[test]
    fn there_is_one_word_of_this_process() {
        let one = of_this_process().expect("word");
        assert!(std::ptr::eq(one, of_this_process().expect("word")));
    }
}
