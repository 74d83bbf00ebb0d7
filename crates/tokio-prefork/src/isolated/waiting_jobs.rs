//! The jobs of a pool that wait for a process: by priority, and within a priority in turns among their callers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use super::{JobPayload, Priority};
use prefork_supervisor::WorkerId;

/// Identifies a job by its caller and by the number that the caller has given to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct JobKey {
    pub(crate) caller: WorkerId,
    pub(crate) token: u64,
}

/// A job that waits for a process.
#[derive(Debug, Clone)]
pub(crate) struct WaitingJob {
    pub(crate) key: JobKey,
    pub(crate) priority: Priority,
    /// Whether nobody waits for the result.
    pub(crate) is_detached: bool,
    pub(crate) submitted: Instant,
    pub(crate) deadline: Instant,
    /// How often it was sent to a process that ended before the job began.
    pub(crate) failed_starts: u32,
    pub(crate) input: JobPayload,
}

/// The waiting jobs of one priority.
#[derive(Debug, Default)]
struct PriorityQueue {
    by_caller: BTreeMap<WorkerId, VecDeque<WaitingJob>>,
    /// The callers with jobs, each once, in the order of their turns.
    turns: VecDeque<WorkerId>,
}

/// All waiting jobs of a pool.
#[derive(Debug, Default)]
pub(crate) struct WaitingJobs {
    queues: BTreeMap<Priority, PriorityQueue>,
    by_deadline: BTreeSet<(Instant, JobKey)>,
    bytes: usize,
}

impl WaitingJobs {
    pub(crate) fn len(&self) -> usize {
        self.by_deadline.len()
    }

    /// Returns the jobs by priority; within a priority the callers in the order of their turns, each with its jobs in their order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &WaitingJob> {
        self.queues.values().flat_map(|queue| {
            queue.turns.iter().filter_map(|caller| queue.by_caller.get(caller)).flatten()
        })
    }

    /// Returns the size of all inputs.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a job behind the others of its caller.
    pub(crate) fn push_back(&mut self, job: WaitingJob) {
        self.count(&job);
        let queue = self.queues.entry(job.priority).or_default();
        let jobs = queue.by_caller.entry(job.key.caller).or_default();
        if jobs.is_empty() {
            queue.turns.push_back(job.key.caller);
        }
        jobs.push_back(job);
    }

    /// Adds a job before all others of its priority.
    pub(crate) fn push_front(&mut self, job: WaitingJob) {
        self.count(&job);
        let queue = self.queues.entry(job.priority).or_default();
        let caller = job.key.caller;
        queue.by_caller.entry(caller).or_default().push_front(job);
        queue.turns.retain(|one| *one != caller);
        queue.turns.push_front(caller);
    }

    fn count(&mut self, job: &WaitingJob) {
        self.by_deadline.insert((job.deadline, job.key));
        self.bytes += job.input.size();
    }

    fn uncount(&mut self, job: &WaitingJob) {
        self.by_deadline.remove(&(job.deadline, job.key));
        self.bytes -= job.input.size();
    }

    /// Takes the next job of a caller that `is_eligible`.
    pub(crate) fn pop(&mut self, is_eligible: &dyn Fn(WorkerId) -> bool) -> Option<WaitingJob> {
        let job = self.queues.values_mut().find_map(|queue| queue.pop(is_eligible))?;
        self.uncount(&job);
        Some(job)
    }

    /// Returns a waiting job.
    pub(crate) fn get_mut(&mut self, key: JobKey) -> Option<&mut WaitingJob> {
        let mut queues = self.queues.values_mut();
        queues.find_map(|queue| {
            queue.by_caller.get_mut(&key.caller)?.iter_mut().find(|job| job.key == key)
        })
    }

    /// Removes a job.
    pub(crate) fn remove(&mut self, key: JobKey) -> Option<WaitingJob> {
        let job = self.queues.values_mut().find_map(|queue| queue.remove(key))?;
        self.uncount(&job);
        Some(job)
    }

    /// Removes the jobs of a caller that has ended, and returns how many. Detached ones stay.
    pub(crate) fn remove_caller(&mut self, caller: WorkerId) -> u64 {
        let mut removed = 0;
        for queue in self.queues.values_mut() {
            let Some(jobs) = queue.by_caller.get_mut(&caller) else { continue };
            let (kept, abandoned): (VecDeque<_>, VecDeque<_>) =
                jobs.drain(..).partition(|job| job.is_detached);
            *jobs = kept;
            if jobs.is_empty() {
                queue.remove_caller(caller);
            }
            for job in &abandoned {
                self.by_deadline.remove(&(job.deadline, job.key));
                self.bytes -= job.input.size();
            }
            removed += abandoned.len() as u64;
        }
        removed
    }

    /// Takes the jobs whose deadline has passed.
    pub(crate) fn take_expired(&mut self, now: Instant) -> Vec<WaitingJob> {
        let late = self.by_deadline.iter().take_while(|(deadline, _)| *deadline <= now);
        let late: Vec<JobKey> = late.map(|(_, key)| *key).collect();
        late.into_iter().filter_map(|key| self.remove(key)).collect()
    }

    /// Takes all jobs.
    pub(crate) fn take_all(&mut self) -> Vec<WaitingJob> {
        std::iter::from_fn(|| self.pop(&|_| true)).collect()
    }

    /// Returns when the first job is past its deadline.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.by_deadline.first().map(|(deadline, _)| *deadline)
    }
}

impl PriorityQueue {
    fn pop(&mut self, is_eligible: &dyn Fn(WorkerId) -> bool) -> Option<WaitingJob> {
        let turn = self.turns.iter().position(|caller| is_eligible(*caller))?;
        let caller = self.turns.remove(turn)?;
        let jobs = self.by_caller.get_mut(&caller)?;
        let job = jobs.pop_front()?;
        match jobs.is_empty() {
            true => drop(self.by_caller.remove(&caller)),
            false => self.turns.push_back(caller),
        }
        Some(job)
    }

    fn remove(&mut self, key: JobKey) -> Option<WaitingJob> {
        let jobs = self.by_caller.get_mut(&key.caller)?;
        let position = jobs.iter().position(|job| job.key == key)?;
        let job = jobs.remove(position);
        if jobs.is_empty() {
            self.remove_caller(key.caller);
        }
        job
    }

    fn remove_caller(&mut self, caller: WorkerId) {
        self.by_caller.remove(&caller);
        self.turns.retain(|one| *one != caller);
    }
}
