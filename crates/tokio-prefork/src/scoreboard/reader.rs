//! Reads the scoreboard in any process of the cluster: for the status, the admin process, and the dispatch between workers.

use std::fmt;
use std::sync::Arc;

use super::consistent_sums::{self, InheritedTable, inherited_pages};
use super::page_layout::{
    ACCEPTED, CANNOT_ACCEPT, GENERATION, OPEN_CONNECTIONS, PAGES_USED, PID, RESTARTS,
    STARTED_AT_MS, STATE, THREAD, WORKERS_WANTED,
};
use super::worker_page::{self, WorkerPage};
use super::{
    PRIMARY_PAGE, PageRange, page_pairs, page_reader, read_isolated_pools, read_pools_of_worker,
    read_sums_of_dead_workers, request_page, supervision_words,
};
use crate::config::Config;
use crate::status::{
    ClusterStatus, IsolatedPoolStatus, PrimaryPhase, PrimaryStatus, SupervisionCounters,
    WorkerStatus, unix_time_ms,
};
use prefork_os::shared_memory::{ReadOnlyPages, SharedPage};
use prefork_supervisor::{Generation, Slot, WEB_KIND};

/// Reads all pages, in any process of the cluster.
#[derive(Clone)]
pub(crate) struct ScoreboardReader {
    pub(super) pages: ReadOnlyPages,
    /// Scoreboards of earlier images of the primary.
    pub(super) inherited: Arc<[ReadOnlyPages]>,
    /// The kinds besides `web`, each with its first slot.
    pub(super) kinds: Arc<[(&'static str, Slot)]>,
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
            program: config.shown_program(),
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

    /// Returns how many workers of the kind `web` serve and have a recent heartbeat, those of earlier images included.
    #[cfg(feature = "admin")]
    pub(crate) fn serving_web_worker_count(&self, now_ms: u64) -> usize {
        if self.cannot_accept() {
            return 0;
        }
        let serving = self.pages_of_workers().filter(|page| worker_page::is_ready(page, now_ms));
        serving
            .map(|page| super::page_layout::WORKER_ID.load(page))
            .collect::<std::collections::BTreeSet<_>>()
            .len()
    }

    /// Returns whether a worker of the kind `web` is in the state in which it serves, even if its event loop is blocked.
    #[cfg(feature = "admin")]
    pub(crate) fn has_web_worker_in_service(&self) -> bool {
        self.pages_of_workers().any(worker_page::has_serving_state)
    }

    /// Returns the pages of all workers, those of earlier images included.
    #[cfg(feature = "admin")]
    fn pages_of_workers(&self) -> impl Iterator<Item = &'static SharedPage> {
        let own = PageRange { first: PRIMARY_PAGE + 1, count: self.pages_used() };
        let ranges = [(self.pages, own)].into_iter().chain(self.inherited_workers());
        ranges.flat_map(|(board, range)| {
            consistent_sums::existing_pages(board, range).map(move |index| board.page(index))
        })
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
