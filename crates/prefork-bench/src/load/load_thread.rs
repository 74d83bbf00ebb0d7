//! One thread of the load: its connections on one epoll, and when each of them sends. What a connection brings is
//! dealt with in `news.rs`.

mod news;

use std::collections::VecDeque;
use std::io;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollTimeout};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::connection::{self as slot, EDGES, Sent, Slot};
use super::counters::{Failure, Tally};
use super::http_response::Expect;
use super::plan::Plan;
use super::request_schedule::Pace;
use super::round_state::Shared;
use super::target_url::Address;

/// How often limits are looked at.
const TICK: u8 = 20;
/// The name of the timer among the events.
const TIMER: u64 = u64::MAX;

/// The connections of a thread.
pub(crate) struct Lane<'a> {
    plan: &'a Plan,
    address: &'a Address,
    shared: &'a Shared,
    /// The request, as often as it fits on the way, and the length of one.
    requests: Vec<u8>,
    length: usize,
    expect: Expect,
    epoll: Epoll,
    slots: Vec<Slot>,
    /// Slots whose next request may be sent from then on, the earliest first.
    resting: VecDeque<(u64, usize)>,
    /// The open loop: its schedule, slots that have nothing to do, and the alarm for the next request.
    open: Option<(Pace, VecDeque<usize>, TimerFd)>,
    /// Requests on the way.
    on_the_way: usize,
    /// Responses and failures that the others have not been told of.
    untold: [u64; 2],
    buffer: Vec<u8>,
    tally: Tally,
}

impl<'a> Lane<'a> {
    pub(crate) fn new(
        plan: &'a Plan,
        address: &'a Address,
        shared: &'a Shared,
        lane: usize,
    ) -> io::Result<Lane<'a>> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let request = plan.request();
        let slots: Vec<Slot> = (0..plan.share(lane)).map(|_| Slot::new()).collect();
        let open = match plan.rate {
            Some(rate) => {
                let timer = TimerFd::new(
                    ClockId::CLOCK_MONOTONIC,
                    TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC,
                )?;
                epoll.add(&timer, EpollEvent::new(EDGES, TIMER))?;
                Some((Pace::new(rate, lane, plan.lanes()), (0..slots.len()).collect(), timer))
            }
            None => None,
        };
        Ok(Lane {
            plan,
            address,
            shared,
            length: request.len(),
            // Enough for one write to fill the pipeline, unless a request is large.
            requests: request.repeat(plan.pipeline.min(64 * 1024 / request.len() + 1)),
            expect: Expect { no_body: plan.method == "HEAD", pids: plan.pids.clone() },
            epoll,
            slots,
            resting: VecDeque::new(),
            open,
            on_the_way: 0,
            untold: [0; 2],
            buffer: vec![0; 64 * 1024],
            tally: Tally::new(),
        })
    }

    /// Runs until the round is over and everything sent is answered or given up.
    pub(crate) fn run(mut self) -> io::Result<Tally> {
        let mut events = [EpollEvent::empty(); 256];
        let mut next_look = 0;
        if self.open.is_none() {
            self.resting = (0..self.slots.len()).map(|at| (0, at)).collect();
        }
        loop {
            let now = self.shared.now();
            let end = self.shared.end();
            self.shared.tell(std::mem::take(&mut self.untold));
            self.send_what_is_due(now, end)?;
            if now >= next_look {
                self.give_up_late_ones(now);
                next_look = now + u64::from(TICK) * 1_000_000;
            }
            if now >= end && (self.is_done(end) || now >= self.shared.give_up()) {
                break;
            }
            let ready = match self.epoll.wait(&mut events, EpollTimeout::from(TICK)) {
                Err(nix::errno::Errno::EINTR) => 0,
                ready => ready?,
            };
            for event in &events[..ready] {
                if event.data() != TIMER {
                    self.turn(event.data() as usize, event.events());
                }
            }
        }
        self.leave();
        Ok(self.tally)
    }

    fn is_done(&self, end: u64) -> bool {
        let unsent = self.open.as_ref().is_some_and(|(pace, ..)| pace.due() < end);
        self.on_the_way == 0 && !unsent
    }

    fn send_what_is_due(&mut self, now: u64, end: u64) -> io::Result<()> {
        while let Some((at, slot)) = self.resting.front().copied()
            && at <= now
        {
            self.resting.pop_front();
            if now < end {
                self.send(slot, now, now, self.plan.pipeline);
            }
        }
        loop {
            let Some((pace, idle, timer)) = &mut self.open else { return Ok(()) };
            let due = pace.due();
            if due >= end || idle.is_empty() {
                return Ok(());
            }
            if due > now {
                let wait = TimeSpec::from_duration(std::time::Duration::from_nanos(due - now));
                timer.set(Expiration::OneShot(wait), TimerSetTimeFlags::empty())?;
                return Ok(());
            }
            pace.sent();
            // The one that has rested longest, so that all take part.
            if let Some(slot) = idle.pop_front() {
                self.send(slot, due, now, 1);
            }
        }
    }

    /// Sends so many requests, over a new connection if there is none.
    fn send(&mut self, at: usize, due: u64, now: u64, count: usize) {
        let slot = &mut self.slots[at];
        slot.waiting.extend(std::iter::repeat_n(Sent { due, at: now }, count));
        slot.owed += count * self.length;
        slot.listed = false;
        self.on_the_way += count;
        if slot.socket.is_none() {
            match self.address.begin() {
                Ok(socket) => {
                    self.tally.connections += 1;
                    slot.socket = Some(socket);
                }
                Err(e) => return self.fail(at, slot::kind(&e), now),
            }
        }
        if let Err(why) = slot.write(&self.requests, self.length, &self.epoll, at) {
            self.fail(at, why, now);
        }
    }

    /// What is on the way still, or was never sent though it was due, has no answer.
    fn leave(&mut self) {
        let now = self.shared.now();
        let unsent = self.open.iter().flat_map(|(pace, ..)| pace.left(self.shared.end()));
        let unsent = unsent.map(|due| (Sent { due, at: now }, None));
        let waiting = |slot: &'_ Slot| -> Vec<_> {
            slot.waiting.iter().map(|sent| (*sent, slot.process)).collect()
        };
        let sent = self.slots.iter().flat_map(waiting);
        let left: Vec<(Sent, Option<usize>)> = sent.chain(unsent).collect();
        for (sent, process) in left {
            match self.shared.is_abandoned() {
                true => self.tally.abandoned += 1,
                false => self.lose(sent, Failure::TimedOut, now, process),
            }
        }
    }
}
