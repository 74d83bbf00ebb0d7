//! Segments of memory that one process writes and others read: large values on their way between processes.
//!
//! A segment is a memfd that its owner has mapped before it was sealed with `F_SEAL_FUTURE_WRITE`, so only this mapping
//! can change it. Receivers get a read-only descriptor whose open file description holds a read lock. The kernel
//! releases the lock when the last descriptor and the last mapping of that description are gone, wherever they were: in a
//! socket, in another process, or in one that was killed. So the owner can tell when nobody else uses the segment, and use
//! its pages again: new ones would cost more than the copy.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::stat::{Mode, fstat};

use super::libc;

/// The name of segments in `/proc/PID/fd` and `/proc/PID/maps`.
const MEMFD_NAME: &str = "prefork-segment";

/// The seals of a segment that a receiver requires: it cannot shrink, which would raise SIGBUS in readers, and only a
/// mapping from before the seal can change it.
const REQUIRED_SEALS: SealFlag = SealFlag::F_SEAL_SHRINK.union(SealFlag::F_SEAL_FUTURE_WRITE);

/// `MADV_POPULATE_WRITE` of Linux 5.14.
const MADV_POPULATE_WRITE: libc::c_int = 23;

/// The smallest allocation that is compared with the available memory. Reading that takes less time than filling 16 MiB.
const MIN_CHECKED_ALLOCATION: libc::off_t = 16 << 20;

/// How often this process and its ancestors have forked. A fork shares all mappings, so older segments become read-only.
static FORK_COUNT: AtomicU64 = AtomicU64::new(0);

/// Makes the segments of this process read-only for itself and for the child that it is about to fork.
pub(crate) fn record_fork() {
    FORK_COUNT.fetch_add(1, Ordering::Relaxed);
}

/// A segment in the process that created it, the only one that can write it.
#[derive(Debug)]
pub struct OwnedSegment {
    file: File,
    base: NonNull<u8>,
    capacity: usize,
    /// How many bytes from the start have pages. Touching others through the mapping could raise SIGBUS for lack of memory.
    allocated: usize,
    /// How many bytes from the start are mapped to their pages already.
    populated: usize,
    /// The value of `FORK_COUNT` at its creation.
    fork_count: u64,
    /// Whether a reader was created without a lock, so that it is unknown whether it still exists.
    has_unlocked_reader: AtomicBool,
}

// SAFETY: owns a mapping of plain bytes, which is unmapped only when dropped.
unsafe impl Send for OwnedSegment {}
// SAFETY: as above; through a shared reference the bytes can only be read.
unsafe impl Sync for OwnedSegment {}

impl OwnedSegment {
    /// Creates a segment of `capacity` bytes that begins with `content`. Its other bytes are zero and use no memory.
    ///
    /// # Errors
    /// `content` does not fit, or no memory or descriptor is left.
    pub fn with_content(capacity: usize, content: &[u8]) -> io::Result<OwnedSegment> {
        OwnedSegment::create(capacity, content.len(), |file| {
            // Cheaper than through the mapping: the kernel does not zero pages that it overwrites as a whole.
            file.write_all_at(content, 0)
        })
    }

    /// Creates a segment of `capacity` bytes, all zero. The first `length` bytes have memory.
    ///
    /// # Errors
    /// `length` exceeds `capacity`, or no memory or descriptor is left.
    pub fn zeroed(capacity: usize, length: usize) -> io::Result<OwnedSegment> {
        let mut segment = OwnedSegment::create(capacity, length, |file| allocate(file, 0, length))?;
        segment.populate(length);
        Ok(segment)
    }

    fn create(
        capacity: usize,
        allocated: usize,
        fill: impl FnOnce(&File) -> io::Result<()>,
    ) -> io::Result<OwnedSegment> {
        if allocated > capacity {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let size = i64::try_from(capacity).map_err(|_| io::ErrorKind::InvalidInput)?;
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(memfd_create(MEMFD_NAME, flags)?);
        nix::unistd::ftruncate(&file, size)?;
        fill(&file)?;
        let base = map(&file, capacity, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
        let has_unlocked_reader = AtomicBool::new(false);
        let fork_count = FORK_COUNT.load(Ordering::Relaxed);
        let segment = OwnedSegment {
            file,
            base,
            capacity,
            allocated,
            populated: 0,
            fork_count,
            has_unlocked_reader,
        };
        // After the mapping, which stays writable: no later one can be.
        let seals = REQUIRED_SEALS | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&segment.file, FcntlArg::F_ADD_SEALS(seals))?;
        Ok(segment)
    }

    /// Returns the size in bytes.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Returns the bytes that have memory: those that were written or requested.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is at least `allocated` long, initialized by the kernel, and lives as long as `self`. Only
        // `bytes_mut` and `allocated_bytes_mut` give write access, which excludes this reference. No other process can
        // write: the seal came before any reader, and after a fork neither process does.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.allocated) }
    }

