//! The answer to `status`: what the primary knows from its own memory, with the figures of the scoreboard
//! beside it.

mod accept_queue;
mod kind_status;
mod shared_metrics;
mod thread_status;
mod traffic_counters;

use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::scoreboard::{BUCKETS, CANNOT_ACCEPT, InFlight, PoolSnapshot, WorkerSnapshot};
use crate::shared::SharedMetric;
pub use accept_queue::{QueueStatus, QueueWait};
pub use kind_status::KindStatus;
use kind_status::web;
use prefork_supervisor::{ClusterView, WorkerView};
use prefork_supervisor::{WEB_KIND, WorkerId};
pub use thread_status::ThreadStatus;
pub use traffic_counters::Counters;

/// How many requests are listed over all workers; beyond, they are only counted. It bounds the reply.
const LISTED: usize = 2048;

/// The largest whole number that every JSON reader keeps exactly. A figure beyond it is garbage anyway.
pub(crate) const LARGEST: u64 = (1 << 53) - 1;

/// The cluster at one moment.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Status {
    /// The primary itself.
    pub primary: PrimaryStatus,
    /// Addresses that are listened on; none while the cluster stops.
    pub listeners: Vec<String>,
    /// How many connections wait to be accepted, for each listening TCP socket.
    #[serde(default)]
    pub queues: Vec<QueueStatus>,
    /// How long connections waited to be accepted.
    #[serde(default)]
    pub queue_wait: QueueWait,
    /// Sums over all workers, living and dead.
    pub totals: Counters,
    /// What the application declared in [`shared`](crate::shared), in the order of the declarations; the first 16384
    /// numbers of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shared: Vec<SharedMetric>,
    /// Every worker that exists or is being forked, oldest first.
    pub workers: Vec<WorkerStatus>,
}

/// The primary at one moment.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PrimaryStatus {
    /// Its process id.
    pub pid: u32,
    /// The version of this crate that it runs.
    pub version: String,
    /// How long it has been running.
    pub uptime_ms: u64,
    /// `booting`, `running`, `stopping` or `ending`.
    pub phase: String,
    /// The generation that new workers belong to.
    pub generation: u64,
    /// How many workers of the kind `web` there should be.
    pub workers_wanted: u32,
    /// How many workers of each other kind there should be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<KindStatus>,
    /// The dispatch policy in force: `shared`, `reuseport`, ... Empty if the primary does not say.
    #[serde(default)]
    pub dispatch: String,
    /// What in the kernel chooses the worker, where a policy has several ways: `ebpf`, `cbpf-weights`, `ip-hash` or `hash`.
    /// Empty under other policies.
    #[serde(default)]
    pub dispatch_rung: String,
    /// The concurrency model in force: `prefork`, `threads`, ... Empty if the primary does not say.
    #[serde(default)]
    pub model: String,
    /// Workers forked in place of one that ended without being asked to.
    pub restarts: u64,
    /// Lines that are missing in the log of all processes since the primary started: whoever reads standard error did
    /// not keep up, or the file could not be written.
    #[serde(default)]
    pub log_lines_dropped: u64,
    /// Slots that stay empty until the next reload or scale: their workers left for good, or are not to be replaced.
    #[serde(default)]
    pub vacant: Vec<u32>,
}

/// One worker at one moment. Who it is and its state are the primary's word; the figures are the worker's.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WorkerStatus {
    /// Its number, never used again.
    pub id: u64,
    /// Its place, `0..N`; from [`Slot::PER_KIND`](crate::Slot::PER_KIND) for workers of other kinds than `web`.
    pub slot: u32,
    /// Its kind.
    #[serde(default = "web")]
    pub kind: String,
    /// The generation it belongs to.
    pub generation: u64,
    /// Its process id, once it is forked.
    pub pid: Option<u32>,
    /// `forking`, `booting`, `serving`, `draining`, `leaving` or `killed`.
    pub state: String,
    /// How long ago its fork was decided.
    pub uptime_ms: u64,
    /// How long ago its event loop last turned; none before it has a loop.
    pub beat_age_ms: Option<u64>,
    /// How late its event loop turned, counted by powers of two of a millisecond: up to 1, up to 2, up to 4, ...
    /// The 16th entry has all the rest.
    #[serde(default)]
    pub loop_lag: [u64; BUCKETS],
    /// How long connections waited in the kernel's queue before it accepted them, counted in the same way.
    #[serde(default)]
    pub queue_wait: [u64; BUCKETS],
    /// Open connections.
    pub connections: u64,
    /// Whether it has as many connections as `worker-connections` allows, so that it takes no more.
    #[serde(default)]
    pub full: bool,
    /// Requests being answered.
    pub active: u64,
    /// What it counted since it started.
    pub counters: Counters,
    /// Its CPU pool.
    #[serde(default)]
    pub pool: PoolSnapshot,
    /// The requests it is answering, oldest first; not always all of them.
    pub serving: Vec<InFlight>,
    /// Its threads, where each has an event loop of its own (`thread-per-core`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub threads: Vec<ThreadStatus>,
}

