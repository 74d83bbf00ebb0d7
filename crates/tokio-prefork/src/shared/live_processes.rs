//! The processes of the cluster that are alive, as rows of a table in shared memory.
//!
//! A process claims a row by locking that byte of a file (`prefork_os::byte_range_lock`). The kernel releases the lock at the moment
//! of death, whatever the cause. So no notification is needed, reused pids are no problem, and a stopped process is not taken for
//! dead. A row that is claimed again gets a new epoch: row and epoch together are a [`ProcessIdentity`], which is never reused.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::lock_files::{self, PROCESS_LOCK_FILE};
use super::memory::{self, PieceLayout};
use crate::error::{Error, Result};
use prefork_os::byte_range_lock::ByteRangeLocks;

/// The number of processes that can have a row at the same time.
pub(super) const MAX_PROCESSES: usize = 1024;
/// The revision of the layout of the table, and so of the identities that other pieces of shared memory contain.
pub(super) const PROCESS_TABLE_LAYOUT: &str = "1";
/// The first byte of the lock file that stands for a leadership. Smaller ones stand for rows.
const FIRST_LEADERSHIP_BYTE: u64 = 1 << 62;

/// A process that is or was alive: its epoch times `MAX_PROCESSES` plus its row. Never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ProcessIdentity(pub(super) u64);

/// The table of all processes. Created before the fork, with the first declaration that needs it.
pub(super) struct ProcessTable {
    locks: &'static ByteRangeLocks,
    /// Word 0 is the number of rows ever used. The epochs of the rows follow.
    words: &'static [AtomicU64],
    /// The identity of this process; zero before it has claimed a row, as in every new child.
    current: &'static AtomicU64,
}

static PROCESS_TABLE: OnceLock<ProcessTable> = OnceLock::new();
/// Excludes threads of this process from each other, which the kernel's locks do not.
static CLAIM_LOCK: Mutex<()> = Mutex::new(());

/// The byte of the lock that is held while a process claims a row.
const CLAIM_BYTE: u64 = 1 << 61;

/// How long to wait for [`CLAIM_BYTE`]: longer only if its holder is stopped.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(2);

