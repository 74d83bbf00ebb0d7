//! What is counted, as plain data: read from a page, added to one, summed.

use serde::{Deserialize, Serialize};

use crate::scoreboard::page_layout::{COUNTERS, Word};
use prefork_os::shared_memory::SharedPage;

/// What is counted. A worker's counters are added to the total when it dies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Counters {
    /// Connections accepted.
    pub accepted: u64,
    /// Requests received.
    pub requests: u64,
    /// Responses by class: 1xx, 2xx, 3xx, 4xx, 5xx.
    pub responses: [u64; 5],
    /// Bytes read from clients.
    pub bytes_in: u64,
    /// Bytes written to clients.
    pub bytes_out: u64,
    /// Handlers that panicked.
    pub panics: u64,
    /// Connections cut by a limit or a deadline.
    pub cut: u64,
    /// Connections sent to another worker while this one was draining.
    pub handed_over: u64,
    /// Connections taken over from another worker.
    pub taken_over: u64,
    /// Connections refused with 503, as they had waited in the queue for longer than `max-queue-wait`.
    pub shed: u64,
    /// Requests ended by `request-timeout`, with 503 or in the middle of their response.
    pub timed_out: u64,
}

impl Counters {
    pub(crate) fn read(page: &SharedPage) -> Counters {
        let mut words = COUNTERS.map(|i| Word::at(i).load(page));
        let mut next = || words.next().unwrap_or(0);
        Counters {
            accepted: next(),
            requests: next(),
            responses: [next(), next(), next(), next(), next()],
            bytes_in: next(),
            bytes_out: next(),
            panics: next(),
            cut: next(),
            handed_over: next(),
            taken_over: next(),
            shed: next(),
            timed_out: next(),
        }
    }

    /// Adds all to the counters of a page. Wraps: a worker may have written anything.
    pub(crate) fn add_to(&self, page: &SharedPage) {
        let [r1, r2, r3, r4, r5] = self.responses;
        let values = [
            self.accepted,
            self.requests,
            r1,
            r2,
            r3,
            r4,
            r5,
            self.bytes_in,
            self.bytes_out,
            self.panics,
            self.cut,
            self.handed_over,
            self.taken_over,
            self.shed,
            self.timed_out,
        ];
        for (word, value) in COUNTERS.zip(values) {
            Word::at(word).add(page, value);
        }
    }

    /// Each of them, or `most` where it is more.
    pub(crate) fn at_most(self, most: u64) -> Counters {
        Counters {
            accepted: self.accepted.min(most),
            requests: self.requests.min(most),
            responses: self.responses.map(|n| n.min(most)),
            bytes_in: self.bytes_in.min(most),
            bytes_out: self.bytes_out.min(most),
            panics: self.panics.min(most),
            cut: self.cut.min(most),
            handed_over: self.handed_over.min(most),
            taken_over: self.taken_over.min(most),
            shed: self.shed.min(most),
            timed_out: self.timed_out.min(most),
        }
    }

    pub(crate) fn plus(&self, other: &Counters) -> Counters {
        let mut responses = self.responses;
        for (sum, more) in responses.iter_mut().zip(other.responses) {
            *sum = sum.wrapping_add(more);
        }
        Counters {
            accepted: self.accepted.wrapping_add(other.accepted),
            requests: self.requests.wrapping_add(other.requests),
            responses,
            bytes_in: self.bytes_in.wrapping_add(other.bytes_in),
            bytes_out: self.bytes_out.wrapping_add(other.bytes_out),
            panics: self.panics.wrapping_add(other.panics),
            cut: self.cut.wrapping_add(other.cut),
            handed_over: self.handed_over.wrapping_add(other.handed_over),
            taken_over: self.taken_over.wrapping_add(other.taken_over),
            shed: self.shed.wrapping_add(other.shed),
            timed_out: self.timed_out.wrapping_add(other.timed_out),
        }
    }
}
