//! Watching workers from outside: loops that do not turn, and limits that call for a fresh start.
//!
//! A frozen loop is told by its beat, a number that changes as long as the loop turns. Time counts against it
//! only as far as *we* were awake to see it: when the primary was stopped, or the machine suspended, one long
//! gap between two looks counts as one short one, and brings no verdict: the workers may have been stopped with
//! us. So nobody is killed for a beat that nobody could see.

use std::time::{Duration, Instant};

use super::action::{Action, ExitCause, LogEvent, RecycleReason};
use super::backoff::Allowance;
use super::event::HealthSample;
use super::{ClusterPhase, Supervisor, WorkerState};
use crate::identity::WorkerId;

/// How often workers are looked at. A stall is noticed this much late at most.
const INTERVAL: Duration = Duration::from_millis(500);

/// How often where slots have sockets of their own. A worker beats as often.
const CLOSELY: Duration = Duration::from_millis(100);

/// A loop that has not turned for this long is late: if its slot has a socket, a sibling serves it meanwhile. With a
/// beat and a look of 100 ms each, whoever waits behind a loop that froze is served within half a second.
const LATE: Duration = Duration::from_millis(300);

/// A longer gap between two looks was slept through.
const ASLEEP: Duration = Duration::from_secs(1);

/// How long a worker may take to dump core after SIGABRT before it is killed.
const DUMPING: Duration = Duration::from_secs(2);

/// When a recycled worker's successor did not come up, this long until the next try.
const RECYCLE_PAUSE: Duration = Duration::from_secs(10);

/// When we looked, and when we look next.
#[derive(Debug)]
pub(super) struct Watch {
    next: Option<Instant>,
    /// A look was asked for and is not answered yet.
    looking: bool,
    last: Option<Instant>,
    /// When memory was last looked at, which takes a file of each worker.
    weighed: Option<Instant>,
    /// No worker is recycled before.
    pause: Option<Instant>,
    /// WorkerState of the generator of spreads.
    spread: u64,
}

impl Watch {
    pub(super) fn new(seed: u64) -> Watch {
        let (next, last, weighed, pause) = (None, None, None, None);
        Watch { next, looking: false, last, weighed, pause, spread: seed }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.next
    }

    /// The next worker's share of the limits, from 0 to 1.
    pub(super) fn spread(&mut self) -> f64 {
        // The additive constant is the golden ratio: neighbours land far apart.
        self.spread = self.spread.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (self.spread >> 11) as f64 / (1u64 << 53) as f64
    }
}

impl Supervisor {
    /// Asks for a look when it is time.
    pub(super) fn look(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.watch.next.is_some_and(|next| next <= now) {
            self.watch.next = None;
            self.watch.looking = true;
            let limited = self.limits_of_all().any(|one| one.has_memory_limit());
            let due = self.watch.weighed.is_none_or(|at| now.duration_since(at) >= INTERVAL);
            let with_memory = limited && due;
            if with_memory {
                self.watch.weighed = Some(now);
            }
            actions.push(Action::SampleHealth { with_memory });
        }
    }

    /// Sees to it that a look is due as long as there is something to look for, and one at a time. Asked after
    /// every event, since a reload may bring limits where there were none.
    pub(super) fn keep_watch(&mut self, now: Instant) {
        let closely = self.watches_slots();
        let next = self.watch.next.unwrap_or(now + if closely { CLOSELY } else { INTERVAL });
        let watchful = (closely || self.is_watchful()) && !self.watch.looking;
        self.watch.next = watchful.then_some(next);
    }

    /// No worker is recycled for a while: the last try failed.
    pub(super) fn pause_recycling(&mut self, now: Instant) {
        self.watch.pause = Some(now + RECYCLE_PAUSE);
    }

    pub(super) fn observed(
        &mut self,
        now: Instant,
        samples: Vec<HealthSample>,
        actions: &mut Vec<Action>,
    ) {
        if !self.watch.looking {
            return;
        }
        self.watch.looking = false;
        let gap = self.watch.last.map_or(INTERVAL, |last| now.duration_since(last));
        self.watch.last = Some(now);
        let mut worn = None;
        for one in samples {
            if let Some(member) = self.members.get_mut(&one.worker) {
                member.full = one.is_full;
            }
            self.feel_pulse(now, gap, &one, actions);
            self.weigh(&one, actions);
            worn = worn.or_else(|| self.is_worn(now, &one).map(|limit| (one.worker, limit)));
        }
        if let Some((worker, limit)) = worn {
            self.recycle(now, worker, limit, actions);
        }
    }

