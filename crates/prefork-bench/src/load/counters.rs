//! What was counted: by one thread for itself, then put together. Pure; times are nanoseconds.

use hdrhistogram::Histogram;

use crate::chaos::{Odd, What};

/// Width of a bar of the timeline.
pub(crate) const BIN: u64 = 100_000_000;
/// Processes that are told apart in one run; the others are one sum, so that a target that invents pids costs
/// no memory.
const MOST_PIDS: usize = 1024;

/// Requests whose fate one thread notes down one by one.
const MOST_ODDS: usize = 100_000;

/// Why a request has no response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Nobody listens.
    Refused,
    /// The connection was reset.
    Reset,
    /// The connection ended before the response did.
    ClosedEarly,
    /// The response was not complete in time.
    TimedOut,
    /// What came is not HTTP.
    Malformed,
    /// This machine had no port, descriptor or memory for the connection.
    Local,
    /// The response has more header fields than the bench reads.
    TooManyFields,
    /// The head of the response is larger than the bench reads.
    HeadTooLarge,
    /// A chunk's size with its extensions, or the trailers, are longer than the bench reads.
    ChunkLineTooLong,
}

/// How many kinds of [`Failure`] there are.
pub(crate) const FAILURES: usize = 9;

/// Everything counted in one round, or by one thread of it.
#[derive(Debug, Clone)]
pub(crate) struct Tally {
    /// From the moment a request was due to the end of its response.
    pub(crate) latency: Histogram<u64>,
    /// Responses by the first digit of their status.
    pub(crate) classes: [u64; 6],
    /// Requests without a response, by [`Failure`].
    pub(crate) failures: [u64; FAILURES],
    /// Requests that were due before the measuring began: answered, and failed.
    pub(crate) warm_up: [u64; 2],
    /// Requests that an early end left without an answer.
    pub(crate) abandoned: u64,
    /// Responses that were complete within the time measured, whenever they were due.
    pub(crate) in_time: u64,
    /// Bytes of those responses.
    pub(crate) bytes: u64,
    /// Connections that were opened, warm-up included.
    pub(crate) connections: u64,
    /// What each process did.
    pub(crate) pids: Vec<Share>,
    /// Responses of processes beyond those.
    pub(crate) other_pids: u64,
    /// Responses and failures in each [`BIN`] of the time measured.
    pub(crate) bins: Vec<[u64; 2]>,
    /// Requests that did not go well, if something is done to the target.
    pub(crate) odds: Vec<Odd>,
    /// Those that there was no room for among them.
    pub(crate) more_odds: u64,
}

/// What one process did.
#[derive(Debug, Clone)]
pub(crate) struct Share {
    pub(crate) pid: u32,
    pub(crate) requests: u64,
    /// Connections on which it answered.
    pub(crate) connections: u64,
    pub(crate) latency: Histogram<u64>,
}

impl Tally {
    pub(crate) fn new() -> Tally {
        Tally {
            latency: histogram(3),
            classes: [0; 6],
            failures: [0; FAILURES],
            warm_up: [0; 2],
            abandoned: 0,
            in_time: 0,
            bytes: 0,
            connections: 0,
            pids: Vec::new(),
            other_pids: 0,
            bins: Vec::new(),
            odds: Vec::new(),
            more_odds: 0,
        }
    }

    /// A response that counts, after `latency`. `known` is the place of its process among `pids` if the
    /// connection was answered by one before; the place of this one is returned.
    pub(crate) fn answered(
        &mut self,
        status: u16,
        latency: u64,
        pid: Option<u32>,
        known: Option<usize>,
    ) -> Option<usize> {
        record(&mut self.latency, latency);
        self.classes[usize::from(status / 100).min(5)] += 1;
        let pid = pid?;
        let same = known.filter(|at| self.pids[*at].pid == pid);
        let Some(at) = same.or_else(|| self.place(pid)) else {
            self.other_pids += 1;
            return None;
        };
        let share = &mut self.pids[at];
        share.connections += u64::from(same.is_none());
        share.requests += 1;
        record(&mut share.latency, latency);
        Some(at)
    }

    /// One more response or failure, so long after the measuring began.
    pub(crate) fn happened(&mut self, after: u64, failed: bool) {
        let bin = (after / BIN) as usize;
        if self.bins.len() <= bin {
            self.bins.resize(bin + 1, [0; 2]);
        }
        self.bins[bin][usize::from(failed)] += 1;
    }

    pub(crate) fn failed(&mut self, why: Failure) {
        self.failures[why as usize] += 1;
    }

    /// A request that did not go well from `from` to `until`, at the process with this place among `pids`.
    pub(crate) fn odd(&mut self, what: What, from: u64, until: u64, process: Option<usize>) {
        let pid = process.map(|at| self.pids[at].pid);
        match self.odds.len() < MOST_ODDS {
            true => self.odds.push(Odd { what, from, until, pid }),
            false => self.more_odds += 1,
        }
    }

    /// Where the figures of `pid` are; `None` if there are too many others.
    fn place(&mut self, pid: u32) -> Option<usize> {
        if let Some(at) = self.pids.iter().position(|share| share.pid == pid) {
            return Some(at);
        }
        if self.pids.len() >= MOST_PIDS {
            return None;
        }
        self.pids.push(Share { pid, requests: 0, connections: 0, latency: histogram(2) });
        Some(self.pids.len() - 1)
    }

