//! The threads of a pool: they start on demand, run jobs, and end when they are idle or the pool is closed.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};

use super::current_thread;
use super::job_state::{RunnableJob, UnstartedEnd, contain_panic};
use super::pool_state::PoolState;
use crate::panic_location::catch_panic_with_location;

/// The longest part of a pool's name in the names of its threads, of which the kernel keeps 15 bytes.
const MAX_THREAD_NAME_PREFIX: usize = 11;

/// Receives whether the state of a new thread was made.
pub(super) type StartReport = Box<dyn FnOnce(Result<(), String>) + Send>;

/// Marks the current thread as busy until it is dropped.
pub(super) struct BusyThreadGuard<'a> {
    state: &'a PoolState,
    slot: usize,
}

impl<'a> BusyThreadGuard<'a> {
    pub(super) fn shared(&self) -> &'a PoolState {
        self.state
    }
}

impl Drop for BusyThreadGuard<'_> {
    fn drop(&mut self) {
        let left = {
            let mut inner = self.state.lock();
            inner.busy_threads -= 1;
            let thread = &mut inner.threads[self.slot];
            (thread.running.take(), std::mem::take(&mut thread.waits_for))
        };
        // Without the lock, as this may drop the results of other jobs.
        contain_panic(|| drop(left));
    }
}

/// Why a thread stopped taking jobs.
#[derive(PartialEq, Eq)]
enum StopReason {
    /// It was idle for too long, or the pool is closed and its queue empty.
    NoMoreJobs,
    /// A job has panicked, so that the thread-local state is unknown.
    Panic,
}

impl PoolState {
    /// Returns the name of the thread in a slot.
    pub(super) fn thread_name(&self, slot: usize) -> String {
        let name = &self.names.threads;
        format!("{}-{slot}", name.get(..MAX_THREAD_NAME_PREFIX).unwrap_or(name))
    }

    /// Starts the threads that always exist. Each sends a report once its state is made, or cannot be made.
    ///
    /// Returns how many reports there will be.
    pub(super) fn start_kept_threads(
        self: &Arc<PoolState>,
        count: usize,
        report: impl Fn() -> StartReport,
    ) -> usize {
        for _ in 0..count {
            let slot = {
                let mut inner = self.lock();
                let slot = inner.add_thread();
                self.publish_threads(&inner);
                slot
            };
            if let Err(e) = self.spawn_thread(slot, Some(report())) {
                self.fail_thread(slot, &e.to_string());
                report()(Err(format!("cannot start a thread: {e}")));
            }
        }
        count
    }

    /// Starts the thread of a slot, which is counted as alive already.
    pub(super) fn spawn_thread(
        self: &Arc<PoolState>,
        slot: usize,
        report: Option<StartReport>,
    ) -> io::Result<()> {
        let shared = Arc::clone(self);
        let mut thread = std::thread::Builder::new().name(self.thread_name(slot));
        if let Some(bytes) = self.config.stack_bytes {
            thread = thread.stack_size(bytes);
        }
        // Not joined: a job that never ends must not keep the process from ending. `alive_threads` counts them.
        thread.spawn(move || shared.run_thread(slot, report)).map(drop)
    }

    fn run_thread(self: Arc<PoolState>, slot: usize, mut report: Option<StartReport>) {
        if let Err(e) = prefork_os::thread::set_thread_niceness(self.config.nice) {
            log::warn!(
                "{} cannot lower the priority of a pool thread; thread={} error={e}",
                self.owner(),
                self.thread_name(slot)
            );
        }
        loop {
            let state = match self.make_thread_state() {
                Ok(state) => state,
                Err(why) => {
                    match report.take() {
                        Some(report) => report(Err(why.clone())),
                        None => log::error!(
                            "{} cannot make the state of a pool thread; thread={} error={why}",
                            self.owner(),
                            self.thread_name(slot)
                        ),
                    }
                    return self.fail_thread(slot, &why);
                }
            };
            current_thread::enter(Arc::clone(&self), slot, state);
            if let Some(report) = report.take() {
                report(Ok(()));
            }
            let reason = self.run_jobs(slot);
            current_thread::leave();
            if reason == StopReason::NoMoreJobs {
                return self.thread_ended(slot);
            }
            match self.spawn_thread(slot, None) {
                Ok(()) => return,
                Err(e) => log::warn!(
                    "{} cannot replace the thread of a job that panicked, and keeps it; thread={} error={e}",
                    self.owner(),
                    self.thread_name(slot)
                ),
            }
        }
    }