    /// Returns whether this process may write the segment: it has not forked since it created the segment.
    pub fn is_writable(&self) -> bool {
        self.fork_count == FORK_COUNT.load(Ordering::Relaxed)
    }

    /// Returns the first `length` bytes to write, after allocating memory for them.
    ///
    /// Call it only if [`OwnedSegment::has_readers`] returns `false`: readers would see the bytes change.
    ///
    /// # Errors
    /// `length` exceeds the capacity, no memory is left, or the process has forked since it created the segment.
    pub fn bytes_mut(&mut self, length: usize) -> io::Result<&mut [u8]> {
        if length > self.capacity {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if length > self.allocated {
            allocate(&self.file, self.allocated, length - self.allocated)?;
            self.allocated = length;
        }
        self.populate(length);
        self.allocated_bytes_mut(length).ok_or(io::ErrorKind::PermissionDenied.into())
    }

    /// Returns the first `length` bytes to write, of those that have memory. `None` if the process has forked since it
    /// created the segment, because the other process reads it too.
    pub fn allocated_bytes_mut(&mut self, length: usize) -> Option<&mut [u8]> {
        let length = length.min(self.allocated);
        // SAFETY: as for `bytes`; the exclusive borrow of `self` excludes any other reference in this process, and no other
        // process has this mapping.
        self.is_writable()
            .then(|| unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), length) })
    }

    /// Maps the pages of the first `length` bytes with one call, instead of one page fault for each.
    fn populate(&mut self, length: usize) {
        if length <= self.populated {
            return;
        }
        self.populated = length;
        // SAFETY: the range lies inside the mapping, and the call changes no bytes. It fails before Linux 5.14, where the
        // pages are mapped when they are touched.
        unsafe { libc::madvise(self.base.as_ptr().cast(), length, MADV_POPULATE_WRITE) };
    }

    /// Returns a read-only descriptor for other processes. [`OwnedSegment::has_readers`] returns `true` until it, its
    /// duplicates and the mappings made from it are gone everywhere.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn create_reader(&self) -> io::Result<OwnedFd> {
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let reader =
            nix::fcntl::open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty());
        match reader {
            Ok(reader) => {
                let lock = lock_of_segment(libc::F_RDLCK);
                if fcntl(&reader, FcntlArg::F_OFD_SETLK(&lock)).is_err() {
                    self.has_unlocked_reader.store(true, Ordering::Relaxed);
                }
                Ok(reader)
            }
            Err(e @ (Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM)) => Err(e.into()),
            // Without /proc, a duplicate serves, but the segment cannot be used again.
            Err(_) => {
                self.has_unlocked_reader.store(true, Ordering::Relaxed);
                Ok(self.file.as_fd().try_clone_to_owned()?)
            }
        }
    }

    /// Returns whether another process may still read the segment, or a reader is on its way.
    pub fn has_readers(&self) -> bool {
        let mut lock = lock_of_segment(libc::F_WRLCK);
        self.has_unlocked_reader.load(Ordering::Relaxed)
            || fcntl(&self.file, FcntlArg::F_OFD_GETLK(&mut lock)).is_err()
            || lock.l_type != libc::F_UNLCK as libc::c_short
    }
}

impl Drop for OwnedSegment {
    fn drop(&mut self) {
        unmap(self.base, self.capacity);
    }
}

/// A segment of another process, checked: it holds at least [`ReceivedSegment::length`] bytes and cannot shrink.
#[derive(Debug)]
pub struct ReceivedSegment {
    file: File,
    length: usize,
}

