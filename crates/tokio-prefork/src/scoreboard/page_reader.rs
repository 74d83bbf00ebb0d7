//! Reads the figures of scoreboard pages as plain data.
//!
//! Every figure is cut to [`MAX_JSON_INTEGER`], as a worker can write anything into its page.

use super::in_flight::{self, ReadEntry};
use super::page_layout::{
    ACTIVE_REQUESTS, BEGUN_JOB, GENERATION, HEARTBEAT_MS, IS_FULL, JOB_STARTED_MS,
    OPEN_CONNECTIONS, PARKED_CONNECTIONS, PID, PROGRAM_CPU_US, PROGRAM_PID, PROGRAM_PROCESSES,
    PROGRAM_QUEUED, PROGRAM_RESIDENT_BYTES, PageWord, REQUESTS, RUNNING_ENTRY, SLOT, STARTED_AT_MS,
    STATE, THREAD, WORKER_ID,
};
use super::{request_page, worker_page};
use crate::status::{
    InFlightRequest, MAX_JSON_INTEGER, ProgramFigures, RunningJob, TRAFFIC_COUNTERS, ThreadStatus,
    TrafficCounters, WorkerState, WorkerStatus, unix_time_ms,
};
use crate::worker::heartbeat::HEARTBEAT_INTERVAL;
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

/// The largest count or number of bytes that one worker can have reached: 2^56, a terabyte per second for 20 hours. A larger one was
/// written by mistake or on purpose; it counts as 0, so that it does not stay in the sums for ever.
const MAX_COUNTER_OF_WORKER: u64 = 1 << 56;

/// Reads the traffic counters of a worker. A count that no worker can reach is read as 0.
pub(super) fn read_counters(page: &SharedPage) -> TrafficCounters {
    let counters = read_sums(page).to_array();
    TrafficCounters::from_array(counters.map(|n| if n > MAX_COUNTER_OF_WORKER { 0 } else { n }))
}

/// Reads the traffic counters of dead workers from the primary's page.
pub(super) fn read_sums(page: &SharedPage) -> TrafficCounters {
    let counter = |n| PageWord::of_counter(n).load(page);
    TrafficCounters::from_array(std::array::from_fn::<_, TRAFFIC_COUNTERS, _>(counter))
}

/// Adds to the traffic counters of a page. Wraps around, as a worker can write anything.
pub(super) fn add_counters(page: &SharedPage, counters: &TrafficCounters) {
    for (n, value) in counters.to_array().into_iter().enumerate() {
        PageWord::of_counter(n).add(page, value);
    }
}

/// A worker page and its request page, which a scoreboard of an older version does not have.
#[derive(Clone, Copy)]
pub(super) struct PagePair {
    pub(super) worker: &'static SharedPage,
    pub(super) requests: Option<&'static SharedPage>,
}

