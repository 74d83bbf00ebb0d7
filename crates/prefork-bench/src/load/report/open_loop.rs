//! What an open loop adds to a report: how late requests were sent, and what became of those that were due.

use hdrhistogram::Histogram;
use serde::Serialize;

use super::nanos_to_micros;
use crate::load::counters::LoadCounters;

/// How long after their due times requests were sent: because the generator was late, or no connection was free. Latency
/// counts from the due time, so this time is part of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct SendDelay {
    /// Median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Maximum.
    pub max: f64,
}

impl SendDelay {
    pub(super) fn from_histogram(delay: &Histogram<u64>) -> SendDelay {
        let at = |quantile| nanos_to_micros(delay.value_at_quantile(quantile));
        SendDelay { p50: at(0.5), p99: at(0.99), max: nanos_to_micros(delay.max()) }
    }
}

/// What became of the requests that were due in the measurement.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct DueRequests {
    /// Number of these requests.
    pub due: u64,
    /// Answered before the measurement ended.
    pub answered_in_time: u64,
    /// Answered after its end: they count in the latency, but not in the responses per second.
    pub answered_after_end: u64,
    /// Without a response: not within the timeout, or because the connection failed.
    pub unanswered: u64,
    /// Those of `unanswered` that were never sent, as no connection was free.
    pub never_sent: u64,
}

impl DueRequests {
    pub(super) fn from_counters(counters: &LoadCounters) -> DueRequests {
        let unanswered = counters.failed_requests();
        DueRequests {
            due: counters.responses() + unanswered + counters.abandoned,
            answered_in_time: counters.responses().saturating_sub(counters.answered_after_end),
            answered_after_end: counters.answered_after_end,
            unanswered,
            never_sent: counters.never_sent,
        }
    }

    /// Returns the sum of several measurements.
    pub(crate) fn sum<'a>(all: impl Iterator<Item = &'a DueRequests>) -> DueRequests {
        all.fold(DueRequests::default(), |sum, one| DueRequests {
            due: sum.due + one.due,
            answered_in_time: sum.answered_in_time + one.answered_in_time,
            answered_after_end: sum.answered_after_end + one.answered_after_end,
            unanswered: sum.unanswered + one.unanswered,
            never_sent: sum.never_sent + one.never_sent,
        })
    }

    /// Returns whether more than one request in a hundred was not answered in the measured time. A few always are in flight at its end.
    pub(crate) fn has_many_late(&self) -> bool {
        100 * (self.answered_after_end + self.unanswered) > self.due
    }
}
