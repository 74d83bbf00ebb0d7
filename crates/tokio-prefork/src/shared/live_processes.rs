//! Who is alive: a row number for each process that has something of its own in shared memory.
//!
//! A process has a row by holding the kernel's lock on that byte of a file (`prefork_os::byte_range_lock`). The kernel lets
//! go of it at the very moment of death, whatever its cause, so nobody has to be told, pids may be used again,
//! and a stopped process is not taken for a dead one. A row that is taken again gets a new epoch: row and epoch
//! together are an *owner*, which no two processes ever are.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::error::{Error, Result};
use prefork_os::byte_range_lock::ByteRangeLocks;

/// Processes that can have a row at the same time.
pub(super) const ROWS: usize = 1024;
/// Bytes of the lock file from here on are roles, not rows.
const ROLES: u64 = 1 << 62;

/// A process that lives or has lived: epoch times `ROWS` plus row. Never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner(pub(super) u64);

/// All rows. Made before the fork by whatever is declared first.
pub(super) struct Members {
    locks: &'static ByteRangeLocks,
    /// Word 0: how many rows were ever used. Then the epoch of each row.
    words: &'static [AtomicU64],
    /// The owner that this process is; zero if it has no row yet, as in every fresh child.
    own: &'static AtomicU64,
}

static MEMBERS: OnceLock<Members> = OnceLock::new();
/// Threads of one process would not exclude each other by the kernel's locks.
static JOINING: Mutex<()> = Mutex::new(());

impl Members {
    /// The rows of this cluster.
    pub(super) fn get() -> Result<&'static Members> {
        let _one = JOINING.lock().unwrap_or_else(PoisonError::into_inner);
        match MEMBERS.get() {
            Some(members) => Ok(members),
            None => {
                let members = Members::create()
                    .map_err(|e| Error::system("make the list of processes for shared state", e))?;
                Ok(MEMBERS.get_or_init(|| members))
            }
        }
    }

    fn create() -> io::Result<Members> {
        let locks = ByteRangeLocks::create_in_memory()?;
        let words = prefork_os::shared_memory::create_shared_words(1 + ROWS)?;
        Ok(Members { locks, words, own: prefork_os::shared_memory::word_wiped_on_fork()? })
    }

    /// The file with the locks, and the byte in it for a role of this name.
    pub(super) fn role(&self, name: &str) -> (&'static ByteRangeLocks, u64) {
        (self.locks, role_byte(name))
    }

    /// The owner that this process is. It takes a row at the first call; `None` if none is free.
    pub(super) fn own(&self) -> Option<Owner> {
        match self.own.load(Ordering::Relaxed) {
            0 => self.join(),
            own => Some(Owner(own)),
        }
    }

    #[cold]
    fn join(&self) -> Option<Owner> {
        let _one = JOINING.lock().unwrap_or_else(PoisonError::into_inner);
        let own = self.own.load(Ordering::Relaxed);
        if own != 0 {
            return Some(Owner(own));
        }
        let row = (0..ROWS).find(|row| self.locks.try_lock(*row as u64).unwrap_or(false))?;
        // From here on the row is ours. Until the epoch has grown, somebody who asks about the owner before
        // us is told that it lives: late, but never wrong about the living.
        let epoch = self.words[1 + row].fetch_add(1, Ordering::AcqRel).wrapping_add(1);
        self.words[0].fetch_max(row as u64 + 1, Ordering::Relaxed);
        let own = owner(row, epoch);
        self.own.store(own.0, Ordering::Relaxed);
        Some(own)
    }

    /// Whether the owner lives. When in doubt, it does.
    pub(super) fn lives(&self, owner: Owner) -> bool {
        if owner.0 == self.own.load(Ordering::Relaxed) {
            // Nobody is owner 0, not even a process that has no row yet.
            return owner.0 != 0;
        }
        let row = owner.row();
        let current = self.owner_of(row) == owner;
        current && self.locks.holder_pid(row as u64).map_or(true, |holder| holder.is_some())
    }

    /// Every owner that lives, this process too if it has a row.
    pub(super) fn living(&self) -> impl Iterator<Item = Owner> + '_ {
        let used = (self.words[0].load(Ordering::Relaxed) as usize).min(ROWS);
        (0..used).map(|row| self.owner_of(row)).filter(|owner| self.lives(*owner))
    }

    fn owner_of(&self, row: usize) -> Owner {
        owner(row, self.words[1 + row].load(Ordering::Acquire))
    }
}

impl Owner {
    pub(super) fn row(self) -> usize {
        self.0 as usize % ROWS
    }
}

fn owner(row: usize, epoch: u64) -> Owner {
    Owner(epoch.wrapping_mul(ROWS as u64).wrapping_add(row as u64))
}

/// The byte that stands for a role: from its name (FNV-1a), so that a file may serve for several roles.
pub(super) fn role_byte(name: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    ROLES | (name.bytes().fold(0xcbf2_9ce4_8422_2325, step) & (ROLES - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_one_owner_and_lives() {
        let members = Members::get().expect("members");
        let own = members.own().expect("a row");
        assert_eq!(members.own(), Some(own));
        assert!(members.lives(own) && members.living().any(|owner| owner == own));
    }

    #[test]
    fn an_owner_of_another_epoch_or_of_a_row_that_nobody_holds_is_dead() {
        let members = Members::get().expect("members");
        let own = members.own().expect("a row");
        assert!(!members.lives(Owner(own.0 + ROWS as u64)));
        assert!(!members.lives(owner(ROWS - 1, 0)));
        assert!(!members.lives(Owner(u64::MAX)), "garbage is nobody");
    }

    #[test]
    fn roles_have_bytes_of_their_own_beside_the_rows() {
        let (one, other) = (role_byte("cron"), role_byte("consumer"));
        assert!(one != other && one >= ROLES && other >= ROLES && one.max(other) < 1 << 63);
    }
}