    /// The kernel says whether all of the worker was stopped by a signal: long before its beat would.
    pub(super) fn stopped(&mut self, worker: WorkerId, stopped: bool) {
        if let Some(member) = self.members.get_mut(&worker) {
            member.pulse.stopped = stopped;
        }
    }

    fn feel_pulse(
        &mut self,
        now: Instant,
        gap: Duration,
        seen: &HealthSample,
        actions: &mut Vec<Action>,
    ) {
        let (warn, limit) = (self.policy.stall_warn, self.policy.stall_timeout);
        let Some(member) = self.members.get_mut(&seen.worker) else { return };
        if !matches!(member.state, WorkerState::Serving | WorkerState::Draining { .. }) {
            return;
        }
        let (worker, pulse) = (member.tag, &mut member.pulse);
        if pulse.beat != Some(seen.heartbeat) {
            if pulse.reported {
                actions.push(Action::Log(LogEvent::Recovered { worker, stalled_for: pulse.still }));
            }
            pulse.beat = Some(seen.heartbeat);
            pulse.still = Duration::ZERO;
            (pulse.reported, pulse.late) = (false, false);
            return;
        }
        pulse.still += gap.min(ASLEEP);
        if gap > ASLEEP {
            return;
        }
        pulse.late = pulse.still >= LATE;
        let (stalled_for, current_request) = (pulse.still, seen.current_request.clone());
        if limit.is_some_and(|limit| stalled_for >= limit) {
            member.state = WorkerState::Aborted { deadline: now + DUMPING };
            actions.push(Action::Log(LogEvent::StallTimedOut {
                worker,
                stalled_for,
                current_request,
            }));
            actions.push(Action::Abort(seen.worker));
        } else if warn.is_some_and(|warn| stalled_for >= warn) && !pulse.reported {
            pulse.reported = true;
            actions.push(Action::Log(LogEvent::Stalled { worker, stalled_for, current_request }));
        }
    }

    fn weigh(&mut self, seen: &HealthSample, actions: &mut Vec<Action>) {
        let Some(member) = self.members.get(&seen.worker) else { return };
        let hard = self.limits_of(member.tag.kind).max_rss_hard;
        let Some((memory, limit)) = seen.memory.zip(hard) else { return };
        if memory > limit
            && !matches!(member.state, WorkerState::Forking | WorkerState::Killed { .. })
        {
            let worker = member.tag;
            actions.push(Action::Log(LogEvent::MemoryLimitExceeded { worker, memory, limit }));
            self.kill(seen.worker, ExitCause::MemoryLimit, actions);
        }
    }

    /// The limit that the worker has reached, if it is one that serves.
    fn is_worn(&self, now: Instant, seen: &HealthSample) -> Option<RecycleReason> {
        let member = self.members.get(&seen.worker)?;
        let slot = self.places.iter().position(|place| place.holder == Some(seen.worker))?;
        // One that is worn as soon as it serves would be replaced for ever, as fast as it boots.
        let proven = member.served_for(now).is_some_and(|time| time >= self.policy.min_uptime);
        if member.state != WorkerState::Serving || self.is_crowded(slot) || !proven {
            return None;
        }
        let share = 1.0 - member.spread / 5.0;
        let age = now.duration_since(member.born);
        let limits = self.limits_of(member.tag.kind);
        if let Some(limit) = limits.max_rss
            && seen.memory.is_some_and(|memory| memory > limit)
        {
            return seen.memory.map(RecycleReason::Memory);
        }
        if let Some(limit) = limits.max_requests
            && seen.requests as f64 >= limit as f64 * share
        {
            return Some(RecycleReason::Requests(seen.requests));
        }
        if let Some(limit) = limits.max_lifetime
            && age >= limit.mul_f64(share)
        {
            return Some(RecycleReason::Lifetime(age));
        }
        None
    }

    /// Replaces one worker, if nothing else is being replaced.
    fn recycle(
        &mut self,
        now: Instant,
        worker: WorkerId,
        limit: RecycleReason,
        actions: &mut Vec<Action>,
    ) {
        let Some(slot) = self.places.iter().position(|place| place.holder == Some(worker)) else {
            return;
        };
        let busy = self.phase != ClusterPhase::Running
            || self.roll.is_some()
            || self.handoff.is_some()
            || self.backoff.allowance() != Allowance::All
            || self.places.iter().any(|place| place.successor.is_some())
            || self.watch.pause.is_some_and(|until| now < until);
        if busy {
            return;
        }
        if let Some(member) = self.members.get_mut(&worker) {
            member.worn = Some(limit);
            actions.push(Action::Log(LogEvent::Recycling { worker: member.tag, limit }));
        }
        let generation = self.places[slot].generation;
        self.places[slot].successor = Some(self.fork(now, slot, generation, actions));
    }
}
