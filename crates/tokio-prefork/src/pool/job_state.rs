//! The state of one job, from submission to its single ending.
//!
//! Four parties may end a job at the same moment: the thread that runs it, the caller that drops its future, the deadline, and
//! the end of the pool. All of them change [`JobStage`] under its lock. The first one to set [`JobStage::Ended`] has ended the job
//! and counts it; the others leave it alone. Values of the application (the job, its result, a waker) are dropped and called
//! outside of all locks, because they may panic.

use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Waker;
use std::time::Instant;

use super::pool_state::PoolState;
use super::pool_threads::BusyThreadGuard;
use super::{CancelFlag, JobDeadline, PoolError, PoolJob};
use crate::panic_location::catch_panic_with_location;
use crate::scoreboard::{JobOutcome, PoolCounters};
use crate::text::panic_text;

/// A job without its type, as the queue and the threads handle it.
pub(super) trait RunnableJob: Send + Sync {
    /// Runs the job on the current thread. Returns `false` if it panicked.
    fn run(&self, busy: BusyThreadGuard<'_>) -> bool;

    /// Ends the job if it has not started.
    fn end_unstarted(&self, why: &UnstartedEnd, counters: &PoolCounters);

    /// Ends the job with [`PoolError::Cut`] if it runs. Its thread continues, and its result will be dropped.
    fn cut(&self, counters: &PoolCounters);

    /// Returns whether the job still waits for a thread.
    fn is_queued(&self) -> bool;

    /// Returns whether the job has its verdict.
    fn has_ended(&self) -> bool;

    /// Returns whether the result of the running job is no longer wanted.
    fn should_stop(&self) -> bool;
}

/// Why a job ends that has not started.
#[derive(Debug, Clone)]
pub(super) enum UnstartedEnd {
    Closed,
    NoThread(String),
    WouldDeadlock,
}

impl UnstartedEnd {
    fn to_error(&self, job: &'static str) -> (PoolError, JobOutcome) {
        match self {
            UnstartedEnd::Closed => (PoolError::Closed, JobOutcome::Closed),
            UnstartedEnd::NoThread(why) => {
                (PoolError::NoThread { why: why.clone() }, JobOutcome::Rejected)
            }
            UnstartedEnd::WouldDeadlock => (PoolError::WouldDeadlock { job }, JobOutcome::Rejected),
        }
    }
}

/// The result of a job, or why there is none.
pub(super) type JobResult<T> = Result<<T as PoolJob>::Output, PoolError>;

/// A job, shared by its caller and the pool.
pub(super) struct JobState<T: PoolJob> {
    progress: Mutex<JobProgress<T>>,
    /// Whether the caller no longer waits for the result.
    is_cancelled: AtomicBool,
    submitted: Instant,
    started: OnceLock<Instant>,
    deadline: Option<JobDeadline>,
    /// The name of the job in errors and logs.
    name: &'static str,
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
    /// Runs since the moment in `JobState::started`.
    Running,
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
    pub(super) fn new(task: T, name: &'static str, deadline: Option<JobDeadline>) -> JobState<T> {
        let progress = Mutex::new(JobProgress { stage: JobStage::Queued(task), waker: None });
        JobState {
            progress,
            is_cancelled: AtomicBool::new(false),
            submitted: Instant::now(),
            started: OnceLock::new(),
            deadline,
            name,
        }
    }

    pub(super) fn lock_progress(&self) -> MutexGuard<'_, JobProgress<T>> {
        // A waker that panics in `clone` leaves no change half done.
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// Returns when the deadline passes; `None` without a deadline, or while its start is unknown.
    pub(super) fn deadline_at(&self) -> Option<Instant> {
        self.deadline?.passes_at(self.submitted, self.started.get().copied())
    }

