//! File descriptors by number: what the parent left open, and what must not stay so.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};

use super::{cvt, libc};

/// Descriptors that were open when this program began, and that nobody has taken since. `None` until it is known.
static INHERITED_FDS: Mutex<Option<BTreeSet<RawFd>>> = Mutex::new(None);

fn lock_inherited_fds() -> MutexGuard<'static, Option<BTreeSet<RawFd>>> {
    INHERITED_FDS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Remembers which descriptors from 3 up the parent left open to this program; only those can be taken by number. The
/// first call decides: make it before the program opens anything that is not close-on-exec.
///
/// A descriptor that came over an exec is not close-on-exec, and whatever Rust opens is: so no descriptor with an owner in
/// this process is ever among them.
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

fn is_inheritable(number: RawFd) -> bool {
    // SAFETY: F_GETFD only reads; a number that is not open gives EBADF.
    let flags = cvt(unsafe { libc::fcntl(number, libc::F_GETFD) });
    flags.is_ok_and(|flags| flags & libc::FD_CLOEXEC == 0)
}

/// Takes over descriptor `number`, which another program opened and left to us, and marks it close-on-exec.
///
/// # Errors
/// It was not open when this program began (see [`record_inherited_fds`]), or was taken already.
pub fn take_inherited_fd(number: RawFd) -> io::Result<OwnedFd> {
    take_inherited_fd_if(number, |_| true)?.ok_or(io::ErrorKind::InvalidInput.into())
}

/// The same if `accepts` says so; otherwise it stays what it is, `None`.
pub fn take_inherited_fd_if(
    number: RawFd,
    accepts: impl FnOnce(BorrowedFd<'_>) -> bool,
) -> io::Result<Option<OwnedFd>> {
    record_inherited_fds()?;
    let mut inherited = lock_inherited_fds();
    let numbers = inherited.get_or_insert_default();
    // Closed since, by code that knew the number.
    if !numbers.contains(&number) || !is_inheritable(number) {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: the descriptor is open (checked above), and stays so in this statement: no other thread takes it while
    // the lock is held.
    if !accepts(unsafe { BorrowedFd::borrow_raw(number) }) {
        return Ok(None);
    }
    numbers.remove(&number);
    // SAFETY: the descriptor is open (checked above). It was open when the program began and was never taken: the set
    // gives each number once. So nobody in this process owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(Some(fd))
}

/// As a parent would leave `fd` open to this program: it can be taken by the number.
#[cfg(any(test, feature = "testing"))]
pub fn leave_open_for_test(fd: OwnedFd) -> RawFd {
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::empty())).expect("open");
    record_inherited_fds().expect("recorded");
    let number = std::os::fd::IntoRawFd::into_raw_fd(fd);
    lock_inherited_fds().as_mut().expect("recorded").insert(number);
    number
}

/// In a forked child that does nothing but answer: closes all descriptors from 3 up but `kept`.
///
/// Every owner of one of them is a copy of the parent's; the child ends without running any destructor.
pub fn close_all_fds_except(kept: impl AsFd) -> io::Result<()> {
    close_from_3_except(vec![kept.as_fd().as_raw_fd() as u32])
}

/// Duplicates descriptor `number` as a new close-on-exec descriptor; EBADF if `number` is not open.
pub fn duplicate_fd(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC makes a new descriptor and touches no memory; a number that is not open gives EBADF.
    let copy = cvt(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) })?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Reads from `fd` never block from now on. For a descriptor whose other modes are the default.
pub fn set_nonblocking(fd: impl std::os::fd::AsFd) -> io::Result<()> {
    fcntl(fd, FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Opens `/dev/null` in place of any of 0, 1 and 2 that is closed, so that no socket of ours ever lands
/// there and receives what somebody prints.
pub fn open_closed_stdio_as_dev_null() -> io::Result<()> {
    for number in 0..=2 {
        // SAFETY: F_GETFD only reads; a number that is not open gives EBADF.
        if cvt(unsafe { libc::fcntl(number, libc::F_GETFD) }).is_err() {
            // SAFETY: the path is a valid C string. The lowest free number is `number`, as those below are
            // open; it stays open for the life of the process.
            cvt(unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) })?;
        }
    }
    Ok(())
}

/// Closes descriptor `number` in every program that is executed from now on.
pub fn set_close_on_exec(number: RawFd) -> io::Result<()> {
    // SAFETY: takes numbers and touches no memory; a number that is not open gives EBADF.
    cvt(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) }).map(drop)
}

/// Whether `fd` was opened for writing.
pub fn is_open_for_writing(fd: impl AsFd) -> io::Result<bool> {
    let flags = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?);
    Ok(flags & OFlag::O_ACCMODE != OFlag::O_RDONLY)
}

/// Makes `fd` append what is written to it, and wait for room. For a description that nobody else has.
pub fn set_append_mode(fd: impl AsFd) -> io::Result<()> {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_APPEND))?;
    Ok(())
}

