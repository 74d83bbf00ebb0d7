//! The status of a worker and of its threads.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{
    KeptFigures, MAX_JSON_INTEGER, PoolStatus, RequestDurations, TrafficCounters, WorkerState,
    millis_between,
};
use crate::scoreboard::{DURATION_BUCKETS, HOLD_METHOD};
use prefork_supervisor::{Generation, Slot, WEB_KIND, WorkerId, WorkerView};

/// The status of one worker.
///
/// The worker publishes all figures itself. Its identity and state are what the primary knows, or, in
/// [`Worker::cluster_status`](crate::Worker::cluster_status), what the worker publishes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WorkerStatus {
    /// The worker id, which is never reused.
    pub id: WorkerId,
    /// Its slot, `0..N`; from [`Slot::MAX_SLOTS_PER_KIND`](crate::Slot::MAX_SLOTS_PER_KIND) for workers of other kinds
    /// than `web`.
    pub slot: Slot,
    /// The name of its worker kind.
    #[serde(default = "web_kind")]
    pub kind: String,
    /// The generation it belongs to.
    pub generation: Generation,
    /// Its process id; `None` before its fork.
    pub pid: Option<u32>,
    /// The process id of its guard, with [`Cluster::serve_program`](crate::Cluster::serve_program). `pid` is that of the program then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard_pid: Option<u32>,
    /// The figures of its program, with [`Cluster::serve_program`](crate::Cluster::serve_program). Those about requests are zero then,
    /// as only the program sees requests; [`ClusterStatus::to_json`](super::ClusterStatus::to_json) leaves them out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<ProgramFigures>,
    /// The state.
    pub state: WorkerState,
    /// How long ago it was forked, in milliseconds.
    pub uptime_ms: u64,
    /// How long ago its event loop last sent a heartbeat, in milliseconds; `None` before it has an event loop.
    #[serde(rename = "beat_age_ms")]
    pub heartbeat_age_ms: Option<u64>,
    /// How late its heartbeats were, counted by powers of two of a millisecond: up to 1, up to 2, up to 4, ...
    /// The 16th entry counts all the rest.
    #[serde(default)]
    pub loop_lag: [u64; DURATION_BUCKETS],
    /// How long connections waited in the kernel's queue before it accepted them, counted in the same way.
    /// Only TCP reports the wait.
    #[serde(default)]
    pub queue_wait: [u64; DURATION_BUCKETS],
    /// Open connections.
    pub connections: u64,
    /// How many of them are parked: idle, and reduced to their sockets.
    #[serde(default)]
    pub parked: u64,
    /// Whether it has as many connections as `worker-connections` allows, so that it accepts no more.
    #[serde(default)]
    pub full: bool,
    /// Requests in progress.
    pub active: u64,
    /// Its counters since it started.
    pub counters: TrafficCounters,
    /// How long its finished requests took.
    #[serde(default, skip_serializing_if = "RequestDurations::is_empty")]
    pub durations: RequestDurations,
    /// Its CPU pools, from the first job of each on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pools: Vec<PoolStatus>,
    /// The job that an isolated process runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<RunningJob>,
    /// Where in the code its event loop has stalled, innermost function first; `None` while the loop runs, and without the
    /// feature `stack-traces`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stalled_in: Option<String>,
    /// The requests in progress, oldest first; at most 22 of each thread. While the worker drains, also the holds
    /// ([`Worker::hold`](crate::Worker::hold)) that it waits for, as `hold: NAMES`.
    pub serving: Vec<InFlightRequest>,
    /// Its threads, if each has an event loop of its own (`thread-per-core`); otherwise empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub threads: Vec<ThreadStatus>,
    /// Resident memory in bytes, shared pages included. Only after [`read_process_usage`](super::ClusterStatus::read_process_usage),
    /// which `prefork status --json` and `/status` of the admin listener call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rss_bytes: Option<u64>,
    /// Open file descriptors. As `rss_bytes`; not of processes of another user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_fds: Option<u64>,
    /// CPU time of all its threads since its fork, in milliseconds. As `rss_bytes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_ms: Option<u64>,
    /// All that is kept when it dies; public parts of it are fields above.
    #[serde(skip)]
    pub(crate) kept: KeptFigures,
}

/// What the kernel shows of the program of a worker, read once a second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ProgramFigures {
    /// Its processes: the program and all that it has started.
    pub processes: u64,
    /// Connections that wait in the accept queues of its own sockets.
    pub queued: u64,
    /// Resident memory of all its processes in bytes; pages that they share count in each.
    pub rss_bytes: u64,
    /// CPU time of all its processes, in milliseconds.
    pub cpu_ms: u64,
}

/// The status of one thread of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ThreadStatus {
    /// Its number, from 0.
    pub thread: u64,
    /// The state.
    pub state: WorkerState,
    /// How long ago its event loop last sent a heartbeat, in milliseconds.
    #[serde(rename = "beat_age_ms")]
    pub heartbeat_age_ms: u64,
    /// Open connections.
    pub connections: u64,
    /// Requests in progress.
    pub active: u64,
    /// Requests received since it started.
    pub requests: u64,
}

