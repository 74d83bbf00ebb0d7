//! The part of `Status` about workers whose threads have rows of their own.

use serde::{Deserialize, Serialize};

use super::LARGEST;
use crate::scoreboard::WorkerSnapshot;

/// One thread of a worker at one moment, as it says itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ThreadStatus {
    /// Its number, from 0.
    pub thread: u64,
    /// `booting`, `serving`, `draining` or `left`.
    pub state: String,
    /// How long ago its event loop last turned.
    pub beat_age_ms: u64,
    /// Open connections.
    pub connections: u64,
    /// Requests being answered.
    pub active: u64,
    /// Requests that it was sent since it started.
    pub requests: u64,
}

impl ThreadStatus {
    /// None for a worker with one row: its own line says it all.
    pub(super) fn of(figures: &[WorkerSnapshot]) -> Vec<ThreadStatus> {
        if figures.len() < 2 {
            return Vec::new();
        }
        let thread = |seen: &WorkerSnapshot| ThreadStatus {
            thread: seen.thread.min(LARGEST),
            state: seen.state.to_string(),
            beat_age_ms: seen.beat_age_ms.min(LARGEST),
            connections: seen.connections.min(LARGEST),
            active: seen.active.min(LARGEST),
            requests: seen.counters.requests.min(LARGEST),
        };
        figures.iter().map(thread).collect()
    }
}
