//! What every process may see without asking: one page of shared memory for each worker, and one for the
//! primary.
//!
//! A worker writes its own page and can only read the others; the primary reads all and *believes nothing*
//! it reads: no number from a page is ever an index, a length, a pid or a pointer to it, only a figure to
//! show. (Apache's CVE-2019-0211, CVE-2012-0031 and CVE-2007-3304 are what happens otherwise.) Who a worker
//! is, which row it has and whether it lives, the primary knows from its own memory.
//!
//! A worker has one row, or one for each of its threads: a page has one writer, who adds without locked
//! instructions. Where several threads have to write one row, they do so through a `SharedRow`.
//!
//! A row belongs to one worker from fork to reaping. Then its counters are added to the primary's page, where
//! they stay in the total, and the row is cleared for the next.

mod duration_histogram;
mod in_flight;
pub(crate) mod page_layout;
mod page_reader;
mod pool_counters;
mod shared_worker_page;
mod worker_page;

use std::io;
use std::os::fd::OwnedFd;

use page_layout::{
    ACCEPTED, GENERATION, ID, OPEN, PID, RESTARTS, ROWS, SLOT, STARTED, STATE, TAKEN_OVER, THREAD,
    WANTED,
};
use prefork_os::shared_memory::{self, ReadOnlyPages, SharedPage, WritablePages};
use prefork_supervisor::WorkerTag;

pub use crate::status::Counters;
pub(crate) use duration_histogram::{BUCKETS, quantile};
pub(crate) use in_flight::Ticket;
pub(crate) use page_reader::{CANNOT_ACCEPT, Glance};
pub use page_reader::{ClusterSnapshot, InFlight, WorkerSnapshot};
pub use pool_counters::PoolSnapshot;
pub(crate) use pool_counters::{Ending, PoolMeter};
pub(crate) use shared_worker_page::{Row, SharedRow};
pub(crate) use worker_page::{Meter, OwnRow, ThreadRow, WorkerState};

/// The primary's page.
const PRIMARY: usize = 0;

/// Which rows a worker writes. Known to the primary from its own memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RowIndex {
    /// On our board.
    Own(Rows),
    /// On a board that was taken over from the image before this one; `board` counts those from 0.
    Inherited { board: usize, rows: Rows },
}

/// The rows of one worker, side by side: one for each thread that needs its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rows {
    pub(crate) first: usize,
    pub(crate) count: usize,
}

/// How busy a worker is, as it says itself.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Load {
    /// Its loop has not turned for a while, or it does not serve.
    pub(crate) stale: bool,
    /// Its loop turns, whatever it does.
    pub(crate) turns: bool,
    /// It takes new connections at the moment, and its loop turns.
    pub(crate) takes: bool,
    /// Connections it has open.
    pub(crate) open: u64,
    /// Connections of others that it has ever taken.
    pub(crate) taken_over: u64,
}

/// Another worker, as it says itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Other {
    /// Its place on the board.
    pub(crate) row: usize,
    /// Connections it has open.
    pub(crate) open: u64,
    /// Connections it has ever accepted.
    pub(crate) accepted: u64,
}

/// The primary's side: leases rows, reads them, keeps the totals.
pub(crate) struct Scoreboard {
    writable: WritablePages,
    readable: ReadOnlyPages,
    /// The memory of the pages, for the image after this one. `None` in a worker.
    memory: Option<OwnedFd>,
    /// Boards of workers that were forked by images before this one.
    inherited: Vec<InheritedBoard>,
    /// Whether row `i + 1` has a worker.
    leased: Vec<bool>,
}

/// The board of another image, whose workers may live on.
struct InheritedBoard {
    pages: ReadOnlyPages,
    /// For the image after this one; `None` when the last of its workers has ended.
    memory: Option<OwnedFd>,
}

/// Everybody's side: reads all rows.
#[derive(Clone, Copy)]
pub(crate) struct Reader {
    pages: ReadOnlyPages,
}

impl Scoreboard {
    /// Shared memory for up to `rows` workers alive at the same time. Untouched rows cost nothing.
    pub(crate) fn create(rows: usize) -> io::Result<Scoreboard> {
        let (writable, readable, memory) = shared_memory::create_shared_pages(rows + 1)?;
        let page = writable.page(PRIMARY);
        PID.store(page, std::process::id().into());
        STARTED.store(page, worker_page::unix_ms());
        let (memory, inherited) = (Some(memory), Vec::new());
        Ok(Scoreboard { writable, readable, memory, inherited, leased: vec![false; rows] })
    }