    /// Adds what another thread or round counted.
    pub(crate) fn merge(&mut self, other: &Tally) {
        add_histogram(&mut self.latency, &other.latency);
        add(&mut self.classes, &other.classes);
        add(&mut self.failures, &other.failures);
        add(&mut self.warm_up, &other.warm_up);
        self.abandoned += other.abandoned;
        self.in_time += other.in_time;
        self.bytes += other.bytes;
        self.connections += other.connections;
        self.other_pids += other.other_pids;
        self.odds.extend_from_slice(&other.odds);
        self.more_odds += other.more_odds;
        for share in &other.pids {
            match self.place(share.pid) {
                Some(at) => {
                    let own = &mut self.pids[at];
                    own.requests += share.requests;
                    own.connections += share.connections;
                    add_histogram(&mut own.latency, &share.latency);
                }
                None => self.other_pids += share.requests,
            }
        }
        if self.bins.len() < other.bins.len() {
            self.bins.resize(other.bins.len(), [0; 2]);
        }
        for (own, bin) in self.bins.iter_mut().zip(&other.bins) {
            add(own, bin);
        }
    }

    /// Responses that count.
    pub(crate) fn responses(&self) -> u64 {
        self.classes.iter().sum()
    }

    /// Requests that count and got no response.
    pub(crate) fn lost(&self) -> u64 {
        self.failures.iter().sum()
    }

    /// Responses whose status says that something went wrong.
    pub(crate) fn bad_statuses(&self) -> u64 {
        self.classes[4] + self.classes[5]
    }
}

/// From 100 ns, as large as need be, with so many significant digits.
fn histogram(digits: u8) -> Histogram<u64> {
    let mut histogram = match Histogram::new_with_bounds(100, 1_000_000_000, digits) {
        Ok(histogram) => histogram,
        Err(_) => unreachable!("the bounds are constants that fit"),
    };
    histogram.auto(true);
    histogram
}

/// Not `saturating_record`, which never grows: it would call all that takes longer than a second a second.
fn record(histogram: &mut Histogram<u64>, latency: u64) {
    // Only a histogram that may not grow refuses.
    let recorded = histogram.record(latency);
    debug_assert!(recorded.is_ok());
}

fn add_histogram(own: &mut Histogram<u64>, other: &Histogram<u64>) {
    // Only a histogram that may not grow refuses.
    let added = own.add(other);
    debug_assert!(added.is_ok());
}

fn add<const N: usize>(own: &mut [u64; N], other: &[u64; N]) {
    own.iter_mut().zip(other).for_each(|(own, other)| *own += other);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_connection_that_changes_its_process_counts_for_both() {
        let mut tally = Tally::new();
        let first = tally.answered(200, 1000, Some(7), None);
        let same = tally.answered(200, 1000, Some(7), first);
        let second = tally.answered(503, 1000, Some(8), same);
        assert_eq!((first, same, second), (Some(0), Some(0), Some(1)));
        let seen: Vec<_> = tally.pids.iter().map(|s| (s.pid, s.requests, s.connections)).collect();
        assert_eq!(seen, [(7, 2, 1), (8, 1, 1)]);
        assert_eq!((tally.responses(), tally.bad_statuses()), (3, 1));
    }

    #[test]
    fn latencies_beyond_a_second_are_kept_as_they_are() {
        let (mut one, mut all) = (Tally::new(), Tally::new());
        one.answered(200, 25_000_000_000, Some(7), None);
        all.merge(&one);
        for histogram in [&one.latency, &one.pids[0].latency, &all.latency, &all.pids[0].latency] {
            assert!(histogram.max().abs_diff(25_000_000_000) < 300_000_000, "{}", histogram.max());
        }
    }

    #[test]
    fn a_target_that_invents_processes_costs_no_memory() {
        let mut tally = Tally::new();
        for pid in 0..MOST_PIDS as u32 + 5 {
            tally.answered(200, 1, Some(pid), None);
        }
        assert_eq!((tally.pids.len(), tally.other_pids), (MOST_PIDS, 5));
    }

    /// Latency, pid, whether it failed.
    fn happenings() -> impl Strategy<Value = Vec<(u64, Option<u32>, bool)>> {
        let one = (0u64..1_000_000_000_000, prop::option::of(1u32..5), any::<bool>());
        prop::collection::vec(one, 0..60)
    }

    fn counted(what: &[(u64, Option<u32>, bool)]) -> Tally {
        let mut tally = Tally::new();
        for (latency, pid, failed) in what {
            match failed {
                true => tally.failed(Failure::Reset),
                false => drop(tally.answered(200, *latency, *pid, None)),
            }
            tally.happened(*latency, *failed);
        }
        tally
    }

    proptest! {
        #[test]
        fn merging_is_counting_together(a in happenings(), b in happenings()) {
            let mut merged = counted(&a);
            merged.merge(&counted(&b));
            let together = counted(&[a, b].concat());
            prop_assert_eq!(&merged.latency, &together.latency);
            prop_assert_eq!(merged.failures, together.failures);
            prop_assert_eq!(merged.classes, together.classes);
            prop_assert_eq!(merged.bins, together.bins);
            prop_assert_eq!(merged.pids.len(), together.pids.len());
            for (own, other) in merged.pids.iter().zip(&together.pids) {
                prop_assert_eq!((own.pid, own.requests), (other.pid, other.requests));
                prop_assert_eq!(&own.latency, &other.latency);
            }
        }
    }
}
