//! Whose turn it is: the decisions of `round-robin`, without a system call and without a clock.
//!
//! Each worker has a line of connections that were offered to it and that it has not taken yet; what is in it
//! can be moved to somebody else's at any time. Turns are strict, in the order of worker ids, over all that
//! can take one: a full line is waited for, or whoever takes a bit faster would get the more of a burst. A worker that leaves a connection lying for [`PATIENCE`] while another one could take it loses
//! what is in its line. Instead it finds a probe there, and is passed over until it has read that.

use std::time::{Duration, Instant};

use prefork_supervisor::WorkerId;

/// So many connections may lie in one worker's line. Enough to keep it busy until it is looked at again; more
/// would only wait there, while others become free.
pub(super) const BOUND: usize = 8;

/// How long the first in a line waits before it is somebody else's, if there is somebody.
pub(super) const PATIENCE: Duration = Duration::from_millis(20);

/// When to look again at a line whose first has waited too long and could not be moved.
const AGAIN: Duration = Duration::from_millis(5);

/// What is known of one worker.
#[derive(Debug)]
struct Line {
    id: WorkerId,
    /// Whether it can take a connection now: it serves, has room and its loop turns.
    takes: bool,
    /// Connections in its line: as many as this, or fewer, as it takes them without saying so.
    waiting: usize,
    /// When the first of them became the first, as far as is known.
    since: Instant,
    /// It let connections lie, and there is a probe in its line before all else.
    slow: bool,
    /// `waiting` is exact, as it was counted in this turn of the loop and nothing was put in since.
    counted: bool,
}

impl Line {
    fn has_room(&self) -> bool {
        self.takes && self.waiting < BOUND
    }

    /// Whether it has its turn: with room, or soon.
    fn counts(&self, now: Instant) -> bool {
        self.takes && (self.waiting < BOUND || now < self.since + PATIENCE)
    }
}

/// The lines of all workers, and who was last.
#[derive(Debug, Default)]
pub(super) struct Turn {
    /// In the order of their ids.
    lines: Vec<Line>,
    last: Option<WorkerId>,
}

impl Turn {
    /// How a worker looks right now. `true` if it was not known: then its line has to be looked at.
    pub(super) fn see(&mut self, id: WorkerId, takes: bool, now: Instant) -> bool {
        match self.lines.binary_search_by_key(&id, |line| line.id) {
            Ok(at) => {
                (self.lines[at].takes, self.lines[at].counted) = (takes, false);
                false
            }
            Err(at) => {
                let new = Line { id, takes, waiting: 0, since: now, slow: false, counted: false };
                self.lines.insert(at, new);
                true
            }
        }
    }

    /// How many workers are known.
    pub(super) fn len(&self) -> usize {
        self.lines.len()
    }

    fn line(&mut self, id: WorkerId) -> Option<&mut Line> {
        self.lines.iter_mut().find(|line| line.id == id)
    }

    /// The worker is gone, and with it its line.
    pub(super) fn forget(&mut self, id: WorkerId) {
        self.lines.retain(|line| line.id != id);
    }

    /// Forgets all but those that are `alive`.
    pub(super) fn keep(&mut self, alive: impl Fn(WorkerId) -> bool) {
        self.lines.retain(|line| alive(line.id));
    }

    /// So many are in the line of `id`, by the kernel's count, with the probe.
    pub(super) fn told(&mut self, id: WorkerId, count: usize, now: Instant) {
        let Some(line) = self.line(id) else { return };
        line.counted = true;
        // The probe is the first to be read: as long as it is there, so is everything else.
        line.slow = line.slow && count > line.waiting;
        let waiting = count - usize::from(line.slow);
        if waiting < line.waiting {
            line.since = now;
        }
        line.waiting = waiting;
    }

    /// Where the line is that follows the last one.
    fn first(&self) -> usize {
        let last = self.last.unwrap_or(WorkerId(0));
        self.lines.partition_point(|line| line.id <= last)
    }

    /// Puts the next connection into the line of whoever's turn it is; `None` if that one is to be waited for.
    pub(super) fn next(&mut self, now: Instant) -> Option<WorkerId> {
        let (tier, at) = (self.tier(), self.first());
        let has_turn = |line: &&mut Line| tier(line) && line.counts(now);
        let (before, after) = self.lines.split_at_mut(at);
        let line = after.iter_mut().find(has_turn).or_else(|| before.iter_mut().find(has_turn))?;
        if !line.has_room() {
            return None;
        }
        if line.waiting == 0 {
            line.since = now;
        }
        line.waiting += 1;
        line.counted = false;
        self.last = Some(line.id);
        self.last
    }

    /// Slow workers are asked only if there are no others.
    fn tier(&self) -> fn(&Line) -> bool {
        let quick = self.lines.iter().any(|line| line.takes && !line.slow);
        if quick { |line| !line.slow } else { |_| true }
    }

    /// How many connections there is room for, in strict turn.
    pub(super) fn room(&self, now: Instant) -> usize {
        let (tier, at) = (self.tier(), self.first());
        let (before, after) = self.lines.split_at(at);
        let in_turn = after.iter().chain(before);
        let rooms = in_turn.filter(|line| tier(line) && line.counts(now));
        let rooms: Vec<usize> = rooms.map(|line| BOUND.saturating_sub(line.waiting)).collect();
        // Whole rounds, and in the last one those before the line that is full then.
        let least = rooms.iter().enumerate().min_by_key(|(_, room)| **room);
        least.map_or(0, |(ahead, room)| room * rooms.len() + ahead)
    }

    /// Those whose lines are to be counted, as they may be shorter than is known and it matters: slow ones, and those
    /// that would be passed over as full.
    pub(super) fn uncertain(&self) -> Vec<WorkerId> {
        let counted = |line: &&Line| !line.counted && (line.slow || line.waiting >= BOUND);
        self.lines.iter().filter(counted).map(|line| line.id).collect()
    }

    /// Those that could take connections but for their lines, which are full.
    pub(super) fn full(&self) -> Vec<WorkerId> {
        let tier = self.tier();
        let full = self.lines.iter().filter(|line| line.takes && tier(line));
        full.filter(|line| line.waiting >= BOUND).map(|line| line.id).collect()
    }

    /// Those that have something in their lines, as far as is known, that should not be there any more.
    pub(super) fn overdue(&self, now: Instant) -> Vec<WorkerId> {
        let late = self.lines.iter().filter(|line| line.waiting > 0);
        late.filter(|line| !line.takes || now >= line.since + PATIENCE)
            .map(|line| line.id)
            .collect()
    }

    /// Whether what `id` has in its line should be somebody else's. Asked after `told`.
    pub(super) fn is_to_be_moved(&self, id: WorkerId, now: Instant) -> bool {
        let late = |line: &Line| line.waiting > 0 && (!line.takes || now >= line.since + PATIENCE);
        let other = |line: &Line| line.id != id && !line.slow && line.has_room();
        self.lines.iter().find(|line| line.id == id).is_some_and(late)
            && self.lines.iter().any(other)
    }

    /// The line of `id` was emptied by us, and a probe put in.
    pub(super) fn taken_back(&mut self, id: WorkerId) {
        if let Some(line) = self.line(id) {
            line.waiting = 0;
            line.slow = true;
        }
    }

    /// When `overdue` may have something new to say.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        let lines = self.lines.iter().filter(|line| line.waiting > 0);
        lines
            .map(|line| match line.takes && now < line.since + PATIENCE {
                true => line.since + PATIENCE,
                false => now + AGAIN,
            })
            .min()
    }
}

#[cfg(test)]
mod tests;
