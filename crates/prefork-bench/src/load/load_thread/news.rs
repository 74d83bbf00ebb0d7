//! What a connection brings: responses, and its end.

use std::io::{self, Read};

use nix::sys::epoll::EpollFlags;

use super::super::connection::{self as slot, Sent, Slot};
use super::super::counters::Failure;
use super::super::http_response::{Answer, Unreadable};
use super::Lane;
use crate::chaos::What;

/// How long a connection rests after a failure: who refuses is not asked a million times a second.
const REST: u64 = 10_000_000;

/// What a response that cannot be read counts as.
fn failure(why: Unreadable) -> Failure {
    match why {
        Unreadable::Malformed => Failure::Malformed,
        Unreadable::TooManyFields => Failure::TooManyFields,
        Unreadable::HeadTooLarge => Failure::HeadTooLarge,
        Unreadable::ChunkLineTooLong => Failure::ChunkLineTooLong,
    }
}

impl Lane<'_> {
    /// News of one connection.
    pub(crate) fn turn(&mut self, at: usize, flags: EpollFlags) {
        if flags.contains(EpollFlags::EPOLLOUT) && self.slots[at].owed > 0 {
            let written = self.slots[at].write(&self.requests, self.length, &self.epoll, at);
            if let Err(why) = written {
                return self.fail(at, why, self.shared.now());
            }
        }
        // Every edge is told once: one that says the end must be read to the end.
        let to_the_end =
            flags.intersects(EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR);
        let mut buffer = std::mem::take(&mut self.buffer);
        while let Some(mut socket) = self.slots[at].socket.as_ref() {
            let outcome = socket.read(&mut buffer);
            let now = self.shared.now();
            match outcome {
                Ok(0) => self.ended(at, now),
                Ok(n) => {
                    let goes_on = self.take(at, &buffer[..n], now);
                    if !goes_on || (n < buffer.len() && !to_the_end) {
                        break;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    self.fail(at, slot::kind(&e), now);
                    break;
                }
            }
        }
        self.buffer = buffer;
    }

    /// Uses what a connection has brought; `false` if that was its end.
    fn take(&mut self, at: usize, bytes: &[u8], now: u64) -> bool {
        let (mut used, mut answered) = (0, 0);
        while used < bytes.len() {
            match self.slots[at].reader.feed(&bytes[used..], &self.expect) {
                Ok((taken, None)) => used += taken,
                Ok((taken, Some(answer))) => {
                    used += taken;
                    let Some(sent) = self.slots[at].waiting.pop_front() else {
                        self.fail(at, Failure::Malformed, now);
                        return false;
                    };
                    self.count(at, sent, answer, now);
                    answered += 1;
                    if self.plan.close || !answer.keeps {
                        self.fail(at, Failure::ClosedEarly, now);
                        return false;
                    }
                }
                Err(why) => {
                    self.fail(at, failure(why), now);
                    return false;
                }
            }
        }
        if answered > 0 {
            match &mut self.open {
                Some((_, idle, _)) => {
                    self.slots[at].listed = true;
                    idle.push_back(at);
                }
                None if now < self.shared.end() => self.send(at, now, now, answered),
                None => {}
            }
        }
        true
    }

    fn count(&mut self, at: usize, sent: Sent, answer: Answer, now: u64) {
        self.on_the_way -= 1;
        let begin = self.shared.begin();
        if now >= begin && now < self.shared.end() {
            self.tally.in_time += 1;
            self.tally.bytes += answer.bytes;
            self.tally.happened(now - begin, false);
        }
        self.untold[0] += 1;
        if sent.due < begin {
            self.tally.warm_up[0] += 1;
            return;
        }
        let slot = &mut self.slots[at];
        let latency = now.saturating_sub(sent.due);
        slot.process = self.tally.answered(answer.status, latency, answer.pid, slot.process);
        if self.plan.chaos.is_none() {
            return;
        }
        let process = slot.process;
        if answer.status == 503 {
            self.tally.odd(What::Refused, sent.due, now, process);
        } else if latency > self.plan.late.as_nanos() as u64 {
            self.tally.odd(What::Late, sent.due, now, process);
        }
    }

    fn ended(&mut self, at: usize, now: u64) {
        if let Some(answer) = self.slots[at].reader.end()
            && let Some(sent) = self.slots[at].waiting.pop_front()
        {
            self.count(at, sent, answer, now);
        }
        self.fail(at, Failure::ClosedEarly, now);
    }

    /// The connection is over. What was on the way has failed; that may be nothing.
    pub(crate) fn fail(&mut self, at: usize, why: Failure, now: u64) {
        let slot = &mut self.slots[at];
        let lost = std::mem::take(&mut slot.waiting);
        let (listed, process) = (slot.listed, slot.process);
        // Closing it takes it off the epoll.
        *slot = Slot::new();
        slot.listed = true;
        self.on_the_way -= lost.len();
        for sent in &lost {
            self.lose(*sent, why, now, process);
        }
        match &mut self.open {
            _ if listed => {}
            Some((_, idle, _)) => idle.push_back(at),
            None if lost.is_empty() => self.resting.push_front((now, at)),
            None => self.resting.push_back((now + REST, at)),
        }
    }

    pub(crate) fn lose(&mut self, sent: Sent, why: Failure, now: u64, process: Option<usize>) {
        self.untold[1] += 1;
        let begin = self.shared.begin();
        if sent.due < begin {
            self.tally.warm_up[1] += 1;
            return;
        }
        self.tally.failed(why);
        if self.plan.chaos.is_some() {
            let what = if why == Failure::Refused { What::Refused } else { What::Lost };
            self.tally.odd(what, sent.due, now, process);
        }
        if now >= begin && now < self.shared.end() {
            self.tally.happened(now - begin, true);
        }
    }

    pub(crate) fn give_up_late_ones(&mut self, now: u64) {
        let limit = self.plan.timeout.as_nanos() as u64;
        for at in 0..self.slots.len() {
            if self.slots[at].waiting.front().is_some_and(|sent| sent.at + limit <= now) {
                self.fail(at, Failure::TimedOut, now);
            }
        }
    }
}
