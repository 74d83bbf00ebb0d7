//! Reads the figures of scoreboard pages as plain data.
//!
//! Every figure is cut to [`MAX_JSON_INTEGER`], as a worker can write anything into its page.

use super::duration_histogram::DURATION_BUCKETS;
use super::in_flight;
use super::page_layout::{
    ACTIVE_REQUESTS, BEGUN_JOB, FIRST_COUNTER, GENERATION, HEARTBEAT_MS, IS_FULL, JOB_STARTED_MS,
    LOOP_LAG, OPEN_CONNECTIONS, PID, PageWord, QUEUE_WAIT, REQUESTS, RUNNING_ENTRY, SLOT,
    STARTED_AT_MS, STATE, THREAD, WORKER_ID,
};
use super::worker_page::unix_time_ms;
use crate::status::{
    InFlightRequest, MAX_JSON_INTEGER, RunningJob, TRAFFIC_COUNTERS, ThreadStatus, TrafficCounters,
    WorkerState, WorkerStatus,
};
use prefork_os::shared_memory::SharedPage;
use prefork_os::system::monotonic_ms;
use prefork_supervisor::{Generation, Slot, WorkerId};

/// The numbers of [`WorkerState`] on a page. Workers of older and newer versions write them, so they never change.
const STATES_ON_PAGE: [(u64, WorkerState); 5] = [
    (1, WorkerState::Booting),
    (2, WorkerState::Serving),
    (3, WorkerState::Draining),
    (4, WorkerState::ThreadEnded),
    (5, WorkerState::CannotAccept),
];

/// Writes the state of a worker to its page.
pub(super) fn store_state(page: &SharedPage, state: WorkerState) {
    let number = STATES_ON_PAGE.iter().find(|(_, known)| *known == state);
    STATE.store(page, number.map_or(u64::MAX, |(number, _)| *number));
}

/// Returns the state on a page; `None` if the page is not in use.
pub(super) fn load_state(page: &SharedPage) -> Option<WorkerState> {
    let number = STATE.load(page);
    let known = STATES_ON_PAGE.iter().find(|(known, _)| *known == number);
    (number != 0).then(|| known.map_or(WorkerState::Unknown, |(_, state)| *state))
}

/// Reads the traffic counters of a page as they are, without a limit.
pub(super) fn read_counters(page: &SharedPage) -> TrafficCounters {
    let counter = |n| FIRST_COUNTER.plus(n).load(page);
    TrafficCounters::from_array(std::array::from_fn::<_, TRAFFIC_COUNTERS, _>(counter))
}

/// Adds to the traffic counters of a page. Wraps around, as a worker can write anything.
pub(super) fn add_counters(page: &SharedPage, counters: &TrafficCounters) {
    for (n, value) in counters.to_array().into_iter().enumerate() {
        FIRST_COUNTER.plus(n).add(page, value);
    }
}

/// Reads the pages of one worker, one for each of its threads. `None` if none of them is in use.
pub(super) fn read_worker(
    pages: impl Iterator<Item = &'static SharedPage>,
) -> Option<WorkerStatus> {
    let mut worker: Option<WorkerStatus> = None;
    let mut threads = Vec::new();
    for page in pages {
        let Some(figures) = read_page(page) else { continue };
        threads.push(ThreadStatus {
            thread: load_json_integer(THREAD, page),
            state: figures.state,
            heartbeat_age_ms: figures.heartbeat_age_ms.unwrap_or_default(),
            connections: figures.connections,
            active: figures.active,
            requests: figures.counters.requests,
        });
        match &mut worker {
            Some(worker) => worker.add_thread(figures),
            None => worker = Some(figures),
        }
    }
    let mut worker = worker?;
    if threads.len() > 1 {
        worker.threads = threads;
    }
    Some(worker)
}

