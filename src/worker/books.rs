//! The books of one connection: what each request of it is counted as, from its head to the end of its response.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use hyper::Request;
use hyper::body::Incoming;

use super::conn::Conn;
use super::house::House;
use crate::printable::panic_text;
use crate::scoreboard::{Row, Ticket};

/// What all requests of one connection are entered in.
pub(super) struct Books<H: House> {
    pub(super) house: H::Ptr<H>,
    pub(super) conn: Arc<Conn>,
}

/// A request's place in the books. It is over when this is dropped.
pub(super) struct Serving<H: House> {
    pub(super) books: H::Ptr<Books<H>>,
    ticket: Option<Ticket>,
}

impl<H: House> Serving<H> {
    /// Enters `request` in `books`.
    pub(super) fn begin(books: &H::Ptr<Books<H>>, request: &Request<Incoming>) -> Serving<H> {
        let now = books.house.now_ms();
        books.conn.request_begun(now);
        let ticket = books.house.row().begin(request.method().as_str(), request.uri().path(), now);
        Serving { books: books.clone(), ticket }
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
        conn.request_over(house.now_ms());
    }
}
