//! Memory shared by forked processes: pages that only one process can write, and words that all can write.
//!
//! Readers must check every value that another process may have written before they use it as an index, a length or a pid.

use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::bpf::BpfArrayMap;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

/// Size in bytes of a shared page, the unit of write protection.
pub const SHARED_PAGE_BYTES: usize = 4096;
/// Number of 64-bit words in a shared page.
pub const WORDS_PER_PAGE: usize = SHARED_PAGE_BYTES / 8;

/// A shared page: words that other processes may change at any time.
pub type SharedPage = [AtomicU64; WORDS_PER_PAGE];

/// A read-only mapping of all pages, for every process. It cannot be made writable (`F_SEAL_FUTURE_WRITE`).
#[derive(Clone, Copy)]
pub struct ReadOnlyPages {
    base: NonNull<SharedPage>,
    count: usize,
}

// SAFETY: holds the address of a mapping of atomics that is never unmapped.
unsafe impl Send for ReadOnlyPages {}
// SAFETY: as above; `page` returns shared references to atomics only.
unsafe impl Sync for ReadOnlyPages {}

/// A writable mapping of all pages. The primary keeps it; a worker keeps only its own pages of it.
pub struct WritablePages {
    base: NonNull<SharedPage>,
    count: usize,
}

/// Prefix of the memory's name, before the pid and the start time of the process that created it.
const MEMFD_NAME_PREFIX: &str = "prefork-scoreboard";

/// Name of the memory of [`create_shared_words_file`] in `/proc/PID/maps`.
const SHARED_WORDS_MEMFD_NAME: &str = "prefork-shared-state";

/// Returns a name that identifies this process as the primary in the `/proc/PID/maps` of every process with the mapping.
fn primary_memfd_name() -> String {
    let pid = std::process::id();
    let started = crate::process::process_start_ticks(pid).unwrap_or(0);
    format!("{MEMFD_NAME_PREFIX}:{pid}:{started}")
}

/// Parses a line of `/proc/PID/maps`. Returns pid and start ticks of the primary if it shows a mapping of shared pages.
pub fn parse_primary_of_mapping(line: &str) -> Option<(u32, u64)> {
    let (_, name) = line.split_once("/memfd:")?;
    let (pid, rest) = name.strip_prefix(MEMFD_NAME_PREFIX)?.strip_prefix(':')?.split_once(':')?;
    let started = rest.split(' ').next()?;
    Some((pid.parse().ok()?, started.parse().ok()?))
}

/// Creates `count` zeroed pages that forked processes share. Returns a writable and a read-only mapping, and the memory.
///
/// # Errors
/// `count` is 0 or too large, or the kernel has no memory or descriptors left.
pub fn create_shared_pages(count: usize) -> io::Result<(WritablePages, ReadOnlyPages, OwnedFd)> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let memory = memfd_create(primary_memfd_name().as_str(), flags)?;
    let length = count.checked_mul(SHARED_PAGE_BYTES).and_then(|length| i64::try_from(length).ok());
    nix::unistd::ftruncate(&memory, length.ok_or(io::ErrorKind::InvalidInput)?)?;
    let writable = map_pages(&memory, count, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
    // Sealed after the writable mapping: no process can shrink the memory, which would raise SIGBUS in its readers, and
    // no later mapping can be or become writable.
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_FUTURE_WRITE;
    fcntl(&memory, FcntlArg::F_ADD_SEALS(seals | SealFlag::F_SEAL_SEAL))?;
    let readable = map_pages(&memory, count, ProtFlags::PROT_READ)?;
    Ok((WritablePages { base: writable, count }, ReadOnlyPages { base: readable, count }, memory))
}

