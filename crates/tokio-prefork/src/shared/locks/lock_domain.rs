//! What the processes of a cluster share for locks by name: the lock files, and words that tell of waiting processes.
//!
//! A lock is a byte range lock of the kernel, so it is released when its process dies at any instruction. All else here only makes
//! waiting short and fair: words count waiting processes, so that whoever releases a lock knows whether to wake others; and a process
//! that has waited long reserves the lock, so that others let it go first. If these words are wrong, or other ones after an upgrade, a
//! waiting process tries again at intervals ([`super::wait_thread`]).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::LockMode;
use crate::error::{Error, Result};
use crate::shared::live_processes::{PROCESS_TABLE_LAYOUT, ProcessIdentity, ProcessTable};
use crate::shared::lock_files;
use crate::shared::memory::{self, PieceLayout};
use crate::shared::shared_hasher::SharedHasher;
use prefork_os::broadcast_event::BroadcastEvent;
use prefork_os::byte_range_lock::ByteRangeLocks;

/// The number of lock files. The kernel searches a list of all locks of a file.
///
/// Never change it: the images before and after an upgrade must agree which file has the lock of a name.
const LOCK_FILE_COUNT: usize = 8;
/// Bytes of the hash keys, the contents of the first file.
const HASH_KEY_BYTES: usize = 16;
/// The number of buckets that locks fall into. Two locks in one bucket cost needless wake-ups, no more.
const BUCKET_COUNT: usize = 1024;
/// Words per bucket: waiting processes, releases, and the reservation (process, lock, and the time of its renewal in milliseconds).
/// A cache line, so that buckets do not delay each other.
const BUCKET_WORDS: usize = 8;
/// How long a reservation is valid. A waiting process renews it with each attempt, several times as often; one that was stopped
/// (SIGSTOP, a debugger) cannot take the lock, and must not keep it from others.
const RESERVATION_TIMEOUT_MS: u64 = 1000;

/// A lock by its name, hashed with the name of its set: 3 bits select the file, 63 bits a byte in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LockId(u64);

/// Shared by all sets of locks of a program.
pub(super) struct LockDomain {
    files: Vec<&'static ByteRangeLocks>,
    hasher: SharedHasher,
    processes: &'static ProcessTable,
    words: &'static [AtomicU64],
    pub(super) release_event: &'static BroadcastEvent,
}

/// The outcome of an attempt to take a lock.
pub(super) enum LockAttempt {
    Locked,
    /// A process that must release the lock first; `None` if it is not known.
    Blocked(Option<u32>),
}

static RELEASE_EVENT: OnceLock<BroadcastEvent> = OnceLock::new();
static LOCK_DOMAIN: OnceLock<LockDomain> = OnceLock::new();

/// Takes over the event of the previous image.
pub(in crate::shared) fn inherit_release_event(fd: OwnedFd) {
    RELEASE_EVENT.get_or_init(|| BroadcastEvent::from_inherited(fd));
}

/// Returns the descriptor of the event, for the next image.
pub(in crate::shared) fn release_event_fd() -> Option<BorrowedFd<'static>> {
    RELEASE_EVENT.get().map(AsFd::as_fd)
}

