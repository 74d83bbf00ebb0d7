//! Memory and CPU time of the workers, read from `/proc` by the process that shows them.

use super::{ClusterStatus, MAX_JSON_INTEGER};
use prefork_os::process::{open_fd_count, process_usage};

impl ClusterStatus {
    /// Reads memory, CPU time and open descriptors of the workers into [`rss_bytes`](super::WorkerStatus::rss_bytes),
    /// [`cpu_ms`](super::WorkerStatus::cpu_ms) and [`open_fds`](super::WorkerStatus::open_fds).
    ///
    /// For the process that shows the status, on the machine of the cluster: the primary does not read them. Leaves out processes
    /// that are not children of the primary as seen from here, as in another pid namespace the same numbers name other processes. Of
    /// programs, memory and CPU time are those of all their processes, as their guards publish them.
    pub fn read_process_usage(&mut self) {
        for worker in &mut self.workers {
            if let Some(program) = worker.program {
                worker.rss_bytes = Some(program.rss_bytes);
                worker.cpu_ms = Some(program.cpu_ms);
                continue;
            }
            let usage = worker.pid.and_then(process_usage);
            let usage = usage.filter(|usage| usage.parent == self.primary.pid);
            worker.rss_bytes = usage.map(|usage| usage.resident_bytes.min(MAX_JSON_INTEGER));
            let pid = worker.pid.filter(|_| usage.is_some());
            worker.open_fds = pid.and_then(open_fd_count).map(|count| count.min(MAX_JSON_INTEGER));
            worker.cpu_ms = usage.map(|usage| {
                u64::try_from(usage.cpu_time.as_millis()).unwrap_or(u64::MAX).min(MAX_JSON_INTEGER)
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::status::tests::status_of_booting_workers;

    #[test]
    fn usage_is_read_of_children_of_the_primary_only() {
        let mut status = status_of_booting_workers(3, None);
        let own_parent = std::os::unix::process::parent_id();
        // This process takes the part of a worker, its parent that of the primary.
        status.primary.pid = own_parent;
        status.workers[0].pid = Some(std::process::id());
        status.workers[1].pid = Some(own_parent);
        status.read_process_usage();
        let seen =
            |n: usize| (status.workers[n].rss_bytes.is_some(), status.workers[n].cpu_ms.is_some());
        assert_eq!([seen(0), seen(1), seen(2)], [(true, true), (false, false), (false, false)]);
        assert!(status.workers[0].rss_bytes.is_some_and(|bytes| bytes > 1 << 16));
    }
}
