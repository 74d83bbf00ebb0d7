//! The books of one connection: what each request of it is counted as, from its head to the end of its response.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, MutexGuard, PoisonError};

use hyper::Request;
use hyper::body::{Body, Incoming};

use super::conn::Conn;
use super::edge::{Edge, Framing, head_length};
use super::house::House;
use super::wire::{Recent, is_beginning};
use crate::printable::panic_text;
use crate::scoreboard::{Row, Ticket};

/// What all requests of one connection are entered in.
pub(super) struct Books<H: House> {
    pub(super) house: H::Ptr<H>,
    pub(super) conn: Arc<Conn>,
    pub(super) recent: Recent,
}

/// A request's place in the books. It is over when this is dropped.
pub(super) struct Serving<H: House> {
    pub(super) books: H::Ptr<Books<H>>,
    ticket: Option<Ticket>,
    framing: Framing,
}

impl<H: House> Serving<H> {
    /// Enters `request` in `books`.
    pub(super) fn begin(books: &H::Ptr<Books<H>>, request: &Request<Incoming>) -> Serving<H> {
        let now = books.house.now_ms();
        let framing = books.framing_of(request);
        books.conn.request_begun(now);
        let ticket = books.house.row().begin(request.method().as_str(), request.uri().path(), now);
        Serving { books: books.clone(), ticket, framing }
    }
}

impl<H: House> Books<H> {
    /// What was received last, as it came.
    pub(super) fn recent(&self) -> MutexGuard<'_, Vec<u8>> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the body of this request will end.
    fn framing_of(&self, request: &Request<Incoming>) -> Framing {
        // Bytes that are there may belong to the last request, if its end is not known.
        let mut head = None;
        if self.conn.edge() != Edge::Unknown {
            let recent = self.recent();
            if is_beginning(&recent, self.conn.progress().0) {
                head = head_length(&recent);
            }
        }
        Framing { head, body: request.body().size_hint().exact() }
    }
}

impl<H: House> Serving<H> {
    /// Runs a piece of the handler, marked on the scoreboard as having the loop. `None` if it panicked.
    pub(super) fn on_loop<T>(&self, run: impl FnOnce() -> T) -> Option<T> {
        let house = &self.books.house;
        house.row().running(self.ticket);
        let done = catch_unwind(AssertUnwindSafe(run));
        house.row().running(None);
        done.map_err(|panic| self.panicked(&*panic)).ok()
    }

    #[cold]
    fn panicked(&self, panic: &(dyn Any + Send)) {
        let house = &self.books.house;
        house.row().panicked();
        let text = panic_text(panic);
        let request = house.row().describe(self.ticket).unwrap_or_else(|| "a request".to_string());
        let tag = house.tag();
        log::error!("{tag} the handler of {request} panicked: {text}");
    }
}

impl<H: House> Drop for Serving<H> {
    fn drop(&mut self) {
        let Books { house, conn, .. } = &*self.books;
        house.row().finish(self.ticket);
        let (received, tail) = conn.progress();
        let edge = Edge::of(self.framing, received, tail);
        conn.request_over(edge, house.now_ms());
        // Idle connections are many: they keep no more than a small buffer each.
        let mut recent = self.books.recent();
        let end = self.framing.end().filter(|end| edge == Edge::Exact && *end <= received);
        match end.and_then(|end| usize::try_from(end).ok()) {
            // What is there of the next request is looked at again.
            Some(end) if recent.len() as u64 == received => drop(recent.drain(..end)),
            _ => recent.clear(),
        }
        conn.count_from(recent.len() as u64);
        recent.shrink_to(1024);
    }
}