    /// A cleared row for a worker with one.
    #[cfg(test)]
    pub(crate) fn lease(&mut self, tag: WorkerTag) -> Option<RowIndex> {
        self.lease_rows(tag, 1)
    }

    /// So many cleared rows for a worker about to be forked; `None` when there are not so many side by side.
    pub(crate) fn lease_rows(&mut self, tag: WorkerTag, count: usize) -> Option<RowIndex> {
        let free = self.leased.windows(count).position(|run| !run.contains(&true))?;
        let rows = Rows { first: free + 1, count };
        for (thread, row) in rows.indices().enumerate() {
            self.leased[row - 1] = true;
            self.writable.zero_page(row);
            let page = self.writable.page(row);
            ID.store(page, tag.id.0);
            SLOT.store(page, tag.slot.0.into());
            GENERATION.store(page, tag.generation.0);
            THREAD.store(page, thread as u64);
            STATE.store(page, WorkerState::Booting as u64);
        }
        let primary = self.writable.page(PRIMARY);
        ROWS.store(primary, ROWS.load(primary).max((free + count) as u64));
        Some(RowIndex::Own(rows))
    }

    /// Takes the row of a dead worker back and returns its last counters, which stay in the total.
    pub(crate) fn retire(&mut self, row: RowIndex) -> Counters {
        let pages = self.pages(row);
        let last = pages.fold(Counters::default(), |sum, page| sum.plus(&Counters::read(page)));
        last.add_to(self.writable.page(PRIMARY));
        if let RowIndex::Own(rows) = row {
            for row in rows.indices() {
                self.writable.zero_page(row);
                self.leased[row - 1] = false;
            }
        }
        last
    }

    /// Goes on where the image before this one stopped: its totals and its start.
    pub(crate) fn succeed(&mut self, totals: &Counters, started_ms: u64) {
        let page = self.writable.page(PRIMARY);
        totals.add_to(page);
        STARTED.store(page, started_ms);
    }

    /// Takes over the board of an image before this one, which `RowIndex::Inherited` names by its turn.
    pub(crate) fn inherit(&mut self, memory: OwnedFd) -> io::Result<()> {
        self.inherited.push(InheritedBoard {
            pages: shared_memory::map_inherited_pages(&memory)?,
            memory: Some(memory),
        });
        Ok(())
    }

    /// The memory of a board that was taken over.
    pub(crate) fn inherited_memory(&self, board: usize) -> Option<&OwnedFd> {
        self.inherited.get(board).and_then(|inherited| inherited.memory.as_ref())
    }

    /// The last worker of an inherited board has ended: the next image needs no more of it.
    pub(crate) fn release_inherited(&mut self, board: usize) {
        if let Some(inherited) = self.inherited.get_mut(board) {
            inherited.memory = None;
        }
    }

    /// The memory of the pages, which the next image reads.
    pub(crate) fn memory(&self) -> Option<&OwnedFd> {
        self.memory.as_ref()
    }

    /// What dead workers counted, and when all this began (milliseconds since 1970).
    pub(crate) fn totals(&self) -> (Counters, u64) {
        let page = self.readable.page(PRIMARY);
        (Counters::read(page), STARTED.load(page))
    }

