//! Reads the status in an admin process, from shared memory only.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use super::{AdminMemoryReader, PublishedStatus};
use crate::config::Config;
use crate::scoreboard::ScoreboardReader;
use crate::status::{ClusterStatus, WorkerState, WorkerStatus};
use prefork_os::system::monotonic_ms;

/// Reads the status. Nothing of it waits for another process.
pub(crate) struct StatusReader {
    memory: AdminMemoryReader,
    scoreboard: ScoreboardReader,
    config: Arc<Config>,
    /// The part of the primary that was decoded last, with its version.
    decoded: RefCell<Option<(u64, Rc<PublishedStatus>)>>,
    /// The last status that was read without a change in the middle.
    last: RefCell<Option<Rc<ClusterStatus>>>,
}

/// What `/readyz` looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Readiness {
    pub(crate) is_stop_requested: bool,
    /// How many workers of the kind `web` serve.
    pub(crate) serving: usize,
    /// Whether the workers of the next image have taken over from all that this process knows.
    pub(crate) is_replaced: bool,
    /// How many workers of the kind `web` should serve.
    pub(crate) wanted: u32,
    /// How many workers of other kinds are missing.
    pub(crate) missing_of_other_kinds: usize,
}

impl StatusReader {
    pub(crate) fn new(
        memory: AdminMemoryReader,
        scoreboard: ScoreboardReader,
        config: Arc<Config>,
    ) -> StatusReader {
        let (decoded, last) = (RefCell::default(), RefCell::default());
        StatusReader { memory, scoreboard, config, decoded, last }
    }

    /// Returns the memory that the primary publishes in.
    pub(crate) fn memory(&self) -> AdminMemoryReader {
        self.memory
    }

    /// Returns for how long the primary's loop has not turned beyond its limit, in milliseconds; `None` if it turns.
    pub(crate) fn overdue_ms(&self) -> Option<u64> {
        let overdue = monotonic_ms().saturating_sub(self.memory.live_until_ms());
        (overdue > 0).then_some(overdue)
    }

    /// Returns the status as `prefork status --json` shows it. `None` before the primary has published its part.
    pub(crate) fn status(&self) -> Option<Rc<ClusterStatus>> {
        let (figures, is_whole) = self.scoreboard.consistent_status(&self.config);
        if !is_whole && let Some(last) = &*self.last.borrow() {
            // The primary was stopped while it moved the counters of a dead worker.
            return Some(Rc::clone(last));
        }
        let published = self.published()?;
        let age_ms = monotonic_ms().saturating_sub(published.made_at_ms);
        let mut status = figures.with_primary_part(&published.status, age_ms);
        if let Some((admin, page)) = status.admin.as_mut().zip(published.admin_page) {
            let figures = self.memory.process_figures(page);
            (admin.connections, admin.requests) = (figures.connections, figures.requests);
        }
        let status = Rc::new(status);
        self.last.replace(Some(Rc::clone(&status)));
        Some(status)
    }

    /// Returns what `/readyz` looks at.
    pub(crate) fn readiness(&self) -> Option<Readiness> {
        let published = self.published()?;
        let (primary, workers) = (&published.status.primary, &published.status.workers);
        let missing = primary.kinds.iter().map(|kind| {
            let serves = |worker: &&WorkerStatus| {
                worker.kind == kind.name && worker.state == WorkerState::Serving
            };
            (kind.workers_wanted as usize).saturating_sub(workers.iter().filter(serves).count())
        });
        Some(Readiness {
            is_stop_requested: self.memory.is_stop_requested(),
            serving: self.scoreboard.serving_web_worker_count(monotonic_ms()),
            // A worker leaves the service of its own accord only when another one has taken its place.
            is_replaced: self.memory.is_image_replaced()
                && !self.scoreboard.has_web_worker_in_service(),
            wanted: primary.workers_wanted,
            missing_of_other_kinds: missing.sum(),
        })
    }

    /// Returns the primary's part. It is decoded once for each version.
    fn published(&self) -> Option<Rc<PublishedStatus>> {
        let version = self.memory.status_version();
        if let Some((decoded, published)) = &*self.decoded.borrow()
            && *decoded == version
        {
            return Some(Rc::clone(published));
        }
        let read = self.memory.status().and_then(|(version, json)| {
            Some((version, Rc::new(serde_json::from_slice(&json).ok()?)))
        });
        if let Some((version, published)) = read {
            self.decoded.replace(Some((version, published)));
        }
        let decoded = self.decoded.borrow();
        decoded.as_ref().map(|(_, published)| Rc::clone(published))
    }
}
