//! The books of one connection: what each request of it is counted as, from its head to the end of its response.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::{Arc, MutexGuard, PoisonError};

use hyper::Request;
use hyper::body::{Body, Incoming};

use super::conn::Conn;
use super::edge::{Edge, Framing, head_length};
use super::state::State;
use super::wire::{Recent, is_beginning};
use crate::scoreboard::Ticket;

/// What all requests of one connection are entered in.
pub(super) struct Books {
    pub(super) state: Rc<State>,
    pub(super) conn: Arc<Conn>,
    pub(super) recent: Recent,
}

/// A request's place in the books. It is over when this is dropped.
pub(super) struct Serving {
    pub(super) books: Rc<Books>,
    ticket: Option<Ticket>,
    framing: Framing,
}

impl Books {
    pub(super) fn begin(self: &Rc<Books>, request: &Request<Incoming>) -> Serving {
        let now = self.state.now_ms();
        let framing = self.framing_of(request);
        self.conn.request_begun(now);
        let ticket = self.state.row.begin(request.method().as_str(), request.uri().path(), now);
        Serving { books: Rc::clone(self), ticket, framing }
    }

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

impl Serving {
    /// Runs a piece of the handler, marked on the scoreboard as having the loop. `None` if it panicked.
    pub(super) fn on_loop<T>(&self, run: impl FnOnce() -> T) -> Option<T> {
        let row = &self.books.state.row;
        row.running(self.ticket);
        let done = catch_unwind(AssertUnwindSafe(run));
        row.running(None);
        done.map_err(|panic| self.panicked(&*panic)).ok()
    }

    #[cold]
    fn panicked(&self, panic: &(dyn Any + Send)) {
        let State { row, tag, .. } = &*self.books.state;
        row.panicked();
        let text = panic
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("no message");
        let request = row.describe(self.ticket).unwrap_or_else(|| "a request".to_string());
        log::error!("{tag} the handler of {request} panicked: {text}");
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let Books { state, conn, .. } = &*self.books;
        state.row.finish(self.ticket);
        let (received, tail) = conn.progress();
        let edge = Edge::of(self.framing, received, tail);
        conn.request_over(edge, state.now_ms());
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
