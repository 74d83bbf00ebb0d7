//! The last events of the primary, numbered, in memory.

use std::collections::VecDeque;
use std::time::{SystemTime, UNIX_EPOCH};

use log::Level;

use super::Event;

/// How many events the history keeps.
const MAX_KEPT_EVENTS: usize = 1000;

/// One event, with the text of its log line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LoggedEvent {
    /// Counted from 1, without gaps.
    pub(crate) sequence: u64,
    /// Milliseconds since 1970.
    pub(crate) time_ms: u64,
    pub(crate) level: Level,
    pub(crate) text: String,
}

impl From<Event> for LoggedEvent {
    fn from(event: Event) -> LoggedEvent {
        let Event { sequence, time_ms, level, text } = event;
        LoggedEvent { sequence, time_ms, level: level.parse().unwrap_or(Level::Info), text }
    }
}

/// Keeps the last thousand events.
#[derive(Debug, Default)]
pub(crate) struct EventHistory {
    entries: VecDeque<LoggedEvent>,
    last: u64,
}

impl EventHistory {
    /// Continues the numbers of the previous image after `last`, so that followers miss and repeat no event. Called before the
    /// first event.
    pub(crate) fn continue_after(&mut self, last: u64) {
        self.last = last;
    }

    /// Adds the events of the previous image, oldest first and without gaps, if they end where this history continues.
    pub(crate) fn restore(&mut self, events: Vec<Event>) {
        if events.last().is_some_and(|event| event.sequence == self.last) {
            let events = events.into_iter().map(LoggedEvent::from);
            self.entries = events.collect();
        }
    }

    /// Appends an event with the current time.
    pub(crate) fn append_event(&mut self, level: Level, text: String) {
        let time_ms =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
        self.last += 1;
        self.entries.push_back(LoggedEvent { sequence: self.last, time_ms, level, text });
        if self.entries.len() > MAX_KEPT_EVENTS {
            self.entries.pop_front();
        }
    }

    /// Returns the number of the newest event; 0 if there is none.
    pub(crate) fn last_number(&self) -> u64 {
        self.last
    }

    /// Returns the number of the oldest event that is kept.
    pub(crate) fn first_number(&self) -> u64 {
        self.last + 1 - self.entries.len() as u64
    }

    /// Returns the kept events after number `sequence`, oldest first.
    pub(crate) fn events_after(&self, sequence: u64) -> impl Iterator<Item = &LoggedEvent> {
        let skip = sequence.saturating_add(1).saturating_sub(self.first_number());
        self.entries.iter().skip(usize::try_from(skip).unwrap_or(usize::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept_numbers_after(history: &EventHistory, after: u64) -> Vec<u64> {
        history.events_after(after).map(|entry| entry.sequence).collect()
    }

    #[test]
    fn events_are_found_by_number() {
        let mut history = EventHistory::default();
        assert_eq!((history.last_number(), kept_numbers_after(&history, 0)), (0, vec![]));
        for text in ["a", "b", "c"] {
            history.append_event(Level::Info, text.to_string());
        }
        assert_eq!(kept_numbers_after(&history, 0), [1, 2, 3]);
        assert_eq!(kept_numbers_after(&history, 2), [3]);
        assert!(kept_numbers_after(&history, 3).is_empty());
        assert!(kept_numbers_after(&history, u64::MAX).is_empty());
    }

    #[test]
    fn only_the_last_thousand_events_are_kept() {
        let mut history = EventHistory::default();
        for _ in 0..MAX_KEPT_EVENTS + 5 {
            history.append_event(Level::Info, String::new());
        }
        assert_eq!((history.first_number(), history.last_number()), (6, 1005));
        assert_eq!(kept_numbers_after(&history, 0).len(), MAX_KEPT_EVENTS);
        assert_eq!(kept_numbers_after(&history, 1004), [1005]);
    }
}
