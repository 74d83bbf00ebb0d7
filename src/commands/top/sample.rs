//! One sample of a cluster: its status, its new log events, and what `/proc` says of its processes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use super::process_usage::{self, ProcessUsage};
use crate::commands::control::ControlTarget;
use tokio_prefork::control::Event;
use tokio_prefork::status::ClusterStatus;
use tokio_prefork::{Result, WorkerId};

/// What is known of a cluster at one moment.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) received_at: Instant,
    pub(super) status: ClusterStatus,
    /// CPU time and memory of the workers whose processes are visible from here.
    pub(super) usage: BTreeMap<WorkerId, ProcessUsage>,
    /// The log events since the sample before.
    pub(super) events: Vec<Event>,
    /// Whether another cluster answered than before: its counters and event numbers began anew.
    pub(super) is_other_cluster: bool,
}

/// Takes samples over the control socket. Blocks, so that the terminal's thread must not call it.
pub(super) struct SampleSource {
    target: ControlTarget,
    /// Where the primary was found, to reconnect to the same one.
    path: Option<PathBuf>,
    last: Option<ClusterIdentity>,
    last_event: u64,
}

impl SampleSource {
    pub(super) fn new(target: ControlTarget) -> SampleSource {
        SampleSource { target, path: None, last: None, last_event: 0 }
    }

    /// Takes a sample. Connects each time: the primary closes connections that are idle for 5 s, and may have been restarted.
    ///
    /// # Errors
    ///
    /// No primary answers in time.
    pub(super) fn take_sample(&mut self) -> Result<Sample> {
        let known = self.path.as_deref().map(|path| self.target.connect_to(path));
        let mut primary = match known {
            Some(Ok(primary)) => primary,
            Some(Err(_)) | None => self.target.connect()?,
        };
        let status = primary.client.status()?;
        let received_at = Instant::now();
        self.path = Some(primary.path);
        let identity = ClusterIdentity::of(&status);
        let is_other_cluster = self.last.is_some_and(|last| !last.is_continued_by(&identity));
        if is_other_cluster {
            self.last_event = 0;
        }
        self.last = Some(identity);
        let usage = process_usage::read_usage(&status);
        let mut events = Vec::new();
        // A failure ends the list; the next sample asks for the rest.
        for event in primary.client.events(false, self.last_event)?.map_while(Result::ok) {
            self.last_event = event.sequence;
            events.push(event);
        }
        Ok(Sample { received_at, status, usage, events, is_other_cluster })
    }
}

/// What tells a cluster from the one that is started after it at the same control socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ClusterIdentity {
    pid: u32,
    uptime_ms: u64,
    generation: u64,
    accepted: u64,
    requests: u64,
}

impl ClusterIdentity {
    fn of(status: &ClusterStatus) -> ClusterIdentity {
        let (primary, totals) = (&status.primary, &status.totals);
        ClusterIdentity {
            pid: primary.pid,
            uptime_ms: primary.uptime_ms,
            generation: primary.generation.0,
            accepted: totals.accepted,
            requests: totals.requests,
        }
    }

    /// Returns whether a later status is of the same cluster. After an upgrade in place, the pid and the counters are the same
    /// and the uptime begins anew. In a container, each primary has pid 1.
    fn is_continued_by(&self, later: &ClusterIdentity) -> bool {
        let has_first_generation = later.generation <= 1 || later.generation < self.generation;
        let is_restarted = later.uptime_ms < self.uptime_ms && has_first_generation;
        self.pid == later.pid
            && later.accepted >= self.accepted
            && later.requests >= self.requests
            && !is_restarted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upgrade_continues_a_cluster_and_a_restart_does_not() {
        let before =
            ClusterIdentity { pid: 1, uptime_ms: 9_000, generation: 1, accepted: 5, requests: 50 };
        let upgraded = ClusterIdentity { uptime_ms: 40, generation: 2, requests: 60, ..before };
        assert!(before.is_continued_by(&upgraded) && before.is_continued_by(&before));
        let restarted = ClusterIdentity { uptime_ms: 40, accepted: 90, requests: 900, ..before };
        assert!(!before.is_continued_by(&restarted));
        let reset = ClusterIdentity { requests: 0, ..before };
        let other_pid = ClusterIdentity { pid: 2, ..before };
        assert!(!before.is_continued_by(&reset) && !before.is_continued_by(&other_pid));
    }
}