    fn pages(&self, row: RowIndex) -> impl Iterator<Item = &'static SharedPage> + Clone {
        let (pages, rows) = match row {
            RowIndex::Own(rows) => (Some(self.readable), rows),
            RowIndex::Inherited { board, rows } => {
                (self.inherited.get(board).map(|b| b.pages), rows)
            }
        };
        pages.into_iter().flat_map(move |pages| {
            let there = rows.indices().take_while(move |row| *row < pages.count());
            there.map(move |row| pages.page(row))
        })
    }

    /// Publishes figures that only the primary knows, for all to see.
    pub(crate) fn publish(&self, wanted: u32, restarts: u64, stopping: bool) {
        let page = self.writable.page(PRIMARY);
        WANTED.store(page, wanted.into());
        RESTARTS.store(page, restarts);
        STATE.store(page, u64::from(stopping));
    }

    /// Whether the primary, where it accepts for all, can accept from none of its sockets.
    pub(crate) fn cannot_accept(&self, so: bool) {
        // On the page of the primary this word has no other meaning.
        page_layout::CANNOT_ACCEPT.store(self.writable.page(PRIMARY), u64::from(so));
    }

    /// The little that watching a worker takes.
    pub(crate) fn glance(&self, row: RowIndex) -> Glance {
        Glance::of(self.pages(row))
    }

    /// What a worker says of its load.
    pub(crate) fn load(&self, row: RowIndex, now_ms: u64) -> Load {
        let mut load = Load { stale: true, ..Load::default() };
        for page in self.pages(row) {
            // One thread that serves is enough.
            load.stale &= !worker_page::serves(page, now_ms);
            load.turns |= worker_page::turns(page, now_ms);
            load.takes |= worker_page::can_take_one(page, now_ms);
            load.open = load.open.wrapping_add(OPEN.load(page));
            load.taken_over = load.taken_over.wrapping_add(TAKEN_OVER.load(page));
        }
        load
    }

    /// What the worker that has these rows wrote there, a snapshot for each of its threads; none for those that it
    /// says nobody uses.
    pub(crate) fn figures(&self, row: RowIndex) -> Vec<WorkerSnapshot> {
        self.pages(row).filter_map(WorkerSnapshot::read).collect()
    }

    /// The reading side, for workers.
    pub(crate) fn reader(&self) -> Reader {
        Reader { pages: self.readable }
    }

    /// In a freshly forked worker: its own rows, and no way to write any other.
    pub(crate) fn give_up_all_but(&mut self, row: RowIndex) -> io::Result<Vec<OwnRow>> {
        self.memory = None;
        self.inherited.clear();
        match row {
            RowIndex::Own(rows) => {
                let pages = self.writable.keep_only_pages(rows.first, rows.count)?;
                let own = pages.into_iter().zip(rows.indices());
                Ok(own.map(|(page, row)| OwnRow::new(page, row - 1)).collect())
            }
            // A worker that we fork has a row of ours.
            RowIndex::Inherited { .. } => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    #[cfg(test)]
    fn pretend(&self, row: RowIndex, requests: u64) {
        let RowIndex::Own(rows) = row else { return };
        page_layout::REQUESTS.add(self.writable.page(rows.first), requests);
    }
}

impl Rows {
    fn indices(self) -> std::ops::Range<usize> {
        self.first..self.first.saturating_add(self.count)
    }
}

impl Reader {
    /// Everything on the board as plain data.
    pub(crate) fn snapshot(&self) -> ClusterSnapshot {
        let workers = self.rows().filter_map(WorkerSnapshot::read).collect();
        ClusterSnapshot::read(self.pages.page(PRIMARY), workers)
    }

    /// The other workers that could take a new connection right now, as far as they say. Asked before each accept:
    /// it reads a few words a row and allocates nothing.
    pub(crate) fn others(&self, own: &OwnRow, now_ms: u64) -> impl Iterator<Item = Other> {
        let rows = self.rows().enumerate();
        let others = rows.filter(move |(row, page)| {
            *row != own.number() && worker_page::can_take_one(page, now_ms)
        });
        others.map(|(row, page)| Other {
            row,
            open: OPEN.load(page),
            accepted: ACCEPTED.load(page),
        })
    }

    /// How many connections the worker of a row of `others` has accepted, if it could still take one.
    pub(crate) fn accepted(&self, row: usize, now_ms: u64) -> Option<u64> {
        let page = self.rows().nth(row)?;
        worker_page::can_take_one(page, now_ms).then(|| ACCEPTED.load(page))
    }

    /// Whether there is another worker that could go on with our connections.
    pub(crate) fn others_serve(&self, own: &OwnRow, now_ms: u64) -> bool {
        self.rows().any(|page| !own.is(page) && worker_page::serves(page, now_ms))
    }

    /// Whether the primary says that the cluster stops, or is about to.
    pub(crate) fn is_stopping(&self) -> bool {
        STATE.load(self.pages.page(PRIMARY)) == 1
    }

    /// Whether the primary accepts for all workers, and cannot.
    pub(crate) fn cannot_accept(&self) -> bool {
        page_layout::CANNOT_ACCEPT.load(self.pages.page(PRIMARY)) == 1
    }

    /// How many rows have been used so far: an upper bound for the number of workers.
    pub(crate) fn row_count(&self) -> usize {
        // Only the primary can have written this number; the bound costs nothing all the same.
        ROWS.load(self.pages.page(PRIMARY)).min(self.pages.count() as u64 - 1) as usize
    }

    fn rows(&self) -> impl Iterator<Item = &'static SharedPage> + '_ {
        (PRIMARY + 1..=self.row_count()).map(|row| self.pages.page(row))
    }
}
