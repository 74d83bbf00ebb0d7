//! The decisions on simulated observations.

use std::time::Duration;

use prefork_os::tcp_activity::{TcpActivity, TcpState};

use super::connection_history::{ConnectionHistory, Look};
use super::decider::{Decision, DrainDecider};
use super::{DrainSettings, StopReason};
use crate::program::observe::{ConnectionScan, ProgramConnection, Visibility};

const TICK: u64 = 4;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A connection of a simulated program, with the clock of a kernel that counts in ticks of 4 ms.
#[derive(Debug, Clone)]
struct Simulated {
    now: u64,
    received_at: u64,
    sent_at: u64,
    acknowledged_at: u64,
    activity: TcpActivity,
}

impl Simulated {
    fn connect(now: u64) -> Simulated {
        let activity = TcpActivity {
            state: TcpState::Established,
            unread_bytes: 0,
            unsent_bytes: 0,
            since_received: Duration::ZERO,
            since_sent: Duration::ZERO,
            since_acknowledged: Duration::ZERO,
            min_round_trip_time: ms(1),
            received_bytes: 0,
            sent_bytes: 0,
            received_segments: 0,
            sent_segments: 0,
        };
        Simulated { now, received_at: now, sent_at: now, acknowledged_at: now, activity }
    }

    fn at(&mut self, now: u64) -> &mut Simulated {
        self.now = now;
        self
    }

    /// A request arrives, which acknowledges what was sent before.
    fn request(&mut self) -> &mut Simulated {
        (self.received_at, self.acknowledged_at) = (self.now, self.now);
        self.activity.received_bytes += 100;
        self.activity.received_segments += 1;
        self
    }

    fn respond(&mut self) -> &mut Simulated {
        self.sent_at = self.now;
        self.activity.sent_bytes += 300;
        self.activity.sent_segments += 1;
        self
    }

    fn acknowledge(&mut self) -> &mut Simulated {
        self.acknowledged_at = self.now;
        self
    }

    fn activity(&self) -> TcpActivity {
        let age = |at: u64| ms((self.now / TICK - at / TICK) * TICK);
        TcpActivity {
            since_received: age(self.received_at),
            since_sent: age(self.sent_at),
            since_acknowledged: age(self.acknowledged_at),
            ..self.activity
        }
    }

    fn look(&self) -> Look {
        Look::at(&self.activity())
    }
}

#[test]
fn a_connection_is_answered_only_if_its_response_came_after_its_request() {
    let mut one = Simulated::connect(0);
    assert_eq!(one.at(50).look(), Look::Fresh);
    assert_eq!(one.request().look(), Look::Busy);
    assert_eq!(one.at(5000).look(), Look::Busy, "a slow handler");
    assert_eq!(one.respond().look(), Look::Answered);
    assert_eq!(one.at(6000).request().look(), Look::Busy);
}

#[test]
fn bytes_that_wait_on_either_side_make_a_connection_busy() {
    let mut one = Simulated::connect(0);
    one.at(10).request().at(50).respond().at(9000);
    assert_eq!(one.look(), Look::Answered);
    let with = |change: fn(&mut TcpActivity)| {
        let mut activity = one.activity();
        change(&mut activity);
        Look::at(&activity)
    };
    assert_eq!(with(|a| a.unread_bytes = 1), Look::Busy, "a pipelined request");
    assert_eq!(with(|a| a.unsent_bytes = 1), Look::Busy, "a client that does not read");
    assert_eq!(with(|a| a.state = TcpState::Closing), Look::Busy);
}

#[test]
fn a_client_that_half_closed_is_busy_until_it_has_its_response() {
    let mut one = Simulated::connect(0);
    one.activity.state = TcpState::PeerClosed;
    assert_eq!(one.at(10).look(), Look::Finished, "it has sent nothing");
    assert_eq!(one.request().at(5000).look(), Look::Busy, "a slow handler");
    assert_eq!(one.respond().look(), Look::Finished);
}

#[test]
fn the_order_within_one_tick_is_told_by_an_acknowledgement_or_the_number_of_segments() {
    // Request, then response: the client acknowledges the response 40 ms later.
    let mut idle = Simulated::connect(0);
    idle.at(100).request().at(101).respond();
    assert_eq!(idle.look(), Look::Balanced);
    assert_eq!(idle.at(141).acknowledge().at(400).look(), Look::Answered);
    // Response, then the next request in the same tick, whose handler is slow.
    let mut busy = Simulated::connect(0);
    busy.at(50).request().at(100).respond().at(101).request().at(4000);
    assert_eq!(busy.look(), Look::Uncertain);
    // An acknowledgement of a keep-alive probe of the server proves nothing.
    assert_eq!(busy.at(16_000).acknowledge().look(), Look::Uncertain);
}

