//! The locks that this process holds or waits for.
//!
//! A byte lock belongs to the process, so the tasks of a process queue here, in the order of their requests, and the process takes the
//! lock for the first of them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use super::lock_domain::{LockAttempt, LockDomain, LockId};
use super::{LockMode, LockSet};
use prefork_os::broadcast_event::BroadcastEvent;

/// How long a process waits for a lock before others let it go first.
const RESERVE_AFTER: Duration = Duration::from_millis(1);

static LOCAL_LOCKS: Mutex<LocalLocks> = Mutex::new(LocalLocks::new(0));

/// All locks of this process that are held or waited for, and the tasks that wait.
pub(super) struct LocalLocks {
    /// The process that this state belongs to. A fork copies the state but no lock, so a child begins without locks.
    pid: u32,
    by_id: BTreeMap<LockId, LocalLock>,
    /// The locks with tasks in the queue.
    waiting: BTreeSet<LockId>,
    /// When tasks give up, with their tickets.
    deadlines: BTreeSet<(Instant, u64, LockId)>,
    /// What tasks that are in no queue any more have got.
    outcomes: BTreeMap<u64, WaitOutcome>,
    next_ticket: u64,
    /// Wakes the thread that waits for other processes. `None` if there is no such thread.
    pub(super) thread_event: Option<Arc<BroadcastEvent>>,
}

/// A lock that this process holds or waits for.
pub(super) struct LocalLock {
    pub(super) set: &'static LockSet,
    pub(super) name: Box<str>,
    pub(super) holders: Holders,
    pub(super) queue: VecDeque<QueuedTask>,
    /// Whether to try to take the lock for the first task in the queue.
    is_due: bool,
    /// The release count of the bucket before the last attempt.
    seen_releases: u64,
    /// Another process that has to release the lock or to die first.
    blocking_pid: Option<u32>,
    waiting_since: Instant,
}

/// The guards of this process for one lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holders {
    None,
    Exclusive,
    Shared(usize),
}

/// A task that waits.
pub(super) struct QueuedTask {
    ticket: u64,
    pub(super) mode: LockMode,
    waker: Waker,
    deadline: Option<Instant>,
}

/// A request for a lock.
pub(super) struct LockRequest<'a> {
    pub(super) set: &'static LockSet,
    pub(super) name: &'a str,
    pub(super) id: LockId,
    pub(super) mode: LockMode,
    pub(super) deadline: Option<Instant>,
}

/// How the wait of a task ended.
pub(super) enum WaitOutcome {
    Locked,
    TimedOut,
    Failed(io::Error),
}

/// Locks the state of this process. In a child, which inherited the state of its parent, it begins anew.
pub(super) fn lock_local() -> MutexGuard<'static, LocalLocks> {
    // No code panics with the lock held.
    let mut local = LOCAL_LOCKS.lock().unwrap_or_else(PoisonError::into_inner);
    let pid = std::process::id();
    if local.pid != pid {
        // Dropping the wakers would run code of the parent's tasks.
        std::mem::forget(std::mem::replace(&mut *local, LocalLocks::new(pid)));
    }
    local
}

