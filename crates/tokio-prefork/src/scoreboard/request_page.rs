//! The second page of each worker page: its requests by method and status, their durations, and details of those in progress.
//!
//! The request pages stand behind all other pages, in the order of the worker pages: number 0 belongs to the primary, which keeps
//! the sums of dead workers there, number n to worker page n. Each is written by the owner of its worker page only. A word of the
//! primary's page says where they start; on a scoreboard of an older version it is 0, and there are none.

use std::sync::atomic::{Ordering, fence};

use super::duration_histogram::DURATION_BUCKETS;
use super::page_layout::{
    IN_FLIGHT_ENTRIES, LOOP_LAG, PageWord, QUEUE_WAIT, REQUEST_PAGES_START, REQUESTS,
};
use super::{Scoreboard, WorkerPages};
use crate::status::{
    AccessLogCounters, DelayHistogram, KeptFigures, METHOD_CLASSES, REQUEST_DURATION_BUCKETS,
    RequestDurations, RequestsBy, STATUS_CLASSES, TLS_HANDSHAKE_RESULTS, TlsHandshakes,
};
use crate::text::printable_ascii;
use prefork_os::shared_memory::{ReadOnlyPages, SharedPage, WORDS_PER_PAGE};

/// Finished requests: for each method of `METHOD_CLASSES` a word for each status of `STATUS_CLASSES`.
const REQUESTS_BY: PageWord = PageWord::at(0);
/// The histogram of durations, by `DURATION_BOUNDS_US`.
const DURATIONS: PageWord = PageWord::at(48);
/// The sum of all measured durations, in microseconds.
const DURATION_SUM_US: PageWord = PageWord::at(72);
/// Lines of the access log that were written, lost, and left out on purpose.
const LOG_LINES_WRITTEN: PageWord = PageWord::at(73);
const LOG_LINES_DROPPED: PageWord = PageWord::at(74);
const LOG_LINES_SKIPPED: PageWord = PageWord::at(75);
// The word 76 is free.
/// The sums of the histograms `LOOP_LAG` and `QUEUE_WAIT`, in microseconds.
const LOOP_LAG_SUM_US: PageWord = PageWord::at(77);
const QUEUE_WAIT_SUM_US: PageWord = PageWord::at(78);
/// CPU time of the process in microseconds, on the page of its first thread.
const CPU_TIME_US: PageWord = PageWord::at(79);
/// Requests for the paths of `access-log-skip`, which do not count for `max-requests`.
const UNCOUNTED_REQUESTS: PageWord = PageWord::at(80);
/// 1 if each request gets a line in the access log or is counted as skipped.
const IS_LOGGING: PageWord = PageWord::at(81);
// The words from 82 to 95 are free.
/// The details of the in-flight entries of the worker page.
const DETAILS: usize = 96;
/// How many words the details of an entry have: the sequence number of the entry, lengths, client, request id.
const DETAIL_WORDS: usize = 2 + (MAX_CLIENT_BYTES + MAX_REQUEST_ID_BYTES) / 8;
/// TLS handshakes that have begun, and those that have ended: a word for each `TlsHandshakeResult`.
const TLS_HANDSHAKES_BEGUN: PageWord = PageWord::at(464);
const TLS_HANDSHAKES: PageWord = PageWord::at(465);
// The words behind these, from 480 on, are free.

/// How many bytes of a client's address are kept.
pub(crate) const MAX_CLIENT_BYTES: usize = 48;
/// How many bytes of a request id are kept.
pub(crate) const MAX_REQUEST_ID_BYTES: usize = 64;

/// The largest count that one worker can have reached: 2^48, a million requests per second for nine years. A larger one was written
/// by mistake or on purpose; it counts as 0, so that it does not stay in the sums for ever.
const MAX_COUNT_OF_WORKER: u64 = 1 << 48;
/// The largest sum in microseconds that one worker can have reached: 2^56, a thousand concurrent requests for two years.
const MAX_SUM_US_OF_WORKER: u64 = 1 << 56;

const _: () = assert!(
    METHOD_CLASSES.len() * STATUS_CLASSES.len() == 48
        && 48 + REQUEST_DURATION_BUCKETS <= 72
        && DETAIL_WORDS == 16
        && DETAILS + IN_FLIGHT_ENTRIES * DETAIL_WORDS <= 464
        && 465 + TLS_HANDSHAKE_RESULTS <= WORDS_PER_PAGE
);

/// How many request pages a scoreboard with `pages` worker pages has.
pub(super) fn request_page_count(pages: usize) -> usize {
    1 + pages
}

