//! Locks that the kernel lets go of when their process dies: one for each byte of a file.
//!
//! These are POSIX record locks (`F_SETLK`), which belong to a *process*. The alternatives belong to an open
//! file description, which a fork shares: every worker would have to open the file again, and a grandchild that
//! inherited the description would hold the lock of a dead worker. Also, these tell who holds one (`F_GETLK`).
//! Their known trap is that closing *any* descriptor of the file drops all locks of the process, so a file of
//! ours is never closed. A lock is not inherited over fork.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::libc;

/// A file for its locks. It lives as long as the process.
pub struct ByteRangeLocks(OwnedFd);

/// How waiting for a lock ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockOutcome {
    /// The lock is ours.
    Locked,
    /// The kernel sees a circle of processes that wait for each other, and would not let us join it.
    Deadlock,
}

impl ByteRangeLocks {
    /// For the processes that are forked from this one.
    pub fn create_in_memory() -> io::Result<&'static ByteRangeLocks> {
        let file = memfd_create("prefork-locks", MFdFlags::MFD_CLOEXEC)?;
        Ok(Box::leak(Box::new(ByteRangeLocks(file))))
    }

    /// For all processes that can open the file, which is made if it does not exist (mode 0600).
    pub fn open_file(path: &Path) -> io::Result<&'static ByteRangeLocks> {
        // std opens close-on-exec.
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).mode(0o600);
        Ok(Box::leak(Box::new(ByteRangeLocks(file.open(path)?.into()))))
    }

    /// Takes the lock if nobody else holds it. This process holding it already is no obstacle.
    pub fn try_lock(&self, byte: u64) -> io::Result<bool> {
        match fcntl(&self.0, FcntlArg::F_SETLK(&lock_request(byte, libc::F_WRLCK))) {
            Ok(_) => Ok(true),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Blocks this thread, without a deadline, until nobody else holds the lock.
    pub fn lock(&self, byte: u64) -> io::Result<LockOutcome> {
        loop {
            match fcntl(&self.0, FcntlArg::F_SETLKW(&lock_request(byte, libc::F_WRLCK))) {
                Ok(_) => return Ok(LockOutcome::Locked),
                Err(Errno::EINTR) => {}
                Err(Errno::EDEADLK) => return Ok(LockOutcome::Deadlock),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Lets go of the lock.
    pub fn unlock(&self, byte: u64) -> io::Result<()> {
        fcntl(&self.0, FcntlArg::F_SETLK(&lock_request(byte, libc::F_UNLCK)))?;
        Ok(())
    }

    /// The *other* process that holds the lock, if one does.
    pub fn holder_pid(&self, byte: u64) -> io::Result<Option<u32>> {
        let mut lock = lock_request(byte, libc::F_WRLCK);
        fcntl(&self.0, FcntlArg::F_GETLK(&mut lock))?;
        let held = lock.l_type != libc::F_UNLCK as libc::c_short;
        Ok(held.then(|| u32::try_from(lock.l_pid).unwrap_or(0)))
    }
}

fn lock_request(byte: u64, kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        // An offset has 63 bits.
        l_start: (byte & (u64::MAX >> 1)) as libc::off_t,
        l_len: 1,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ones_own_lock_is_no_obstacle_and_has_no_other_holder() {
        let locks = ByteRangeLocks::create_in_memory().expect("memory");
        assert!(locks.try_lock(7).expect("lock") && locks.try_lock(7).expect("again"));
        assert_eq!(locks.lock(7).expect("wait"), LockOutcome::Locked);
        assert_eq!(locks.holder_pid(7).expect("holder"), None);
        locks.unlock(7).expect("unlock");
    }

    #[test]
    fn the_file_of_a_path_is_made_and_one_that_cannot_be_made_is_an_error() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("role");
        assert!(ByteRangeLocks::open_file(&path).expect("file").try_lock(1).expect("lock"));
        assert!(path.exists());
        assert!(ByteRangeLocks::open_file(&dir.path().join("no/role")).is_err());
    }
}
