//! The state of one job, from submission to its single ending.
//!
//! Four parties may end a job at the same moment: the thread that runs it, the caller that drops its future, the deadline, and
//! the end of the pool. All of them change [`JobStage`] under its lock. The first one to set [`JobStage::Ended`] has ended the job
//! and counts it; the others leave it alone. Values of the application (the job, its result, a waker) are dropped and called
//! outside of all locks, because they may panic.

use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Instant;

use super::pool_threads::{BusyThreadGuard, PoolState};
use super::{CancelFlag, JobDeadline, PoolError, PoolJob};
use crate::scoreboard::{JobOutcome, PoolCounters};
use crate::text::panic_text;

/// A job without its type, as the queue and the threads handle it.
pub(super) trait RunnableJob: Send + Sync {
    /// Runs the job on the current thread. Returns `false` if it panicked.
    fn run(&self, busy: BusyThreadGuard<'_>) -> bool;

    /// Ends the job with [`PoolError::Closed`] if it has not started.
    fn close_unstarted(&self, counters: &PoolCounters);
}

/// The result of a job, or why there is none.
pub(super) type JobResult<T> = Result<<T as PoolJob>::Output, PoolError>;

/// A job, shared by its caller and the pool.
pub(super) struct JobState<T: PoolJob> {
    progress: Mutex<JobProgress<T>>,
    /// Whether the caller no longer waits for the result.
    is_cancelled: AtomicBool,
    submitted: Instant,
    deadline: Option<JobDeadline>,
}

/// How far a job is, and the waker to call when that changes.
pub(super) struct JobProgress<T: PoolJob> {
    pub(super) stage: JobStage<T>,
    pub(super) waker: Option<Waker>,
}

/// The stages of a job.
pub(super) enum JobStage<T: PoolJob> {
    /// Waits for a thread.
    Queued(T),
    /// Runs since this moment.
    Running(Instant),
    /// Has ended. Holds the result until the caller reads it.
    Ended(Option<JobResult<T>>),
}

/// What a job was doing when its caller abandoned it.
pub(super) enum AbandonedJob<T: PoolJob> {
    /// The job had not started and never will.
    NeverStarted,
    /// The job still runs; its result is dropped.
    StillRunning,
    /// The job had already ended. Holds the result unless that was read.
    AlreadyEnded(Option<JobResult<T>>),
}

impl<T: PoolJob> JobState<T> {
    pub(super) fn new(task: T, deadline: Option<JobDeadline>) -> JobState<T> {
        let progress = Mutex::new(JobProgress { stage: JobStage::Queued(task), waker: None });
        JobState {
            progress,
            is_cancelled: AtomicBool::new(false),
            submitted: Instant::now(),
            deadline,
        }
    }

    pub(super) fn lock_progress(&self) -> MutexGuard<'_, JobProgress<T>> {
        // A waker that panics in `clone` leaves no change half done.
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when the deadline passes; `None` without a deadline, or while its start is unknown.
    pub(super) fn deadline_at(&self, started: Option<Instant>) -> Option<Instant> {
        self.deadline?.passes_at(self.submitted, started)
    }

    /// Returns the error for a job that missed its deadline.
    pub(super) fn timeout_error(&self) -> PoolError {
        let deadline = self.deadline.unwrap_or(JobDeadline::FromStart(std::time::Duration::MAX));
        PoolError::TimedOut { job: T::name(), deadline }
    }

    /// Ends a job that the pool did not accept, with `why`.
    pub(super) fn reject(&self, why: PoolError, ending: JobOutcome, counters: &PoolCounters) {
        let stage = {
            let mut progress = self.lock_progress();
            counters.job_ended(ending);
            mem::replace(&mut progress.stage, JobStage::Ended(Some(Err(why))))
        };
        contain_panic(|| drop(stage));
    }

    /// Ends the job for a caller that gives it up. A job that has not started is dropped here, in the caller's thread.
    pub(super) fn abandon(&self, ending: JobOutcome, counters: &PoolCounters) -> AbandonedJob<T> {
        let (stage, waker) = {
            let mut progress = self.lock_progress();
            let stage = mem::replace(&mut progress.stage, JobStage::Ended(None));
            if !matches!(stage, JobStage::Ended(_)) {
                self.is_cancelled.store(true, Ordering::Relaxed);
                counters.job_ended(ending);
            }
            (stage, progress.waker.take())
        };
        contain_panic(|| drop(waker));
        match stage {
            JobStage::Ended(outcome) => AbandonedJob::AlreadyEnded(outcome),
            JobStage::Running(_) => AbandonedJob::StillRunning,
            JobStage::Queued(task) => {
                contain_panic(|| drop(task));
                AbandonedJob::NeverStarted
            }
        }
    }

