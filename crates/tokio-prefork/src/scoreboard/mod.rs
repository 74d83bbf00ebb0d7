//! The scoreboard: shared memory with one page for each worker, or each of its threads, and one for the primary.
//!
//! A worker writes its own page and can only read the others. The primary reads all pages and *trusts nothing* it
//! reads: no number from a page is an index, a length, a pid or a pointer to it, only a figure to
//! show. (Apache's CVE-2019-0211, CVE-2012-0031 and CVE-2007-3304 are what happens otherwise.) The primary knows from
//! its own memory which worker has which page and whether it lives.
//!
//! A worker has one page, or one for each of its threads: a page has one writer, which adds without locked
//! instructions. If several threads have to write to one page, they do so through a [`SharedWorkerPage`].
//!
//! A page belongs to one worker from its fork until its exit is reaped. Then its counters are added to the primary's
//! page, where they stay in the totals, and the page is cleared for the next worker. How other processes read sums meanwhile is
//! told in `consistent_sums`. A worker page has a second one, `request_page`, and the CPU pools of a worker have pages of their own,
//! `pool_pages`; only its process can write them.

mod consistent_sums;
mod duration_histogram;
mod in_flight;
mod isolated_records;
mod page_layout;
mod page_reader;
mod pool_counters;
mod pool_pages;
mod pool_record;
mod pool_utilisation;
mod reader;
mod request_page;
mod shared_worker_page;
mod supervision_words;
mod worker_page;

use std::io;
use std::os::fd::OwnedFd;

use consistent_sums::{InheritedTable, SumsChange, existing_pages, inherited_pages};
use page_layout::{
    BEGUN_JOB, CANNOT_ACCEPT, FAILED_ALLOCATION, GENERATION, HEARTBEAT_MS, OPEN_CONNECTIONS,
    PAGES_USED, PID, POOL_PAGES_START, REQUEST_PAGES_START, RESTARTS, SLOT, STARTED_AT_MS, STATE,
    TAKEN_OVER, THREAD, WORKER_ID, WORKERS_WANTED,
};
use page_reader::PagePair;
use prefork_os::shared_memory::{self, ReadOnlyPages, SharedPage, WritablePages};
use prefork_supervisor::{Generation, Slot, WorkerTag};

use crate::status::{
    IsolatedPoolStatus, KeptFigures, PoolStatus, SumsOfDeadWorkers, SupervisionCounters,
    TrafficCounters, WorkerState, WorkerStatus, unix_time_ms,
};

pub(crate) use duration_histogram::{DURATION_BUCKETS, duration_quantile};
pub(crate) use in_flight::{HOLD_METHOD, InFlightEntry};
pub(crate) use page_reader::HeartbeatSample;
pub(crate) use pool_counters::PoolCounters;
pub(crate) use pool_pages::PoolRecords;
pub(crate) use pool_record::JobOutcome;
pub(crate) use pool_record::MAX_POOL_NAME_BYTES;
pub(crate) use reader::{OtherWorkerLoad, ScoreboardReader};
pub(crate) use request_page::LogLineCounters;
pub(crate) use request_page::RequestClass;
pub(crate) use shared_worker_page::SharedWorkerPage;
pub(crate) use worker_page::{ByteMeter, RequestRecorder, ThreadPageView, WorkerPage};

/// The index of the primary's page.
const PRIMARY_PAGE: usize = 0;

/// The pages of one worker. The primary keeps them in its own memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WorkerPages {
    /// Pages on the scoreboard of this image.
    Own(PageRange),
    /// Pages on a scoreboard inherited from an earlier image of this process; `board` counts those from 0.
    Inherited { board: usize, pages: PageRange },
}

/// A run of adjacent pages: one for each thread that needs its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PageRange {
    pub(crate) first: usize,
    pub(crate) count: usize,
}

/// The load that a worker publishes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct WorkerLoad {
    /// Whether its heartbeat is too old, or it does not serve.
    pub(crate) is_stale: bool,
    /// Whether its heartbeat is fresh, even if it does not serve.
    pub(crate) has_fresh_heartbeat: bool,
    /// Whether it accepts new connections, and its heartbeat is fresh.
    pub(crate) can_accept: bool,
    pub(crate) open_connections: u64,
    /// How many connections it has taken over from other workers.
    pub(crate) taken_over: u64,
}

