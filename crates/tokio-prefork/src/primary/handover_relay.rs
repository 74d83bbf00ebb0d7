//! Connections on their way from a draining worker to one that serves on.
//!
//! The primary never reads from them and keeps no duplicate: what it has sent is in the receiver's channel
//! alone. It does not wait either. What no channel has room for stays in a queue; while that is full, the channels
//! of those who fill it are not read, so that they wait, and not everybody else.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use super::{Primary, WorkerProcess, event_log};
use crate::channel::{ToWorker, Unread};
use crate::scoreboard::Load;
use prefork_supervisor::Generation;

/// So many may wait. Each holds a descriptor of the primary, which needs some for itself.
const MOST: usize = 256;

/// How long to wait before full channels are tried again.
const PAUSE: Duration = Duration::from_millis(2);

/// How long a connection waits for a worker that serves. A client that gets no answer for so long is better off
/// with a new connection.
const PATIENCE: Duration = Duration::from_secs(5);

/// One connection under way.
#[derive(Debug)]
struct PendingHandover {
    fd: OwnedFd,
    word: ToWorker,
    /// When it came.
    since: Instant,
}

/// The connections that wait, oldest first.
#[derive(Debug, Default)]
pub(super) struct HandoverRelay {
    waiting: VecDeque<PendingHandover>,
    lost: u64,
}

impl HandoverRelay {
    pub(super) fn take_in(&mut self, fd: OwnedFd, unread: Unread, now: Instant) {
        self.waiting.push_back(PendingHandover { fd, word: ToWorker::Arrive(unread), since: now });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= MOST
    }

    /// When to look at it again, if nothing else happens.
    pub(super) fn pause(&self) -> Option<Duration> {
        (!self.waiting.is_empty()).then_some(PAUSE)
    }

    /// Counts connections that had to be closed; tells of the first, the second, the fourth and so on.
    pub(super) fn lose(&mut self, count: usize, why: &str) {
        let before = self.lost;
        self.lost += count as u64;
        if before.checked_ilog2() != self.lost.checked_ilog2() {
            event_log::lost_connections(self.lost, why);
        }
    }

    /// Sends what waits to the best of `takers` that has room, and gives up what waited too long.
    fn deliver(&mut self, takers: &mut [Taker<'_>], now: Instant) {
        while let Some(parcel) = self.waiting.pop_front() {
            takers.sort_by_key(Taker::rank);
            if !takers.iter_mut().any(|taker| taker.send(&parcel)) {
                self.waiting.push_front(parcel);
                break;
            }
        }
        let late = self.waiting.iter().take_while(|parcel| now >= parcel.since + PATIENCE).count();
        self.waiting.drain(..late);
        self.lose(late, "no worker took them");
    }

    fn give_up(&mut self) {
        let count = self.waiting.len();
        self.waiting.clear();
        self.lose(count, "the cluster is stopping");
    }
}

/// A worker that can take connections.
struct Taker<'a> {
    child: &'a mut WorkerProcess,
    load: Load,
}

impl Taker<'_> {
    /// Those whose loop turns first; then the newest generation, as it will not have to pass them on soon; then
    /// the one with the fewest connections, open or under way. A worker that lies gets more or fewer of them,
    /// nothing worse.
    fn rank(&self) -> (bool, Reverse<Generation>, u64) {
        let under_way = self.child.sent.saturating_sub(self.load.taken_over);
        let connections = self.load.open.saturating_add(under_way);
        (self.load.stale, Reverse(self.child.tag.generation), connections)
    }

    /// Whether there was room. A channel that is broken is found out when it is read.
    fn send(&mut self, parcel: &PendingHandover) -> bool {
        let Some(channel) = &self.child.channel else { return false };
        let sent = channel.send_with(&parcel.word, parcel.fd.as_fd()).is_ok();
        self.child.sent += u64::from(sent);
        sent
    }
}

