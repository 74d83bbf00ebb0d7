//! The words of a scoreboard page and what each of them holds.
//!
//! A word has one writer: the thread that owns the page. If several threads share a page, they add with locked
//! instructions. The next image of an upgrade reads the pages of workers of this one, so words never move.

use std::sync::atomic::{AtomicU64, Ordering};

use super::duration_histogram::DURATION_BUCKETS;
use crate::status::TRAFFIC_COUNTERS;
use prefork_os::shared_memory::{SharedPage, WORDS_PER_PAGE};

/// The index of one 64-bit word of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PageWord(usize);

/// The state of the worker, as `page_reader` numbers it. On the primary's page: 1 while the cluster stops.
pub(crate) const STATE: PageWord = PageWord(0);
pub(crate) const WORKER_ID: PageWord = PageWord(1);
pub(crate) const SLOT: PageWord = PageWord(2);
/// On the primary's page: the generation of new workers.
pub(crate) const GENERATION: PageWord = PageWord(3);
pub(crate) const PID: PageWord = PageWord(4);
/// Start time, milliseconds since 1970.
pub(crate) const STARTED_AT_MS: PageWord = PageWord(5);
/// Time of the event loop's last heartbeat, milliseconds on the monotonic clock. While the event loop of an idle worker sleeps: of the
/// next one.
pub(crate) const HEARTBEAT_MS: PageWord = PageWord(6);
pub(crate) const OPEN_CONNECTIONS: PageWord = PageWord(7);
/// Requests in progress.
pub(crate) const ACTIVE_REQUESTS: PageWord = PageWord(8);
/// The in-flight entry whose handler is on the event loop, plus one; 0 for none.
pub(crate) const RUNNING_ENTRY: PageWord = PageWord(9);
/// 1 while the worker accepts new connections.
pub(crate) const IS_ACCEPTING: PageWord = PageWord(10);
/// The number of the thread that the page belongs to, within its process.
pub(crate) const THREAD: PageWord = PageWord(11);
/// 1 while the worker has as many connections as it may have.
pub(crate) const IS_FULL: PageWord = PageWord(12);
/// The id of the isolated job that the process has begun last; 0 before the first.
pub(crate) const BEGUN_JOB: PageWord = PageWord(13);
/// When the running isolated job began, milliseconds on the monotonic clock; 0 while none runs.
pub(crate) const JOB_STARTED_MS: PageWord = PageWord(14);
/// 1 if the process aborts because a limit of memory made an allocation fail.
pub(crate) const FAILED_ALLOCATION: PageWord = PageWord(15);

/// The traffic counters, in the order of the fields of `TrafficCounters`. They are kept when a worker dies.
pub(crate) const FIRST_COUNTER: PageWord = ACCEPTED;
pub(crate) const ACCEPTED: PageWord = PageWord(16);
pub(crate) const REQUESTS: PageWord = PageWord(17);
/// Responses 1xx to 5xx: five words.
pub(crate) const RESPONSES: PageWord = PageWord(18);
pub(crate) const BYTES_IN: PageWord = PageWord(23);
pub(crate) const BYTES_OUT: PageWord = PageWord(24);
pub(crate) const PANICS: PageWord = PageWord(25);
/// Connections closed in use: at the drain deadline, or because they took too long.
pub(crate) const CUT_CONNECTIONS: PageWord = PageWord(26);
/// Connections sent to another worker while draining.
pub(crate) const HANDED_OVER: PageWord = PageWord(27);
/// Connections taken over from another worker.
pub(crate) const TAKEN_OVER: PageWord = PageWord(28);
/// Connections refused because they had waited in the queue for too long.
pub(crate) const SHED_CONNECTIONS: PageWord = PageWord(29);
/// Requests ended by `request-timeout`.
pub(crate) const TIMED_OUT_REQUESTS: PageWord = PageWord(30);
/// Connections that waited or were refused because the worker was full.
pub(crate) const OVER_LIMIT_CONNECTIONS: PageWord = PageWord(31);

/// On the primary's page: how many workers of the kind `web` there should be.
pub(crate) const WORKERS_WANTED: PageWord = PageWord(32);
/// On the primary's page: how many workers were forked in place of one that ended unasked.
pub(crate) const RESTARTS: PageWord = PageWord(33);
/// On the primary's page: how many pages have ever been used.
pub(crate) const PAGES_USED: PageWord = PageWord(34);
/// On the primary's page: 1 while it accepts for all workers and none of its sockets gives connections.
pub(crate) const CANNOT_ACCEPT: PageWord = PageWord(35);

/// How late the heartbeats of the event loop were: a histogram. On the primary's page: of dead workers.
pub(crate) const LOOP_LAG: PageWord = PageWord(40);
/// On the primary's page: the first page with records of CPU pools; 0 on a scoreboard of a version without such pages.
pub(crate) const POOL_PAGES_START: PageWord = PageWord(36);
/// On the primary's page: how many isolated pools have records.
pub(crate) const ISOLATED_RECORDS: PageWord = PageWord(37);
/// On the primary's page: the first request page; 0 on a scoreboard of a version without such pages.
pub(crate) const REQUEST_PAGES_START: PageWord = PageWord(38);
/// On the primary's page: odd while the primary moves counts of a dead worker into its sums. See `read_consistent`.
pub(crate) const SUMS_SEQUENCE: PageWord = PageWord(39);
/// How long connections waited in the kernel's queue: a histogram. On the primary's page: of dead workers.
pub(crate) const QUEUE_WAIT: PageWord = PageWord(432);
/// A bit for each record in use on the pool pages of the worker, or of the primary. The words behind it are free.
pub(crate) const POOL_RECORDS_IN_USE: PageWord = PageWord(QUEUE_WAIT.0 + DURATION_BUCKETS);

