//! The books of one connection: what each request of it is counted as, from its head to the end of its response.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use hyper::Request;
use hyper::body::Incoming;

use super::connection_state::Conn;
use super::serve_context::House;
use super::timeouts::http_exchange::{Exchange, Expiry};
use super::timeouts::request_deadline::RequestDeadline;
use crate::scoreboard::{Row, Ticket};
use crate::text::panic_text;
use prefork_os::system::monotonic_ms;

/// Characters of a request line that the log shows.
const LONGEST_NAME: usize = 200;

/// What all requests of one connection are entered in.
pub(crate) struct Books<H: House> {
    pub(crate) house: H::Ptr<H>,
    pub(crate) conn: Arc<Conn>,
}

/// A request's place in the books. It is over when this is dropped.
pub(crate) struct Serving<H: House> {
    pub(crate) books: H::Ptr<Books<H>>,
    ticket: Option<Ticket>,
    /// What the heartbeat looks at: for HTTP/2, and where `request-timeout` is set.
    exchange: Option<Arc<Exchange>>,
}

impl<H: House> Serving<H> {
    /// Enters `request` in `books`.
    pub(crate) fn begin(books: &H::Ptr<Books<H>>, request: &mut Request<Incoming>) -> Serving<H> {
        let now = books.house.now_ms();
        let exchange = books.exchange(request, now);
        books.conn.request_begun(now);
        let ticket = books.house.row().begin(request.method().as_str(), request.uri().path(), now);
        Serving { books: books.clone(), ticket, exchange }
    }

    /// Why the request is to be ended, if it is.
    pub(crate) fn expiry(&self) -> Option<Expiry> {
        let stream = self.exchange.as_ref().and_then(|exchange| exchange.expiry());
        stream.or_else(|| self.books.conn.expiry())
    }

    /// The head of the response was produced.
    pub(crate) fn response_begun(&self) {
        if let Some(exchange) = &self.exchange {
            exchange.begin();
        }
        self.books.conn.response_begun();
    }

    /// Whether the body of the response has nothing to send at the moment.
    pub(crate) fn set_body_pending(&self, is_pending: bool) {
        if let Some(exchange) = &self.exchange {
            exchange.set_body_pending(is_pending);
        }
        self.books.conn.set_response_pending(is_pending);
    }

    /// Says that the request took longer than `request-timeout`.
    #[cold]
    fn timed_out(&self, exchange: &Exchange) {
        let house = &self.books.house;
        house.row().timed_out();
        let how = match exchange.has_answer_of_its_own() {
            true => "in the middle of its response",
            false => "with 503",
        };
        let (tag, request) = (house.tag(), &exchange.request);
        log::warn!("{tag} ended {request} {how}: it took longer than request-timeout");
    }
}

impl<H: House> Books<H> {
    /// What the heartbeat has to know of `request`, if anything. Its deadline is in its extensions from now on.
    fn exchange(&self, request: &mut Request<Incoming>, now_ms: u64) -> Option<Arc<Exchange>> {
        let timeout = self.house.config().request_timeout;
        let http2 = self.conn.http2();
        if timeout.is_none() && http2.is_none() {
            return None;
        }
        let deadline = timeout.map(|timeout| RequestDeadline::after(timeout, monotonic_ms()));
        let mut name = String::new();
        if let Some(deadline) = &deadline {
            request.extensions_mut().insert(deadline.clone());
            let line = format!("{} {}", request.method(), request.uri());
            name = line.escape_default().take(LONGEST_NAME).collect();
        }
        let exchange = Exchange::new(deadline, name);
        self.conn.exchanges.add(&exchange);
        if let Some(streams) = http2 {
            streams.claim(&exchange, now_ms);
            self.conn.stream_begun(&exchange);
        }
        Some(exchange)
    }
}

impl<H: House> Serving<H> {
    /// Runs a piece of the handler, marked on the scoreboard as having the loop. `None` if it panicked.
    pub(crate) fn on_loop<T>(&self, run: impl FnOnce() -> T) -> Option<T> {
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
        if let Some(exchange) = &self.exchange {
            conn.exchanges.remove(exchange);
            if let Some(streams) = conn.http2() {
                streams.release(exchange);
            }
            if exchange.expiry() == Some(Expiry::Deadline) {
                self.timed_out(exchange);
            }
        }
        conn.request_over(house.now_ms());
    }
}