/// Records `one` every 5 ms from its time to `until`.
fn watch(history: &mut ConnectionHistory, one: &mut Simulated, until: u64) {
    for now in (one.now..until).step_by(5) {
        history.record(one.at(now).activity());
    }
    history.record(one.at(until).activity());
}

#[test]
fn the_first_response_needs_a_second_of_quiet() {
    let mut one = Simulated::connect(0);
    one.at(100).request().at(150).respond();
    let mut history = ConnectionHistory::new(one.activity());
    watch(&mut history, &mut one, 1100);
    assert!(!history.is_idle());
    watch(&mut history, &mut one, 1160);
    assert!(history.is_idle());
    let mut fresh = Simulated::connect(0);
    let mut history = ConnectionHistory::new(fresh.activity());
    watch(&mut history, &mut fresh, 900);
    assert!(!history.is_idle(), "the first request may be on its way");
    watch(&mut history, &mut fresh, 1004);
    assert!(history.is_idle());
}

#[test]
fn a_connection_with_known_turns_is_idle_soon_after_its_response() {
    let mut one = Simulated::connect(0);
    let mut history = ConnectionHistory::new(one.activity());
    for turn in 0..4 {
        let begin = 100 * (turn + 1);
        watch(&mut history, &mut one, begin);
        one.at(begin).request();
        watch(&mut history, &mut one, begin + 30);
        assert!(!history.is_idle(), "busy");
        one.respond();
        watch(&mut history, &mut one, begin + 55);
        assert_eq!(history.is_idle(), turn >= 2, "turn {turn}");
    }
}

#[test]
fn a_connection_whose_next_request_may_be_about_to_come_is_closed_after_the_next_response() {
    let mut one = Simulated::connect(0);
    let mut history = ConnectionHistory::new(one.activity());
    for begin in [100, 200, 300, 400] {
        watch(&mut history, &mut one, begin);
        one.at(begin).request();
        watch(&mut history, &mut one, begin + 30);
        one.respond();
    }
    watch(&mut history, &mut one, 450);
    assert!(history.is_idle(), "20 ms after its response");
    watch(&mut history, &mut one, 490);
    assert!(!history.is_idle(), "the next request is due");
    watch(&mut history, &mut one, 1440);
    assert!(history.is_idle(), "none has come");
}

#[test]
fn a_response_in_parts_is_not_taken_for_idle() {
    let mut one = Simulated::connect(0);
    one.at(4).request();
    let mut history = ConnectionHistory::new(one.activity());
    for part in 1..20 {
        one.respond();
        watch(&mut history, &mut one, part * 400);
        assert!(!history.is_idle(), "part {part}");
    }
    assert!(history.is_stream());
    // Four times the longest pause of 400 ms.
    watch(&mut history, &mut one, 8700);
    assert!(!history.is_idle());
    watch(&mut history, &mut one, 8900);
    assert!(history.is_idle());
}

#[test]
fn a_client_far_away_gets_two_round_trips() {
    let mut one = Simulated::connect(0);
    one.activity.min_round_trip_time = ms(800);
    one.at(10).request().at(20).respond();
    let mut history = ConnectionHistory::new(one.activity());
    watch(&mut history, &mut one, 1500);
    assert!(!history.is_idle());
    watch(&mut history, &mut one, 1650);
    assert!(history.is_idle());
}

/// A program with simulated connections that is drained.
struct Drain {
    decider: DrainDecider,
    visibility: Visibility,
    now: u64,
}

/// The moment in which the simulated drains begin.
const START: u64 = 10_000;

fn drain(change: impl FnOnce(&mut DrainSettings)) -> Drain {
    let mut settings = DrainSettings {
        deadline: Duration::from_secs(20),
        shares_listener: false,
        handles_stop_signal: false,
        ends_connections: false,
    };
    change(&mut settings);
    Drain { decider: DrainDecider::new(settings), visibility: Visibility::Full, now: START }
}

