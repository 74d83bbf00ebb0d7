//! A worker's own page of the scoreboard: the only page that it can write.

use std::cell::RefCell;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use super::duration_histogram::duration_bucket;
use super::in_flight::{self, InFlightEntries, InFlightEntry};
use super::page_layout::{
    ACCEPTED, ACTIVE_REQUESTS, BEGUN_JOB, BYTES_IN, BYTES_OUT, CUT_CONNECTIONS, FAILED_ALLOCATION,
    HANDED_OVER, HEARTBEAT_MS, IS_ACCEPTING, IS_FULL, JOB_STARTED_MS, LOOP_LAG, OPEN_CONNECTIONS,
    OVER_LIMIT_CONNECTIONS, PANICS, PARKED_CONNECTIONS, PID, PROGRAM_CPU_US, PROGRAM_PID,
    PROGRAM_PROCESSES, PROGRAM_QUEUED, PROGRAM_RESIDENT_BYTES, PageWord, QUEUE_WAIT,
    REFUSED_PROXY_HEADERS, REQUESTS, RESPONSES, SHED_CONNECTIONS, SLOT, STARTED_AT_MS, TAKEN_OVER,
    THREAD, TIMED_OUT_REQUESTS,
};
use super::page_reader::{load_state, store_state};
use super::pool_counters::PoolCounters;
use super::pool_pages::PoolRecords;
use super::request_page::{LogLineCounters, RequestClass, RequestPage};
use super::shared_worker_page::SharedWorkerPage;
use crate::program::observe::ProgramUsage;
use crate::status::{WorkerState, duration_us, unix_time_ms};
use crate::worker::idle_heartbeat::SLOW_INTERVAL_MAX;
use prefork_os::shared_memory::SharedPage;
use prefork_os::system::{monotonic_ms, process_cpu_time_us};
use prefork_supervisor::Slot;

/// Age of a heartbeat above which an event loop counts as busy: three intervals. Other workers do not wait for a busy one.
const STALE_HEARTBEAT_MS: u64 = 300;

/// Age of a heartbeat above which a worker does not count as ready for health checks. On a machine without idle cores a heartbeat is
/// often late by several intervals.
#[cfg(feature = "admin")]
const UNREADY_HEARTBEAT_MS: u64 = 2000;

/// Records the life of one request, on the page of one thread or on a page that threads share.
pub(crate) trait RequestRecorder {
    /// Returns the counter of bytes for a connection.
    fn byte_meter(&self) -> ByteMeter;
    /// Records a new request. `None` if there is no free entry to list it in; it is counted all the same.
    fn request_started(&self, method: &str, path: &str, now_ms: u64) -> Option<InFlightEntry>;
    /// Records that the handler of this request is on the event loop; with `None`, that no handler is.
    fn set_running_request(&self, entry: Option<InFlightEntry>);
    /// Returns method and path of a request, escaped.
    fn describe_request(&self, entry: Option<InFlightEntry>) -> Option<String>;
    /// Counts a handler that panicked.
    fn handler_panicked(&self);
    /// Counts a request that took longer than `request-timeout`.
    fn request_timed_out(&self);
    /// Counts a response by its status.
    fn response_started(&self, status: u16);
    /// Writes the address of the client and the request id of a request, for the status. An entry has them until its end.
    fn set_request_details(&self, entry: Option<InFlightEntry>, client: &str, request_id: &str);
    /// Counts a request that was refused before it reached hyper.
    fn request_refused(&self, status: u16);
    /// Records the end of a request, answered or not.
    fn request_finished(&self, entry: Option<InFlightEntry>);
    /// Counts a finished request by its method and status.
    fn request_counted(&self, class: RequestClass);
    /// Counts how long a finished request took, in microseconds.
    fn request_measured(&self, took_us: u64);
    /// Counts a TLS handshake that begins.
    #[cfg(feature = "tls")]
    fn tls_handshake_begun(&self);
    /// Counts a TLS handshake that has ended.
    #[cfg(feature = "tls")]
    fn tls_handshake_ended(&self, result: crate::status::TlsHandshakeResult);
}

/// Writes to one page of the scoreboard. Methods neither fail nor block.
pub(crate) struct WorkerPage {
    page: &'static SharedPage,
    request_page: &'static SharedPage,
    number: usize,
    entries: RefCell<InFlightEntries>,
    pool_records: PoolRecords,
    /// Whether other threads count on this page, too; see `SharedWorkerPage`.
    is_shared: bool,
}

