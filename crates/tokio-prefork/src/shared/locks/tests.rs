//! Tests of locks by name within one process. `tests/it/shared_locks.rs` has those with several.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use super::*;
use std::sync::atomic::Ordering::Relaxed;

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Polls without any runtime.
fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        std::thread::park();
    }
}

fn poll<F: Future + ?Sized>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

fn take(locks: SharedLocks, name: &str) -> SharedLockGuard {
    locks.try_lock(name).expect("lock").expect("free")
}

fn is_free(locks: SharedLocks, name: &str) -> bool {
    locks.try_lock(name).expect("lock").is_some()
}

fn thread_count() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").expect("tasks");
    let name = |task: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_to_string(task.ok()?.path().join("comm")).ok()
    };
    tasks.filter_map(name).filter(|name| name.trim() == "shared-locks").count()
}

#[test]
fn a_lock_excludes_its_name_only() {
    let locks = SharedLocks::new("locks_name").expect("locks");
    let others = SharedLocks::new("locks_name_other").expect("locks");
    let guard = take(locks, "a");
    assert!(!is_free(locks, "a") && is_free(locks, "b") && is_free(others, "a"));
    assert!(locks.try_lock_shared("a").expect("lock").is_none());
    assert_eq!(locks.holder_pid("a").expect("holder"), Some(std::process::id()));
    drop(guard);
    assert!(is_free(locks, "a"));
    assert_eq!(locks.holder_pid("a").expect("holder"), None);
}

#[test]
fn a_forgotten_guard_keeps_the_lock() {
    let locks = SharedLocks::new("locks_forgotten").expect("locks");
    std::mem::forget(take(locks, "a"));
    assert!(!is_free(locks, "a"));
}

#[test]
fn tasks_get_a_lock_in_the_order_of_their_requests() {
    let locks = SharedLocks::new("locks_order").expect("locks");
    let guard = take(locks, "a");
    let mut waiting: Vec<_> = (0..20).map(|_| Box::pin(locks.lock("a"))).collect();
    assert!(waiting.iter_mut().all(|wait| poll(wait.as_mut()).is_pending()));
    drop(guard);
    for next in 0..waiting.len() {
        // Not at once if the lock of another test, in the same bucket, is waited for: then the thread takes it.
        let guard = block_on(waiting[next].as_mut()).expect("lock");
        assert!(waiting[next + 1..].iter_mut().all(|wait| poll(wait.as_mut()).is_pending()));
        drop(guard);
    }
}

#[test]
fn shared_holders_exclude_an_exclusive_one_which_goes_before_later_ones() {
    let locks = SharedLocks::new("locks_shared").expect("locks");
    let first = block_on(locks.lock_shared("a")).expect("shared");
    let second = locks.try_lock_shared("a").expect("lock").expect("shared");
    assert!(!is_free(locks, "a"));
    let mut alone = pin!(locks.lock("a"));
    assert!(poll(alone.as_mut()).is_pending());
    assert!(locks.try_lock_shared("a").expect("lock").is_none(), "one waits to be alone");
    let mut later = pin!(locks.lock_shared("a"));
    assert!(poll(later.as_mut()).is_pending());
    drop((first, second));
    let guard = block_on(alone).expect("alone");
    assert!(poll(later.as_mut()).is_pending());
    drop(guard);
    drop(block_on(later).expect("shared"));
    assert!(is_free(locks, "a"));
}

#[test]
fn a_shared_task_gets_the_lock_when_the_exclusive_one_before_it_is_dropped() {
    let locks = SharedLocks::new("locks_dropped_first").expect("locks");
    let _first = block_on(locks.lock_shared("a")).expect("shared");
    let mut alone = Box::pin(locks.lock("a"));
    assert!(poll(alone.as_mut()).is_pending());
    let later = std::thread::spawn(move || block_on(locks.lock_shared("a")).map(drop).is_ok());
    let has_two = || locks.local_locks().iter().any(|lock| lock.waiting == 2);
    while !has_two() {
        std::thread::yield_now();
    }
    drop(alone);
    assert!(later.join().expect("thread"));
}

#[test]
fn a_dropped_request_does_not_get_the_lock() {
    let locks = SharedLocks::new("locks_dropped").expect("locks");
    let guard = take(locks, "a");
    {
        let mut waits = pin!(locks.lock("a"));
        let mut has_it = pin!(locks.lock("a"));
        assert!(poll(waits.as_mut()).is_pending() && poll(has_it.as_mut()).is_pending());
        drop(guard);
        // Now the first request has the lock, and is dropped before it is polled.
    }
    assert!(is_free(locks, "a"));
    assert_eq!(locks.local_locks(), []);
}

#[test]
fn a_wait_with_a_timeout_ends_without_a_timer_of_a_runtime() {
    let locks = SharedLocks::new("locks_timeout").expect("locks");
    let guard = take(locks, "a");
    let (began, timeout) = (Instant::now(), Duration::from_millis(30));
    assert!(block_on(locks.lock_within("a", timeout)).expect("no error").is_none());
    assert!(began.elapsed() >= timeout);
    assert!(block_on(locks.lock_shared_within("a", Duration::ZERO)).expect("no error").is_none());
    drop(guard);
    assert!(block_on(locks.lock_within("a", Duration::MAX)).expect("no error").is_some());
}

#[test]
fn threads_that_wait_for_one_lock_never_hold_it_together() {
    let locks = SharedLocks::new("locks_threads").expect("locks");
    let number = std::sync::atomic::AtomicU64::new(0);
    let work = || {
        for _ in 0..500 {
            let _guard = block_on(locks.lock("a")).expect("lock");
            // Not atomic as a whole.
            let read = number.load(Relaxed);
            (0..100).for_each(|_| std::hint::spin_loop());
            number.store(read + 1, Relaxed);
        }
    };
    std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(work))));
    assert_eq!(number.load(Relaxed), 2000);
}

#[test]
fn many_names_and_waiting_tasks_need_one_thread() {
    let locks = SharedLocks::new("locks_many").expect("locks");
    let names: Vec<String> = (0..10_000).map(|number| format!("customer {number}")).collect();
    let guards: Vec<_> = names.iter().map(|name| take(locks, name)).collect();
    let mut waiting: Vec<_> =
        names.iter().take(1000).map(|name| Box::pin(locks.lock(name))).collect();
    assert!(waiting.iter_mut().all(|wait| poll(wait.as_mut()).is_pending()));
    assert!(thread_count() <= 1, "{}", thread_count());
    let state = locks.local_locks();
    assert_eq!((state.len(), state.iter().map(|lock| lock.waiting).sum::<usize>()), (10_000, 1000));
    assert!(state.iter().all(|lock| lock.held == Some(LockMode::Exclusive) && lock.holders == 1));
    assert_eq!(state.iter().map(|lock| &lock.name).collect::<BTreeSet<_>>().len(), 10_000);
    drop(guards);
    for wait in waiting {
        drop(block_on(wait).expect("lock"));
    }
    assert_eq!(locks.local_locks(), []);
}
