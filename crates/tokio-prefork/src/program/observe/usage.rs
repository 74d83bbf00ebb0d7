//! What a program uses, summed over its processes.

use std::time::Duration;

use prefork_os::process::process_usage;

/// What the processes of a program use together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ProgramUsage {
    /// Number of processes.
    pub(crate) processes: u32,
    /// Number of open connections that were accepted from the inherited listening sockets.
    pub(crate) connections: u32,
    /// Number of connections that wait in the accept queues of the inherited listening sockets.
    pub(crate) queued: u32,
    /// Resident memory in bytes. Pages that processes share count for each of them.
    pub(crate) resident_bytes: u64,
    /// CPU time of all processes, also of those that have exited meanwhile, as far as it was seen.
    pub(crate) cpu_time: Duration,
}

/// The memory and the CPU time of processes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct ProcessTotals {
    pub(super) processes: u32,
    pub(super) resident_bytes: u64,
    pub(super) cpu_time: Duration,
}

/// Adds up CPU times so that the sum never decreases when a process exits.
#[derive(Debug, Default)]
pub(super) struct UsageMeter {
    /// The processes of the last look with their CPU time.
    last: Vec<(u32, Duration)>,
    /// CPU time of processes that have exited.
    of_exited: Duration,
}

impl UsageMeter {
    /// Reads what the processes `pids` use now.
    pub(super) fn measure(&mut self, pids: &[u32]) -> ProcessTotals {
        let mut totals = ProcessTotals::default();
        let mut current = Vec::with_capacity(pids.len());
        for &pid in pids {
            let Some(usage) = process_usage(pid) else { continue };
            totals.processes += 1;
            totals.resident_bytes += usage.resident_bytes;
            current.push((pid, usage.cpu_time));
        }
        self.add_exited(&current);
        totals.cpu_time = self.of_exited + current.iter().map(|(_, time)| *time).sum::<Duration>();
        self.last = current;
        totals
    }

    /// Adds the CPU time of processes that are not in `current` any more. A pid whose time decreased is a new process.
    fn add_exited(&mut self, current: &[(u32, Duration)]) {
        for (pid, time) in &self.last {
            let lives = current.iter().any(|(other, now)| other == pid && now >= time);
            if !lives {
                self.of_exited += *time;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_time_of_processes_that_have_exited_stays() {
        let ms = Duration::from_millis;
        let mut meter =
            UsageMeter { last: vec![(7, ms(30)), (8, ms(5)), (9, ms(50))], ..Default::default() };
        // 8 has exited, and 9 is another process now.
        meter.add_exited(&[(7, ms(40)), (9, ms(1))]);
        assert_eq!(meter.of_exited, ms(55));
    }

    #[test]
    fn a_process_that_does_not_exist_uses_nothing() {
        let mut meter = UsageMeter::default();
        let totals = meter.measure(&[std::process::id(), u32::MAX]);
        assert_eq!(totals.processes, 1);
        assert!(totals.resident_bytes > 0);
        assert_eq!(meter.measure(&[]).processes, 0);
    }
}