/// The primary's side of the scoreboard: allocates pages, reads them and keeps the totals.
pub(crate) struct Scoreboard {
    writable: WritablePages,
    readable: ReadOnlyPages,
    /// The memory of the pages, for the next image. `None` in a worker.
    memory: Option<OwnedFd>,
    /// Scoreboards of workers that earlier images of this process forked.
    inherited: Vec<InheritedScoreboard>,
    /// Whether page `i + 1` belongs to a worker.
    is_allocated: Vec<bool>,
}

/// The scoreboard of an earlier image, whose workers may still live.
struct InheritedScoreboard {
    pages: ReadOnlyPages,
    /// The memory, for the next image. `None` when the last of its workers has ended.
    memory: Option<OwnedFd>,
}

impl Scoreboard {
    /// Creates shared memory for up to `pages` pages of workers. Untouched pages cost nothing.
    pub(crate) fn create(pages: usize) -> io::Result<Scoreboard> {
        let request_pages_start = pages + 1 + pool_pages::pool_page_count(pages);
        let request_pages = request_page::request_page_count(pages);
        let count = request_pages_start + request_pages + consistent_sums::INHERITED_PAGES;
        let (writable, readable, memory) = shared_memory::create_shared_pages(count)?;
        let page = writable.page(PRIMARY_PAGE);
        POOL_PAGES_START.store(page, pages as u64 + 1);
        REQUEST_PAGES_START.store(page, request_pages_start as u64);
        PID.store(page, std::process::id().into());
        STARTED_AT_MS.store(page, unix_time_ms());
        let (memory, inherited) = (Some(memory), Vec::new());
        Ok(Scoreboard { writable, readable, memory, inherited, is_allocated: vec![false; pages] })
    }

    /// Returns how many pages of workers there are. They are numbered from 1.
    pub(crate) fn worker_page_count(&self) -> usize {
        self.is_allocated.len()
    }

    /// Returns the scoreboard as that of this process, which was forked after it was created.
    pub(crate) fn into_primary(self) -> Scoreboard {
        PID.store(self.writable.page(PRIMARY_PAGE), std::process::id().into());
        self
    }

    /// Keeps only the reading side, in a process that has forked its primary.
    pub(crate) fn into_reader(mut self) -> io::Result<ScoreboardReader> {
        self.writable.unmap_all()?;
        Ok(self.reader(&[]))
    }

    /// Allocates `count` adjacent cleared pages for a worker about to be forked. `None` if there is no such run.
    pub(crate) fn allocate_pages(&mut self, tag: WorkerTag, count: usize) -> Option<WorkerPages> {
        let free = self.is_allocated.windows(count).position(|run| !run.contains(&true))?;
        let pages = PageRange { first: free + 1, count };
        let primary = self.writable.page(PRIMARY_PAGE);
        let _change = SumsChange::begin(primary);
        for index in request_page::request_pages_of(primary, pages.first, count) {
            self.writable.zero_page(index);
        }
        for (thread, index) in pages.page_numbers().enumerate() {
            self.is_allocated[index - 1] = true;
            self.writable.zero_page(index);
            let page = self.writable.page(index);
            WORKER_ID.store(page, tag.id.0);
            SLOT.store(page, tag.slot.0.into());
            GENERATION.store(page, tag.generation.0);
            THREAD.store(page, thread as u64);
            page_reader::store_state(page, WorkerState::Booting);
        }
        PAGES_USED.store(primary, PAGES_USED.load(primary).max((free + count) as u64));
        Some(WorkerPages::Own(pages))
    }

    /// Frees the pages of a dead worker and returns its last counters, which stay in the totals.
    pub(crate) fn release_pages(&mut self, pages: WorkerPages) -> TrafficCounters {
        let primary = self.writable.page(PRIMARY_PAGE);
        let _change = SumsChange::begin(primary);
        let (mut last, mut kept) = (TrafficCounters::default(), KeptFigures::default());
        for PagePair { worker, requests } in self.pages(pages) {
            last = last.sum_with(page_reader::read_counters(worker));
            kept = kept.sum_with(&request_page::read_last(worker, requests));
        }
        self.add_to_sums(&last, &kept, &self.read_pools(pages));
        match pages {
            WorkerPages::Own(pages) => {
                let request_pages =
                    request_page::request_pages_of(primary, pages.first, pages.count);
                for index in pages.page_numbers().chain(request_pages) {
                    self.writable.zero_page(index);
                }
                pages.page_numbers().for_each(|index| self.is_allocated[index - 1] = false);
            }
            WorkerPages::Inherited { board, pages } => self.inherited_table().remove(board, pages),
        }
        last
    }