/// Maps the first `count` pages of a BPF array for writing.
///
/// # Errors
/// `array` has fewer pages: accessing a mapping beyond its end would raise SIGBUS.
pub fn map_bpf_array_pages(array: &BpfArrayMap, count: usize) -> io::Result<WritablePages> {
    if count > array.length().div_ceil(SHARED_PAGE_BYTES) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let base = map_pages(array.map(), count, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
    Ok(WritablePages { base, count })
}

/// Maps shared pages that the previous program of this process created, read-only.
///
/// # Errors
/// `InvalidData` if `memory` is empty, not made of whole pages or not sealed against shrinking.
pub fn map_inherited_pages(memory: &OwnedFd) -> io::Result<ReadOnlyPages> {
    let length = usize::try_from(nix::sys::stat::fstat(memory)?.st_size).unwrap_or(0);
    let seals = fcntl(memory, FcntlArg::F_GET_SEALS)?;
    // Without the seal another process could shrink the memory, and reading beyond its end raises SIGBUS.
    if length == 0 || length % SHARED_PAGE_BYTES != 0 || seals & SealFlag::F_SEAL_SHRINK.bits() == 0
    {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let count = length / SHARED_PAGE_BYTES;
    Ok(ReadOnlyPages { base: map_pages(memory, count, ProtFlags::PROT_READ)?, count })
}

/// Maps the first `count` pages of `memory`, which must be at least that long.
pub(crate) fn map_pages(
    memory: &OwnedFd,
    count: usize,
    protection: ProtFlags,
) -> io::Result<NonNull<SharedPage>> {
    let length =
        count.checked_mul(SHARED_PAGE_BYTES).filter(|length| *length <= isize::MAX as usize);
    let length = length.and_then(NonZeroUsize::new).ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: a new shared mapping at an address that the kernel chooses, so it overlaps nothing. Each caller has checked
    // that the memory is at least `length` long.
    let base = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, memory, 0) }?;
    Ok(base.cast())
}

impl ReadOnlyPages {
    /// Wraps a mapping of [`map_pages`], which nothing else may unmap.
    pub(crate) fn new(base: NonNull<SharedPage>, count: usize) -> ReadOnlyPages {
        ReadOnlyPages { base, count }
    }

    /// Unmaps all pages. The caller must be the only one that has this value, and must not have used [`ReadOnlyPages::page`].
    pub(crate) fn unmap_all(self) -> io::Result<()> {
        // SAFETY: exactly the mapping that `map_pages` returned, to which there is no reference, as the caller has made none.
        Ok(unsafe { munmap(self.base.cast(), self.count * SHARED_PAGE_BYTES) }?)
    }

    /// Returns the number of pages.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Returns page `index`.
    ///
    /// # Panics
    /// `index` is out of bounds.
    pub fn page(&self, index: usize) -> &'static SharedPage {
        assert!(index < self.count, "page {index} of {}", self.count);
        // SAFETY: inside the mapping (checked), which is never unmapped. All words are atomics, for which any bit pattern
        // that other processes write is valid.
        unsafe { self.base.add(index).as_ref() }
    }
}

impl WritablePages {
    /// Wraps a mapping of [`map_pages`] for writing, which nothing else may unmap.
    pub(crate) fn new(base: NonNull<SharedPage>, count: usize) -> WritablePages {
        WritablePages { base, count }
    }

    /// Returns page `index` for writing.
    ///
    /// # Panics
    /// `index` is out of bounds.
    pub fn page(&self, index: usize) -> &SharedPage {
        assert!(index < self.count, "page {index} of {}", self.count);
        // SAFETY: inside the mapping (checked), which lives as long as `self`. All words are atomics.
        unsafe { self.base.add(index).as_ref() }
    }

    /// Zeroes page `index`.
    pub fn zero_page(&self, index: usize) {
        for word in self.page(index) {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// Unmaps all pages. `self` is empty afterwards.
    pub fn unmap_all(&mut self) -> io::Result<()> {
        let count = std::mem::take(&mut self.count);
        if count > 0 {
            // SAFETY: exactly the mapping that `map_pages` returned. No reference into it exists, as those that `page`
            // returns borrow `self`, and with a count of 0 none can be created.
            unsafe { munmap(self.base.cast(), count * SHARED_PAGE_BYTES)? };
        }
        Ok(())
    }

    /// Returns page `index` and unmaps all others, in a worker. `self` is empty afterwards.
    ///
    /// # Panics
    /// `index` is out of bounds.
    pub fn keep_only_page(&mut self, index: usize) -> io::Result<&'static SharedPage> {
        let only = index..index.saturating_add(1);
        let pages = self.keep_only_pages(std::slice::from_ref(&only))?;
        pages.into_iter().next().ok_or(io::ErrorKind::InvalidInput.into())
    }

    /// Returns the pages of `kept`, in order, and unmaps all others, in a worker. `self` is empty afterwards.
    ///
    /// # Panics
    /// A page is out of bounds, or the ranges are not in ascending order.
    pub fn keep_only_pages(
        &mut self,
        kept: &[Range<usize>],
    ) -> io::Result<Vec<&'static SharedPage>> {
        let mut unmapped = Vec::new();
        let mut next = 0;
        for range in kept {
            let is_ascending = next <= range.start && range.start <= range.end;
            assert!(is_ascending && range.end <= self.count, "{kept:?} of {} pages", self.count);
            unmapped.push(next..range.start);
            next = range.end;
        }
        unmapped.push(next..self.count);
        self.count = 0;
        // SAFETY: all ranges lie inside the mapping that `map_pages` returned (checked), and none overlaps a kept one. No
        // reference into them exists, as those that `page` returns borrow `self`, and with a count of 0 none can be created.
        unsafe {
            for range in unmapped.into_iter().filter(|range| !range.is_empty()) {
                munmap(self.base.add(range.start).cast(), range.len() * SHARED_PAGE_BYTES)?;
            }
            Ok(kept.iter().cloned().flatten().map(|at| self.base.add(at).as_ref()).collect())
        }
    }
}

