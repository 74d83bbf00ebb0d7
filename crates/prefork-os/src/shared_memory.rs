//! Memory that outlives a fork: pages shared by all processes, each writable by one of them only.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::bpf::BpfArrayMap;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

/// Bytes of a page; one process owns one.
pub const SHARED_PAGE_BYTES: usize = 4096;
/// The same in 64-bit words.
pub const WORDS_PER_PAGE: usize = SHARED_PAGE_BYTES / 8;

/// One page as everybody sees it: words that change under the reader's eyes.
pub type SharedPage = [AtomicU64; WORDS_PER_PAGE];

/// Pages for reading, by every process. The mapping can not be made writable again (`F_SEAL_FUTURE_WRITE`).
#[derive(Clone, Copy)]
pub struct ReadOnlyPages {
    base: NonNull<SharedPage>,
    count: usize,
}

// SAFETY: nothing but the address of a mapping that is never unmapped, and of atomics.
unsafe impl Send for ReadOnlyPages {}
// SAFETY: as above; `page` gives out shared references to atomics only.
unsafe impl Sync for ReadOnlyPages {}

/// All pages for writing. Only the primary keeps this; a worker gives it up for one page.
pub struct WritablePages {
    base: NonNull<SharedPage>,
    count: usize,
}

/// How the name of the memory begins; the pid and the start time of the process that made it follow.
const MEMFD_NAME_PREFIX: &str = "prefork-scoreboard";

/// Names the primary in every process that maps the memory, for others to read in `/proc/PID/maps`.
fn memfd_name() -> String {
    let pid = std::process::id();
    let started = super::process::process_start_ticks(pid).unwrap_or(0);
    format!("{MEMFD_NAME_PREFIX}:{pid}:{started}")
}

/// Reads a line of `/proc/PID/maps`: pid and start time of the primary that made the memory, if it is ours.
pub fn parse_primary_of_mapping(line: &str) -> Option<(u32, u64)> {
    let (_, name) = line.split_once("/memfd:")?;
    let (pid, rest) = name.strip_prefix(MEMFD_NAME_PREFIX)?.strip_prefix(':')?.split_once(':')?;
    let started = rest.split(' ').next()?;
    Some((pid.parse().ok()?, started.parse().ok()?))
}

/// Makes `count` zeroed pages that every process forked from now on will share, and the memory behind them.
pub fn create_shared_pages(count: usize) -> io::Result<(WritablePages, ReadOnlyPages, OwnedFd)> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let memory = memfd_create(memfd_name().as_str(), flags)?;
    let length = count.checked_mul(SHARED_PAGE_BYTES).and_then(|length| i64::try_from(length).ok());
    nix::unistd::ftruncate(&memory, length.ok_or(io::ErrorKind::InvalidInput)?)?;
    let writable = map_pages(&memory, count, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
    // Sealed after the writable mapping: nobody can shrink the memory under a reader (that would be SIGBUS
    // for the primary), and no later mapping of it can be, or become, writable.
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_FUTURE_WRITE;
    fcntl(&memory, FcntlArg::F_ADD_SEALS(seals | SealFlag::F_SEAL_SEAL))?;
    let readable = map_pages(&memory, count, ProtFlags::PROT_READ)?;
    Ok((WritablePages { base: writable, count }, ReadOnlyPages { base: readable, count }, memory))
}

/// The first `count` pages of `memory`, for writing.
///
/// # Errors
/// It has fewer: what is mapped behind its end could not be reached (SIGBUS).
pub fn map_bpf_array_pages(memory: &BpfArrayMap, count: usize) -> io::Result<WritablePages> {
    if count > memory.length().div_ceil(SHARED_PAGE_BYTES) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let base = map_pages(memory.map(), count, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
    Ok(WritablePages { base, count })
}

/// Pages that another program of this process made, for reading.
pub fn map_inherited_pages(memory: &OwnedFd) -> io::Result<ReadOnlyPages> {
    let length = usize::try_from(nix::sys::stat::fstat(memory)?.st_size).unwrap_or(0);
    let seals = fcntl(memory, FcntlArg::F_GET_SEALS)?;
    // Unsealed memory could be made shorter under us, and reading behind its end is SIGBUS.
    if length == 0 || length % SHARED_PAGE_BYTES != 0 || seals & SealFlag::F_SEAL_SHRINK.bits() == 0
    {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let count = length / SHARED_PAGE_BYTES;
    Ok(ReadOnlyPages { base: map_pages(memory, count, ProtFlags::PROT_READ)?, count })
}

fn map_pages(
    memory: &OwnedFd,
    count: usize,
    protection: ProtFlags,
) -> io::Result<NonNull<SharedPage>> {
    let length =
        count.checked_mul(SHARED_PAGE_BYTES).filter(|length| *length <= isize::MAX as usize);
    let length = length.and_then(NonZeroUsize::new).ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: a fresh shared mapping of memory that is at least `length` long, as each caller has made sure, at an address
    // of the kernel's choice: it overlaps nothing.
    let base = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, memory, 0) }?;
    Ok(base.cast())
}

impl ReadOnlyPages {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Page `index`.
    pub fn page(&self, index: usize) -> &'static SharedPage {
        assert!(index < self.count, "page {index} of {}", self.count);
        // SAFETY: inside the mapping (checked), which is never unmapped; all words are atomics, and any
        // bit pattern is a valid one, whatever other processes write.
        unsafe { self.base.add(index).as_ref() }
    }
}

