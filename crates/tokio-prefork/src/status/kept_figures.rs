//! What is counted of a worker besides its traffic counters, and kept when it dies.

use serde::{Deserialize, Serialize};

use super::request_counters::bounded_sum;
use super::{AccessLogCounters, RequestDurations, RequestsBy, TlsHandshakes};
use crate::scoreboard::DURATION_BUCKETS;

/// Counts of a worker, or sums over workers, that are kept when a worker dies.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct KeptFigures {
    pub(crate) requests_by: RequestsBy,
    pub(crate) durations: RequestDurations,
    pub(crate) access_log: AccessLogCounters,
    /// CPU time of the process, in microseconds.
    pub(crate) cpu_us: u64,
    pub(crate) loop_lag: DelayHistogram,
    pub(crate) queue_wait: DelayHistogram,
    /// Those in progress count only while the worker lives.
    pub(crate) tls_handshakes: TlsHandshakes,
}

/// A histogram by powers of two of a millisecond, with the sum of its durations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct DelayHistogram {
    pub(crate) counts: [u64; DURATION_BUCKETS],
    pub(crate) sum_us: u64,
}

impl KeptFigures {
    pub(crate) fn sum_with(&self, other: &KeptFigures) -> KeptFigures {
        KeptFigures {
            requests_by: self.requests_by.sum_with(&other.requests_by),
            durations: self.durations.sum_with(&other.durations),
            access_log: self.access_log.sum_with(other.access_log),
            cpu_us: bounded_sum(self.cpu_us, other.cpu_us),
            loop_lag: self.loop_lag.sum_with(&other.loop_lag),
            queue_wait: self.queue_wait.sum_with(&other.queue_wait),
            tls_handshakes: self.tls_handshakes.sum_with(&other.tls_handshakes),
        }
    }
}

impl DelayHistogram {
    fn sum_with(&self, other: &DelayHistogram) -> DelayHistogram {
        DelayHistogram {
            counts: std::array::from_fn(|i| bounded_sum(self.counts[i], other.counts[i])),
            sum_us: bounded_sum(self.sum_us, other.sum_us),
        }
    }
}
