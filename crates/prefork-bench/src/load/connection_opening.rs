//! Limits how fast the connections of a round are opened.
//!
//! A server accepts connections one after the other; meanwhile they wait in its accept queue. The kernel drops the SYN of
//! a connection that does not fit, and the client repeats it a second later. So at most [`MAX_UNANSWERED`] connections wait
//! for their first response at a time. Only if no first response comes for [`STALL_NANOS`], because the server takes long for a
//! response, further ones follow [`PACE_NANOS`] apart. A server that answers, but accepts slowly because the connections it has
//! keep it busy, gets no more than it accepts. Therefore these wait for the others in the warm-up, each after its first
//! response (`RoundState::is_opening`).

/// Connections of all threads that may wait for their first response: the shortest accept queue in use (gevent, asyncio: 100 to 128).
pub(crate) const MAX_UNANSWERED: usize = 100;
/// How long no first response has come before connections are opened without waiting for one: 200 ms.
pub(crate) const STALL_NANOS: u64 = 200_000_000;
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
    /// When the last first response came.
    last_answered: u64,
    /// When a connection may be opened although too many are unanswered.
    next_paced: u64,
}

impl ConnectionOpening {
    pub(crate) fn new(threads: usize) -> ConnectionOpening {
        ConnectionOpening {
            max_unanswered: (MAX_UNANSWERED / threads).max(1),
            pace: PACE_NANOS * threads as u64,
            unanswered: 0,
            last_answered: 0,
            next_paced: 0,
        }
    }

    /// Returns whether a connection may be opened at `now`, in nanoseconds since the start of the round.
    pub(crate) fn may_open(&self, now: u64) -> bool {
        let is_stalled = now >= self.last_answered + STALL_NANOS;
        self.unanswered < self.max_unanswered || (is_stalled && now >= self.next_paced)
    }

    /// Counts a connection that is opened for the first time.
    pub(crate) fn record_opened(&mut self, now: u64) {
        self.unanswered += 1;
        let earliest = now.saturating_sub(MAX_CATCH_UP_NANOS);
        self.next_paced = self.next_paced.max(earliest) + self.pace;
    }

    /// Counts the first response, or the end, of such a connection.
    pub(crate) fn record_answered(&mut self, now: u64) {
        self.unanswered -= 1;
        self.last_answered = now;
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
        opening.record_answered(0);
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
        let expected = (second - STALL_NANOS) / (2 * PACE_NANOS);
        assert!((expected..expected + 200).contains(&opened), "{opened}");
    }

    #[test]
    fn a_server_that_answers_slowly_gets_no_more_than_it_answers() {
        let mut opening = ConnectionOpening::new(1);
        let mut opened = 0;
        for now in (0..10_000_000_000).step_by(20_000_000) {
            while opening.may_open(now) {
                opening.record_opened(now);
                opened += 1;
            }
            opening.record_answered(now);
        }
        assert_eq!(opened, MAX_UNANSWERED + 499);
    }
}
