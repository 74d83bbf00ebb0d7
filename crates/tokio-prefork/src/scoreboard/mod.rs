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
mod request_page;
mod shared_worker_page;
mod supervision_words;
mod worker_page;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use consistent_sums::{InheritedTable, SumsChange, existing_pages, inherited_pages};
use page_layout::{
    ACCEPTED, BEGUN_JOB, CANNOT_ACCEPT, FAILED_ALLOCATION, GENERATION, OPEN_CONNECTIONS,
    PAGES_USED, PID, POOL_PAGES_START, REQUEST_PAGES_START, RESTARTS, SLOT, STARTED_AT_MS, STATE,
    TAKEN_OVER, THREAD, WORKER_ID, WORKERS_WANTED,
};
use page_reader::PagePair;
use prefork_os::shared_memory::{self, ReadOnlyPages, SharedPage, WritablePages};
use prefork_supervisor::{Generation, Slot, WEB_KIND, WorkerTag};

use crate::config::Config;
use crate::status::{
    ClusterStatus, IsolatedPoolStatus, KeptFigures, PoolStatus, PrimaryPhase, PrimaryStatus,
    SumsOfDeadWorkers, SupervisionCounters, TrafficCounters, WorkerState, WorkerStatus,
    unix_time_ms,
};

pub(crate) use duration_histogram::{DURATION_BUCKETS, duration_quantile};
pub(crate) use in_flight::{HOLD_METHOD, InFlightEntry};
pub(crate) use page_reader::HeartbeatSample;
pub(crate) use pool_counters::PoolCounters;
pub(crate) use pool_pages::PoolRecords;
pub(crate) use pool_record::JobOutcome;
pub(crate) use pool_record::MAX_POOL_NAME_BYTES;
#[allow(unused_imports, reason = "the access log lands next")]
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

/// The load that another worker publishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OtherWorkerLoad {
    /// The index of its page, from 0.
    pub(crate) page_number: usize,
    pub(crate) open_connections: u64,
    /// How many connections it has accepted.
    pub(crate) accepted: u64,
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

/// Reads all pages, in any process of the cluster.
#[derive(Clone)]
pub(crate) struct ScoreboardReader {
    pages: ReadOnlyPages,
    /// Scoreboards of earlier images of the primary.
    inherited: Arc<[ReadOnlyPages]>,
    /// The kinds besides `web`, each with its first slot.
    kinds: Arc<[(&'static str, Slot)]>,
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

impl fmt::Debug for ScoreboardReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScoreboardReader").finish_non_exhaustive()
    }
}

impl ScoreboardReader {
    /// Reads the whole scoreboard. `config` is that of the calling worker.
    pub(crate) fn cluster_status(&self, config: &Config) -> ClusterStatus {
        self.consistent_status(config).0
    }

    /// Reads the whole scoreboard, and tells whether the sums are whole: counts of a dead worker were in them once. They are not
    /// if the primary was stopped in the moment in which it moved counts.
    pub(crate) fn consistent_status(&self, config: &Config) -> (ClusterStatus, bool) {
        let primary = self.pages.page(PRIMARY_PAGE);
        consistent_sums::read_at_rest(primary, || self.read_status(config))
    }

    fn read_status(&self, config: &Config) -> ClusterStatus {
        let requests = request_page::request_page_of(self.pages, PRIMARY_PAGE);
        let supervision = SupervisionCounters {
            started_at_ms: STARTED_AT_MS.load(self.pages.page(PRIMARY_PAGE)),
            ..requests.map_or_else(SupervisionCounters::default, supervision_words::read)
        };
        let page = self.pages.page(PRIMARY_PAGE);
        let phase = if self.is_stopping() { PrimaryPhase::Stopping } else { PrimaryPhase::Running };
        let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        let primary = PrimaryStatus {
            pid: small(PID.load(page)),
            name: config.name().to_string(),
            version: config.version().unwrap_or_default().to_string(),
            library_version: env!("CARGO_PKG_VERSION").to_string(),
            uptime_ms: unix_time_ms().saturating_sub(STARTED_AT_MS.load(page)),
            phase,
            generation: Generation(GENERATION.load(page)),
            workers_wanted: small(WORKERS_WANTED.load(page)),
            kinds: Vec::new(),
            dispatch: config.dispatch.name().to_string(),
            dispatch_backend: String::new(),
            model: config.model.name().to_string(),
            restarts: RESTARTS.load(page),
            log_lines_dropped: supervision.log_lines_dropped,
            messages_lost: supervision.messages_lost,
            empty_slots: Vec::new(),
        };
        let status = ClusterStatus::new(
            primary,
            read_sums_of_dead_workers(self.pages),
            crate::shared::read_shared_metrics(),
            self.workers(),
        );
        ClusterStatus { isolated: self.isolated_pools(), supervision, ..status }
    }

