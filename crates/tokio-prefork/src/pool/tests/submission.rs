//! Tests of the ways to submit a job: with its return on refusal, when there is room, detached, with a priority, over an iterator.

use std::sync::atomic::AtomicUsize;

use super::*;

#[test]
fn a_refused_job_is_given_back() {
    let pool = create_pool(1, 0);
    let (first, gate) = run_gated_job(&pool);
    gate.wait_for_start();
    let data = "x".repeat(100);
    let refused = pool.try_run(move || data.len()).expect_err("no room");
    assert_eq!(refused.error, PoolError::Full { waiting: 0 });
    assert!(refused.to_string().contains("run_when_room"), "{refused}");
    assert_eq!((refused.job)(), 100, "the data was lost");
    gate.open_gate();
    block_on(first).expect("done");
    assert_eq!(block_on(pool.try_run(|| 5).expect("room")), Ok(5));
    block_on(pool.drain(TEST_TIMEOUT));
    assert_eq!(pool.try_run(|| 5).expect_err("closed").error, PoolError::Closed);
    assert_eq!((pool.status().rejected, pool.status().closed), (1, 1));
}

#[test]
fn jobs_wait_for_room_in_order_and_are_not_counted_as_rejected() {
    let pool = create_pool(1, 2);
    let (first, gate) = run_gated_job(&pool);
    gate.wait_for_start();
    let (sender, receiver) = channel();
    let jobs: Vec<_> = (0..100)
        .map(|n| {
            let sender = sender.clone();
            pool.run_when_room(move || sender.send(n))
        })
        .collect();
    assert_eq!(pool.status().depth, 2, "the queue is longer than its capacity");
    assert!(matches!(block_on(pool.run(|| ())), Err(PoolError::Full { .. })), "it overtakes");
    gate.open_gate();
    block_on(async {
        first.await.expect("done");
        for job in jobs {
            job.await.expect("done").expect("receiver");
        }
    });
    assert_eq!(receiver.try_iter().collect::<Vec<_>>(), (0..100).collect::<Vec<_>>());
    assert_eq!((pool.status().rejected, pool.status().done, pool.status().depth), (1, 101, 0));
}

#[test]
fn a_job_that_waits_for_room_ends_like_a_queued_one() {
    let pool = create_pool(1, 0);
    let (first, gate) = run_gated_job(&pool);
    gate.wait_for_start();
    let dropped = pool.run_when_room(|| ());
    let late = pool.job(|| ()).when_room().timeout(Duration::from_millis(5)).start();
    let kept = pool.run_when_room(|| 5);
    drop(dropped);
    let late = block_on(late).expect_err("too late");
    assert!(matches!(late, PoolError::TimedOut { has_begun: false, .. }), "{late:?}");
    pool.state().close();
    gate.open_gate();
    assert_eq!(block_on(async { (first.await, kept.await) }), (Ok(()), Ok(5)));
    let seen = pool.status();
    assert_eq!((seen.cancelled, seen.timed_out, seen.done), (1, 1, 2));
}

