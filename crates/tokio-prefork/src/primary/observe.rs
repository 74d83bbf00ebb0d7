//! What workers look like from outside.

use super::Primary;
use prefork_supervisor::{Event, HealthSample};

impl Primary {
    /// Vital signs of every worker, as one event.
    pub(super) fn observe(&self, memory: bool) -> Event {
        let most = |generation| {
            let config = self.configs.get(&generation);
            config.map_or(u64::MAX, |config| config.process_connections().into())
        };
        let samples = self
            .workers
            .iter()
            .map(|(worker, child)| {
                let seen = self.scoreboard.glance(child.row);
                let memory = if memory { resident_bytes(child.pid) } else { None };
                let current_request = seen.serving.map(|r| r.request);
                HealthSample {
                    worker: *worker,
                    heartbeat: seen.beat,
                    requests: seen.requests,
                    memory,
                    is_full: seen.open >= most(child.tag.generation),
                    current_request,
                }
            })
            .collect();
        Event::HealthSampled { samples }
    }
}

/// Resident memory of a process: the second field of `/proc/PID/statm`, in pages.
fn resident_bytes(pid: u32) -> Option<u64> {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * prefork_os::system::page_size())
}
