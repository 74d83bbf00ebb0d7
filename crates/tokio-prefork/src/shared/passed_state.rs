//! What an upgrade in place passes on of the shared state: its memory and its lock files.
//!
//! The new image needs both at its first declaration, in `main`, before the cluster reads the manifest. The check of a new binary
//! gets only the lock files: its worker must not lead beside a worker that serves, and must not change any value.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::lock_files::{self, PROCESS_LOCK_FILE};
use super::locks::lock_domain;
use super::memory::lock_memory;
use crate::upgrade::{self, PassedLockFile, PassedSharedState, UpgradeManifest};
use prefork_os::fd::take_inherited_fd;

/// Whether this process has taken over what was passed to it.
static IS_INHERITED: AtomicBool = AtomicBool::new(false);

/// The descriptors that the next image gets, and their description for the manifest.
pub(crate) struct PassedFds {
    pub(crate) state: PassedSharedState,
    memory: Vec<Arc<OwnedFd>>,
    lock_files: Vec<BorrowedFd<'static>>,
    release_event: Option<BorrowedFd<'static>>,
}

impl PassedFds {
    /// Returns all shared state, for a new image.
    pub(crate) fn for_new_image() -> PassedFds {
        let (memory, described) = lock_memory().passed_files().into_iter().unzip();
        let (lock_files, lock_file_list) = lock_files::passed_files().into_iter().unzip();
        let release_event = lock_domain::release_event_fd();
        let state = PassedSharedState {
            memory: described,
            lock_files: lock_file_list,
            release_event: release_event.map(|fd| fd.as_raw_fd()),
        };
        PassedFds { state, memory, lock_files, release_event }
    }

    /// Returns what the check of a new binary may have: no memory, and no process table.
    pub(crate) fn for_check() -> PassedFds {
        let is_for_check =
            |file: &(BorrowedFd<'_>, PassedLockFile)| file.1.name != PROCESS_LOCK_FILE;
        let (lock_files, described) =
            lock_files::passed_files().into_iter().filter(is_for_check).unzip();
        let (memory, release_event) = (Vec::new(), None);
        let state = PassedSharedState { memory, lock_files: described, release_event };
        PassedFds { state, memory: Vec::new(), lock_files, release_event: None }
    }

    /// Returns the descriptors, which the exec must leave open.
    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let memory = self.memory.iter().map(|fd| fd.as_fd());
        memory.chain(self.lock_files.iter().copied()).chain(self.release_event)
    }
}

/// Takes over what the previous image has passed. Only the first call has an effect.
pub(super) fn inherit_once() {
    if !IS_INHERITED.swap(true, Ordering::Relaxed) {
        // If the variables are malformed, the start fails with that error.
        let manifest = upgrade::read_passed_manifest().ok().flatten();
        manifest.iter().for_each(inherit);
    }
}

/// Takes over what `manifest` names, unless a declaration has done that.
pub(crate) fn record_passed(manifest: &UpgradeManifest) {
    if !IS_INHERITED.swap(true, Ordering::Relaxed) {
        inherit(manifest);
    }
}

fn inherit(manifest: &UpgradeManifest) {
    let Some(passed) = &manifest.shared else { return };
    for file in &passed.lock_files {
        match take_inherited_fd(file.fd) {
            Ok(fd) => lock_files::inherit(&file.name, fd),
            Err(e) => log::error!(
                "cannot take over a lock file of the previous image; name={} error={e}",
                file.name
            ),
        }
    }
    // Only for the process that the memory was passed to; a check gets none.
    let own = if manifest.pid == std::process::id() { &passed.memory[..] } else { &[] };
    for memory in own {
        match take_inherited_fd(memory.fd) {
            Ok(fd) => lock_memory().inherit(fd, memory),
            Err(e) => {
                log::error!("cannot take over shared state of the previous image; error={e}")
            }
        }
    }
    if let Some(Ok(fd)) = passed.release_event.map(take_inherited_fd) {
        lock_domain::inherit_release_event(fd);
    }
    // A no-op in a check, which is another process.
    if let Err(e) = lock_files::release_locks_of_previous_image() {
        log::error!("cannot release the locks of the previous image; error={e}");
    }
}

/// Closes the memory of the previous image that no declaration has claimed.
pub(crate) fn close_unclaimed() {
    let mut memory = lock_memory();
    let (warnings, unclaimed) = (memory.take_warnings(), memory.close_unclaimed());
    drop(memory);
    warnings.iter().for_each(|line| log::warn!("{line}"));
    for piece in unclaimed {
        log::info!(
            "closing shared state of the previous image that is not declared any more; name={:?} type={:?}",
            piece.name,
            piece.kind
        );
    }
}

/// Closes what only the primary needs, in a forked worker.
pub(crate) fn close_in_worker() {
    lock_memory().close_in_worker();
}