/// What the primary has to say of itself.
pub(crate) struct Around {
    pub(crate) started: Instant,
    pub(crate) dispatch: &'static str,
    pub(crate) rung: &'static str,
    pub(crate) model: &'static str,
    pub(crate) listeners: Vec<String>,
    pub(crate) queues: Vec<QueueStatus>,
    pub(crate) totals: Counters,
    pub(crate) shared: Vec<SharedMetric>,
    pub(crate) log_lines_dropped: u64,
    /// Whether the primary accepts for all workers, and none of its sockets gives it a connection.
    pub(crate) cannot_accept: bool,
}

impl Status {
    /// Puts together what is known with what is only written somewhere. `figures` reads a worker's row, found
    /// by the primary's own memory, one for each thread; nothing in it is more than a number to show.
    pub(crate) fn of(
        view: &ClusterView,
        around: Around,
        now: Instant,
        figures: impl Fn(WorkerId) -> Vec<WorkerSnapshot>,
    ) -> Status {
        let mut room = LISTED;
        let workers = view.workers.iter().map(|member| {
            let mut worker = WorkerStatus::of(member, now, figures(member.tag.id));
            if around.cannot_accept && worker.kind == WEB_KIND && worker.state == "serving" {
                worker.state = CANNOT_ACCEPT.to_string();
            }
            worker.serving.truncate(room);
            room -= worker.serving.len();
            worker
        });
        let workers: Vec<WorkerStatus> = workers.collect();
        let primary = PrimaryStatus {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_string(),
            uptime_ms: millis(around.started, now),
            phase: view.phase.to_string(),
            generation: view.generation.0,
            workers_wanted: view.wanted_workers,
            kinds: KindStatus::all(&view.wanted_by_kind),
            dispatch: around.dispatch.to_string(),
            dispatch_rung: around.rung.to_string(),
            model: around.model.to_string(),
            restarts: view.restart_count,
            log_lines_dropped: around.log_lines_dropped.min(LARGEST),
            vacant: view.empty_slots.iter().map(|slot| slot.0).collect(),
        };
        let totals = around.totals.at_most(LARGEST);
        let queue_wait = QueueWait::of(&workers);
        let Around { listeners, queues, shared, .. } = around;
        let shared = shared_metrics::listed(shared);
        Status { primary, listeners, queues, queue_wait, totals, shared, workers }
    }
}

