//! Counters of responses, failures and latencies: one set per thread, merged after a round. Times are
//! nanoseconds.

use hdrhistogram::Histogram;

use super::latency_timeline::LatencyTimeline;
use super::part_counters::PartCounters;
use super::request_failure::{REQUEST_FAILURE_KINDS, RequestFailure};
use super::tls::handshake_counters::HandshakeCounters;
use crate::chaos::AffectedRequest;

/// Width of a bin of the timeline: 100 ms.
pub(crate) const TIMELINE_BIN_NANOS: u64 = 100_000_000;
/// Processes counted separately. A server that invents pids would otherwise use unlimited memory.
const MAX_TRACKED_PROCESSES: usize = 1024;

/// Affected requests that one thread keeps individually.
const MAX_AFFECTED_REQUESTS: usize = 100_000;

/// Everything counted in one round, or by one thread of it.
#[derive(Debug, Clone)]
pub(crate) struct LoadCounters {
    /// Latency from the due time of a request to the end of its response.
    pub(crate) latency: Histogram<u64>,
    /// How long after its due time a request was sent; open loop only.
    pub(crate) send_delay: Histogram<u64>,
    /// Responses by the first digit of their status.
    pub(crate) status_classes: [u64; 6],
    /// Requests without a response, indexed by [`RequestFailure`].
    pub(crate) failures: [u64; REQUEST_FAILURE_KINDS],
    /// Requests due in the warm-up: answered, and failed.
    pub(crate) warm_up: [u64; 2],
    /// Requests in flight when the round was abandoned.
    pub(crate) abandoned: u64,
    /// Responses to requests due in the measurement that came after its end.
    pub(crate) answered_after_end: u64,
    /// Requests due in the measurement that were never sent; they are in `failures` too.
    pub(crate) never_sent: u64,
    /// Responses completed within the measurement, whenever they were due.
    pub(crate) completed_in_time: u64,
    /// Bytes of the responses in `completed_in_time`.
    pub(crate) bytes: u64,
    /// Opened connections, warm-up included.
    pub(crate) connections_opened: u64,
    /// Time from the start of a connection until it was established, warm-up included.
    pub(crate) connect_time: Histogram<u64>,
    /// Fewest and most responses of a connection, warm-up included; `None` before the end of the round.
    pub(crate) responses_per_connection: Option<[u64; 2]>,
    /// When the last connection had its first response, since the start of the round.
    pub(crate) all_answered: u64,
    /// Requests sent again because the server had not processed them.
    pub(crate) retried: u64,
    /// Handshakes of connections with TLS.
    pub(crate) handshakes: HandshakeCounters,
    /// Counters of each process.
    pub(crate) processes: Vec<ProcessCounters>,
    /// Responses of processes beyond [`MAX_TRACKED_PROCESSES`].
    pub(crate) untracked_responses: u64,
    /// Counters of each kind of request; empty with one kind.
    pub(crate) kinds: Vec<PartCounters>,
    /// Counters of each step of a ramp; empty without one.
    pub(crate) ramp_steps: Vec<PartCounters>,
    /// Responses and failures in each bin of [`TIMELINE_BIN_NANOS`] of the measurement.
    pub(crate) timeline_bins: Vec<[u64; 2]>,
    /// Latencies of the responses of the measurement over time.
    pub(crate) latency_timeline: LatencyTimeline,
    /// Affected requests; empty without fault injection.
    pub(crate) affected: Vec<AffectedRequest>,
    /// Number of affected requests beyond [`MAX_AFFECTED_REQUESTS`].
    pub(crate) unlisted_affected: u64,
}

/// Counters of one process.
#[derive(Debug, Clone)]
pub(crate) struct ProcessCounters {
    pub(crate) pid: u32,
    pub(crate) requests: u64,
    /// Connections on which it answered.
    pub(crate) connections: u64,
    pub(crate) latency: Histogram<u64>,
}

impl LoadCounters {
    pub(crate) fn new() -> LoadCounters {
        LoadCounters {
            latency: new_histogram(3),
            send_delay: new_histogram(3),
            status_classes: [0; 6],
            failures: [0; REQUEST_FAILURE_KINDS],
            warm_up: [0; 2],
            abandoned: 0,
            answered_after_end: 0,
            never_sent: 0,
            completed_in_time: 0,
            bytes: 0,
            connections_opened: 0,
            connect_time: new_histogram(3),
            responses_per_connection: None,
            all_answered: 0,
            retried: 0,
            handshakes: HandshakeCounters::new(),
            processes: Vec::new(),
            untracked_responses: 0,
            kinds: Vec::new(),
            ramp_steps: Vec::new(),
            timeline_bins: Vec::new(),
            latency_timeline: LatencyTimeline::new(),
            affected: Vec::new(),
            unlisted_affected: 0,
        }
    }