impl Drain {
    fn look(&mut self, queued: u32, connections: &mut [Simulated]) -> Decision {
        let now = self.now;
        let connections = connections
            .iter_mut()
            .enumerate()
            .map(|(at, one)| ProgramConnection::simulated(at as u64, Some(one.at(now).activity())));
        let scan =
            ConnectionScan { connections: connections.collect(), visibility: self.visibility };
        let elapsed = ms(now - START);
        let decision = self.decider.decide(elapsed, queued, &scan);
        if let Decision::Wait { half_close } = &decision {
            half_close.iter().for_each(|one| self.decider.record_half_close(one, elapsed));
        }
        self.now += 5;
        decision
    }

    /// Looks until the stop signal is sent, and returns after how many milliseconds, why, and how many were half-closed.
    fn run(
        &mut self,
        queued: u32,
        connections: &mut Vec<Simulated>,
        mut act: impl FnMut(u64, &mut Vec<Simulated>),
    ) -> (u64, StopReason, usize) {
        let mut half_closed = 0;
        loop {
            act(self.now, connections);
            match self.look(queued, connections) {
                Decision::SendStopSignal(reason) => {
                    return (self.now - 5 - START, reason, half_closed);
                }
                Decision::Wait { half_close } => half_closed += half_close.len(),
            }
        }
    }
}

#[test]
fn without_connections_the_drain_is_short_but_not_immediate() {
    let (after, reason, _) = drain(|_| {}).run(0, &mut Vec::new(), |_, _| {});
    assert_eq!((after, reason), (50, StopReason::Drained));
}

#[test]
fn connections_in_the_queue_are_waited_for_until_the_deadline() {
    let (after, reason, _) = drain(|_| {}).run(1, &mut Vec::new(), |_, _| {});
    assert_eq!((after, reason), (20_000, StopReason::Deadline));
}

#[test]
fn idle_connections_are_half_closed_in_small_numbers_and_busy_ones_never() {
    let mut connections = Vec::new();
    for at in 0..40 {
        let mut one = Simulated::connect(0);
        one.at(1000).request();
        if at != 7 {
            one.at(1100).respond();
        }
        connections.push(one);
    }
    let mut drain = drain(|_| {});
    let mut closed = Vec::new();
    for _ in 0..6 {
        let Decision::Wait { half_close } = drain.look(0, &mut connections) else {
            panic!("one is busy")
        };
        assert!(half_close.len() <= 16);
        closed.extend(half_close.iter().map(|one| one.inode));
    }
    assert_eq!(closed.len(), 39, "each once");
    assert!(!closed.contains(&7));
    // The program has closed them, and answers the last request after 5 s.
    let mut busy = vec![connections.swap_remove(7)];
    let mut begin = drain.now;
    let (_, reason, half_closed) = drain.run(0, &mut busy, |now, busy| {
        if now > begin + 5000 && !busy.is_empty() {
            busy.clear();
            begin = u64::MAX - 10_000;
        }
    });
    assert_eq!((reason, half_closed), (StopReason::Drained, 0));
}

#[test]
fn a_connection_that_ignores_the_end_of_its_input_does_not_hold_up_the_drain() {
    let mut one = Simulated::connect(0);
    one.at(1000).request().at(1100).respond();
    let (after, reason, half_closed) = drain(|_| {}).run(0, &mut vec![one], |_, _| {});
    assert_eq!((reason, half_closed), (StopReason::Drained, 1));
    assert!((2000..2100).contains(&after), "{after}");
}

#[test]
fn a_connection_that_the_program_never_closes_after_its_client_does_not_hold_up_the_drain() {
    let mut one = Simulated::connect(0);
    one.at(1000).request().at(1100).respond();
    one.activity.state = TcpState::PeerClosed;
    let (after, reason, half_closed) = drain(|_| {}).run(0, &mut vec![one], |_, _| {});
    assert_eq!((reason, half_closed), (StopReason::Drained, 0));
    assert!((2000..2100).contains(&after), "{after}");
}

#[test]
fn a_client_that_half_closed_gets_its_late_response() {
    let mut one = Simulated::connect(0);
    one.at(START - 100).request();
    one.activity.state = TcpState::PeerClosed;
    let (after, reason, _) = drain(|_| {}).run(0, &mut vec![one], |now, all| {
        if now == START + 8000 {
            all[0].at(now).respond();
        }
    });
    assert_eq!(reason, StopReason::Drained);
    assert!((10_000..10_100).contains(&after), "{after}");
}

