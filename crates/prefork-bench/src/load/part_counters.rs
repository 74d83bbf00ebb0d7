//! Counters of a part of the measured requests: one kind of request, or one step of a ramp.

use hdrhistogram::Histogram;

use super::counters::{add_histogram, new_histogram, record_latency};

/// Number of equal steps in which the report shows a ramp.
pub(crate) const RAMP_STEPS: usize = 10;

/// Counters of a part of the requests due in the measurement.
#[derive(Debug, Clone)]
pub(crate) struct PartCounters {
    /// Latency of the responses, in nanoseconds.
    pub(crate) latency: Histogram<u64>,
    /// Responses with a status of 400 or more.
    pub(crate) error_statuses: u64,
    /// Requests without a response.
    pub(crate) failures: u64,
    /// Bytes of the responses.
    pub(crate) bytes: u64,
}

impl PartCounters {
    /// Returns counters for each of `count` parts.
    pub(crate) fn list(count: usize) -> Vec<PartCounters> {
        let new =
            || PartCounters { latency: new_histogram(3), error_statuses: 0, failures: 0, bytes: 0 };
        (0..count).map(|_| new()).collect()
    }

    pub(crate) fn record_response(&mut self, status: u16, latency: u64, bytes: u64) {
        record_latency(&mut self.latency, latency);
        self.error_statuses += u64::from(status >= 400);
        self.bytes += bytes;
    }

    /// Returns the number of responses.
    pub(crate) fn responses(&self) -> u64 {
        self.latency.len()
    }

    /// Adds the counters of another thread or round.
    pub(crate) fn merge_lists(own: &mut Vec<PartCounters>, others: &[PartCounters]) {
        while own.len() < others.len() {
            own.extend(PartCounters::list(1));
        }
        for (own, other) in own.iter_mut().zip(others) {
            add_histogram(&mut own.latency, &other.latency);
            own.error_statuses += other.error_statuses;
            own.failures += other.failures;
            own.bytes += other.bytes;
        }
    }
}