    /// Makes the state of the calling thread. `Ok(None)` in a pool whose threads have none.
    fn make_thread_state(&self) -> Result<Option<Box<dyn Any>>, String> {
        let Some(init) = &self.thread_init else { return Ok(None) };
        match catch_panic_with_location(|| init()) {
            Ok(state) => state.map(Some).map_err(|e| e.to_string()),
            Err(panic) => {
                let message = panic.message();
                let at = panic.location.map_or(String::new(), |location| format!(" at {location}"));
                contain_panic(|| drop(panic.payload));
                Err(format!("init panicked{at}: {message}"))
            }
        }
    }

    /// Counts a thread as ended that could not start. If it was the only one, the queued jobs end.
    fn fail_thread(&self, slot: usize, why: &str) {
        let stranded = {
            let mut inner = self.lock();
            inner.ending_threads += 1;
            self.remove_alive_thread(&mut inner)
        };
        self.end_unstarted(&stranded, &UnstartedEnd::NoThread(why.to_string()));
        self.thread_ended(slot);
    }

    /// Runs jobs until there are no more, or one panics.
    fn run_jobs(&self, slot: usize) -> StopReason {
        while let Some(entry) = self.next_job(slot) {
            current_thread::set_job(Some(Arc::clone(&entry)));
            let busy = BusyThreadGuard { state: self, slot };
            let has_succeeded = catch_unwind(AssertUnwindSafe(|| entry.run(busy))).unwrap_or(false);
            let of_thread = current_thread::set_job(None);
            contain_panic(|| drop((entry, of_thread)));
            if !has_succeeded {
                return StopReason::Panic;
            }
        }
        StopReason::NoMoreJobs
    }

    /// Waits for the next job and marks this thread as busy.
    ///
    /// Returns `None`, and counts this thread as ending, when the pool is closed and its queue empty, or when the thread was idle for
    /// too long.
    fn next_job(&self, slot: usize) -> Option<Arc<dyn RunnableJob>> {
        let mut inner = self.lock();
        let mut was_idle = false;
        loop {
            if let Some(entry) = inner.queue.pop() {
                inner.busy_threads += 1;
                inner.threads[slot].running = Some(Arc::clone(&entry));
                self.counters.set_depth(inner.queue.len());
                return Some(entry);
            }
            let is_superfluous = was_idle && inner.alive_threads > self.config.kept_threads();
            if inner.is_closed || is_superfluous {
                inner.ending_threads += 1;
                // The queue is empty, so no job is left without a thread.
                self.remove_alive_thread(&mut inner);
                return None;
            }
            inner.sleeping_threads.push(slot);
            let job_available = Arc::clone(&inner.threads[slot].job_available);
            inner = match self.config.idle_timeout {
                None => job_available.wait(inner).unwrap_or_else(PoisonError::into_inner),
                Some(timeout) => {
                    let waited = job_available.wait_timeout(inner, timeout);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
            // Still in the list: not woken for a job, so the timeout has passed, or the wake-up was spurious.
            let at = inner.sleeping_threads.iter().position(|sleeping| *sleeping == slot);
            was_idle = at.is_some() && self.config.idle_timeout.is_some();
            if let Some(at) = at {
                inner.sleeping_threads.remove(at);
            }
        }
    }
}