    /// Records a response after `latency` and returns the index of its process in `processes`.
    ///
    /// `known` is the index of the process that answered before on this connection.
    pub(crate) fn record_response(
        &mut self,
        status: u16,
        latency: u64,
        pid: Option<u32>,
        known: Option<usize>,
    ) -> Option<usize> {
        record_latency(&mut self.latency, latency);
        self.status_classes[usize::from(status / 100).min(5)] += 1;
        let pid = pid?;
        let same = known.filter(|at| self.processes[*at].pid == pid);
        let Some(at) = same.or_else(|| self.process_index(pid)) else {
            self.untracked_responses += 1;
            return None;
        };
        let share = &mut self.processes[at];
        share.connections += u64::from(same.is_none());
        share.requests += 1;
        record_latency(&mut share.latency, latency);
        Some(at)
    }

    /// Adds a response with its latency, or a failure, to the timeline, `after` nanoseconds into the measurement.
    pub(crate) fn record_timeline(&mut self, after: u64, latency: Option<u64>) {
        let bin = (after / TIMELINE_BIN_NANOS) as usize;
        if self.timeline_bins.len() <= bin {
            self.timeline_bins.resize(bin + 1, [0; 2]);
        }
        self.timeline_bins[bin][usize::from(latency.is_none())] += 1;
        if let Some(latency) = latency {
            self.latency_timeline.record(after, latency);
        }
    }

    pub(crate) fn record_failure(&mut self, why: RequestFailure) {
        self.failures[why as usize] += 1;
    }

    /// Records an affected request; `process` is the index of the process that answered last on its connection.
    pub(crate) fn record_affected(&mut self, request: AffectedRequest, process: Option<usize>) {
        let pid = process.map(|at| self.processes[at].pid);
        match self.affected.len() < MAX_AFFECTED_REQUESTS {
            true => self.affected.push(AffectedRequest { pid, ..request }),
            false => self.unlisted_affected += 1,
        }
    }

    /// Adds the fewest and most responses of some connections.
    pub(crate) fn record_responses_of_connections(&mut self, found: Option<[u64; 2]>) {
        let Some([fewest, most]) = found else { return };
        let [least, greatest] = self.responses_per_connection.unwrap_or([fewest, most]);
        self.responses_per_connection = Some([least.min(fewest), greatest.max(most)]);
    }

    /// Returns the index of `pid` in `processes`, adding it if needed; `None` if there are too many.
    fn process_index(&mut self, pid: u32) -> Option<usize> {
        if let Some(at) = self.processes.iter().position(|share| share.pid == pid) {
            return Some(at);
        }
        if self.processes.len() >= MAX_TRACKED_PROCESSES {
            return None;
        }
        self.processes.push(ProcessCounters {
            pid,
            requests: 0,
            connections: 0,
            latency: new_histogram(2),
        });
        Some(self.processes.len() - 1)
    }

    /// Adds the counters of another thread or round.
    pub(crate) fn merge(&mut self, other: &LoadCounters) {
        add_histogram(&mut self.latency, &other.latency);
        add_histogram(&mut self.send_delay, &other.send_delay);
        add_arrays(&mut self.status_classes, &other.status_classes);
        add_arrays(&mut self.failures, &other.failures);
        add_arrays(&mut self.warm_up, &other.warm_up);
        self.abandoned += other.abandoned;
        self.completed_in_time += other.completed_in_time;
        self.bytes += other.bytes;
        self.connections_opened += other.connections_opened;
        add_histogram(&mut self.connect_time, &other.connect_time);
        self.record_responses_of_connections(other.responses_per_connection);
        self.all_answered = self.all_answered.max(other.all_answered);
        self.answered_after_end += other.answered_after_end;
        self.never_sent += other.never_sent;
        self.retried += other.retried;
        self.handshakes.merge(&other.handshakes);
        self.untracked_responses += other.untracked_responses;
        self.affected.extend_from_slice(&other.affected);
        self.unlisted_affected += other.unlisted_affected;
        for share in &other.processes {
            match self.process_index(share.pid) {
                Some(at) => {
                    let own = &mut self.processes[at];
                    own.requests += share.requests;
                    own.connections += share.connections;
                    add_histogram(&mut own.latency, &share.latency);
                }
                None => self.untracked_responses += share.requests,
            }
        }
        PartCounters::merge_lists(&mut self.kinds, &other.kinds);
        PartCounters::merge_lists(&mut self.ramp_steps, &other.ramp_steps);
        if self.timeline_bins.len() < other.timeline_bins.len() {
            self.timeline_bins.resize(other.timeline_bins.len(), [0; 2]);
        }
        self.latency_timeline.merge(&other.latency_timeline);
        for (own, bin) in self.timeline_bins.iter_mut().zip(&other.timeline_bins) {
            add_arrays(own, bin);
        }
    }

    /// Returns whether responses are also counted by kind of request or by step of a ramp.
    pub(crate) fn has_parts(&self) -> bool {
        !(self.kinds.is_empty() && self.ramp_steps.is_empty())
    }

    /// Returns the counters of a kind of request, and of a step of a ramp, as far as there are any.
    pub(crate) fn parts(
        &mut self,
        kind: u16,
        step: usize,
    ) -> impl Iterator<Item = &mut PartCounters> {
        let step = self.ramp_steps.get_mut(step);
        self.kinds.get_mut(usize::from(kind)).into_iter().chain(step)
    }

