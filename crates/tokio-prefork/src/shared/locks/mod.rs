//! Locks by a name that is made at run time, among all processes of the cluster.

mod local_locks;
pub(super) mod lock_domain;
#[cfg(test)]
mod tests;
mod wait_thread;

use std::fmt;
use std::future::poll_fn;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::{SharedGauge, registry};
use crate::error::{Error, Result};
use local_locks::{Holders, LockRequest, WaitOutcome, lock_local};
use lock_domain::{LockDomain, LockId};

/// Locks by a name of your choice, such as the id of a customer, among all workers: `navigator.locks` of Node and browsers.
///
/// Declare a set of locks before the cluster serves. A name needs no declaration, and costs memory only while its lock is held or
/// waited for. A lock is held [alone](SharedLocks::lock) or [shared](SharedLocks::lock_shared), over `.await`s, until its guard is
/// dropped.
///
/// ```
/// use tokio_prefork::SharedLocks;
///
/// # async fn charge(customer: &str) {}
/// # async fn run() -> tokio_prefork::Result<()> {
/// let customers = SharedLocks::new("customers")?;
/// // In any worker:
/// {
///     let _guard = customers.lock("4711").await?;
///     charge("4711").await;
/// }
/// # Ok(())
/// # }
/// # tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(run()).expect("locked");
/// ```
///
/// **Death of a holder.** The kernel releases the locks of a process at the moment of its death, at any instruction, and the next one
/// in line is woken. It is not told: leave data so that each state of it can be continued, for instance by writing a file under
/// another name and renaming it. A stopped or stalled holder keeps its locks until the watchdog kills it.
///
/// **Order.** The tasks of one process get a lock in the order of their requests. A process that has waited for more than a millisecond
/// goes before requests that other processes make later. A task that waits to hold the lock alone goes before later ones that would
/// share it.
///
/// **Deadlocks** are not detected. Take several locks in one order everywhere, or use [`lock_within`](SharedLocks::lock_within). A task
/// that asks for a lock that it holds waits for itself.
///
/// **Reach.** All processes of the cluster: workers of all kinds, isolated processes, and during an upgrade in place the workers of both
/// images. Within a process all threads and tasks exclude each other too, under every concurrency model. A program without a cluster
/// has the locks for its threads.
///
/// **Cost.** A free lock takes one system call, and one to release it. All waiting tasks of a process need one thread. Names are
/// hashed with a secret key to 64 bits: two names share a lock with a probability of 2^-64, which can only make one of them wait.
///
/// [`read_shared_metrics`](crate::shared::read_shared_metrics) and `prefork status` show the gauges `NAME_held` and `NAME_waiting`.
#[derive(Clone, Copy)]
pub struct SharedLocks(&'static LockSet);

/// Holds a lock until it is dropped.
///
/// A guard that is forgotten (`std::mem::forget`) holds the lock until the process ends. In a child that the holder forks, the copy of
/// the guard holds nothing.
#[must_use = "dropping the guard releases the lock"]
pub struct SharedLockGuard {
    id: LockId,
    mode: LockMode,
    /// The process that holds the lock.
    pid: u32,
}

/// How a lock is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockMode {
    /// By one task, alone.
    Exclusive,
    /// Together with others that share it.
    Shared,
}

/// A lock that this process holds or waits for: see [`SharedLocks::local_locks`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LocalLockState {
    /// The name of the lock.
    pub name: String,
    /// How this process holds it; `None` if it only waits.
    pub held: Option<LockMode>,
    /// How many tasks of this process hold it.
    pub holders: usize,
    /// How many tasks of this process wait for it.
    pub waiting: usize,
}

/// A declared set of locks.
struct LockSet {
    name: &'static str,
    domain: &'static LockDomain,
    held: SharedGauge,
    waiting: SharedGauge,
}

