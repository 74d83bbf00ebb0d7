//! The processes of a pool that can run jobs: which of them are idle, how many jobs each has run, and when one is replaced or
//! not needed any more.
//!
//! Jobs go to the idle process in the lowest slot, so that those in the highest slots are the ones that become idle. Processes
//! end from the highest slot downwards.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::IsolatedPoolConfig;
use prefork_supervisor::{RecycleReason, Slot, WorkerId};

/// How long a process that has to stay, for example during a reload, is not asked to end again.
const MIN_RETRY_DELAY: Duration = Duration::from_secs(1);

/// A process that was ready and is not known to leave.
#[derive(Debug)]
struct PoolProcess {
    slot: Slot,
    state: ProcessState,
    /// How many jobs it has run to their end.
    jobs: u64,
    /// How much memory it may keep resident between two jobs.
    max_idle_rss: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ProcessState {
    Idle {
        since: Instant,
    },
    Busy,
    /// It was idle for too long. The supervisor decides whether it ends, and until then it gets no job.
    AskedToEnd,
}

/// The processes of one pool.
#[derive(Debug)]
pub(super) struct PoolProcesses {
    min: u32,
    max: u32,
    idle_timeout: Duration,
    max_jobs: Option<u64>,
    max_rss: Option<u64>,
    max_idle_rss: Option<u64>,
    processes: BTreeMap<WorkerId, PoolProcess>,
}

impl PoolProcesses {
    pub(super) fn new(config: &IsolatedPoolConfig) -> PoolProcesses {
        let (processes, limits) = (config.processes, &config.limits);
        PoolProcesses {
            min: processes.min,
            max: processes.max,
            idle_timeout: limits.idle_timeout,
            max_jobs: limits.max_jobs,
            max_rss: limits.max_rss,
            max_idle_rss: limits.max_idle_rss,
            processes: BTreeMap::new(),
        }
    }

    /// Returns whether the memory of a process has to be read when it is ready and after each job.
    pub(super) fn measures_memory(&self) -> bool {
        self.max_rss.is_some() || self.max_idle_rss.is_some()
    }

    /// Adds a process that is ready and has this much memory resident.
    pub(super) fn add(&mut self, worker: WorkerId, slot: Slot, rss: Option<u64>, now: Instant) {
        let of_max_rss = self.max_rss.zip(rss);
        let derived = of_max_rss.map(|(max, rss)| rss + max.saturating_sub(rss) / 4 * 3);
        let max_idle_rss = self.max_idle_rss.or(derived);
        let state = ProcessState::Idle { since: now };
        self.processes.insert(worker, PoolProcess { slot, state, jobs: 0, max_idle_rss });
    }

    pub(super) fn remove(&mut self, worker: WorkerId) {
        self.processes.remove(&worker);
    }

    /// Removes the processes that drain or have ended.
    pub(super) fn retain_serving(&mut self, is_serving: &dyn Fn(WorkerId) -> bool) {
        self.processes.retain(|worker, _| is_serving(*worker));
    }

    pub(super) fn len(&self) -> usize {
        self.processes.len()
    }

    fn count(&self, has_state: impl Fn(ProcessState) -> bool) -> usize {
        self.processes.values().filter(|process| has_state(process.state)).count()
    }

    pub(super) fn idle_count(&self) -> usize {
        self.count(|state| matches!(state, ProcessState::Idle { .. }))
    }

    /// Returns how many processes could be started beside those that are ready.
    pub(super) fn startable_count(&self) -> usize {
        let is_ranged = self.min < self.max;
        if is_ranged { (self.max as usize).saturating_sub(self.len()) } else { 0 }
    }

    /// Returns the idle processes, that in the lowest slot first.
    pub(super) fn idle_by_slot(&self) -> Vec<WorkerId> {
        let is_idle = |process: &PoolProcess| matches!(process.state, ProcessState::Idle { .. });
        let idle = self.processes.iter().filter(|(_, process)| is_idle(process));
        let mut idle: Vec<_> = idle.map(|(worker, process)| (process.slot, *worker)).collect();
        idle.sort_unstable();
        idle.into_iter().map(|(_, worker)| worker).collect()
    }

    /// Records that a process got a job.
    pub(super) fn make_busy(&mut self, worker: WorkerId) {
        if let Some(process) = self.processes.get_mut(&worker) {
            process.state = ProcessState::Busy;
        }
    }

