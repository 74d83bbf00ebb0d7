//! Finds jobs that wait for jobs of their own pool while no thread is left to run these.

use std::sync::Arc;

use super::job_state::{RunnableJob, UnstartedEnd};
use super::pool_state::{PoolState, QueueAndThreads, ThreadEntry};

fn is_same_job(a: &Arc<dyn RunnableJob>, b: &Arc<dyn RunnableJob>) -> bool {
    std::ptr::addr_eq(Arc::as_ptr(a), Arc::as_ptr(b))
}

/// Returns whether the job of a thread waits, and nothing that it waits for has ended.
fn is_blocked(thread: &ThreadEntry) -> bool {
    !thread.waits_for.is_empty() && thread.waits_for.iter().all(|job| !job.has_ended())
}

/// Returns a job that a thread waits for and that cannot begin, because all threads wait.
fn find_deadlocked_job(inner: &QueueAndThreads) -> Option<Arc<dyn RunnableJob>> {
    let blocked = inner.threads.iter().filter(|thread| thread.exists && is_blocked(thread));
    if blocked.count() < inner.alive_threads {
        return None;
    }
    // All threads wait, so the jobs they wait for are theirs, or are queued. The last one to wait is most likely in the last entry.
    let mut waited_for = inner.threads.iter().flat_map(|thread| &thread.waits_for);
    waited_for.rfind(|job| job.is_queued()).cloned()
}

impl PoolState {
    /// Records that the job of thread `slot` waits for `job`.
    ///
    /// If all threads wait for each other then, ends one of the jobs that they wait for. Returns whether it did.
    pub(super) fn begin_wait(&self, slot: usize, job: Arc<dyn RunnableJob>) -> bool {
        let victim = {
            let mut inner = self.lock();
            let is_own = job.is_queued().then(|| Arc::clone(&job));
            inner.threads[slot].waits_for.push(job);
            find_deadlocked_job(&inner).map(|other| is_own.unwrap_or(other))
        };
        if let Some(victim) = &victim {
            victim.end_unstarted(&UnstartedEnd::WouldDeadlock, &self.counters);
            self.remove_queued_job(victim);
        }
        victim.is_some()
    }

    /// Records that thread `slot` waits for `job` no more.
    pub(super) fn end_wait(&self, slot: usize, job: &Arc<dyn RunnableJob>) {
        let mut inner = self.lock();
        if let Some(thread) = inner.threads.get_mut(slot) {
            // The caller has the job, so nothing is dropped here.
            thread.waits_for.retain(|waited_for| !is_same_job(waited_for, job));
        }
    }

    /// Removes an ended job from the queue.
    fn remove_queued_job(&self, job: &Arc<dyn RunnableJob>) {
        let mut inner = self.lock();
        let removed = inner.queue.remove_where(|queued| is_same_job(queued, job));
        self.counters.set_depth(inner.queue.len());
        drop(inner);
        drop(removed);
    }
}
