//! File descriptors: those inherited from the parent process, their flags, duplicates, and closing many at once.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};

use super::{libc, syscall_result};

/// The inherited descriptors that this process has not taken yet. `None` until they are recorded.
static INHERITED_FDS: Mutex<Option<BTreeSet<RawFd>>> = Mutex::new(None);

fn lock_inherited_fds() -> MutexGuard<'static, Option<BTreeSet<RawFd>>> {
    INHERITED_FDS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Records which descriptors from 3 up were inherited from the parent. Only these can be taken by number later.
///
/// Only the first call has an effect. Make it before the program opens a descriptor that is not close-on-exec: an
/// inherited descriptor never has that flag and everything that Rust opens does, so no recorded descriptor has an owner
/// here.
///
/// # Errors
/// `/proc/self/fd` cannot be read.
pub fn record_inherited_fds() -> io::Result<()> {
    let mut inherited = lock_inherited_fds();
    if inherited.is_some() {
        return Ok(());
    }
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let number = entry?.file_name().to_str().and_then(|name| name.parse().ok());
        found.extend(number.filter(|number| *number >= 3 && is_inheritable(*number)));
    }
    *inherited = Some(found);
    Ok(())
}

pub(crate) fn is_inheritable(number: RawFd) -> bool {
    // SAFETY: F_GETFD only reads; a number that is not open gives EBADF.
    let flags = syscall_result(unsafe { libc::fcntl(number, libc::F_GETFD) });
    flags.is_ok_and(|flags| flags & libc::FD_CLOEXEC == 0)
}

/// Takes ownership of the inherited descriptor `number` and marks it close-on-exec.
///
/// # Errors
/// EBADF if `number` was not inherited (see [`record_inherited_fds`]), was taken before or has been closed.
pub fn take_inherited_fd(number: RawFd) -> io::Result<OwnedFd> {
    take_inherited_fd_if(number, |_| true)?.ok_or(io::ErrorKind::InvalidInput.into())
}

/// Takes ownership of the inherited descriptor `number` if `accepts` returns true for it. Otherwise returns `None` and
/// leaves the descriptor open and available.
///
/// # Errors
/// As [`take_inherited_fd`].
pub fn take_inherited_fd_if(
    number: RawFd,
    accepts: impl FnOnce(BorrowedFd<'_>) -> bool,
) -> io::Result<Option<OwnedFd>> {
    record_inherited_fds()?;
    let mut inherited = lock_inherited_fds();
    let numbers = inherited.get_or_insert_default();
    // Code that knew the number may have closed it since.
    if !numbers.contains(&number) || !is_inheritable(number) {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: the descriptor is open (checked above) and stays open during this statement: no other thread takes it
    // while this one holds the lock.
    if !accepts(unsafe { BorrowedFd::borrow_raw(number) }) {
        return Ok(None);
    }
    numbers.remove(&number);
    // SAFETY: the descriptor is open (checked above). It was inherited, and the set gives out each number only once, so
    // it has no other owner in this process.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(Some(fd))
}

/// Makes `fd` look inherited, so that a test can take it by the number returned.
///
/// # Panics
/// The flags of `fd` cannot be set, or `/proc/self/fd` cannot be read.
#[cfg(any(test, feature = "testing"))]
pub fn mark_inherited_for_test(fd: OwnedFd) -> RawFd {
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::empty())).expect("open");
    record_inherited_fds().expect("recorded");
    let number = std::os::fd::IntoRawFd::into_raw_fd(fd);
    lock_inherited_fds().as_mut().expect("recorded").insert(number);
    number
}

/// Closes all descriptors from 3 up except `kept`, in a forked child that soon exits without running destructors.
///
/// Every value in the child that owns a closed descriptor is a copy of the parent's and must not be used or dropped.
///
/// # Errors
/// `close_range(2)` fails: Linux before 5.9, or a seccomp filter.
pub fn close_all_fds_except(kept: impl AsFd) -> io::Result<()> {
    close_all_fds_except_these(&[kept.as_fd()])
}

/// As [`close_all_fds_except`], for several descriptors.
///
/// # Errors
/// As there.
pub fn close_all_fds_except_these(kept: &[BorrowedFd<'_>]) -> io::Result<()> {
    close_fds_from_3_except(kept.iter().map(|fd| fd.as_raw_fd() as u32).collect())
}

/// Duplicates descriptor `number`. The duplicate is close-on-exec and numbered 3 or higher.
///
/// # Errors
/// EBADF if `number` is not open.
pub fn duplicate_fd(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC makes a new descriptor and touches no memory; a number that is not open gives EBADF.
    let copy = syscall_result(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) })?;
    // SAFETY: the kernel has just created this descriptor, so it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Sets `O_NONBLOCK` and clears the other status flags of `fd`, such as `O_APPEND`.