#[test]
fn a_detached_job_runs_without_a_caller() {
    let pool = create_pool(1, 8);
    let (first, gate) = run_gated_job(&pool);
    gate.wait_for_start();
    let (sender, receiver) = channel();
    for n in 0..5 {
        let sender = sender.clone();
        pool.run(move || sender.send(n)).detach().expect("taken");
    }
    first.detach().expect("taken");
    gate.open_gate();
    assert_eq!(block_on(pool.drain(TEST_TIMEOUT)), 0);
    assert_eq!(receiver.try_iter().collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    assert_eq!(pool.run(|| ()).detach(), Err(PoolError::Closed));
    let seen = pool.status();
    assert_eq!((seen.done, seen.cancelled, seen.closed), (6, 0, 1));
}

#[test]
fn a_higher_priority_runs_first() {
    let pool = create_pool(1, 8);
    let (first, gate) = run_gated_job(&pool);
    gate.wait_for_start();
    let (sender, receiver) = channel();
    let submit = |name, priority| {
        let sender = sender.clone();
        pool.job(move || sender.send(name)).priority(priority).detach().expect("room");
    };
    submit("low", Priority::Low);
    submit("normal", Priority::Normal);
    submit("high", Priority::High);
    submit("normal again", Priority::Normal);
    gate.open_gate();
    block_on(first).expect("done");
    assert_eq!(block_on(pool.drain(TEST_TIMEOUT)), 0);
    let order: Vec<_> = receiver.try_iter().collect();
    assert_eq!(order, ["high", "normal", "normal again", "low"]);
}

#[test]
fn map_keeps_the_order_and_its_bound() {
    let pool = create_pool(3, 1);
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (counted, seen) = (Arc::clone(&running), Arc::clone(&most));
    let function = move |n: u64| {
        seen.fetch_max(counted.fetch_add(1, SeqCst) + 1, SeqCst);
        let end = Instant::now() + Duration::from_micros(n % 5 * 100);
        while Instant::now() < end {
            std::hint::spin_loop();
        }
        counted.fetch_sub(1, SeqCst);
        n * n
    };
    let mut results = pool.map(0..200u64, 2, function);
    let squares = block_on(async {
        let mut squares = Vec::new();
        while let Some(result) = results.next_result().await {
            squares.push(result.expect("done"));
        }
        squares
    });
    assert_eq!(squares, (0..200).map(|n| n * n).collect::<Vec<u64>>());
    assert!(most.load(SeqCst) <= 2, "{most:?} at the same time");
    assert_eq!((pool.status().done, pool.status().rejected), (200, 0));
}

#[test]
#[expect(clippy::panic, reason = "panics are what is tested")]
fn map_continues_after_a_panic_and_cancels_when_dropped() {
    let pool = create_pool(2, 8);
    let mut results = pool.map(vec![1, 2, 3], 1, |n| if n == 2 { panic!("two") } else { n });
    let seen: Vec<_> = std::iter::from_fn(|| results.wait_next()).collect();
    assert_eq!((&seen[0], &seen[2], seen.len()), (&Ok(1), &Ok(3), 3));
    assert!(matches!(&seen[1], Err(PoolError::Panicked { .. })), "{seen:?}");
    let (taken, take) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&taken);
    let items = (0..1000u64).inspect(move |_| {
        counted.fetch_add(1, SeqCst);
    });
    let ran = Arc::clone(&take);
    let mut endless = pool.map(items, 4, move |_| ran.fetch_add(1, SeqCst));
    assert!(endless.wait_next().expect("an item").is_ok());
    drop(endless);
    assert_eq!(block_on(pool.drain(TEST_TIMEOUT)), 0);
    assert!(taken.load(SeqCst) <= 8 && take.load(SeqCst) <= taken.load(SeqCst), "{taken:?}");
}

#[test]
fn a_closed_pool_runs_the_jobs_of_its_running_jobs() {
    let pool = create_pool(2, 8);
    let other = create_pool(1, 8);
    let ((start, started), (release, released)) = (channel(), channel::<()>());
    let (own, used) = (pool.clone(), other.clone());
    let outer = pool.run(move || {
        let _ = start.send(());
        let _ = released.recv_timeout(TEST_TIMEOUT);
        (own.run(|| 1).wait(), used.run(|| 2).wait())
    });
    started.recv_timeout(TEST_TIMEOUT).expect("started");
    pool.state().close();
    other.state().close();
    let _ = release.send(());
    assert_eq!(block_on(outer), Ok((Ok(1), Ok(2))));
    assert_eq!(block_on(pool.drain(TEST_TIMEOUT)) + block_on(other.drain(TEST_TIMEOUT)), 0);
    assert_eq!(block_on(pool.run(|| ())), Err(PoolError::Closed));
}

#[test]
fn a_submission_while_a_pool_drains_is_refused_at_once() {
    struct SubmitOnDrop(Pool, Sender<Result<(), PoolError>>);
    impl Drop for SubmitOnDrop {
        fn drop(&mut self) {
            let _ = self.1.send(self.0.run(|| ()).detach());
        }
    }
    let pool = create_pool(1, 8);
    let (first, gate) = run_gated_job(&pool);
    gate.wait_for_start();
    let (sender, receiver) = channel();
    let submitter = SubmitOnDrop(pool.clone(), sender);
    let queued = pool.run(move || drop(submitter));
    pool.state().abort();
    assert_eq!(receiver.recv_timeout(TEST_TIMEOUT), Ok(Err(PoolError::Closed)));
    assert_eq!(block_on(queued), Err(PoolError::Closed));
    gate.open_gate();
    block_on(first).expect("done");
}
