//! Opens a regular file for reading without ever waiting for anything else: a FIFO, a socket or a device is recognized
//! before it is opened, and reading tells what is in the page cache from what has to come from the disk.

use std::io::IoSliceMut;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

use rustix::fs::{FileType, OFlags, Stat};
use rustix::io::{Errno, ReadWriteFlags};

use super::root_dir::{RootDir, Wait};

/// `f_type` of tmpfs, which has no disk behind it.
const TMPFS: rustix::fs::FsWord = 0x0102_1994;

/// How many files may be open in one process for responses and in the cache.
#[derive(Debug)]
pub(super) struct OpenFileLimit {
    open: AtomicUsize,
    max: usize,
}

impl OpenFileLimit {
    /// Half of the descriptors that this process may have; connections need the other half.
    pub(super) fn of_process() -> Arc<OpenFileLimit> {
        // One for all threads that have a service of their own.
        static LIMIT: LazyLock<Arc<OpenFileLimit>> = LazyLock::new(|| {
            use nix::sys::resource::{Resource, getrlimit};
            let soft = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
            let max = usize::try_from(soft / 2).unwrap_or(usize::MAX);
            Arc::new(OpenFileLimit { open: AtomicUsize::new(0), max })
        });
        Arc::clone(&LIMIT)
    }
}

/// What a path stands for.
#[derive(Debug)]
pub(super) enum Found {
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
    /// Seconds since 1970 of the last change of its content, and nanoseconds.
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
pub(super) fn open(
    root: &RootDir,
    path: &[u8],
    limit: &Arc<OpenFileLimit>,
    wait: Wait,
) -> Result<Found, Errno> {
    // Without opening it: to open a FIFO wakes who waits to write to it, and to open a device may do anything.
    let stat = rustix::fs::fstat(root.open_below(path, OFlags::PATH, wait)?)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {}
        FileType::Directory => return Ok(Found::Directory),
        _ => return Ok(Found::Other),
    }
    if limit.open.fetch_add(1, Ordering::Relaxed) >= limit.max {
        limit.open.fetch_sub(1, Ordering::Relaxed);
        return Err(Errno::MFILE);
    }
    // Counted from here on, as dropping it counts.
    let reserved = Reserved(Some(Arc::clone(limit)));
    // It may have been replaced by something else meanwhile, which must not block either.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = root.open_below(path, flags, wait)?;
    let stat = rustix::fs::fstat(&fd)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(Found::File(OpenFile::new(fd, &stat, reserved.into_limit()))),
        FileType::Directory => Ok(Found::Directory),
        _ => Ok(Found::Other),
    }
}

/// One place of the limit, given back unless a file takes it over.
struct Reserved(Option<Arc<OpenFileLimit>>);

impl Reserved {
    fn into_limit(mut self) -> Arc<OpenFileLimit> {
        self.0.take().unwrap_or_else(OpenFileLimit::of_process)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Some(limit) = &self.0 {
            limit.open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl OpenFile {
    fn new(fd: OwnedFd, stat: &Stat, limit: Arc<OpenFileLimit>) -> OpenFile {
        OpenFile {
            length: u64::try_from(stat.st_size).unwrap_or(0),
            modified: (stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or(0)),
            is_in_memory: rustix::fs::fstatfs(&fd).is_ok_and(|found| found.f_type == TMPFS),
            fd,
            limit,
        }
    }

    /// Reads at `offset`, once; 0 is the end. With [`Wait::Never`] it reads what is in the page cache, and gives
    /// [`Errno::AGAIN`] where nothing is or the file system cannot tell.
    pub(super) fn read_at(
        &self,
        buffer: &mut [u8],
        offset: u64,
        wait: Wait,
    ) -> Result<usize, Errno> {
        loop {
            let outcome = if wait == Wait::Allowed || self.is_in_memory {
                rustix::io::pread(&self.fd, &mut *buffer, offset)
            } else {
                let mut slices = [IoSliceMut::new(buffer)];
                rustix::io::preadv2(&self.fd, &mut slices, offset, ReadWriteFlags::NOWAIT)
            };
            match outcome {
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) if wait == Wait::Never => {
                    return Err(Errno::AGAIN);
                }
                outcome => return outcome,
            }
        }
    }

    /// Reads all of it, as far as it is there: less than `length` if the file has become shorter.
    pub(super) fn read_all(&self, wait: Wait) -> Result<Vec<u8>, Errno> {
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

    /// Tells the kernel that it will be read from its beginning to its end.
    pub(super) fn advise_sequential(&self) {
        // A hint: if it is not taken, reading is slower.
        let _ = rustix::fs::fadvise(&self.fd, 0, None, rustix::fs::Advice::Sequential);
    }
}