/// Makes `file` the standard error of this process: what anybody prints there goes into it from now on.
pub fn replace_stderr(file: &OwnedFd) -> io::Result<()> {
    // SAFETY: dup2 replaces what descriptor 2 stands for in one step; nobody owns that number.
    cvt(unsafe { libc::dup2(file.as_raw_fd(), 2) })?;
    Ok(())
}

/// Closes every descriptor from 3 up that the parent left open, except `keep`: what a shell or a service manager left
/// open by accident would otherwise live on in every worker. Those that are kept can be taken by [`take_inherited_fd`].
///
/// Only for the start of a program, before anything in it owns a descriptor.
pub fn close_inherited_fds_except(keep: &[RawFd]) -> io::Result<()> {
    record_inherited_fds()?;
    if let Some(numbers) = lock_inherited_fds().as_mut() {
        numbers.retain(|number| keep.contains(number));
    }
    close_from_3_except(keep.iter().filter_map(|fd| u32::try_from(*fd).ok()).collect())
}

fn close_from_3_except(mut keep: Vec<u32>) -> io::Result<()> {
    keep.sort_unstable();
    let mut from = 3;
    for number in keep.into_iter().filter(|n| *n >= 3).chain([u32::MAX]) {
        if number > from {
            let last = if number == u32::MAX { u32::MAX } else { number - 1 };
            // Not every C library has a function for this call.
            // SAFETY: by the contracts of the callers nothing in the process uses these descriptors.
            let result = unsafe { libc::syscall(libc::SYS_close_range, from, last, 0) };
            cvt(result as libc::c_int)?;
        }
        from = number.saturating_add(1);
    }
    Ok(())
}

/// Whether `fd` survives an exec.
pub fn set_inheritable(fd: impl AsFd, inheritable: bool) -> io::Result<()> {
    let flags = if inheritable { FdFlag::empty() } else { FdFlag::FD_CLOEXEC };
    fcntl(fd.as_fd(), FcntlArg::F_SETFD(flags))?;
    Ok(())
}

/// Descriptors that are to be closed. Their owners are forgotten already.
#[derive(Debug, Default)]
pub struct FdCloseBatch {
    numbers: Vec<RawFd>,
}

impl FdCloseBatch {
    /// Forgets `owner` without dropping it, and takes over the descriptors that `list` names.
    ///
    /// `list` names descriptors that `owner`, and nobody else in this process, would close when it is dropped. What else
    /// `owner` holds stays in memory until the process ends.
    pub fn add_fds_of<T>(
        &mut self,
        owner: T,
        list: impl for<'a> FnOnce(&'a T, &mut dyn FnMut(BorrowedFd<'a>)),
    ) {
        list(&owner, &mut |fd| self.numbers.push(fd.as_raw_fd()));
        std::mem::forget(owner);
    }

    /// Closes all of them.
    pub fn close_all(self) {
        let FdCloseBatch { mut numbers } = self;
        numbers.sort_unstable();
        for run in numbers.chunk_by(|one, next| one + 1 == *next) {
            close_consecutive(run);
        }
    }
}

/// Closes descriptors whose numbers follow each other.
fn close_consecutive(run: &[RawFd]) {
    let (Some(first), Some(last)) = (run.first(), run.last()) else { return };
    // Not every C library has a function for this call.
    // SAFETY: by the contract of `add_fds_of` the owners of these descriptors are forgotten, so nothing in this process
    // uses or closes them.
    if unsafe { libc::syscall(libc::SYS_close_range, *first, *last, 0) } == 0 {
        return;
    }
    // Before Linux 5.9, or under a seccomp filter.
    for number in run {
        // SAFETY: as above. A descriptor that does not close is none that could be closed in another way.
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
    fn only_what_was_left_open_can_be_taken_and_only_once() {
        let own = File::open("/dev/null").expect("open");
        let error = take_inherited_fd(own.as_raw_fd()).expect_err("it has an owner");
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
        let number = leave_open_for_test(File::open("/dev/null").expect("open").into());
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
    fn what_is_taken_is_closed_and_nothing_else() {
        let is_kept = |at: usize| at == 4 || at == 8;
        let (mut kept, mut given, mut peers) = (Vec::new(), Vec::new(), Vec::new());
        for at in 0..9 {
            let (own, peer) = UnixStream::pair().expect("pair");
            peers.push(peer);
            if is_kept(at) { kept.push(own) } else { given.push(own) }
        }
        let mut fds = FdCloseBatch::default();
        fds.add_fds_of(given, |given, take| given.iter().map(UnixStream::as_fd).for_each(take));
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
            // A program that another test starts has copies of all descriptors for a moment.
            peer.set_nonblocking(false).expect("blocking");
            peer.set_read_timeout(Some(Duration::from_secs(10))).expect("timeout");
            assert_eq!(peer.read(&mut [0]).expect("end"), 0, "{at}");
        }
        drop(kept);
        FdCloseBatch::default().close_all();
    }
}
