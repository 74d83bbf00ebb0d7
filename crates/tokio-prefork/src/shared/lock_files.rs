//! The files in memory that serve for their byte locks only (`prefork_os::byte_range_lock`).
//!
//! All of them are passed to the next image of an upgrade, so that a lock excludes the workers of both images.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::passed_state;
use crate::error::{Error, Result};
use crate::upgrade::PassedLockFile;
use prefork_os::byte_range_lock::ByteRangeLocks;

/// The file whose bytes stand for the rows of the process table.
pub(super) const PROCESS_LOCK_FILE: &str = "processes";
/// The file whose bytes stand for leaderships.
pub(super) const LEADERSHIP_LOCK_FILE: &str = "leaderships";

/// All lock files, by name.
static LOCK_FILES: Mutex<Vec<(String, &'static ByteRangeLocks)>> = Mutex::new(Vec::new());

fn lock_files() -> MutexGuard<'static, Vec<(String, &'static ByteRangeLocks)>> {
    // No code panics with the lock held.
    LOCK_FILES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the lock file `name` of this cluster.
pub(super) fn get_or_create(name: &str) -> Result<&'static ByteRangeLocks> {
    get_or_create_with(name, || Ok(Vec::new()))
}

/// Returns the lock file `name` of this cluster. A new one gets the contents that `draw_contents` returns.
pub(super) fn get_or_create_with(
    name: &str,
    draw_contents: impl FnOnce() -> io::Result<Vec<u8>>,
) -> Result<&'static ByteRangeLocks> {
    passed_state::inherit_once();
    if name != PROCESS_LOCK_FILE {
        // The kernel closes the descriptors of a dying process from the lowest number on: it has to be dead in the process table before
        // others get its locks.
        get_or_create(PROCESS_LOCK_FILE)?;
    }
    let mut files = lock_files();
    if let Some((_, file)) = files.iter().find(|(known, _)| known == name) {
        return Ok(file);
    }
    let file = draw_contents()
        .and_then(|contents| ByteRangeLocks::create_with_contents(&contents))
        .map_err(|e| Error::system(format!("create the lock file of {name}"), e))?;
    files.push((name.to_string(), file));
    Ok(file)
}

/// Takes over a file of the previous image.
pub(super) fn inherit(name: &str, fd: OwnedFd) {
    lock_files().push((name.to_string(), ByteRangeLocks::from_inherited(fd)));
}

/// Releases the locks that this process has kept across its exec. Their guards are gone with the previous image.
pub(super) fn release_locks_of_previous_image() -> io::Result<()> {
    lock_files().iter().try_for_each(|(_, file)| file.unlock_all())
}

/// Returns the descriptors of all files, and what the next image has to know about each.
pub(super) fn passed_files() -> Vec<(BorrowedFd<'static>, PassedLockFile)> {
    let passed = |name: &str, file: &'static ByteRangeLocks| {
        let fd = file.as_fd();
        (fd, PassedLockFile { name: name.to_string(), fd: fd.as_raw_fd() })
    };
    lock_files().iter().map(|(name, file)| passed(name, file)).collect()
}