impl ReceivedSegment {
    /// Checks a descriptor that should be a segment of at least `length` bytes.
    ///
    /// # Errors
    /// `InvalidData` if it is something else, is shorter or has not the seals of a segment.
    pub fn check(fd: OwnedFd, length: usize) -> io::Result<ReceivedSegment> {
        check_segment(&fd, length)?;
        Ok(ReceivedSegment { file: fd.into(), length })
    }

    /// Returns how many bytes of the segment are used.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Copies the bytes. Safe whatever the sender does meanwhile.
    ///
    /// # Errors
    /// No memory is left, or reading fails.
    pub fn read_to_vec(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(self.length).map_err(|_| io::ErrorKind::OutOfMemory)?;
        while bytes.len() < self.length {
            let (position, room) = (bytes.len(), self.length - bytes.len());
            let spare = &mut bytes.spare_capacity_mut()[..room];
            // SAFETY: the kernel writes at most `room` bytes to the spare capacity, which is at least that long.
            let count = unsafe {
                let start = spare.as_mut_ptr().cast();
                libc::pread(self.file.as_raw_fd(), start, room, position as libc::off_t)
            };
            match usize::try_from(count) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                // SAFETY: the kernel has just written `count` bytes there.
                Ok(count) => unsafe { bytes.set_len(bytes.len() + count) },
                Err(_) => match io::Error::last_os_error() {
                    e if e.kind() == io::ErrorKind::Interrupted => {}
                    e => return Err(e),
                },
            }
        }
        Ok(bytes)
    }

    /// Reads the bytes into `target`, which is [`ReceivedSegment::length`] long. Safe whatever the sender does meanwhile.
    ///
    /// # Errors
    /// `target` is longer than the segment, or reading fails.
    pub fn read_into(&self, target: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(target, 0)
    }

    /// Maps the bytes read-only, without a copy.
    ///
    /// The sender must be trusted not to write while [`OwnedSegment::has_readers`] returns `true`: a slice of memory that
    /// changes is undefined behaviour here. Copy what comes from others with [`ReceivedSegment::read_to_vec`].
    ///
    /// # Errors
    /// No address space or no mapping is left.
    pub fn map_trusted(self) -> io::Result<MappedSegment> {
        let base = map(&self.file, self.length, ProtFlags::PROT_READ)?;
        Ok(MappedSegment { file: self.file, base, length: self.length })
    }
}

/// A read-only mapping of a segment of another process.
#[derive(Debug)]
pub struct MappedSegment {
    file: File,
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: owns a mapping of plain bytes, which is unmapped only when dropped.
unsafe impl Send for MappedSegment {}
// SAFETY: as above; the bytes can only be read.
unsafe impl Sync for MappedSegment {}

impl Deref for MappedSegment {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping is `length` long and lives as long as `self`. The memory is at least that long and cannot
        // shrink (`check_segment`). By the contract of `map_trusted` its owner does not write while this mapping exists.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.length) }
    }
}

impl MappedSegment {
    /// Duplicates the descriptor, to send the segment on.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn create_reader(&self) -> io::Result<OwnedFd> {
        self.file.as_fd().try_clone_to_owned()
    }
}

impl Drop for MappedSegment {
    fn drop(&mut self) {
        unmap(self.base, self.length);
    }
}

/// Checks that `fd` is a readable segment of at least `length` bytes. Never blocks.
///
/// # Errors
/// `InvalidData` if it is not.
pub fn check_segment(fd: impl AsFd, length: usize) -> io::Result<()> {
    let fd = fd.as_fd();
    let invalid = |reason: &str| Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    // Before any other call: only memfds have seals, and asking for them or for the size of one never blocks, as the file of a
    // user-space file system could.
    let Ok(seals) = fcntl(fd, FcntlArg::F_GET_SEALS) else {
        return invalid("the descriptor is not a memfd");
    };
    if !SealFlag::from_bits_truncate(seals).contains(REQUIRED_SEALS) {
        return invalid("the memfd is not sealed against shrinking and writing");
    }
    let flags = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?);
    if flags & OFlag::O_ACCMODE == OFlag::O_WRONLY {
        return invalid("the memfd is not open for reading");
    }
    let size = usize::try_from(fstat(fd)?.st_size).unwrap_or(0);
    if length == 0 || length > size {
        return invalid("the memfd is shorter than its message says");
    }
    Ok(())
}

