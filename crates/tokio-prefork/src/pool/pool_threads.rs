//! The threads of a pool, and the state they share with the callers.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

use super::job_queue::{JobQueue, QueuedJobId};
use super::job_state::{RunnableJob, contain_panic};
use super::{PoolConfig, PoolError};
use crate::scoreboard::{JobOutcome, PoolCounters};

/// The state of a pool.
pub(super) struct PoolState {
    inner: Mutex<QueueAndThreads>,
    /// Notified for each new job, and for all threads at the end.
    job_available: Condvar,
    /// Notified when the last thread has ended.
    threads_ended: Notify,
    /// Whether running jobs are asked to stop. See [`CancelFlag`](super::CancelFlag).
    pub(super) is_aborting: AtomicBool,
    pub(super) counters: PoolCounters,
    /// Identifies the process in the log.
    pub(super) owner: String,
    config: PoolConfig,
    created_at: Instant,
}

/// What the lock protects. It is held for a few instructions, never while code of the application runs.
struct QueueAndThreads {
    queue: JobQueue<Arc<dyn RunnableJob>>,
    /// Threads that exist.
    alive_threads: usize,
    /// Threads that run a job.
    busy_threads: usize,
    /// Threads that wait for a job.
    sleeping_threads: usize,
    /// Sleeping threads that were notified and have not woken up yet. They need no further notification.
    pending_wakeups: usize,
    /// Whether new jobs are rejected.
    is_closed: bool,
}

/// Marks the current thread as busy until it is dropped.
pub(super) struct BusyThreadGuard<'a>(&'a PoolState);

impl<'a> BusyThreadGuard<'a> {
    pub(super) fn shared(&self) -> &'a PoolState {
        self.0
    }
}

impl Drop for BusyThreadGuard<'_> {
    fn drop(&mut self) {
        self.0.lock().busy_threads -= 1;
    }
}

/// Why a job was rejected, and how it is counted.
pub(super) struct RejectedJob {
    pub(super) error: PoolError,
    pub(super) ending: JobOutcome,
}