/// Reads the pages of one worker, one pair for each of its threads. `None` if none of them is in use.
pub(super) fn read_worker(pages: impl Iterator<Item = PagePair>) -> Option<WorkerStatus> {
    let mut worker: Option<WorkerStatus> = None;
    let mut threads = Vec::new();
    for pages in pages {
        let Some(figures) = read_pages(pages) else { continue };
        let page = pages.worker;
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

/// Reads the pages of a worker, or of one of its threads. `None` if they are not in use.
fn read_pages(pages: PagePair) -> Option<WorkerStatus> {
    let page = pages.worker;
    let state = load_state(page)?;
    let now_ms = monotonic_ms();
    let small = |word: PageWord| u32::try_from(word.load(page)).unwrap_or(u32::MAX);
    let zero = TrafficCounters::default();
    let kept = request_page::read_kept(page, pages.requests);
    let program = read_program_figures(page);
    Some(WorkerStatus {
        stalled_in: None,
        id: WorkerId(load_json_integer(WORKER_ID, page)),
        slot: Slot(small(SLOT)),
        kind: String::new(),
        generation: Generation(load_json_integer(GENERATION, page)),
        // A page that the primary reads; it knows the pids itself.
        pid: Some(small(if program.is_some() { PROGRAM_PID } else { PID })).filter(|pid| *pid != 0),
        guard_pid: program.map(|_| small(PID)),
        program,
        state,
        uptime_ms: unix_time_ms().saturating_sub(STARTED_AT_MS.load(page)).min(MAX_JSON_INTEGER),
        heartbeat_age_ms: Some(
            now_ms.saturating_sub(HEARTBEAT_MS.load(page)).min(MAX_JSON_INTEGER),
        ),
        loop_lag: kept.loop_lag.counts,
        queue_wait: kept.queue_wait.counts,
        connections: load_json_integer(OPEN_CONNECTIONS, page),
        parked: load_json_integer(PARKED_CONNECTIONS, page),
        full: IS_FULL.load(page) == 1,
        active: load_json_integer(ACTIVE_REQUESTS, page),
        counters: zero.sum_with(read_counters(page)),
        durations: kept.durations,
        pools: Vec::new(),
        job: read_running_job(page, now_ms),
        serving: read_requests(pages, now_ms),
        threads: Vec::new(),
        rss_bytes: None,
        open_fds: None,
        cpu_ms: None,
        kept,
    })
}

/// Reads the figures of a program. `None` on the page of any other worker, and before the program is started.
fn read_program_figures(page: &SharedPage) -> Option<ProgramFigures> {
    (PROGRAM_PID.load(page) != 0).then(|| ProgramFigures {
        processes: load_json_integer(PROGRAM_PROCESSES, page),
        queued: load_json_integer(PROGRAM_QUEUED, page),
        rss_bytes: load_json_integer(PROGRAM_RESIDENT_BYTES, page),
        cpu_ms: load_json_integer(PROGRAM_CPU_US, page) / 1000,
    })
}

fn read_running_job(page: &SharedPage, now_ms: u64) -> Option<RunningJob> {
    let started_ms = JOB_STARTED_MS.load(page);
    (started_ms != 0).then(|| RunningJob {
        id: load_json_integer(BEGUN_JOB, page),
        age_ms: now_ms.saturating_sub(started_ms).min(MAX_JSON_INTEGER),
    })
}

fn load_json_integer(word: PageWord, page: &SharedPage) -> u64 {
    word.load(page).min(MAX_JSON_INTEGER)
}

/// Reads the requests in progress, oldest first.
fn read_requests(pages: PagePair, now_ms: u64) -> Vec<InFlightRequest> {
    let running = RUNNING_ENTRY.load(pages.worker);
    let details_of = |entry: &ReadEntry| {
        request_page::read_details(pages.requests?, entry.number, entry.sequence)
    };
    let requests = in_flight::read_entries(pages.worker).into_iter();
    let mut requests: Vec<InFlightRequest> = requests
        .map(|entry| {
            let (client, request_id) = details_of(&entry).unwrap_or_default();
            InFlightRequest {
                on_loop: running == entry.number as u64 + 1,
                request: entry.text,
                age_ms: now_ms.saturating_sub(entry.start_ms).min(MAX_JSON_INTEGER),
                client: Some(client).filter(|text| !text.is_empty()),
                request_id: Some(request_id).filter(|text| !text.is_empty()),
            }
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
    /// Whether its event loop sleeps, idle, and the next heartbeat is not due yet.
    pub(crate) is_sleeping: bool,
    /// Requests received so far, without those that do not count for `max-requests`.
    pub(crate) requests: u64,
    pub(crate) open_connections: u64,
    /// Resident memory of all processes of its program in bytes. `None` for workers without one.
    pub(crate) program_memory: Option<u64>,
    /// The request whose handler is on the event loop, or else the oldest one.
    pub(crate) current_request: Option<InFlightRequest>,
}

impl HeartbeatSample {
    /// Reads the pages of one worker. Heartbeat and request are those of the thread with the oldest heartbeat.
    pub(super) fn read(pages: impl Iterator<Item = PagePair> + Clone) -> HeartbeatSample {
        let sum = |word: PageWord| {
            pages.clone().fold(0u64, |sum, page| sum.wrapping_add(word.load(page.worker)))
        };
        let uncounted = pages.clone().filter_map(|page| page.requests);
        let uncounted: u64 =
            uncounted.map(request_page::uncounted_requests).fold(0, u64::wrapping_add);
        let has_ended = |page: &PagePair| load_state(page.worker) == Some(WorkerState::ThreadEnded);
        let running = pages.clone().filter(|page| !has_ended(page));
        let slowest = running.min_by_key(|page| HEARTBEAT_MS.load(page.worker));
        let Some(slowest) = slowest.or_else(|| pages.clone().next()) else {
            return HeartbeatSample::default();
        };
        let (now_ms, heartbeat_ms) = (monotonic_ms(), HEARTBEAT_MS.load(slowest.worker));
        let is_recent = now_ms.saturating_sub(heartbeat_ms) < HEARTBEAT_INTERVAL.as_millis() as u64;
        // Most of the time of a sample, and only of interest in a worker that may have stalled.
        let mut requests = if is_recent { Vec::new() } else { read_requests(slowest, now_ms) };
        requests.retain(|request| !request.is_hold());
        let on_loop = requests.iter().position(|request| request.on_loop).unwrap_or(0);
        HeartbeatSample {
            heartbeat_ms,
            is_sleeping: worker_page::is_sleeping(slowest.worker, now_ms),
            requests: sum(REQUESTS).saturating_sub(uncounted),
            open_connections: sum(OPEN_CONNECTIONS),
            program_memory: read_program_figures(slowest.worker)
                .map(|figures| figures.rss_bytes)
                .filter(|bytes| *bytes > 0),
            current_request: (on_loop < requests.len()).then(|| requests.swap_remove(on_loop)),
        }
    }
}