/// Creates `count` zeroed words that this process and its future forks share, and that all of them can write.
///
/// The mapping lives until the process ends. Untouched words use no memory.
///
/// # Errors
/// `count` is 0 or too large, or the kernel has no memory left.
pub fn create_shared_words(count: usize) -> io::Result<&'static [AtomicU64]> {
    map_words(count, MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE)
}

/// Creates a file in memory with `count` zeroed words, and maps it. Forks of this process share the words, and a program
/// that inherits the descriptor can map them with [`map_shared_words_file`].
///
/// No process can change the size of the file. The mapping lives until the process ends. Untouched words use no memory.
///
/// # Errors
/// `count` is 0 or too large, or the kernel has no memory or descriptors left.
pub fn create_shared_words_file(count: usize) -> io::Result<(OwnedFd, &'static [AtomicU64])> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let memory = memfd_create(SHARED_WORDS_MEMFD_NAME, flags)?;
    let length = count.checked_mul(8).and_then(|length| i64::try_from(length).ok());
    // A lack of memory, as for a length that the kernel refuses.
    nix::unistd::ftruncate(&memory, length.ok_or(io::ErrorKind::OutOfMemory)?)?;
    // Otherwise a worker could shrink the memory, and access beyond its end raises SIGBUS in the other processes.
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&memory, FcntlArg::F_ADD_SEALS(seals))?;
    let words = map_shared_words_file(&memory)?;
    Ok((memory, words))
}

/// Maps all words of a file that [`create_shared_words_file`] has created, here or in the previous program of this process.
///
/// The mapping lives until the process ends.
///
/// # Errors
/// `InvalidData` if `memory` is empty, not made of whole words or not sealed against shrinking.
pub fn map_shared_words_file(memory: impl AsFd) -> io::Result<&'static [AtomicU64]> {
    let bytes = usize::try_from(nix::sys::stat::fstat(memory.as_fd())?.st_size).unwrap_or(0);
    let seals = fcntl(memory.as_fd(), FcntlArg::F_GET_SEALS)?;
    if bytes == 0 || bytes % 8 != 0 || seals & SealFlag::F_SEAL_SHRINK.bits() == 0 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let length = NonZeroUsize::new(bytes).ok_or(io::ErrorKind::InvalidInput)?;
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new shared mapping at an address that the kernel chooses, so it overlaps nothing.
    let base = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, memory, 0) }?;
    // SAFETY: the file has `bytes` bytes and cannot shrink (checked). The mapping is page-aligned and never unmapped. All
    // words are atomics, for which any bit pattern that other processes write is valid.
    Ok(unsafe { std::slice::from_raw_parts(base.cast::<AtomicU64>().as_ptr(), bytes / 8) })
}

/// Returns a word that the kernel resets to zero in every forked child (`MADV_WIPEONFORK`).
///
/// A cheap way to tell whether a cached value belongs to this process or was inherited. All calls return the same word.
pub fn word_wiped_on_fork() -> io::Result<&'static AtomicU64> {
    static WORD_WIPED_ON_FORK: OnceLock<&'static [AtomicU64]> = OnceLock::new();
    if let Some(words) = WORD_WIPED_ON_FORK.get() {
        return Ok(&words[0]);
    }
    let words = map_words(1, MapFlags::MAP_PRIVATE)?;
    let base = std::ptr::NonNull::from(&words[0]).cast();
    // SAFETY: the range is the private anonymous page mapped above. It holds only atomics, for which zero is valid.
    unsafe { madvise(base, 8, MmapAdvise::MADV_WIPEONFORK) }?;
    // If another thread was faster, its word is used and this one is not.
    Ok(&WORD_WIPED_ON_FORK.get_or_init(|| words)[0])
}