/// The lock that readers hold: on the first byte, of the open file description.
fn lock_of_segment(lock_type: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: lock_type as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 1,
        l_pid: 0,
    }
}

/// Allocates the pages of a range, so that a lack of memory is an error here and no SIGBUS later.
fn allocate(file: &File, from: usize, length: usize) -> io::Result<()> {
    let offset = |n: usize| libc::off_t::try_from(n).map_err(|_| io::ErrorKind::InvalidInput);
    let (from, length) = (offset(from)?, offset(length)?);
    if length == 0 {
        return Ok(());
    }
    // The kernel would first take all memory of the machine, and kill this process or another one.
    let is_large = length >= MIN_CHECKED_ALLOCATION;
    let available = is_large.then(crate::system::available_memory_bytes).flatten();
    if available.is_some_and(|bytes| length as u64 > bytes) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    loop {
        match fallocate(file, nix::fcntl::FallocateFlags::empty(), from, length) {
            Err(Errno::EINTR) => {}
            result => return Ok(result?),
        }
    }
}

fn map(file: &File, length: usize, protection: ProtFlags) -> io::Result<NonNull<u8>> {
    let length = NonZeroUsize::new(length).filter(|length| length.get() <= isize::MAX as usize);
    let length = length.ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: a new shared mapping at an address that the kernel chooses, so it overlaps nothing. The memory is at least
    // `length` long: `create` has set its size, or `check_segment` has checked it.
    let base = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, file, 0) }?;
    Ok(base.cast())
}