    /// Returns how many processes would have something to do with `waiting` jobs, if that is more than the supervisor wants.
    pub(super) fn needed_count(&self, waiting: usize, wanted: u32) -> Option<u32> {
        let busy = self.count(|state| state == ProcessState::Busy);
        let needed = u32::try_from(busy + waiting).unwrap_or(u32::MAX).min(self.max);
        (waiting > 0 && needed > wanted && self.min < self.max).then_some(needed)
    }

    /// Keeps a process that was asked to end. It is asked again after its idle timeout, and not at once.
    pub(super) fn keep(&mut self, worker: WorkerId, now: Instant) {
        self.make_idle(worker, now + MIN_RETRY_DELAY.saturating_sub(self.idle_timeout));
    }

    /// Makes a process idle whose job was not sent to it.
    pub(super) fn make_idle(&mut self, worker: WorkerId, now: Instant) {
        if let Some(process) = self.processes.get_mut(&worker) {
            process.state = ProcessState::Idle { since: now };
        }
    }

    /// Records the end of a job in its process, which is idle now.
    pub(super) fn finish_job(&mut self, worker: WorkerId, now: Instant) {
        if let Some(process) = self.processes.get_mut(&worker) {
            process.jobs += 1;
            process.state = ProcessState::Idle { since: now };
        }
    }

    /// Forgets an idle process that has reached a limit, with this much memory resident, and returns which.
    pub(super) fn take_used_up(
        &mut self,
        worker: WorkerId,
        rss: Option<u64>,
    ) -> Option<RecycleReason> {
        let process = self.processes.get(&worker)?;
        if !matches!(process.state, ProcessState::Idle { .. }) {
            return None;
        }
        let memory = rss.filter(|rss| process.max_idle_rss.is_some_and(|max| *rss > max));
        let jobs = self.max_jobs.is_some_and(|max| process.jobs >= max).then_some(process.jobs);
        let reason = memory.map(RecycleReason::Memory).or(jobs.map(RecycleReason::Jobs))?;
        self.processes.remove(&worker);
        Some(reason)
    }

    /// Returns the process in the highest slot, if it is idle, and since when. Others do not end before it.
    fn last_if_idle(&self) -> Option<(WorkerId, Instant)> {
        let stays = |process: &PoolProcess| process.state != ProcessState::AskedToEnd;
        let staying = self.processes.iter().filter(|(_, process)| stays(process));
        if staying.clone().count() <= self.min as usize {
            return None;
        }
        let (worker, process) = staying.max_by_key(|(_, process)| process.slot)?;
        match process.state {
            ProcessState::Idle { since } => Some((*worker, since)),
            ProcessState::Busy | ProcessState::AskedToEnd => None,
        }
    }

    /// Returns when the next process has been idle for too long.
    pub(super) fn next_idle_deadline(&self) -> Option<Instant> {
        self.last_if_idle().and_then(|(_, since)| since.checked_add(self.idle_timeout))
    }

