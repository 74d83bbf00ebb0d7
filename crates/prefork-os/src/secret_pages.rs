//! Shared pages with secrets: one process writes them, its forks read them. They are never swapped out and in no core dump.
//!
//! The pages are in a memfd, so that the next program of the same process can take them over. Unlike the pages of
//! [`shared_memory`](super::shared_memory), that program can write them, too. Read-only mappings are made through a
//! descriptor that cannot write, so `mprotect` cannot make them writable.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::ptr::NonNull;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MmapAdvise, ProtFlags, madvise, mlock};
use nix::sys::stat::{Mode, fchmod, fstat};

use super::libc;
use super::shared_memory::{ReadOnlyPages, SHARED_PAGE_BYTES, WritablePages, map_pages};

/// The pages in the process that writes them. A fork calls [`SecretPages::into_reader`] or [`SecretPages::unmap`].
pub struct SecretPages {
    memory: OwnedFd,
    writable: WritablePages,
    /// Handed out by `into_reader` only, so that `unmap` leaves no reference.
    readable: ReadOnlyPages,
    lock_error: Option<io::Error>,
}

/// Creates `count` zeroed pages. `name` is theirs in `/proc/PID/maps`.
///
/// # Errors
/// `count` is 0 or too large, the kernel has no memory or descriptors left, or `/proc` is not mounted.
pub fn create_secret_pages(name: &str, count: usize) -> io::Result<SecretPages> {
    let memory = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let length = count.checked_mul(SHARED_PAGE_BYTES).and_then(|length| i64::try_from(length).ok());
    nix::unistd::ftruncate(&memory, length.ok_or(io::ErrorKind::InvalidInput)?)?;
    // Otherwise another process could shrink the memory, and reading beyond its end raises SIGBUS.
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&memory, FcntlArg::F_ADD_SEALS(seals))?;
    // The kernel creates the memory file with mode 0777, and any process of this user could open it through /proc/PID/fd.
    fchmod(&memory, Mode::S_IRUSR)?;
    map_secret_pages(memory)
}