/// Returns the request pages of `count` worker pages, on a board with this page of the primary. Empty on a board of an older version.
pub(super) fn request_pages_of(
    primary: &SharedPage,
    first: usize,
    count: usize,
) -> std::ops::Range<usize> {
    let start = REQUEST_PAGES_START.load(primary) as usize;
    if start == 0 {
        return 0..0;
    }
    let first = start.saturating_add(first);
    first..first.saturating_add(count)
}

/// Returns the request page of a worker page, or of the primary's.
pub(super) fn request_page_of(board: ReadOnlyPages, index: usize) -> Option<&'static SharedPage> {
    let found = request_pages_of(board.page(super::PRIMARY_PAGE), index, 1).next();
    found.filter(|index| *index < board.count()).map(|index| board.page(index))
}

/// How a request ended, as positions in `METHOD_CLASSES` and `STATUS_CLASSES`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RequestClass {
    method: u8,
    status: u8,
}

impl RequestClass {
    /// Returns the class of a request without a response.
    pub(crate) fn of_method(method: &hyper::Method) -> RequestClass {
        let known = match *method {
            hyper::Method::GET => 0,
            hyper::Method::HEAD => 1,
            hyper::Method::POST => 2,
            hyper::Method::PUT => 3,
            hyper::Method::PATCH => 4,
            hyper::Method::DELETE => 5,
            hyper::Method::OPTIONS => 6,
            _ => 7,
        };
        RequestClass { method: known, status: 0 }
    }

    /// Sets the status of the response.
    pub(crate) fn set_status(&mut self, status: u16) {
        let class = status / 100;
        self.status = if (1..=5).contains(&class) { class as u8 } else { 0 };
    }

    /// Returns the class of a request that was refused before its method was known.
    pub(crate) fn refused(status: u16) -> RequestClass {
        let mut class = RequestClass { method: METHOD_CLASSES.len() as u8 - 1, status: 0 };
        class.set_status(status);
        class
    }

    fn word(self) -> PageWord {
        REQUESTS_BY.plus(usize::from(self.method) * STATUS_CLASSES.len() + usize::from(self.status))
    }
}

/// Writes to a request page. Each word is written either by the thread that owns the page or with locked instructions.
#[derive(Clone, Copy)]
pub(crate) struct RequestPage {
    page: &'static SharedPage,
    is_shared: bool,
}

impl RequestPage {
    pub(super) fn new(page: &'static SharedPage, is_shared: bool) -> RequestPage {
        RequestPage { page, is_shared }
    }

    fn add(self, word: PageWord, by: u64) {
        if self.is_shared { word.add_shared(self.page, by) } else { word.add(self.page, by) }
    }

    /// Counts a finished request.
    pub(super) fn count_request(self, class: RequestClass) {
        self.add(class.word(), 1);
    }

    /// Counts how long a request took.
    pub(super) fn count_duration(self, us: u64) {
        self.add(DURATIONS.plus(crate::status::request_duration_bucket(us)), 1);
        self.add(DURATION_SUM_US, us);
    }

    #[cfg(feature = "tls")]
    pub(super) fn count_tls_handshake_begun(self) {
        self.add(TLS_HANDSHAKES_BEGUN, 1);
    }

    #[cfg(feature = "tls")]
    pub(super) fn count_tls_handshake(self, result: crate::status::TlsHandshakeResult) {
        self.add(TLS_HANDSHAKES.plus(result as usize), 1);
    }

    pub(super) fn add_loop_lag_us(self, us: u64) {
        self.add(LOOP_LAG_SUM_US, us);
    }

    pub(super) fn set_cpu_time_us(self, us: u64) {
        CPU_TIME_US.store(self.page, us);
    }

    pub(super) fn add_queue_wait_us(self, us: u64) {
        self.add(QUEUE_WAIT_SUM_US, us);
    }

    pub(super) fn log_lines(self) -> LogLineCounters {
        LogLineCounters(self)
    }

    /// Writes the details of the request in an entry, whose sequence number is `sequence`. Nobody else writes these words until the
    /// entry is freed.
    pub(super) fn set_details(self, entry: usize, sequence: u64, client: &str, request_id: &str) {
        let Some(words) = self.page.get(DETAILS + entry * DETAIL_WORDS..) else { return };
        let [tag, lengths, text @ ..] = words else { return };
        // 0 is no entry's number: its first request has 2.
        tag.store(0, Ordering::Relaxed);
        fence(Ordering::Release);
        let client = &client.as_bytes()[..client.len().min(MAX_CLIENT_BYTES)];
        let id = &request_id.as_bytes()[..request_id.len().min(MAX_REQUEST_ID_BYTES)];
        for (text, value) in [(text, client), (&text[MAX_CLIENT_BYTES / 8..], id)] {
            for (word, chunk) in text.iter().zip(value.chunks(8)) {
                let mut eight = [0u8; 8];
                eight[..chunk.len()].copy_from_slice(chunk);
                word.store(u64::from_le_bytes(eight), Ordering::Relaxed);
            }
        }
        lengths.store(client.len() as u64 | (id.len() as u64) << 32, Ordering::Relaxed);
        tag.store(sequence, Ordering::Release);
    }
}