pub fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Opens `/dev/null` for each of descriptors 0, 1 and 2 that is closed. Otherwise the next socket would get that number
/// and receive printed text.
pub fn open_closed_stdio_as_dev_null() -> io::Result<()> {
    for number in 0..=2 {
        // SAFETY: F_GETFD only reads; a number that is not open gives EBADF.
        if syscall_result(unsafe { libc::fcntl(number, libc::F_GETFD) }).is_err() {
            // SAFETY: the path is a valid C string. The lower numbers are open, so the kernel chooses `number`, which
            // stays open for the life of the process.
            syscall_result(unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) })?;
        }
    }
    Ok(())
}

/// Marks descriptor `number` close-on-exec.
///
/// # Errors
/// EBADF if `number` is not open.
pub fn set_close_on_exec(number: RawFd) -> io::Result<()> {
    // SAFETY: takes numbers and touches no memory; a number that is not open gives EBADF.
    syscall_result(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) }).map(drop)
}

/// Returns whether `fd` was opened for writing.
pub fn is_open_for_writing(fd: impl AsFd) -> io::Result<bool> {
    let flags = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?);
    Ok(flags & OFlag::O_ACCMODE != OFlag::O_RDONLY)
}

/// Sets `O_APPEND` and clears the other status flags of `fd`, such as `O_NONBLOCK`.
///
/// Use it only if no other process shares the open file description.
pub fn set_append_mode(fd: impl AsFd) -> io::Result<()> {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_APPEND))?;
    Ok(())
}

/// Returns how many bytes can be read from `fd`, a socket or a pipe, summed over all messages.
pub fn unread_bytes(fd: impl AsFd) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int to the address, which is valid for it.
    syscall_result(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::FIONREAD, &raw mut bytes) })?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// Redirects the standard error of this process to `file`.
pub fn replace_stderr(file: impl AsFd) -> io::Result<()> {
    replace_standard_stream(StandardStream::Stderr, file)
}

/// A standard stream of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StandardStream {
    /// Descriptor 0.
    Stdin = 0,
    /// Descriptor 1.
    Stdout = 1,
    /// Descriptor 2.
    Stderr = 2,
}

/// Redirects a standard stream of this process to `file`. Programs that it starts inherit it.
pub fn replace_standard_stream(stream: StandardStream, file: impl AsFd) -> io::Result<()> {
    // SAFETY: dup2 replaces the descriptor atomically, and no `OwnedFd` owns the numbers 0 to 2.
    syscall_result(unsafe { libc::dup2(file.as_fd().as_raw_fd(), stream as RawFd) })?;
    Ok(())
}

/// Makes `fd` refer to the file of `other`. It stays close-on-exec.
pub fn replace_file(fd: &OwnedFd, other: impl AsFd) -> io::Result<()> {
    let (from, to) = (other.as_fd().as_raw_fd(), fd.as_raw_fd());
    // SAFETY: dup3 replaces the descriptor atomically; its owner keeps owning the number.
    syscall_result(unsafe { libc::dup3(from, to, libc::O_CLOEXEC) })?;
    Ok(())
}

/// Closes every inherited descriptor from 3 up except `keep`, which [`take_inherited_fd`] can take.
///
/// Without this, a descriptor that a shell or a service manager leaked would stay open in every worker. Call it at the
/// start of the program, before anything in it owns a descriptor.
///
/// # Errors
/// `/proc/self/fd` cannot be read, or `close_range(2)` fails: Linux before 5.9, or a seccomp filter.
pub fn close_inherited_fds_except(keep: &[RawFd]) -> io::Result<()> {
    record_inherited_fds()?;
    if let Some(numbers) = lock_inherited_fds().as_mut() {
        numbers.retain(|number| keep.contains(number));
    }
    close_fds_from_3_except(keep.iter().filter_map(|fd| u32::try_from(*fd).ok()).collect())
}

fn close_fds_from_3_except(mut keep: Vec<u32>) -> io::Result<()> {
    keep.sort_unstable();
    let mut from = 3;
    for number in keep.into_iter().filter(|n| *n >= 3).chain([u32::MAX]) {
        if number > from {
            let last = if number == u32::MAX { u32::MAX } else { number - 1 };
            // SAFETY: by the contracts of the callers nothing in the process uses these descriptors.
            unsafe { close_range(from, last) }?;
        }
        from = number.saturating_add(1);
    }
    Ok(())
}

/// Closes the open descriptors from `first` to `last`.
///
/// # Safety
/// Nothing in this process uses or closes any of these descriptors later.
unsafe fn close_range(first: u32, last: u32) -> io::Result<()> {
    // musl has no function for this call.
    // SAFETY: takes numbers and touches no memory; the caller answers for the descriptors.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    syscall_result(result as libc::c_int).map(drop)
}

