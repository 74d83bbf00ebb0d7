//! What a thread of a pool knows about itself: its pool, the job it runs, and the state that its jobs share.

use std::any::Any;
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::job_state::{RunnableJob, contain_panic};
use super::pool_state::PoolState;

/// The calling thread, as a thread of a pool.
struct PoolThread {
    pool: Arc<PoolState>,
    slot: usize,
    /// The job that runs.
    job: Option<Arc<dyn RunnableJob>>,
    /// The state that the jobs of a task pool use. `None` in other pools, and while a job has it.
    state: Option<Box<dyn Any>>,
}

thread_local! {
    /// `None` in threads that belong to no pool.
    static CURRENT: RefCell<Option<PoolThread>> = const { RefCell::new(None) };
}

/// Calls `f` with the pool thread that the calling thread is, if any.
fn with_current<T>(f: impl FnOnce(&mut PoolThread) -> T) -> Option<T> {
    // No code of the application runs while this is borrowed.
    CURRENT.try_with(|current| current.borrow_mut().as_mut().map(f)).ok().flatten()
}

/// Makes the calling thread a thread of `pool`.
pub(super) fn enter(pool: Arc<PoolState>, slot: usize, state: Option<Box<dyn Any>>) {
    CURRENT.replace(Some(PoolThread { pool, slot, job: None, state }));
}

/// Ends the membership of the calling thread in its pool, and drops its state.
pub(super) fn leave() {
    let thread = CURRENT.take();
    contain_panic(|| drop(thread));
}

/// Records the job that the calling thread runs. Returns the one before, to drop it.
pub(super) fn set_job(job: Option<Arc<dyn RunnableJob>>) -> Option<Arc<dyn RunnableJob>> {
    with_current(|thread| std::mem::replace(&mut thread.job, job)).flatten()
}

/// Returns the number of the calling thread among the threads of `pool`. `None` if it is none of them.
pub(super) fn slot_in(pool: &PoolState) -> Option<usize> {
    with_current(|thread| {
        let is_own = std::ptr::eq(Arc::as_ptr(&thread.pool), pool);
        is_own.then_some(thread.slot)
    })
    .flatten()
}

/// Returns whether the calling thread runs a job of any pool.
pub(super) fn is_running_job() -> bool {
    with_current(|thread| thread.job.is_some()).unwrap_or(false)
}

/// Calls `f` with the state of the calling thread. Returns `None` if it has no state.
pub(super) fn with_state<T>(f: impl FnOnce(&mut dyn Any) -> T) -> Option<T> {
    /// Puts the state back, also after a panic, so that the end of the thread drops it.
    struct TakenState(Option<Box<dyn Any>>);

    impl Drop for TakenState {
        fn drop(&mut self) {
            let state = self.0.take();
            with_current(|thread| thread.state = state);
        }
    }

    let mut taken = TakenState(with_current(|thread| thread.state.take()).flatten());
    taken.0.as_deref_mut().map(f)
}

/// Returns whether the job that the calling thread runs should stop: its caller is gone, its deadline has passed, or the process is
/// about to end. `false` in threads that run no job of a pool.
///
/// For code that has no [`CancelFlag`](super::CancelFlag) at hand: plain closures, and libraries that they call.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// use tokio_prefork::pool::{self, Pool, PoolConfig};
///
/// let pool = Pool::new(PoolConfig::new());
/// let sum = pool.run(|| (0..1000u64).take_while(|_| !pool::is_cancelled()).sum::<u64>());
/// assert_eq!(sum.await, Ok(499_500));
/// # });
/// ```
pub fn is_cancelled() -> bool {
    with_current(|thread| {
        let should_stop = thread.job.as_ref().is_some_and(|job| job.should_stop());
        should_stop || thread.pool.is_aborting.load(Ordering::Relaxed)
    })
    .unwrap_or(false)
}
