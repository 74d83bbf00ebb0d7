//! A worker's page on which several threads count.
//!
//! The words are the same as in `WorkerPage`, but additions are locked instructions and the list of requests is behind a
//! lock. No request is marked as being on the event loop, since many can run at the same time.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::in_flight::{self, InFlightEntries, InFlightEntry};
use super::page_layout::{ACTIVE_REQUESTS, PANICS, REQUESTS, RESPONSES, TIMED_OUT_REQUESTS};
use super::request_page::{RequestClass, RequestPage};
use super::worker_page::{ByteMeter, RequestRecorder};
use prefork_os::shared_memory::SharedPage;

/// Writes to a page that several threads share.
pub(crate) struct SharedWorkerPage {
    page: &'static SharedPage,
    requests: RequestPage,
    entries: Mutex<InFlightEntries>,
}

impl SharedWorkerPage {
    pub(super) fn new(
        page: &'static SharedPage,
        request_page: &'static SharedPage,
    ) -> SharedWorkerPage {
        let requests = RequestPage::new(request_page, true);
        SharedWorkerPage { page, requests, entries: Mutex::new(InFlightEntries::new()) }
    }

    fn entries(&self) -> MutexGuard<'_, InFlightEntries> {
        // Nothing panics with the lock held; a lost entry would only be missing in `prefork status`.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RequestRecorder for SharedWorkerPage {
    fn byte_meter(&self) -> ByteMeter {
        ByteMeter::on_shared_page(self.page)
    }

    fn request_started(&self, method: &str, path: &str, now_ms: u64) -> Option<InFlightEntry> {
        REQUESTS.add_shared(self.page, 1);
        ACTIVE_REQUESTS.add_shared(self.page, 1);
        self.entries().add(self.page, method, path, now_ms)
    }

    /// Does nothing: several handlers run at the same time, and none of them blocks an event loop alone.
    fn set_running_request(&self, _: Option<InFlightEntry>) {}

    fn describe_request(&self, entry: Option<InFlightEntry>) -> Option<String> {
        entry.and_then(|entry| in_flight::read_request(self.page, entry))
    }

    fn handler_panicked(&self) {
        PANICS.add_shared(self.page, 1);
    }

    fn request_timed_out(&self) {
        TIMED_OUT_REQUESTS.add_shared(self.page, 1);
    }

    fn response_started(&self, status: u16) {
        if let class @ 1..=5 = usize::from(status / 100) {
            RESPONSES.plus(class - 1).add_shared(self.page, 1);
        }
    }

    fn set_request_details(&self, entry: Option<InFlightEntry>, client: &str, request_id: &str) {
        if let Some(entry) = entry {
            let (number, sequence) = entry.number_and_sequence(self.page);
            self.requests.set_details(number, sequence, client, request_id);
        }
    }

    fn request_counted(&self, class: RequestClass) {
        self.requests.count_request(class);
    }

    #[cfg(feature = "tls")]
    fn tls_handshake_begun(&self) {
        self.requests.count_tls_handshake_begun();
    }

    #[cfg(feature = "tls")]
    fn tls_handshake_ended(&self, result: crate::status::TlsHandshakeResult) {
        self.requests.count_tls_handshake(result);
    }

    fn request_measured(&self, took_us: u64) {
        self.requests.count_duration(took_us);
    }

    fn request_refused(&self, status: u16) {
        REQUESTS.add_shared(self.page, 1);
        self.response_started(status);
        self.request_counted(RequestClass::refused(status));
    }

    fn request_finished(&self, entry: Option<InFlightEntry>) {
        ACTIVE_REQUESTS.add_shared(self.page, u64::MAX);
        if let Some(entry) = entry {
            self.entries().remove(self.page, entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scoreboard::page_reader::read_counters;

    #[test]
    fn concurrent_threads_lose_no_count() {
        let mut pages = prefork_os::shared_memory::create_shared_pages(2).expect("pages").0;
        let pages = pages.keep_only_pages(std::slice::from_ref(&(0..2))).expect("own");
        let page = pages[0];
        let shared = SharedWorkerPage::new(page, pages[1]);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..5_000 {
                        let entry = shared.request_started("GET", "/", 0);
                        shared.byte_meter().add_bytes_out(3);
                        shared.response_started(200);
                        shared.request_finished(entry);
                    }
                });
            }
        });
        let counted = read_counters(page);
        assert_eq!((counted.requests, counted.responses[1]), (20_000, 20_000));
        assert_eq!((counted.bytes_out, ACTIVE_REQUESTS.load(page)), (60_000, 0));
        assert!(in_flight::read_entries(page).is_empty(), "every entry was given back");
    }
}
