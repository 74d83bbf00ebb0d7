//! One request and its response, as the heartbeat sees it: how long the client kept us waiting, and whether the deadline
//! has passed. HTTP/2 has one for each stream; HTTP/1 only where `request-timeout` is set, as all else that is needed
//! there stands in `Conn`.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;

use super::request_deadline::RequestDeadline;
use super::transfer_clock::TransferClock;

/// Why a request is ended before its handler is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Expiry {
    /// The body did not come in time.
    Body = 1,
    /// It took longer than `request-timeout`.
    Deadline = 2,
}

impl Expiry {
    pub(crate) fn from_number(number: u8) -> Option<Expiry> {
        match number {
            1 => Some(Expiry::Body),
            2 => Some(Expiry::Deadline),
            _ => None,
        }
    }
}

/// The state of one exchange. Atomics, as the heartbeat may be on another thread (`threads`).
#[derive(Debug, Default)]
pub(crate) struct Exchange {
    /// An `Expiry`, or 0.
    expiry: AtomicU8,
    /// The head of the response was produced.
    has_begun: AtomicBool,
    /// That response was made by the application, not by us.
    is_answered: AtomicBool,
    /// The body of the response was asked for more and had nothing yet.
    is_body_pending: AtomicBool,
    /// An HTTP/2 stream that is to be reset.
    is_cut: AtomicBool,
    pub(crate) deadline: Option<RequestDeadline>,
    /// Method and path, escaped; only with a deadline.
    pub(crate) request: String,
    /// HTTP/2: the body of this stream.
    pub(crate) receiving: TransferClock,
    /// HTTP/2: the response of this stream.
    pub(crate) sending: TransferClock,
    waker: Mutex<Option<Waker>>,
}

impl Exchange {
    pub(crate) fn new(deadline: Option<RequestDeadline>, request: String) -> Arc<Exchange> {
        Arc::new(Exchange { deadline, request, ..Exchange::default() })
    }

    pub(crate) fn expiry(&self) -> Option<Expiry> {
        Expiry::from_number(self.expiry.load(Relaxed))
    }

    /// The first reason counts.
    pub(crate) fn expire(&self, why: Expiry) {
        let _ = self.expiry.compare_exchange(0, why as u8, Relaxed, Relaxed);
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.has_begun.load(Relaxed)
    }

    /// The head of a response was produced: by the application, unless the request had expired.
    pub(crate) fn begin(&self) {
        self.is_answered.store(self.expiry().is_none(), Relaxed);
        self.has_begun.store(true, Relaxed);
    }

    /// Whether the application's response has begun.
    pub(crate) fn has_answer_of_its_own(&self) -> bool {
        self.is_answered.load(Relaxed)
    }

    pub(crate) fn is_body_pending(&self) -> bool {
        self.is_body_pending.load(Relaxed)
    }

    pub(crate) fn set_body_pending(&self, is_pending: bool) {
        self.is_body_pending.store(is_pending, Relaxed);
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.is_cut.load(Relaxed)
    }

    pub(crate) fn cut(&self) {
        self.is_cut.store(true, Relaxed);
    }

    /// Called in each poll of the stream's task.
    pub(crate) fn watch(&self, waker: &Waker) {
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

/// The exchanges of one connection that the heartbeat has to look at.
#[derive(Debug, Default)]
pub(crate) struct Exchanges {
    /// Whether there are any, so that a connection without costs one load.
    any: AtomicBool,
    list: Mutex<Vec<Arc<Exchange>>>,
}

impl Exchanges {
    pub(crate) fn add(&self, exchange: &Arc<Exchange>) {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.push(Arc::clone(exchange));
        self.any.store(true, Relaxed);
    }

    pub(crate) fn remove(&self, exchange: &Arc<Exchange>) {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.retain(|known| !Arc::ptr_eq(known, exchange));
        self.any.store(!list.is_empty(), Relaxed);
    }

    pub(crate) fn for_each(&self, look: impl FnMut(&Arc<Exchange>)) {
        if self.any.load(Relaxed) {
            self.list.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(look);
        }
    }
}
