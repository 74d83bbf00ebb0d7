//! Relays open connections from a draining worker to one that keeps serving.
//!
//! The primary never reads from these connections and keeps no duplicate: a connection that was sent is only in the
//! receiver's channel. The primary does not wait either: what no channel has room for stays in a queue, and while that
//! is full, the channels of the workers that fill it are not read.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use super::event_log::{self, has_passed_power_of_two};
use super::{Primary, WorkerProcess};
use crate::channel::{HandoverState, WorkerCommand};
use crate::scoreboard::WorkerLoad;
use prefork_supervisor::{Generation, Supervisor};

/// Maximum number of waiting connections. Each holds a descriptor of the primary.
const MAX_PENDING_HANDOVERS: usize = 256;

/// How long to wait before full channels are tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(2);

/// How long a connection waits for a worker. After that, the client is better off with a new connection.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection that waits for a worker to take it.
#[derive(Debug)]
struct PendingHandover {
    fd: OwnedFd,
    /// Announces the connection, with the bytes that were read from it already.
    announcement: WorkerCommand,
    received: Instant,
}

/// The queue of connections that wait for a worker, oldest first.
#[derive(Debug, Default)]
pub(super) struct HandoverRelay {
    waiting: VecDeque<PendingHandover>,
    lost: u64,
}

impl HandoverRelay {
    pub(super) fn push(&mut self, fd: OwnedFd, state: HandoverState, now: Instant) {
        let announcement = WorkerCommand::TakeOverConnection(state);
        self.waiting.push_back(PendingHandover { fd, announcement, received: now });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= MAX_PENDING_HANDOVERS
    }

    /// Returns how long to wait before the next try, if connections wait.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        (!self.waiting.is_empty()).then_some(RETRY_INTERVAL)
    }

    /// Counts connections that had to be closed. Logs the first, the second, the fourth and so on.
    pub(super) fn count_lost(&mut self, count: usize, reason: &str) {
        let before = self.lost;
        self.lost += count as u64;
        if has_passed_power_of_two(before, self.lost) {
            event_log::log_lost_handovers(self.lost, reason);
        }
    }

    /// Sends each connection to the best receiver with room, and closes those that have waited too long.
    fn deliver(&mut self, receivers: &mut [HandoverReceiver<'_>], now: Instant) {
        while let Some(pending) = self.waiting.pop_front() {
            receivers.sort_by_key(HandoverReceiver::rank);
            if !receivers.iter_mut().any(|receiver| receiver.send(&pending)) {
                self.waiting.push_front(pending);
                break;
            }
        }
        let is_late = |pending: &&PendingHandover| now >= pending.received + HANDOVER_TIMEOUT;
        let late = self.waiting.iter().take_while(is_late).count();
        self.waiting.drain(..late);
        self.count_lost(late, "no worker took them in time");
    }

    fn close_all(&mut self) {
        let count = self.waiting.len();
        self.waiting.clear();
        self.count_lost(count, "the cluster is stopping");
    }
}

/// A worker that can take over connections.
struct HandoverReceiver<'a> {
    process: &'a mut WorkerProcess,
    load: WorkerLoad,
}

impl HandoverReceiver<'_> {
    /// Orders receivers: responsive before stalled, then the newest generation, then the fewest connections.
    ///
    /// The newest generation will not have to hand them over again soon. A worker that reports a false load gets more
    /// or fewer connections, nothing worse.
    fn rank(&self) -> (bool, Reverse<Generation>, u64) {
        let under_way = self.process.handovers_sent.saturating_sub(self.load.taken_over);
        let connections = self.load.open_connections.saturating_add(under_way);
        (self.load.is_stale, Reverse(self.process.tag.generation), connections)
    }

    /// Returns whether the channel had room. A broken channel is noticed when it is read.
    fn send(&mut self, pending: &PendingHandover) -> bool {
        let Some(channel) = &self.process.channel else { return false };
        let is_sent = channel.send_with_fd(&pending.announcement, pending.fd.as_fd()).is_ok();
        self.process.handovers_sent += u64::from(is_sent);
        is_sent
    }
}

impl Primary {
    /// Relays waiting connections. Called when all events are handled, so that the supervisor knows which workers
    /// serve.
    pub(super) fn relay_handovers(&mut self, now: Instant) {
        if self.handover.is_empty() {
            return;
        }
        if self.supervisor.is_stopping() {
            return self.handover.close_all();
        }
        let Primary { supervisor, scoreboard, workers, handover, .. } = self;
        let now_ms = prefork_os::system::monotonic_ms();
        let mut receivers: Vec<HandoverReceiver<'_>> = workers
            .values_mut()
            .filter(|one| one.channel.is_some() && can_receive(one, supervisor))
            .map(|process| HandoverReceiver {
                load: scoreboard.worker_load(process.pages, now_ms),
                process,
            })
            .collect();
        handover.deliver(&mut receivers, now);
    }
}