    /// Adds to the sums over dead workers.
    fn add_to_sums(&self, totals: &TrafficCounters, kept: &KeptFigures, pools: &[PoolStatus]) {
        let primary = self.writable.page(PRIMARY_PAGE);
        page_reader::add_counters(primary, totals);
        request_page::add_to_sums(primary, self.own_request_page(), kept);
        self.add_pool_totals(pools);
    }

    /// Makes a worker of an earlier image visible to the readers of this scoreboard.
    pub(crate) fn add_inherited_worker(&self, pages: WorkerPages) {
        if let WorkerPages::Inherited { board, pages } = pages {
            let _change = SumsChange::begin(self.writable.page(PRIMARY_PAGE));
            self.inherited_table().add(board, pages);
        }
    }

    fn inherited_table(&self) -> InheritedTable<'_> {
        let pages = inherited_pages(self.readable.count());
        InheritedTable::new(pages.map(|index| self.writable.page(index)).collect())
    }

    /// Adds pools of dead workers to the totals.
    fn add_pool_totals(&self, pools: &[PoolStatus]) {
        let primary = self.writable.page(PRIMARY_PAGE);
        let pages = pool_pages::pool_pages_of_primary(primary);
        let pages: Vec<&SharedPage> = pages.map(|index| self.writable.page(index)).collect();
        for pool in pools {
            pool_pages::add_to_totals(primary, &pages, pool);
        }
    }

    /// Reads the pools of a worker.
    fn read_pools(&self, pages: WorkerPages) -> Vec<PoolStatus> {
        let Some((board, range)) = self.board_of(pages) else { return Vec::new() };
        read_pools_of_worker(board, range.first)
    }

    /// Continues the totals and the start time of the previous image.
    pub(crate) fn restore_totals(&mut self, sums: &SumsOfDeadWorkers, started_ms: u64) {
        let page = self.writable.page(PRIMARY_PAGE);
        let _change = SumsChange::begin(page);
        STARTED_AT_MS.store(page, started_ms);
        self.add_to_sums(&sums.totals, &sums.kept, &sums.pools);
    }

    /// Takes over the scoreboard of an earlier image. `WorkerPages::Inherited` counts them in the order of these calls.
    pub(crate) fn inherit(&mut self, memory: OwnedFd) -> io::Result<()> {
        let pages = shared_memory::map_inherited_pages(&memory)?;
        self.inherited.push(InheritedScoreboard { pages, memory: Some(memory) });
        Ok(())
    }

    /// Returns the memory of an inherited scoreboard.
    pub(crate) fn inherited_memory(&self, board: usize) -> Option<&OwnedFd> {
        self.inherited.get(board).and_then(|inherited| inherited.memory.as_ref())
    }

    /// Closes the memory of an inherited scoreboard whose last worker has ended; the next image does not need it.
    pub(crate) fn release_inherited(&mut self, board: usize) {
        if let Some(inherited) = self.inherited.get_mut(board) {
            inherited.memory = None;
        }
    }

    /// Returns the memory of the pages, for the next image.
    pub(crate) fn memory(&self) -> Option<&OwnedFd> {
        self.memory.as_ref()
    }

    /// Returns the sums over dead workers.
    pub(crate) fn sums_of_dead_workers(&self) -> SumsOfDeadWorkers {
        read_sums_of_dead_workers(self.readable)
    }

    /// Returns when the primary started, in milliseconds since 1970.
    pub(crate) fn started_at_ms(&self) -> u64 {
        STARTED_AT_MS.load(self.readable.page(PRIMARY_PAGE))
    }

    /// Publishes what the primary has counted.
    pub(crate) fn publish_supervision_counters(&self, counters: &SupervisionCounters) {
        supervision_words::store(self.own_request_page(), counters);
    }

    /// Publishes how many lines of the log were dropped and messages lost.
    pub(crate) fn publish_losses(&self, log_lines: u64, messages: u64) {
        supervision_words::store_losses(self.own_request_page(), log_lines, messages);
    }

    /// Returns what was published last.
    pub(crate) fn supervision_counters(&self) -> SupervisionCounters {
        let counters = supervision_words::read(self.own_request_page());
        SupervisionCounters { started_at_ms: self.started_at_ms(), ..counters }
    }

    /// Returns the request page of the primary.
    fn own_request_page(&self) -> &SharedPage {
        let primary = self.writable.page(PRIMARY_PAGE);
        let found = request_page::request_pages_of(primary, PRIMARY_PAGE, 1);
        self.writable.page(found.start)
    }

    /// Publishes the figures of a pool of isolated processes.
    pub(crate) fn publish_isolated_pool(&self, pool: &IsolatedPoolStatus) {
        let primary = self.writable.page(PRIMARY_PAGE);
        let pages = pool_pages::isolated_pages(primary);
        let pages: Vec<&SharedPage> = pages.map(|index| self.writable.page(index)).collect();
        isolated_records::publish(primary, &pages, pool);
    }

    /// Returns the published figures of all isolated pools.
    pub(crate) fn isolated_pools(&self) -> Vec<IsolatedPoolStatus> {
        read_isolated_pools(self.readable)
    }

    /// Returns the scoreboard with these pages.
    fn board_of(&self, pages: WorkerPages) -> Option<(ReadOnlyPages, PageRange)> {
        match pages {
            WorkerPages::Own(range) => Some((self.readable, range)),
            WorkerPages::Inherited { board, pages } => {
                self.inherited.get(board).map(|inherited| (inherited.pages, pages))
            }
        }
    }

    fn pages(&self, pages: WorkerPages) -> impl Iterator<Item = PagePair> + Clone {
        let board = self.board_of(pages).into_iter();
        board.flat_map(|(board, range)| page_pairs(board, range))
    }

    /// Publishes the state of the primary for all workers.
    pub(crate) fn publish(
        &self,
        generation: Generation,
        wanted: u32,
        restarts: u64,
        is_stopping: bool,
    ) {
        let page = self.writable.page(PRIMARY_PAGE);
        GENERATION.store(page, generation.0);
        WORKERS_WANTED.store(page, wanted.into());
        RESTARTS.store(page, restarts);
        STATE.store(page, u64::from(is_stopping));
    }

    /// Publishes whether the primary accepts for all workers and can accept from none of its sockets.
    pub(crate) fn set_cannot_accept(&self, cannot_accept: bool) {
        CANNOT_ACCEPT.store(self.writable.page(PRIMARY_PAGE), u64::from(cannot_accept));
    }

    /// Returns the value of the last `set_cannot_accept`.
    pub(crate) fn cannot_accept(&self) -> bool {
        CANNOT_ACCEPT.load(self.readable.page(PRIMARY_PAGE)) == 1
    }

    /// Records that a worker's event loop does not sleep of its own accord: a signal has stopped the process.
    pub(crate) fn end_sleep(&self, pages: WorkerPages, now_ms: u64) {
        // Workers of earlier images are not corrected, as their pages cannot be written.
        let WorkerPages::Own(pages) = pages else { return };
        for page in pages.page_numbers().map(|index| self.writable.page(index)) {
            if worker_page::is_sleeping(page, now_ms) {
                HEARTBEAT_MS.store(page, now_ms);
            }
        }
    }

    /// Reads the heartbeat and load of a worker for the primary's stall check.
    pub(crate) fn heartbeat_sample(&self, pages: WorkerPages) -> HeartbeatSample {
        HeartbeatSample::read(self.pages(pages))
    }

    /// Reads the load of a worker.
    pub(crate) fn worker_load(&self, pages: WorkerPages, now_ms: u64) -> WorkerLoad {
        let mut load = WorkerLoad { is_stale: true, ..WorkerLoad::default() };
        for PagePair { worker: page, .. } in self.pages(pages) {
            // A worker serves if any of its threads serves.
            load.is_stale &= !worker_page::is_serving(page, now_ms);
            load.has_fresh_heartbeat |= worker_page::has_fresh_heartbeat(page, now_ms);
            load.can_accept |= worker_page::can_accept(page, now_ms);
            load.open_connections = load.open_connections.wrapping_add(OPEN_CONNECTIONS.load(page));
            load.taken_over = load.taken_over.wrapping_add(TAKEN_OVER.load(page));
        }
        load
    }

    /// Returns the isolated job that a process has begun last; 0 for none.
    pub(crate) fn begun_job(&self, pages: WorkerPages) -> u64 {
        self.pages(pages).next().map_or(0, |page| BEGUN_JOB.load(page.worker))
    }

    /// Returns whether a process aborted because a limit of memory made an allocation fail.
    pub(crate) fn has_failed_allocation(&self, pages: WorkerPages) -> bool {
        self.pages(pages).next().is_some_and(|page| FAILED_ALLOCATION.load(page.worker) != 0)
    }

    /// Reads the status that a worker publishes. `None` if its pages are not in use.
    pub(crate) fn worker_status(&self, pages: WorkerPages) -> Option<WorkerStatus> {
        let worker = page_reader::read_worker(self.pages(pages))?;
        Some(WorkerStatus { pools: self.read_pools(pages), ..worker })
    }

    /// Keeps only the reading side, in a forked process that is no worker.
    pub(crate) fn unmap_writable_pages(&mut self) -> io::Result<()> {
        self.memory = None;
        self.writable.unmap_all()
    }

    /// Returns the reading side, with the kinds besides `web` and their first slots.
    pub(crate) fn reader(&self, kinds: &[(&'static str, Slot)]) -> ScoreboardReader {
        let inherited = self.inherited.iter().map(|board| board.pages).collect();
        ScoreboardReader { pages: self.readable, inherited, kinds: kinds.into() }
    }

    /// Returns the pages of a forked worker and makes all other pages read-only.
    pub(crate) fn keep_only_own_pages(
        &mut self,
        pages: WorkerPages,
    ) -> io::Result<Vec<WorkerPage>> {
        self.memory = None;
        self.inherited.clear();
        match pages {
            WorkerPages::Own(range) => {
                let primary = self.writable.page(PRIMARY_PAGE);
                let pool_pages = pool_pages::pool_pages_of_worker(primary, range.first);
                let request_pages =
                    request_page::request_pages_of(primary, range.first, range.count);
                let kept = [range.page_numbers(), pool_pages, request_pages];
                let mut pages = self.writable.keep_only_pages(&kept)?;
                let mut pool_pages = pages.split_off(range.count);
                let request_pages = pool_pages.split_off(pool_pages.len() - range.count);
                let first = pages.first().ok_or(io::ErrorKind::InvalidInput)?;
                let pool_records = PoolRecords::new(first, pool_pages);
                let own = pages.into_iter().zip(request_pages).zip(range.page_numbers());
                let page = |((page, request_page), index)| {
                    WorkerPage::new(page, request_page, index - 1, pool_records.clone())
                };
                Ok(own.map(page).collect())
            }
            // A worker that this image forks has pages of this image.
            WorkerPages::Inherited { .. } => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}

impl PageRange {
    fn page_numbers(self) -> std::ops::Range<usize> {
        self.first..self.first.saturating_add(self.count)
    }
}

/// Reads the pools of the worker whose first page is `first`.
fn read_pools_of_worker(board: ReadOnlyPages, first: usize) -> Vec<PoolStatus> {
    let pages = pool_pages::pool_pages_of_worker(board.page(PRIMARY_PAGE), first);
    if first >= board.count() {
        return Vec::new();
    }
    pool_pages::read_pools(board, board.page(first), pages)
}

fn page_pairs(board: ReadOnlyPages, range: PageRange) -> impl Iterator<Item = PagePair> + Clone {
    existing_pages(board, range).map(move |index| {
        let requests = request_page::request_page_of(board, index);
        PagePair { worker: board.page(index), requests }
    })
}

fn read_sums_of_dead_workers(board: ReadOnlyPages) -> SumsOfDeadWorkers {
    let primary = board.page(PRIMARY_PAGE);
    let requests = request_page::request_page_of(board, PRIMARY_PAGE);
    SumsOfDeadWorkers {
        totals: page_reader::read_sums(primary),
        kept: request_page::read_sums(primary, requests),
        pools: read_pools_of_dead_workers(board),
    }
}

fn read_pools_of_dead_workers(board: ReadOnlyPages) -> Vec<PoolStatus> {
    let primary = board.page(PRIMARY_PAGE);
    pool_pages::read_pools(board, primary, pool_pages::pool_pages_of_primary(primary))
}

fn read_isolated_pools(board: ReadOnlyPages) -> Vec<IsolatedPoolStatus> {
    let primary = board.page(PRIMARY_PAGE);
    isolated_records::read_all(board, primary, pool_pages::isolated_pages(primary))
}

#[cfg(test)]
mod tests;
