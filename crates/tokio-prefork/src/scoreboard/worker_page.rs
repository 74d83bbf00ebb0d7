//! A worker's own row: the only page it can write.

use std::cell::RefCell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::duration_histogram::bucket_of;
use super::in_flight::{self, Entries, Ticket};
use super::page_layout::{
    ACCEPTED, ACCEPTING, ACTIVE, BEAT, BYTES_IN, BYTES_OUT, CUT, FULL, HANDED_OVER, LAG, OPEN,
    PANICS, PID, QUEUE_WAIT, REQUESTS, RESPONSES, SHED, SLOT, STARTED, STATE, TAKEN_OVER,
    TIMED_OUT, Word,
};
use super::pool_counters::PoolMeter;
use super::shared_worker_page::{Row, SharedRow};
use prefork_os::shared_memory::SharedPage;
use prefork_os::system::monotonic_ms;
use prefork_supervisor::Slot;

/// A loop that has not turned for this long is not expected to take a connection soon. Three beats.
const STALE_MS: u64 = 300;

/// What a worker is doing, as it says itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WorkerState {
    /// Forked, not ready.
    Booting = 1,
    /// Accepting and serving.
    Serving = 2,
    /// Finishing what is open.
    Draining = 3,
    /// This thread has left; others of its process may still serve.
    Left = 4,
    /// It serves what is open, and no listening socket gives it new connections.
    CannotAccept = 5,
}

/// The writing side of one row. Every method is a few plain stores; none can fail or block.
pub(crate) struct OwnRow {
    page: &'static SharedPage,
    number: usize,
    entries: RefCell<Entries>,
    /// Other threads count in this row, too (see `SharedRow`).
    shared: bool,
}

impl OwnRow {
    pub(super) fn new(page: &'static SharedPage, number: usize) -> OwnRow {
        PID.store(page, std::process::id().into());
        STARTED.store(page, unix_ms());
        BEAT.store(page, monotonic_ms());
        STATE.store(page, WorkerState::Booting as u64);
        OwnRow { page, number, entries: RefCell::new(Entries::new()), shared: false }
    }

    /// From now on other threads count what they serve in this row.
    pub(crate) fn share(&mut self) {
        self.shared = true;
    }

    /// The part of the row in which other threads count; `None` if they may not.
    pub(crate) fn shared(&self) -> Option<SharedRow> {
        self.shared.then(|| SharedRow::new(self.page))
    }

    /// This row, as another thread of the process sees it.
    pub(crate) fn of_thread(&self) -> ThreadRow {
        ThreadRow(self.page)
    }

    pub(super) fn is(&self, page: &SharedPage) -> bool {
        // The two are different mappings of the same memory, so compare who stands in it.
        PID.load(self.page) == PID.load(page)
    }

    /// Which place on the board it has, from 0.
    pub(crate) fn number(&self) -> usize {
        self.number
    }

    pub(crate) fn state(&self, state: WorkerState) {
        STATE.store(self.page, state as u64);
    }

    /// The loop turned at `now_ms`.
    pub(crate) fn beat(&self, now_ms: u64) {
        BEAT.store(self.page, now_ms);
    }

    /// The loop turned so much later than it wanted to.
    pub(crate) fn lagged(&self, late: Duration) {
        LAG.plus(bucket_of(millis(late))).add(self.page, 1);
    }

    /// Whether this worker takes new connections at the moment.
    pub(crate) fn accepting(&self, yes: bool) {
        ACCEPTING.store(self.page, u64::from(yes));
    }

    /// Whether this worker has as many connections as it may have.
    pub(crate) fn full(&self, is_full: bool) {
        FULL.store(self.page, u64::from(is_full));
    }

    /// A connection was accepted.
    pub(crate) fn opened(&self) {
        ACCEPTED.add(self.page, 1);
        OPEN.add(self.page, 1);
    }

    /// A connection waited in the kernel's queue for so long.
    pub(crate) fn waited(&self, span: Duration) {
        QUEUE_WAIT.plus(bucket_of(millis(span))).add(self.page, 1);
    }

    /// A connection was refused, as it had waited for too long.
    pub(crate) fn shed(&self) {
        SHED.add(self.page, 1);
    }

    /// A connection was taken over from another worker.
    pub(crate) fn taken_over(&self) {
        TAKEN_OVER.add(self.page, 1);
        OPEN.add(self.page, 1);
    }

