//! The ledger: what happened lately, numbered, in memory.

use std::collections::VecDeque;
use std::time::{SystemTime, UNIX_EPOCH};

use log::Level;

/// How many entries are kept.
const KEPT: usize = 1000;

/// One thing that happened, as the log has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Counted from 1, without gaps.
    pub(crate) sequence: u64,
    /// Milliseconds since 1970.
    pub(crate) time_ms: u64,
    pub(crate) level: Level,
    pub(crate) text: String,
}

/// The last thousand entries. Only ever appended to.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    entries: VecDeque<Entry>,
    last: u64,
}

impl Ledger {
    /// Numbers the next entry after `last`, as the image before this one did, so that whoever follows the events misses and
    /// repeats none. For a ledger without entries.
    pub(crate) fn resume_after(&mut self, last: u64) {
        self.last = last;
    }

    /// Writes down that this happened now.
    pub(crate) fn append(&mut self, level: Level, text: String) {
        let time_ms =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
        self.last += 1;
        self.entries.push_back(Entry { sequence: self.last, time_ms, level, text });
        if self.entries.len() > KEPT {
            self.entries.pop_front();
        }
    }

    /// The number of the newest entry; 0 if there is none.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    /// The oldest number that is still kept.
    pub(crate) fn first(&self) -> u64 {
        self.last + 1 - self.entries.len() as u64
    }

    /// What came after entry `sequence`, as far as it is kept.
    pub(crate) fn after(&self, sequence: u64) -> impl Iterator<Item = &Entry> {
        let skip = sequence.saturating_add(1).saturating_sub(self.first());
        self.entries.iter().skip(usize::try_from(skip).unwrap_or(usize::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(ledger: &Ledger, after: u64) -> Vec<u64> {
        ledger.after(after).map(|entry| entry.sequence).collect()
    }

    #[test]
    fn entries_are_found_by_number() {
        let mut ledger = Ledger::default();
        assert_eq!((ledger.last(), numbers(&ledger, 0)), (0, vec![]));
        for text in ["a", "b", "c"] {
            ledger.append(Level::Info, text.to_string());
        }
        assert_eq!(numbers(&ledger, 0), [1, 2, 3]);
        assert_eq!(numbers(&ledger, 2), [3]);
        assert!(numbers(&ledger, 3).is_empty());
        assert!(numbers(&ledger, u64::MAX).is_empty());
    }

    #[test]
    fn only_the_last_thousand_are_kept() {
        let mut ledger = Ledger::default();
        for _ in 0..KEPT + 5 {
            ledger.append(Level::Info, String::new());
        }
        assert_eq!((ledger.first(), ledger.last()), (6, 1005));
        assert_eq!(numbers(&ledger, 0).len(), KEPT);
        assert_eq!(numbers(&ledger, 1004), [1005]);
    }
}