impl PoolState {
    pub(super) fn new(config: PoolConfig, owner: String, counters: PoolCounters) -> PoolState {
        let queue = JobQueue::new(config.queue, config.newest_first);
        PoolState {
            inner: Mutex::new(QueueAndThreads {
                queue,
                alive_threads: 0,
                busy_threads: 0,
                sleeping_threads: 0,
                pending_wakeups: 0,
                is_closed: false,
            }),
            job_available: Condvar::new(),
            threads_ended: Notify::new(),
            is_aborting: AtomicBool::new(false),
            counters,
            owner,
            config,
            created_at: Instant::now(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, QueueAndThreads> {
        // No code panics with the lock held.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the microseconds from the creation of the pool to `now`.
    pub(super) fn micros_since_start(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.created_at).as_micros())
            .unwrap_or(u64::MAX)
    }

    /// Puts a job into the queue. The first job starts the threads.
    pub(super) fn submit(
        self: &Arc<PoolState>,
        entry: Arc<dyn RunnableJob>,
    ) -> Result<QueuedJobId, RejectedJob> {
        let mut inner = self.lock();
        if inner.is_closed {
            return Err(RejectedJob { error: PoolError::Closed, ending: JobOutcome::Closed });
        }
        if inner.alive_threads == 0 {
            self.start_threads(&mut inner).map_err(|e| {
                let error = PoolError::NoThread { why: e.to_string() };
                RejectedJob { error, ending: JobOutcome::Rejected }
            })?;
        }
        let idle = inner.alive_threads.saturating_sub(inner.busy_threads);
        let waiting = inner.queue.len();
        let pushed = inner.queue.push(entry, idle);
        self.counters.set_depth(inner.queue.len());
        let wake = pushed.is_ok() && inner.sleeping_threads > inner.pending_wakeups;
        inner.pending_wakeups += usize::from(wake);
        drop(inner);
        // The job is dropped without the lock; its caller still has it.
        let full =
            |_| RejectedJob { error: PoolError::Full { waiting }, ending: JobOutcome::Rejected };
        let queued_job = pushed.map_err(full)?;
        if wake {
            self.job_available.notify_one();
        }
        Ok(queued_job)
    }

    /// Removes a job that will not be run from the queue.
    pub(super) fn remove_queued(&self, queued_job: QueuedJobId) {
        let removed = {
            let mut inner = self.lock();
            let removed = inner.queue.remove(queued_job);
            self.counters.set_depth(inner.queue.len());
            removed
        };
        drop(removed);
    }

    /// Rejects new jobs. The threads run what is queued, then end.
    pub(super) fn close(&self) {
        let mut inner = self.lock();
        inner.is_closed = true;
        let has_no_threads = inner.alive_threads == 0;
        drop(inner);
        self.job_available.notify_all();
        if has_no_threads {
            self.threads_ended.notify_waiters();
        }
    }

    /// Rejects new jobs, drops queued ones and sets the cancel flag of running ones. Returns how many still run.
    pub(super) fn abort(&self) -> usize {
        self.is_aborting.store(true, Ordering::Relaxed);
        let (waiting, busy) = {
            let mut inner = self.lock();
            inner.is_closed = true;
            let waiting = inner.queue.drain_all();
            self.counters.set_depth(0);
            (waiting, inner.busy_threads)
        };
        self.close();
        waiting.iter().for_each(|entry| entry.close_unstarted(&self.counters));
        busy
    }

    fn has_ended(&self) -> bool {
        let inner = self.lock();
        inner.is_closed && inner.alive_threads == 0
    }

    /// Waits until the pool is closed and all threads have ended.
    pub(super) async fn wait_until_ended(&self) {
        loop {
            let threads_ended = self.threads_ended.notified();
            let mut threads_ended = std::pin::pin!(threads_ended);
            // From here on no notification is missed.
            threads_ended.as_mut().enable();
            if self.has_ended() {
                return;
            }
            threads_ended.await;
        }
    }
}

impl PoolState {
    /// Starts all threads. Returns an error only if not even one can be started.
    fn start_threads(self: &Arc<PoolState>, inner: &mut QueueAndThreads) -> io::Result<()> {
        for number in 0..self.config.threads.max(1) {
            match self.spawn_thread(number) {
                Ok(()) => inner.alive_threads += 1,
                Err(e) if inner.alive_threads == 0 => return Err(e),
                Err(e) => {
                    let (owner, wanted) = (&self.owner, self.config.threads);
                    log::warn!(
                        "{owner} cannot start all pool threads; started={number} wanted={wanted} error={e}"
                    );
                    break;
                }
            }
        }
        self.counters.threads_started(inner.alive_threads, self.config.queue);
        Ok(())
    }

    fn spawn_thread(self: &Arc<PoolState>, number: usize) -> io::Result<()> {
        let shared = Arc::clone(self);
        let thread = std::thread::Builder::new().name(format!("pool-{number}"));
        // Not joined: a job that never ends must not keep the process from ending. `alive_threads` counts them.
        thread.spawn(move || shared.run_thread(number)).map(drop)
    }

    /// Runs jobs until the pool is closed and its queue empty.
    fn run_thread(self: Arc<PoolState>, number: usize) {
        if let Err(e) = prefork_os::thread::block_signals_in_thread() {
            log::warn!(
                "{} cannot block signals in a pool thread; thread=pool-{number} error={e}",
                self.owner
            );
        }
        if let Err(e) = prefork_os::thread::set_thread_niceness(self.config.nice) {
            log::warn!(
                "{} cannot lower the priority of a pool thread; thread=pool-{number} error={e}",
                self.owner
            );
        }
        while let Some(entry) = self.next_job() {
            let busy = BusyThreadGuard(&self);
            let has_succeeded = catch_unwind(AssertUnwindSafe(|| entry.run(busy))).unwrap_or(false);
            contain_panic(|| drop(entry));
            if !has_succeeded && self.replace_thread(number) {
                return;
            }
        }
        let is_last = {
            let mut inner = self.lock();
            inner.alive_threads -= 1;
            inner.alive_threads == 0
        };
        if is_last {
            self.threads_ended.notify_waiters();
        }
    }

    /// Waits for the next job and marks this thread as busy. Returns `None` when the pool is closed and its queue empty.
    fn next_job(&self) -> Option<Arc<dyn RunnableJob>> {
        let mut inner = self.lock();
        loop {
            if let Some(entry) = inner.queue.pop() {
                inner.busy_threads += 1;
                self.counters.set_depth(inner.queue.len());
                return Some(entry);
            }
            if inner.is_closed {
                return None;
            }
            inner.sleeping_threads += 1;
            inner = self.job_available.wait(inner).unwrap_or_else(PoisonError::into_inner);
            inner.sleeping_threads -= 1;
            // A spurious wake-up uses up the notification of another thread, which then finds no job and sleeps again.
            inner.pending_wakeups = inner.pending_wakeups.saturating_sub(1);
        }
    }

    /// Starts a new thread in place of one whose job panicked, because its thread-local state is unknown.
    ///
    /// Returns `false` if none can be started; then the old thread continues.
    fn replace_thread(self: &Arc<PoolState>, number: usize) -> bool {
        match self.spawn_thread(number) {
            Ok(()) => true,
            Err(e) => {
                log::warn!(
                    "{} cannot replace the thread of a job that panicked, and keeps it; thread=pool-{number} error={e}",
                    self.owner
                );
                false
            }
        }
    }
}