/// Returns whether the worker serves, or drains as one of the last, which keep what they have.
fn can_receive(process: &WorkerProcess, supervisor: &Supervisor) -> bool {
    let is_one_of_the_last = supervisor.is_emptying() && process.tag.slot.is_web();
    is_one_of_the_last || (!process.released && process.serves_web(supervisor))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::PrimaryChannelEnd;
    use crate::scoreboard::Scoreboard;
    use prefork_os::fd_passing::{ReceivedMessage, create_seqpacket_pair, receive_message};
    use prefork_supervisor::{Slot, WEB_KIND, WorkerId, WorkerTag};

    fn worker(id: u64, generation: u64, board: &mut Scoreboard) -> (WorkerProcess, OwnedFd) {
        let generation = Generation(generation);
        let tag =
            WorkerTag { id: WorkerId(id), slot: Slot(0), generation, pid: None, kind: WEB_KIND };
        let (ours, theirs) = create_seqpacket_pair().expect("pair");
        let pages = board.allocate_pages(tag, 1).expect("page");
        (WorkerProcess::new(tag, 1, Some(PrimaryChannelEnd::new(ours)), pages), theirs)
    }

    fn push(relay: &mut HandoverRelay, count: usize, now: Instant) {
        for _ in 0..count {
            let (fd, _) = create_seqpacket_pair().expect("a descriptor");
            relay.push(fd, HandoverState::accepted(), now);
        }
    }

    fn count_received(end: &OwnedFd) -> usize {
        let mut buffer = [0; 8];
        let got = || {
            receive_message(end, &mut buffer)
                .is_ok_and(|r| matches!(r, ReceivedMessage::Message(..)))
        };
        std::iter::repeat_with(got).take_while(|got| *got).count()
    }

    #[test]
    fn spreads_connections_evenly_over_the_newest_generation() {
        let mut board = Scoreboard::create(3).expect("board");
        let (mut old, a) = worker(1, 1, &mut board);
        let (mut new, b) = worker(2, 2, &mut board);
        let (mut full, c) = worker(3, 2, &mut board);
        let mut receivers = [&mut old, &mut new, &mut full]
            .map(|process| HandoverReceiver { process, load: WorkerLoad::default() });
        receivers[2].load.open_connections = 4;
        let (mut relay, now) = (HandoverRelay::default(), Instant::now());
        push(&mut relay, 10, now);
        relay.deliver(&mut receivers, now);
        assert_eq!([count_received(&a), count_received(&b), count_received(&c)], [0, 7, 3]);
        assert_eq!(relay.retry_after(), None);
    }

    #[test]
    fn a_stalled_worker_gets_no_connection_while_another_one_is_responsive() {
        let mut board = Scoreboard::create(2).expect("board");
        let (mut stalled, a) = worker(1, 2, &mut board);
        let (mut busy, b) = worker(2, 1, &mut board);
        let mut receivers = [&mut stalled, &mut busy]
            .map(|process| HandoverReceiver { process, load: WorkerLoad::default() });
        receivers[0].load.is_stale = true;
        receivers[1].load.open_connections = 1_000_000;
        let (mut relay, now) = (HandoverRelay::default(), Instant::now());
        push(&mut relay, 5, now);
        relay.deliver(&mut receivers, now);
        assert_eq!([count_received(&a), count_received(&b)], [0, 5]);
    }

    #[test]
    fn a_full_channel_is_skipped_and_no_connection_is_lost() {
        let mut board = Scoreboard::create(2).expect("board");
        let (mut one, a) = worker(1, 1, &mut board);
        let (mut two, b) = worker(2, 1, &mut board);
        let (mut relay, now) = (HandoverRelay::default(), Instant::now());
        let mut got = 0;
        while relay.retry_after().is_none() {
            push(&mut relay, 50, now);
            let mut receivers = [&mut one, &mut two]
                .map(|process| HandoverReceiver { process, load: WorkerLoad::default() });
            relay.deliver(&mut receivers, now);
            got += 50;
            assert!(got < 100_000, "a channel is bounded");
        }
        let mut delivered = count_received(&a) + count_received(&b);
        let mut receivers = [&mut one, &mut two]
            .map(|process| HandoverReceiver { process, load: WorkerLoad::default() });
        relay.deliver(&mut receivers, now);
        delivered += count_received(&a) + count_received(&b);
        assert_eq!((delivered, relay.lost, relay.retry_after()), (got, 0, None));
    }

    #[test]
    fn closes_connections_that_no_worker_takes_in_time() {
        let (mut relay, now) = (HandoverRelay::default(), Instant::now());
        push(&mut relay, MAX_PENDING_HANDOVERS, now);
        assert!(relay.is_full());
        relay.deliver(&mut [], now + HANDOVER_TIMEOUT - RETRY_INTERVAL);
        assert_eq!(relay.lost, 0);
        relay.deliver(&mut [], now + HANDOVER_TIMEOUT);
        assert_eq!((relay.lost, relay.retry_after()), (MAX_PENDING_HANDOVERS as u64, None));
    }
}
