//! Byte-range locks on a file, one lock per byte, which the kernel releases when the holding process dies.
//!
//! These are POSIX record locks (`F_SETLK`): they belong to a process, are not inherited across fork, and the kernel
//! reports their holder (`F_GETLK`). Locks of an open file description do not serve: a fork shares the description, so a
//! grandchild could keep the lock of a dead worker. The known trap of record locks is that closing *any* descriptor of
//! the file releases all locks of the process, so these files are never closed.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::libc;

/// A file that serves for its byte locks only. It stays open until the process ends.
pub struct ByteRangeLocks(OwnedFd);

impl AsFd for ByteRangeLocks {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The result of waiting for a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockOutcome {
    /// This process holds the lock.
    Locked,
    /// Waiting would close a cycle of processes that wait for each other (EDEADLK).
    Deadlock,
}

impl ByteRangeLocks {
    /// Creates an anonymous file in memory, shared with forks of this process.
    pub fn create_in_memory() -> io::Result<&'static ByteRangeLocks> {
        let file = memfd_create("prefork-locks", MFdFlags::MFD_CLOEXEC)?;
        Ok(Box::leak(Box::new(ByteRangeLocks(file))))
    }

    /// Creates an anonymous file with `contents`, which do not matter for the locks.
    pub fn create_with_contents(contents: &[u8]) -> io::Result<&'static ByteRangeLocks> {
        Ok(ByteRangeLocks::from_inherited(crate::exec::create_sealed_memfd(
            "prefork-locks",
            contents,
        )?))
    }

    /// Reads the contents of the file, of at most `max_bytes` bytes. Releases no lock, as closing a descriptor would.
    pub fn read_contents(&self, max_bytes: usize) -> io::Result<Vec<u8>> {
        crate::exec::read_memfd(&self.0, max_bytes)
    }

    /// Takes over a file that the previous program of this process has created. Locks of this process stay.
    pub fn from_inherited(file: OwnedFd) -> &'static ByteRangeLocks {
        Box::leak(Box::new(ByteRangeLocks(file)))
    }

    /// Opens the file at `path`, shared with all processes that open it. Creates it with mode 0600 if it does not exist.
    pub fn open_file(path: &Path) -> io::Result<&'static ByteRangeLocks> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).mode(0o600);
        Ok(Box::leak(Box::new(ByteRangeLocks(file.open(path)?.into()))))
    }

    /// Takes the lock of `byte` unless another process holds it. Returns whether this process holds it now.
    pub fn try_lock(&self, byte: u64) -> io::Result<bool> {
        self.try_lock_as(byte, libc::F_WRLCK)
    }

    /// Takes the lock of `byte` together with other processes that share it, unless one holds it alone. Returns whether
    /// this process shares it now.
    pub fn try_lock_shared(&self, byte: u64) -> io::Result<bool> {
        self.try_lock_as(byte, libc::F_RDLCK)
    }

    fn try_lock_as(&self, byte: u64, lock_type: libc::c_int) -> io::Result<bool> {
        match fcntl(&self.0, FcntlArg::F_SETLK(&new_flock(byte, lock_type))) {
            Ok(_) => Ok(true),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Takes the lock of `byte`. Blocks the calling thread without a timeout while another process holds it.
    pub fn lock(&self, byte: u64) -> io::Result<LockOutcome> {
        loop {
            match fcntl(&self.0, FcntlArg::F_SETLKW(&new_flock(byte, libc::F_WRLCK))) {
                Ok(_) => return Ok(LockOutcome::Locked),
                Err(Errno::EINTR) => {}
                Err(Errno::EDEADLK) => return Ok(LockOutcome::Deadlock),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Releases the lock of `byte`, if this process holds it.
    pub fn unlock(&self, byte: u64) -> io::Result<()> {
        fcntl(&self.0, FcntlArg::F_SETLK(&new_flock(byte, libc::F_UNLCK)))?;
        Ok(())
    }

    /// Releases all locks that this process holds.
    pub fn unlock_all(&self) -> io::Result<()> {
        // A length of 0 reaches to the largest offset.
        let all = libc::flock { l_len: 0, ..new_flock(0, libc::F_UNLCK) };
        fcntl(&self.0, FcntlArg::F_SETLK(&all))?;
        Ok(())
    }

    /// Returns the pid of the *other* process that holds the lock of `byte`, or `None`.
    ///
    /// The pid is 0 if the process is in a pid namespace that is not visible here.
    pub fn holder_pid(&self, byte: u64) -> io::Result<Option<u32>> {
        self.conflicting_pid(byte, libc::F_WRLCK)
    }

    /// Returns the pid of the *other* process that holds the lock of `byte` alone, as [`holder_pid`](Self::holder_pid).
    pub fn exclusive_holder_pid(&self, byte: u64) -> io::Result<Option<u32>> {
        self.conflicting_pid(byte, libc::F_RDLCK)
    }

    fn conflicting_pid(&self, byte: u64, lock_type: libc::c_int) -> io::Result<Option<u32>> {
        let mut lock = new_flock(byte, lock_type);
        fcntl(&self.0, FcntlArg::F_GETLK(&mut lock))?;
        let held = lock.l_type != libc::F_UNLCK as libc::c_short;
        Ok(held.then(|| u32::try_from(lock.l_pid).unwrap_or(0)))
    }
}

fn new_flock(byte: u64, lock_type: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: lock_type as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        // Offsets are signed.
        l_start: (byte & (u64::MAX >> 1)) as libc::off_t,
        l_len: 1,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_can_take_its_own_lock_again_and_reports_no_other_holder() {
        let locks = ByteRangeLocks::create_in_memory().expect("memory");
        assert!(locks.try_lock(7).expect("lock") && locks.try_lock(7).expect("again"));
        assert_eq!(locks.lock(7).expect("wait"), LockOutcome::Locked);
        assert_eq!(locks.holder_pid(7).expect("holder"), None);
        locks.unlock(7).expect("unlock");
    }

    #[test]
    fn open_file_creates_the_file_or_fails() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("role");
        assert!(ByteRangeLocks::open_file(&path).expect("file").try_lock(1).expect("lock"));
        assert!(path.exists());
        assert!(ByteRangeLocks::open_file(&dir.path().join("no/role")).is_err());
    }
}
