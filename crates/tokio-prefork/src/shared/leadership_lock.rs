//! A leadership as this process sees it, and the thread that waits for its lock.
//!
//! A leadership is a lock on one byte of a file, which the kernel releases at the moment its process dies
//! (`prefork_os::byte_range_lock`). So there is no lease that could run out, and no process has to watch another. Waiting happens in a
//! thread that sleeps in the kernel, without polling and without blocking the event loop. Each process has at most one such thread
//! per leadership.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use crate::error::Error;
use prefork_os::byte_range_lock::{ByteRangeLocks, LockOutcome};

/// How long to wait before the next attempt when processes wait for each other in a cycle, which the kernel refuses.
const DEADLOCK_RETRY_INTERVAL: Duration = Duration::from_millis(50);
/// Stack size of the waiting thread, which calls one function.
const WAIT_THREAD_STACK_BYTES: usize = 128 << 10;

/// The lock of a leadership, shared by all its handles.
pub(super) struct LeadershipLock {
    pub(super) name: &'static str,
    pub(super) locks: &'static ByteRangeLocks,
    pub(super) byte: u64,
    local: Mutex<LocalLeadership>,
}

/// The state of a leadership in this process.
#[derive(Debug)]
pub(super) struct LocalLeadership {
    /// The process that this state belongs to. A fork copies the state but not the lock, so a child starts anew.
    pub(super) pid: u32,
    pub(super) stage: LeadershipStage,
    /// Waiting futures of this process, by ticket.
    pub(super) waiting: Vec<(u64, Waker)>,
    pub(super) next_ticket: u64,
}

/// How far this process is with acquiring the lock.
#[derive(Debug)]
pub(super) enum LeadershipStage {
    /// This process neither has the lock nor waits for it.
    Idle,
    /// A thread sleeps in the kernel until it has the lock.
    WaitingForLock,
    /// This process has the lock; the first waiting future may take it.
    Acquired,
    /// A guard of this process leads.
    Leading,
    /// The kernel refused to wait.
    Failed(io::Error),
}

impl LeadershipLock {
    pub(super) fn new(
        name: &'static str,
        locks: &'static ByteRangeLocks,
        byte: u64,
    ) -> LeadershipLock {
        let local = LocalLeadership {
            pid: 0,
            stage: LeadershipStage::Idle,
            waiting: Vec::new(),
            next_ticket: 0,
        };
        LeadershipLock { name, locks, byte, local: Mutex::new(local) }
    }

    /// Starts the thread that waits for the lock. The lock belongs to the process, so the thread ends once it has it.
    pub(super) fn start_wait_thread(&'static self) -> io::Result<()> {
        let thread = std::thread::Builder::new()
            .name("leadership".to_string())
            .stack_size(WAIT_THREAD_STACK_BYTES);
        thread.spawn(|| self.wait_for_lock()).map(drop)
    }

    fn wait_for_lock(&self) {
        let waited = loop {
            match self.locks.lock(self.byte) {
                Ok(LockOutcome::Locked) => break Ok(()),
                // The leader waits for a lock of this process. That is no real deadlock, as its event loop continues.
                Ok(LockOutcome::Deadlock) => std::thread::park_timeout(DEADLOCK_RETRY_INTERVAL),
                Err(e) => break Err(e),
            }
        };
        let mut local = self.lock_local();
        match waited {
            Ok(()) if local.waiting.is_empty() => self.release(&mut local),
            Ok(()) => local.stage = LeadershipStage::Acquired,
            Err(_) if local.waiting.is_empty() => local.stage = LeadershipStage::Idle,
            Err(e) => local.stage = LeadershipStage::Failed(e),
        }
        local.wake_all();
    }

    /// Releases the lock. Other futures of this process compete for it again, along with other processes.
    pub(super) fn release(&self, local: &mut LocalLeadership) {
        // Unlocking a held lock of an open file does not fail.
        if let Err(e) = self.locks.unlock(self.byte) {
            log::error!("cannot release a leadership; name={:?} error={e}", self.name);
        }
        local.stage = LeadershipStage::Idle;
        local.wake_all();
    }

    /// Locks the state of this process; resets it in a child, which inherited the state of its parent.
    pub(super) fn lock_local(&self) -> MutexGuard<'_, LocalLeadership> {
        // No code panics with the lock held except a foreign waker, and the state is consistent before it is called.
        let mut local = self.local.lock().unwrap_or_else(PoisonError::into_inner);
        let pid = std::process::id();
        if local.pid != pid {
            *local = LocalLeadership {
                pid,
                stage: LeadershipStage::Idle,
                waiting: Vec::new(),
                next_ticket: 0,
            };
        }
        local
    }

    pub(super) fn lock_error(&self, error: io::Error) -> Error {
        Error::system(format!("wait for the leadership {:?}", self.name), error)
    }
}

impl LocalLeadership {
    pub(super) fn wake_all(&self) {
        self.waiting.iter().for_each(|(_, waker)| waker.wake_by_ref());
    }
}