#[test]
fn connections_without_a_pause_get_the_signal_after_three_seconds() {
    // Each request is sent right after the response to the one before, and takes 10 ms.
    let mut one = Simulated::connect(0);
    one.at(START - 10).request();
    let (after, reason, half_closed) = drain(|_| {}).run(0, &mut vec![one], |now, all| {
        if now % 10 == 0 {
            all[0].at(now - 1).respond().request();
        }
    });
    assert_eq!((after, reason, half_closed), (3000, StopReason::NeverIdle, 0));
}

#[test]
fn one_long_request_holds_up_the_signal_for_connections_without_a_pause() {
    let mut fast = Simulated::connect(0);
    fast.at(START - 10).request();
    let mut slow = Simulated::connect(0);
    slow.at(START - 10).request();
    let (after, reason, _) = drain(|_| {}).run(0, &mut vec![fast, slow], |now, all| {
        if now % 10 == 0 {
            all[0].at(now - 1).respond().request();
        }
        if now == START + 8000 {
            all.truncate(1);
        }
    });
    assert_eq!((after, reason), (8000, StopReason::NeverIdle));
}

#[test]
fn streams_are_left_to_a_program_that_handles_the_signal_and_else_last_until_the_deadline() {
    let run = |handles_stop_signal| {
        let mut one = Simulated::connect(0);
        one.at(1000).request().at(1100).respond();
        drain(|settings| settings.handles_stop_signal = handles_stop_signal).run(
            0,
            &mut vec![one],
            |now, all| {
                if now % 200 == 0 {
                    all[0].at(now).respond();
                }
            },
        )
    };
    assert_eq!(run(true), (2000, StopReason::NeverIdle, 0));
    assert_eq!(run(false), (20_000, StopReason::Deadline, 0));
}

#[test]
fn without_the_right_to_half_close_a_moment_without_requests_is_awaited() {
    let mut busy = Simulated::connect(0);
    busy.at(START - 100).request();
    let mut idle = Simulated::connect(0);
    idle.at(1000).request().at(1100).respond();
    let mut drain = drain(|_| {});
    drain.visibility = Visibility::ReadOnly;
    let (after, reason, half_closed) = drain.run(0, &mut vec![idle, busy], |now, all| {
        if now == START + 700 {
            all[1].at(now).respond();
        }
    });
    assert_eq!((reason, half_closed), (StopReason::OnlyIdleLeft, 0));
    assert!((720..740).contains(&after), "{after}");
}

#[test]
fn a_program_that_hides_its_connections_gets_the_signal_when_its_queue_is_empty() {
    let mut drain = drain(|_| {});
    drain.visibility = Visibility::Partial;
    let (after, reason, _) = drain.run(0, &mut Vec::new(), |_, _| {});
    assert_eq!((after, reason), (50, StopReason::CannotSee));
}

#[test]
fn with_a_shared_socket_the_signal_is_sent_between_requests_or_after_two_seconds() {
    let mut one = Simulated::connect(0);
    one.at(START - 10).request();
    let (after, reason, half_closed) =
        drain(|settings| settings.shares_listener = true).run(0, &mut vec![one], |now, all| {
            if now == START + 100 {
                all[0].at(now).respond();
            }
        });
    assert_eq!((reason, half_closed), (StopReason::StillGetsConnections, 0));
    assert!((120..140).contains(&after), "{after}");
    let mut busy = Simulated::connect(0);
    busy.at(START - 10).request();
    let (after, ..) =
        drain(|settings| settings.shares_listener = true).run(0, &mut vec![busy], |_, _| {});
    assert_eq!(after, 2000);
}

#[test]
fn new_connections_that_keep_coming_are_noticed() {
    // The primary is dead, or stops as a whole: nobody sends new connections elsewhere.
    let (after, reason, _) = drain(|_| {}).run(0, &mut Vec::new(), |now, all| {
        if now % 100 == 0 {
            let mut one = Simulated::connect(now);
            one.at(now).request();
            all.push(one);
        }
    });
    assert_eq!((after, reason), (2000, StopReason::StillGetsConnections));
}

#[test]
fn connections_that_were_queued_before_the_drain_are_no_new_ones() {
    // A program that accepts late: its connections are older than the drain.
    let (_, reason, _) = drain(|_| {}).run(0, &mut Vec::new(), |now, all| {
        if now % 500 == 0 && now < START + 5000 {
            all.push(Simulated::connect(START - 100));
        }
        if now == START + 6000 {
            all.clear();
        }
    });
    assert_eq!(reason, StopReason::Drained);
}