impl WorkerPage {
    pub(super) fn new(
        page: &'static SharedPage,
        request_page: &'static SharedPage,
        number: usize,
        pool_records: PoolRecords,
    ) -> WorkerPage {
        PID.store(page, std::process::id().into());
        STARTED_AT_MS.store(page, unix_time_ms());
        HEARTBEAT_MS.store(page, monotonic_ms());
        store_state(page, WorkerState::Booting);
        let entries = RefCell::new(InFlightEntries::new());
        WorkerPage { page, request_page, number, entries, pool_records, is_shared: false }
    }

    /// Shares the page with other threads of the process.
    pub(crate) fn share_with_threads(&mut self) {
        self.is_shared = true;
    }

    /// Returns the handle for other threads; `None` if the page is not shared.
    pub(crate) fn shared_page(&self) -> Option<SharedWorkerPage> {
        self.is_shared.then(|| SharedWorkerPage::new(self.page, self.request_page))
    }

    /// Returns a view of this page for another thread of the process.
    pub(crate) fn thread_view(&self) -> ThreadPageView {
        ThreadPageView(self.page)
    }

    pub(super) fn is_same_page(&self, page: &SharedPage) -> bool {
        // The two are different mappings of the same memory, so compare the owner that is written there.
        PID.load(self.page) == PID.load(page)
    }

    /// Returns the index of the page among all workers' pages, from 0.
    pub(crate) fn page_number(&self) -> usize {
        self.number
    }

    pub(crate) fn set_state(&self, state: WorkerState) {
        store_state(self.page, state);
    }

    /// Records the pid of the foreign program whose guard owns the page.
    pub(crate) fn set_program_pid(&self, pid: u32) {
        PROGRAM_PID.store(self.page, pid.into());
    }

    /// Records what the program uses whose guard owns the page.
    pub(crate) fn set_program_usage(&self, usage: &ProgramUsage) {
        OPEN_CONNECTIONS.store(self.page, usage.connections.into());
        PROGRAM_PROCESSES.store(self.page, usage.processes.into());
        PROGRAM_QUEUED.store(self.page, usage.queued.into());
        PROGRAM_RESIDENT_BYTES.store(self.page, usage.resident_bytes);
        let micros = u64::try_from(usage.cpu_time.as_micros()).unwrap_or(u64::MAX);
        PROGRAM_CPU_US.store(self.page, micros);
    }

    /// Records a heartbeat of the event loop.
    pub(crate) fn record_heartbeat(&self, now_ms: u64) {
        HEARTBEAT_MS.store(self.page, now_ms);
        // The other threads of a worker have pages of their own, and the CPU time of the process counts once.
        if THREAD.load(self.page) == 0 {
            self.requests().set_cpu_time_us(process_cpu_time_us());
        }
    }

    /// Records how late a heartbeat was.
    pub(crate) fn record_loop_lag(&self, late: Duration) {
        LOOP_LAG.plus(duration_bucket(late)).add(self.page, 1);
        self.requests().add_loop_lag_us(duration_us(late));
    }

    /// Sets whether the worker accepts new connections.
    pub(crate) fn set_accepting(&self, is_accepting: bool) {
        IS_ACCEPTING.store(self.page, u64::from(is_accepting));
    }

    /// Sets whether the worker has reached its connection limit.
    pub(crate) fn set_full(&self, is_full: bool) {
        IS_FULL.store(self.page, u64::from(is_full));
    }

    /// Lists what holds this draining worker beside its requests, and since when; `None` for nothing.
    pub(crate) fn set_holds(&self, holds: Option<(&str, u64)>) {
        in_flight::set_holds(self.page, holds);
    }

    /// Counts an accepted connection.
    pub(crate) fn connection_accepted(&self) {
        ACCEPTED.add(self.page, 1);
        OPEN_CONNECTIONS.add(self.page, 1);
    }

    /// Records how long a connection waited in the kernel's queue.
    pub(crate) fn record_queue_wait(&self, wait: Duration) {
        QUEUE_WAIT.plus(duration_bucket(wait)).add(self.page, 1);
        self.requests().add_queue_wait_us(duration_us(wait));
    }

    /// Counts a connection that was refused because it had waited for too long.
    pub(crate) fn connection_shed(&self) {
        SHED_CONNECTIONS.add(self.page, 1);
    }

    /// Counts a connection that waited or was refused because the worker was full.
    pub(crate) fn connection_over_limit(&self) {
        OVER_LIMIT_CONNECTIONS.add(self.page, 1);
    }

    /// Counts a connection that was closed because of its PROXY header.
    pub(crate) fn proxy_header_refused(&self) {
        REFUSED_PROXY_HEADERS.add(self.page, 1);
    }