    /// Returns the number of responses to requests due in the measurement.
    pub(crate) fn responses(&self) -> u64 {
        self.status_classes.iter().sum()
    }

    /// Returns whether any request was answered, warm-up included.
    pub(crate) fn has_responses(&self) -> bool {
        self.warm_up[0] > 0 || self.responses() > 0
    }

    /// Returns the number of requests due in the measurement without a response.
    pub(crate) fn failed_requests(&self) -> u64 {
        self.failures.iter().sum()
    }

    /// Returns the number of responses with a status of 400 or more.
    pub(crate) fn error_statuses(&self) -> u64 {
        self.status_classes[4] + self.status_classes[5]
    }
}

/// Creates a histogram from 100 ns up, with the given number of significant digits; it grows as needed.
pub(crate) fn new_histogram(digits: u8) -> Histogram<u64> {
    let mut histogram = match Histogram::new_with_bounds(100, 1_000_000_000, digits) {
        Ok(histogram) => histogram,
        Err(_) => unreachable!("the bounds are constants that fit"),
    };
    histogram.auto(true);
    histogram
}

/// Records a latency. Not `saturating_record`, which never grows and caps values at one second.
pub(crate) fn record_latency(histogram: &mut Histogram<u64>, latency: u64) {
    // Only a histogram of fixed size can refuse a value.
    let recorded = histogram.record(latency);
    debug_assert!(recorded.is_ok());
}

pub(crate) fn add_histogram(own: &mut Histogram<u64>, other: &Histogram<u64>) {
    // Only a histogram that may not grow refuses.
    let added = own.add(other);
    debug_assert!(added.is_ok());
}

pub(crate) fn add_arrays<const N: usize>(own: &mut [u64; N], other: &[u64; N]) {
    own.iter_mut().zip(other).for_each(|(own, other)| *own += other);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_connection_that_changes_its_process_counts_for_both() {
        let mut counters = LoadCounters::new();
        let first = counters.record_response(200, 1000, Some(7), None);
        let same = counters.record_response(200, 1000, Some(7), first);
        let second = counters.record_response(503, 1000, Some(8), same);
        assert_eq!((first, same, second), (Some(0), Some(0), Some(1)));
        let seen: Vec<_> =
            counters.processes.iter().map(|s| (s.pid, s.requests, s.connections)).collect();
        assert_eq!(seen, [(7, 2, 1), (8, 1, 1)]);
        assert_eq!((counters.responses(), counters.error_statuses()), (3, 1));
    }

    #[test]
    fn latencies_over_one_second_are_not_capped() {
        let (mut one, mut all) = (LoadCounters::new(), LoadCounters::new());
        one.record_response(200, 25_000_000_000, Some(7), None);
        all.merge(&one);
        for histogram in
            [&one.latency, &one.processes[0].latency, &all.latency, &all.processes[0].latency]
        {
            assert!(histogram.max().abs_diff(25_000_000_000) < 300_000_000, "{}", histogram.max());
        }
    }

    #[test]
    fn the_number_of_tracked_processes_is_limited() {
        let mut counters = LoadCounters::new();
        for pid in 0..MAX_TRACKED_PROCESSES as u32 + 5 {
            counters.record_response(200, 1, Some(pid), None);
        }
        assert_eq!(
            (counters.processes.len(), counters.untracked_responses),
            (MAX_TRACKED_PROCESSES, 5)
        );
    }

    /// Generates latency, pid, and whether the request failed.
    fn request_results() -> impl Strategy<Value = Vec<(u64, Option<u32>, bool)>> {
        let one = (0u64..1_000_000_000_000, prop::option::of(1u32..5), any::<bool>());
        prop::collection::vec(one, 0..60)
    }

    fn count_results(what: &[(u64, Option<u32>, bool)]) -> LoadCounters {
        let mut counters = LoadCounters::new();
        for (latency, pid, failed) in what {
            match failed {
                true => counters.record_failure(RequestFailure::Reset),
                false => drop(counters.record_response(200, *latency, *pid, None)),
            }
            counters.record_timeline(*latency, (!failed).then_some(*latency));
        }
        counters
    }

    proptest! {
        #[test]
        fn merged_counters_equal_counters_of_all_requests(a in request_results(), b in request_results()) {
            let mut merged = count_results(&a);
            merged.merge(&count_results(&b));
            let together = count_results(&[a, b].concat());
            prop_assert_eq!(&merged.latency, &together.latency);
            prop_assert_eq!(merged.failures, together.failures);
            prop_assert_eq!(merged.status_classes, together.status_classes);
            prop_assert_eq!(merged.timeline_bins, together.timeline_bins);
            prop_assert_eq!(&merged.latency_timeline, &together.latency_timeline);
            prop_assert_eq!(merged.processes.len(), together.processes.len());
            for (own, other) in merged.processes.iter().zip(&together.processes) {
                prop_assert_eq!((own.pid, own.requests), (other.pid, other.requests));
                prop_assert_eq!(&own.latency, &other.latency);
            }
        }
    }
}