impl WritablePages {
    /// Page `index`, for the primary to write. The caller keeps no reference across a fork.
    pub fn page(&self, index: usize) -> &SharedPage {
        assert!(index < self.count, "page {index} of {}", self.count);
        // SAFETY: inside the mapping (checked), which lives as long as `self`; the words are atomics.
        unsafe { self.base.add(index).as_ref() }
    }

    /// Zeroes page `index`.
    pub fn zero_page(&self, index: usize) {
        for word in self.page(index) {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// Gives up all of them for good. Nothing can be reached through `self` afterwards.
    pub fn unmap_all(&mut self) -> io::Result<()> {
        let count = std::mem::take(&mut self.count);
        if count > 0 {
            // SAFETY: exactly the mapping made by `create` or `share`. No reference into it is left, as those that
            // `page` gives out borrow `self`, and a count of 0 lets none be made again.
            unsafe { munmap(self.base.cast(), count * SHARED_PAGE_BYTES)? };
        }
        Ok(())
    }

    /// In a worker: keeps page `index` writable and gives up all others for good. Nothing can be reached
    /// through `self` afterwards.
    pub fn keep_only_page(&mut self, index: usize) -> io::Result<&'static SharedPage> {
        let pages = self.keep_only_pages(index, 1)?;
        pages.into_iter().next().ok_or(io::ErrorKind::InvalidInput.into())
    }

    /// As `keep_only_page`, for `run` pages in a row.
    pub fn keep_only_pages(
        &mut self,
        index: usize,
        run: usize,
    ) -> io::Result<Vec<&'static SharedPage>> {
        let fits = index.checked_add(run).is_some_and(|end| end <= self.count);
        assert!(fits, "pages {index} and {run} more of {}", self.count);
        let after = self.count - index - run;
        self.count = 0;
        // SAFETY: both ranges lie inside the mapping made by `create` or `share`. No reference into them is left, as
        // those that `page` gives out borrow `self`, and a count of 0 lets none be made again.
        unsafe {
            if index > 0 {
                munmap(self.base.cast(), index * SHARED_PAGE_BYTES)?;
            }
            if after > 0 {
                munmap(self.base.add(index + run).cast(), after * SHARED_PAGE_BYTES)?;
            }
            Ok((index..index + run).map(|at| self.base.add(at).as_ref()).collect())
        }
    }
}

/// `count` zeroed words in memory that is shared over fork. They stay for the life of the process: handles to
/// them are plain references that every worker has. Words that nobody touches cost no memory.
pub fn create_shared_words(count: usize) -> io::Result<&'static [AtomicU64]> {
    map_words(count, MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE)
}

/// A word that is zero again in every child (`MADV_WIPEONFORK`): for what is true of one process only, without
/// asking the kernel at each use who we are.
pub fn process_local_word() -> io::Result<&'static AtomicU64> {
    static WORD: OnceLock<&'static [AtomicU64]> = OnceLock::new();
    if let Some(words) = WORD.get() {
        return Ok(&words[0]);
    }
    let words = map_words(1, MapFlags::MAP_PRIVATE)?;
    let base = std::ptr::NonNull::from(&words[0]).cast();
    // SAFETY: the range is the one page that was just mapped, private and anonymous, and it holds only atomics,
    // for which zero is a valid value.
    unsafe { madvise(base, 8, MmapAdvise::MADV_WIPEONFORK) }?;
    // Another thread may have been faster; then its word counts and ours is never used.
    Ok(&WORD.get_or_init(|| words)[0])
}

fn map_words(count: usize, flags: MapFlags) -> io::Result<&'static [AtomicU64]> {
    let bytes = count.checked_mul(8).filter(|bytes| *bytes <= isize::MAX as usize);
    let length = bytes.and_then(NonZeroUsize::new).ok_or(io::ErrorKind::InvalidInput)?;
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a fresh anonymous mapping at an address of the kernel's choice: it overlaps nothing.
    let base = unsafe { mmap_anonymous(None, length, protection, flags) }?;
    // SAFETY: the mapping is `count` words long, aligned to a page, zeroed, never unmapped, and can not be
    // made shorter, as no file is behind it. All words are atomics, whatever other processes write.
    Ok(unsafe { std::slice::from_raw_parts(base.cast::<AtomicU64>().as_ptr(), count) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering::Relaxed;

    #[test]
    fn more_pages_than_there_can_be_are_refused() {
        for count in [0, usize::MAX / SHARED_PAGE_BYTES + 2, usize::MAX] {
            assert!(create_shared_pages(count).is_err(), "{count}");
        }
    }

    #[test]
    fn whoever_maps_the_memory_shows_who_made_it() {
        let (_writable, _readable, _memory) = create_shared_pages(1).expect("create");
        let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
        let pid = std::process::id();
        let started = super::super::process::process_start_ticks(pid).expect("lives");
        assert_eq!(maps.lines().find_map(parse_primary_of_mapping), Some((pid, started)));
        assert_eq!(parse_primary_of_mapping("7f0 r--p /memfd:prefork-scoreboard (deleted)"), None);
    }

    #[test]
    fn what_one_mapping_writes_the_other_reads() {
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
    fn words_are_zero_and_keep_what_is_written() {
        let words = create_shared_words(3).expect("words");
        assert!(words.len() == 3 && words.iter().all(|w| w.load(Relaxed) == 0));
        words[2].store(7, Relaxed);
        assert_eq!(words[2].load(Relaxed), 7);
        assert!(create_shared_words(0).is_err() && create_shared_words(usize::MAX).is_err());
    }

    #[test]
    fn there_is_one_word_of_this_process() {
        let one = process_local_word().expect("word");
        assert!(std::ptr::eq(one, process_local_word().expect("word")));
    }
}