impl WorkerStatus {
    fn of(member: &WorkerView, now: Instant, figures: Vec<WorkerSnapshot>) -> WorkerStatus {
        let tag = member.tag;
        // The primary knows that it is ready, and the worker what has come of that since.
        let cannot_accept =
            !figures.is_empty() && figures.iter().all(|one| one.state == CANNOT_ACCEPT);
        let state = match member.state {
            "serving" if cannot_accept => CANNOT_ACCEPT,
            state => state,
        };
        let mut worker = WorkerStatus {
            id: tag.id.0,
            slot: tag.slot.0,
            kind: tag.kind.to_string(),
            generation: tag.generation.0,
            pid: tag.pid,
            state: state.to_string(),
            uptime_ms: millis(member.forked_at, now),
            beat_age_ms: None,
            loop_lag: [0; BUCKETS],
            queue_wait: [0; BUCKETS],
            connections: 0,
            full: false,
            active: 0,
            counters: Counters::default(),
            pool: PoolSnapshot::default(),
            serving: Vec::new(),
            threads: ThreadStatus::of(&figures),
        };
        if let Some(figures) = WorkerSnapshot::of_all(figures) {
            worker.beat_age_ms = Some(figures.beat_age_ms.min(LARGEST));
            worker.loop_lag = figures.loop_lag.map(|n| n.min(LARGEST));
            worker.queue_wait = figures.queue_wait.map(|n| n.min(LARGEST));
            worker.connections = figures.connections.min(LARGEST);
            worker.full = figures.full;
            worker.active = figures.active.min(LARGEST);
            worker.counters = figures.counters.at_most(LARGEST);
            worker.pool = figures.pool.at_most(LARGEST);
            worker.serving = figures.serving;
            for request in &mut worker.serving {
                request.age_ms = request.age_ms.min(LARGEST);
            }
        }
        worker
    }
}

fn millis(since: Instant, now: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(since).as_millis()).unwrap_or(LARGEST)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use prefork_supervisor::{Generation, Slot, WEB_KIND, WorkerTag};

    pub(crate) fn view_of(workers: u32) -> ClusterView {
        let views = (0..workers).map(|n| {
            let (id, slot) = (WorkerId(n.into()), Slot(n));
            let tag = WorkerTag { id, slot, generation: Generation(1), pid: None, kind: WEB_KIND };
            WorkerView { tag, state: "booting", forked_at: Instant::now() }
        });
        let views = views.collect();
        let (generation, vacant) = (Generation(1), Vec::new());
        let kinds = vec![("consumer", 2)];
        ClusterView {
            phase: "booting",
            generation,
            wanted_workers: workers,
            wanted_by_kind: kinds,
            restart_count: 0,
            empty_slots: vacant,
            workers: views,
        }
    }

    /// What a worker that has gone mad may write.
    fn mad() -> WorkerSnapshot {
        let request = InFlight { request: "x".repeat(416), age_ms: u64::MAX, on_loop: true };
        WorkerSnapshot {
            id: u64::MAX,
            slot: u64::MAX,
            generation: u64::MAX,
            pid: 1,
            thread: 0,
            state: "serving",
            started_ms: u64::MAX,
            beat_age_ms: u64::MAX,
            loop_lag: [u64::MAX; BUCKETS],
            queue_wait: [u64::MAX; BUCKETS],
            connections: u64::MAX,
            full: true,
            active: u64::MAX,
            counters: Counters { requests: u64::MAX, ..Counters::default() },
            pool: mad_pool(),
            serving: vec![request; 23],
        }
    }

    fn mad_pool() -> PoolSnapshot {
        PoolSnapshot { wait: [u64::MAX; 24], run: [u64::MAX; 24], ..PoolSnapshot::default() }
    }

    #[test]
    fn who_a_worker_is_comes_from_memory_and_its_figures_are_bounded() {
        let totals = Counters { requests: u64::MAX, ..Counters::default() };
        let around = Around {
            started: Instant::now(),
            dispatch: "shared",
            rung: "",
            model: "prefork",
            listeners: vec![],
            queues: vec![],
            totals,
            shared: vec![],
            log_lines_dropped: 0,
            cannot_accept: false,
        };
        let status = Status::of(&view_of(2056), around, Instant::now(), |_| vec![mad()]);
        let worker = &status.workers[1];
        assert_eq!((worker.id, worker.slot, worker.generation, worker.pid), (1, 1, 1, None));
        assert_eq!(worker.state, "booting");
        assert_eq!((worker.connections, worker.counters.requests), (LARGEST, LARGEST));
        assert_eq!((worker.serving[0].age_ms, status.totals.requests), (LARGEST, LARGEST));
        assert_eq!((worker.queue_wait[15], status.queue_wait.connections), (LARGEST, LARGEST));
        let listed: usize = status.workers.iter().map(|worker| worker.serving.len()).sum();
        assert_eq!(listed, LISTED);
        let bytes = crate::control::Reply::Status(Box::new(status)).encode().len();
        assert!(bytes < crate::control::frame::REPLY_MAX / 2, "{bytes}");
    }
}
