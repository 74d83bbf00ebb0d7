//! What one connection of a draining program has done, and whether it is idle.
//!
//! The kernel shows when bytes came and went, not what they mean. A connection is idle between two requests if its last
//! response is younger than its last request, nothing is left to read or to send, and it stays so for a while: a response may
//! be sent in parts, with pauses. What a connection has done before tells how long that while must be.

use std::time::Duration;

use prefork_os::tcp_activity::{TcpActivity, TcpState};

/// How long a connection must be quiet after a response, or without any request, to count as idle.
///
/// Responses that are streamed pause between their parts, a client that was told to continue needs a round trip before it
/// sends its body, and one that has just connected may not have sent its request yet.
pub(super) const IDLE_QUIET: Duration = Duration::from_secs(1);
/// As [`IDLE_QUIET`], after [`CONFIRMED_TURNS`].
pub(super) const CONFIRMED_QUIET: Duration = Duration::from_millis(15);
/// As [`IDLE_QUIET`], after [`WELL_CONFIRMED_TURNS`].
const WELL_CONFIRMED_QUIET: Duration = Duration::from_millis(8);
/// For how long after that a connection with known turns is closed. Later, its next request may be about to come: it is closed
/// after the next response instead.
const MIN_CLOSE_WINDOW: Duration = Duration::from_millis(10);
/// After how many turns without such a moment, as with few looks, any will do.
const MISSED_TURNS: u32 = 20;
/// As [`IDLE_QUIET`], if the order of request and response cannot be told.
const UNCERTAIN_QUIET: Duration = Duration::from_secs(5);
/// After how many requests that came when the connection looked idle the look is trusted more.
const CONFIRMED_TURNS: u32 = 2;
/// After how many such requests it is trusted still more.
const WELL_CONFIRMED_TURNS: u32 = 10;
/// After how many exchanges during the drain a connection counts as one that is never idle.
const HOT_EXCHANGES: u32 = 10;
/// How recent the last exchange of such a connection must be.
const HOT_QUIET: Duration = Duration::from_millis(500);
/// How long after a request the acknowledgement of its response may come: clients delay it by up to 200 ms.
const DELAYED_ACK: Duration = Duration::from_millis(500);
/// How long the program may take to close a connection whose input has ended, until it is seen that it does not.
const END_OF_INPUT_WAIT: Duration = Duration::from_secs(2);

/// What a connection looks like at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// A request is in progress, or one direction is closed already.
    Busy,
    /// The last response, or a part of it, was sent after the last request.
    Answered,
    /// Request and response are so close in time that their order is not known, but each request was answered by the same
    /// number of segments.
    Balanced,
    /// Request and response are so close in time that their order is not known.
    Uncertain,
    /// No byte has ever come or gone.
    Fresh,
    /// The client has closed its direction, and what it sent is answered. The program has not closed the connection.
    Finished,
}

impl Look {
    pub(super) fn at(activity: &TcpActivity) -> Look {
        match (activity.state, Look::of_data(activity)) {
            (TcpState::Established, look) => look,
            (TcpState::PeerClosed, Look::Answered | Look::Balanced | Look::Fresh) => Look::Finished,
            _ => Look::Busy,
        }
    }

    /// Returns what the data that came and went shows, whether the connection is open or not.
    fn of_data(activity: &TcpActivity) -> Look {
        if activity.unread_bytes > 0 || activity.unsent_bytes > 0 {
            return Look::Busy;
        }
        if activity.received_bytes == 0 {
            return if activity.sent_bytes == 0 { Look::Fresh } else { Look::Answered };
        }
        if activity.sent_bytes == 0 || activity.since_received < activity.since_sent {
            return Look::Busy;
        }
        if activity.since_sent < activity.since_received {
            return Look::Answered;
        }
        // Both in one kernel tick. A client acknowledges a response, but not that its own request was received, so an
        // acknowledgement after the request means that the response came after it, too. The acknowledgement of a keep-alive
        // probe comes much later.
        let acknowledged_later =
            activity.since_received.saturating_sub(activity.since_acknowledged);
        if !acknowledged_later.is_zero() && acknowledged_later <= DELAYED_ACK {
            return Look::Answered;
        }
        match activity.sent_segments.checked_rem(activity.received_segments) {
            Some(0) => Look::Balanced,
            _ => Look::Uncertain,
        }
    }
}

/// The history of one connection during the drain.
#[derive(Debug, Clone)]
pub(super) struct ConnectionHistory {
    activity: TcpActivity,
    look: Look,
    /// How many requests came when the connection looked idle, which confirms the look.
    confirmed_turns: u32,
    /// How many times both directions have carried data between two looks, or in turns.
    exchanges: u32,
    /// Whether data has arrived since the last exchange was counted.
    has_received: bool,
    /// The longest time that the connection looked idle before the program sent more without having received anything.
    longest_pause: Duration,
    /// When its input has ended, since the start of the drain: it was half-closed, or seen to be finished.
    input_ended_at: Option<Duration>,
    /// In which look it was seen last.
    pub(super) seen_in: u64,
}