/// Counts lines of the access log.
#[derive(Clone, Copy)]
pub(crate) struct LogLineCounters(RequestPage);

impl LogLineCounters {
    /// Records that each request counted on the page gets a line or is skipped.
    pub(crate) fn set_logging(self) {
        IS_LOGGING.store(self.0.page, 1);
    }

    /// Counts a raw connection, which counts as a request and never gets a line, so that it is not a lost one.
    pub(crate) fn add_raw_connection(self) {
        if IS_LOGGING.load(self.0.page) == 1 {
            self.add_skipped(1);
        }
    }

    /// Counts a request that does not count for `max-requests`. Called by the threads that the page belongs to.
    pub(crate) fn add_uncounted(self) {
        self.0.add(UNCOUNTED_REQUESTS, 1);
    }

    /// Returns counters on a page of their own.
    #[cfg(test)]
    pub(crate) fn for_test() -> LogLineCounters {
        let mut pages = prefork_os::shared_memory::create_shared_pages(1).expect("page");
        LogLineCounters(RequestPage::new(pages.0.keep_only_page(0).expect("own"), true))
    }

    /// Returns how many lines were written, dropped and skipped.
    #[cfg(test)]
    pub(crate) fn read(self) -> (u64, u64, u64) {
        [LOG_LINES_WRITTEN, LOG_LINES_DROPPED, LOG_LINES_SKIPPED]
            .map(|word| word.load(self.0.page))
            .into()
    }

    /// Counts lines that were written, from any thread.
    pub(crate) fn add_written(self, lines: u64) {
        LOG_LINES_WRITTEN.add_shared(self.0.page, lines);
    }

    /// Counts lines that were dropped, from any thread.
    pub(crate) fn add_dropped(self, lines: u64) {
        LOG_LINES_DROPPED.add_shared(self.0.page, lines);
    }

    /// Counts requests without a line. Called by the threads that the page belongs to.
    pub(crate) fn add_skipped(self, requests: u64) {
        self.0.add(LOG_LINES_SKIPPED, requests);
    }
}

/// Reads the details that belong to the request of an entry with this sequence number: client and request id, escaped.
pub(super) fn read_details(
    page: &SharedPage,
    entry: usize,
    sequence: u64,
) -> Option<(String, String)> {
    let [tag, lengths, text @ ..] = page.get(DETAILS + entry * DETAIL_WORDS..)? else {
        return None;
    };
    if tag.load(Ordering::Acquire) != sequence {
        return None;
    }
    let lengths = lengths.load(Ordering::Relaxed);
    let mut bytes = [0u8; MAX_CLIENT_BYTES + MAX_REQUEST_ID_BYTES];
    for (word, chunk) in text.iter().zip(bytes.chunks_exact_mut(8)) {
        chunk.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
    }
    fence(Ordering::Acquire);
    if tag.load(Ordering::Relaxed) != sequence {
        return None;
    }
    let (client, id) = bytes.split_at(MAX_CLIENT_BYTES);
    let client_length = (lengths as u32 as usize).min(MAX_CLIENT_BYTES);
    let id_length = ((lengths >> 32) as usize).min(MAX_REQUEST_ID_BYTES);
    Some((printable_ascii(&client[..client_length]), printable_ascii(&id[..id_length])))
}

impl Scoreboard {
    /// Returns whether a worker has an access log, and so knows the command to reopen it.
    pub(crate) fn has_access_log(&self, pages: WorkerPages) -> bool {
        self.pages(pages).filter_map(|page| page.requests).any(|page| IS_LOGGING.load(page) == 1)
    }
}

/// Returns how many requests of a worker do not count for `max-requests`.
pub(super) fn uncounted_requests(requests: &SharedPage) -> u64 {
    UNCOUNTED_REQUESTS.load(requests)
}

