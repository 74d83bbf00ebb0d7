//! The thread in which a process waits for locks of other processes: one for all of its locks, and none while no task waits.
//!
//! It sleeps until another process releases a lock, a process that holds one dies (its pidfd becomes readable after the kernel has
//! released its locks), or a task's time has passed.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use super::local_locks::{LocalLocks, lock_local};
use super::lock_domain::LockDomain;
use prefork_os::broadcast_event::{BroadcastEvent, EdgePoller};
use prefork_os::child::PidFd;

/// How long to wait before the next attempt without a sign that a lock is free: if another process died whose pid is not visible here,
/// or is of an image that signals in another way.
const RECHECK_INTERVAL: Duration = Duration::from_millis(250);
/// How long the thread of a worker stays when no task waits, so that not each wait starts a thread.
const IDLE_TIMEOUT: Duration = Duration::from_secs(1);
/// Stack size of the thread, which calls no code of the application except wakers.
const WAIT_THREAD_STACK_BYTES: usize = 256 << 10;

/// The key of the event that a task of this process has been queued. Pids are the other keys.
const TASK_QUEUED: u64 = u64::MAX;
/// The key of the event that a process has released a lock.
const LOCK_RELEASED: u64 = u64::MAX - 1;

/// Wakes the thread, or starts it.
///
/// # Errors
/// The system refuses a thread or descriptors.
pub(super) fn wake_or_start(local: &mut LocalLocks, domain: &'static LockDomain) -> io::Result<()> {
    if let Some(event) = &local.thread_event {
        return event.signal();
    }
    let (poller, event) = (EdgePoller::new()?, Arc::new(BroadcastEvent::create()?));
    poller.add(domain.release_event, LOCK_RELEASED)?;
    poller.add(&*event, TASK_QUEUED)?;
    let thread = WaitThread { poller, _event: event.clone(), watched: BTreeMap::new() };
    std::thread::Builder::new()
        .name("shared-locks".to_string())
        .stack_size(WAIT_THREAD_STACK_BYTES)
        .spawn(move || thread.run())?;
    local.thread_event = Some(event);
    Ok(())
}

struct WaitThread {
    poller: EdgePoller,
    /// Kept open, because the poller does not own it.
    _event: Arc<BroadcastEvent>,
    /// The processes that hold locks for which this one waits.
    watched: BTreeMap<u32, PidFd>,
}

impl WaitThread {
    fn run(mut self) {
        let mut idle_since = None;
        let mut recheck_at = Instant::now() + RECHECK_INTERVAL;
        loop {
            let mut woken = Vec::new();
            let now = Instant::now();
            let mut local = lock_local();
            if now >= recheck_at {
                local.make_due(None);
                recheck_at = now + RECHECK_INTERVAL;
            }
            local.expire(now, &mut woken);
            let watches_new = self.advance(&mut local, &mut woken);
            let wait = match local.has_waiting_tasks() {
                true => {
                    idle_since = None;
                    let deadline =
                        local.next_deadline().map_or(recheck_at, |at| at.min(recheck_at));
                    deadline.saturating_duration_since(now)
                }
                false => {
                    let since = *idle_since.get_or_insert(now);
                    let left = idle_timeout().saturating_sub(now.duration_since(since));
                    if left.is_zero() {
                        local.thread_event = None;
                        drop(local);
                        return woken.into_iter().for_each(Waker::wake);
                    }
                    left
                }
            };
            drop(local);
            woken.into_iter().for_each(Waker::wake);
            if !watches_new {
                self.wait(wait);
            }
        }
    }

    /// Takes the locks that are free. Returns whether it watches another process, so that it has to try once more: that
    /// one may have released the lock before it was watched.
    fn advance(&mut self, local: &mut LocalLocks, woken: &mut Vec<Waker>) -> bool {
        let mut watches_new = false;
        for pid in local.advance_all(woken) {
            if self.watched.contains_key(&pid) {
                continue;
            }
            match PidFd::open(pid) {
                Ok(fd) if self.poller.add(&fd, u64::from(pid)).is_ok() => {
                    self.watched.insert(pid, fd);
                    local.make_due(Some(pid));
                    watches_new = true;
                }
                // Found by the next regular attempt.
                Ok(_) => {}
                // It has exited.
                Err(e) if e.raw_os_error() == Some(nix::libc::ESRCH) => {
                    local.make_due(Some(pid));
                    watches_new = true;
                }
                // No descriptor left; found by the next regular attempt.
                Err(_) => {}
            }
        }
        watches_new
    }

    fn wait(&mut self, timeout: Duration) {
        let Ok(keys) = self.poller.wait(timeout) else {
            // Out of memory: the regular attempts go on.
            return std::thread::sleep(timeout.min(RECHECK_INTERVAL));
        };
        let pids = keys.into_iter().filter_map(|key| u32::try_from(key).ok());
        for pid in pids {
            self.watched.remove(&pid);
            lock_local().make_due(Some(pid));
        }
    }
}

/// Returns how long the thread stays without a task that waits. In a process that is no worker, it could prevent a fork.
fn idle_timeout() -> Duration {
    match prefork_os::parent_death::is_worker_process() {
        true => IDLE_TIMEOUT,
        false => Duration::ZERO,
    }
}
