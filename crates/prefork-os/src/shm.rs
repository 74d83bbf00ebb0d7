//! Memory that outlives a fork: pages shared by all processes, each writable by one of them only.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use super::bpf::SharedArray;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// Bytes of a page; one process owns one.
pub const PAGE: usize = 4096;
/// The same in 64-bit words.
pub const WORDS: usize = PAGE / 8;

/// One page as everybody sees it: words that change under the reader's eyes.
pub type Page = [AtomicU64; WORDS];

/// Pages for reading, by every process. The mapping can not be made writable again (`F_SEAL_FUTURE_WRITE`).
#[derive(Clone, Copy)]
pub struct Pages {
    base: NonNull<Page>,
    count: usize,
}

// SAFETY: nothing but the address of a mapping that is never unmapped, and of atomics.
unsafe impl Send for Pages {}
// SAFETY: as above; `page` gives out shared references to atomics only.
unsafe impl Sync for Pages {}

/// All pages for writing. Only the primary keeps this; a worker gives it up for one page.
pub struct WritablePages {
    base: NonNull<Page>,
    count: usize,
}

/// How the name of the memory begins; the pid and the start time of the process that made it follow.
const NAME: &str = "prefork-scoreboard";

/// Names the primary in every process that maps the memory, for others to read in `/proc/PID/maps`.
fn primarys_name() -> String {
    let pid = std::process::id();
    let started = super::process::start_ticks(pid).unwrap_or(0);
    format!("{NAME}:{pid}:{started}")
}

/// Reads a line of `/proc/PID/maps`: pid and start time of the primary that made the memory, if it is ours.
pub fn primary_of_mapping(line: &str) -> Option<(u32, u64)> {
    let (_, name) = line.split_once("/memfd:")?;
    let (pid, rest) = name.strip_prefix(NAME)?.strip_prefix(':')?.split_once(':')?;
    let started = rest.split(' ').next()?;
    Some((pid.parse().ok()?, started.parse().ok()?))
}

/// Makes `count` zeroed pages that every process forked from now on will share, and the memory behind them.
pub fn create(count: usize) -> io::Result<(WritablePages, Pages, OwnedFd)> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let memory = memfd_create(primarys_name().as_str(), flags)?;
    let length = count.checked_mul(PAGE).and_then(|length| i64::try_from(length).ok());
    nix::unistd::ftruncate(&memory, length.ok_or(io::ErrorKind::InvalidInput)?)?;
    let writable = map(&memory, count, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
    // Sealed after the writable mapping: nobody can shrink the memory under a reader (that would be SIGBUS
    // for the primary), and no later mapping of it can be, or become, writable.
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_FUTURE_WRITE;
    fcntl(&memory, FcntlArg::F_ADD_SEALS(seals | SealFlag::F_SEAL_SEAL))?;
    let readable = map(&memory, count, ProtFlags::PROT_READ)?;
    Ok((WritablePages { base: writable, count }, Pages { base: readable, count }, memory))
}

/// The first `count` pages of `memory`, for writing.
///
/// # Errors
/// It has fewer: what is mapped behind its end could not be reached (SIGBUS).
pub fn share(memory: &SharedArray, count: usize) -> io::Result<WritablePages> {
    if count > memory.length().div_ceil(PAGE) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let base = map(memory.map(), count, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
    Ok(WritablePages { base, count })
}

/// Pages that another program of this process made, for reading.
pub fn inherit(memory: &OwnedFd) -> io::Result<Pages> {
    let length = usize::try_from(nix::sys::stat::fstat(memory)?.st_size).unwrap_or(0);
    let seals = fcntl(memory, FcntlArg::F_GET_SEALS)?;
    // Unsealed memory could be made shorter under us, and reading behind its end is SIGBUS.
    if length == 0 || length % PAGE != 0 || seals & SealFlag::F_SEAL_SHRINK.bits() == 0 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let count = length / PAGE;
    Ok(Pages { base: map(memory, count, ProtFlags::PROT_READ)?, count })
}

fn map(memory: &OwnedFd, count: usize, protection: ProtFlags) -> io::Result<NonNull<Page>> {
    let length = count.checked_mul(PAGE).filter(|length| *length <= isize::MAX as usize);
    let length = length.and_then(NonZeroUsize::new).ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: a fresh shared mapping of memory that is at least `length` long, as each caller has made sure, at an address
    // of the kernel's choice: it overlaps nothing.
    let base = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, memory, 0) }?;
    Ok(base.cast())
}

