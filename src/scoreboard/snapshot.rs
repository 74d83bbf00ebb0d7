//! The board as plain data: what `status`, metrics and the application may read.

use serde::{Deserialize, Serialize};

use super::inflight;
use super::layout::{
    ACTIVE, BEAT, COUNTERS, GENERATION, ID, LAG, LAG_BUCKETS, NOW, OPEN, PID, REQUESTS, RESTARTS,
    SLOT, STARTED, STATE, WANTED, Word,
};
use super::pool::PoolSnapshot;
use crate::sys::process::monotonic_ms;
use crate::sys::shm::Page;

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
    /// One entry for each living worker.
    pub workers: Vec<WorkerSnapshot>,
}

/// One worker at one moment.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct WorkerSnapshot {
    /// Its number, never used again.
    pub id: u64,
    /// Its place, `0..N`.
    pub slot: u64,
    /// The generation it belongs to.
    pub generation: u64,
    /// Its process id.
    pub pid: u64,
    /// `booting`, `serving` or `draining`.
    pub state: &'static str,
    /// When it started, milliseconds since 1970.
    pub started_ms: u64,
    /// How long ago its event loop last turned, in milliseconds.
    pub beat_age_ms: u64,
    /// How late its event loop turned, ten times a second, counted by powers of two: up to 1 ms, up to 2 ms, up
    /// to 4 ms, ... The 16th entry has all the rest.
    pub loop_lag: [u64; LAG_BUCKETS],
    /// Open connections.
    pub connections: u64,
    /// Requests being answered.
    pub active: u64,
    /// What it counted since it started.
    pub counters: Counters,
    /// Its CPU pool.
    pub pool: PoolSnapshot,
    /// The requests it is answering, oldest first; at most 24 of them.
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

/// What is counted. A worker's counters are added to the total when it dies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Counters {
    /// Connections accepted.
    pub accepted: u64,
    /// Requests received.
    pub requests: u64,
    /// Responses by class: 1xx, 2xx, 3xx, 4xx, 5xx.
    pub responses: [u64; 5],
    /// Bytes read from clients.
    pub bytes_in: u64,
    /// Bytes written to clients.
    pub bytes_out: u64,
    /// Handlers that panicked.
    pub panics: u64,
    /// Connections cut by a limit or a deadline.
    pub cut: u64,
    /// Connections sent to another worker while this one was draining.
    pub handed_over: u64,
    /// Connections taken over from another worker.
    pub taken_over: u64,
}

impl Counters {
    pub(super) fn read(page: &Page) -> Counters {
        let mut words = COUNTERS.map(|i| Word::at(i).load(page));
        let mut next = || words.next().unwrap_or(0);
        Counters {
            accepted: next(),
            requests: next(),
            responses: [next(), next(), next(), next(), next()],
            bytes_in: next(),
            bytes_out: next(),
            panics: next(),
            cut: next(),
            handed_over: next(),
            taken_over: next(),
        }
    }

    /// Adds all to the counters of a page. Wraps: a worker may have written anything.
    pub(super) fn add_to(&self, page: &Page) {
        let [r1, r2, r3, r4, r5] = self.responses;
        let values = [
            self.accepted,
            self.requests,
            r1,
            r2,
            r3,
            r4,
            r5,
            self.bytes_in,
            self.bytes_out,
            self.panics,
            self.cut,
            self.handed_over,
            self.taken_over,
        ];
        for (word, value) in COUNTERS.zip(values) {
            Word::at(word).add(page, value);
        }
    }

    /// Each of them, or `most` where it is more.
    pub(crate) fn at_most(self, most: u64) -> Counters {
        Counters {
            accepted: self.accepted.min(most),
            requests: self.requests.min(most),
            responses: self.responses.map(|n| n.min(most)),
            bytes_in: self.bytes_in.min(most),
            bytes_out: self.bytes_out.min(most),
            panics: self.panics.min(most),
            cut: self.cut.min(most),
            handed_over: self.handed_over.min(most),
            taken_over: self.taken_over.min(most),
        }
    }

    pub(super) fn plus(&self, other: &Counters) -> Counters {
        let mut responses = self.responses;
        for (sum, more) in responses.iter_mut().zip(other.responses) {
            *sum = sum.wrapping_add(more);
        }
        Counters {
            accepted: self.accepted.wrapping_add(other.accepted),
            requests: self.requests.wrapping_add(other.requests),
            responses,
            bytes_in: self.bytes_in.wrapping_add(other.bytes_in),
            bytes_out: self.bytes_out.wrapping_add(other.bytes_out),
            panics: self.panics.wrapping_add(other.panics),
            cut: self.cut.wrapping_add(other.cut),
            handed_over: self.handed_over.wrapping_add(other.handed_over),
            taken_over: self.taken_over.wrapping_add(other.taken_over),
        }
    }
}

impl ClusterSnapshot {
    pub(super) fn read(primary: &Page, workers: Vec<WorkerSnapshot>) -> ClusterSnapshot {
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

/// What watching a worker takes.
#[derive(Default)]
pub(crate) struct Glance {
    pub(crate) beat: u64,
    pub(crate) requests: u64,
    /// The request whose handler is on the event loop, else the oldest one.
    pub(crate) serving: Option<InFlight>,
}

impl Glance {
    pub(super) fn read(page: &Page) -> Glance {
        let mut serving = read_serving(page, monotonic_ms());
        let culprit = serving.iter().position(|request| request.on_loop).unwrap_or(0);
        let serving = (culprit < serving.len()).then(|| serving.swap_remove(culprit));
        Glance { beat: BEAT.load(page), requests: REQUESTS.load(page), serving }
    }
}

/// The requests of a page, oldest first.
fn read_serving(page: &Page, now: u64) -> Vec<InFlight> {
    let running = NOW.load(page);
    let mut serving: Vec<InFlight> = inflight::read_all(page)
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
    pub(super) fn read(page: &Page) -> Option<WorkerSnapshot> {
        let state = match STATE.load(page) {
            0 => return None,
            1 => "booting",
            2 => "serving",
            3 => "draining",
            _ => "unknown",
        };
        let now = monotonic_ms();
        let serving = read_serving(page, now);
        Some(WorkerSnapshot {
            id: ID.load(page),
            slot: SLOT.load(page),
            generation: GENERATION.load(page),
            pid: PID.load(page),
            state,
            started_ms: STARTED.load(page),
            beat_age_ms: now.saturating_sub(BEAT.load(page)),
            loop_lag: std::array::from_fn(|bucket| LAG.plus(bucket).load(page)),
            connections: OPEN.load(page),
            active: ACTIVE.load(page),
            counters: Counters::read(page),
            pool: PoolSnapshot::read(page),
            serving,
        })
    }

    /// The request whose handler is on the event loop, if any: the culprit when the loop is frozen.
    pub fn culprit(&self) -> Option<&InFlight> {
        self.serving.iter().find(|request| request.on_loop)
    }
}

#[cfg(test)]
mod tests {
    use crate::identity::{Generation, Slot, WorkerId, WorkerTag};
    use crate::scoreboard::Scoreboard;

    fn tag(id: u64) -> WorkerTag {
        WorkerTag { id: WorkerId(id), slot: Slot(0), generation: Generation(1), pid: None }
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
    fn rows_are_bounded_and_used_again() {
        let mut board = Scoreboard::create(1).expect("board");
        let row = board.lease(tag(1)).expect("row");
        assert!(board.lease(tag(2)).is_none());
        board.retire(row);
        assert_eq!(board.lease(tag(3)), Some(row));
    }
}