/// Returns how many requests of a dead worker have neither a line nor a count: those in progress, and those whose lines were
/// not written yet.
fn lines_lost_by_death(worker: &SharedPage, requests: &SharedPage) -> u64 {
    if IS_LOGGING.load(requests) != 1 {
        return 0;
    }
    let words = [LOG_LINES_WRITTEN, LOG_LINES_DROPPED, LOG_LINES_SKIPPED];
    let known = words.iter().fold(0u64, |sum, word| sum.saturating_add(word.load(requests)));
    REQUESTS.load(worker).saturating_sub(known)
}

/// Reads what is kept of the two pages of a dead worker. Requests whose lines are lost count as dropped ones.
pub(super) fn read_last(worker: &SharedPage, requests: Option<&SharedPage>) -> KeptFigures {
    let mut kept = read_kept(worker, requests);
    let lost = requests.map_or(0, |requests| lines_lost_by_death(worker, requests));
    kept.access_log.dropped = kept.access_log.dropped.saturating_add(lost);
    kept
}

/// Reads what is kept of the two pages of a worker. A count that no worker can reach is read as 0.
pub(super) fn read_kept(worker: &SharedPage, requests: Option<&SharedPage>) -> KeptFigures {
    let bounded = |value: u64, most: u64| if value > most { 0 } else { value };
    read(
        |word| bounded(word.load(worker), MAX_COUNT_OF_WORKER),
        |word| requests.map_or(0, |page| bounded(word.load(page), MAX_COUNT_OF_WORKER)),
        |word| requests.map_or(0, |page| bounded(word.load(page), MAX_SUM_US_OF_WORKER)),
    )
}

/// Reads the sums over dead workers from the two pages of the primary.
pub(super) fn read_sums(primary: &SharedPage, requests: Option<&SharedPage>) -> KeptFigures {
    let of_requests = |word: PageWord| requests.map_or(0, |page| word.load(page));
    read(|word| word.load(primary), of_requests, of_requests)
}

fn read(
    of_worker: impl Fn(PageWord) -> u64,
    of_requests: impl Fn(PageWord) -> u64,
    sum_us: impl Fn(PageWord) -> u64,
) -> KeptFigures {
    let counts = std::array::from_fn(|method| {
        let first = REQUESTS_BY.plus(method * STATUS_CLASSES.len());
        std::array::from_fn(|status| of_requests(first.plus(status)))
    });
    let histogram = |first: PageWord, sum: PageWord| DelayHistogram {
        counts: std::array::from_fn::<_, DURATION_BUCKETS, _>(|i| of_worker(first.plus(i))),
        sum_us: sum_us(sum),
    };
    KeptFigures {
        requests_by: RequestsBy::from_counts(counts),
        durations: RequestDurations::from_parts(
            std::array::from_fn(|bucket| of_requests(DURATIONS.plus(bucket))),
            sum_us(DURATION_SUM_US),
        ),
        access_log: AccessLogCounters {
            written: of_requests(LOG_LINES_WRITTEN),
            dropped: of_requests(LOG_LINES_DROPPED),
            skipped: of_requests(LOG_LINES_SKIPPED),
        },
        cpu_us: sum_us(CPU_TIME_US),
        loop_lag: histogram(LOOP_LAG, LOOP_LAG_SUM_US),
        queue_wait: histogram(QUEUE_WAIT, QUEUE_WAIT_SUM_US),
        tls_handshakes: TlsHandshakes::from_counts(
            std::array::from_fn(|result| of_requests(TLS_HANDSHAKES.plus(result))),
            of_requests(TLS_HANDSHAKES_BEGUN),
        ),
    }
}

