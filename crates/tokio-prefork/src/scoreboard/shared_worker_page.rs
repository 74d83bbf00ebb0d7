//! A row in which several threads of one worker count.
//!
//! The words are the same as in `OwnRow`, but the additions are locked instructions and the list of requests stands
//! behind a lock: that is what threads cost here, and why prefork has none of it. No request is marked as being on
//! the event loop, since many can run at the same moment.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::in_flight::{self, Entries, Ticket};
use super::page_layout::{ACTIVE, PANICS, REQUESTS, RESPONSES, STATE, TIMED_OUT};
use super::worker_page::{Meter, WorkerState};
use prefork_os::shared_memory::SharedPage;

/// What a request is entered in, by one thread or by any.
pub(crate) trait Row {
    /// What a connection needs of the row.
    fn meter(&self) -> Meter;
    /// A request begins; its ticket names it in `running` and `finish`.
    fn begin(&self, method: &str, path: &str, now_ms: u64) -> Option<Ticket>;
    /// The handler of `ticket` runs now, until the next call.
    fn running(&self, ticket: Option<Ticket>);
    /// Method and path of the request with this ticket, escaped.
    fn describe(&self, ticket: Option<Ticket>) -> Option<String>;
    /// A handler panicked.
    fn panicked(&self);
    /// A request took longer than it may.
    fn timed_out(&self);
    /// The head of a response with this status was produced.
    fn responded(&self, status: u16);
    /// The request is over, answered or not.
    fn finish(&self, ticket: Option<Ticket>);
}

/// What requests are counted in, by any thread.
pub(crate) struct SharedRow {
    page: &'static SharedPage,
    entries: Mutex<Entries>,
}

impl SharedRow {
    pub(super) fn new(page: &'static SharedPage) -> SharedRow {
        SharedRow { page, entries: Mutex::new(Entries::new()) }
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        // Nothing panics with the lock held; an entry that is lost costs a line in `status`.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Row for SharedRow {
    fn meter(&self) -> Meter {
        Meter::shared(self.page)
    }

    /// Several run at a time: none of them has the loop.
    fn running(&self, _: Option<Ticket>) {}

    fn describe(&self, ticket: Option<Ticket>) -> Option<String> {
        ticket.and_then(|ticket| in_flight::read(self.page, ticket))
    }

    fn panicked(&self) {
        PANICS.add_shared(self.page, 1);
    }

    fn timed_out(&self) {
        TIMED_OUT.add_shared(self.page, 1);
    }

    fn begin(&self, method: &str, path: &str, now_ms: u64) -> Option<Ticket> {
        REQUESTS.add_shared(self.page, 1);
        ACTIVE.add_shared(self.page, 1);
        self.entries().begin(self.page, method, path, now_ms)
    }

    fn responded(&self, status: u16) {
        if let class @ 1..=5 = usize::from(status / 100) {
            RESPONSES.plus(class - 1).add_shared(self.page, 1);
        }
    }

    fn finish(&self, ticket: Option<Ticket>) {
        ACTIVE.add_shared(self.page, u64::MAX);
        if let Some(ticket) = ticket {
            self.entries().finish(self.page, ticket);
        }
    }
}

impl SharedRow {
    /// Whether the worker said that no listening socket gives it connections.
    pub(crate) fn cannot_accept(&self) -> bool {
        STATE.load(self.page) == WorkerState::CannotAccept as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Counters;

    #[test]
    fn no_count_is_lost_among_threads() {
        let page = prefork_os::shared_memory::create_shared_pages(1)
            .expect("page")
            .0
            .keep_only_page(0)
            .expect("own");
        let row = SharedRow::new(page);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..5_000 {
                        let ticket = row.begin("GET", "/", 0);
                        row.meter().bytes_out(3);
                        row.responded(200);
                        row.finish(ticket);
                    }
                });
            }
        });
        let counted = Counters::read(page);
        assert_eq!((counted.requests, counted.responses[1]), (20_000, 20_000));
        assert_eq!((counted.bytes_out, ACTIVE.load(page)), (60_000, 0));
        assert!(in_flight::read_all(page).is_empty(), "every entry was given back");
    }
}