/// Reads the page of a worker, or of one of its threads. `None` if it is not in use.
fn read_page(page: &SharedPage) -> Option<WorkerStatus> {
    let state = load_state(page)?;
    let now_ms = monotonic_ms();
    let small = |word: PageWord| u32::try_from(word.load(page)).unwrap_or(u32::MAX);
    let zero = TrafficCounters::default();
    Some(WorkerStatus {
        id: WorkerId(load_json_integer(WORKER_ID, page)),
        slot: Slot(small(SLOT)),
        kind: String::new(),
        generation: Generation(load_json_integer(GENERATION, page)),
        pid: Some(small(PID)).filter(|pid| *pid != 0),
        state,
        uptime_ms: unix_time_ms().saturating_sub(STARTED_AT_MS.load(page)).min(MAX_JSON_INTEGER),
        heartbeat_age_ms: Some(
            now_ms.saturating_sub(HEARTBEAT_MS.load(page)).min(MAX_JSON_INTEGER),
        ),
        loop_lag: read_histogram(LOOP_LAG, page),
        queue_wait: read_histogram(QUEUE_WAIT, page),
        connections: load_json_integer(OPEN_CONNECTIONS, page),
        full: IS_FULL.load(page) == 1,
        active: load_json_integer(ACTIVE_REQUESTS, page),
        counters: zero.sum_with(read_counters(page)),
        pools: Vec::new(),
        job: read_running_job(page, now_ms),
        serving: read_requests(page, now_ms),
        threads: Vec::new(),
    })
}

fn read_running_job(page: &SharedPage, now_ms: u64) -> Option<RunningJob> {
    let started_ms = JOB_STARTED_MS.load(page);
    (started_ms != 0).then(|| RunningJob {
        id: load_json_integer(BEGUN_JOB, page),
        age_ms: now_ms.saturating_sub(started_ms).min(MAX_JSON_INTEGER),
    })
}

fn read_histogram(first: PageWord, page: &SharedPage) -> [u64; DURATION_BUCKETS] {
    std::array::from_fn(|bucket| load_json_integer(first.plus(bucket), page))
}

fn load_json_integer(word: PageWord, page: &SharedPage) -> u64 {
    word.load(page).min(MAX_JSON_INTEGER)
}

/// Reads the requests in progress, oldest first.
fn read_requests(page: &SharedPage, now_ms: u64) -> Vec<InFlightRequest> {
    let running = RUNNING_ENTRY.load(page);
    let requests = in_flight::read_entries(page).into_iter();
    let mut requests: Vec<InFlightRequest> = requests
        .map(|(entry, start_ms, request)| InFlightRequest {
            request,
            age_ms: now_ms.saturating_sub(start_ms).min(MAX_JSON_INTEGER),
            on_loop: running == entry as u64 + 1,
        })
        .collect();
    requests.sort_by_key(|request| std::cmp::Reverse(request.age_ms));
    requests
}

/// The figures by which the primary checks whether a worker makes progress.
#[derive(Default)]
pub(crate) struct HeartbeatSample {
    /// Time of the last heartbeat, in milliseconds on the monotonic clock.
    pub(crate) heartbeat_ms: u64,
    /// Requests received so far.
    pub(crate) requests: u64,
    pub(crate) open_connections: u64,
    /// The request whose handler is on the event loop, or else the oldest one.
    pub(crate) current_request: Option<InFlightRequest>,
}

impl HeartbeatSample {
    /// Reads the pages of one worker. Heartbeat and request are those of the thread with the oldest heartbeat.
    pub(super) fn read(
        pages: impl Iterator<Item = &'static SharedPage> + Clone,
    ) -> HeartbeatSample {
        let sum = |word: PageWord| {
            pages.clone().fold(0u64, |sum, page| sum.wrapping_add(word.load(page)))
        };
        let running =
            pages.clone().filter(|page| load_state(page) != Some(WorkerState::ThreadEnded));
        let slowest = running.min_by_key(|page| HEARTBEAT_MS.load(page));
        let Some(slowest) = slowest.or_else(|| pages.clone().next()) else {
            return HeartbeatSample::default();
        };
        let mut requests = read_requests(slowest, monotonic_ms());
        requests.retain(|request| !request.is_hold());
        let on_loop = requests.iter().position(|request| request.on_loop).unwrap_or(0);
        HeartbeatSample {
            heartbeat_ms: HEARTBEAT_MS.load(slowest),
            requests: sum(REQUESTS),
            open_connections: sum(OPEN_CONNECTIONS),
            current_request: (on_loop < requests.len()).then(|| requests.swap_remove(on_loop)),
        }
    }
}