/// Adds to the sums on the two pages of the primary.
pub(super) fn add_to_sums(primary: &SharedPage, requests: &SharedPage, kept: &KeptFigures) {
    for (method, counts) in kept.requests_by.counts().iter().enumerate() {
        for (status, count) in counts.iter().enumerate() {
            REQUESTS_BY.plus(method * STATUS_CLASSES.len() + status).add(requests, *count);
        }
    }
    let (counts, sum_us) = kept.durations.to_parts();
    for (bucket, count) in counts.into_iter().enumerate() {
        DURATIONS.plus(bucket).add(requests, count);
    }
    for (word, value) in [
        (DURATION_SUM_US, sum_us),
        (LOG_LINES_WRITTEN, kept.access_log.written),
        (LOG_LINES_DROPPED, kept.access_log.dropped),
        (LOG_LINES_SKIPPED, kept.access_log.skipped),
        (CPU_TIME_US, kept.cpu_us),
        (LOOP_LAG_SUM_US, kept.loop_lag.sum_us),
        (QUEUE_WAIT_SUM_US, kept.queue_wait.sum_us),
    ] {
        word.add(requests, value);
    }
    for (result, count) in kept.tls_handshakes.counts().iter().enumerate() {
        TLS_HANDSHAKES.plus(result).add(requests, *count);
    }
    for (first, histogram) in [(LOOP_LAG, &kept.loop_lag), (QUEUE_WAIT, &kept.queue_wait)] {
        for (bucket, count) in histogram.counts.into_iter().enumerate() {
            first.plus(bucket).add(primary, count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prefork_os::shared_memory::create_shared_pages;

    fn pages() -> (&'static SharedPage, &'static SharedPage) {
        let (mut writable, _readable, _memory) = create_shared_pages(2).expect("pages");
        let pages = writable.keep_only_pages(std::slice::from_ref(&(0..2))).expect("pages");
        (pages[0], pages[1])
    }

    #[test]
    fn requests_are_counted_by_method_and_status() {
        let (worker, page) = pages();
        let requests = RequestPage::new(page, false);
        let mut class = RequestClass::of_method(&hyper::Method::POST);
        requests.count_request(class);
        class.set_status(204);
        requests.count_request(class);
        class.set_status(999);
        requests.count_request(class);
        requests.count_request(RequestClass::of_method(&hyper::Method::TRACE));
        requests.count_duration(700);
        let kept = read_kept(worker, Some(page));
        let by = kept.requests_by;
        assert_eq!([by.get("POST", "none"), by.get("POST", "2xx")], [2, 1]);
        assert_eq!((by.get("other", "none"), by.total()), (1, 4));
        assert_eq!((kept.durations.count(), kept.durations.sum().as_micros()), (1, 700));
    }

    #[test]
    fn concurrent_threads_lose_no_count_on_a_shared_page() {
        let (worker, page) = pages();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..5_000 {
                        let requests = RequestPage::new(page, true);
                        requests.count_request(RequestClass::of_method(&hyper::Method::GET));
                        requests.count_duration(1);
                        requests.log_lines().add_written(1);
                    }
                });
            }
        });
        let kept = read_kept(worker, Some(page));
        assert_eq!((kept.requests_by.total(), kept.durations.count()), (20_000, 20_000));
        assert_eq!(kept.access_log.written, 20_000);
    }

    #[test]
    fn figures_are_added_to_the_sums() {
        let (worker, page) = pages();
        for (n, word) in (1..).zip(page[..DETAILS].iter().chain(&page[465..480])) {
            word.store(n, Ordering::Relaxed);
        }
        LOOP_LAG.store(worker, 3);
        QUEUE_WAIT.plus(15).store(worker, 4);
        let kept = read_kept(worker, Some(page));
        let (primary, sums) = pages();
        add_to_sums(primary, sums, &kept);
        assert_eq!(read_sums(primary, Some(sums)), kept);
        add_to_sums(primary, sums, &kept);
        assert_eq!(read_sums(primary, Some(sums)), kept.sum_with(&kept));
    }

    #[test]
    fn a_count_that_no_worker_can_reach_is_left_out_of_the_sums() {
        let (worker, page) = pages();
        for word in worker.iter().chain(page) {
            word.store(u64::MAX, Ordering::Relaxed);
        }
        REQUESTS_BY.plus(2).store(page, 7);
        let kept = read_kept(worker, Some(page));
        assert_eq!((kept.requests_by.get("GET", "2xx"), kept.requests_by.total()), (7, 7));
        assert_eq!((kept.durations.count(), kept.loop_lag.counts[0]), (0, 0));
    }

    #[test]
    fn details_belong_to_one_request_and_are_cut_and_escaped() {
        let (_worker, page) = pages();
        let requests = RequestPage::new(page, false);
        assert_eq!(read_details(page, 22, 2), None);
        requests.set_details(22, 2, "192.0.2.1:80", "a\nb");
        let expected = ("192.0.2.1:80".to_string(), r"a\nb".to_string());
        assert_eq!(read_details(page, 22, 2), Some(expected));
        assert_eq!(read_details(page, 22, 4), None, "the next request has none yet");
        requests.set_details(22, 4, &"c".repeat(500), &"i".repeat(500));
        let (client, id) = read_details(page, 22, 4).expect("details");
        assert_eq!((client.len(), id.len()), (MAX_CLIENT_BYTES, MAX_REQUEST_ID_BYTES));
    }

    #[test]
    fn reading_garbage_does_not_panic() {
        let (_worker, page) = pages();
        page.iter().for_each(|word| word.store(u64::MAX, Ordering::Relaxed));
        for entry in 0..IN_FLIGHT_ENTRIES {
            assert!(read_details(page, entry, u64::MAX).is_some());
        }
    }
}
