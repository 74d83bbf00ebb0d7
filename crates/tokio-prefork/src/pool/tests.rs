//! The promises of a pool, each as a test; panics are in `panics.rs`, leaks in `leaks.rs`, random callers in `random_callers.rs`.

mod leaks;
mod panics;
mod random_callers;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use super::*;

const LONG: Duration = Duration::from_secs(30);

fn pool_of(threads: usize, queue: usize) -> Pool {
    Pool::new(PoolConfig { threads, queue, ..PoolConfig::default() })
}

fn on_runtime<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let bounded = async { tokio::time::timeout(LONG, future).await.expect("in time") };
    runtime.expect("runtime").block_on(bounded)
}

/// A job that waits to be let go, and says when it has begun.
struct Gate {
    begun: Receiver<()>,
    go: Sender<()>,
}

fn gated(pool: &Pool) -> (JobFuture<impl PoolJob<Output = ()>>, Gate) {
    let ((begin, begun), (go, gone)) = (channel(), channel());
    let job = pool.run(move || {
        let _ = begin.send(());
        let _ = gone.recv_timeout(LONG);
    });
    (job, Gate { begun, go })
}

impl Gate {
    fn wait(&self) {
        self.begun.recv_timeout(LONG).expect("begun");
    }

    fn open(&self) {
        let _ = self.go.send(());
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let give_up = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < give_up, "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_result_comes_back_and_nothing_starts_before_the_first_job() {
    let pool = pool_of(2, 4);
    assert_eq!(pool.snapshot().threads, 0);
    let data = vec![7u8; 1 << 20];
    let address = data.as_ptr() as usize;
    let back = on_runtime(pool.run(move || data)).expect("result");
    assert_eq!(back.as_ptr() as usize, address, "moved there and back, not copied");
    let seen = pool.snapshot();
    assert_eq!((seen.threads, seen.capacity, seen.done, seen.running), (2, 4, 1, 0));
    assert_eq!((seen.wait.iter().sum::<u64>(), seen.run.iter().sum::<u64>()), (1, 1));
}

#[test]
fn the_queue_is_first_in_first_out_and_bounded() {
    let pool = pool_of(1, 3);
    let (first, gate) = gated(&pool);
    gate.wait();
    let (tell, told) = channel();
    let jobs: Vec<_> = (0..3)
        .map(|n| {
            let tell = tell.clone();
            pool.run(move || tell.send(n))
        })
        .collect();
    let refused = on_runtime(pool.run(|| ())).expect_err("no room");
    assert_eq!(refused, PoolError::Full { waiting: 3 });
    assert!(refused.to_string().contains("try again later"), "{refused}");
    assert_eq!(pool.snapshot().depth, 3);
    gate.open();
    on_runtime(async {
        first.await.expect("done");
        for job in jobs {
            job.await.expect("done").expect("told");
        }
    });
    assert_eq!(told.try_iter().collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!((pool.snapshot().rejected, pool.snapshot().depth), (1, 0));
}

#[test]
fn without_a_queue_idle_threads_still_take_jobs() {
    let pool = pool_of(2, 0);
    on_runtime(async {
        for round in 0..200 {
            // Whoever hears that a job is done finds its thread idle.
            assert_eq!(pool.run(move || round).await, Ok(round));
        }
    });
    let ((_a, first), (_b, second)) = (gated(&pool), gated(&pool));
    first.wait();
    second.wait();
    assert_eq!(on_runtime(pool.run(|| ())), Err(PoolError::Full { waiting: 0 }));
    first.open();
    second.open();
}

#[test]
fn a_job_whose_future_is_dropped_leaves_the_queue() {
    let pool = pool_of(1, 8);
    let (first, gate) = gated(&pool);
    gate.wait();
    let ran = Arc::new(AtomicBool::new(false));
    let (set, held) = (Arc::clone(&ran), Arc::new(()));
    let kept = Arc::clone(&held);
    let job = pool.run(move || {
        set.store(true, SeqCst);
        drop(kept);
    });
    assert_eq!(pool.snapshot().depth, 1);
    drop(job);
    assert_eq!((pool.snapshot().depth, pool.snapshot().cancelled), (0, 1));
    assert_eq!(Arc::strong_count(&held), 1, "what it had is dropped with it");
    gate.open();
    on_runtime(first).expect("done");
    assert_eq!(on_runtime(pool.drain(LONG)), 0);
    assert!(!ran.load(SeqCst));
}

#[test]
fn a_running_job_sees_that_its_caller_went_away() {
    let pool = pool_of(1, 8);
    let (tell, told) = channel();
    let job = pool.run(cancellable_job(move |cancel| {
        let _ = tell.send(cancel.is_set());
        until("the flag", || cancel.is_set());
        let _ = tell.send(cancel.is_set());
    }));
    assert_eq!(told.recv_timeout(LONG), Ok(false));
    drop(job);
    assert_eq!(told.recv_timeout(LONG), Ok(true));
    assert_eq!((pool.snapshot().cancelled, pool.snapshot().done), (1, 0));
}

#[test]
fn a_deadline_counts_from_submission_or_from_the_start() {
    let short = Duration::from_millis(30);
    let pool = pool_of(1, 8);
    let (first, gate) = gated(&pool);
    gate.wait();
    on_runtime(async {
        let waits = pool.run_within(JobDeadline::FromSubmission(short), || ());
        let patient = pool.run_within(JobDeadline::FromStart(short), || 1);
        let late = waits.await.expect_err("it could not even begin");
        assert!(late.to_string().contains("did not end within 30ms of its submission"), "{late}");
        assert_eq!(pool.snapshot().depth, 1, "and is gone from the queue");
        gate.open();
        first.await.expect("done");
        assert_eq!(patient.await, Ok(1), "the time in the queue did not count");
        let (tell, told) = channel();
        let endless = cancellable_job(move |cancel| {
            until("the flag", || cancel.is_set());
            let _ = tell.send(());
        });
        let late = pool.run_within(JobDeadline::FromStart(short), endless).await;
        assert!(late.expect_err("endless").to_string().contains("of its start"));
        told.recv_timeout(LONG).expect("it saw the flag");
    });
    assert_eq!(pool.snapshot().timed_out, 2);
}

#[test]
fn a_job_that_is_too_late_never_begins_even_if_nobody_looks() {
    let pool = pool_of(1, 8);
    let (first, gate) = gated(&pool);
    gate.wait();
    let ran = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&ran);
    let job = pool.run_within(JobDeadline::FromSubmission(Duration::ZERO), move || {
        set.store(true, SeqCst);
    });
    gate.open();
    until("the first to end", || pool.snapshot().timed_out == 1);
    assert!(!ran.load(SeqCst));
    on_runtime(async {
        assert!(matches!(job.await, Err(PoolError::TimedOut { .. })));
        first.await.expect("done");
    });
}

#[test]
fn a_closed_pool_runs_what_waits_and_takes_no_more() {
    let pool = pool_of(1, 8);
    let (first, gate) = gated(&pool);
    gate.wait();
    let second = pool.run(|| 2);
    pool.close();
    assert_eq!(on_runtime(pool.run(|| 3)), Err(PoolError::Closed));
    gate.open();
    on_runtime(async {
        pool.ended().await;
        assert_eq!((first.await, second.await), (Ok(()), Ok(2)));
    });
    assert_eq!(pool.snapshot().closed, 1);
}

#[test]
fn a_job_that_never_ends_holds_up_a_drain_no_longer_than_it_may() {
    let pool = pool_of(1, 8);
    let (stuck, gate) = gated(&pool);
    gate.wait();
    let waits = pool.run(|| ());
    assert_eq!(on_runtime(pool.drain(Duration::from_millis(20))), 1);
    assert_eq!(on_runtime(waits), Err(PoolError::Closed));
    gate.open();
    assert_eq!(on_runtime(stuck), Ok(()), "its result is still delivered");
}

#[test]
fn the_end_of_a_pool_is_seen_by_what_runs() {
    let pool = pool_of(1, 8);
    let (tell, told) = channel();
    let job = pool.run(cancellable_job(move |cancel| {
        let _ = tell.send(());
        until("the flag", || cancel.is_set());
        "gave up"
    }));
    told.recv_timeout(LONG).expect("begun");
    assert_eq!(pool.end(), 1);
    assert_eq!(on_runtime(job), Ok("gave up"));
    on_runtime(pool.ended());
}

#[test]
fn a_pool_that_was_never_used_ends_at_once() {
    assert_eq!(on_runtime(pool_of(1, 1).drain(LONG)), 0);
}

#[test]
fn when_the_last_handle_is_dropped_what_waits_still_runs() {
    let pool = pool_of(1, 8);
    let (first, gate) = gated(&pool);
    gate.wait();
    let second = pool.run(|| 2);
    drop(pool);
    gate.open();
    assert_eq!(on_runtime(async { (first.await, second.await) }), (Ok(()), Ok(2)));
}

#[test]
fn threads_give_way_to_the_loop() {
    let nice = |nice| {
        let pool = Pool::new(PoolConfig { threads: 1, nice, ..PoolConfig::default() });
        on_runtime(pool.run(|| prefork_os::thread::thread_niceness().expect("nice")))
            .expect("result")
    };
    let own = prefork_os::thread::thread_niceness().expect("nice");
    assert_eq!(nice(19), 19);
    assert_eq!(prefork_os::thread::thread_niceness().expect("nice"), own, "only they");
}