impl LocalLocks {
    const fn new(pid: u32) -> LocalLocks {
        LocalLocks {
            pid,
            by_id: BTreeMap::new(),
            waiting: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            outcomes: BTreeMap::new(),
            next_ticket: 0,
            thread_event: None,
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    pub(super) fn get(&self, id: LockId) -> Option<&LocalLock> {
        self.by_id.get(&id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &LocalLock> {
        self.by_id.values()
    }

    pub(super) fn has_waiting_tasks(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Takes the lock if that needs no waiting. Tasks in the queue go first.
    pub(super) fn try_take(&mut self, request: &LockRequest<'_>) -> io::Result<bool> {
        let domain = request.set.domain;
        match self.by_id.get_mut(&request.id) {
            Some(lock) => match (lock.holders, request.mode) {
                (Holders::Shared(count), LockMode::Shared)
                    if lock.queue.is_empty()
                        && domain.other_reserving_process(request.id).is_none() =>
                {
                    lock.holders = Holders::Shared(count + 1);
                }
                _ => return Ok(false),
            },
            None => {
                if domain.other_reserving_process(request.id).is_some()
                    || !domain.try_lock(request.id, request.mode)?
                {
                    return Ok(false);
                }
                let lock = self.entry(request);
                lock.holders = first_holder(request.mode);
            }
        }
        request.set.held.add(1);
        Ok(true)
    }

    fn entry(&mut self, request: &LockRequest<'_>) -> &mut LocalLock {
        self.by_id.entry(request.id).or_insert_with(|| LocalLock {
            set: request.set,
            name: request.name.into(),
            holders: Holders::None,
            queue: VecDeque::new(),
            is_due: false,
            seen_releases: 0,
            blocking_pid: None,
            waiting_since: Instant::now(),
        })
    }

    /// Appends a task to the queue and returns its ticket. The thread must be woken then.
    pub(super) fn enqueue(&mut self, request: &LockRequest<'_>, waker: Waker) -> u64 {
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        let (mode, deadline) = (request.mode, request.deadline);
        let lock = self.entry(request);
        lock.queue.push_back(QueuedTask { ticket, mode, waker, deadline });
        lock.is_due = true;
        if lock.queue.len() == 1 {
            lock.waiting_since = Instant::now();
            request.set.domain.add_waiting(request.id);
            self.waiting.insert(request.id);
        }
        self.deadlines.extend(deadline.map(|at| (at, ticket, request.id)));
        request.set.waiting.add(1);
        ticket
    }

    /// Returns what the task has got, or remembers its new waker.
    pub(super) fn poll_outcome(
        &mut self,
        id: LockId,
        ticket: u64,
        waker: &Waker,
    ) -> Option<WaitOutcome> {
        let outcome = self.outcomes.remove(&ticket);
        if outcome.is_none() {
            let queue = self.by_id.get_mut(&id).map(|lock| &mut lock.queue);
            let task = queue.into_iter().flatten().find(|task| task.ticket == ticket);
            task.into_iter().for_each(|task| task.waker.clone_from(waker));
        }
        outcome
    }

    /// Removes a task whose future was dropped. Returns the wakers to wake, without the state locked. The thread must be woken
    /// then, if tasks wait.
    pub(super) fn cancel(&mut self, id: LockId, ticket: u64) -> Option<Waker> {
        match self.outcomes.remove(&ticket) {
            // It has the lock, but no guard.
            Some(WaitOutcome::Locked) => return self.release(id),
            Some(_) => return None,
            None => {}
        }
        let lock = self.by_id.get_mut(&id)?;
        let at = lock.queue.iter().position(|task| task.ticket == ticket)?;
        let task = lock.queue.remove(at)?;
        // The next task may have another mode.
        lock.is_due = true;
        self.forget_deadline(id, &task);
        self.after_dequeue(id);
        None
    }

    fn forget_deadline(&mut self, id: LockId, task: &QueuedTask) {
        if let Some(at) = task.deadline {
            self.deadlines.remove(&(at, task.ticket, id));
        }
    }

    /// Ends the wait of this process for a lock with an empty queue.
    fn after_dequeue(&mut self, id: LockId) {
        let Some(lock) = self.by_id.get(&id) else { return };
        lock.set.waiting.add(-1);
        if lock.queue.is_empty() {
            lock.set.domain.remove_waiting(id);
            self.waiting.remove(&id);
            if lock.holders == Holders::None {
                self.by_id.remove(&id);
            }
        }
    }

    /// Releases one guard. Returns the waker of the task that has the lock now, to be woken without the state locked.
    pub(super) fn release(&mut self, id: LockId) -> Option<Waker> {
        let lock = self.by_id.get_mut(&id)?;
        let (set, domain) = (lock.set, lock.set.domain);
        set.held.add(-1);
        if let Holders::Shared(count @ 2..) = lock.holders {
            lock.holders = Holders::Shared(count - 1);
            return None;
        }
        let next = lock.queue.front().map(|task| task.mode);
        let stays_exclusive =
            lock.holders == Holders::Exclusive && next == Some(LockMode::Exclusive);
        // If no other process waits, the next task gets the lock without a system call. This process counts as one.
        if stays_exclusive && domain.waiting_count(id) <= 1 {
            set.held.add(1);
            return self.finish_first(id, WaitOutcome::Locked);
        }
        lock.holders = Holders::None;
        lock.is_due = true;
        if lock.queue.is_empty() {
            self.by_id.remove(&id);
        }
        // Wakes the thread of this process too, if tasks wait.
        domain.unlock(id);
        None
    }

    /// Removes the first task from the queue, with an outcome that it will find when it is polled. Returns its waker.
    fn finish_first(&mut self, id: LockId, outcome: WaitOutcome) -> Option<Waker> {
        let task = self.by_id.get_mut(&id).and_then(|lock| lock.queue.pop_front());
        task.map(|task| self.finish(id, task, outcome))
    }

    fn finish(&mut self, id: LockId, task: QueuedTask, outcome: WaitOutcome) -> Waker {
        self.forget_deadline(id, &task);
        self.outcomes.insert(task.ticket, outcome);
        self.after_dequeue(id);
        task.waker
    }
}

/// What the waiting thread does.
impl LocalLocks {
    /// Makes all waiting locks due, or those that wait for a process that has died.
    pub(super) fn make_due(&mut self, dead_pid: Option<u32>) {
        for id in &self.waiting {
            let lock = self.by_id.get_mut(id);
            for lock in
                lock.into_iter().filter(|l| dead_pid.is_none() || l.blocking_pid == dead_pid)
            {
                lock.is_due = true;
            }
        }
    }

    /// Ends the wait of tasks whose time has passed.
    pub(super) fn expire(&mut self, now: Instant, woken: &mut Vec<Waker>) {
        while let Some((_, ticket, id)) = self.deadlines.first().copied().filter(|one| one.0 <= now)
        {
            self.deadlines.pop_first();
            let Some(lock) = self.by_id.get_mut(&id) else { continue };
            let at = lock.queue.iter().position(|task| task.ticket == ticket);
            if let Some(task) = at.and_then(|at| lock.queue.remove(at)) {
                lock.is_due = true;
                woken.push(self.finish(id, task, WaitOutcome::TimedOut));
            }
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|one| one.0)
    }

    /// Tries to take each lock that may be free for the first tasks in its queue. Returns the processes to watch: when one
    /// of them dies, its locks are free.
    pub(super) fn advance_all(&mut self, woken: &mut Vec<Waker>) -> BTreeSet<u32> {
        let is_due = |id: &LockId| {
            let lock = self.by_id.get(id);
            lock.is_some_and(|l| l.is_due || l.set.domain.release_count(*id) != l.seen_releases)
        };
        let due: Vec<LockId> = self.waiting.iter().copied().filter(is_due).collect();
        due.into_iter().filter_map(|id| self.advance(id, woken)).collect()
    }

    /// Returns the process that blocks the first task in the queue.
    fn advance(&mut self, id: LockId, woken: &mut Vec<Waker>) -> Option<u32> {
        loop {
            let lock = self.by_id.get_mut(&id)?;
            lock.is_due = false;
            let (set, mode) = (lock.set, lock.queue.front()?.mode);
            match (lock.holders, mode) {
                (Holders::None, _) => match lock.take_from_others(id, set.domain, mode) {
                    Ok(true) => lock.holders = first_holder(mode),
                    Ok(false) => return lock.blocking_pid,
                    Err(e) => {
                        woken.extend(self.finish_first(id, WaitOutcome::Failed(e)));
                        continue;
                    }
                },
                (Holders::Shared(count), LockMode::Shared) => {
                    lock.holders = Holders::Shared(count + 1);
                }
                (Holders::Shared(_) | Holders::Exclusive, _) => return None,
            }
            set.held.add(1);
            woken.extend(self.finish_first(id, WaitOutcome::Locked));
        }
    }
}

impl LocalLock {
    fn take_from_others(
        &mut self,
        id: LockId,
        domain: &LockDomain,
        mode: LockMode,
    ) -> io::Result<bool> {
        // Before the attempt: a release after it changes the count.
        self.seen_releases = domain.release_count(id);
        match domain.attempt(id, mode)? {
            LockAttempt::Locked => {
                self.blocking_pid = None;
                self.waiting_since = Instant::now();
                domain.end_reservation(id);
                Ok(true)
            }
            LockAttempt::Blocked(pid) => {
                self.blocking_pid = pid;
                if self.waiting_since.elapsed() >= RESERVE_AFTER {
                    domain.reserve(id);
                }
                Ok(false)
            }
        }
    }
}

fn first_holder(mode: LockMode) -> Holders {
    match mode {
        LockMode::Exclusive => Holders::Exclusive,
        LockMode::Shared => Holders::Shared(1),
    }
}