/// Sets whether programs that this process executes inherit `fd`: clears or sets close-on-exec.
pub fn set_inheritable(fd: impl AsFd, inheritable: bool) -> io::Result<()> {
    let flags = if inheritable { FdFlag::empty() } else { FdFlag::FD_CLOEXEC };
    fcntl(fd.as_fd(), FcntlArg::F_SETFD(flags))?;
    Ok(())
}

/// A batch of descriptors that a forked child inherited only for being a copy of its parent, closed with few system
/// calls.
///
/// The primary holds several descriptors per worker, so with many workers each child inherits thousands. Dropping their
/// owners one by one takes a system call each, and frees memory, which copies pages that parent and child could share.
#[derive(Debug, Default)]
pub struct FdCloseBatch {
    numbers: Vec<RawFd>,
}

impl FdCloseBatch {
    /// Adds the descriptors that `list` names and leaks `owner`, whose destructor never runs.
    ///
    /// `list` must name only descriptors that `owner` alone owns in this process. The memory of `owner` stays allocated
    /// until the process ends.
    pub fn add_fds_of_owner<T>(
        &mut self,
        owner: T,
        list: impl for<'a> FnOnce(&'a T, &mut dyn FnMut(BorrowedFd<'a>)),
    ) {
        list(&owner, &mut |fd| self.numbers.push(fd.as_raw_fd()));
        std::mem::forget(owner);
    }

    /// Closes all descriptors of the batch. A descriptor that fails to close is skipped.
    pub fn close_all(self) {
        let FdCloseBatch { mut numbers } = self;
        numbers.sort_unstable();
        for run in numbers.chunk_by(|one, next| one + 1 == *next) {
            close_consecutive(run);
        }
    }
}

/// Closes descriptors with consecutive numbers.
fn close_consecutive(run: &[RawFd]) {
    let (Some(first), Some(last)) = (run.first(), run.last()) else { return };
    // SAFETY: by the contract of `add_fds_of_owner` the owners of these descriptors are leaked, so nothing in this
    // process uses or closes them.
    if unsafe { close_range(*first as u32, *last as u32) }.is_ok() {
        return;
    }
    // `close_range` fails before Linux 5.9 and under some seccomp filters.
    for number in run {
        // SAFETY: as above.
        unsafe { libc::close(*number) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{ErrorKind, Read};
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    #[test]
    fn only_an_inherited_fd_can_be_taken_and_only_once() {
        let own = File::open("/dev/null").expect("open");
        let error = take_inherited_fd(own.as_raw_fd()).expect_err("it has an owner");
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
        let number = mark_inherited_for_test(File::open("/dev/null").expect("open").into());
        assert!(take_inherited_fd_if(number, |_| false).expect("open").is_none());
        let taken = take_inherited_fd(number).expect("left open");
        assert_eq!(taken.as_raw_fd(), number);
        assert!(!is_inheritable(number));
        assert!(take_inherited_fd(number).is_err());
        for number in [-1, 0, 1, 2, i32::MAX] {
            assert!(take_inherited_fd(number).is_err(), "{number}");
        }
        drop(own);
    }

    #[test]
    fn a_close_batch_closes_its_fds_and_no_others() {
        let is_kept = |at: usize| at == 4 || at == 8;
        let (mut kept, mut given, mut peers) = (Vec::new(), Vec::new(), Vec::new());
        for at in 0..9 {
            let (own, peer) = UnixStream::pair().expect("pair");
            peers.push(peer);
            if is_kept(at) { kept.push(own) } else { given.push(own) }
        }
        let mut fds = FdCloseBatch::default();
        fds.add_fds_of_owner(given, |given, add| given.iter().map(UnixStream::as_fd).for_each(add));
        let is_quiet = |mut peer: &UnixStream| {
            peer.set_nonblocking(true).expect("non-blocking");
            peer.read(&mut [0]).is_err_and(|e| e.kind() == ErrorKind::WouldBlock)
        };
        assert!(peers.iter().all(is_quiet), "nothing is closed early");
        fds.close_all();
        for (at, mut peer) in peers.iter().enumerate() {
            if is_kept(at) {
                assert!(is_quiet(peer), "{at}");
                continue;
            }
            // A child that another test forks holds copies of all descriptors until its exec.
            peer.set_nonblocking(false).expect("blocking");
            peer.set_read_timeout(Some(Duration::from_secs(10))).expect("timeout");
            assert_eq!(peer.read(&mut [0]).expect("end"), 0, "{at}");
        }
        drop(kept);
        FdCloseBatch::default().close_all();
    }
}