/// Maps pages that the previous program of this process created with [`create_secret_pages`].
///
/// # Errors
/// `InvalidData` if the size of `memory` is 0 or no multiple of the page size, or if `memory` is not sealed against shrinking.
pub fn map_secret_pages(memory: OwnedFd) -> io::Result<SecretPages> {
    let length = usize::try_from(fstat(&memory)?.st_size).unwrap_or(0);
    let seals = fcntl(&memory, FcntlArg::F_GET_SEALS)?;
    let is_sealed = seals & SealFlag::F_SEAL_SHRINK.bits() != 0;
    if length == 0 || length % SHARED_PAGE_BYTES != 0 || !is_sealed {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let count = length / SHARED_PAGE_BYTES;
    let reader = OwnedFd::from(reopen_read_only(&memory)?);
    let readable = map_pages(&reader, count, ProtFlags::PROT_READ)?;
    let writable = map_pages(&memory, count, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
    let lock_errors = [readable, writable].map(|base| protect_from_swap_and_dumps(base, length));
    let lock_error = lock_errors.into_iter().find_map(Result::err);
    let readable = ReadOnlyPages::new(readable, count);
    Ok(SecretPages { memory, writable: WritablePages::new(writable, count), readable, lock_error })
}

impl SecretPages {
    /// Returns the pages for writing.
    pub fn writable(&self) -> &WritablePages {
        &self.writable
    }

    /// Returns the descriptor of the memory file, which an upgrade passes to the new image. A process that has it can write the pages.
    pub fn memory(&self) -> &OwnedFd {
        &self.memory
    }

    /// Returns why the pages may be swapped out, if the kernel did not lock them. Usual cause: the limit `RLIMIT_MEMLOCK`.
    pub fn lock_error(&self) -> Option<&io::Error> {
        self.lock_error.as_ref()
    }

    /// Gives up the right to write: in a fork that reads the pages.
    ///
    /// # Errors
    /// The kernel refuses to unmap the pages.
    pub fn into_reader(mut self) -> io::Result<ReadOnlyPages> {
        self.writable.unmap_all()?;
        Ok(self.readable)
    }

    /// Gives up the pages: in a fork that is not to have them.
    ///
    /// # Errors
    /// The kernel refuses to unmap the pages.
    pub fn unmap(mut self) -> io::Result<()> {
        self.writable.unmap_all()?;
        self.readable.unmap_all()
    }
}

/// Opens the memory again, without the right to write: a mapping inherits its rights from the descriptor.
fn reopen_read_only(memory: &OwnedFd) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", memory.as_fd().as_raw_fd());
    OpenOptions::new().read(true).custom_flags(libc::O_CLOEXEC).open(path)
}

/// Leaves a mapping out of core dumps and locks it in memory. Forks inherit the first only; the pages stay locked as long
/// as one process has them locked.
fn protect_from_swap_and_dumps<T>(base: NonNull<T>, length: usize) -> io::Result<()> {
    // SAFETY: the range is one whole mapping, which was created above, and the advice does not change its content.
    unsafe { madvise(base.cast(), length, MmapAdvise::MADV_DONTDUMP) }?;
    // SAFETY: as above; locking does not change the content either.
    Ok(unsafe { mlock(base.cast(), length) }?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::memfd::MFdFlags;
    use std::sync::atomic::Ordering::Relaxed;

    /// Returns the lines of `/proc/self/smaps` about the mappings of memory `name`.
    fn smaps_of(name: &str) -> Vec<(String, String)> {
        let smaps = std::fs::read_to_string("/proc/self/smaps").expect("smaps");
        let mut found = Vec::new();
        let mut header: Option<String> = None;
        for line in smaps.lines() {
            if line.contains("/memfd:") || line.split(' ').next().is_some_and(|s| s.contains('-')) {
                header = line.contains(&format!("/memfd:{name} ")).then(|| line.to_string());
            }
            if let (Some(header), Some(flags)) = (&header, line.strip_prefix("VmFlags:")) {
                found.push((header.clone(), format!("{flags} ")));
            }
        }
        found
    }

    #[test]
    fn writes_are_visible_to_readers_and_to_the_next_program() {
        let pages = create_secret_pages("test-secret-a", 2).expect("pages");
        pages.writable().page(1)[3].store(7, Relaxed);
        let map_again =
            || map_secret_pages(pages.memory().try_clone().expect("fd")).expect("mapped");
        let reader = map_again().into_reader().expect("a reader");
        assert_eq!((reader.count(), reader.page(1)[3].load(Relaxed)), (2, 7));
        map_again().writable().page(1)[3].store(8, Relaxed);
        assert_eq!(reader.page(1)[3].load(Relaxed), 8);
    }

    #[test]
    fn mappings_are_left_out_of_dumps_and_readers_cannot_be_made_writable() {
        let pages = create_secret_pages("test-secret-b", 1).expect("pages");
        let maps = smaps_of("test-secret-b");
        assert_eq!(maps.len(), 2, "{maps:?}");
        for (header, flags) in &maps {
            assert!(flags.contains(" dd "), "not left out of dumps: {header} {flags}");
            assert_eq!(flags.contains(" lo "), pages.lock_error.is_none(), "{header} {flags}");
            let is_read_only = header.contains(" r--s ");
            // `mw`: may become writable.
            assert_eq!(flags.contains(" mw "), !is_read_only, "{header} {flags}");
        }
        assert_eq!(maps.iter().filter(|map| map.0.contains(" r--s ")).count(), 1);
        pages.into_reader().expect("a reader");
        let maps = smaps_of("test-secret-b");
        assert!(maps.len() == 1 && maps[0].0.contains(" r--s "), "{maps:?}");
    }

    #[test]
    fn unmapped_pages_are_gone() {
        let pages = create_secret_pages("test-secret-d", 2).expect("pages");
        assert_eq!(smaps_of("test-secret-d").len(), 2);
        pages.unmap().expect("unmapped");
        assert!(smaps_of("test-secret-d").is_empty());
    }

    #[test]
    fn the_size_is_fixed_and_other_memory_is_refused() {
        let pages = create_secret_pages("test-secret-c", 1).expect("pages");
        assert!(nix::unistd::ftruncate(pages.memory(), 0).is_err());
        assert!(nix::unistd::ftruncate(pages.memory(), 8192).is_err());
        assert!(create_secret_pages("test-secret-c", 0).is_err());
        assert!(create_secret_pages("test-secret-c", usize::MAX).is_err());
        let unsealed = memfd_create("test", MFdFlags::MFD_CLOEXEC).expect("memory");
        nix::unistd::ftruncate(&unsealed, 4096).expect("resized");
        let error = map_secret_pages(unsealed).err().expect("it could shrink");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let file = OwnedFd::from(File::open("/dev/null").expect("file"));
        assert!(map_secret_pages(file).is_err());
    }
}
