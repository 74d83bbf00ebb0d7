//! Names of the atomic words of a page. A word has one writer: the thread that owns the page. Where several threads
//! share one, they add with locked instructions.

use std::sync::atomic::Ordering;

use super::duration_histogram::BUCKETS;
use prefork_os::shared_memory::{SharedPage, WORDS_PER_PAGE};

/// One 64-bit word of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Word(usize);

/// What the owner of the page is doing: see `WorkerState`. In the primary's page 1 while stopping.
pub(crate) const STATE: Word = Word(0);
pub(crate) const ID: Word = Word(1);
pub(crate) const SLOT: Word = Word(2);
pub(crate) const GENERATION: Word = Word(3);
pub(crate) const PID: Word = Word(4);
/// Start time, milliseconds since 1970.
pub(crate) const STARTED: Word = Word(5);
/// The last time the event loop turned, milliseconds on the monotonic clock.
pub(crate) const BEAT: Word = Word(6);
/// Open connections.
pub(crate) const OPEN: Word = Word(7);
/// Requests being answered.
pub(crate) const ACTIVE: Word = Word(8);
/// The in-flight entry whose handler is running on the loop right now, plus one; 0 for none.
pub(crate) const NOW: Word = Word(9);
/// 1 while the worker takes new connections.
pub(crate) const ACCEPTING: Word = Word(10);

/// 1 while the worker has as many connections as it may have.
pub(crate) const FULL: Word = Word(12);

/// Which of the threads of its process the page belongs to.
pub(crate) const THREAD: Word = Word(11);

pub(crate) const ACCEPTED: Word = Word(16);
pub(crate) const REQUESTS: Word = Word(17);
/// Responses 1xx to 5xx: five words.
pub(crate) const RESPONSES: Word = Word(18);
pub(crate) const BYTES_IN: Word = Word(23);
pub(crate) const BYTES_OUT: Word = Word(24);
pub(crate) const PANICS: Word = Word(25);
/// Connections refused or cut by a limit or a deadline.
pub(crate) const CUT: Word = Word(26);
/// Connections sent to another worker while draining.
pub(crate) const HANDED_OVER: Word = Word(27);
/// Connections taken over from another worker.
pub(crate) const TAKEN_OVER: Word = Word(28);
/// Connections that were refused as they had waited for too long.
pub(crate) const SHED: Word = Word(29);
/// Requests that were ended as they took longer than `request-timeout`.
pub(crate) const TIMED_OUT: Word = Word(30);

/// Only in the primary's page: workers wanted, replacements forked, rows ever used.
pub(crate) const WANTED: Word = Word(32);
pub(crate) const RESTARTS: Word = Word(33);
pub(crate) const ROWS: Word = Word(34);
/// On the page of the primary: 1 while it accepts for all workers and none of its sockets gives connections.
pub(crate) const CANNOT_ACCEPT: Word = Word(35);

/// The counters that are kept when a worker dies: all from `ACCEPTED` to `TIMED_OUT`.
pub(crate) const COUNTERS: std::ops::RangeInclusive<usize> = ACCEPTED.0..=TIMED_OUT.0;

/// How late the event loop turned, in `BUCKETS` words.
pub(crate) const LAG: Word = Word(40);

/// How long connections waited in the kernel's queue, in `BUCKETS` words before the block of the pool.
pub(crate) const QUEUE_WAIT: Word = Word(POOL - BUCKETS);

/// In-flight entries fill the page from here on, up to `QUEUE_WAIT`.
pub(crate) const ENTRIES: usize = 64;
/// Words of one in-flight entry: sequence, start, length, and 13 of text.
pub(crate) const ENTRY: usize = 16;
/// How many requests of a worker can be seen at once; the others are only counted.
pub(crate) const ENTRY_COUNT: usize = (QUEUE_WAIT.0 - ENTRIES) / ENTRY;
/// The figures of the CPU pool, at the end of the page: see `pool.rs`.
pub(crate) const POOL: usize = WORDS_PER_PAGE - POOL_WORDS;
pub(crate) const POOL_WORDS: usize = 64;
/// Bytes of method and path that are kept.
pub(crate) const TEXT: usize = (ENTRY - 3) * 8;

const _: () = assert!(
    TIMED_OUT.0 < WANTED.0 && ROWS.0 < LAG.0 && LAG.0 + BUCKETS <= ENTRIES && ENTRY_COUNT == 23
);

impl Word {
    pub(crate) const fn at(index: usize) -> Word {
        Word(index)
    }

    pub(crate) const fn plus(self, by: usize) -> Word {
        Word(self.0 + by)
    }

    pub(crate) fn load(self, page: &SharedPage) -> u64 {
        page[self.0].load(Ordering::Relaxed)
    }

    pub(crate) fn store(self, page: &SharedPage, value: u64) {
        page[self.0].store(value, Ordering::Relaxed);
    }

    /// Adds where several threads do. Wraps, too.
    pub(crate) fn add_shared(self, page: &SharedPage, by: u64) {
        page[self.0].fetch_add(by, Ordering::Relaxed);
    }

    /// Adds without a locked instruction: the page has one writer. Wraps rather than panics, as the old value
    /// may be anything.
    pub(crate) fn add(self, page: &SharedPage, by: u64) {
        self.store(page, self.load(page).wrapping_add(by));
    }
}
