//! One job: from its submission to its one ending, whoever brings that about.
//!
//! Four may want to end a job at the same moment: the thread that ran it, the caller who went away, the
//! deadline, and the end of the pool. All go through its `stage`: who changes it to `Settled` has ended the
//! job, and counts it; who finds it settled leaves it alone. What is the application's (the task, its result,
//! a waker) is dropped and called outside of all locks, and may panic there.

use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Instant;

use super::pool_threads::{Busy, Shared};
use super::{CancelFlag, JobDeadline, PoolError, PoolJob};
use crate::scoreboard::{Ending, PoolMeter};
use crate::text::panic_text;

/// What the queue and the threads know of a job.
pub(super) trait Entry: Send + Sync {
    /// Runs it here and now; `false` if it panicked.
    fn run(&self, busy: Busy<'_>) -> bool;

    /// The pool ends before it could run.
    fn close(&self, meter: &PoolMeter);
}

/// The result of a job.
pub(super) type Outcome<T> = Result<<T as PoolJob>::Output, PoolError>;

/// A job, shared by its caller and the pool.
pub(super) struct Job<T: PoolJob> {
    slot: Mutex<Slot<T>>,
    /// Nobody waits for the result any more.
    cancelled: AtomicBool,
    submitted: Instant,
    deadline: Option<JobDeadline>,
}

pub(super) struct Slot<T: PoolJob> {
    pub(super) stage: Stage<T>,
    pub(super) waker: Option<Waker>,
}

pub(super) enum Stage<T: PoolJob> {
    Waiting(T),
    Running(Instant),
    /// Ended; with the outcome until somebody has taken it.
    Settled(Option<Outcome<T>>),
}

/// What a caller who gave up has left behind.
pub(super) enum Left<T: PoolJob> {
    /// It had not begun, and never will.
    Unrun,
    /// It runs on, for nobody.
    Running,
    /// It had ended before.
    Ended(Option<Outcome<T>>),
}

impl<T: PoolJob> Job<T> {
    pub(super) fn new(task: T, deadline: Option<JobDeadline>) -> Job<T> {
        let slot = Mutex::new(Slot { stage: Stage::Waiting(task), waker: None });
        Job { slot, cancelled: AtomicBool::new(false), submitted: Instant::now(), deadline }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Slot<T>> {
        // A waker that panicked while it was cloned left nothing half done.
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the deadline passes, as far as that is known.
    pub(super) fn due(&self, begun: Option<Instant>) -> Option<Instant> {
        self.deadline?.due(self.submitted, begun)
    }

    pub(super) fn timed_out(&self) -> PoolError {
        let deadline = self.deadline.unwrap_or(JobDeadline::FromStart(std::time::Duration::MAX));
        PoolError::TimedOut { job: T::name(), deadline }
    }

    /// It was refused; the caller learns why.
    pub(super) fn refuse(&self, why: PoolError, ending: Ending, meter: &PoolMeter) {
        let stage = {
            let mut slot = self.lock();
            meter.count(ending);
            mem::replace(&mut slot.stage, Stage::Settled(Some(Err(why))))
        };
        contained(|| drop(stage));
    }

    /// The caller gives up on it. What had not begun is dropped here, in the caller's thread.
    pub(super) fn give_up(&self, ending: Ending, meter: &PoolMeter) -> Left<T> {
        let (stage, waker) = {
            let mut slot = self.lock();
            let stage = mem::replace(&mut slot.stage, Stage::Settled(None));
            if !matches!(stage, Stage::Settled(_)) {
                self.cancelled.store(true, Ordering::Relaxed);
                meter.count(ending);
            }
            (stage, slot.waker.take())
        };
        contained(|| drop(waker));
        match stage {
            Stage::Settled(outcome) => Left::Ended(outcome),
            Stage::Running(_) => Left::Running,
            Stage::Waiting(task) => {
                contained(|| drop(task));
                Left::Unrun
            }
        }
    }

    /// Takes the task out to run it; `None` if the job has ended, or ends here because it is too late.
    fn begin(&self, now: Instant, meter: &PoolMeter) -> Option<T> {
        let (task, waker, late) = {
            let mut slot = self.lock();
            let late = self.due(None).is_some_and(|due| due <= now);
            let next = match late {
                true => Stage::Settled(Some(Err(self.timed_out()))),
                false => Stage::Running(now),
            };
            match mem::replace(&mut slot.stage, next) {
                Stage::Waiting(task) => {
                    // Who waits has to learn when a deadline begins to count.
                    let tell = late || matches!(self.deadline, Some(JobDeadline::FromStart(_)));
                    if late {
                        meter.count(Ending::TimedOut);
                    }
                    (task, if tell { slot.waker.take() } else { None }, late)
                }
                settled => {
                    slot.stage = settled;
                    return None;
                }
            }
        };
        wake(waker);
        if late {
            contained(|| drop(task));
            return None;
        }
        Some(task)
    }

    /// The thread is done with it.
    fn settle(&self, outcome: Outcome<T>, meter: &PoolMeter) {
        let ending = if outcome.is_ok() { Ending::Done } else { Ending::Panicked };
        let mut unwanted = None;
        let waker = {
            let mut slot = self.lock();
            match slot.stage {
                Stage::Settled(_) => unwanted = Some(outcome),
                _ => {
                    slot.stage = Stage::Settled(Some(outcome));
                    meter.count(ending);
                }
            }
            slot.waker.take()
        };
        wake(waker);
        contained(|| drop(unwanted));
    }
}

impl<T: PoolJob> Entry for Job<T> {
    fn run(&self, busy: Busy<'_>) -> bool {
        let shared: &Shared = busy.shared();
        let begun = Instant::now();
        let Some(task) = self.begin(begun, &shared.meter) else { return true };
        let waited = begun.saturating_duration_since(self.submitted);
        shared.meter.begin(shared.us_at(begun), waited);
        let cancel = CancelFlag { job: &self.cancelled, pool: &shared.ending };
        let result = catch_unwind(AssertUnwindSafe(|| task.run(&cancel)));
        let ended = Instant::now();
        shared.meter.end(shared.us_at(ended), ended.saturating_duration_since(begun));
        // Before the caller can learn of it: whoever hears that a job has ended finds a thread idle.
        drop(busy);
        let outcome = result.map_err(|panic| {
            let message = panic_text(&*panic).into_owned();
            contained(|| drop(panic));
            log::error!("{} the job {} panicked: {message}", shared.owner, T::name());
            PoolError::Panicked { job: T::name(), message }
        });
        let healthy = outcome.is_ok();
        self.settle(outcome, &shared.meter);
        healthy
    }

    fn close(&self, meter: &PoolMeter) {
        let (stage, waker) = {
            let mut slot = self.lock();
            if !matches!(slot.stage, Stage::Waiting(_)) {
                return;
            }
            meter.count(Ending::Closed);
            let closed = Stage::Settled(Some(Err(PoolError::Closed)));
            (mem::replace(&mut slot.stage, closed), slot.waker.take())
        };
        wake(waker);
        contained(|| drop(stage));
    }
}

/// Runs what is the application's and must not panic into ours, such as a `Drop`.
pub(super) fn contained(what: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(what)) {
        log::error!("something panicked when the pool dropped or woke it: {}", panic_text(&*panic));
        // Dropping this could panic again.
        mem::forget(panic);
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        contained(|| waker.wake());
    }
}