    /// Returns how many workers of the kind `web` serve, those of earlier images included.
    #[cfg(feature = "admin")]
    pub(crate) fn serving_web_worker_count(&self, now_ms: u64) -> usize {
        if self.cannot_accept() {
            return 0;
        }
        let own = PageRange { first: PRIMARY_PAGE + 1, count: self.pages_used() };
        let ranges = [(self.pages, own)].into_iter().chain(self.inherited_workers());
        let pages = ranges.flat_map(|(board, range)| {
            existing_pages(board, range).map(move |index| board.page(index))
        });
        let serving = pages.filter(|page| worker_page::is_serving(page, now_ms));
        serving.map(|page| WORKER_ID.load(page)).collect::<std::collections::BTreeSet<_>>().len()
    }

    /// Returns the pages of workers of earlier images.
    fn inherited_workers(&self) -> impl Iterator<Item = (ReadOnlyPages, PageRange)> {
        let table = inherited_pages(self.pages.count()).map(|index| self.pages.page(index));
        let table = InheritedTable::new(table.collect()).read().into_iter();
        table.filter_map(|(board, range)| Some((*self.inherited.get(board)?, range)))
    }

    /// Returns the figures of all pools of isolated processes.
    pub(crate) fn isolated_pools(&self) -> Vec<IsolatedPoolStatus> {
        read_isolated_pools(self.pages)
    }

    /// Reads all workers, oldest first, those of earlier images included. The pages of a worker's threads are adjacent and begin
    /// with thread 0.
    fn workers(&self) -> Vec<WorkerStatus> {
        let numbers: Vec<usize> = (PRIMARY_PAGE + 1..=self.pages_used()).collect();
        let of_workers = numbers
            .chunk_by(|_, next| THREAD.load(self.pages.page(*next)) != 0)
            .map(|pages| (self.pages, PageRange { first: pages[0], count: pages.len() }));
        let read = of_workers.chain(self.inherited_workers()).filter_map(|(board, range)| {
            let worker = page_reader::read_worker(page_pairs(board, range))?;
            let (pools, kind) = (read_pools_of_worker(board, range.first), worker.slot);
            Some(WorkerStatus { pools, kind: self.kind_of_slot(kind), ..worker })
        });
        let mut workers: Vec<WorkerStatus> = read.collect();
        workers.sort_by_key(|worker| worker.id);
        workers
    }

    fn kind_of_slot(&self, slot: Slot) -> String {
        let first = slot.first_slot_of_kind();
        let kind = self.kinds.iter().find(|(_, slot)| *slot == first);
        match kind {
            Some((name, _)) => name.to_string(),
            None if first.is_web() => WEB_KIND.to_string(),
            None => String::new(),
        }
    }

    /// Reads the load of all other workers that could accept a connection right now. Called before each accept, so it
    /// reads a few words of each page and allocates nothing.
    pub(crate) fn other_accepting_workers(
        &self,
        own: &WorkerPage,
        now_ms: u64,
    ) -> impl Iterator<Item = OtherWorkerLoad> {
        let others = self.worker_pages().enumerate().filter(move |(number, page)| {
            *number != own.page_number() && worker_page::can_accept(page, now_ms)
        });
        others.map(|(page_number, page)| OtherWorkerLoad {
            page_number,
            open_connections: OPEN_CONNECTIONS.load(page),
            accepted: ACCEPTED.load(page),
        })
    }

    /// Returns how many connections the worker with this page has accepted; `None` if it could not accept one now.
    pub(crate) fn accepted_by(&self, page_number: usize, now_ms: u64) -> Option<u64> {
        let page = self.worker_pages().nth(page_number)?;
        worker_page::can_accept(page, now_ms).then(|| ACCEPTED.load(page))
    }

    /// Returns whether another worker serves and could take over connections of this one.
    pub(crate) fn has_other_serving_worker(&self, own: &WorkerPage, now_ms: u64) -> bool {
        self.worker_pages()
            .any(|page| !own.is_same_page(page) && worker_page::is_serving(page, now_ms))
    }

    /// Returns whether the cluster stops.
    pub(crate) fn is_stopping(&self) -> bool {
        STATE.load(self.pages.page(PRIMARY_PAGE)) == 1
    }

    /// Returns whether the primary accepts for all workers but cannot accept at the moment.
    pub(crate) fn cannot_accept(&self) -> bool {
        CANNOT_ACCEPT.load(self.pages.page(PRIMARY_PAGE)) == 1
    }

    /// Returns how many pages have ever been used: an upper bound for the number of workers.
    pub(crate) fn pages_used(&self) -> usize {
        // Only the primary can have written this number; the bound costs nothing all the same.
        PAGES_USED.load(self.pages.page(PRIMARY_PAGE)).min(self.pages.count() as u64 - 1) as usize
    }

    fn worker_pages(&self) -> impl Iterator<Item = &'static SharedPage> + '_ {
        (PRIMARY_PAGE + 1..=self.pages_used()).map(|index| self.pages.page(index))
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
