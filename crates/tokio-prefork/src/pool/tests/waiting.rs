//! Tests of callers that wait: without an async runtime, with deadlines, in jobs of the same pool, and while a worker drains.

use std::pin::pin;
use std::task::{Context, Waker};

use super::*;

/// Runs a future in a runtime without timers.
fn block_on_without_timers<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
    runtime.block_on(future)
}

#[test]
fn a_thread_without_a_runtime_waits_for_a_result() {
    let pool = create_pool(2, 8);
    let (first, gate) = run_gated_job(&pool);
    gate.wait_for_start();
    let opener = std::thread::spawn(move || gate.open_gate());
    assert_eq!(first.wait(), Ok(()));
    opener.join().expect("no panic");
    assert_eq!(pool.run(|| 6 * 7).wait(), Ok(42));
    assert_eq!(pool.job(|| 6 * 7).wait(), Ok(42));
}

#[test]
fn deadlines_hold_in_threads_and_in_runtimes_without_timers() {
    let pool = create_pool(1, 8);
    let (first, gate) = run_gated_job(&pool);
    gate.wait_for_start();
    let short = JobDeadline::FromSubmission(Duration::from_millis(20));
    let queued = pool.run_within(short, || ()).wait();
    assert!(matches!(queued, Err(PoolError::TimedOut { has_begun: false, .. })), "{queued:?}");
    let queued = block_on_without_timers(pool.run_within(short, || ()));
    assert!(matches!(queued, Err(PoolError::TimedOut { has_begun: false, .. })), "{queued:?}");
    gate.open_gate();
    block_on(first).expect("done");
    let endless = || cancellable_job(|cancel| wait_until("the flag", || cancel.is_set()));
    let short = JobDeadline::FromStart(Duration::from_millis(20));
    let running = pool.run_within(short, endless()).wait();
    assert!(matches!(running, Err(PoolError::TimedOut { has_begun: true, .. })), "{running:?}");
    let running = block_on_without_timers(pool.run_within(short, endless()));
    assert!(matches!(running, Err(PoolError::TimedOut { has_begun: true, .. })), "{running:?}");
    assert_eq!(pool.status().timed_out, 4);
}

#[test]
fn a_deadline_sets_the_cancel_flag_also_of_a_detached_job() {
    let pool = create_pool(1, 8);
    let (sender, receiver) = channel();
    let job = cancellable_job(move |cancel| {
        let left = cancel.time_left();
        wait_until("the flag", || cancel.is_set() && is_cancelled());
        let _ = sender.send((left, cancel.time_left()));
    });
    let deadline = JobDeadline::FromStart(Duration::from_millis(20));
    pool.run_within(deadline, job).detach().expect("room");
    let (before, after) = receiver.recv_timeout(TEST_TIMEOUT).expect("cancelled");
    assert!(before.is_some_and(|left| left <= Duration::from_millis(20)), "{before:?}");
    assert_eq!(after, Some(Duration::ZERO));
    assert!(!is_cancelled(), "this thread runs no job");
}

#[test]
fn dropping_the_future_is_seen_without_a_flag() {
    let pool = create_pool(1, 8);
    let (sender, receiver) = channel();
    let job = pool.run(move || {
        let _ = sender.send(is_cancelled());
        wait_until("the cancellation", is_cancelled);
        let _ = sender.send(true);
    });
    assert_eq!(receiver.recv_timeout(TEST_TIMEOUT), Ok(false));
    drop(job);
    assert_eq!(receiver.recv_timeout(TEST_TIMEOUT), Ok(true));
}

#[test]
fn a_job_that_waits_for_its_own_pool_gets_an_error_instead_of_a_deadlock() {
    for threads in [1, 2, 3] {
        let pool = create_pool(threads, 64);
        let outer: Vec<_> = (0..8)
            .map(|_| {
                let inner = pool.clone();
                pool.run(move || inner.run(|| 1).wait())
            })
            .collect();
        let (mut done, mut refused) = (0, 0);
        for job in outer {
            match block_on(job).expect("the outer job ends") {
                Ok(1) => done += 1,
                Err(e @ PoolError::WouldDeadlock { .. }) if !e.has_begun() => refused += 1,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(done + refused, 8);
        assert!(refused > 0, "{threads} threads all waited");
        assert_eq!(block_on(pool.drain(TEST_TIMEOUT)), 0);
        let seen = pool.status();
        assert_eq!((seen.done, seen.rejected, seen.depth), (8 + done, refused, 0));
    }
}

#[test]
fn the_deadlock_is_also_found_if_the_job_blocks_on_the_future() {
    let pool = create_pool(1, 8);
    let inner = pool.clone();
    let outer = pool.run(move || {
        block_on_without_timers(async {
            let (first, second) = (inner.run(|| 1), inner.run_when_room(|| 2));
            tokio::join!(first, second)
        })
    });
    let (first, second) = block_on(outer).expect("the outer job ends");
    assert!(matches!(first, Err(PoolError::WouldDeadlock { .. })), "{first:?}");
    assert!(matches!(second, Err(PoolError::WouldDeadlock { .. })), "{second:?}");
}

#[test]
fn a_job_may_wait_for_its_pool_while_another_thread_is_free() {
    let pool = create_pool(2, 8);
    let inner = pool.clone();
    let outer = pool
        .run(move || (0..50).map(|n| inner.run(move || n).wait()).collect::<Result<Vec<_>, _>>());
    assert_eq!(block_on(outer), Ok(Ok((0..50).collect())));
}

#[test]
fn a_drain_waits_until_results_are_read_or_their_futures_dropped() {
    let pool = create_pool(1, 8);
    let (job, other, detached) = (pool.run(|| 5), pool.run(|| 6), pool.run(|| 7));
    detached.detach().expect("room");
    let drained = pool.drained_pool();
    drained.close();
    wait_until("the jobs", || pool.state().has_ended());
    assert!(!drained.is_drained() && drained.unread_results() == 2);
    let mut waiting = pin!(drained.wait_until_drained());
    let mut cx = Context::from_waker(Waker::noop());
    assert!(waiting.as_mut().poll(&mut cx).is_pending());
    assert_eq!(block_on(job), Ok(5));
    assert!(waiting.as_mut().poll(&mut cx).is_pending());
    drop(other);
    block_on(waiting);
}

#[test]
fn a_job_that_is_cut_tells_its_caller_that_it_had_begun() {
    let pool = create_pool(1, 8);
    let (job, gate) = run_gated_job(&pool);
    gate.wait_for_start();
    let queued = pool.run(|| ());
    let drained = pool.drained_pool();
    assert_eq!(drained.abort(), 1);
    drained.cut_running_jobs();
    let cut = block_on(job).expect_err("cut");
    assert!(matches!(cut, PoolError::Cut { .. }) && cut.has_begun(), "{cut:?}");
    assert_eq!(block_on(queued), Err(PoolError::Closed));
    gate.open_gate();
    block_on(drained.wait_until_drained());
    let seen = pool.status();
    assert_eq!((seen.done, seen.cancelled, seen.closed), (0, 1, 1));
}
