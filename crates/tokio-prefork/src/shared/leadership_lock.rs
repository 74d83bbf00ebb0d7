//! A role as it stands in this process, and the thread that waits for it.
//!
//! A role is a lock on a byte of a file that the kernel lets go of when its process dies (`prefork_os::byte_range_lock`): at
//! that very moment, for whatever reason, and not one moment before. No lease can run out while its holder is
//! slow, and nobody has to watch anybody. Who waits does so in a thread that sleeps in the kernel: neither the
//! event loop is blocked, nor is anything polled. There is at most one such thread for each role in a process.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use crate::error::Error;
use prefork_os::byte_range_lock::{ByteRangeLocks, LockOutcome};

/// Between two tries when processes wait for each other's roles in a circle, which the kernel refuses to wait
/// in.
const AGAIN: Duration = Duration::from_millis(50);
/// The waiting thread calls one function.
const STACK: usize = 128 << 10;

/// What all handles of a role share.
pub(super) struct Role {
    pub(super) name: &'static str,
    pub(super) locks: &'static ByteRangeLocks,
    pub(super) byte: u64,
    here: Mutex<Here>,
}

/// How the role stands in this process.
#[derive(Debug)]
pub(super) struct Here {
    /// Whose this is. A fork copies it and not the lock, so a child begins anew.
    pub(super) pid: u32,
    pub(super) state: State,
    /// Those who wait in this process, by number.
    pub(super) waiting: Vec<(u64, Waker)>,
    pub(super) next: u64,
}

#[derive(Debug)]
pub(super) enum State {
    /// Nobody here has the lock or waits for it.
    Idle,
    /// A thread sleeps in the kernel until the lock is ours.
    Asleep,
    /// The lock is ours, and the first of those who wait here may take it.
    Offered,
    /// Somebody here leads.
    Led,
    /// The kernel did not let us wait.
    Failed(io::Error),
}

impl Role {
    pub(super) fn new(name: &'static str, locks: &'static ByteRangeLocks, byte: u64) -> Role {
        let here = Here { pid: 0, state: State::Idle, waiting: Vec::new(), next: 0 };
        Role { name, locks, byte, here: Mutex::new(here) }
    }

    /// Starts the thread that waits. It ends with the lock, which belongs to the process and not to the thread.
    pub(super) fn sleep(&'static self) -> io::Result<()> {
        let thread = std::thread::Builder::new().name("leadership".to_string()).stack_size(STACK);
        thread.spawn(|| self.wait_for_lock()).map(drop)
    }

    fn wait_for_lock(&self) {
        let waited = loop {
            match self.locks.lock(self.byte) {
                Ok(LockOutcome::Locked) => break Ok(()),
                // The leader waits for a role of ours. That is no deadlock, as its loop goes on meanwhile.
                Ok(LockOutcome::Deadlock) => std::thread::park_timeout(AGAIN),
                Err(e) => break Err(e),
            }
        };
        let mut here = self.here();
        match waited {
            Ok(()) if here.waiting.is_empty() => self.let_go(&mut here),
            Ok(()) => here.state = State::Offered,
            Err(_) if here.waiting.is_empty() => here.state = State::Idle,
            Err(e) => here.state = State::Failed(e),
        }
        here.wake_all();
    }

    /// Gives the role back to the kernel. Others in this process try again, beside the other processes.
    pub(super) fn let_go(&self, here: &mut Here) {
        // The lock is ours and the file open: there is nothing that this could fail of, nor anything else to
        // do.
        if let Err(e) = self.locks.unlock(self.byte) {
            log::error!("cannot resign from the role {:?}: {e}", self.name);
        }
        here.state = State::Idle;
        here.wake_all();
    }

    /// How the role stands in this process, and in no other that it was forked from.
    pub(super) fn here(&self) -> MutexGuard<'_, Here> {
        // Nothing panics with the lock held, except a foreign waker; the state is whole before it is called.
        let mut here = self.here.lock().unwrap_or_else(PoisonError::into_inner);
        let pid = std::process::id();
        if here.pid != pid {
            *here = Here { pid, state: State::Idle, waiting: Vec::new(), next: 0 };
        }
        here
    }

    pub(super) fn refused(&self, error: io::Error) -> Error {
        Error::system(format!("wait for the role {:?}", self.name), error)
    }
}

impl Here {
    pub(super) fn wake_all(&self) {
        self.waiting.iter().for_each(|(_, waker)| waker.wake_by_ref());
    }
}