/// The job that an isolated process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RunningJob {
    /// Its number among the jobs of its pool, from 1.
    pub id: u64,
    /// How long it has been running, in milliseconds.
    pub age_ms: u64,
}

/// A request in progress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct InFlightRequest {
    /// Method and path without the query, cut to 104 bytes; bytes outside printable ASCII are escaped.
    pub request: String,
    /// How long it has been running, in milliseconds.
    pub age_ms: u64,
    /// Whether its handler is on the event loop at this moment.
    pub on_loop: bool,
    /// The address of its client, cut to 48 bytes; `None` unless it is recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// Its request id, cut to 64 bytes; `None` unless it is recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

impl InFlightRequest {
    /// Returns method and path, and if they are known ` client=... request_id=...`.
    pub(crate) fn describe(&self) -> String {
        let mut text = self.request.clone();
        for (name, value) in [("client", &self.client), ("request_id", &self.request_id)] {
            if let Some(value) = value {
                text.push_str(&format!(" {name}={value}"));
            }
        }
        text
    }

    /// Whether this is no request but the holds that a draining worker waits for.
    pub fn is_hold(&self) -> bool {
        self.request.split(' ').next() == Some(HOLD_METHOD)
    }
}

impl WorkerStatus {
    /// Combines what the primary knows of a worker with the figures that the worker has `published`.
    pub(super) fn from_primary(
        known: &WorkerView,
        published: Option<WorkerStatus>,
        now: Instant,
    ) -> WorkerStatus {
        let published = published.unwrap_or_default();
        let state = match WorkerState::from_name(known.state) {
            // The primary knows that it was ready; only the worker knows that its sockets failed since.
            WorkerState::Serving if published.state == WorkerState::CannotAccept => published.state,
            state => state,
        };
        WorkerStatus {
            id: known.tag.id,
            slot: known.tag.slot,
            kind: known.tag.kind.to_string(),
            generation: known.tag.generation,
            // That of a program is known as soon as the guard has started it.
            pid: known.tag.pid,
            guard_pid: published.guard_pid.filter(|guard| known.tag.pid != Some(*guard)),
            state,
            uptime_ms: millis_between(known.forked_at, now),
            ..published
        }
    }

    /// Sets identity, state and age to what the primary knew `age_ms` ago.
    #[cfg(feature = "admin")]
    pub(super) fn set_known_by_primary(&mut self, known: &WorkerStatus, age_ms: u64) {
        self.state = match known.state {
            // As in `from_primary`.
            WorkerState::Serving if self.state == WorkerState::CannotAccept => self.state,
            state => state,
        };
        (self.slot, self.generation, self.pid) = (known.slot, known.generation, known.pid);
        self.guard_pid = self.guard_pid.filter(|guard| self.pid != Some(*guard));
        self.kind.clone_from(&known.kind);
        self.stalled_in.clone_from(&known.stalled_in);
        self.uptime_ms = known.uptime_ms + age_ms;
    }

    /// Adds the figures of another thread of the same worker. The heartbeat is that of the most delayed thread.
    pub(crate) fn add_thread(&mut self, other: WorkerStatus) {
        let sum = |a: u64, b: u64| a.saturating_add(b).min(MAX_JSON_INTEGER);
        match (self.state, other.state) {
            (_, WorkerState::ThreadEnded) => {}
            (WorkerState::ThreadEnded, _) => {
                (self.state, self.heartbeat_age_ms) = (other.state, other.heartbeat_age_ms);
                self.full = other.full;
            }
            (state, new) => {
                // A worker serves if any of its threads serves.
                self.state = if state == WorkerState::Serving { state } else { new };
                self.heartbeat_age_ms = self.heartbeat_age_ms.max(other.heartbeat_age_ms);
                self.full &= other.full;
            }
        }
        for bucket in 0..DURATION_BUCKETS {
            self.loop_lag[bucket] = sum(self.loop_lag[bucket], other.loop_lag[bucket]);
            self.queue_wait[bucket] = sum(self.queue_wait[bucket], other.queue_wait[bucket]);
        }
        self.connections = sum(self.connections, other.connections);
        self.parked = sum(self.parked, other.parked);
        self.active = sum(self.active, other.active);
        self.counters = self.counters.sum_with(other.counters);
        self.durations = self.durations.sum_with(&other.durations);
        self.kept = self.kept.sum_with(&other.kept);
        self.serving.extend(other.serving);
        self.serving.sort_by_key(|request| std::cmp::Reverse(request.age_ms));
    }

    /// Returns the request whose handler is on the event loop, if any. It is the cause if the loop is stalled.
    pub fn blocking_request(&self) -> Option<&InFlightRequest> {
        self.serving.iter().find(|request| request.on_loop)
    }
}

fn web_kind() -> String {
    WEB_KIND.to_string()
}