impl Pages {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Page `index`.
    pub fn page(&self, index: usize) -> &'static Page {
        assert!(index < self.count, "page {index} of {}", self.count);
        // SAFETY: inside the mapping (checked), which is never unmapped; all words are atomics, and any
        // bit pattern is a valid one, whatever other processes write.
        unsafe { self.base.add(index).as_ref() }
    }
}

impl WritablePages {
    /// Page `index`, for the primary to write. The caller keeps no reference across a fork.
    pub fn page(&self, index: usize) -> &Page {
        assert!(index < self.count, "page {index} of {}", self.count);
        // SAFETY: inside the mapping (checked), which lives as long as `self`; the words are atomics.
        unsafe { self.base.add(index).as_ref() }
    }

    /// Zeroes page `index`.
    pub fn clear(&self, index: usize) {
        for word in self.page(index) {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// Gives up all of them for good. Nothing can be reached through `self` afterwards.
    pub fn give_up(&mut self) -> io::Result<()> {
        let count = std::mem::take(&mut self.count);
        if count > 0 {
            // SAFETY: exactly the mapping made by `create` or `share`. No reference into it is left, as those that
            // `page` gives out borrow `self`, and a count of 0 lets none be made again.
            unsafe { munmap(self.base.cast(), count * PAGE)? };
        }
        Ok(())
    }

    /// In a worker: keeps page `index` writable and gives up all others for good. Nothing can be reached
    /// through `self` afterwards.
    pub fn keep_only(&mut self, index: usize) -> io::Result<&'static Page> {
        let pages = self.keep_run(index, 1)?;
        pages.into_iter().next().ok_or(io::ErrorKind::InvalidInput.into())
    }

    /// As `keep_only`, for `run` pages in a row.
    pub fn keep_run(&mut self, index: usize, run: usize) -> io::Result<Vec<&'static Page>> {
        let fits = index.checked_add(run).is_some_and(|end| end <= self.count);
        assert!(fits, "pages {index} and {run} more of {}", self.count);
        let after = self.count - index - run;
        self.count = 0;
        // SAFETY: both ranges lie inside the mapping made by `create` or `share`. No reference into them is left, as
        // those that `page` gives out borrow `self`, and a count of 0 lets none be made again.
        unsafe {
            if index > 0 {
                munmap(self.base.cast(), index * PAGE)?;
            }
            if after > 0 {
                munmap(self.base.add(index + run).cast(), after * PAGE)?;
            }
            Ok((index..index + run).map(|at| self.base.add(at).as_ref()).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_pages_than_there_can_be_are_refused() {
        for count in [0, usize::MAX / PAGE + 2, usize::MAX] {
            assert!(create(count).is_err(), "{count}");
        }
    }

    #[test]
    fn whoever_maps_the_memory_shows_who_made_it() {
        let (_writable, _readable, _memory) = create(1).expect("create");
        let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
        let pid = std::process::id();
        let started = super::super::process::start_ticks(pid).expect("lives");
        assert_eq!(maps.lines().find_map(primary_of_mapping), Some((pid, started)));
        assert_eq!(primary_of_mapping("7f0 r--p /memfd:prefork-scoreboard (deleted)"), None);
    }

    #[test]
    fn what_one_mapping_writes_the_other_reads() {
        let (mut writable, readable, memory) = create(3).expect("create");
        writable.page(1)[7].store(42, Ordering::Relaxed);
        assert_eq!(readable.page(1)[7].load(Ordering::Relaxed), 42);
        let own = writable.keep_only(1).expect("keep");
        own[8].store(43, Ordering::Relaxed);
        assert_eq!(readable.page(1)[8].load(Ordering::Relaxed), 43);
        assert_eq!(readable.page(0)[8].load(Ordering::Relaxed), 0);
        let inherited = inherit(&memory).expect("inherit");
        assert_eq!(inherited.count(), 3);
        assert_eq!(inherited.page(1)[8].load(Ordering::Relaxed), 43);
    }
}
