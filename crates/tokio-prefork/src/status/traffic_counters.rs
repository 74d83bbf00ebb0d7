//! Counters of connections, requests and bytes.

use serde::{Deserialize, Serialize};

use super::MAX_JSON_INTEGER;

/// Counts connections, requests and bytes since a worker started, or of a whole cluster since its primary started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct TrafficCounters {
    /// Connections accepted.
    pub accepted: u64,
    /// Requests received. A raw connection counts as one, beside the requests on it.
    pub requests: u64,
    /// Responses by class: 1xx, 2xx, 3xx, 4xx, 5xx.
    pub responses: [u64; 5],
    /// Bytes read from clients.
    pub bytes_in: u64,
    /// Bytes written to clients.
    pub bytes_out: u64,
    /// Handlers that panicked.
    pub panics: u64,
    /// Connections closed in use: at `graceful-timeout`, or because a response or TLS handshake took too long. Those that were closed while
    /// they were idle, or for `header-timeout`, do not count.
    pub cut: u64,
    /// Connections sent to another worker while this one was draining.
    pub handed_over: u64,
    /// Connections taken over from a draining worker, or from the queue of one that has ended; the latter are not in `accepted`.
    pub taken_over: u64,
    /// Connections refused with 503 because they had waited in the queue for longer than `max-queue-wait`.
    pub shed: u64,
    /// Requests ended by `request-timeout`, with 503 or in the middle of their response.
    pub timed_out: u64,
    /// Connections that came while all workers had as many as `worker-connections` allows: they waited in the queue until one
    /// closed, or were refused (`when-full`).
    pub over_limit: u64,
    /// Connections closed because of their PROXY header: missing, malformed, or from a sender that is none of `trusted-proxies`.
    pub proxy_refused: u64,
}

/// How many numbers [`TrafficCounters`] has.
pub(crate) const TRAFFIC_COUNTERS: usize = 17;

impl TrafficCounters {
    /// Builds the counters from their numbers, in the order of the fields.
    pub(crate) fn from_array(numbers: [u64; TRAFFIC_COUNTERS]) -> TrafficCounters {
        let [
            accepted,
            requests,
            r1,
            r2,
            r3,
            r4,
            r5,
            bytes_in,
            bytes_out,
            panics,
            cut,
            handed_over,
            taken_over,
            shed,
            timed_out,
            over_limit,
            proxy_refused,
        ] = numbers;
        TrafficCounters {
            accepted,
            requests,
            responses: [r1, r2, r3, r4, r5],
            bytes_in,
            bytes_out,
            panics,
            cut,
            handed_over,
            taken_over,
            shed,
            timed_out,
            over_limit,
            proxy_refused,
        }
    }

    /// Returns the numbers in the order of the fields.
    pub(crate) fn to_array(self) -> [u64; TRAFFIC_COUNTERS] {
        let [r1, r2, r3, r4, r5] = self.responses;
        [
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
            self.over_limit,
            self.proxy_refused,
        ]
    }

    /// Returns the sums of two workers, each at most [`MAX_JSON_INTEGER`].
    pub(crate) fn sum_with(self, other: TrafficCounters) -> TrafficCounters {
        let (mut sums, more) = (self.to_array(), other.to_array());
        for (sum, more) in sums.iter_mut().zip(more) {
            *sum = sum.saturating_add(more).min(MAX_JSON_INTEGER);
        }
        TrafficCounters::from_array(sums)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_bounded() {
        let numbers = std::array::from_fn(|n| n as u64 + 1);
        let counters = TrafficCounters::from_array(numbers);
        assert_eq!(counters.to_array(), numbers);
        assert_eq!(counters.sum_with(counters).to_array(), numbers.map(|n| 2 * n));
        let garbage = TrafficCounters::from_array([u64::MAX; TRAFFIC_COUNTERS]);
        assert_eq!(garbage.sum_with(counters).to_array(), [MAX_JSON_INTEGER; TRAFFIC_COUNTERS]);
    }
}
