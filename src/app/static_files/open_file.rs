//! Opens regular files and reads them without blocking.
//!
//! FIFOs, sockets and devices are recognized before they are opened; a read can be limited to the page cache.

use std::io::IoSliceMut;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

use rustix::fs::{FileType, OFlags, Stat};
use rustix::io::{Errno, ReadWriteFlags};

use super::root_dir::{DiskWait, RootDir};

/// `f_type` of tmpfs, which has no disk behind it.
const TMPFS: rustix::fs::FsWord = 0x0102_1994;

/// Limits the number of files that a process keeps open for responses and in the cache.
#[derive(Debug)]
pub(super) struct OpenFileLimit {
    open: AtomicUsize,
    max: usize,
}

impl OpenFileLimit {
    /// Half of the descriptors of this process; connections need the other half.
    pub(super) fn for_process() -> Arc<OpenFileLimit> {
        // One limit for all threads.
        static LIMIT: LazyLock<Arc<OpenFileLimit>> = LazyLock::new(|| {
            use nix::sys::resource::{Resource, getrlimit};
            let soft = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
            let max = usize::try_from(soft / 2).unwrap_or(usize::MAX);
            Arc::new(OpenFileLimit { open: AtomicUsize::new(0), max })
        });
        Arc::clone(&LIMIT)
    }
}

/// Result of opening a path.
#[derive(Debug)]
pub(super) enum OpenedPath {
    File(OpenFile),
    Directory,
    /// A FIFO, a socket or a device.
    Other,
}

/// A regular file, open for reading.
#[derive(Debug)]
pub(super) struct OpenFile {
    fd: OwnedFd,
    /// Length in bytes when it was opened.
    pub(super) length: u64,
    /// Last change of the content: seconds since 1970, and nanoseconds.
    pub(super) modified: (i64, i64),
    is_in_memory: bool,
    limit: Arc<OpenFileLimit>,
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        self.limit.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Opens `path`, relative to `root`. [`Errno::MFILE`] if too many files are open.
pub(super) fn open_regular_file(
    root: &RootDir,
    path: &[u8],
    limit: &Arc<OpenFileLimit>,
    wait: DiskWait,
) -> Result<OpenedPath, Errno> {
    // Without opening it: to open a FIFO wakes who waits to write to it, and to open a device may do anything.
    let stat = rustix::fs::fstat(root.open_below(path, OFlags::PATH, wait)?)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {}
        FileType::Directory => return Ok(OpenedPath::Directory),
        _ => return Ok(OpenedPath::Other),
    }
    if limit.open.fetch_add(1, Ordering::Relaxed) >= limit.max {
        limit.open.fetch_sub(1, Ordering::Relaxed);
        return Err(Errno::MFILE);
    }
    // Counted from here on, as dropping it counts.
    let reserved = OpenFileReservation(Some(Arc::clone(limit)));
    // The file may have been replaced by a FIFO meanwhile, which must not block either.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = root.open_below(path, flags, wait)?;
    let stat = rustix::fs::fstat(&fd)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {
            Ok(OpenedPath::File(OpenFile::new(fd, &stat, reserved.into_limit())))
        }
        FileType::Directory => Ok(OpenedPath::Directory),
        _ => Ok(OpenedPath::Other),
    }
}

/// A reserved slot of the open file limit; released on drop unless a file takes it over.
struct OpenFileReservation(Option<Arc<OpenFileLimit>>);

impl OpenFileReservation {
    fn into_limit(mut self) -> Arc<OpenFileLimit> {
        self.0.take().unwrap_or_else(OpenFileLimit::for_process)
    }
}

