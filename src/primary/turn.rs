//! Whose turn it is: the decisions of `round-robin`, without a system call and without a clock.
//!
//! Each worker has a line of connections that were offered to it and that it has not taken yet; what is in it
//! can be moved to somebody else's at any time. Turns are strict, in the order of worker ids, over all that
//! have room. A worker that leaves a connection lying for [`PATIENCE`] while another one could take it loses
//! what is in its line. Instead it finds a probe there, and is passed over until it has read that.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::identity::WorkerId;

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
    /// Whether it can take a connection now: it serves, has room and its loop turns.
    takes: bool,
    /// Connections in its line: as many as this, or fewer, as it takes them without saying so.
    waiting: usize,
    /// When the first of them became the first, as far as is known.
    since: Instant,
    /// It let connections lie, and there is a probe in its line before all else.
    slow: bool,
}

impl Line {
    fn has_room(&self) -> bool {
        self.takes && self.waiting < BOUND
    }
}

/// The lines of all workers, and who was last.
#[derive(Debug, Default)]
pub(super) struct Turn {
    lines: BTreeMap<WorkerId, Line>,
    last: Option<WorkerId>,
}

impl Turn {
    /// How a worker looks right now. `true` if it was not known: then its line has to be looked at.
    pub(super) fn see(&mut self, id: WorkerId, takes: bool, now: Instant) -> bool {
        let known = self.lines.contains_key(&id);
        let new = Line { takes, waiting: 0, since: now, slow: false };
        let line = self.lines.entry(id).or_insert(new);
        line.takes = takes;
        !known
    }

    /// The worker is gone, and with it its line.
    pub(super) fn forget(&mut self, id: WorkerId) {
        self.lines.remove(&id);
    }

    /// Forgets all but those that are `alive`.
    pub(super) fn keep(&mut self, alive: impl Fn(WorkerId) -> bool) {
        self.lines.retain(|id, _| alive(*id));
    }

    /// So many are in the line of `id`, by the kernel's count, with the probe.
    pub(super) fn told(&mut self, id: WorkerId, count: usize, now: Instant) {
        let Some(line) = self.lines.get_mut(&id) else { return };
        // The probe is the first to be read: as long as it is there, so is everything else.
        line.slow = line.slow && count > line.waiting;
        let waiting = count - usize::from(line.slow);
        if waiting < line.waiting {
            line.since = now;
        }
        line.waiting = waiting;
    }

    /// Puts the next connection into the line of whoever's turn it is.
    pub(super) fn next(&mut self, now: Instant) -> Option<WorkerId> {
        let tier = self.tier();
        let last = self.last.unwrap_or(WorkerId(0));
        let after = self.lines.iter().filter(|(id, _)| **id > last);
        let all = after.chain(self.lines.iter());
        let (id, _) = all.into_iter().find(|(_, line)| tier(line) && line.has_room())?;
        let id = *id;
        let line = self.lines.get_mut(&id)?;
        if line.waiting == 0 {
            line.since = now;
        }
        line.waiting += 1;
        self.last = Some(id);
        Some(id)
    }

    /// Slow workers are asked only if there are no others.
    fn tier(&self) -> fn(&Line) -> bool {
        let quick = self.lines.values().any(|line| line.takes && !line.slow);
        if quick { |line| !line.slow } else { |_| true }
    }

    /// How many connections there is room for.
    pub(super) fn room(&self) -> usize {
        let tier = self.tier();
        let open = self.lines.values().filter(|line| tier(line) && line.has_room());
        open.map(|line| BOUND - line.waiting).sum()
    }

    /// Those whose lines are to be counted, as they may be shorter than is known: slow ones, and once one line
    /// may be half full, all of them together, or the order of turns would depend on who was counted.
    pub(super) fn uncertain(&self) -> Vec<WorkerId> {
        let all = self.lines.values().any(|line| line.waiting >= BOUND / 2);
        let counted = self.lines.iter().filter(|(_, line)| line.slow || (all && line.waiting > 0));
        counted.map(|(id, _)| *id).collect()
    }

    /// Those that could take connections but for their lines, which are full.
    pub(super) fn full(&self) -> Vec<WorkerId> {
        let tier = self.tier();
        let full = self.lines.iter().filter(|(_, line)| line.takes && tier(line));
        full.filter(|(_, line)| line.waiting >= BOUND).map(|(id, _)| *id).collect()
    }

    /// Those that have something in their lines, as far as is known, that should not be there any more.
    pub(super) fn overdue(&self, now: Instant) -> Vec<WorkerId> {
        let late = self.lines.iter().filter(|(_, line)| line.waiting > 0);
        late.filter(|(_, line)| !line.takes || now >= line.since + PATIENCE)
            .map(|(id, _)| *id)
            .collect()
    }

    /// Whether what `id` has in its line should be somebody else's. Asked after `told`.
    pub(super) fn is_to_be_moved(&self, id: WorkerId, now: Instant) -> bool {
        let late = |line: &Line| line.waiting > 0 && (!line.takes || now >= line.since + PATIENCE);
        let other =
            |(other, line): (&WorkerId, &Line)| *other != id && !line.slow && line.has_room();
        self.lines.get(&id).is_some_and(late) && self.lines.iter().any(other)
    }

    /// The line of `id` was emptied by us, and a probe put in.
    pub(super) fn taken_back(&mut self, id: WorkerId) {
        if let Some(line) = self.lines.get_mut(&id) {
            line.waiting = 0;
            line.slow = true;
        }
    }

    /// When `overdue` may have something new to say.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        let lines = self.lines.values().filter(|line| line.waiting > 0);
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