    /// Counts a connection that was taken over from another worker.
    pub(crate) fn connection_taken_over(&self) {
        TAKEN_OVER.add(self.page, 1);
        OPEN_CONNECTIONS.add(self.page, 1);
    }

    /// Counts a connection that was sent to another worker. `connection_closed` follows as for any other.
    pub(crate) fn connection_handed_over(&self) {
        HANDED_OVER.add(self.page, 1);
    }

    pub(crate) fn connection_closed(&self) {
        OPEN_CONNECTIONS.add(self.page, u64::MAX);
    }

    /// Records how many of the open connections are parked.
    pub(crate) fn set_parked_connections(&self, count: usize) {
        PARKED_CONNECTIONS.store(self.page, count as u64);
    }

    /// Counts a connection that was closed in use: at the drain deadline, or because it took too long.
    pub(crate) fn connection_cut(&self) {
        CUT_CONNECTIONS.add(self.page, 1);
    }

    /// Returns the counters of the access log, for any thread.
    pub(crate) fn log_lines(&self) -> LogLineCounters {
        self.requests().log_lines()
    }

    fn requests(&self) -> RequestPage {
        RequestPage::new(self.request_page, self.is_shared)
    }

    /// Returns how many connections are open.
    pub(crate) fn open_connections(&self) -> u64 {
        OPEN_CONNECTIONS.load(self.page)
    }

    /// Returns new counters for the worker's default CPU pool.
    pub(crate) fn pool_counters(&self) -> PoolCounters {
        self.pool_records.default_pool_counters()
    }

    /// Returns the table of the worker's pools, for all its threads.
    pub(crate) fn pool_records(&self) -> PoolRecords {
        self.pool_records.clone()
    }
}

impl RequestRecorder for WorkerPage {
    fn byte_meter(&self) -> ByteMeter {
        ByteMeter { page: self.page, is_shared: self.is_shared }
    }

    fn request_started(&self, method: &str, path: &str, now_ms: u64) -> Option<InFlightEntry> {
        REQUESTS.add(self.page, 1);
        ACTIVE_REQUESTS.add(self.page, 1);
        self.entries.borrow_mut().add(self.page, method, path, now_ms)
    }

    fn set_running_request(&self, entry: Option<InFlightEntry>) {
        in_flight::set_running_entry(self.page, entry);
    }

    fn describe_request(&self, entry: Option<InFlightEntry>) -> Option<String> {
        entry.and_then(|entry| in_flight::read_request(self.page, entry))
    }

    fn handler_panicked(&self) {
        PANICS.add(self.page, 1);
    }

    fn request_timed_out(&self) {
        TIMED_OUT_REQUESTS.add(self.page, 1);
    }

    fn response_started(&self, status: u16) {
        if let class @ 1..=5 = usize::from(status / 100) {
            RESPONSES.plus(class - 1).add(self.page, 1);
        }
    }

    fn set_request_details(&self, entry: Option<InFlightEntry>, client: &str, request_id: &str) {
        if let Some(entry) = entry {
            let (number, sequence) = entry.number_and_sequence(self.page);
            self.requests().set_details(number, sequence, client, request_id);
        }
    }

    fn request_counted(&self, class: RequestClass) {
        self.requests().count_request(class);
    }

    #[cfg(feature = "tls")]
    fn tls_handshake_begun(&self) {
        self.requests().count_tls_handshake_begun();
    }

    #[cfg(feature = "tls")]
    fn tls_handshake_ended(&self, result: crate::status::TlsHandshakeResult) {
        self.requests().count_tls_handshake(result);
    }

    fn request_measured(&self, took_us: u64) {
        self.requests().count_duration(took_us);
    }

    fn request_refused(&self, status: u16) {
        REQUESTS.add(self.page, 1);
        self.response_started(status);
        self.request_counted(RequestClass::refused(status));
    }

    fn request_finished(&self, entry: Option<InFlightEntry>) {
        ACTIVE_REQUESTS.add(self.page, u64::MAX);
        if let Some(entry) = entry {
            self.entries.borrow_mut().remove(self.page, entry);
        }
    }
}

/// Counts the bytes of a connection. Can move to another thread with an upgraded connection.
#[derive(Clone, Copy)]
pub(crate) struct ByteMeter {
    page: &'static SharedPage,
    is_shared: bool,
}

impl ByteMeter {
    pub(super) fn on_shared_page(page: &'static SharedPage) -> ByteMeter {
        ByteMeter { page, is_shared: true }
    }

    pub(crate) fn add_bytes_in(&self, n: usize) {
        self.add(BYTES_IN, n);
    }