impl Drop for OpenFileReservation {
    fn drop(&mut self) {
        if let Some(limit) = &self.0 {
            limit.open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Returns the last change of the content: seconds since 1970, and nanoseconds.
fn modification_time(stat: &Stat) -> (i64, i64) {
    (stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or(0))
}

impl OpenFile {
    fn new(fd: OwnedFd, stat: &Stat, limit: Arc<OpenFileLimit>) -> OpenFile {
        OpenFile {
            length: u64::try_from(stat.st_size).unwrap_or(0),
            modified: modification_time(stat),
            is_in_memory: rustix::fs::fstatfs(&fd).is_ok_and(|found| found.f_type == TMPFS),
            fd,
            limit,
        }
    }

    /// Returns whether the file has not changed since it was opened. A path that leads elsewhere now does not count.
    pub(super) fn is_unchanged(&self) -> bool {
        rustix::fs::fstat(&self.fd).is_ok_and(|stat| {
            u64::try_from(stat.st_size) == Ok(self.length)
                && modification_time(&stat) == self.modified
        })
    }

    /// Reads once at `offset`; 0 means the end. With [`DiskWait::Never`] it reads what is in the page cache, and gives
    /// [`Errno::AGAIN`] where nothing is, where the file system cannot tell, and at the end.
    pub(super) fn read_at(
        &self,
        buffer: &mut [u8],
        offset: u64,
        wait: DiskWait,
    ) -> Result<usize, Errno> {
        loop {
            let outcome = if wait == DiskWait::Allowed || self.is_in_memory {
                rustix::io::pread(&self.fd, &mut *buffer, offset)
            } else {
                let mut slices = [IoSliceMut::new(buffer)];
                rustix::io::preadv2(&self.fd, &mut slices, offset, ReadWriteFlags::NOWAIT)
            };
            match outcome {
                Err(Errno::INTR) => {}
                // An end or an error counts only where the read may wait: Linux 5.9 and 5.10 give 0 for what is not in
                // the page cache, and memory may be short for those alone that do not wait for it.
                Ok(0) | Err(_) if wait == DiskWait::Never && !buffer.is_empty() => {
                    return Err(Errno::AGAIN);
                }
                outcome => return outcome,
            }
        }
    }

    /// Reads all of it, as far as it is there: less than `length` if the file has become shorter.
    pub(super) fn read_all(&self, wait: DiskWait) -> Result<Vec<u8>, Errno> {
        let mut content = vec![0; usize::try_from(self.length).unwrap_or(usize::MAX)];
        let mut filled = 0;
        while filled < content.len() {
            match self.read_at(&mut content[filled..], filled as u64, wait)? {
                0 => break,
                n => filled += n,
            }
        }
        content.truncate(filled);
        Ok(content)
    }

    /// Tells the kernel that the file will be read sequentially.
    pub(super) fn advise_sequential(&self) {
        // A hint: if it is not taken, reading is slower.
        let _ = rustix::fs::fadvise(&self.fd, 0, None, rustix::fs::Advice::Sequential);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_blocking_read_reports_the_end_of_file() {
        let dir = tempfile::tempdir().expect("directory");
        std::fs::write(dir.path().join("file"), "0123456789").expect("write");
        let root = RootDir::open(dir.path(), false).expect("root");
        let limit = OpenFileLimit::for_process();
        let found = open_regular_file(&root, b"file", &limit, DiskWait::Allowed).expect("open");
        let OpenedPath::File(file) = found else { panic!("{found:?}") };
        let mut buffer = [0; 16];
        assert_eq!(file.read_at(&mut buffer, 4, DiskWait::Allowed), Ok(6));
        assert_eq!(file.read_at(&mut buffer, 10, DiskWait::Allowed), Ok(0));
        assert_eq!(file.read_at(&mut buffer, 10, DiskWait::Never), Err(Errno::AGAIN));
    }

    #[test]
    fn changed_length_or_modification_time_is_detected() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("file");
        std::fs::write(&path, "0123456789").expect("write");
        let root = RootDir::open(dir.path(), false).expect("root");
        let limit = OpenFileLimit::for_process();
        let found = open_regular_file(&root, b"file", &limit, DiskWait::Allowed).expect("open");
        let OpenedPath::File(file) = found else { panic!("{found:?}") };
        assert!(file.is_unchanged());
        std::fs::OpenOptions::new().write(true).open(&path).expect("open").set_len(9).expect("cut");
        assert!(!file.is_unchanged());
    }
}