    /// Takes the job out to run it. Returns `None` if it has ended, or ends it here because its deadline has passed.
    fn start(&self, now: Instant, counters: &PoolCounters) -> Option<T> {
        let (task, waker, is_late) = {
            let mut progress = self.lock_progress();
            let is_late = self.deadline_at(None).is_some_and(|due| due <= now);
            let next = match is_late {
                true => JobStage::Ended(Some(Err(self.timeout_error()))),
                false => JobStage::Running(now),
            };
            match mem::replace(&mut progress.stage, next) {
                JobStage::Queued(task) => {
                    // With `FromStart` the deadline begins now, so the caller has to set its timer.
                    let should_wake =
                        is_late || matches!(self.deadline, Some(JobDeadline::FromStart(_)));
                    if is_late {
                        counters.job_ended(JobOutcome::TimedOut);
                    }
                    (task, if should_wake { progress.waker.take() } else { None }, is_late)
                }
                ended_stage => {
                    progress.stage = ended_stage;
                    return None;
                }
            }
        };
        wake_containing_panics(waker);
        if is_late {
            contain_panic(|| drop(task));
            return None;
        }
        Some(task)
    }

    /// Ends the job with the result of its thread, unless it was abandoned meanwhile.
    fn finish(&self, outcome: JobResult<T>, counters: &PoolCounters) {
        let ending = if outcome.is_ok() { JobOutcome::Done } else { JobOutcome::Panicked };
        let mut unread = None;
        let waker = {
            let mut progress = self.lock_progress();
            match progress.stage {
                JobStage::Ended(_) => unread = Some(outcome),
                _ => {
                    progress.stage = JobStage::Ended(Some(outcome));
                    counters.job_ended(ending);
                }
            }
            progress.waker.take()
        };
        wake_containing_panics(waker);
        contain_panic(|| drop(unread));
    }
}

impl<T: PoolJob> RunnableJob for JobState<T> {
    fn run(&self, busy: BusyThreadGuard<'_>) -> bool {
        let shared: &PoolState = busy.shared();
        let started = Instant::now();
        let Some(task) = self.start(started, &shared.counters) else { return true };
        let waited = started.saturating_duration_since(self.submitted);
        shared.counters.job_started(shared.micros_since_start(started), waited);
        let cancel = CancelFlag {
            job_is_cancelled: &self.is_cancelled,
            pool_is_aborting: &shared.is_aborting,
        };
        let result = catch_unwind(AssertUnwindSafe(|| task.run(&cancel)));
        let ended = Instant::now();
        shared.counters.job_left_thread(
            shared.micros_since_start(ended),
            ended.saturating_duration_since(started),
        );
        // Before the caller is woken, so that it finds this thread idle.
        drop(busy);
        let outcome = result.map_err(|panic| {
            let message = panic_text(&*panic).into_owned();
            contain_panic(|| drop(panic));
            log::error!("{} a job panicked; job={} error={message}", shared.owner, T::name());
            PoolError::Panicked { job: T::name(), message }
        });
        let has_succeeded = outcome.is_ok();
        self.finish(outcome, &shared.counters);
        has_succeeded
    }

    fn close_unstarted(&self, counters: &PoolCounters) {
        let (stage, waker) = {
            let mut progress = self.lock_progress();
            if !matches!(progress.stage, JobStage::Queued(_)) {
                return;
            }
            counters.job_ended(JobOutcome::Closed);
            let closed = JobStage::Ended(Some(Err(PoolError::Closed)));
            (mem::replace(&mut progress.stage, closed), progress.waker.take())
        };
        wake_containing_panics(waker);
        contain_panic(|| drop(stage));
    }
}

/// Runs code of the application, such as a `Drop`, and logs a panic instead of passing it on.
pub(super) fn contain_panic(what: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(what)) {
        log::error!("a destructor or waker panicked in the pool; error={}", panic_text(&*panic));
        // Dropping the payload could panic again.
        mem::forget(panic);
    }
}

fn wake_containing_panics(waker: Option<Waker>) {
    if let Some(waker) = waker {
        contain_panic(|| waker.wake());
    }
}