    /// A connection was sent to another worker; `closed` is told as for any other.
    pub(crate) fn handed_over(&self) {
        HANDED_OVER.add(self.page, 1);
    }

    /// A connection is gone.
    pub(crate) fn closed(&self) {
        OPEN.add(self.page, u64::MAX);
    }

    /// A connection was cut by a limit or a deadline.
    pub(crate) fn cut(&self) {
        CUT.add(self.page, 1);
    }

    /// How many connections are open.
    pub(crate) fn open(&self) -> u64 {
        OPEN.load(self.page)
    }

    /// What the worker's CPU pool counts.
    pub(crate) fn pool(&self) -> PoolMeter {
        PoolMeter::of(self.page)
    }
}

impl Row for OwnRow {
    fn meter(&self) -> Meter {
        Meter { page: self.page, shared: self.shared }
    }

    fn describe(&self, ticket: Option<Ticket>) -> Option<String> {
        ticket.and_then(|ticket| in_flight::read(self.page, ticket))
    }

    fn panicked(&self) {
        PANICS.add(self.page, 1);
    }

    fn timed_out(&self) {
        TIMED_OUT.add(self.page, 1);
    }

    fn begin(&self, method: &str, path: &str, now_ms: u64) -> Option<Ticket> {
        REQUESTS.add(self.page, 1);
        ACTIVE.add(self.page, 1);
        self.entries.borrow_mut().begin(self.page, method, path, now_ms)
    }

    fn running(&self, ticket: Option<Ticket>) {
        Entries::running(self.page, ticket);
    }

    fn responded(&self, status: u16) {
        if let class @ 1..=5 = usize::from(status / 100) {
            RESPONSES.plus(class - 1).add(self.page, 1);
        }
    }

    fn finish(&self, ticket: Option<Ticket>) {
        ACTIVE.add(self.page, u64::MAX);
        if let Some(ticket) = ticket {
            self.entries.borrow_mut().finish(self.page, ticket);
        }
    }
}

/// Counts the bytes of a connection, and tells the time. May move to another thread with an upgraded connection.
#[derive(Clone, Copy)]
pub(crate) struct Meter {
    page: &'static SharedPage,
    shared: bool,
}

impl Meter {
    pub(super) fn shared(page: &'static SharedPage) -> Meter {
        Meter { page, shared: true }
    }

    pub(crate) fn bytes_in(&self, n: usize) {
        self.add(BYTES_IN, n);
    }

    pub(crate) fn bytes_out(&self, n: usize) {
        self.add(BYTES_OUT, n);
    }

    fn add(&self, word: Word, n: usize) {
        if self.shared {
            word.add_shared(self.page, n as u64)
        } else {
            word.add(self.page, n as u64)
        }
    }

    /// The time of the last beat, in milliseconds on the monotonic clock: good to a tenth of a second, and
    /// free of a system call.
    pub(crate) fn now_ms(&self) -> u64 {
        BEAT.load(self.page)
    }
}

/// The row of a thread, for another one of its process.
pub(crate) struct ThreadRow(&'static SharedPage);

impl ThreadRow {
    /// How many connections are open.
    pub(crate) fn open(&self) -> u64 {
        OPEN.load(self.0)
    }

    /// Whether it serves, full or not, and its loop turns.
    pub(crate) fn serves(&self, now_ms: u64) -> bool {
        serves(self.0, now_ms)
    }

    /// Says that the thread has left, when it cannot say so itself any more.
    pub(crate) fn left(&self) {
        ACCEPTING.store(self.0, 0);
        STATE.store(self.0, WorkerState::Left as u64);
    }
}

/// Whether the worker of `page` could take a new connection right now: it says so, and its loop turns.
pub(super) fn can_take_one(page: &SharedPage, now_ms: u64) -> bool {
    ACCEPTING.load(page) == 1 && serves(page, now_ms)
}

/// Whether the worker of `page` serves connections, full or not, and its loop turns.
pub(super) fn serves(page: &SharedPage, now_ms: u64) -> bool {
    let web = SLOT.load(page) < u64::from(Slot::PER_KIND);
    web && STATE.load(page) == WorkerState::Serving as u64 && turns(page, now_ms)
}

/// Whether the loop of the worker of `page` turns.
pub(super) fn turns(page: &SharedPage, now_ms: u64) -> bool {
    now_ms.saturating_sub(BEAT.load(page)) < STALE_MS
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}