impl ProcessTable {
    /// Returns the table of this cluster.
    pub(super) fn get_or_create() -> Result<&'static ProcessTable> {
        let _guard = CLAIM_LOCK.lock().unwrap_or_else(PoisonError::into_inner);
        match PROCESS_TABLE.get() {
            Some(table) => Ok(table),
            None => {
                let table = ProcessTable::create()?;
                Ok(PROCESS_TABLE.get_or_init(|| table))
            }
        }
    }

    fn create() -> Result<ProcessTable> {
        let failed = |e| Error::system("create the process table for shared state", e);
        let locks = lock_files::get_or_create(PROCESS_LOCK_FILE)?;
        let layout = PieceLayout {
            kind: "process table",
            layout: PROCESS_TABLE_LAYOUT,
            words: 1 + MAX_PROCESSES,
        };
        let words = memory::allocate("processes", layout)?.words;
        let current = prefork_os::shared_memory::word_wiped_on_fork().map_err(failed)?;
        Ok(ProcessTable { locks, words, current })
    }

    /// Returns the identity of this process. The first call claims a row; `None` if none is free.
    pub(super) fn current_process(&self) -> Option<ProcessIdentity> {
        match self.current.load(Ordering::Relaxed) {
            0 => self.claim_row(),
            own => Some(ProcessIdentity(own)),
        }
    }

    #[cold]
    fn claim_row(&self) -> Option<ProcessIdentity> {
        let _guard = CLAIM_LOCK.lock().unwrap_or_else(PoisonError::into_inner);
        let own = self.current.load(Ordering::Relaxed);
        if own != 0 {
            return Some(ProcessIdentity(own));
        }
        let (row, epoch) = self.take_free_row()?;
        self.words[0].fetch_max(row as u64 + 1, Ordering::Relaxed);
        let own = identity(row, epoch);
        self.current.store(own.0, Ordering::Relaxed);
        Some(own)
    }

    /// Locks a row that no live process has, and returns it with its new epoch.
    ///
    /// The epoch grows before the row is locked, so that its previous owner never counts as alive by the lock of the new one. Only
    /// one process may do that at a time.
    fn take_free_row(&self) -> Option<(usize, u64)> {
        // Another process needs it for three system calls. Waiting in the kernel could fail as a deadlock: other threads of the same
        // processes wait for leaderships there.
        let deadline = Instant::now() + CLAIM_TIMEOUT;
        while !self.locks.try_lock(CLAIM_BYTE).ok()? {
            if Instant::now() > deadline {
                return None;
            }
            std::thread::yield_now();
        }
        let is_free = |row: &usize| matches!(self.locks.holder_pid(*row as u64), Ok(None));
        let claim = |row: usize| {
            let epoch = self.words[1 + row].fetch_add(1, Ordering::AcqRel).wrapping_add(1);
            self.locks.try_lock(row as u64).ok()?.then_some((row, epoch))
        };
        let claimed = (0..MAX_PROCESSES).filter(is_free).find_map(claim);
        // If it fails, the lock ends with this process.
        let _ = self.locks.unlock(CLAIM_BYTE);
        claimed
    }

    /// Returns whether the process is this one, and not one that this one was forked from.
    pub(super) fn is_current(&self, owner: ProcessIdentity) -> bool {
        owner.0 == self.current.load(Ordering::Relaxed)
    }

    /// Returns whether the process is alive. In doubt, it is.
    pub(super) fn is_alive(&self, owner: ProcessIdentity) -> bool {
        if owner.0 == self.current.load(Ordering::Relaxed) {
            // No process is 0, not even one that has no row yet.
            return owner.0 != 0;
        }
        let row = owner.row();
        let is_held = self.locks.holder_pid(row as u64).map_or(true, |holder| holder.is_some());
        // Afterwards: the lock may be that of the next owner, whose epoch is there before its lock.
        is_held && self.identity_of_row(row) == owner
    }

    /// Returns the pid of a live process; `None` if it is dead or its pid is not visible here.
    pub(super) fn pid(&self, owner: ProcessIdentity) -> Option<u32> {
        let row = owner.row();
        let pid = self.locks.holder_pid(row as u64).ok().flatten().filter(|pid| *pid != 0);
        pid.filter(|_| self.identity_of_row(row) == owner)
    }

    /// Returns all live processes that have a row, including this one.
    pub(super) fn live_processes(&self) -> impl Iterator<Item = ProcessIdentity> + '_ {
        let used = (self.words[0].load(Ordering::Relaxed) as usize).min(MAX_PROCESSES);
        (0..used).map(|row| self.identity_of_row(row)).filter(|owner| self.is_alive(*owner))
    }

    fn identity_of_row(&self, row: usize) -> ProcessIdentity {
        identity(row, self.words[1 + row].load(Ordering::Acquire))
    }
}

impl ProcessIdentity {
    pub(super) fn row(self) -> usize {
        self.0 as usize % MAX_PROCESSES
    }
}

fn identity(row: usize, epoch: u64) -> ProcessIdentity {
    ProcessIdentity(epoch.wrapping_mul(MAX_PROCESSES as u64).wrapping_add(row as u64))
}

/// Returns the byte of the lock file for a leadership: a hash of the name (FNV-1a), so that one file serves several.
pub(super) fn leadership_byte(name: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    FIRST_LEADERSHIP_BYTE
        | (name.bytes().fold(0xcbf2_9ce4_8422_2325, step) & (FIRST_LEADERSHIP_BYTE - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_keeps_its_identity_and_is_alive() {
        let table = ProcessTable::get_or_create().expect("table");
        let own = table.current_process().expect("a row");
        assert_eq!(table.current_process(), Some(own));
        assert!(table.is_alive(own) && table.live_processes().any(|owner| owner == own));
    }

    #[test]
    fn an_identity_with_another_epoch_or_an_unclaimed_row_is_dead() {
        let table = ProcessTable::get_or_create().expect("table");
        let own = table.current_process().expect("a row");
        assert!(!table.is_alive(ProcessIdentity(own.0 + MAX_PROCESSES as u64)));
        assert!(!table.is_alive(identity(MAX_PROCESSES - 1, 0)));
        assert!(!table.is_alive(ProcessIdentity(u64::MAX)), "no such process");
    }

    #[test]
    fn leadership_bytes_differ_from_each_other_and_from_rows() {
        let (one, other) = (leadership_byte("cron"), leadership_byte("consumer"));
        assert!(
            one != other
                && one >= FIRST_LEADERSHIP_BYTE
                && other >= FIRST_LEADERSHIP_BYTE
                && one.max(other) < 1 << 63
        );
    }
}
