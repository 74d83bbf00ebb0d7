//! CPU time and memory of worker processes, read from `/proc`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio_prefork::WorkerId;
use tokio_prefork::status::{ClusterStatus, WorkerStatus};

/// The CPU time and memory of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ProcessUsage {
    pub(super) read_at: Instant,
    /// CPU time since its start, of all threads.
    pub(super) cpu_time: Duration,
    /// Resident memory in bytes, shared pages included.
    pub(super) resident_bytes: u64,
}

/// The fields of `/proc/PID/stat` that are shown.
#[derive(Debug, PartialEq, Eq)]
struct ProcessStat {
    parent: u32,
    cpu_ticks: u64,
    resident_pages: u64,
}

/// Reads the usage of all workers. Leaves out those that are not children of the primary as seen from here: the cluster may
/// run in another pid namespace, where the same numbers name other processes.
pub(super) fn read_usage(status: &ClusterStatus) -> BTreeMap<WorkerId, ProcessUsage> {
    let ticks_per_second = rustix::param::clock_ticks_per_second().max(1);
    let page_size = rustix::param::page_size() as u64;
    let usage_of = |pid: u32| {
        let text = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
        let read_at = Instant::now();
        let stat = parse_stat(&String::from_utf8_lossy(&text))?;
        (stat.parent == status.primary.pid).then(|| ProcessUsage {
            read_at,
            cpu_time: Duration::from_millis(stat.cpu_ticks.saturating_mul(1000) / ticks_per_second),
            resident_bytes: stat.resident_pages.saturating_mul(page_size),
        })
    };
    let of_worker = |worker: &WorkerStatus| match worker.program {
        // Of all processes of a program, as its guard has measured.
        Some(program) => Some(ProcessUsage {
            read_at: Instant::now(),
            cpu_time: Duration::from_millis(program.cpu_ms),
            resident_bytes: program.rss_bytes,
        }),
        None => usage_of(worker.pid?),
    };
    let workers = status.workers.iter();
    workers.filter_map(|worker| Some((worker.id, of_worker(worker)?))).collect()
}

/// Parses `/proc/PID/stat`. The name of the command, in parentheses, may contain spaces and parentheses.
fn parse_stat(text: &str) -> Option<ProcessStat> {
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(ProcessStat {
        parent: fields.get(1)?.parse().ok()?,
        cpu_ticks: number(11)?.saturating_add(number(12)?),
        resident_pages: number(21)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_with_parentheses_and_spaces_is_skipped() {
        let text = "812 (a) R 1 (b) S 4711 812 812 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 3 0 99 1000 2048 0 0\n";
        let expected = ProcessStat { parent: 4711, cpu_ticks: 200, resident_pages: 2048 };
        assert_eq!(parse_stat(text), Some(expected));
        for broken in ["", "812 (a", "812 (a) S", "812 (a) S x 1 1 0 -1 0 0 0 0 0 1 1"] {
            assert_eq!(parse_stat(broken), None, "{broken}");
        }
    }

    #[test]
    fn this_process_is_a_child_of_its_parent_and_uses_memory() {
        let text = std::fs::read_to_string("/proc/self/stat").expect("stat");
        let stat = parse_stat(&text).expect("parsed");
        assert_eq!(stat.parent, std::os::unix::process::parent_id());
        assert!(stat.resident_pages > 10, "{stat:?}");
    }
}
