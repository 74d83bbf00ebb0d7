//! The board as plain data: what `status`, metrics and the application may read.

use serde::{Deserialize, Serialize};

use super::duration_histogram::BUCKETS;
use super::in_flight;
use super::page_layout::{
    ACTIVE, BEAT, FULL, GENERATION, ID, LAG, NOW, OPEN, PID, QUEUE_WAIT, REQUESTS, RESTARTS, SLOT,
    STARTED, STATE, THREAD, WANTED, Word,
};
use super::pool_counters::PoolSnapshot;
use super::worker_page::WorkerState;
use crate::status::Counters;
use prefork_os::shared_memory::SharedPage;
use prefork_os::system::monotonic_ms;

/// The whole cluster at one moment, as its processes wrote it. Figures to show, not to rely on.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct ClusterSnapshot {
    /// The primary's process id.
    pub primary_pid: u64,
    /// When the primary started, milliseconds since 1970.
    pub started_ms: u64,
    /// How many workers there should be.
    pub workers_wanted: u64,
    /// Workers forked in place of one that ended without being asked to.
    pub restarts: u64,
    /// Whether the cluster is stopping.
    pub stopping: bool,
    /// Sums over all workers, living and dead.
    pub totals: Counters,
    /// One entry for each living worker; under `thread-per-core` one for each of its threads.
    pub workers: Vec<WorkerSnapshot>,
}

/// One worker at one moment.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct WorkerSnapshot {
    /// Its number, never used again.
    pub id: u64,
    /// Its place, `0..N`; from [`Slot::PER_KIND`](crate::Slot::PER_KIND) for workers of other kinds than `web`.
    pub slot: u64,
    /// The generation it belongs to.
    pub generation: u64,
    /// Its process id.
    pub pid: u64,
    /// Which of the threads of its process this is about; 0 where one row is enough for all.
    pub thread: u64,
    /// `booting`, `serving` or `draining`; `left` for a thread whose process goes on.
    pub state: &'static str,
    /// When it started, milliseconds since 1970.
    pub started_ms: u64,
    /// How long ago its event loop last turned, in milliseconds.
    pub beat_age_ms: u64,
    /// How late its event loop turned, ten times a second, counted by powers of two: up to 1 ms, up to 2 ms, up
    /// to 4 ms, ... The 16th entry has all the rest.
    pub loop_lag: [u64; BUCKETS],
    /// How long connections waited in the kernel's queue before they were accepted, counted in the same way.
    /// Unix sockets do not tell.
    pub queue_wait: [u64; BUCKETS],
    /// Open connections.
    pub connections: u64,
    /// Whether it has as many connections as `worker-connections` allows, so that it takes no more.
    pub full: bool,
    /// Requests being answered.
    pub active: u64,
    /// What it counted since it started.
    pub counters: Counters,
    /// Its CPU pool.
    pub pool: PoolSnapshot,
    /// The requests it is answering, oldest first; at most 23 of them.
    pub serving: Vec<InFlight>,
}

/// One request that is being answered.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct InFlight {
    /// Method and path, cut to 104 bytes; bytes outside printable ASCII are escaped.
    pub request: String,
    /// How long it has been running, in milliseconds.
    pub age_ms: u64,
    /// Whether its handler is on the event loop at this very moment.
    pub on_loop: bool,
}

impl ClusterSnapshot {
    pub(super) fn read(primary: &SharedPage, workers: Vec<WorkerSnapshot>) -> ClusterSnapshot {
        let dead = Counters::read(primary);
        ClusterSnapshot {
            primary_pid: PID.load(primary),
            started_ms: STARTED.load(primary),
            workers_wanted: WANTED.load(primary),
            restarts: RESTARTS.load(primary),
            stopping: STATE.load(primary) == 1,
            totals: workers.iter().fold(dead, |sum, worker| sum.plus(&worker.counters)),
            workers,
        }
    }
}