    /// Returns the error for a job that missed its deadline.
    pub(super) fn timeout_error(&self, has_begun: bool) -> PoolError {
        let deadline = self.deadline.unwrap_or(JobDeadline::FromStart(std::time::Duration::MAX));
        PoolError::TimedOut { job: self.name, deadline, has_begun }
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

    /// Ends a job that the pool did not accept, and returns it.
    pub(super) fn take_rejected(&self, ending: JobOutcome, counters: &PoolCounters) -> Option<T> {
        let mut progress = self.lock_progress();
        match mem::replace(&mut progress.stage, JobStage::Ended(None)) {
            JobStage::Queued(job) => {
                counters.job_ended(ending);
                Some(job)
            }
            other => {
                progress.stage = other;
                None
            }
        }
    }

    /// Takes the error of a job that the pool did not accept. `None` for other jobs.
    pub(super) fn take_error(&self) -> Option<PoolError> {
        match &mut self.lock_progress().stage {
            JobStage::Ended(result @ Some(Err(_))) => result.take().and_then(Result::err),
            _ => None,
        }
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
            JobStage::Running => AbandonedJob::StillRunning,
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
            let is_late = self.deadline_at().is_some_and(|due| due <= now);
            let next = match is_late {
                true => JobStage::Ended(Some(Err(self.timeout_error(false)))),
                false => JobStage::Running,
            };
            match mem::replace(&mut progress.stage, next) {
                JobStage::Queued(task) => {
                    if !is_late {
                        // Only here, so it was not set before.
                        let _ = self.started.set(now);
                    }
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
        let ending = match &outcome {
            Ok(_) => JobOutcome::Done,
            Err(PoolError::TimedOut { .. }) => JobOutcome::TimedOut,
            Err(_) => JobOutcome::Panicked,
        };
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
            deadline: self.deadline_at(),
        };
        let result = catch_panic_with_location(|| task.run(&cancel));
        let ended = Instant::now();
        shared.counters.job_left_thread(
            shared.micros_since_start(ended),
            ended.saturating_duration_since(started),
        );
        // Before the caller is woken, so that it finds this thread idle.
        drop(busy);
        let outcome = result.map_err(|panic| {
            let (message, location) = (panic.message(), panic.location);
            contain_panic(|| drop(panic.payload));
            log::error!(
                "{} a job panicked; job={} location={} error={message}",
                shared.owner(),
                self.name,
                location.as_deref().unwrap_or("unknown")
            );
            PoolError::Panicked { job: self.name, message, location }
        });
        let has_panicked = outcome.is_err();
        let is_late = cancel.deadline.is_some_and(|deadline| deadline <= ended);
        match outcome {
            // Its flag was set, so the result may be incomplete, even if the caller has not noticed the deadline yet.
            Ok(result) if is_late => {
                self.finish(Err(self.timeout_error(true)), &shared.counters);
                contain_panic(|| drop(result));
            }
            outcome => self.finish(outcome, &shared.counters),
        }
        !has_panicked
    }

    fn end_unstarted(&self, why: &UnstartedEnd, counters: &PoolCounters) {
        let (stage, waker) = {
            let mut progress = self.lock_progress();
            if !matches!(progress.stage, JobStage::Queued(_)) {
                return;
            }
            let (error, ending) = why.to_error(self.name);
            counters.job_ended(ending);
            let ended = JobStage::Ended(Some(Err(error)));
            (mem::replace(&mut progress.stage, ended), progress.waker.take())
        };
        wake_containing_panics(waker);
        contain_panic(|| drop(stage));
    }

    fn cut(&self, counters: &PoolCounters) {
        let waker = {
            let mut progress = self.lock_progress();
            if !matches!(progress.stage, JobStage::Running) {
                return;
            }
            self.is_cancelled.store(true, Ordering::Relaxed);
            // Its caller goes away, as the process exits.
            counters.job_ended(JobOutcome::Cancelled);
            progress.stage = JobStage::Ended(Some(Err(PoolError::Cut { job: self.name })));
            progress.waker.take()
        };
        wake_containing_panics(waker);
    }

    fn is_queued(&self) -> bool {
        matches!(self.lock_progress().stage, JobStage::Queued(_))
    }

    fn has_ended(&self) -> bool {
        matches!(self.lock_progress().stage, JobStage::Ended(_))
    }

    fn should_stop(&self) -> bool {
        self.is_cancelled.load(Ordering::Relaxed)
            || self.deadline_at().is_some_and(|deadline| deadline <= Instant::now())
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
