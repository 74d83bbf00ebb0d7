//! Memory for private keys: never swapped, in no core dump, overwritten when it is freed.

use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mlock, mmap_anonymous, munmap};

use super::libc;

/// Bytes in pages of their own that the kernel neither swaps out nor writes into core dumps.
///
/// Child processes see zeros in their place, apart from those forked while [`LockedBytes::keep_over_fork`] is on. A child's copy is
/// not locked.
pub struct LockedBytes {
    base: NonNull<libc::c_void>,
    mapped: NonZeroUsize,
    length: usize,
    lock_error: Option<io::Error>,
}

// SAFETY: owns its mapping, which no other value refers to; shared references only read it.
unsafe impl Send for LockedBytes {}
// SAFETY: as above.
unsafe impl Sync for LockedBytes {}

impl LockedBytes {
    /// Creates `length` zero bytes. A refused lock is no error: see [`LockedBytes::lock_error`].
    ///
    /// # Errors
    /// The kernel has no memory left, or is older than 4.14.
    pub fn zeroed(length: usize) -> io::Result<LockedBytes> {
        let mapped = length.max(1).checked_next_multiple_of(crate::system::page_size() as usize);
        let mapped = mapped.and_then(NonZeroUsize::new).ok_or(io::ErrorKind::InvalidInput)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new private mapping at an address that the kernel chooses, so it overlaps nothing.
        let base = unsafe { mmap_anonymous(None, mapped, protection, MapFlags::MAP_PRIVATE) }?;
        let mut bytes = LockedBytes { base, mapped, length, lock_error: None };
        bytes.advise(MmapAdvise::MADV_DONTDUMP)?;
        bytes.advise(MmapAdvise::MADV_WIPEONFORK)?;
        // SAFETY: exactly the mapping of this value.
        bytes.lock_error = unsafe { mlock(base, mapped.get()) }.err().map(io::Error::from);
        Ok(bytes)
    }

    /// Returns why the kernel has refused to lock the pages, which it may swap out then: usually RLIMIT_MEMLOCK.
    pub fn lock_error(&self) -> Option<&io::Error> {
        self.lock_error.as_ref()
    }

    /// Returns the bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: the mapping is at least `length` long, readable, initialised by the kernel, and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().cast(), self.length) }
    }

    /// Returns the bytes for writing.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`; the mapping is writable, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr().cast(), self.length) }
    }

    /// Removes the bytes from `length` on. They are overwritten with zeros.
    pub fn truncate(&mut self, length: usize) {
        let length = length.min(self.length);
        overwrite(&mut self.as_mut_slice()[length..]);
        self.length = length;
    }

    /// Reads until the end of `source`, with no copy elsewhere, and truncates to what was read.
    ///
    /// # Errors
    /// Reading fails, or `FileTooLarge`: there are more bytes than these.
    pub fn fill_from(&mut self, source: &mut impl Read) -> io::Result<()> {
        let mut filled = 0;
        loop {
            let rest = &mut self.as_mut_slice()[filled..];
            let is_full = rest.is_empty();
            let read = if is_full { source.read(&mut [0]) } else { source.read(rest) };
            match read {
                Ok(0) => break,
                Ok(_) if is_full => return Err(io::ErrorKind::FileTooLarge.into()),
                Ok(count) => filled += count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.truncate(filled);
        Ok(())
    }

    /// Sets whether processes that are forked from now on get a copy of the bytes, instead of zeros. Default: false.
    pub fn keep_over_fork(&self, is_kept: bool) -> io::Result<()> {
        self.advise(match is_kept {
            true => MmapAdvise::MADV_KEEPONFORK,
            false => MmapAdvise::MADV_WIPEONFORK,
        })
    }

    fn advise(&self, advice: MmapAdvise) -> io::Result<()> {
        // SAFETY: exactly the mapping of this value; none of the advices used changes bytes that this process sees.
        Ok(unsafe { madvise(self.base, self.mapped.get(), advice) }?)
    }
}

impl Drop for LockedBytes {
    fn drop(&mut self) {
        overwrite(self.as_mut_slice());
        // SAFETY: the range is exactly the mapping of this value, and no reference to it is left. munmap also unlocks the pages.
        let _ = unsafe { munmap(self.base, self.mapped.get()) };
    }
}

/// Writes zeros in a way that the compiler does not remove.
fn overwrite(bytes: &mut [u8]) {
    // SAFETY: the pointer and the length are those of a slice that is borrowed exclusively.
    unsafe { libc::explicit_bzero(bytes.as_mut_ptr().cast(), bytes.len()) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::child::{exit_without_cleanup, reap_child};

    fn of(text: &[u8]) -> LockedBytes {
        let mut bytes = LockedBytes::zeroed(text.len()).expect("memory");
        bytes.fill_from(&mut &text[..]).expect("they fit");
        bytes
    }

    /// Returns the flags of the kernel for the mapping, as `/proc/self/smaps` shows them.
    fn vm_flags(bytes: &LockedBytes) -> String {
        let smaps = std::fs::read_to_string("/proc/self/smaps").expect("smaps");
        let start = format!("{:x}-", bytes.base.as_ptr() as usize);
        let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&start));
        let flags = lines.find_map(|line| line.strip_prefix("VmFlags: ")).expect("flags");
        format!(" {flags} ")
    }

    #[test]
    fn the_pages_are_locked_and_left_out_of_dumps_and_forks() {
        let bytes = of(b"s3cret");
        let flags = vm_flags(&bytes);
        assert!(flags.contains(" dd ") && flags.contains(" wf "), "{flags}");
        assert_eq!(flags.contains(" lo "), bytes.lock_error().is_none(), "{flags}");
        assert_eq!(bytes.as_slice(), b"s3cret");
    }

    #[test]
    fn what_does_not_fit_is_an_error_and_what_is_cut_is_gone() {
        let mut bytes = LockedBytes::zeroed(4).expect("memory");
        let error = bytes.fill_from(&mut &b"12345"[..]).expect_err("too long");
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        let mut bytes = of(b"1234");
        bytes.truncate(1);
        assert_eq!(bytes.as_slice(), b"1");
    }

    #[test]
    fn a_forked_process_gets_the_bytes_only_if_they_are_kept() {
        let bytes = of(b"s3cret");
        for (is_kept, seen) in [(false, &[0; 6]), (true, b"s3cret"), (false, &[0; 6])] {
            bytes.keep_over_fork(is_kept).expect("advice");
            let is_same = match fork_in_test() {
                None => exit_without_cleanup(u8::from(bytes.as_slice() != seen)),
                Some(pid) => loop {
                    if let Some(status) = reap_child(pid).expect("child") {
                        break status.success();
                    }
                    std::thread::yield_now();
                },
            };
            assert!(is_same, "kept: {is_kept}");
        }
    }

    /// Forks although the test harness has threads: the child calls nothing that takes a lock.
    fn fork_in_test() -> Option<u32> {
        // SAFETY: the child reads memory and calls _exit, both of which are async-signal-safe.
        match unsafe { nix::unistd::fork() }.expect("fork") {
            nix::unistd::ForkResult::Child => None,
            nix::unistd::ForkResult::Parent { child } => Some(child.as_raw() as u32),
        }
    }
}