/// Unmaps what `map` has mapped, when its owner is dropped.
fn unmap(base: NonNull<u8>, length: usize) {
    // SAFETY: exactly the mapping that `map` returned to the owner. References into it borrow the owner, which is being
    // dropped.
    let result = unsafe { munmap(base.cast(), length) };
    debug_assert!(result.is_ok(), "{result:?}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use std::time::{Duration, Instant};

    const LENGTH: usize = 300_000;

    fn content() -> Vec<u8> {
        (0..LENGTH).map(|i| (i % 251) as u8).collect()
    }

    fn create_segment() -> OwnedSegment {
        OwnedSegment::with_content(LENGTH + 5000, &content()).expect("a segment")
    }

    /// Waits until nobody reads the segment. A program that another test starts briefly has copies of all descriptors.
    fn wait_for_last_reader(segment: &OwnedSegment) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while segment.has_readers() {
            assert!(Instant::now() < deadline, "a reader is left");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn error_of(fd: OwnedFd, length: usize) -> io::ErrorKind {
        ReceivedSegment::check(fd, length).expect_err("no segment").kind()
    }

    #[test]
    fn the_content_is_read_by_copy_and_by_mapping() {
        let segment = create_segment();
        let reader = || segment.create_reader().expect("a reader");
        let received = ReceivedSegment::check(reader(), LENGTH).expect("valid");
        assert_eq!(received.length(), LENGTH);
        assert!(received.read_to_vec().expect("read") == content());
        let mapped = received.map_trusted().expect("mapped");
        assert!(mapped[..] == content());
        assert!(segment.bytes() == content());
        let whole = ReceivedSegment::check(reader(), segment.capacity()).expect("valid");
        assert!(whole.read_to_vec().expect("read")[LENGTH..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn new_content_takes_the_place_of_the_old_one() {
        let mut segment = OwnedSegment::zeroed(LENGTH, 10).expect("a segment");
        assert_eq!(segment.bytes(), [0; 10]);
        assert_eq!(segment.allocated_bytes_mut(LENGTH).map(|bytes| bytes.len()), Some(10));
        segment.bytes_mut(LENGTH).expect("memory").copy_from_slice(&content());
        assert!(segment.bytes() == content());
        let reader = segment.create_reader().expect("a reader");
        let received = ReceivedSegment::check(reader, LENGTH).expect("valid");
        let mut target = vec![0; LENGTH];
        received.read_into(&mut target).expect("read");
        assert!(target == content());
        assert!(segment.bytes_mut(LENGTH + 1).is_err());
        assert!(OwnedSegment::zeroed(10, 11).is_err());
        assert!(OwnedSegment::with_content(10, &content()).is_err());
        assert!(OwnedSegment::zeroed(0, 0).is_err());
    }

    #[test]
    fn a_segment_has_readers_until_all_descriptors_and_mappings_are_gone() {
        let segment = create_segment();
        assert!(!segment.has_readers());
        let one = segment.create_reader().expect("a reader");
        let duplicate = one.try_clone().expect("a duplicate");
        let other = segment.create_reader().expect("a reader");
        drop(one);
        assert!(segment.has_readers());
        drop(other);
        assert!(segment.has_readers());
        let received = ReceivedSegment::check(duplicate, LENGTH).expect("valid");
        let mapped = received.map_trusted().expect("mapped");
        assert!(segment.has_readers(), "the mapping is left");
        let sent_on = mapped.create_reader().expect("a reader");
        drop(mapped);
        assert!(segment.has_readers(), "a duplicate is left");
        drop(sent_on);
        wait_for_last_reader(&segment);
    }

    #[test]
    fn a_descriptor_in_a_socket_is_a_reader_until_the_socket_is_closed() {
        let segment = create_segment();
        let (sender, receiver) = UnixStream::pair().expect("a pair");
        let reader = segment.create_reader().expect("a reader");
        crate::fd_passing::send_message(&sender, b"x", Some(reader.as_fd())).expect("sent");
        drop((reader, sender));
        assert!(segment.has_readers());
        drop(receiver);
        wait_for_last_reader(&segment);
    }

    #[test]
    fn more_memory_than_the_machine_has_is_an_error_at_once() {
        for length in [1 << 40, 1 << 62] {
            let error = OwnedSegment::zeroed(length, length).expect_err("too large");
            assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
        }
        let mut segment = OwnedSegment::zeroed(1 << 40, 1).expect("only one page has memory");
        assert!(segment.bytes_mut(1 << 40).is_err());
        assert_eq!(segment.bytes().len(), 1);
    }

    #[test]
    fn a_receiver_cannot_change_a_segment() {
        let segment = create_segment();
        let reader = segment.create_reader().expect("a reader");
        let path = format!("/proc/self/fd/{}", reader.as_raw_fd());
        let writer = File::options().read(true).write(true).open(path).expect("opened again");
        for file in [File::from(reader), writer] {
            assert!(file.write_all_at(b"x", 0).is_err());
            assert!(file.set_len(0).is_err() && file.set_len(1 << 30).is_err());
            let punch = nix::fcntl::FallocateFlags::FALLOC_FL_PUNCH_HOLE
                | nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
            assert!(fallocate(&file, punch, 0, 4096).is_err());
            let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
            assert!(map(&file, LENGTH, protection).is_err());
        }
        assert!(segment.bytes() == content());
    }

    #[test]
    fn a_segment_from_before_a_fork_is_read_only() {
        let mut segment = create_segment();
        // As after a fork that is counted: other tests run in threads, with which a fork is refused.
        segment.fork_count = u64::MAX;
        assert!(!segment.is_writable() && segment.allocated_bytes_mut(1).is_none());
        assert!(segment.bytes_mut(1).is_err());
        assert!(segment.bytes() == content());
    }

    #[test]
    fn what_is_no_segment_or_too_short_is_refused() {
        let segment = create_segment();
        let reader = || segment.create_reader().expect("a reader");
        for length in [0, segment.capacity() + 1, usize::MAX] {
            assert_eq!(error_of(reader(), length), io::ErrorKind::InvalidData, "{length}");
        }
        let (socket, _peer) = UnixStream::pair().expect("a pair");
        let file = tempfile::tempfile().expect("a file");
        file.set_len(LENGTH as u64).expect("long");
        for fd in [socket.into(), file.into(), File::open("/dev/zero").expect("opened").into()] {
            assert_eq!(error_of(fd, 1), io::ErrorKind::InvalidData);
        }
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        for seals in [SealFlag::empty(), SealFlag::F_SEAL_SHRINK, SealFlag::F_SEAL_FUTURE_WRITE] {
            let memory = memfd_create("unsealed", flags).expect("a memfd");
            nix::unistd::ftruncate(&memory, LENGTH as i64).expect("long");
            fcntl(&memory, FcntlArg::F_ADD_SEALS(seals)).expect("sealed");
            assert_eq!(error_of(memory, 1), io::ErrorKind::InvalidData, "{seals:?}");
        }
    }
}