impl SharedLocks {
    /// Declares a set of locks. Call it before the cluster serves. Locks of other sets with the same name are other locks.
    ///
    /// # Errors
    /// `NAME_held` or `NAME_waiting`, the gauges of the set, is taken or not a valid metric name, this is a worker process, or memory or
    /// descriptors are short.
    pub fn new(name: &str) -> Result<SharedLocks> {
        let name = registry::validate_name(name)?;
        let set = LockSet {
            name,
            domain: LockDomain::get_or_create()?,
            held: SharedGauge::new(&format!("{name}_held"))?,
            waiting: SharedGauge::new(&format!("{name}_waiting"))?,
        };
        Ok(SharedLocks(Box::leak(Box::new(set))))
    }

    /// Waits for the lock `name` and holds it alone until the guard is dropped.
    ///
    /// Cancel safe: dropping the future ends the wait. Works with any runtime.
    ///
    /// # Errors
    /// The system refuses the lock, the thread that waits, or its descriptors.
    pub async fn lock(&self, name: &str) -> Result<SharedLockGuard> {
        self.wait_for(name, LockMode::Exclusive, None).await.and_then(|guard| self.expect(guard))
    }

    /// Waits for the lock `name` and shares it until the guard is dropped: no task holds it alone meanwhile.
    ///
    /// # Errors
    /// As [`lock`](SharedLocks::lock).
    pub async fn lock_shared(&self, name: &str) -> Result<SharedLockGuard> {
        self.wait_for(name, LockMode::Shared, None).await.and_then(|guard| self.expect(guard))
    }

    /// Waits for the lock at most `timeout`. Returns `None` if it was not free in time. Needs no timer of a runtime.
    ///
    /// # Errors
    /// As [`lock`](SharedLocks::lock).
    pub async fn lock_within(
        &self,
        name: &str,
        timeout: Duration,
    ) -> Result<Option<SharedLockGuard>> {
        self.wait_for(name, LockMode::Exclusive, Instant::now().checked_add(timeout)).await
    }

    /// Waits to share the lock at most `timeout`. Returns `None` if it was not free in time.
    ///
    /// # Errors
    /// As [`lock`](SharedLocks::lock).
    pub async fn lock_shared_within(
        &self,
        name: &str,
        timeout: Duration,
    ) -> Result<Option<SharedLockGuard>> {
        self.wait_for(name, LockMode::Shared, Instant::now().checked_add(timeout)).await
    }

    /// Takes the lock `name` alone if it is free and no earlier request waits for it. Never waits.
    ///
    /// # Errors
    /// The system refuses the lock.
    pub fn try_lock(&self, name: &str) -> Result<Option<SharedLockGuard>> {
        self.try_lock_as(name, LockMode::Exclusive)
    }

    /// Shares the lock `name` if no task holds it alone and no earlier request waits for it. Never waits.
    ///
    /// # Errors
    /// The system refuses the lock.
    pub fn try_lock_shared(&self, name: &str) -> Result<Option<SharedLockGuard>> {
        self.try_lock_as(name, LockMode::Shared)
    }

    /// Returns the pid of a process that holds the lock `name`, as the kernel knows it. `None` if it is free.
    ///
    /// # Errors
    /// The system refuses the question.
    pub fn holder_pid(&self, name: &str) -> Result<Option<u32>> {
        let id = self.id(name);
        let local = lock_local();
        if local.get(id).is_some_and(|lock| lock.holders != Holders::None) {
            return Ok(Some(local.pid()));
        }
        drop(local);
        self.0
            .domain
            .holder_pid(id, LockMode::Exclusive)
            .map_err(|e| self.error("ask who holds", name, e))
    }

    /// Returns the locks of this set that this process holds or waits for, in no order.
    pub fn local_locks(&self) -> Vec<LocalLockState> {
        let local = lock_local();
        let own = local.iter().filter(|lock| std::ptr::eq(lock.set, self.0));
        let state = |lock: &local_locks::LocalLock| {
            let (held, holders) = match lock.holders {
                Holders::None => (None, 0),
                Holders::Exclusive => (Some(LockMode::Exclusive), 1),
                Holders::Shared(count) => (Some(LockMode::Shared), count),
            };
            LocalLockState { name: lock.name.to_string(), held, holders, waiting: lock.queue.len() }
        };
        own.map(state).collect()
    }