/// The state of a worker that no listening socket gives connections.
pub(crate) const CANNOT_ACCEPT: &str = "cannot-accept";

/// What watching a worker takes.
#[derive(Default)]
pub(crate) struct Glance {
    pub(crate) beat: u64,
    pub(crate) requests: u64,
    /// Open connections.
    pub(crate) open: u64,
    /// The request whose handler is on the event loop, else the oldest one.
    pub(crate) serving: Option<InFlight>,
}

impl Glance {
    /// Over all threads of a worker: the beat and the request are those of the one that has not turned for longest.
    pub(super) fn of(pages: impl Iterator<Item = &'static SharedPage> + Clone) -> Glance {
        let sum =
            |word: Word| pages.clone().fold(0u64, |sum, page| sum.wrapping_add(word.load(page)));
        let here = pages.clone().filter(|page| STATE.load(page) != WorkerState::Left as u64);
        let slowest = here.min_by_key(|page| BEAT.load(page)).or_else(|| pages.clone().next());
        let slowest = slowest.map(Glance::read).unwrap_or_default();
        Glance { requests: sum(REQUESTS), open: sum(OPEN), ..slowest }
    }

    fn read(page: &SharedPage) -> Glance {
        let mut serving = read_serving(page, monotonic_ms());
        let culprit = serving.iter().position(|request| request.on_loop).unwrap_or(0);
        let serving = (culprit < serving.len()).then(|| serving.swap_remove(culprit));
        let (beat, requests, open) = (BEAT.load(page), REQUESTS.load(page), OPEN.load(page));
        Glance { beat, requests, open, serving }
    }
}

/// The requests of a page, oldest first.
fn read_serving(page: &SharedPage, now: u64) -> Vec<InFlight> {
    let running = NOW.load(page);
    let mut serving: Vec<InFlight> = in_flight::read_all(page)
        .into_iter()
        .map(|(entry, start, request)| InFlight {
            request,
            age_ms: now.saturating_sub(start),
            on_loop: running == entry as u64 + 1,
        })
        .collect();
    serving.sort_by_key(|request| std::cmp::Reverse(request.age_ms));
    serving
}

impl WorkerSnapshot {
    /// `None` for a row that is not in use.
    pub(super) fn read(page: &SharedPage) -> Option<WorkerSnapshot> {
        let state = match STATE.load(page) {
            0 => return None,
            1 => "booting",
            2 => "serving",
            3 => "draining",
            4 => "left",
            5 => CANNOT_ACCEPT,
            _ => "unknown",
        };
        let now = monotonic_ms();
        let serving = read_serving(page, now);
        Some(WorkerSnapshot {
            id: ID.load(page),
            slot: SLOT.load(page),
            generation: GENERATION.load(page),
            pid: PID.load(page),
            thread: THREAD.load(page),
            state,
            started_ms: STARTED.load(page),
            beat_age_ms: now.saturating_sub(BEAT.load(page)),
            loop_lag: std::array::from_fn(|bucket| LAG.plus(bucket).load(page)),
            queue_wait: std::array::from_fn(|bucket| QUEUE_WAIT.plus(bucket).load(page)),
            connections: OPEN.load(page),
            full: FULL.load(page) == 1,
            active: ACTIVE.load(page),
            counters: Counters::read(page),
            pool: PoolSnapshot::read(page),
            serving,
        })
    }