/// On the page of a guard: the pid of its program; 0 before it is started.
pub(crate) const PROGRAM_PID: PageWord = PageWord(500);
/// On the page of a guard: the number of processes of its program.
pub(crate) const PROGRAM_PROCESSES: PageWord = PageWord(501);
/// On the page of a guard: how many connections wait in the accept queues of its program.
pub(crate) const PROGRAM_QUEUED: PageWord = PageWord(502);
/// On the page of a guard: the resident memory of all processes of its program, in bytes.
pub(crate) const PROGRAM_RESIDENT_BYTES: PageWord = PageWord(503);
/// On the page of a guard: the CPU time of its program, in microseconds.
pub(crate) const PROGRAM_CPU_US: PageWord = PageWord(504);

/// How many of the open connections are parked.
pub(crate) const PARKED_CONNECTIONS: PageWord = PageWord(505);

/// Connections closed because of their PROXY header: the last traffic counter, apart from the others.
pub(crate) const REFUSED_PROXY_HEADERS: PageWord = PageWord(WORDS_PER_PAGE - 1);

/// The first word of the in-flight entries, which fill the page up to `QUEUE_WAIT`.
pub(crate) const IN_FLIGHT_START: usize = 64;
/// How many words an in-flight entry has: sequence, start, length, and 13 of text.
pub(crate) const IN_FLIGHT_ENTRY_WORDS: usize = 16;
/// How many entries a page has. Requests without a free one are only counted.
pub(crate) const IN_FLIGHT_ENTRIES: usize =
    (QUEUE_WAIT.0 - IN_FLIGHT_START) / IN_FLIGHT_ENTRY_WORDS;
/// The last entry, which lists what holds a draining worker beside its requests.
pub(crate) const HOLDS_ENTRY: usize = IN_FLIGHT_ENTRIES - 1;
/// How many bytes of method and path are kept.
pub(crate) const MAX_REQUEST_BYTES: usize = (IN_FLIGHT_ENTRY_WORDS - 3) * 8;

const _: () = assert!(
    FIRST_COUNTER.0 + TRAFFIC_COUNTERS == OVER_LIMIT_CONNECTIONS.0 + 2
        && OVER_LIMIT_CONNECTIONS.0 < WORKERS_WANTED.0
        && SUMS_SEQUENCE.0 < LOOP_LAG.0
        && LOOP_LAG.0 + DURATION_BUCKETS <= IN_FLIGHT_START
        && IN_FLIGHT_ENTRIES == 23
        && POOL_RECORDS_IN_USE.0 < PROGRAM_PID.0
);

impl PageWord {
    pub(crate) const fn at(index: usize) -> PageWord {
        PageWord(index)
    }

    /// Returns the word of the traffic counter with this index in the order of the fields of `TrafficCounters`.
    pub(crate) const fn of_counter(index: usize) -> PageWord {
        match index {
            last if last == TRAFFIC_COUNTERS - 1 => REFUSED_PROXY_HEADERS,
            index => FIRST_COUNTER.plus(index),
        }
    }

    pub(crate) const fn plus(self, by: usize) -> PageWord {
        PageWord(self.0 + by)
    }

    /// Returns the word itself, for what has to know its address.
    pub(crate) fn of_page(self, page: &SharedPage) -> &AtomicU64 {
        &page[self.0]
    }

    pub(crate) fn load(self, page: &SharedPage) -> u64 {
        page[self.0].load(Ordering::Relaxed)
    }

    pub(crate) fn store(self, page: &SharedPage, value: u64) {
        page[self.0].store(value, Ordering::Relaxed);
    }

    /// Reads a word, and sees what its writer has written before it.
    pub(crate) fn load_acquire(self, page: &SharedPage) -> u64 {
        page[self.0].load(Ordering::Acquire)
    }

    /// Writes a word, and publishes what was written before.
    pub(crate) fn store_release(self, page: &SharedPage, value: u64) {
        page[self.0].store(value, Ordering::Release);
    }

    /// Sets a bit, below 64, of a word that several threads write. Publishes what was written before.
    pub(crate) fn set_bit(self, page: &SharedPage, bit: usize) {
        page[self.0].fetch_or(1 << bit, Ordering::Release);
    }

    pub(crate) fn has_bit(self, page: &SharedPage, bit: usize) -> bool {
        self.load_acquire(page) >> bit & 1 == 1
    }

    /// Adds to a word that several threads write. Wraps around.
    pub(crate) fn add_shared(self, page: &SharedPage, by: u64) {
        page[self.0].fetch_add(by, Ordering::Relaxed);
    }

    /// Adds to a word with one writer, without a locked instruction. Wraps around, as the old value may be anything.
    pub(crate) fn add(self, page: &SharedPage, by: u64) {
        self.store(page, self.load(page).wrapping_add(by));
    }
}