fn map_words(count: usize, flags: MapFlags) -> io::Result<&'static [AtomicU64]> {
    let bytes = count.checked_mul(8).filter(|bytes| *bytes <= isize::MAX as usize);
    let length = bytes.and_then(NonZeroUsize::new).ok_or(io::ErrorKind::InvalidInput)?;
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new anonymous mapping at an address that the kernel chooses, so it overlaps nothing.
    let base = unsafe { mmap_anonymous(None, length, protection, flags) }?;
    // SAFETY: the mapping is `count` words long, page-aligned, zeroed and never unmapped, and cannot shrink, as it has
    // no file. All words are atomics, for which any bit pattern that other processes write is valid.
    Ok(unsafe { std::slice::from_raw_parts(base.cast::<AtomicU64>().as_ptr(), count) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering::Relaxed;

    #[test]
    fn a_page_count_of_zero_or_beyond_the_address_space_is_an_error() {
        for count in [0, usize::MAX / SHARED_PAGE_BYTES + 2, usize::MAX] {
            assert!(create_shared_pages(count).is_err(), "{count}");
        }
    }

    #[test]
    fn proc_maps_show_the_primary_of_a_mapping() {
        let (_writable, _readable, _memory) = create_shared_pages(1).expect("create");
        let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
        let pid = std::process::id();
        let started = crate::process::process_start_ticks(pid).expect("lives");
        assert_eq!(maps.lines().find_map(parse_primary_of_mapping), Some((pid, started)));
        assert_eq!(parse_primary_of_mapping("7f0 r--p /memfd:prefork-scoreboard (deleted)"), None);
    }

    #[test]
    fn writes_are_visible_in_the_read_only_mapping() {
        let (mut writable, readable, memory) = create_shared_pages(3).expect("create");
        writable.page(1)[7].store(42, Ordering::Relaxed);
        assert_eq!(readable.page(1)[7].load(Ordering::Relaxed), 42);
        let own = writable.keep_only_page(1).expect("keep");
        own[8].store(43, Ordering::Relaxed);
        assert_eq!(readable.page(1)[8].load(Ordering::Relaxed), 43);
        assert_eq!(readable.page(0)[8].load(Ordering::Relaxed), 0);
        let inherited = map_inherited_pages(&memory).expect("inherit");
        assert_eq!(inherited.count(), 3);
        assert_eq!(inherited.page(1)[8].load(Ordering::Relaxed), 43);
    }

    #[test]
    fn several_ranges_of_pages_are_kept() {
        let (mut writable, readable, _memory) = create_shared_pages(6).expect("create");
        let kept = writable.keep_only_pages(&[1..3, 4..5]).expect("keep");
        for (page, value) in kept.iter().zip(1..) {
            page[0].store(value, Relaxed);
        }
        let seen = [0, 1, 2, 3, 4, 5].map(|index| readable.page(index)[0].load(Relaxed));
        assert_eq!(seen, [0, 1, 2, 0, 3, 0]);
    }

    #[test]
    #[should_panic(expected = "of 3 pages")]
    fn a_kept_page_out_of_bounds_panics() {
        let (mut writable, _readable, _memory) = create_shared_pages(3).expect("create");
        let _ = writable.keep_only_pages(&[1..2, 2..4]);
    }

    #[test]
    fn shared_words_start_at_zero_and_keep_writes() {
        let words = create_shared_words(3).expect("words");
        assert!(words.len() == 3 && words.iter().all(|w| w.load(Relaxed) == 0));
        words[2].store(7, Relaxed);
        assert_eq!(words[2].load(Relaxed), 7);
        assert!(create_shared_words(0).is_err() && create_shared_words(usize::MAX).is_err());
    }

    #[test]
    fn a_file_of_words_can_be_mapped_again_and_not_resized() {
        let (file, words) = create_shared_words_file(1000).expect("words");
        assert!(words.len() == 1000 && words.iter().all(|w| w.load(Relaxed) == 0));
        words[999].store(7, Relaxed);
        let again = map_shared_words_file(&file).expect("mapped again");
        assert_eq!((again.len(), again[999].load(Relaxed)), (1000, 7));
        assert!(nix::unistd::ftruncate(&file, 0).is_err());
        assert!(nix::unistd::ftruncate(&file, 1 << 20).is_err());
        assert!(
            create_shared_words_file(0).is_err() && create_shared_words_file(usize::MAX).is_err()
        );
        let unsealed = memfd_create("test", MFdFlags::MFD_CLOEXEC).expect("memory");
        nix::unistd::ftruncate(&unsealed, 4096).expect("resized");
        let error = map_shared_words_file(&unsealed).expect_err("it could shrink");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn word_wiped_on_fork_is_always_the_same_word() {
        let one = word_wiped_on_fork().expect("word");
        assert!(std::ptr::eq(one, word_wiped_on_fork().expect("word")));
    }
}
