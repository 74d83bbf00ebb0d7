//! Counts TLS handshakes: full, resumed, failed by reason, and how long they took.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::tls_stream::{CompletedHandshake, NegotiatedTls};
use crate::load::counters::{add_arrays, add_histogram, new_histogram, record_latency};
use crate::load::request_failure::{REQUEST_FAILURE_KINDS, RequestFailure};

/// Handshakes of one round, or of one thread of it.
#[derive(Debug, Clone)]
pub(crate) struct HandshakeCounters {
    /// Duration of full handshakes that ended in the measurement, in nanoseconds.
    pub(crate) full: Histogram<u64>,
    /// Duration of resumed handshakes that ended in the measurement, in nanoseconds.
    pub(crate) resumed: Histogram<u64>,
    /// Failed handshakes, indexed by [`RequestFailure`]; warm-up included.
    pub(crate) failed: [u64; REQUEST_FAILURE_KINDS],
    /// What the first handshake agreed on.
    pub(crate) negotiated: Option<NegotiatedTls>,
    /// Description of the first failure of each kind.
    pub(crate) errors: Vec<(RequestFailure, String)>,
}

impl HandshakeCounters {
    pub(crate) fn new() -> HandshakeCounters {
        HandshakeCounters {
            full: new_histogram(2),
            resumed: new_histogram(2),
            failed: [0; REQUEST_FAILURE_KINDS],
            negotiated: None,
            errors: Vec::new(),
        }
    }

    /// Records a handshake that ended in the measurement.
    pub(crate) fn record_completed(&mut self, handshake: CompletedHandshake) {
        let histogram = if handshake.is_resumed { &mut self.resumed } else { &mut self.full };
        record_latency(histogram, nanos(handshake.duration));
    }

    pub(crate) fn record_failed(&mut self, why: RequestFailure) {
        self.failed[why as usize] += 1;
    }

    /// Keeps the description of an error, if it is the first of its kind.
    pub(crate) fn note_error(&mut self, why: RequestFailure, error: String) {
        if !self.errors.iter().any(|(kind, _)| *kind == why) {
            self.errors.push((why, error));
        }
    }

    /// Adds the counters of another thread or round.
    pub(crate) fn merge(&mut self, other: &HandshakeCounters) {
        add_histogram(&mut self.full, &other.full);
        add_histogram(&mut self.resumed, &other.resumed);
        add_arrays(&mut self.failed, &other.failed);
        if self.negotiated.is_none() {
            self.negotiated = other.negotiated.clone();
        }
        for (kind, error) in &other.errors {
            self.note_error(*kind, error.clone());
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