impl Primary {
    /// Moves connections on. Called when all events are handled, so that the supervisor knows who serves.
    pub(super) fn relay(&mut self, now: Instant) {
        if self.handover.waiting.is_empty() {
            return;
        }
        if self.supervisor.is_stopping() {
            return self.handover.give_up();
        }
        let (mind, board) = (&self.supervisor, &self.scoreboard);
        let now_ms = prefork_os::system::monotonic_ms();
        let mut takers: Vec<Taker<'_>> = self
            .workers
            .values_mut()
            .filter(|child| child.channel.is_some() && !child.released && child.serves_web(mind))
            .map(|child| Taker { load: board.load(child.row, now_ms), child })
            .collect();
        self.handover.deliver(&mut takers, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::PrimaryEnd;
    use crate::scoreboard::Scoreboard;
    use prefork_os::fd_passing::{ReceivedMessage, create_seqpacket_pair, receive_message};
    use prefork_supervisor::{Slot, WEB_KIND, WorkerId, WorkerTag};

    fn child(id: u64, generation: u64, board: &mut Scoreboard) -> (WorkerProcess, OwnedFd) {
        let generation = Generation(generation);
        let tag =
            WorkerTag { id: WorkerId(id), slot: Slot(0), generation, pid: None, kind: WEB_KIND };
        let (ours, theirs) = create_seqpacket_pair().expect("pair");
        let row = board.lease(tag).expect("row");
        (WorkerProcess::new(tag, 1, Some(PrimaryEnd::new(ours)), row), theirs)
    }

    fn send(relay: &mut HandoverRelay, count: usize, now: Instant) {
        for _ in 0..count {
            let (fd, _) = create_seqpacket_pair().expect("a descriptor");
            relay.take_in(fd, Unread::new(Vec::new()).expect("short"), now);
        }
    }

    fn received(end: &OwnedFd) -> usize {
        let mut buffer = [0; 8];
        let got = || {
            receive_message(end, &mut buffer)
                .is_ok_and(|r| matches!(r, ReceivedMessage::Message(..)))
        };
        std::iter::repeat_with(got).take_while(|got| *got).count()
    }

    #[test]
    fn the_newest_get_them_evenly() {
        let mut board = Scoreboard::create(3).expect("board");
        let (mut old, a) = child(1, 1, &mut board);
        let (mut new, b) = child(2, 2, &mut board);
        let (mut full, c) = child(3, 2, &mut board);
        let mut takers =
            [&mut old, &mut new, &mut full].map(|child| Taker { child, load: Load::default() });
        takers[2].load.open = 4;
        let (mut relay, now) = (HandoverRelay::default(), Instant::now());
        send(&mut relay, 10, now);
        relay.deliver(&mut takers, now);
        assert_eq!([received(&a), received(&b), received(&c)], [0, 7, 3]);
        assert_eq!(relay.pause(), None);
    }

    #[test]
    fn a_frozen_worker_gets_none_while_another_one_can() {
        let mut board = Scoreboard::create(2).expect("board");
        let (mut frozen, a) = child(1, 2, &mut board);
        let (mut busy, b) = child(2, 1, &mut board);
        let mut takers =
            [&mut frozen, &mut busy].map(|child| Taker { child, load: Load::default() });
        takers[0].load.stale = true;
        takers[1].load.open = 1_000_000;
        let (mut relay, now) = (HandoverRelay::default(), Instant::now());
        send(&mut relay, 5, now);
        relay.deliver(&mut takers, now);
        assert_eq!([received(&a), received(&b)], [0, 5]);
    }

    #[test]
    fn a_full_channel_is_passed_by_and_nothing_is_lost() {
        let mut board = Scoreboard::create(2).expect("board");
        let (mut one, a) = child(1, 1, &mut board);
        let (mut two, b) = child(2, 1, &mut board);
        let (mut relay, now) = (HandoverRelay::default(), Instant::now());
        let mut got = 0;
        while relay.pause().is_none() {
            send(&mut relay, 50, now);
            let mut takers =
                [&mut one, &mut two].map(|child| Taker { child, load: Load::default() });
            relay.deliver(&mut takers, now);
            got += 50;
            assert!(got < 100_000, "a channel has an end");
        }
        let mut delivered = received(&a) + received(&b);
        let mut takers = [&mut one, &mut two].map(|child| Taker { child, load: Load::default() });
        relay.deliver(&mut takers, now);
        delivered += received(&a) + received(&b);
        assert_eq!((delivered, relay.lost, relay.pause()), (got, 0, None));
    }

    #[test]
    fn what_nobody_takes_is_given_up_in_the_end() {
        let (mut relay, now) = (HandoverRelay::default(), Instant::now());
        send(&mut relay, MOST, now);
        assert!(relay.is_full());
        relay.deliver(&mut [], now + PATIENCE - PAUSE);
        assert_eq!(relay.lost, 0);
        relay.deliver(&mut [], now + PATIENCE);
        assert_eq!((relay.lost, relay.pause()), (MOST as u64, None));
    }
}