    fn id(&self, name: &str) -> LockId {
        self.0.domain.lock_id(self.0.name, name)
    }

    fn try_lock_as(&self, name: &str, mode: LockMode) -> Result<Option<SharedLockGuard>> {
        let request = LockRequest { set: self.0, name, id: self.id(name), mode, deadline: None };
        let mut local = lock_local();
        let is_taken = local.try_take(&request).map_err(|e| self.error("take", name, e))?;
        Ok(is_taken.then(|| SharedLockGuard { id: request.id, mode, pid: local.pid() }))
    }

    async fn wait_for(
        &self,
        name: &str,
        mode: LockMode,
        deadline: Option<Instant>,
    ) -> Result<Option<SharedLockGuard>> {
        let request = LockRequest { set: self.0, name, id: self.id(name), mode, deadline };
        let mut wait = PendingLock { request, ticket: None };
        let outcome = poll_fn(|context| wait.poll(context)).await;
        let pid = std::process::id();
        match outcome {
            WaitOutcome::Locked => Ok(Some(SharedLockGuard { id: wait.request.id, mode, pid })),
            WaitOutcome::TimedOut => Ok(None),
            WaitOutcome::Failed(e) => Err(self.error("wait for", name, e)),
        }
    }

    fn expect(&self, guard: Option<SharedLockGuard>) -> Result<SharedLockGuard> {
        guard.ok_or_else(|| Error::internal("a wait for a lock without a deadline timed out"))
    }

    fn error(&self, what: &str, name: &str, error: std::io::Error) -> Error {
        Error::system(format!("{what} the lock {name:?} of {:?}", self.0.name), error)
    }
}

/// A task that asks for a lock.
struct PendingLock<'a> {
    request: LockRequest<'a>,
    /// Its place in the queue.
    ticket: Option<u64>,
}

impl PendingLock<'_> {
    fn poll(&mut self, context: &Context<'_>) -> Poll<WaitOutcome> {
        let mut local = lock_local();
        if let Some(ticket) = self.ticket {
            let Some(outcome) = local.poll_outcome(self.request.id, ticket, context.waker()) else {
                return Poll::Pending;
            };
            self.ticket = None;
            return Poll::Ready(outcome);
        }
        match local.try_take(&self.request) {
            Ok(true) => return Poll::Ready(WaitOutcome::Locked),
            Ok(false) => {}
            Err(e) => return Poll::Ready(WaitOutcome::Failed(e)),
        }
        let ticket = local.enqueue(&self.request, context.waker().clone());
        if let Err(e) = wait_thread::wake_or_start(&mut local, self.request.set.domain) {
            let woken = local.cancel(self.request.id, ticket);
            drop(local);
            woken.into_iter().for_each(Waker::wake);
            return Poll::Ready(WaitOutcome::Failed(e));
        }
        self.ticket = Some(ticket);
        Poll::Pending
    }
}

impl Drop for PendingLock<'_> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let mut local = lock_local();
        let woken = local.cancel(self.request.id, ticket);
        if local.has_waiting_tasks() {
            // If that fails, the thread tries again after an interval.
            let _ = wait_thread::wake_or_start(&mut local, self.request.set.domain);
        }
        drop(local);
        woken.into_iter().for_each(Waker::wake);
    }
}

impl SharedLockGuard {
    /// Returns how the lock is held.
    pub fn mode(&self) -> LockMode {
        self.mode
    }
}

impl Drop for SharedLockGuard {
    fn drop(&mut self) {
        let mut local = lock_local();
        // In a child of the holder this guard is a copy, which holds no lock.
        if local.pid() == self.pid {
            let woken = local.release(self.id);
            drop(local);
            woken.into_iter().for_each(Waker::wake);
        }
    }
}

impl fmt::Debug for SharedLocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedLocks({:?})", self.0.name)
    }
}

impl fmt::Debug for SharedLockGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedLockGuard({:?})", self.mode)
    }
}
