//! The state that the threads of a pool share with the callers: the queue, and what each thread does.

use std::any::Any;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::current_thread;
use super::job_queue::{JobQueue, QueuedJobId, WhenQueueFull};
use super::job_state::{RunnableJob, UnstartedEnd};
use super::{PoolConfig, PoolError};
use crate::error::BoxError;
use crate::scoreboard::{JobOutcome, PoolCounters};

/// How long a pool that has threads waits after a thread could not be started before it tries again.
const THREAD_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Makes the state of a thread, on that thread.
pub(super) type ThreadInit = Arc<dyn Fn() -> Result<Box<dyn Any>, BoxError> + Send + Sync>;

/// Who a pool is, in logs and in the names of its threads.
pub(crate) struct PoolNames {
    /// Starts the log lines. `None`: the process id.
    pub(crate) owner: Option<String>,
    /// Starts the names of the threads.
    pub(crate) threads: String,
}

/// The state of a pool.
pub(super) struct PoolState {
    inner: Mutex<QueueAndThreads>,
    /// Notified when a closed pool has lost its last thread, or its last result was read.
    has_changed: Notify,
    /// Whether new jobs are rejected; a copy of `QueueAndThreads::is_closed` that needs no lock.
    is_closed: AtomicBool,
    /// Futures that have neither returned a result nor were dropped.
    unread_results: AtomicUsize,
    /// Whether running jobs are asked to stop. See [`CancelFlag`](super::CancelFlag).
    pub(super) is_aborting: AtomicBool,
    pub(super) counters: PoolCounters,
    pub(super) names: PoolNames,
    pub(super) config: PoolConfig,
    /// Makes the state of each thread of a task pool.
    pub(super) thread_init: Option<ThreadInit>,
    created_at: Instant,
}

/// What the lock protects. It is held for a few instructions, never while code of the application runs.
pub(super) struct QueueAndThreads {
    pub(super) queue: JobQueue<Arc<dyn RunnableJob>>,
    pub(super) threads: Vec<ThreadEntry>,
    /// Threads that run jobs or will do so, starting ones included.
    pub(super) alive_threads: usize,
    /// Threads that take no more jobs and have not ended yet.
    pub(super) ending_threads: usize,
    /// Threads that run a job.
    pub(super) busy_threads: usize,
    /// Threads that wait for a job, each until it is taken from here to be woken. The latest is woken first, so that the others
    /// reach their idle timeout.
    pub(super) sleeping_threads: Vec<usize>,
    /// Whether new jobs are rejected.
    pub(super) is_closed: bool,
    /// When to try again to start a thread beside those that exist.
    retry_thread_at: Option<Instant>,
}

/// One thread of a pool. Its index is its slot, which a later thread uses again.
#[derive(Default)]
pub(super) struct ThreadEntry {
    /// Whether a thread has this slot.
    pub(super) exists: bool,
    /// Notified when there is a job for this thread, and when the pool is closed.
    pub(super) job_available: Arc<Condvar>,
    /// The job that it runs.
    pub(super) running: Option<Arc<dyn RunnableJob>>,
    /// The jobs of this pool that its job waits for.
    pub(super) waits_for: Vec<Arc<dyn RunnableJob>>,
}

impl QueueAndThreads {
    /// Returns the slot of a new thread, which counts as alive.
    pub(super) fn add_thread(&mut self) -> usize {
        let slot = self.threads.iter().position(|thread| !thread.exists);
        let slot = slot.unwrap_or(self.threads.len());
        if slot == self.threads.len() {
            self.threads.push(ThreadEntry::default());
        }
        self.threads[slot].exists = true;
        self.alive_threads += 1;
        slot
    }

    /// Returns how many threads to start for the jobs that wait.
    fn missing_threads(&self, config: &PoolConfig) -> usize {
        let most = config.max_threads().saturating_sub(self.alive_threads);
        let spare = self.alive_threads.saturating_sub(self.busy_threads);
        let needs_thread = self.queue.len_with_waiting_for_room() > spare;
        match self.alive_threads {
            0 => config.kept_threads().max(1).min(most),
            _ if !needs_thread || most == 0 => 0,
            _ => usize::from(self.retry_thread_at.is_none_or(|at| Instant::now() >= at)),
        }
    }
}