impl ConnectionHistory {
    pub(super) fn new(activity: TcpActivity) -> ConnectionHistory {
        ConnectionHistory {
            look: Look::at(&activity),
            activity,
            confirmed_turns: 0,
            exchanges: 0,
            has_received: false,
            longest_pause: Duration::ZERO,
            input_ended_at: None,
            seen_in: 0,
        }
    }

    /// Records what the connection looks like now.
    pub(super) fn record(&mut self, activity: TcpActivity) {
        let before = std::mem::replace(&mut self.activity, activity);
        let look_before = std::mem::replace(&mut self.look, Look::at(&activity));
        let looked_idle = matches!(look_before, Look::Answered | Look::Balanced | Look::Finished);
        let has_received = activity.received_bytes > before.received_bytes;
        let has_sent = activity.sent_bytes > before.sent_bytes;
        match (has_received, has_sent) {
            (true, false) if looked_idle => self.confirmed_turns += 1,
            // A whole exchange between two looks: from idle to idle.
            (true, true) if look_before == Look::Answered && self.look == Look::Answered => {
                self.confirmed_turns += 1;
            }
            (true, true)
                if looked_idle
                    && self.look == Look::Balanced
                    && is_same_ratio(&before, &activity) =>
            {
                self.confirmed_turns += 1;
            }
            (false, true) if looked_idle => {
                self.longest_pause = self.longest_pause.max(before.since_sent).max(CONFIRMED_QUIET);
            }
            _ => {}
        }
        self.has_received |= has_received;
        if self.has_received && has_sent {
            self.has_received = false;
            self.exchanges += 1;
        }
    }

    /// Records that the program reads the end of the input from `now` on, unless it did before.
    pub(super) fn record_end_of_input(&mut self, now: Duration) {
        self.input_ended_at.get_or_insert(now);
    }

    /// Returns whether the client has ended the connection on its side, and waits for nothing.
    pub(super) fn is_finished(&self) -> bool {
        self.look == Look::Finished
    }

    /// Returns the time since bytes came or went last.
    pub(super) fn quiet(&self) -> Duration {
        self.activity.since_received.min(self.activity.since_sent)
    }

    /// Returns how long the connection must be quiet to count as idle. `None` if it is busy.
    fn required_quiet(&self) -> Option<Duration> {
        let required = match self.look {
            Look::Busy => return None,
            Look::Uncertain => UNCERTAIN_QUIET,
            _ if !self.longest_pause.is_zero() => IDLE_QUIET.max(self.longest_pause * 4),
            Look::Fresh => IDLE_QUIET,
            _ if self.confirmed_turns >= WELL_CONFIRMED_TURNS => WELL_CONFIRMED_QUIET,
            _ if self.confirmed_turns >= CONFIRMED_TURNS => CONFIRMED_QUIET,
            _ => IDLE_QUIET,
        };
        Some(required.max(self.activity.min_round_trip_time * 2))
    }

    /// Returns whether the connection is idle, and this is a good moment to half-close it.
    pub(super) fn is_idle(&self) -> bool {
        let Some(required) = self.required_quiet().filter(|_| self.input_ended_at.is_none()) else {
            return false;
        };
        let quiet = self.quiet();
        let is_good_moment = quiet <= required + required.max(MIN_CLOSE_WINDOW)
            || quiet >= IDLE_QUIET
            || self.confirmed_turns >= MISSED_TURNS;
        quiet >= required && is_good_moment
    }

    /// Returns whether no request seems to be in progress for `quiet`. Less certain than [`is_idle`](Self::is_idle).
    pub(super) fn looks_idle(&self, quiet: Duration) -> bool {
        match self.look {
            Look::Busy | Look::Uncertain => self.is_idle(),
            Look::Answered | Look::Balanced | Look::Fresh | Look::Finished => self.quiet() >= quiet,
        }
    }

    /// Returns whether one short exchange follows the other, so that the connection will never be idle.
    pub(super) fn is_hot(&self) -> bool {
        self.exchanges >= HOT_EXCHANGES && self.quiet() < HOT_QUIET
    }

    /// Returns whether the program sends without being asked: a stream of events, or a WebSocket.
    pub(super) fn is_stream(&self) -> bool {
        !self.longest_pause.is_zero()
    }

    /// Returns whether the program ignores the end of its input, with nothing in progress.
    pub(super) fn ignores_end_of_input(&self, now: Duration) -> bool {
        let waited = self.input_ended_at.map(|at| now.saturating_sub(at));
        waited.is_some_and(|waited| waited >= END_OF_INPUT_WAIT)
            && self.quiet() >= IDLE_QUIET.max(self.longest_pause * 4)
    }

    /// Returns the round-trip time to the client.
    pub(super) fn round_trip_time(&self) -> Duration {
        self.activity.min_round_trip_time
    }
}

/// Returns whether responses had as many segments per request before as after.
fn is_same_ratio(before: &TcpActivity, after: &TcpActivity) -> bool {
    let ratio =
        |activity: &TcpActivity| activity.sent_segments.checked_div(activity.received_segments);
    ratio(before) == ratio(after)
}
