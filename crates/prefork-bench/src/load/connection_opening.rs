//! Limits how fast the connections of a round are opened.
//!
//! A server accepts connections one after the other; meanwhile they wait in its accept queue. The kernel drops the SYN of
//! a connection that does not fit, and the client repeats it a second later. So at most [`MAX_UNANSWERED`] connections wait
//! for their first response at a time, unless the server takes long for a response: then [`PACE_NANOS`] apart.

/// Connections of all threads that may wait for their first response: the shortest accept queue in use (gevent, asyncio: 100 to 128).
const MAX_UNANSWERED: usize = 100;
/// Time from one connection to the next one while the first responses are awaited: 200 us, for all threads together.
const PACE_NANOS: u64 = 200_000;
/// How far the pace may catch up after a wait: 20 ms, the longest wait of a thread for events.
const MAX_CATCH_UP_NANOS: u64 = 20_000_000;

/// Decides when a thread may open its next connection for the first time in a round.
#[derive(Debug)]
pub(crate) struct ConnectionOpening {
    max_unanswered: usize,
    pace: u64,
    /// Connections that have had no response since they were opened for the first time.
    unanswered: usize,
    /// When a connection may be opened although too many are unanswered.
    next_paced: u64,
}

impl ConnectionOpening {
    pub(crate) fn new(threads: usize) -> ConnectionOpening {
        ConnectionOpening {
            max_unanswered: (MAX_UNANSWERED / threads).max(1),
            pace: PACE_NANOS * threads as u64,
            unanswered: 0,
            next_paced: 0,
        }
    }

    /// Returns whether a connection may be opened at `now`, in nanoseconds since the start of the round.
    pub(crate) fn may_open(&self, now: u64) -> bool {
        self.unanswered < self.max_unanswered || now >= self.next_paced
    }

    /// Counts a connection that is opened for the first time.
    pub(crate) fn record_opened(&mut self, now: u64) {
        self.unanswered += 1;
        let earliest = now.saturating_sub(MAX_CATCH_UP_NANOS);
        self.next_paced = self.next_paced.max(earliest) + self.pace;
    }

    /// Counts the first response, or the end, of such a connection.
    pub(crate) fn record_answered(&mut self) {
        self.unanswered -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_connections_wait_for_their_first_response_at_a_time() {
        let mut opening = ConnectionOpening::new(2);
        let mut opened = 0;
        while opening.may_open(0) {
            opening.record_opened(0);
            opened += 1;
        }
        assert_eq!(opened, MAX_UNANSWERED / 2);
        opening.record_answered();
        assert!(opening.may_open(0));
        opening.record_opened(0);
        assert!(!opening.may_open(0));
    }

    #[test]
    fn a_server_that_does_not_answer_gets_connections_at_a_pace() {
        let mut opening = ConnectionOpening::new(2);
        let (mut opened, second) = (0, 1_000_000_000);
        // The thread wakes every 20 ms.
        for now in (0..=second).step_by(20_000_000) {
            while opening.may_open(now) {
                opening.record_opened(now);
                opened += 1;
            }
        }
        let expected = second / (2 * PACE_NANOS);
        assert!((expected..expected + 100).contains(&opened), "{opened}");
    }
}