impl LockDomain {
    /// Returns the domain of this program. Called before the fork, by one thread.
    pub(super) fn get_or_create() -> Result<&'static LockDomain> {
        match LOCK_DOMAIN.get() {
            Some(domain) => Ok(domain),
            None => {
                let domain = LockDomain::create()?;
                Ok(LOCK_DOMAIN.get_or_init(|| domain))
            }
        }
    }

    fn create() -> Result<LockDomain> {
        let failed = |e| Error::system("create the files of locks by name", e);
        let first = lock_files::get_or_create_with("names-0", draw_hash_keys)?;
        let keys = first.read_contents(HASH_KEY_BYTES).map_err(failed)?;
        let keys: [u8; HASH_KEY_BYTES] =
            keys.try_into().map_err(|_| failed(io::Error::from(io::ErrorKind::InvalidData)))?;
        let mut files = vec![first];
        for index in 1..LOCK_FILE_COUNT {
            files.push(lock_files::get_or_create(&format!("names-{index}"))?);
        }
        let processes = ProcessTable::get_or_create()?;
        let layout = format!("2 processes={PROCESS_TABLE_LAYOUT}");
        let words = BUCKET_COUNT * BUCKET_WORDS;
        let layout = PieceLayout { kind: "locks", layout: &layout, words };
        let words = memory::allocate("waiting", layout)?.words;
        let release_event = match RELEASE_EVENT.get() {
            Some(event) => event,
            None => {
                let event = BroadcastEvent::create().map_err(failed)?;
                RELEASE_EVENT.get_or_init(|| event)
            }
        };
        let hasher = SharedHasher::with_keys(u128::from_ne_bytes(keys));
        Ok(LockDomain { files, hasher, processes, words, release_event })
    }

    pub(super) fn lock_id(&self, set: &str, name: &str) -> LockId {
        // No name of a set contains the separator.
        LockId(self.hasher.hash_bytes(&[set.as_bytes(), b"\xff", name.as_bytes()]))
    }

    fn file_and_byte(&self, id: LockId) -> (&'static ByteRangeLocks, u64) {
        (self.files[id.0 as usize % LOCK_FILE_COUNT], id.0 >> 1)
    }

    /// Takes the lock for this process, unless other processes hold it. This process must not hold it.
    pub(super) fn try_lock(&self, id: LockId, mode: LockMode) -> io::Result<bool> {
        let (file, byte) = self.file_and_byte(id);
        match mode {
            LockMode::Exclusive => file.try_lock(byte),
            LockMode::Shared => file.try_lock_shared(byte),
        }
    }

    /// Takes the lock unless another process has reserved or holds it, and then returns which.
    pub(super) fn attempt(&self, id: LockId, mode: LockMode) -> io::Result<LockAttempt> {
        if let Some(other) = self.other_reserving_process(id) {
            return Ok(LockAttempt::Blocked(self.processes.pid(other)));
        }
        if self.try_lock(id, mode)? {
            return Ok(LockAttempt::Locked);
        }
        Ok(LockAttempt::Blocked(self.holder_pid(id, mode)?.filter(|pid| *pid != 0)))
    }

    /// Returns the pid of another process because of which this one cannot have the lock.
    pub(super) fn holder_pid(&self, id: LockId, mode: LockMode) -> io::Result<Option<u32>> {
        let (file, byte) = self.file_and_byte(id);
        match mode {
            LockMode::Exclusive => file.holder_pid(byte),
            LockMode::Shared => file.exclusive_holder_pid(byte),
        }
    }

    /// Releases the lock, and wakes the processes that wait for it.
    pub(super) fn unlock(&self, id: LockId) {
        let (file, byte) = self.file_and_byte(id);
        // Unlocking a held lock of an open file does not fail.
        if let Err(e) = file.unlock(byte) {
            log::error!("cannot release a lock; error={e}");
        }
        self.wake_waiting(id);
    }

    /// Wakes the processes that wait for a lock in the bucket of `id`. Call it after the change that they wait for.
    pub(super) fn wake_waiting(&self, id: LockId) {
        // A process counts as waiting before its last attempt. So either the attempt succeeds, or its count is seen here.
        if self.waiting_count(id) > 0 {
            self.bucket(id)[1].fetch_add(1, Ordering::SeqCst);
            if let Err(e) = self.release_event.signal() {
                log::error!("cannot wake the processes that wait for a lock; error={e}");
            }
        }
    }

    /// Returns how many processes wait for locks in the bucket. Too many if one was killed while it waited.
    pub(super) fn waiting_count(&self, id: LockId) -> u64 {
        self.bucket(id)[0].load(Ordering::SeqCst)
    }

    /// Counts this process as waiting for the lock.
    pub(super) fn add_waiting(&self, id: LockId) {
        self.bucket(id)[0].fetch_add(1, Ordering::SeqCst);
    }

    /// Undoes [`add_waiting`](Self::add_waiting), and ends the reservation.
    pub(super) fn remove_waiting(&self, id: LockId) {
        self.bucket(id)[0].fetch_sub(1, Ordering::SeqCst);
        if self.end_reservation(id) {
            // Others may have waited because of the reservation alone.
            self.wake_waiting(id);
        }
    }

    /// Returns a number that changes when locks in the bucket are released.
    pub(super) fn release_count(&self, id: LockId) -> u64 {
        self.bucket(id)[1].load(Ordering::SeqCst)
    }

    /// Lets this process have the lock before others that ask for it later, unless another lock in the bucket is reserved.
    pub(super) fn reserve(&self, id: LockId) {
        let Some(own) = self.processes.current_process() else { return };
        let bucket = self.bucket(id);
        let current = bucket[2].load(Ordering::SeqCst);
        let is_free = current == own.0 || !self.is_valid_reservation(bucket, current);
        let taken = is_free
            && bucket[2]
                .compare_exchange(current, own.0, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok();
        if taken {
            // Until these stores the reservation may be for another lock, or expired. That only affects the order for a moment.
            bucket[3].store(id.0, Ordering::SeqCst);
            bucket[4].store(prefork_os::system::monotonic_ms(), Ordering::SeqCst);
        }
    }

    /// Returns whether `process` has a reservation in the bucket, lives, and has renewed it.
    fn is_valid_reservation(&self, bucket: [&AtomicU64; BUCKET_WORDS], process: u64) -> bool {
        let renewed = bucket[4].load(Ordering::SeqCst);
        let age = prefork_os::system::monotonic_ms().saturating_sub(renewed);
        process != 0
            && age <= RESERVATION_TIMEOUT_MS
            && self.processes.is_alive(ProcessIdentity(process))
    }

    /// Ends the reservation of this process for the lock. Returns whether there was one.
    pub(super) fn end_reservation(&self, id: LockId) -> bool {
        let [_, _, process, lock, ..] = self.bucket(id);
        let is_reserved =
            process.load(Ordering::SeqCst) != 0 && lock.load(Ordering::SeqCst) == id.0;
        let own = self.processes.current_process().filter(|_| is_reserved);
        own.is_some_and(|own| {
            process.compare_exchange(own.0, 0, Ordering::SeqCst, Ordering::SeqCst).is_ok()
        })
    }

    /// Returns another live process that has reserved the lock.
    pub(super) fn other_reserving_process(&self, id: LockId) -> Option<ProcessIdentity> {
        let bucket = self.bucket(id);
        let reserving = ProcessIdentity(bucket[2].load(Ordering::SeqCst));
        if reserving.0 == 0 || bucket[3].load(Ordering::SeqCst) != id.0 {
            return None;
        }
        let is_other = self.processes.current_process() != Some(reserving);
        (is_other && self.is_valid_reservation(bucket, reserving.0)).then_some(reserving)
    }

    fn bucket(&self, id: LockId) -> [&'static AtomicU64; BUCKET_WORDS] {
        let first = (id.0 >> 3) as usize % BUCKET_COUNT * BUCKET_WORDS;
        std::array::from_fn(|word| &self.words[first + word])
    }
}

/// Draws keys that clients cannot know, so that they cannot choose names that collide.
fn draw_hash_keys() -> io::Result<Vec<u8>> {
    let keys = [prefork_os::system::random_u64()?, prefork_os::system::random_u64()?];
    Ok(keys.into_iter().flat_map(u64::to_ne_bytes).collect())
}