/// Why a job was rejected, and how it is counted.
pub(super) struct RejectedJob {
    pub(super) error: PoolError,
    pub(super) ending: JobOutcome,
}

/// What a job needs in the queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct QueueOptions {
    pub(super) lane: usize,
    pub(super) when_full: WhenQueueFull,
}

impl PoolState {
    pub(super) fn new(
        config: PoolConfig,
        names: PoolNames,
        counters: PoolCounters,
        thread_init: Option<ThreadInit>,
    ) -> PoolState {
        PoolState {
            inner: Mutex::new(QueueAndThreads {
                queue: JobQueue::new(config.queue, config.newest_first),
                threads: Vec::new(),
                alive_threads: 0,
                ending_threads: 0,
                busy_threads: 0,
                sleeping_threads: Vec::new(),
                is_closed: false,
                retry_thread_at: None,
            }),
            has_changed: Notify::new(),
            is_closed: AtomicBool::new(false),
            unread_results: AtomicUsize::new(0),
            is_aborting: AtomicBool::new(false),
            counters,
            names,
            config,
            thread_init,
            created_at: Instant::now(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, QueueAndThreads> {
        // No code panics with the lock held.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns what starts the log lines of this pool.
    pub(super) fn owner(&self) -> String {
        // Not stored: a pool may be created before the fork of the process that uses it.
        self.names.owner.clone().unwrap_or_else(|| format!("pid={}", std::process::id()))
    }

    /// Returns the microseconds from the creation of the pool to `now`.
    pub(super) fn micros_since_start(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.created_at).as_micros())
            .unwrap_or(u64::MAX)
    }

    pub(super) fn publish_threads(&self, inner: &QueueAndThreads) {
        self.counters.threads_started(inner.alive_threads, self.config.queue);
    }

    /// Puts a job into the queue, and starts the threads that it needs.
    pub(super) fn submit(
        self: &Arc<PoolState>,
        entry: Arc<dyn RunnableJob>,
        options: QueueOptions,
    ) -> Result<QueuedJobId, RejectedJob> {
        let mut inner = self.lock();
        // A job that runs may use more jobs: a drain waits for it.
        let is_aborting = self.is_aborting.load(Ordering::Relaxed);
        if inner.is_closed && (is_aborting || !current_thread::is_running_job()) {
            return Err(RejectedJob { error: PoolError::Closed, ending: JobOutcome::Closed });
        }
        let idle = self.config.max_threads().saturating_sub(inner.busy_threads);
        let waiting = inner.queue.len();
        let pushed = inner.queue.push(Arc::clone(&entry), options.lane, idle, options.when_full);
        let Ok(queued_job) = pushed else {
            let error = PoolError::Full { waiting };
            return Err(RejectedJob { error, ending: JobOutcome::Rejected });
        };
        self.counters.set_depth(inner.queue.len());
        let sleeping = inner.sleeping_threads.pop();
        let woken = sleeping.map(|slot| Arc::clone(&inner.threads[slot].job_available));
        let missing = inner.missing_threads(&self.config);
        let new_threads: Vec<usize> = (0..missing).map(|_| inner.add_thread()).collect();
        if missing > 0 {
            self.publish_threads(&inner);
        }
        drop(inner);
        if let Some(job_available) = woken {
            job_available.notify_one();
        }
        for slot in new_threads {
            if let Err(e) = self.spawn_thread(slot, None) {
                self.report_missing_thread(slot, &e, &entry)?;
            }
        }
        Ok(queued_job)
    }

    /// Handles that a thread could not be started. If the pool has no other one, all queued jobs end; for `submitted` that is the
    /// error.
    fn report_missing_thread(
        &self,
        slot: usize,
        error: &io::Error,
        submitted: &Arc<dyn RunnableJob>,
    ) -> Result<(), RejectedJob> {
        let stranded = {
            let mut inner = self.lock();
            inner.retry_thread_at = Some(Instant::now() + THREAD_RETRY_INTERVAL);
            inner.ending_threads += 1;
            self.remove_alive_thread(&mut inner)
        };
        self.thread_ended(slot);
        log::warn!(
            "{} cannot start a pool thread; thread={} error={error}",
            self.owner(),
            self.thread_name(slot)
        );
        let why = error.to_string();
        let is_submitted = |entry: &Arc<dyn RunnableJob>| {
            std::ptr::addr_eq(Arc::as_ptr(entry), Arc::as_ptr(submitted))
        };
        let is_stranded = stranded.iter().any(is_submitted);
        let others = stranded.iter().filter(|entry| !is_submitted(entry));
        self.end_unstarted(others, &UnstartedEnd::NoThread(why.clone()));
        match is_stranded {
            true => {
                let error = PoolError::NoThread { why };
                Err(RejectedJob { error, ending: JobOutcome::Rejected })
            }
            false => Ok(()),
        }
    }

    /// Counts one thread less that takes jobs. Returns the jobs that no thread is left for.
    pub(super) fn remove_alive_thread(
        &self,
        inner: &mut QueueAndThreads,
    ) -> Vec<Arc<dyn RunnableJob>> {
        inner.alive_threads -= 1;
        self.publish_threads(inner);
        if inner.alive_threads > 0 {
            return Vec::new();
        }
        let stranded = inner.queue.drain_all();
        self.counters.set_depth(inner.queue.len());
        stranded
    }

    /// Ends jobs that have not started.
    pub(super) fn end_unstarted<'a>(
        &self,
        entries: impl IntoIterator<Item = &'a Arc<dyn RunnableJob>>,
        why: &UnstartedEnd,
    ) {
        entries.into_iter().for_each(|entry| entry.end_unstarted(why, &self.counters));
    }

    /// Records that the thread of a slot has ended, apart from the thread itself.
    pub(super) fn thread_ended(&self, slot: usize) {
        let mut inner = self.lock();
        inner.threads[slot].exists = false;
        inner.ending_threads -= 1;
        let is_last = inner.alive_threads == 0 && inner.ending_threads == 0;
        drop(inner);
        if is_last {
            self.has_changed.notify_waiters();
        }
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
        self.is_closed.store(true, Ordering::SeqCst);
        let sleeping = std::mem::take(&mut inner.sleeping_threads);
        sleeping.iter().for_each(|slot| inner.threads[*slot].job_available.notify_one());
        drop(inner);
        self.has_changed.notify_waiters();
    }

    /// Rejects new jobs, drops queued ones and sets the cancel flag of running ones. Returns how many still run.
    pub(super) fn abort(&self) -> usize {
        self.is_aborting.store(true, Ordering::Relaxed);
        let (waiting, busy) = {
            let mut inner = self.lock();
            let waiting = inner.queue.drain_all();
            self.counters.set_depth(0);
            (waiting, inner.busy_threads)
        };
        self.close();
        self.end_unstarted(&waiting, &UnstartedEnd::Closed);
        busy
    }

    /// Ends the running jobs for their callers, because the process exits before the jobs end.
    pub(super) fn cut_running_jobs(&self) {
        let running: Vec<_> =
            self.lock().threads.iter().filter_map(|thread| thread.running.clone()).collect();
        running.iter().for_each(|entry| entry.cut(&self.counters));
    }

    /// Counts a future whose result is not read yet.
    pub(super) fn add_unread_result(&self) {
        self.unread_results.fetch_add(1, Ordering::SeqCst);
    }

    /// Records that a future has returned its result, or was dropped.
    pub(super) fn remove_unread_result(&self) {
        let is_last = self.unread_results.fetch_sub(1, Ordering::SeqCst) == 1;
        if is_last && self.is_closed.load(Ordering::SeqCst) {
            self.has_changed.notify_waiters();
        }
    }

    /// Returns how many futures have neither returned a result nor were dropped.
    pub(super) fn unread_results(&self) -> usize {
        self.unread_results.load(Ordering::SeqCst)
    }

    /// Returns whether the pool is closed and all threads have ended.
    pub(super) fn has_ended(&self) -> bool {
        let inner = self.lock();
        inner.is_closed && inner.alive_threads == 0 && inner.ending_threads == 0
    }

    /// Waits until the pool is closed and `is_reached` is true. The latter may change when a thread ends or a result is read.
    pub(super) async fn wait_until(&self, is_reached: impl Fn(&PoolState) -> bool) {
        loop {
            let changed = self.has_changed.notified();
            let mut changed = std::pin::pin!(changed);
            // From here on no notification is missed.
            changed.as_mut().enable();
            if self.is_closed.load(Ordering::SeqCst) && is_reached(self) {
                return;
            }
            changed.await;
        }
    }
}