    /// All threads of a worker as one: sums, and the beat of the one that has not turned for longest. `None` without
    /// any.
    pub(crate) fn of_all(threads: Vec<WorkerSnapshot>) -> Option<WorkerSnapshot> {
        let mut threads = threads.into_iter();
        let mut all = threads.next()?;
        for one in threads {
            if one.state != "left" {
                all.beat_age_ms = match all.state {
                    "left" => one.beat_age_ms,
                    _ => all.beat_age_ms.max(one.beat_age_ms),
                };
                all.state = one.state;
            }
            for bucket in 0..BUCKETS {
                all.loop_lag[bucket] = all.loop_lag[bucket].wrapping_add(one.loop_lag[bucket]);
                all.queue_wait[bucket] =
                    all.queue_wait[bucket].wrapping_add(one.queue_wait[bucket]);
            }
            all.connections = all.connections.wrapping_add(one.connections);
            // One thread that has room takes what comes.
            all.full &= one.full || one.state == "left";
            all.active = all.active.wrapping_add(one.active);
            all.counters = all.counters.plus(&one.counters);
            all.pool = all.pool.plus(&one.pool);
            all.serving.extend(one.serving);
        }
        all.serving.sort_by_key(|request| std::cmp::Reverse(request.age_ms));
        Some(all)
    }

    /// The request whose handler is on the event loop, if any: the culprit when the loop is frozen.
    pub fn culprit(&self) -> Option<&InFlight> {
        self.serving.iter().find(|request| request.on_loop)
    }
}

#[cfg(test)]
mod tests {
    use crate::scoreboard::{RowIndex, Rows, Scoreboard};
    use prefork_supervisor::{Generation, Slot, WEB_KIND, WorkerId, WorkerTag};

    fn tag(id: u64) -> WorkerTag {
        let (id, slot, generation) = (WorkerId(id), Slot(0), Generation(1));
        WorkerTag { id, slot, generation, pid: None, kind: WEB_KIND }
    }

    #[test]
    fn the_counters_of_the_dead_stay_in_the_total() {
        let mut board = Scoreboard::create(2).expect("board");
        let row = board.lease(tag(1)).expect("row");
        let reader = board.reader();
        board.pretend(row, 5);
        assert_eq!(reader.snapshot().totals.requests, 5);
        assert_eq!(board.retire(row).requests, 5);
        assert_eq!(reader.snapshot().totals.requests, 5);
        let row = board.lease(tag(2)).expect("row");
        board.pretend(row, 2);
        assert_eq!(reader.snapshot().totals.requests, 7);
        assert_eq!(reader.snapshot().workers.len(), 1);
        assert_eq!(reader.snapshot().workers[0].id, 2);
    }

    #[test]
    fn a_worker_with_threads_has_rows_side_by_side() {
        let mut board = Scoreboard::create(4).expect("board");
        let first = board.lease(tag(1)).expect("row");
        let rows = board.lease_rows(tag(2), 3).expect("rows");
        assert_eq!(rows, RowIndex::Own(Rows { first: 2, count: 3 }));
        board.pretend(first, 1);
        board.pretend(rows, 5);
        assert_eq!((board.glance(rows).requests, board.figures(rows).len()), (5, 3));
        board.retire(first);
        assert!(board.lease_rows(tag(3), 2).is_none(), "not side by side");
        assert_eq!(board.retire(rows).requests, 5);
        assert_eq!(board.reader().snapshot().totals.requests, 6);
        assert!(board.lease_rows(tag(3), 4).is_some());
    }

    #[test]
    fn the_slowest_thread_speaks_for_its_worker_until_it_has_left() {
        let mut board = Scoreboard::create(2).expect("board");
        let rows = board.lease_rows(tag(1), 2).expect("rows");
        let own = {
            let (reader, mut board) = (board.reader(), board);
            let own = board.give_up_all_but(rows).expect("own");
            (own, reader, board)
        };
        let (own, _, board) = own;
        own[0].beat(100);
        own[1].beat(200);
        assert_eq!(board.glance(rows).beat, 100);
        own[0].of_thread().left();
        assert_eq!(board.glance(rows).beat, 200);
        own[1].of_thread().left();
        assert_eq!(board.glance(rows).beat, 100, "of the first, when nobody is left");
    }

    #[test]
    fn rows_are_bounded_and_used_again() {
        let mut board = Scoreboard::create(1).expect("board");
        let row = board.lease(tag(1)).expect("row");
        assert!(board.lease(tag(2)).is_none());
        board.retire(row);
        assert_eq!(board.lease(tag(3)), Some(row));
    }
}