    /// Returns a process that has been idle for too long. It gets no job until `make_idle`, or until it has ended.
    pub(super) fn take_overdue(&mut self, now: Instant) -> Option<WorkerId> {
        self.next_idle_deadline().filter(|deadline| *deadline <= now)?;
        let (worker, _) = self.last_if_idle()?;
        self.processes.get_mut(&worker)?.state = ProcessState::AskedToEnd;
        Some(worker)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Returns the processes 1.. of a pool, in slots from 1024, all idle since `now`.
    fn idle_processes(config: &IsolatedPoolConfig, count: u64, now: Instant) -> PoolProcesses {
        let mut processes = PoolProcesses::new(config);
        for n in 1..=count {
            processes.add(WorkerId(n), Slot(1023 + n as u32), Some(50 * MIB), now);
        }
        processes
    }

    /// Takes the first idle process for a job.
    fn take_idle(processes: &mut PoolProcesses) -> Option<WorkerId> {
        let worker = processes.idle_by_slot().first().copied()?;
        processes.make_busy(worker);
        Some(worker)
    }

    #[test]
    fn jobs_go_to_the_lowest_slot_and_processes_end_from_the_highest() {
        let (now, timeout) = (Instant::now(), Duration::from_secs(10));
        let config = IsolatedPoolConfig::new("a", 1..=4).idle_timeout(timeout);
        let mut processes = idle_processes(&config, 3, now);
        assert_eq!(take_idle(&mut processes), Some(WorkerId(1)));
        assert_eq!(processes.take_overdue(now + timeout / 2), None);
        assert_eq!(processes.take_overdue(now + timeout), Some(WorkerId(3)));
        assert_eq!(processes.take_overdue(now + timeout), Some(WorkerId(2)));
        assert_eq!(processes.next_idle_deadline(), None, "the smallest number stays");
        // What was asked to end gets no job, unless the supervisor keeps it.
        assert_eq!((take_idle(&mut processes), processes.idle_count()), (None, 0));
        processes.keep(WorkerId(2), now + timeout);
        assert_eq!(processes.next_idle_deadline(), Some(now + timeout * 2));
        assert_eq!(take_idle(&mut processes), Some(WorkerId(2)));
        assert_eq!(processes.next_idle_deadline(), None, "the highest slot is busy");
        processes.retain_serving(&|worker| worker == WorkerId(1));
        assert_eq!((processes.len(), processes.startable_count()), (1, 3));
    }

    #[test]
    fn a_process_that_is_kept_is_not_asked_again_at_once() {
        let now = Instant::now();
        let config = IsolatedPoolConfig::new("a", 0..=1).idle_timeout(Duration::ZERO);
        let mut processes = idle_processes(&config, 1, now);
        assert_eq!(processes.take_overdue(now), Some(WorkerId(1)));
        processes.keep(WorkerId(1), now);
        assert_eq!(processes.next_idle_deadline(), Some(now + MIN_RETRY_DELAY));
    }

    #[test]
    fn more_processes_are_needed_for_waiting_jobs_only_and_up_to_the_maximum() {
        let now = Instant::now();
        let mut processes = idle_processes(&IsolatedPoolConfig::new("a", 0..=4), 1, now);
        assert_eq!(processes.needed_count(0, 0), None);
        take_idle(&mut processes).expect("idle");
        assert_eq!(processes.needed_count(0, 1), None);
        assert_eq!(processes.needed_count(1, 1), Some(2));
        assert_eq!(processes.needed_count(1, 2), None, "one is on its way");
        assert_eq!((processes.needed_count(9, 2), processes.needed_count(9, 4)), (Some(4), None));
        let fixed = idle_processes(&IsolatedPoolConfig::new("a", 2), 2, now);
        assert_eq!((fixed.needed_count(9, 1), fixed.startable_count()), (None, 0));
        assert_eq!(fixed.next_idle_deadline(), None);
    }

    #[test]
    fn a_process_is_replaced_after_its_last_job() {
        let now = Instant::now();
        let config = IsolatedPoolConfig::new("a", 1).max_jobs(2);
        let mut processes = idle_processes(&config, 1, now);
        let worker = take_idle(&mut processes).expect("idle");
        // A job that did not reach the process does not count.
        processes.make_idle(worker, now);
        for replaced in [None, Some(RecycleReason::Jobs(2))] {
            assert_eq!(take_idle(&mut processes), Some(worker));
            processes.finish_job(worker, now);
            assert_eq!(processes.take_used_up(worker, None), replaced);
        }
        assert_eq!((take_idle(&mut processes), processes.len()), (None, 0));
        processes.finish_job(worker, now);
        assert_eq!(processes.take_used_up(worker, None), None, "it is forgotten");
    }

    #[test]
    fn a_process_that_keeps_too_much_memory_is_replaced_before_its_next_job() {
        let now = Instant::now();
        let limits = |config: IsolatedPoolConfig, rss| {
            let mut processes = idle_processes(&config, 1, now);
            let worker = take_idle(&mut processes).expect("idle");
            assert_eq!(processes.take_used_up(worker, Some(rss)), None, "it is busy");
            processes.finish_job(worker, now);
            processes.take_used_up(worker, Some(rss))
        };
        let pool = || IsolatedPoolConfig::new("a", 1);
        // 50 MiB at its start, so that 150 MiB are left to jobs, and three quarters of them are 112.5 MiB.
        assert_eq!(limits(pool().max_rss(200 * MIB), 162 * MIB), None);
        let replaced = limits(pool().max_rss(200 * MIB), 163 * MIB);
        assert_eq!(replaced, Some(RecycleReason::Memory(163 * MIB)));
        let own = pool().max_rss(200 * MIB).max_idle_rss(60 * MIB);
        assert_eq!(limits(own, 61 * MIB), Some(RecycleReason::Memory(61 * MIB)));
        assert_eq!(limits(pool(), 1 << 40), None);
        assert!(!idle_processes(&pool(), 1, now).measures_memory());
    }
}