    pub(crate) fn add_bytes_out(&self, n: usize) {
        self.add(BYTES_OUT, n);
    }

    fn add(&self, word: PageWord, n: usize) {
        if self.is_shared {
            word.add_shared(self.page, n as u64)
        } else {
            word.add(self.page, n as u64)
        }
    }

    /// Returns the time of the last heartbeat, in milliseconds on the monotonic clock: up to 100 ms old while the event
    /// loop runs, and without a system call.
    pub(crate) fn coarse_now_ms(&self) -> u64 {
        HEARTBEAT_MS.load(self.page)
    }
}

/// A view of one thread's page for another thread of the same process.
pub(crate) struct ThreadPageView(&'static SharedPage);

impl ThreadPageView {
    /// Records a heartbeat, or the time of the next one while the event loop sleeps.
    pub(crate) fn record_heartbeat(&self, at_ms: u64) {
        HEARTBEAT_MS.store(self.0, at_ms);
    }

    /// Returns how many connections were accepted.
    pub(crate) fn accepted_connections(&self) -> u64 {
        ACCEPTED.load(self.0)
    }

    /// Returns how many connections are open.
    pub(crate) fn open_connections(&self) -> u64 {
        OPEN_CONNECTIONS.load(self.0)
    }

    /// Returns whether the thread serves, full or not, and its event loop runs.
    pub(crate) fn is_serving(&self, now_ms: u64) -> bool {
        is_serving(self.0, now_ms)
    }

    /// Returns whether the worker has recorded that none of its listening sockets gives it connections.
    pub(crate) fn cannot_accept(&self) -> bool {
        load_state(self.0) == Some(WorkerState::CannotAccept)
    }

    /// Returns the word that tells the primary that the process aborts because an allocation failed.
    pub(crate) fn failed_allocation_word(&self) -> &'static AtomicU64 {
        FAILED_ALLOCATION.of_page(self.0)
    }

    /// Records, before an isolated job runs, that it begins. The primary reads it when the process has ended.
    pub(crate) fn record_begun_job(&self, job: u64) {
        BEGUN_JOB.store(self.0, job);
        JOB_STARTED_MS.store(self.0, monotonic_ms().max(1));
    }

    /// Records, for the status, that no isolated job runs any more.
    pub(crate) fn record_job_ended(&self) {
        JOB_STARTED_MS.store(self.0, 0);
    }

    /// Records the end of a thread from another thread.
    pub(crate) fn set_thread_ended(&self) {
        IS_ACCEPTING.store(self.0, 0);
        store_state(self.0, WorkerState::ThreadEnded);
    }
}

/// Returns whether the worker of `page` could accept a connection right now: it accepts, and its event loop runs.
pub(super) fn can_accept(page: &SharedPage, now_ms: u64) -> bool {
    IS_ACCEPTING.load(page) == 1 && is_serving(page, now_ms)
}

/// Returns whether the worker of `page` serves connections, full or not, and its event loop runs.
pub(super) fn is_serving(page: &SharedPage, now_ms: u64) -> bool {
    has_serving_state(page) && has_fresh_heartbeat(page, now_ms)
}

/// Returns whether a health check counts the worker of `page` as serving.
#[cfg(feature = "admin")]
pub(super) fn is_ready(page: &SharedPage, now_ms: u64) -> bool {
    has_serving_state(page) && now_ms.saturating_sub(HEARTBEAT_MS.load(page)) < UNREADY_HEARTBEAT_MS
}

/// Returns whether `page` is one of a worker that serves connections, if its event loop runs.
pub(super) fn has_serving_state(page: &SharedPage) -> bool {
    let is_web = SLOT.load(page) < u64::from(Slot::MAX_SLOTS_PER_KIND);
    is_web && load_state(page) == Some(WorkerState::Serving)
}

/// Returns whether the event loop of the worker of `page` runs, or sleeps because the worker is idle.
pub(super) fn has_fresh_heartbeat(page: &SharedPage, now_ms: u64) -> bool {
    now_ms.saturating_sub(HEARTBEAT_MS.load(page)) < STALE_HEARTBEAT_MS
}

/// Returns whether the page shows the time of the next heartbeat, which is not due yet: the event loop of an idle worker sleeps.
///
/// A time that is too far ahead was not written by a sleeping worker.
pub(super) fn is_sleeping(page: &SharedPage, now_ms: u64) -> bool {
    let ahead = HEARTBEAT_MS.load(page).saturating_sub(now_ms);
    ahead > 0 && ahead <= millis(SLOW_INTERVAL_MAX)
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
