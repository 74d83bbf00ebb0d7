//! The timeouts of one request and its response, enforced by the heartbeat.
//!
//! Every HTTP/2 stream has an `HttpExchange`. An HTTP/1 request has one only if `request-timeout` is set, because its
//! other timeouts are in the state of the connection.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;

use super::request_deadline::RequestDeadline;
use super::transfer_clock::TransferClock;

/// Why a request ends before its handler completes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum RequestExpiry {
    /// The request body did not arrive in time.
    Body = 1,
    /// The request took longer than `request-timeout`.
    Deadline = 2,
}

impl RequestExpiry {
    /// Returns the expiry stored as `number`, or `None` for 0.
    pub(crate) fn from_number(number: u8) -> Option<RequestExpiry> {
        match number {
            1 => Some(RequestExpiry::Body),
            2 => Some(RequestExpiry::Deadline),
            _ => None,
        }
    }
}

/// One request and its response. Atomic, because the heartbeat runs on another thread in the `threads` model.
#[derive(Debug, Default)]
pub(crate) struct HttpExchange {
    /// A `RequestExpiry`, or 0.
    expiry: AtomicU8,
    /// The head of the response was produced.
    has_response_started: AtomicBool,
    /// The response comes from the application, not from a timeout.
    has_application_response: AtomicBool,
    /// The response body returned pending when hyper last polled it.
    is_body_pending: AtomicBool,
    /// HTTP/2: the stream has to be reset.
    is_reset: AtomicBool,
    pub(crate) deadline: Option<RequestDeadline>,
    /// Method and path for the log, escaped. Empty without a deadline.
    pub(crate) request_line: String,
    /// HTTP/2: how long the worker waits for the request body of this stream.
    pub(crate) receiving: TransferClock,
    /// HTTP/2: how long the worker waits for the client to take the response of this stream.
    pub(crate) sending: TransferClock,
    waker: Mutex<Option<Waker>>,
}

impl HttpExchange {
    pub(crate) fn new(
        deadline: Option<RequestDeadline>,
        request_line: String,
    ) -> Arc<HttpExchange> {
        Arc::new(HttpExchange { deadline, request_line, ..HttpExchange::default() })
    }

    pub(crate) fn expiry(&self) -> Option<RequestExpiry> {
        RequestExpiry::from_number(self.expiry.load(Relaxed))
    }

    /// Ends the request early. The first call decides the reason.
    pub(crate) fn expire(&self, expiry: RequestExpiry) {
        let _ = self.expiry.compare_exchange(0, expiry as u8, Relaxed, Relaxed);
    }

    pub(crate) fn has_response_started(&self) -> bool {
        self.has_response_started.load(Relaxed)
    }

    /// Records that the head of a response was produced: by the application, unless the request has expired.
    pub(crate) fn set_response_started(&self) {
        self.has_application_response.store(self.expiry().is_none(), Relaxed);
        self.has_response_started.store(true, Relaxed);
    }

    /// Whether the application's response has started.
    pub(crate) fn has_application_response(&self) -> bool {
        self.has_application_response.load(Relaxed)
    }

    pub(crate) fn is_body_pending(&self) -> bool {
        self.is_body_pending.load(Relaxed)
    }

    pub(crate) fn set_body_pending(&self, is_pending: bool) {
        self.is_body_pending.store(is_pending, Relaxed);
    }

    /// Whether the stream has to be reset.
    pub(crate) fn is_reset(&self) -> bool {
        self.is_reset.load(Relaxed)
    }

    /// HTTP/2: resets the stream the next time its task is polled.
    pub(crate) fn reset_stream(&self) {
        self.is_reset.store(true, Relaxed);
    }

    /// Registers the waker of the stream's task. Called in each poll.
    pub(crate) fn register_waker(&self, waker: &Waker) {
        let mut slot = self.waker.lock().unwrap_or_else(PoisonError::into_inner);
        if !slot.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *slot = Some(waker.clone());
        }
    }

    pub(crate) fn wake(&self) {
        let waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The exchanges of one connection whose timeouts the heartbeat enforces.
#[derive(Debug, Default)]
pub(crate) struct TrackedExchanges {
    /// Whether the list has entries, so that an empty one costs a single load.
    has_entries: AtomicBool,
    list: Mutex<Vec<Arc<HttpExchange>>>,
}

impl TrackedExchanges {
    pub(crate) fn add(&self, exchange: &Arc<HttpExchange>) {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.push(Arc::clone(exchange));
        self.has_entries.store(true, Relaxed);
    }

    pub(crate) fn remove(&self, exchange: &Arc<HttpExchange>) {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.retain(|known| !Arc::ptr_eq(known, exchange));
        self.has_entries.store(!list.is_empty(), Relaxed);
    }

    pub(crate) fn for_each(&self, visit: impl FnMut(&Arc<HttpExchange>)) {
        if self.has_entries.load(Relaxed) {
            self.list.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(visit);
        }
    }
}
